//! What programs that publish in transactions leave in a log.

use std::ops::Range;

use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use tidings_core::Transport;

use super::*;

/// What transactions leave in the log beside messages: marks of their ends, and messages that were taken back. None of that
/// is received, or holds up what is committed, and what is behind an open transaction waits for its end.
pub(crate) async fn gaps_that_transactions_leave_hold_nothing_up(url: String) {
    let (kafka, place) = (connect(&url).await, Place::new());
    place.declare(&kafka).await;
    let transactions = Transactions::new(&url, &place);
    transactions.run(0..3, false);
    transactions.run(3..6, true);
    place.publish(&kafka, 6..8).await;
    transactions.run(8..10, false);
    transactions.run(10..12, true);
    transactions.run(12..13, false);
    let mut deliveries = place.subscribe(&kafka, 100).await;
    let mut held = next_few(&mut deliveries, 7).await;
    let numbers: Vec<usize> = held.iter().map(body).collect();
    assert_eq!(numbers, [3, 4, 5, 6, 7, 10, 11]);
    // Backwards, and not the first of all.
    while held.len() > 1 {
        ack(held.remove(held.len() - 1)).await;
    }
    kafka.close().await;
    let kafka = connect(&url).await;
    let mut deliveries = place.subscribe(&kafka, 100).await;
    take(&mut deliveries, [(3, true)]).await;
    none(&mut deliveries).await;
    kafka.close().await;

    let kafka = connect(&url).await;
    let mut deliveries = place.subscribe(&kafka, 100).await;
    transactions.begin(13..14);
    place.publish(&kafka, [14]).await;
    none(&mut deliveries).await;
    transactions.end(true);
    take(&mut deliveries, [(13, false), (14, false)]).await;
    none(&mut deliveries).await;
}

/// A foreign program that publishes to the first partition in transactions.
struct Transactions<'a> {
    producer: BaseProducer,
    place: &'a Place,
}

impl<'a> Transactions<'a> {
    fn new(url: &str, place: &'a Place) -> Self {
        let mut config = foreign(url);
        let producer: BaseProducer = config
            .set("transactional.id", &place.topic)
            .create()
            .expect("a producer");
        producer.init_transactions(SOON).expect("transactions");
        Self { producer, place }
    }

    fn run(&self, numbers: Range<usize>, is_committed: bool) {
        self.begin(numbers);
        self.end(is_committed);
    }

    fn begin(&self, numbers: Range<usize>) {
        self.producer.begin_transaction().expect("one more");
        for number in numbers {
            let body = number.to_string();
            let record = BaseRecord::<(), str>::to(&self.place.topic).partition(0);
            let sent = self.producer.send(record.payload(&body));
            sent.expect("it is sent");
        }
        self.producer.flush(SOON).expect("it is there");
    }

    fn end(&self, is_committed: bool) {
        let ended = match is_committed {
            true => self.producer.commit_transaction(SOON),
            false => self.producer.abort_transaction(SOON),
        };
        ended.expect("it ends");
    }
}

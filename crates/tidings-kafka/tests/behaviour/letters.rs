//! Dead letters that operators take out of their topic.

use rdkafka::admin::AdminOptions;
use tidings_core::{AccessErrorKind, HeldLetters, Transport, dead_letter_queue};

use super::*;

/// What was removed stays removed when Kafka forgets the group that held it, and is deleted from the log as soon as
/// nothing is left before it.
pub(crate) async fn what_was_removed_stays_away_when_its_group_is_forgotten(url: String) {
    let (kafka, place) = (connect(&url).await, Place::new());
    place.declare(&kafka).await;
    let queue = dead_letter_queue(&place.queue);
    let access = kafka.dead_letter_access().expect("there is access");
    let batch = (0..5).map(|body| Envelope::new("noted.v1", body.to_string()));
    for outcome in access.put(&queue, batch.collect()).await {
        outcome.expect("it is put there");
    }
    let mut held = hold(&kafka, &queue).await;
    let letters = held.next(10).await.expect("they are read");
    let places = [letters[1].place, letters[3].place];
    held.remove(&places).await.expect("they are removed");
    held.release().await.expect("the others go back");
    kafka.close().await;
    assert_eq!(ends(&url, &queue, 0).expect("it is there"), (0, 5));

    // Which is what Kafka does itself, seven days later.
    let deleted = admin(&url)
        .delete_groups(&[&queue], &AdminOptions::new())
        .await;
    assert!(deleted.expect("an answer")[0].is_ok());
    let kafka = connect(&url).await;
    let access = kafka.dead_letter_access().expect("there is access");
    assert_eq!(access.count(&queue).await.expect("it counts"), 3);
    let depths = kafka.queue_depths(std::slice::from_ref(&queue)).await;
    let ready = depths.expect("it looks")[0].map(|depth| depth.ready);
    assert_eq!(ready, Some(3));
    let mut held = hold(&kafka, &queue).await;
    let letters = held.next(10).await.expect("they are read");
    let bodies: Vec<&[u8]> = letters.iter().map(|it| &*it.envelope.body).collect();
    assert_eq!(bodies, [b"0", b"2", b"4"]);
    held.remove(&[letters[0].place])
        .await
        .expect("it is removed");
    held.release().await.expect("the others go back");
    assert_eq!(ends(&url, &queue, 0).expect("it is there"), (2, 5));
    assert_eq!(access.count(&queue).await.expect("it counts"), 2);
}

async fn hold(kafka: &Kafka, queue: &str) -> Box<dyn HeldLetters> {
    let access = kafka.dead_letter_access().expect("there is access");
    loop {
        match access.hold(queue).await {
            Ok(held) => return held,
            Err(error) if error.kind() == AccessErrorKind::Busy => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

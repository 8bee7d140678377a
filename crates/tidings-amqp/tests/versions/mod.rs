//! What differs between versions of RabbitMQ, held against the table in the guide.

use std::{num::NonZeroU16, time::Duration};

use crate::behaviour::{
    connect, id, next, publish_all, raw::Raw, subscribe, to_queue, topology, unique, within,
};
use futures_util::StreamExt;
use tidings_amqp::Amqp;
use tidings_core::{Settlement, Subscription, Transport, dead_letter_queue};
use tidings_testing::servers::RabbitMq;
use tidings_wire::{Method, Value, reply};

/// What the guide says of the version that is started here, in the row that begins so.
///
/// # Panics
///
/// When it has no such row, or no column for this version.
pub(crate) fn documented(row: &str) -> String {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guide/rabbitmq.md");
    let page = std::fs::read_to_string(page).expect("it is there");
    let section = page.split_once("## Versions").expect("a section").1;
    let cells = |line: &str| -> Vec<String> {
        let line = line.trim_matches('|').split('|');
        line.map(|cell| cell.trim().to_owned()).collect()
    };
    let rows = section.lines().filter(|line| line.starts_with('|'));
    let rows: Vec<Vec<String>> = rows.map(cells).collect();
    let version = RabbitMq::version().expect("its folder says it");
    // 4.0.6 does what 4.0.5 does.
    let line = version.rsplit_once('.').expect("three numbers").0;
    let column = rows[0]
        .iter()
        .position(|it| it.starts_with(&format!("{line}.")));
    let column = column.unwrap_or_else(|| panic!("the guide has no column for {version}"));
    let found = rows.iter().find(|it| it[0].starts_with(row));
    let found = found.unwrap_or_else(|| panic!("the guide has no row `{row}`"));
    found[column].clone()
}

pub(crate) async fn headers_come_as_the_guide_says(url: String) {
    let amqp = connect(&url).await;
    let queue = unique("headers");
    amqp.declare(&topology(&queue, &[]))
        .await
        .expect("declared");
    let mut message = to_queue(&queue, "1");
    let sent = ["zebra", "ape", "lion"];
    for name in sent {
        message.envelope.headers.push((name.into(), "1".into()));
    }
    publish_all(&amqp, vec![message]).await;
    let delivery = next(&mut subscribe(&amqp, &queue, 1).await).await;
    let names = delivery.envelope.headers.iter().map(|(name, _)| &**name);
    let names: Vec<&str> = names.filter(|it| sent.contains(it)).collect();
    let came = match names == sent {
        true => "as sent",
        false => "sorted by name",
    };
    assert_eq!(came, documented("headers of a message"), "{names:?}");
    if came == "sorted by name" {
        assert!(names.is_sorted(), "{names:?}");
    }
}

/// A quorum queue that somebody made by hand, without a delivery limit.
pub(crate) async fn what_is_given_back_often_is_where_the_guide_says(url: String) {
    // More than RabbitMQ 4 allows by default.
    const ROUNDS: usize = 25;
    let queue = unique("limitless");
    let dead = dead_letter_queue(&queue);
    let mut raw = Raw::connect(&url).await;
    let arguments = [
        ("x-dead-letter-exchange", Value::from("")),
        ("x-dead-letter-routing-key", Value::from(&*dead)),
        ("x-queue-type", Value::from("quorum")),
    ];
    raw.declare_queue(&queue, &arguments).await;
    let amqp = connect(&url).await;
    amqp.declare(&topology(&queue, &[]))
        .await
        .expect("it is used as it is");
    publish_all(&amqp, ["1", "2"].map(|id| to_queue(&queue, id)).to_vec()).await;
    let prefetch = NonZeroU16::MIN;
    let subscription = Subscription::new(queue.clone()).prefetch(prefetch);
    let mut deliveries = amqp.subscribe(subscription).await.expect("subscribed");
    let mut order = Vec::new();
    while order.len() < 2 * ROUNDS {
        let within = tokio::time::timeout(Duration::from_secs(5), deliveries.next());
        let Ok(Some(delivery)) = within.await else {
            break;
        };
        let delivery = delivery.expect("a delivery");
        order.push(id(&delivery));
        delivery
            .settle(Settlement::Requeue)
            .await
            .expect("it is back");
    }
    let alternates = order.windows(2).all(|two| two[0] != two[1]);
    let told = match (
        count(&amqp, &dead).await,
        order.len() == 2 * ROUNDS,
        alternates,
    ) {
        (0, true, true) => "none; what is given back comes last".to_owned(),
        (0, true, false) => "none; what is given back comes first".to_owned(),
        (2, false, _) => format!("{}, then a dead letter", order.len() / 2 - 1),
        other => format!("{other:?}, {order:?}"),
    };
    assert_eq!(told, documented("a quorum queue without a delivery limit"));
}

async fn count(amqp: &Amqp, dead: &str) -> u64 {
    let access = amqp.dead_letter_access().expect("it has one");
    within("a look", access.count(dead))
        .await
        .expect("it counts")
}

/// Asked at `url`, while the node of this classic queue is away.
pub(crate) async fn a_queue_that_is_away_is_asked_for_as_the_guide_says(url: &str, queue: &str) {
    let mut raw = Raw::connect(url).await;
    let asked = tokio::time::timeout(Duration::from_secs(5), raw.look(queue));
    let told = match asked.await {
        Err(_) => "not answered".to_owned(),
        Ok(Method::ChannelClose(close)) if close.reply_code == reply::NOT_FOUND => {
            "refused".to_owned()
        }
        Ok(other) => format!("{other:?}"),
    };
    assert_eq!(told, documented("question about a classic queue"));
}

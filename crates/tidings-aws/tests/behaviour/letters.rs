//! Dead letters that operators hold, beyond what the contract of a transport asks.

use tidings_core::{
    AccessErrorKind, DeadLetterAccess, Group, HeldLetters, QueueDepth, dead_letter_queue,
};
use tidings_testing::servers::AwsEmulator;
use tokio::time::{Instant, sleep};

use super::*;

fn access(aws: &Aws) -> &dyn DeadLetterAccess {
    aws.dead_letter_access().expect("there is access")
}

/// As soon as nobody else has them.
async fn hold(aws: &Aws, queue: &str) -> Box<dyn HeldLetters> {
    let deadline = Instant::now() + SOON;
    loop {
        match access(aws).hold(queue).await {
            Ok(held) => return held,
            Err(error) if error.kind() == AccessErrorKind::Busy && Instant::now() < deadline => {
                sleep(Duration::from_millis(100)).await;
            }
            Err(error) => panic!("{queue} cannot be held: {error}"),
        }
    }
}

/// All of them, sorted where no order is promised.
async fn bodies_of(aws: &Aws, held: &mut Box<dyn HeldLetters>) -> Vec<String> {
    let mut bodies = bodies(held).await;
    if !aws.features().keeps_order {
        bodies.sort_unstable();
    }
    bodies
}

async fn bodies(held: &mut Box<dyn HeldLetters>) -> Vec<String> {
    let mut bodies = Vec::new();
    loop {
        let letters = held.next(7).await.expect("they are read");
        if letters.is_empty() {
            return bodies;
        }
        let each = letters.iter().map(|it| &it.envelope.body);
        bodies.extend(each.map(|body| String::from_utf8_lossy(body).into_owned()));
    }
}

/// A queue with these letters beside it.
async fn buried(aws: &Aws, bodies: &[&str]) -> String {
    let place = Place::new();
    place.declare(aws).await;
    let queue = dead_letter_queue(&place.queue);
    let batch = bodies
        .iter()
        .map(|body| Envelope::new("noted.v1", (*body).to_owned()));
    for outcome in access(aws).put(&queue, batch.collect()).await {
        outcome.expect("it is put there");
    }
    queue
}

/// SQS drops within five minutes what has the id of an earlier message, even of one that is not there any more.
pub(crate) async fn what_an_operator_sends_again_at_once_is_no_duplicate(url: String) {
    let (aws, place) = (connect(&url).await, Place::new());
    place.declare(&aws).await;
    let message = place.message("order-1", Some("k"), "a");
    let envelope = message.envelope.clone();
    let to_queue = Outgoing {
        destination: Destination::Queue(place.queue.clone().into()),
        ..message
    };
    aws.publish(vec![to_queue]).await.remove(0).expect("taken");
    let mut deliveries = place.subscribe(&aws, 10).await;
    take(&mut deliveries, &[("a", false)]).await;
    for _ in 0..2 {
        let again = vec![envelope.clone()];
        let outcomes = access(&aws).send_back(&place.queue, again).await;
        assert_eq!(kinds(&outcomes), [None]);
        take(&mut deliveries, &[("a", false)]).await;
    }
    // As an operator edits a letter before it: the one that follows is put behind it, and taken out of its old place.
    let queue = dead_letter_queue(&place.queue);
    for _ in 0..2 {
        let put = access(&aws).put(&queue, vec![envelope.clone()]).await;
        assert_eq!(kinds(&put), [None]);
    }
    let mut held = hold(&aws, &queue).await;
    assert_eq!(bodies(&mut held).await, ["a", "a"]);
    held.release().await.expect("they go back");
}

/// SNS puts what it cannot deliver into the dead letters, with its key as its group. Of a group, SQS hands out nothing
/// more while one is out.
pub(crate) async fn letters_of_one_group_are_all_found(url: String) {
    let aws = connect(&url).await;
    let queue = buried(&aws, &["first"]).await;
    let (name, endpoint) = (at_amazon(&queue), endpoint(&url));
    let mut expected = vec!["first".to_owned()];
    for number in 0..25 {
        let body = format!("of one key {number}");
        let message = serde_json::json!({
            "QueueUrl": format!("{endpoint}/000000000000/{name}"),
            "MessageBody": body,
            "MessageGroupId": "key",
            "MessageDeduplicationId": number.to_string(),
            "MessageAttributes": { "tenant": { "DataType": "String", "StringValue": "t" } },
        });
        call(&endpoint, "SendMessage", &message);
        expected.push(body);
    }
    for _ in 0..2 {
        let mut held = hold(&aws, &queue).await;
        assert_eq!(bodies(&mut held).await, expected);
        assert_eq!(held.behind().await.expect("it counts"), 0);
        held.release().await.expect("they go back");
    }
    assert_eq!(access(&aws).count(&queue).await.expect("it counts"), 26);
    let mut held = hold(&aws, &queue).await;
    let letters = held.next(2).await.expect("they are read");
    assert_eq!(letters[1].envelope.header("tenant"), Some("t"));
}

/// Longer than anything is hidden at a time; and an operator who is gone without a word keeps nothing for longer.
pub(crate) async fn a_hold_lasts_while_its_process_does(url: String) {
    let aws = connect(&url).await;
    let queue = buried(&aws, &["a", "b", "c"]).await;
    let mut held = hold(&aws, &queue).await;
    let letters = held.next(2).await.expect("they are read");
    let other = connect(&url).await;
    let until = Instant::now() + Duration::from_secs(9);
    while Instant::now() < until {
        let refused = access(&other).hold(&queue).await.map(drop);
        let kind = refused.expect_err("somebody holds them").kind();
        assert_eq!(kind, AccessErrorKind::Busy);
        let count = access(&other).count(&queue).await.expect("it counts");
        assert_eq!(count, 1, "nobody else gets what is held");
        sleep(Duration::from_millis(500)).await;
    }
    let gone = String::from_utf8_lossy(&letters[0].envelope.body).into_owned();
    held.remove(&[letters[0].place]).await.expect("it is ours");
    held.release().await.expect("the others go back");
    let mut left = vec!["a", "b", "c"];
    left.retain(|body| *body != gone);

    let (dead, at) = (queue.clone(), url.clone());
    let expected: Vec<String> = left.iter().map(|&body| body.to_owned()).collect();
    let dying = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let aws = connect(&at).await;
            let mut held = hold(&aws, &dead).await;
            assert_eq!(bodies_of(&aws, &mut held).await, expected);
            // Nobody gives anything back.
            std::mem::forget((aws, held));
        });
        runtime.shutdown_background();
    });
    dying.join().expect("it ran");
    let refused = access(&other).hold(&queue).await.map(drop);
    assert_eq!(
        refused.expect_err("it died just now").kind(),
        AccessErrorKind::Busy
    );
    let mut held = hold(&other, &queue).await;
    assert_eq!(bodies_of(&other, &mut held).await, left, "all are back");
    held.release().await.expect("they go back");
}

pub(crate) async fn a_letter_is_removed_although_calls_fail(server: AwsEmulator) {
    let aws = connect(&server.url()).await;
    let queue = buried(&aws, &["a", "b"]).await;
    let mut held = hold(&aws, &queue).await;
    let letters = held.next(2).await.expect("they are read");
    server
        .fail_calls("DeleteMessageBatch", "InternalError", 3)
        .expect("told");
    held.remove(&[letters[0].place]).await.expect("it is gone");
    held.release().await.expect("the other goes back");
    assert_eq!(access(&aws).count(&queue).await.expect("it counts"), 1);
    let mut held = hold(&aws, &queue).await;
    assert_eq!(bodies(&mut held).await, ["b"]);
    // Who may not delete, or has lost them, is told so.
    let letters_lost = "InvalidParameterValue";
    server
        .fail_entries("DeleteMessageBatch", letters_lost, 1, "")
        .expect("told");
    let place = tidings_core::LetterPlace(1);
    let error = held.remove(&[place]).await.expect_err("it is not ours");
    assert_eq!(error.kind(), AccessErrorKind::Unavailable);
}

/// What a queue is called there, if it has a usual name.
fn at_amazon(queue: &str) -> String {
    format!("{}.fifo", queue.replace('.', "--"))
}

fn endpoint(url: &str) -> String {
    let (_, endpoint) = url.split_once("endpoint=").expect("an endpoint");
    endpoint.split('&').next().expect("a first part").to_owned()
}

/// A call of SQS, as any program makes it.
fn call(endpoint: &str, action: &str, body: &serde_json::Value) {
    use std::io::{Read, Write};
    let host = endpoint.strip_prefix("http://").expect("an emulator");
    let mut stream = std::net::TcpStream::connect(host).expect("it answers");
    let body = body.to_string();
    write!(
        stream,
        "POST / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nX-Amz-Target: AmazonSQS.{action}\r\n\
         Content-Type: application/x-amz-json-1.0\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .expect("it is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

pub(crate) async fn a_look_says_how_full_queues_are(url: String) {
    let (aws, place) = (connect(&url).await, Place::new());
    place.declare(&aws).await;
    place.publish(&aws, &["a", "b", "c"]).await;
    let dead = dead_letter_queue(&place.queue);
    let queues = [
        place.queue.clone(),
        format!("{}.nowhere", place.queue),
        dead,
    ];
    let look = async || aws.queue_depths(&queues).await.expect("it looks");
    // Who receives it does not know, which is not to look like nobody.
    let depth = |ready| Some(QueueDepth::new(ready, None));
    assert_eq!(look().await, [depth(3), None, depth(0)]);
    let mut deliveries = place.subscribe(&aws, 10).await;
    let delivery = next(&mut deliveries).await;
    let deadline = Instant::now() + SOON;
    while look().await[0] != depth(0) {
        assert!(Instant::now() < deadline, "all are here");
        sleep(Duration::from_millis(50)).await;
    }
    settle(delivery, Settlement::Ack).await;
}

/// All partitions of a group are one queue, whose messages are not to be counted for each of them.
pub(crate) async fn what_a_group_has_is_counted_once(url: String) {
    let (aws, place) = (connect(&url).await, Place::new());
    let partitions = NonZeroU16::new(3).expect("not zero");
    let name = format!("{}.ordered", place.topic);
    let group = Group::new(name.clone(), partitions).topic(place.topic.clone());
    let topology = Topology::new().group(group.clone());
    aws.declare(&topology).await.expect("it declares");
    let mut queues: Vec<String> = (0..3).map(|number| group.partition(number)).collect();
    queues.extend([group.any(), name, format!("{}.0of3", place.queue)]);
    let look = async || {
        let depths = aws.queue_depths(&queues).await.expect("it looks");
        let ready = depths.into_iter().map(|it| it.map(|it| it.ready));
        ready.collect::<Vec<_>>()
    };
    let all = |ready| [Some(ready), Some(0), Some(0), Some(0), Some(ready), None];
    assert_eq!(look().await, all(0));
    for number in 0..5 {
        let message = place.message(&number.to_string(), Some("key"), number);
        aws.publish(vec![message]).await.remove(0).expect("taken");
    }
    assert_eq!(look().await, all(5));
    let subscription = Subscription::new(group.partition(2)).ordered();
    let mut deliveries = aws.subscribe(subscription).await.expect("it is there");
    for number in 0..5 {
        take(&mut deliveries, &[(&number.to_string(), false)]).await;
    }
    let deadline = Instant::now() + SOON;
    while look().await != all(0) {
        assert!(Instant::now() < deadline, "all are gone");
        sleep(Duration::from_millis(50)).await;
    }
}

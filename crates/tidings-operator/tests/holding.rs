//! Dead letters that are held through an endpoint: they stay held as long as the client lives, and go back when
//! it is heard no more. Takes as long as that takes.

use std::time::Duration;

use tidings_core::{
    DeadLetterAccess as _, Envelope, Queue, Topology, Transport as _, dead_letter_queue,
};
use tidings_memory::MemoryTransport;
use tidings_operator::{HOLD_IDLE_MAX, Operator, Remote};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep},
};

/// A queue with dead letters, of which `count` gives the number that nobody holds.
async fn with_letters(broker: &MemoryTransport, queue: &'static str) -> String {
    let topology = Topology::new().queue(Queue::new(queue));
    broker.declare(&topology).await.unwrap();
    let dead = dead_letter_queue(queue);
    let letters = (0..10).map(|number| Envelope::new("order-placed.v1", number.to_string()));
    let access = broker.dead_letter_access().unwrap();
    for put in access.put(&dead, letters.collect()).await {
        put.unwrap();
    }
    dead
}

#[tokio::test]
async fn letters_go_back_when_their_client_is_heard_no_more_and_not_before() {
    let broker = MemoryTransport::new();
    let (kept, forgotten) = (
        with_letters(&broker, "kept").await,
        with_letters(&broker, "lost").await,
    );
    let endpoint = Operator::new(broker.connect());
    let endpoint = endpoint.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = endpoint.address();
    let serving = tokio::spawn(endpoint.serve(std::future::pending()));
    let count = async |dead: &str| {
        broker
            .dead_letter_access()
            .unwrap()
            .count(dead)
            .await
            .unwrap()
    };

    // A client that lives, and does nothing for a while.
    let remote = Remote::new(&format!("http://{address}"), None).unwrap();
    let through = remote.broker();
    let mut held = through.hold(&kept).await.unwrap();
    let first = held.next(4).await.unwrap();
    assert_eq!(first.len(), 4);
    // One that says nothing after it has got hold of them.
    let body = format!(r#"{{"ask":"broker","what":{{"ask":"hold","queue":"{forgotten}"}}}}"#);
    let hold = ask(address, &body).await;
    let name = hold.rsplit('"').nth(1).unwrap();
    let body = format!(r#"{{"ask":"broker","what":{{"ask":"next","hold":"{name}","count":4}}}}"#);
    let next = ask(address, &body).await;
    assert!(next.contains("order-placed.v1"), "{next}");
    assert_eq!((count(&kept).await, count(&forgotten).await), (6, 6));

    let since = Instant::now();
    while count(&forgotten).await < 10 {
        assert!(since.elapsed() < HOLD_IDLE_MAX * 2, "they do not go back");
        sleep(Duration::from_millis(100)).await;
    }
    assert!(
        since.elapsed() > HOLD_IDLE_MAX / 2,
        "it had no time: {:?}",
        since.elapsed()
    );
    // What is not held any more cannot be worked with.
    let next = ask(address, &body).await;
    assert!(next.contains("not held any more"), "{next}");

    assert_eq!(
        count(&kept).await,
        6,
        "they went back although their client lives"
    );
    held.remove(&[first[0].place]).await.unwrap();
    assert_eq!(held.next(10).await.unwrap().len(), 6);
    held.release().await.unwrap();
    assert_eq!(count(&kept).await, 9);
    // A client that drops it says so.
    let mut held = through.hold(&kept).await.unwrap();
    held.next(4).await.unwrap();
    drop(held);
    let since = Instant::now();
    while count(&kept).await < 9 {
        assert!(
            since.elapsed() < HOLD_IDLE_MAX / 2,
            "nobody said that they are dropped"
        );
        sleep(Duration::from_millis(20)).await;
    }
    serving.abort();
}

/// Asks as another program would.
async fn ask(address: std::net::SocketAddr, body: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!(
        "POST /v1/look HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         tidings-operator: 1\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

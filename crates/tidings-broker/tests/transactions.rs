//! `tx`: what is committed happens as a whole or not at all, and means what it meant when it was said.

mod support;

use support::*;
use tidings_wire::*;

#[tokio::test]
async fn a_transaction_may_acknowledge_one_delivery_and_then_all_so_far() {
    let broker = broker().await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    client.declare(queue("q")).await;
    for body in [b"1", b"2", b"3"] {
        client.publish(1, "", "q", body).await;
    }
    let Method::TxSelectOk(_) = client.call(1, TxSelect {}).await else {
        panic!("expected select-ok");
    };
    for _ in 0..2 {
        client.get("q", false).await.expect("a message");
    }
    for (delivery_tag, multiple) in [(2, false), (0, true)] {
        let ack = BasicAck {
            delivery_tag,
            multiple,
        };
        client.send(1, &ack).await;
    }
    // Delivered later, it is not meant.
    client.get("q", false).await.expect("a message");
    let committed = client.call(1, TxCommit {}).await;
    assert!(matches!(committed, Method::TxCommitOk(_)), "{committed:?}");
    client.close().await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    client.wait_ready("q", 1).await;
    let (_, content) = client.get("q", true).await.expect("the third");
    assert_eq!(&content.body[..], b"3");
}

#[tokio::test]
async fn a_transaction_that_is_refused_in_the_middle_did_nothing() {
    let broker = broker().await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    client.declare(queue("q")).await;
    client.publish(1, "", "q", b"there").await;
    let Method::TxSelectOk(_) = client.call(1, TxSelect {}).await else {
        panic!("expected select-ok");
    };
    let (got, _) = client.get("q", false).await.expect("a message");
    client.publish(1, "", "q", b"new").await;
    let ack = BasicAck {
        delivery_tag: got.delivery_tag,
        multiple: false,
    };
    client.send(1, &ack).await;
    // What was to be acknowledged goes back meanwhile.
    let recovered = client.call(1, BasicRecover { requeue: true }).await;
    assert!(matches!(recovered, Method::BasicRecoverOk(_)));
    match client.call(1, TxCommit {}).await {
        Method::ChannelClose(close) => assert_eq!(close.reply_code, reply::PRECONDITION_FAILED),
        other => panic!("expected a refusal, got {other:?}"),
    }
    let mut client = Client::connect(broker.amqp_addr()).await;
    client.wait_ready("q", 1).await;
    let (_, content) = client.get("q", true).await.expect("a message");
    assert_eq!(&content.body[..], b"there");
}

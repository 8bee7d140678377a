//! What a client declares and sends outlives the process, whatever values it has.

mod support;

use support::lasting::*;
use support::*;
use tidings_wire::*;

/// Numbers that are none, and equal nothing by the rules of arithmetic.
fn no_numbers() -> [Value; 4] {
    [
        Value::F64(f64::NAN),
        Value::F32(f32::NAN),
        Value::F64(f64::from_bits(0x7ff0_0000_0000_0001)),
        Value::Array([Value::F64(f64::NAN)].into_iter().collect()),
    ]
}

#[tokio::test]
async fn a_binding_with_a_number_that_is_none_is_made_once_and_can_be_taken_away() {
    let data = tempfile::tempdir().expect("a folder");
    let broker = start(data.path()).await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    client.declare(durable(queue("q"))).await;
    done(&mut client, exchange("x", "fanout", Table::default())).await;
    for value in no_numbers() {
        let arguments = table(&[("n", value)]);
        done(&mut client, bind("q", "x", "", arguments.clone())).await;
        done(&mut client, bind("q", "x", "", arguments.clone())).await;
        let unbind = QueueUnbind {
            queue: short("q"),
            exchange: short("x"),
            routing_key: short(""),
            arguments,
        };
        done(&mut client, unbind).await;
        client.publish(1, "x", "", b"to nobody").await;
        assert_eq!(client.ready("q").await, 0, "it was unbound");
    }
}

#[tokio::test]
async fn a_queue_goes_with_its_bindings_even_if_they_have_numbers_that_are_none() {
    let data = tempfile::tempdir().expect("a folder");
    let broker = start(data.path()).await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    client.declare(durable(queue("q"))).await;
    done(&mut client, exchange("x", "fanout", Table::default())).await;
    for value in no_numbers() {
        let arguments = table(&[("n", value)]);
        done(&mut client, bind("q", "x", "", arguments)).await;
    }
    let delete = QueueDelete {
        queue: short("q"),
        ..Default::default()
    };
    done(&mut client, delete).await;
    client.publish(1, "x", "", b"to nobody").await;
    assert!(client.is_alive(2).await);
    let (_broker, mut client) = restart(broker, client, data.path()).await;
    client.publish(1, "x", "", b"to nobody").await;
    assert!(client.is_alive(2).await);
}

#[tokio::test]
async fn a_binding_taken_away_by_equal_arguments_stays_away() {
    let data = tempfile::tempdir().expect("a folder");
    let broker = start(data.path()).await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    client.declare(durable(queue("q"))).await;
    // Equal, but not the same bytes in the log.
    let (bound, unbound) = (Value::F64(0.0), Value::F64(-0.0));
    done(
        &mut client,
        bind("q", "amq.fanout", "", table(&[("n", bound)])),
    )
    .await;
    let unbind = QueueUnbind {
        queue: short("q"),
        exchange: short("amq.fanout"),
        routing_key: short(""),
        arguments: table(&[("n", unbound)]),
    };
    done(&mut client, unbind).await;
    client.publish(1, "amq.fanout", "", b"to nobody").await;
    assert_eq!(client.ready("q").await, 0);
    let (_broker, mut client) = restart(broker, client, data.path()).await;
    client.publish(1, "amq.fanout", "", b"to nobody").await;
    assert_eq!(client.ready("q").await, 0, "it did not come back");
}

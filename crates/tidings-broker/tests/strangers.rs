//! Those who want in, and those who want too much: they are refused or dropped with a clear text, and
//! the others do not notice.

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use support::*;
use tidings_broker::Limits;
use tidings_wire::*;

/// An address of this machine to connect from.
fn from(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, last)
}

fn refused_text(got: Result<Client, Option<ConnectionClose>>) -> String {
    let close = got.err().expect("not let in").expect("it is told");
    assert_eq!(close.reply_code, reply::NOT_ALLOWED);
    close.reply_text.to_str_lossy().into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_take_no_place_and_the_oldest_makes_room_for_the_next() {
    let limits = Limits {
        connections_max: 1,
        handshakes_max: 3,
        handshakes_per_address_max: 2,
        // Nobody is dropped for being slow in this test.
        handshake_timeout: Duration::from_secs(3600),
        ..Limits::default()
    };
    let broker = broker_with(limits).await;
    let addr = broker.amqp_addr();
    let greeted = async |last| {
        let mut stranger = Client::raw_from(addr, from(last)).await;
        stranger.write(&PROTOCOL_HEADER).await;
        let start = stranger.hear().await;
        assert!(
            matches!(start, Some(Method::ConnectionStart(_))),
            "{start:?}"
        );
        stranger
    };
    let mut oldest = greeted(2).await;
    let mut first = greeted(3).await;
    let _second = greeted(3).await;
    // One more from the same address than may be.
    let mut third = greeted(3).await;
    assert!(first.frame().await.is_none(), "it has to go");
    // One more of all; and it has a place, because the others have none.
    let mut client = Client::connect(addr).await;
    assert!(oldest.frame().await.is_none(), "it has to go");
    assert!(client.is_alive(2).await);
    third.write(b"\x01\x00\x00\xff\xff\xff\xff").await;
    let closed = third.hear().await;
    assert!(
        matches!(closed, Some(Method::ConnectionClose(_))),
        "{closed:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_does_not_take_the_places_of_others() {
    let limits = Limits {
        connections_max: 3,
        connections_per_address_max: 2,
        ..Limits::default()
    };
    let broker = broker_with(limits).await;
    let addr = broker.amqp_addr();
    let connect = async |last| Client::greet_from(addr, from(last), Hello::default()).await;
    let first = connect(2).await.expect("let in");
    let _second = connect(2).await.expect("let in");
    let text = refused_text(connect(2).await);
    assert!(text.contains("`connections_per_address_max`"), "{text}");
    let _third = connect(3).await.expect("let in");
    let text = refused_text(connect(4).await);
    assert!(text.contains("`connections_max`"), "{text}");
    first.close().await;
    let deadline = Instant::now() + PATIENCE;
    while connect(2).await.is_err() {
        assert!(Instant::now() < deadline, "there is room again");
    }
}

fn wrong_password(capabilities: &'static [&'static str]) -> Hello {
    Hello {
        response: bytes::Bytes::from_static(b"\0guest\0wrong"),
        capabilities,
        ..Hello::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_gives_a_wrong_password_waits_for_the_answer() {
    let delay = Duration::from_millis(500);
    let limits = Limits {
        refused_login_delay: delay,
        ..Limits::default()
    };
    let broker = broker_with(limits).await;
    let check = async |capabilities: &'static [&'static str], told: Option<u16>| {
        let start = Instant::now();
        let got = Client::greet(broker.amqp_addr(), wrong_password(capabilities)).await;
        assert!(start.elapsed() >= delay, "{:?}", start.elapsed());
        let code = got.err().expect("not let in").map(|close| close.reply_code);
        assert_eq!(code, told, "{capabilities:?}");
    };
    check(&["authentication_failure_close"], Some(403)).await;
    check(&[], None).await;
}

/// Guesses for as long as the broker is there.
async fn guess(addr: SocketAddr, last: u8) {
    loop {
        let hello = wrong_password(&["authentication_failure_close"]);
        assert!(Client::greet_from(addr, from(last), hello).await.is_err());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_connections_do_not_make_guessing_faster() {
    let limits = Limits {
        refused_logins_per_address_max: 2,
        refused_login_delay: Duration::from_secs(3),
        ..Limits::default()
    };
    let broker = broker_with(limits).await;
    let addr = broker.amqp_addr();
    let guessers = [(); 3].map(|()| tokio::spawn(guess(addr, 2)));
    let log_in = async |last| Client::greet_from(addr, from(last), Hello::default()).await;
    let deadline = Instant::now() + PATIENCE;
    // Even the right password is not looked at.
    let text = loop {
        match log_in(2).await {
            Ok(_) => assert!(Instant::now() < deadline, "nobody is held up"),
            refused => break refused_text(refused),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert!(text.contains("`refused_logins_per_address_max`"), "{text}");
    log_in(3).await.expect("another address is let in");
    for guesser in guessers {
        guesser.abort();
    }
    while log_in(2).await.is_err() {
        assert!(Instant::now() < deadline, "it is over");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channels_of_all_connections_have_a_limit() {
    let limits = Limits {
        channels_max: 2,
        ..Limits::default()
    };
    let broker = broker_with(limits).await;
    let mut greedy = Client::connect(broker.amqp_addr()).await;
    let mut other = Client::connect(broker.amqp_addr()).await;
    match greedy.call(2, ChannelOpen {}).await {
        Method::ConnectionClose(close) => {
            let text = close.reply_text.to_str_lossy();
            assert_eq!(close.reply_code, reply::NOT_ALLOWED, "{text}");
            assert!(text.contains("`channels_max`"), "{text}");
        }
        other => panic!("expected the end of the connection, got {other:?}"),
    }
    assert!(matches!(
        other.call(1, BasicQos::default()).await,
        Method::BasicQosOk(_)
    ));
    drop(greedy);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let client = Client::greet(broker.amqp_addr(), Hello::default()).await;
        let mut client = client.expect("let in");
        if client.is_alive(1).await {
            return;
        }
        assert!(Instant::now() < deadline, "there is room again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn queues_exchanges_and_bindings_have_limits() {
    let limits = Limits {
        queues_max: 1,
        exchanges_max: 1,
        bindings_max: 1,
        ..Limits::default()
    };
    let broker = broker_with(limits).await;
    let mut client = Client::connect(broker.amqp_addr()).await;
    let exchange = |name| ExchangeDeclare {
        exchange: short(name),
        kind: short("direct"),
        ..Default::default()
    };
    let bind = |key| QueueBind {
        queue: short("q"),
        exchange: short("x"),
        routing_key: short(key),
        ..Default::default()
    };
    client.declare(queue("q")).await;
    client.call(1, exchange("x")).await;
    client.call(1, bind("1")).await;
    let mut channel = 2;
    let mut refused = async |method: Method, limit: &str| {
        client.open(channel).await;
        match client.call(channel, method).await {
            Method::ChannelClose(close) => {
                let text = close.reply_text.to_str_lossy();
                assert_eq!(close.reply_code, reply::PRECONDITION_FAILED, "{text}");
                assert!(text.contains(limit), "{text}");
            }
            other => panic!("expected a refusal, got {other:?}"),
        }
        channel += 1;
    };
    refused(queue("r").into(), "`queues_max`").await;
    refused(exchange("y").into(), "`exchanges_max`").await;
    refused(bind("2").into(), "`bindings_max`").await;
}

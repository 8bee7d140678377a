//! What becomes of messages that are sent: limits, batches of which a part fails, duplicates.

use tidings_core::REDRIVE_HEADER;
use tidings_testing::servers::AwsEmulator;

use super::*;

pub(crate) async fn an_entry_that_fails_holds_back_its_key_and_nothing_else(server: AwsEmulator) {
    let aws = connect(&server.url()).await;
    let place = Place::new();
    place.declare(&aws).await;
    let batch = || {
        ["k first", "k second", "l third", "k fourth"].map(|body| {
            let (key, _) = body.split_once(' ').expect("a key");
            place.message(body, Some(key), body)
        })
    };
    let fail = |code: &str| {
        let failing = server.fail_entries("PublishBatch", code, 1, "k first");
        failing.expect("the emulator is told");
    };
    fail("InternalError");
    let refused = Some(PublishErrorKind::Refused);
    let held = Some(PublishErrorKind::Unavailable);
    let outcomes = aws.publish(batch().into()).await;
    assert_eq!(kinds(&outcomes), [refused, held, None, held]);
    // Nobody overtook it.
    let outcomes = aws.publish(batch().into()).await;
    assert_eq!(kinds(&outcomes), [None; 4]);
    let mut deliveries = place.subscribe(&aws, 10).await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        let delivery = next(&mut deliveries).await;
        seen.push(body(&delivery));
        settle(delivery, Settlement::Ack).await;
    }
    seen.retain(|body| body.starts_with('k'));
    assert_eq!(seen, ["k first", "k second", "k fourth"]);
    none_for(&mut deliveries, QUIET).await;

    // What is wrong for good holds up nobody.
    fail("InvalidParameter");
    let again = batch().map(|mut message| {
        message.envelope.id = message.envelope.id.map(|id| format!("{id} again").into());
        message
    });
    let outcomes = aws.publish(again.into()).await;
    let invalid = Some(PublishErrorKind::Invalid);
    assert_eq!(kinds(&outcomes), [invalid, None, None, None]);
}

pub(crate) async fn what_amazon_refuses_can_be_sent_later(server: AwsEmulator) {
    let aws = connect(&server.url()).await;
    let place = Place::new();
    place.declare(&aws).await;
    for (code, part) in [
        ("Throttling", "Throttling"),
        ("AuthorizationError", "TDG-4031"),
    ] {
        // The SDK tries twice.
        server.fail_calls("PublishBatch", code, 2).expect("told");
        let outcomes = aws.publish(vec![place.message(code, None, code)]).await;
        assert_eq!(
            kinds(&outcomes),
            [Some(PublishErrorKind::Refused)],
            "{code}"
        );
        let error = outcomes[0].as_ref().expect_err(code).to_string();
        assert!(error.contains(part), "{error}");
        // One that need not be tried twice has left a fault behind.
        let _ = aws.publish(vec![place.message("other", None, "x")]).await;
        let outcomes = aws.publish(vec![place.message(code, None, code)]).await;
        assert_eq!(kinds(&outcomes), [None], "{code}");
    }
}

pub(crate) async fn an_eleventh_attribute_is_not_lost(url: String) {
    let aws = connect(&url).await;
    let place = Place::new();
    place.declare(&aws).await;
    let mut message = place.message("id", Some("key"), "{}");
    let envelope = &mut message.envelope;
    envelope.source = "tests".into();
    envelope.time = Some("2026-01-02T03:04:05Z".parse().expect("a time"));
    envelope.correlation_id = Some("correlation".into());
    envelope.causation_id = Some("causation".into());
    envelope.traceparent = Some("00-ab-cd-01".into());
    envelope.headers = (0..20)
        .map(|it| (format!("header-{it}").into(), "value".into()))
        .collect();
    envelope.body = vec![0xff; 10].into();
    let sent = envelope.clone();
    let outcomes = aws.publish(vec![message]).await;
    assert_eq!(kinds(&outcomes), [None]);
    let mut deliveries = place.subscribe(&aws, 1).await;
    let delivery = next(&mut deliveries).await;
    assert_eq!(*delivery.envelope, sent);
    settle(delivery, Settlement::Ack).await;
}

pub(crate) async fn a_message_beyond_the_limit_is_refused_before_it_is_sent(url: String) {
    let aws = connect(&url).await;
    let place = Place::new();
    place.declare(&aws).await;
    let mut by_headers = place.message("1", Some("key"), "small");
    by_headers.envelope.headers = vec![("large".into(), "x".repeat(260 * 1024).into())];
    let mut by_body = place.message("2", Some("key"), "");
    by_body.envelope.body = vec![b'x'; 200 * 1024].into();
    let fits = place.message("3", Some("key"), "x".repeat(180 * 1024));
    let outcomes = aws.publish(vec![by_headers, by_body, fits]).await;
    let invalid = Some(PublishErrorKind::Invalid);
    assert_eq!(kinds(&outcomes), [invalid, invalid, None]);
    for (outcome, limit) in outcomes.iter().zip(["262144", "184320"]) {
        let error = outcome.as_ref().expect_err("too large").to_string();
        assert!(
            error.contains(limit) && error.contains("claim check"),
            "{error}"
        );
    }
}

/// Ten large messages with keys of their own are more than one call takes.
pub(crate) async fn a_batch_beyond_the_limit_of_a_call_goes_in_several(url: String) {
    let aws = connect(&url).await;
    let place = Place::new();
    place.declare(&aws).await;
    let large = "x".repeat(100 * 1024);
    let batch = (0..10).map(|it| place.message(&it.to_string(), Some(&it.to_string()), &large));
    let outcomes = aws.publish(batch.collect()).await;
    assert_eq!(kinds(&outcomes), [None; 10]);
}

pub(crate) async fn a_message_that_is_published_twice_comes_once_while_amazon_remembers(
    mut server: AwsEmulator,
) {
    let aws = connect(&server.url()).await;
    let place = Place::new();
    place.declare(&aws).await;
    let publish = async |redrive: Option<&str>| {
        let mut message = place.message("id", Some("key"), "body");
        let headers = redrive.map(|number| (REDRIVE_HEADER.into(), number.into()));
        message.envelope.headers = headers.into_iter().collect();
        while let Err(error) = &aws.publish(vec![message.clone()]).await[0] {
            assert_eq!(error.kind(), PublishErrorKind::Unavailable);
            tokio::time::sleep(QUIET).await;
        }
    };
    let mut deliveries = place.subscribe(&aws, 10).await;
    publish(None).await;
    take(&mut deliveries, &[("body", false)]).await;
    publish(None).await;
    none_for(&mut deliveries, Duration::from_secs(2)).await;
    // Sent again on purpose, each time.
    for number in ["1", "2"] {
        publish(Some(number)).await;
        take(&mut deliveries, &[("body", false)]).await;
        publish(Some(number)).await;
        none_for(&mut deliveries, QUIET).await;
    }
    // The emulator forgets it when it is killed, as Amazon does after five minutes.
    server = tokio::task::spawn_blocking(move || {
        server.kill9();
        server.restart().expect("it starts again");
        server
    })
    .await
    .expect("no panic");
    publish(None).await;
    take(&mut deliveries, &[("body", false)]).await;
    drop(server);
}

pub(crate) async fn names_that_look_alike_are_different_places(url: String) {
    let aws = connect(&url).await;
    let place = Place::new();
    let long = "n".repeat(120);
    let names = [
        "a.b",
        "a--b",
        "a-b",
        "a_b",
        "a b",
        &format!("{long}1"),
        &format!("{long}2"),
    ];
    let names = names.map(|name| format!("{}{name}", &place.topic[6..20]));
    for name in &names {
        let topology = Topology::new().queue(Queue::new(name.clone()));
        aws.declare(&topology).await.expect("it declares");
    }
    let to = |name: &String| Outgoing {
        destination: Destination::Queue(name.clone().into()),
        ..place.message(name, None, name)
    };
    let outcomes = aws.publish(names.iter().map(to).collect()).await;
    assert_eq!(kinds(&outcomes), [None; 7]);
    for name in &names {
        let subscription = Subscription::new(name.clone());
        let mut deliveries = aws.subscribe(subscription).await.expect("it is there");
        take(&mut deliveries, &[(name, false)]).await;
        none_for(&mut deliveries, QUIET).await;
    }
}

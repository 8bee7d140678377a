//! Confirms that are late or lost, and a broker that takes nothing for a while: who waits is told,
//! and nothing of it is felt afterwards.

mod peer;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use peer::{DEADLINE, Peer};
use tidings_amqp::Amqp;
use tidings_core::{Destination, Envelope, Outgoing, PublishErrorKind, Transport, Unrouted};
use tidings_wire::{ConnectionBlocked, ConnectionUnblocked, ShortStr};
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
    task::JoinHandle,
    time::timeout,
};

/// How many messages the transport has unconfirmed at most.
const WINDOW: usize = 8192;

fn message(body: impl Into<Vec<u8>>) -> Outgoing {
    Outgoing {
        destination: Destination::queue("queue"),
        unrouted: Unrouted::Hold,
        envelope: Envelope::new("noted.v1", body.into()),
    }
}

/// A transport, and the broker that it connects to.
async fn connect(confirm_timeout: Duration) -> (Amqp, Peer) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let place = listener.local_addr().expect("bound");
    let url = format!("amqp://user:word@{place}?heartbeat=0");
    let builder = Amqp::builder(&url).expect("a URL");
    let amqp = builder.confirm_timeout(confirm_timeout).start();
    let mut peer = Peer::accept(&listener).await;
    peer.shake_hands(0).await;
    (amqp, peer)
}

type Kinds = Vec<Result<(), PublishErrorKind>>;

async fn publish(amqp: &Amqp, batch: Vec<Outgoing>) -> Kinds {
    let outcomes = timeout(DEADLINE, amqp.publish(batch)).await;
    let outcomes = outcomes.expect("outcomes in time").into_iter();
    outcomes
        .map(|it| it.map_err(|error| error.kind()))
        .collect()
}

/// Until it is confirmed, as the relay does.
async fn publish_at_last(amqp: &Amqp, what: &str) {
    let end = Instant::now() + DEADLINE;
    loop {
        match publish(amqp, vec![message("at last")]).await[..] {
            [Ok(())] => return,
            [Err(PublishErrorKind::Unavailable | PublishErrorKind::Unconfirmed)] => {}
            ref other => panic!("{what}: {other:?}"),
        }
        assert!(Instant::now() < end, "{what}: never confirmed");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[track_caller]
fn all_are(
    outcomes: &[Result<(), PublishErrorKind>],
    expected: Result<(), PublishErrorKind>,
    count: usize,
) {
    assert_eq!(outcomes.len(), count);
    let other = outcomes.iter().position(|outcome| *outcome != expected);
    assert_eq!(other, None, "the first outcome that is not {expected:?}");
}

/// The channel may be given up before the outcome is told, or later.
#[track_caller]
fn none_is_confirmed(outcomes: &[Result<(), PublishErrorKind>], count: usize) {
    assert_eq!(outcomes.len(), count);
    let other = outcomes.iter().find(|it| **it != LATE && **it != LOST);
    assert_eq!(other, None);
}

const LATE: Result<(), PublishErrorKind> = Err(PublishErrorKind::Unconfirmed);
const LOST: Result<(), PublishErrorKind> = Err(PublishErrorKind::Unavailable);

#[tokio::test]
async fn a_lost_confirm_takes_no_other_with_it_and_is_never_made_up_for() {
    let (amqp, mut peer) = connect(Duration::from_secs(2)).await;
    let (selects, mut selected) = watch::channel(0);
    tokio::spawn(async move {
        let mut lost = None;
        while let Some(publish) = peer.published().await {
            selects.send_replace(peer.confirm_channels);
            match publish.tag {
                // The second on the first channel gets none...
                2 if peer.confirm_channels == 1 => lost = Some(publish),
                _ => {
                    // ... until it is too late.
                    if let Some(lost) = lost.take_if(|_| peer.confirm_channels > 1) {
                        peer.confirm(lost, false).await;
                    }
                    peer.confirm(publish, false).await;
                }
            }
        }
    });
    publish_at_last(&amqp, "the first message").await;
    let outcomes = publish(&amqp, vec![message("2"), message("3"), message("4")]).await;
    assert_eq!(outcomes, [LATE, Ok(()), Ok(())]);
    let end = Instant::now() + DEADLINE;
    while *selected.borrow_and_update() < 2 {
        publish_at_last(&amqp, "until there is a new channel").await;
        assert!(Instant::now() < end, "the channel is given up");
    }
    let outcomes = publish(&amqp, vec![message("n"); 100]).await;
    all_are(&outcomes, Ok(()), 100);
    assert_eq!(*selected.borrow_and_update(), 2, "and stays");
}

/// A queue of a cluster that has no leader is such a place: nothing that goes there is confirmed, and what goes elsewhere is.
#[tokio::test]
async fn a_channel_that_is_changed_for_one_lost_confirm_still_confirms_the_others() {
    let (amqp, mut peer) = connect(Duration::from_secs(6)).await;
    let (changes, mut changed) = watch::channel(false);
    tokio::spawn(async move {
        let mut waiting = None;
        while let Some(publish) = peer.published().await {
            match (publish.tag, peer.confirm_channels) {
                (2, 1) => {} // It never is.
                // The last one on the first channel waits until there is a second one.
                (_, 1) if peer.body_bytes().await == MARK => waiting = Some(publish),
                (_, channels) => {
                    if let Some(waiting) = waiting.take_if(|_| channels > 1) {
                        peer.confirm(waiting, false).await;
                        changes.send_replace(true);
                    }
                    peer.confirm(publish, false).await;
                }
            }
        }
    });
    publish_at_last(&amqp, "the first message").await;
    let amqp = Arc::new(amqp);
    let publishing = Arc::clone(&amqp);
    let never = tokio::spawn(async move { publish(&publishing, vec![message("never")]).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    publish_at_last(&amqp, "what goes elsewhere").await;
    // So that it neither comes after the time of the other one is over, nor is over itself before that is noticed.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let publishing = Arc::clone(&amqp);
    let waits =
        tokio::spawn(async move { publish(&publishing, vec![message(vec![b' '; MARK])]).await });
    assert_eq!(never.await.expect("no panic"), [LATE]);
    let end = Instant::now() + DEADLINE;
    while !*changed.borrow_and_update() {
        assert!(Instant::now() < end, "the last one is confirmed");
        assert_eq!(publish(&amqp, vec![message("meanwhile")]).await, [Ok(())]);
    }
    assert_eq!(waits.await.expect("no panic"), [Ok(())]);
}

#[tokio::test]
async fn confirms_that_come_late_are_no_reason_to_begin_anew() {
    let time = Duration::from_secs(2);
    let (amqp, mut peer) = connect(time).await;
    let broker = tokio::spawn(async move {
        let first = peer.published().await.expect("the first message");
        peer.confirm(first, false).await;
        let mut late = Vec::new();
        while let Some(publish) = peer.published().await {
            match publish.tag {
                ..5 => late.push(publish),
                // As after an alarm: not in the order in which they came.
                5 => {
                    peer.confirm(late.pop().expect("three came"), false).await;
                    peer.confirm(publish, false).await;
                }
                _ => {
                    for late in late.drain(..) {
                        peer.confirm(late, false).await;
                    }
                    peer.confirm(publish, false).await;
                }
            }
        }
        peer.confirm_channels
    });
    publish_at_last(&amqp, "the first message").await;
    let started = Instant::now();
    let outcomes = publish(&amqp, vec![message("late"); 3]).await;
    assert_eq!(outcomes, [LATE; 3]);
    assert!(started.elapsed() >= time);
    for _ in 0..3 {
        assert_eq!(publish(&amqp, vec![message("after it")]).await, [Ok(())]);
    }
    amqp.close().await;
    assert_eq!(
        broker.await.expect("no panic"),
        1,
        "one channel all the time"
    );
}

#[tokio::test]
async fn one_confirm_that_does_not_come_holds_up_nobody() {
    let (amqp, mut peer) = connect(DEADLINE).await;
    tokio::spawn(async move {
        while let Some(publish) = peer.published().await {
            if publish.tag != 2 {
                peer.confirm(publish, false).await;
                // One that was never sent, and one again.
                let never = peer::Publish {
                    tag: publish.tag + 1_000_000,
                    ..publish
                };
                peer.confirm(never, false).await;
                peer.confirm(publish, false).await;
            }
        }
    });
    publish_at_last(&amqp, "the first message").await;
    let mut waiting = amqp.publish(vec![message("never")]);
    let sent = timeout(Duration::from_millis(20), &mut waiting).await;
    assert!(sent.is_err(), "sent, and not confirmed");
    // More than a window of others.
    for _ in 0..3 {
        let outcomes = publish(&amqp, vec![message("n"); WINDOW]).await;
        all_are(&outcomes, Ok(()), WINDOW);
    }
    let waits = timeout(Duration::from_millis(20), waiting).await;
    assert!(waits.is_err(), "not confirmed by another's confirm");
}

/// Of the first channel it confirms only the first message. Returns how many channels were opened.
fn confirm_on_the_second_channel(mut peer: Peer) -> JoinHandle<u32> {
    tokio::spawn(async move {
        while let Some(publish) = peer.published().await {
            if peer.confirm_channels > 1 || publish.tag == 1 {
                peer.confirm(publish, false).await;
            }
        }
        peer.confirm_channels
    })
}

#[tokio::test]
async fn a_broker_that_confirms_nothing_of_a_few_is_given_another_channel() {
    let (amqp, peer) = connect(Duration::from_millis(100)).await;
    let broker = confirm_on_the_second_channel(peer);
    publish_at_last(&amqp, "the first message").await;
    for _ in 0..2 {
        let outcomes = publish(&amqp, vec![message("never")]).await;
        none_is_confirmed(&outcomes, 1);
    }
    publish_at_last(&amqp, "on a new channel").await;
    amqp.close().await;
    assert_eq!(broker.await.expect("no panic"), 2);
}

#[tokio::test]
async fn a_broker_that_confirms_nothing_is_given_another_channel() {
    let (amqp, peer) = connect(Duration::from_millis(100)).await;
    let broker = confirm_on_the_second_channel(peer);
    publish_at_last(&amqp, "the first message").await;
    // So many that there is no room for as many as are sent at a time.
    let outcomes = publish(&amqp, vec![message("never"); WINDOW - 200]).await;
    none_is_confirmed(&outcomes, WINDOW - 200);
    // Of these none is sent.
    let outcomes = publish(&amqp, vec![message("no room"); 300]).await;
    all_are(&outcomes, LOST, 300);
    publish_at_last(&amqp, "on a new channel").await;
    amqp.close().await;
    assert_eq!(broker.await.expect("no panic"), 2);
}

#[tokio::test]
async fn who_gives_up_while_the_broker_reads_nothing_takes_nothing_of_the_window() {
    let (amqp, mut peer) = connect(DEADLINE).await;
    let amqp = Arc::new(amqp);
    let go_on = Arc::new(Notify::new());
    let goes_on = Arc::clone(&go_on);
    tokio::spawn(async move {
        let first = peer.published().await.expect("the first message");
        peer.confirm(first, false).await;
        // Nothing is read meanwhile.
        goes_on.notified().await;
        // All that was sent is confirmed, and then, at the test's word, only a whole window.
        let mut marked = false;
        let mut count = 0;
        while let Some(publish) = peer.published().await {
            if !marked {
                peer.confirm(publish, false).await;
                marked = peer.body_bytes().await == MARK;
                continue;
            }
            count += 1;
            if count == WINDOW {
                let beyond = timeout(Duration::from_millis(100), peer.published()).await;
                assert!(beyond.is_err(), "more than a window: {beyond:?}");
                peer.confirm(publish, true).await;
                marked = false;
            }
        }
    });
    publish_at_last(&amqp, "the first message").await;
    // Each sends as much as there is room for, waits for more, and gives up.
    let large = message(vec![b' '; 64 * 1024]);
    for _ in 0..2 * WINDOW / 256 {
        let giving_up = timeout(
            Duration::from_millis(5),
            amqp.publish(vec![large.clone(); 600]),
        );
        assert!(giving_up.await.is_err(), "nothing is confirmed");
    }
    go_on.notify_one();
    assert_eq!(
        publish(&amqp, vec![message(vec![b' '; MARK])]).await,
        [Ok(())]
    );
    let outcomes = publish(&amqp, vec![message("n"); WINDOW + 500]).await;
    all_are(&outcomes, Ok(()), WINDOW + 500);
}

#[tokio::test]
async fn nothing_is_sent_while_the_broker_says_that_it_is_blocked() {
    let (amqp, mut peer) = connect(DEADLINE).await;
    let go_on = Arc::new(Notify::new());
    let goes_on = Arc::clone(&go_on);
    let broker = tokio::spawn(async move {
        let first = peer.published().await.expect("the first message");
        let blocked = ConnectionBlocked {
            reason: ShortStr::from_static("low on memory"),
        };
        peer.send(0, blocked).await;
        peer.confirm(first, false).await;
        goes_on.notified().await;
        peer.send(0, ConnectionUnblocked {}).await;
        let next = peer.published().await.expect("the next message");
        peer.confirm(next, false).await;
        next.tag
    });
    publish_at_last(&amqp, "the first message").await;
    let refused = Err(PublishErrorKind::Refused);
    assert_eq!(publish(&amqp, vec![message("now"); 3]).await, [refused; 3]);
    go_on.notify_one();
    let end = Instant::now() + DEADLINE;
    while publish(&amqp, vec![message("then")]).await != [Ok(())] {
        assert!(Instant::now() < end, "it takes messages again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(broker.await.expect("no panic"), 2, "nothing else was sent");
}

/// The size of a body that says: now hold the confirms back until a window is full.
const MARK: usize = 3;

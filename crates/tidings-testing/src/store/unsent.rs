//! Rows of the outbox that are not ready: held or set aside.

use std::{sync::Arc, time::Duration};

use tidings_core::{
    Commit, Destination, Lane, OutboxRow, OutboxState, OutboxStats, Outgoing, Store,
};
use tokio::time::sleep;

use super::{Damage, Subject, support::*};

fn to(destination: &Destination, body: &str, key: &str) -> Outgoing {
    Outgoing {
        destination: destination.clone(),
        ..message(body, key)
    }
}

async fn send(store: &Arc<dyn Store>, messages: impl Into<Vec<Outgoing>>) {
    let commit = Commit {
        outbox: messages.into(),
        ..Commit::default()
    };
    done(store, commit).await;
}

/// The relay `a` leases all lanes.
async fn lease_all(store: &Arc<dyn Store>) {
    let leased = store.outbox().lease("a", LONG).await;
    assert_eq!(leased.expect("lanes").lanes, lanes());
}

async fn hold(store: &Arc<dyn Store>, relay: &str, rows: &[i64], reason: &str) {
    let held = store.outbox().hold(relay, rows, reason).await;
    held.expect("rows can be held");
}

async fn set_aside(store: &Arc<dyn Store>, relay: &str, rows: &[i64], reason: &str) {
    let set_aside = store.outbox().set_aside(relay, rows, reason).await;
    set_aside.expect("rows can be set aside");
}

async fn held(store: &Arc<dyn Store>, destination: &Destination, limit: usize) -> Vec<OutboxRow> {
    let rows = store.outbox().next_held(&lanes(), destination, limit).await;
    let rows = rows.expect("the outbox can be read");
    assert!(rows.iter().all(|row| !row.is_behind), "they are in order");
    rows
}

async fn listed(store: &Arc<dyn Store>, state: OutboxState) -> Vec<(String, String)> {
    let rows = store.outbox().list(state, None, 100).await;
    let rows = rows.expect("the outbox can be listed");
    let told = rows.into_iter().map(|row| {
        let body = row.message.map(|message| message.envelope.body.to_vec());
        let body = String::from_utf8(body.unwrap_or_default()).expect("text");
        (body, row.reason)
    });
    told.collect()
}

async fn stats(store: &Arc<dyn Store>) -> OutboxStats {
    let stats = store.outbox().stats().await;
    stats.expect("the outbox can be counted")
}

pub(super) async fn held_rows_are_left_out_and_come_in_order_when_asked_for(
    subject: Arc<impl Subject>,
) {
    let store = subject.store();
    let (notes, mails) = (Destination::topic("notes"), Destination::queue("notes"));
    let keys: Vec<String> = (0..6).map(|number| format!("key {number}")).collect();
    for (number, key) in keys.iter().enumerate() {
        send(&store, [to(&notes, &number.to_string(), key)]).await;
    }
    send(&store, [to(&mails, "mail", "key 0")]).await;
    let rows = positions(&ready(&store).await);
    lease_all(&store).await;
    hold(&store, "a", &[], "nothing").await;
    hold(
        &store,
        "a",
        &[rows[3], rows[1], rows[6], i64::MAX],
        "nobody listens",
    )
    .await;
    assert_eq!(bodies(&ready(&store).await), ["0", "2", "4", "5"]);
    assert_eq!(bodies(&held(&store, &notes, 10).await), ["1", "3"]);
    assert_eq!(bodies(&held(&store, &notes, 1).await), ["1"]);
    assert_eq!(bodies(&held(&store, &mails, 10).await), ["mail"]);
    assert!(
        held(&store, &Destination::topic("else"), 10)
            .await
            .is_empty()
    );

    let reasons = listed(&store, OutboxState::Held).await;
    assert!(reasons.iter().all(|(_, reason)| reason == "nobody listens"));
    hold(&store, "a", &[rows[1]], "a queue refuses").await;
    let reasons = listed(&store, OutboxState::Held).await;
    assert_eq!(reasons[0], ("1".into(), "a queue refuses".into()));
    assert_eq!(bodies(&held(&store, &notes, 10).await), ["1", "3"]);

    let confirmed = store.outbox().confirmed(&[rows[1]]).await;
    confirmed.expect("it is removed");
    assert_eq!(bodies(&held(&store, &notes, 10).await), ["3"]);
    set_aside(&store, "a", &[rows[3]], "too old").await;
    assert!(held(&store, &notes, 10).await.is_empty());
    assert_eq!(bodies(&ready(&store).await), ["0", "2", "4", "5"]);
}

pub(super) async fn a_row_is_behind_if_one_with_its_key_is_held_for_its_destination(
    subject: Arc<impl Subject>,
) {
    let store = subject.store();
    let (one, other) = (Destination::topic("one"), Destination::topic("other"));
    send(
        &store,
        [to(&one, "held", "key"), to(&other, "held too", "k")],
    )
    .await;
    let rows = positions(&ready(&store).await);
    lease_all(&store).await;
    hold(&store, "a", &rows, "nobody listens").await;
    let mut without_key = to(&one, "without key", "");
    without_key.envelope.key = None;
    let later = [
        to(&one, "behind", "key"),
        to(&one, "another key", "another key"),
        to(&other, "elsewhere", "key"),
        without_key,
    ];
    send(&store, later).await;
    let behind = async |held: &[Destination]| {
        let rows = store.outbox().next(&lanes(), held, &[], 10).await;
        let rows = rows.expect("the outbox can be read");
        assert_eq!(rows.len(), 4);
        let behind = rows.iter().filter(|row| row.is_behind);
        behind.map(body).collect::<Vec<_>>()
    };
    assert_eq!(behind(std::slice::from_ref(&one)).await, ["behind"]);
    let both = [one.clone(), other.clone()];
    assert_eq!(behind(&both).await, ["behind"]);
    assert!(behind(&[other]).await.is_empty());
    let confirmed = store.outbox().confirmed(&rows).await;
    confirmed.expect("they are removed");
    assert!(behind(&[one]).await.is_empty(), "nothing is held any more");
}

pub(super) async fn held_destinations_are_those_of_the_lanes(subject: Arc<impl Subject>) {
    let store = subject.store();
    let (one, other) = (Destination::topic("one"), Destination::queue("one"));
    let rest = Destination::topic("rest");
    let elsewhere = (0..100)
        .map(|number| format!("key {number}"))
        .find(|key| Lane::of(key) != Lane::of("key"))
        .expect("keys of another lane");
    let messages = [
        to(&one, "1", "key"),
        to(&one, "2", "key"),
        to(&other, "3", &elsewhere),
        to(&rest, "4", "key"),
    ];
    send(&store, messages).await;
    let rows = positions(&ready(&store).await);
    let held = async |lanes: &[Lane]| {
        let held = store.outbox().held(lanes).await;
        let mut held = held.expect("the outbox can be read");
        held.sort_by_key(Destination::to_text);
        held
    };
    assert!(held(&lanes()).await.is_empty(), "nothing is held");
    lease_all(&store).await;
    hold(&store, "a", &rows[..3], "nobody listens").await;
    assert_eq!(held(&lanes()).await, [other.clone(), one.clone()]);
    assert_eq!(held(&[Lane::of("key")]).await, [one]);
    assert_eq!(held(&[Lane::of(&elsewhere)]).await, [other]);
    assert!(held(&[]).await.is_empty());
    let lane = [Lane::of(&elsewhere)];
    let outbox = store.outbox();
    let none = outbox
        .next_held(&lane, &Destination::topic("one"), 10)
        .await;
    assert!(none.expect("an answer").is_empty());
}

pub(super) async fn who_does_not_have_the_lane_holds_nothing_and_sets_nothing_aside(
    subject: Arc<impl Subject>,
) {
    let store = subject.store();
    done(&store, outbox(&["1", "2"])).await;
    let rows = positions(&ready(&store).await);
    let nothing_changes = async |relay| {
        hold(&store, relay, &rows, "held").await;
        set_aside(&store, relay, &rows, "set aside").await;
        assert_eq!(bodies(&ready(&store).await), ["1", "2"], "{relay}");
    };
    nothing_changes("nobody").await;
    lease_all(&store).await;
    nothing_changes("b").await;
    // `b` is registered, and has no lane.
    let leased = store.outbox().lease("b", LONG).await;
    assert!(leased.expect("an answer").lanes.is_empty());
    nothing_changes("b").await;

    // Another lane than that of the rows does not help.
    let other = Lane((Lane::of("key").0 + 1) % Lane::COUNT);
    let released = store.outbox().release("a", Some(&[other])).await;
    released.expect("it is released");
    let leased = store.outbox().lease("b", LONG).await;
    assert_eq!(leased.expect("an answer").lanes, [other]);
    nothing_changes("b").await;

    let leased = store.outbox().lease("a", SHORT).await;
    leased.expect("it has its lanes for a while");
    sleep(SHORT + CLOCK).await;
    nothing_changes("a").await;
    let leased = store.outbox().lease("a", LONG).await;
    leased.expect("it has its lanes again");
    hold(&store, "a", &rows[..1], "held").await;
    set_aside(&store, "a", &rows[1..], "set aside").await;
    assert!(ready(&store).await.is_empty());
}

pub(super) async fn rows_set_aside_wait_for_an_operator(subject: Arc<impl Subject>) {
    let store = subject.store();
    done(&store, outbox(&["1", "2", "3", "4"])).await;
    let rows = positions(&ready(&store).await);
    lease_all(&store).await;
    hold(&store, "a", &rows[3..], "held").await;
    set_aside(&store, "a", &rows[..2], "too large").await;
    set_aside(&store, "a", &rows[2..3], "not allowed").await;
    assert!(ready(&store).await.is_empty());
    let set_aside = listed(&store, OutboxState::SetAside).await;
    let reasons = ["too large", "too large", "not allowed"];
    let expected = [("1", reasons[0]), ("2", reasons[1]), ("3", reasons[2])];
    assert!(
        set_aside
            .iter()
            .map(|(body, reason)| (body.as_str(), reason.as_str()))
            .eq(expected),
        "{set_aside:?}"
    );
    let restored = store.outbox().restore(&[rows[1], rows[3], i64::MAX]).await;
    assert_eq!(restored.expect("an answer"), 1, "only one was set aside");
    assert_eq!(bodies(&ready(&store).await), ["2"], "in its old place");
    let discarded = store.outbox().discard(&[rows[0], rows[1], rows[3]]).await;
    assert_eq!(discarded.expect("an answer"), 1, "only one was set aside");
    assert_eq!(listed(&store, OutboxState::SetAside).await.len(), 1);
    assert_eq!(bodies(&ready(&store).await), ["2"]);
    assert_eq!(listed(&store, OutboxState::Held).await.len(), 1);
    let confirmed = store.outbox().confirmed(&rows).await;
    confirmed.expect("all are removed, in whatever state");
    assert_eq!(stats(&store).await, OutboxStats::default());
}

pub(super) async fn rows_that_are_not_ready_are_listed_in_pages(subject: Arc<impl Subject>) {
    let store = subject.store();
    let full = full_message();
    let before = jiff::Timestamp::now();
    send(&store, [full.clone(), full.clone(), full.clone()]).await;
    let rows = positions(&ready(&store).await);
    lease_all(&store).await;
    set_aside(&store, "a", &rows, "a \"reason\" \u{1F600}").await;
    let outbox = store.outbox();
    assert!(listed(&store, OutboxState::Held).await.is_empty());
    let first = outbox.list(OutboxState::SetAside, None, 2).await;
    let first = first.expect("the outbox can be listed");
    assert_eq!(first.len(), 2);
    for (row, position) in first.iter().zip(&rows) {
        assert_eq!(row.position, *position);
        assert_eq!(row.reason, "a \"reason\" \u{1F600}");
        assert_eq!(row.destination, full.destination);
        assert_eq!(row.message.as_ref(), Some(&full));
        // The clock is the database's; it may be another machine's.
        let apart = row.written.duration_since(before).unsigned_abs();
        assert!(apart < Duration::from_secs(3600), "{:?}", row.written);
    }
    let rest = outbox.list(OutboxState::SetAside, Some(rows[1]), 2).await;
    let rest = rest.expect("the outbox can be listed");
    assert_eq!(rest.len(), 1);
    assert_eq!(rest[0].position, rows[2]);
    let none = outbox.list(OutboxState::SetAside, Some(rows[2]), 2).await;
    assert!(none.expect("an answer").is_empty());
}

pub(super) async fn a_message_that_cannot_be_read_stops_no_other(subject: Arc<impl Subject>) {
    let store = subject.store();
    done(&store, outbox(&["1", "2", "3"])).await;
    let rows = positions(&ready(&store).await);
    if !subject.damage(Damage::Outbox(rows[1])).await {
        eprintln!("  skipped: stored messages cannot be damaged here");
        return;
    }
    let check = |got: &[OutboxRow]| {
        assert_eq!(positions(got), rows);
        let error = got[1].message.as_ref().expect_err("it is damaged");
        assert!(!error.to_string().is_empty());
        assert_eq!((body(&got[0]), body(&got[2])), ("1".into(), "3".into()));
    };
    check(&ready(&store).await);
    lease_all(&store).await;
    hold(&store, "a", &rows, "held").await;
    check(&held(&store, &Destination::topic("notes"), 10).await);
    set_aside(&store, "a", &rows[1..2], "it cannot be read").await;
    let listed = store.outbox().list(OutboxState::SetAside, None, 10).await;
    let listed = listed.expect("the outbox can be listed");
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].message, None);
    assert_eq!(listed[0].destination, Destination::topic("notes"));
    let held = held(&store, &Destination::topic("notes"), 10).await;
    assert_eq!(bodies(&held), ["1", "3"]);
}

pub(super) async fn stats_say_how_full_the_outbox_is(subject: Arc<impl Subject>) {
    const AGE: Duration = Duration::from_millis(100);
    let store = subject.store();
    assert_eq!(stats(&store).await, OutboxStats::default());
    done(&store, outbox(&["1", "2", "3", "4", "5", "6"])).await;
    sleep(AGE + CLOCK).await;
    done(&store, outbox(&["7"])).await;
    let all = stats(&store).await;
    assert_eq!((all.ready, all.held, all.set_aside), (7, 0, 0));
    assert!(all.oldest_ready_age >= AGE && all.oldest_ready_age < LONG);
    assert_eq!(all.oldest_held_age, Duration::ZERO);
    let rows = ready(&store).await;
    assert!(
        rows[0].age >= AGE && rows[0].age < LONG,
        "{:?}",
        rows[0].age
    );
    let rows = positions(&rows);

    lease_all(&store).await;
    hold(&store, "a", &rows[..2], "held").await;
    set_aside(&store, "a", &rows[2..6], "set aside").await;
    let all = stats(&store).await;
    assert_eq!((all.ready, all.held, all.set_aside), (1, 2, 4));
    assert!(all.oldest_held_age >= AGE && all.oldest_held_age < LONG);
    assert!(
        all.oldest_ready_age <= all.oldest_held_age,
        "the ready one is younger: {all:?}"
    );
    let confirmed = store.outbox().confirmed(&rows).await;
    confirmed.expect("they are removed");
    assert_eq!(stats(&store).await, OutboxStats::default());
}

/// A million rows must not make counting slow.
pub(super) async fn counts_of_the_outbox_stop_at_a_limit(subject: Arc<impl Subject>) {
    const COMMITS: u64 = 50;
    let store = subject.store();
    let rows = OutboxStats::COUNT_MAX / COMMITS + 1;
    let messages: Vec<Outgoing> = (0..rows)
        .map(|number| message("", &number.to_string()))
        .collect();
    for _ in 0..COMMITS {
        send(&store, messages.clone()).await;
    }
    let all = stats(&store).await;
    assert_eq!(all.ready, OutboxStats::COUNT_MAX);
    assert_eq!((all.held, all.set_aside), (0, 0));
}

//! Messages that wait: due, leased, settled, and what operators do with them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use tidings_core::{
    Claim, Committed, Fate, InboxEntry, InboxQuery, InboxState, Lease, Refusal, Store, Waiting,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{Damage, Subject, support::*};

async fn next_due(store: &Arc<dyn Store>, consumers: &[&str]) -> Option<Duration> {
    let consumers: Vec<Box<str>> = consumers.iter().map(|name| (*name).into()).collect();
    let next = store.deferred().next_due(&consumers).await;
    next.expect("the inbox can be read")
}

fn deferred_for(due_in: Duration) -> Fate {
    Fate::Deferred(waiting(due_in))
}

pub(super) async fn a_deferred_message_is_due_after_its_time_as_it_was(subject: Arc<impl Subject>) {
    let store = subject.store();
    assert_eq!(next_due(&store, &[CONSUMER]).await, None, "nothing waits");
    let envelope = Arc::new(full_message().envelope);
    let waiting = Waiting {
        envelope: Arc::clone(&envelope),
        due_in: SHORT,
        failures: 70_000,
        history: vec![attempt("the first \"reason\" \u{1F600}"), attempt("")],
    };
    let since = Instant::now();
    let ordered = ordered("1", "key", Fate::Deferred(waiting.clone()));
    done(&store, inbox([ordered])).await;
    let next = next_due(&store, &[CONSUMER]).await.expect("one waits");
    assert!(next <= SHORT, "{next:?}");
    assert_eq!(next_due(&store, &["another"]).await, None);
    assert_eq!(next_due(&store, &[]).await, None);

    let due = take_soon(&store, LONG).await;
    not_before(since, SHORT);
    assert_eq!(due.claim, claim("1"));
    assert_eq!(due.order, Some(key("key")));
    assert_eq!(due.envelope.as_ref().ok(), Some(&envelope));
    assert_eq!(due.failures, 70_000);
    assert_eq!(due.history, waiting.history);
    assert_eq!(due.unfinished, 0);
    done(&store, inbox([entry("2", deferred())])).await;
    let next = next_due(&store, &["another", CONSUMER]).await;
    assert_eq!(next, Some(Duration::ZERO), "one is due");
    assert_eq!(take_one(&store, "2").await.order, None);
    let next = next_due(&store, &[CONSUMER]).await.expect("two are leased");
    assert!(next > LONG / 2, "a leased one is due when its lease ends");
}

pub(super) async fn those_that_are_due_longest_come_first_and_no_more_than_asked(
    subject: Arc<impl Subject>,
) {
    let store = subject.store();
    let times = [("c", 200), ("a", 0), ("d", 3_600_000), ("b", 100)];
    let entries = times.map(|(message, due_in)| {
        let fate = deferred_for(Duration::from_millis(due_in));
        entry(message, fate)
    });
    done(&store, inbox(entries)).await;
    let other = InboxEntry {
        claim: claim_of("another", "e"),
        ..entry("e", deferred())
    };
    done(&store, inbox([other])).await;
    sleep(Duration::from_millis(200) + CLOCK).await;
    assert!(take(&store, LONG, 0).await.is_empty());
    let none = store.deferred().take_due(&[], "worker", LONG, 10).await;
    assert!(none.expect("an answer").is_empty());
    assert_eq!(ids(&take(&store, LONG, 2).await), ["a", "b"]);
    assert_eq!(ids(&take(&store, LONG, 2).await), ["c"], "`d` is not due");
    let both = [CONSUMER.into(), "another".into()];
    let due = store.deferred().take_due(&both, "worker", LONG, 10).await;
    assert_eq!(ids(&due.expect("due messages")), ["e"]);
}

pub(super) async fn a_due_message_goes_to_one_worker(subject: Arc<impl Subject>) {
    const MESSAGES: usize = 120;
    let store = subject.store();
    let entries = (0..MESSAGES).map(|number| entry(&number.to_string(), deferred()));
    done(&store, inbox(entries.collect::<Vec<_>>())).await;
    let mut workers = JoinSet::new();
    for number in 0..8 {
        let store = Arc::clone(&store);
        workers.spawn(async move {
            let consumers = [CONSUMER.into()];
            let worker = format!("worker {}", number % 4);
            let mut taken = Vec::new();
            for _ in 0..MESSAGES {
                let due = store.deferred();
                let due = due.take_due(&consumers, &worker, LONG, 7).await;
                let due = due.expect("due messages can be taken");
                if due.is_empty() {
                    break;
                }
                taken.extend(due.into_iter().map(|due| (due.claim, due.lease)));
            }
            taken
        });
    }
    let mut taken: Vec<(Claim, Lease)> = workers.join_all().await.concat();
    // A store may pass over rows that another worker is just taking.
    let rest = take(&store, LONG, MESSAGES).await;
    taken.extend(rest.into_iter().map(|due| (due.claim, due.lease)));
    assert_eq!(taken.len(), MESSAGES);
    let claims: BTreeSet<&Claim> = taken.iter().map(|(claim, _)| claim).collect();
    assert_eq!(claims.len(), MESSAGES, "each went to one");
    let leases: BTreeSet<&str> = taken.iter().map(|(_, lease)| &*lease.0).collect();
    assert_eq!(leases.len(), MESSAGES, "each taking has a name of its own");
}

pub(super) async fn a_lease_that_ends_makes_it_due_again_and_counts_the_start(
    subject: Arc<impl Subject>,
) {
    let store = subject.store();
    done(&store, inbox([entry("1", deferred())])).await;
    let mut seen = BTreeSet::new();
    let mut leased_after: Option<Instant> = None;
    for unfinished in 0..3 {
        let (asked, due) = until(async || {
            let asked = Instant::now();
            Some((asked, take(&store, SHORT, 1).await.pop()?))
        })
        .await;
        assert_eq!(due.unfinished, unfinished, "starts that never ended");
        assert_eq!(due.failures, 1, "that is no failure");
        assert!(seen.insert(due.lease.0), "a lease is never used twice");
        if let Some(since) = leased_after {
            not_before(since, SHORT);
        }
        leased_after = Some(asked);
    }
    // An attempt that ended clears the count.
    let due = take_soon(&store, LONG).await;
    assert_eq!(due.unfinished, 3);
    done(&store, inbox([settled(&due, deferred())])).await;
    assert_eq!(take_one(&store, "1").await.unfinished, 0);
}

pub(super) async fn a_renewed_lease_lasts(subject: Arc<impl Subject>) {
    let store = subject.store();
    done(&store, inbox([entry("1", deferred())])).await;
    let first = take_one(&store, "1").await;
    let deferred = store.deferred();
    let shorten = deferred
        .renew(std::slice::from_ref(&first.lease), SHORT)
        .await;
    shorten.expect("it is renewed");
    let ends = Duration::from_secs(1);
    let second = take_soon(&store, ends).await;
    let renew = [second.lease.clone(), Lease("unknown".into())];
    deferred.renew(&renew, LONG).await.expect("it is renewed");
    // What the first worker does now is too late.
    let late = [first.lease];
    let late = deferred.renew(&late, Duration::ZERO).await;
    late.expect("it does nothing");
    deferred.renew(&[], LONG).await.expect("nothing to do");
    sleep(ends + CLOCK).await;
    assert!(take(&store, LONG, 1).await.is_empty(), "it is renewed");
    done(&store, inbox([settled(&second, Fate::Handled)])).await;
}

pub(super) async fn a_released_message_was_not_started(subject: Arc<impl Subject>) {
    let store = subject.store();
    done(&store, inbox([entry("1", deferred())])).await;
    let first = take_one(&store, "1").await;
    let release = async |due: &_, due_in| {
        let leases = leases(std::slice::from_ref(due));
        let released = store.deferred().release(&leases, due_in).await;
        released.expect("it is released");
    };
    release(&first, Duration::ZERO).await;
    let second = take_one(&store, "1").await;
    assert_eq!(second.unfinished, 0, "it was not started");
    assert_eq!((second.failures, second.history.len()), (1, 1));
    release(&first, Duration::ZERO).await;
    assert!(take(&store, LONG, 1).await.is_empty(), "that came too late");
    let stale = settled(&first, Fate::Handled);
    refused(&store, stale, Refusal::Known).await;

    let since = Instant::now();
    release(&second, SHORT).await;
    refused(&store, settled(&second, Fate::Handled), Refusal::Known).await;
    take_soon(&store, LONG).await;
    not_before(since, SHORT);
}

pub(super) async fn a_commit_over_a_lease_decides_what_becomes_of_it(subject: Arc<impl Subject>) {
    let store = subject.store();
    let envelope = Arc::new(full_message().envelope);
    let first = Fate::Deferred(Waiting {
        envelope: Arc::clone(&envelope),
        ..waiting(Duration::ZERO)
    });
    done(&store, inbox([entry("1", first)])).await;
    let due = take_one(&store, "1").await;

    let since = Instant::now();
    let again = Fate::Deferred(Waiting {
        failures: 2,
        history: vec![attempt("once"), attempt("twice")],
        ..waiting(SHORT)
    });
    let mut commit = outbox(&["by the attempt"]);
    commit.inbox = vec![settled(&due, again)];
    done(&store, commit).await;
    assert_eq!(bodies(&ready(&store).await), ["by the attempt"]);
    refused(&store, settled(&due, Fate::Handled), Refusal::Known).await;
    let due = take_soon(&store, LONG).await;
    not_before(since, SHORT);
    assert_eq!(due.envelope.as_ref().ok(), Some(&envelope), "it is kept");
    assert_eq!((due.failures, due.history.len()), (2, 2));

    done(&store, inbox([settled(&due, dead(false))])).await;
    let rows = unhandled(&store).await;
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].state, InboxState::Dead);
    assert_eq!(rows[0].failures, 3);
    assert_eq!(rows[0].history, [attempt("first"), attempt("last")]);
    assert_eq!(rows[0].envelope, None, "it does not wait any more");
    refused(&store, settled(&due, Fate::Handled), Refusal::Known).await;

    done(&store, inbox([entry("2", deferred())])).await;
    let due = take_one(&store, "2").await;
    done(&store, inbox([settled(&due, Fate::Handled)])).await;
    assert_eq!(state(&store, "2").await, Some(InboxState::Handled));
    refused(&store, settled(&due, deferred()), Refusal::Known).await;
    assert_eq!(unhandled(&store).await.len(), 1, "only the dead one");
    assert_eq!(next_due(&store, &[CONSUMER]).await, None);
}

pub(super) async fn a_lease_that_is_lost_settles_nothing(subject: Arc<impl Subject>) {
    let store = subject.store();
    done(&store, inbox([entry("1", deferred())])).await;
    let slow = take_one(&store, "1").await;
    let lease = [slow.lease.clone()];
    let renewed = store.deferred().renew(&lease, SHORT).await;
    renewed.expect("it is renewed");
    let other = take_soon(&store, LONG).await;
    for fate in [Fate::Handled, deferred(), dead(true)] {
        let mut transaction = begin(&store).await;
        write(&subject, &mut transaction, "late").await;
        let mut commit = outbox(&["late"]);
        commit.inbox = vec![settled(&slow, fate)];
        let committed = transaction.commit(commit).await.expect("an answer");
        assert!(committed.is_known(), "{committed:?}");
    }
    assert!(subject.notes().await.is_empty());
    assert!(ready(&store).await.is_empty());
    let unknown = InboxEntry {
        claim: claim("unknown"),
        ..settled(&slow, Fate::Handled)
    };
    refused(&store, unknown, Refusal::Known).await;
    done(&store, inbox([settled(&other, Fate::Handled)])).await;
}

pub(super) async fn a_leased_message_cannot_be_parked(subject: Arc<impl Subject>) {
    let store = subject.store();
    done(&store, inbox([ordered("1", "key", deferred())])).await;
    let due = take_one(&store, "1").await;
    let committed = store.commit(inbox([settled(&due, parked())])).await;
    let is_done = matches!(committed, Ok(Committed::Done));
    assert!(!is_done, "it is the first of its key");
    assert_eq!(state(&store, "1").await, Some(InboxState::Deferred));
    done(&store, inbox([settled(&due, Fate::Handled)])).await;
}

pub(super) async fn what_waits_is_counted_up_to_a_limit(subject: Arc<impl Subject>) {
    let store = subject.store();
    let rows = [
        ordered("1", "key", deferred()),
        ordered("2", "key", parked()),
        entry("3", deferred_for(LONG)),
        entry("4", dead(false)),
        entry("5", Fate::Handled),
    ];
    done(&store, inbox(rows)).await;
    let waiting = async |consumer, limit| {
        let count = store.deferred().waiting(consumer, limit).await;
        count.expect("the inbox can be counted")
    };
    assert_eq!(waiting(CONSUMER, 100).await, 3);
    assert_eq!(waiting(CONSUMER, 2).await, 2);
    assert_eq!(waiting("another", 100).await, 0);
    take(&store, LONG, 1).await;
    assert_eq!(waiting(CONSUMER, 100).await, 3, "a leased one waits too");
}

pub(super) async fn what_is_not_handled_is_listed_in_pages(subject: Arc<impl Subject>) {
    let store = subject.store();
    let other = InboxEntry {
        claim: claim_of("another", "4"),
        ..entry("4", dead(false))
    };
    let rows = [
        ordered("1", "key", deferred_for(LONG)),
        entry("handled", Fate::Handled),
        ordered("2", "key", parked()),
        ordered("3", "another key", dead(true)),
        other,
        entry("5", deferred()),
    ];
    for row in rows {
        done(&store, inbox([row])).await;
    }
    take_one(&store, "5").await;
    let all = unhandled(&store).await;
    let told: Vec<_> = all
        .iter()
        .map(|row| (row.claim.message.as_str(), row.state, row.is_leased))
        .collect();
    let expected = [
        ("1", InboxState::Deferred, false),
        ("2", InboxState::Parked, false),
        ("3", InboxState::Dead, false),
        ("4", InboxState::Dead, false),
        ("5", InboxState::Deferred, true),
    ];
    assert_eq!(told, expected, "oldest first");
    assert!(all.is_sorted_by_key(|row| row.number));
    assert_eq!(all[0].order, Some(key("key")));
    assert!(all[0].due.is_some() && all[4].due.is_some());
    assert_eq!(
        (all[0].failures, &all[0].history[..]),
        (1, &[attempt("once")][..])
    );
    for row in &all {
        let waits = row.state != InboxState::Dead;
        assert_eq!(row.envelope.is_some(), waits, "{row:?}");
    }
    let list = async |query: InboxQuery| {
        let rows = store.deferred().list(&query).await;
        let rows = rows.expect("the inbox can be listed");
        let ids = rows.iter().map(|row| row.claim.message.as_str().to_owned());
        ids.collect::<Vec<_>>()
    };
    let query = InboxQuery {
        limit: 2,
        ..InboxQuery::default()
    };
    assert_eq!(list(query.clone()).await, ["1", "2"]);
    let after = InboxQuery {
        after: Some(all[1].number),
        ..query.clone()
    };
    assert_eq!(list(after).await, ["3", "4"]);
    let of_consumer = InboxQuery {
        consumer: Some(CONSUMER.into()),
        state: Some(InboxState::Dead),
        ..query.clone()
    };
    assert_eq!(list(of_consumer).await, ["3"]);
    let in_state = InboxQuery {
        state: Some(InboxState::Dead),
        ..query
    };
    assert_eq!(list(in_state).await, ["3", "4"]);
}

pub(super) async fn what_is_deferred_can_be_rescheduled_unless_leased(subject: Arc<impl Subject>) {
    let store = subject.store();
    let rows = [
        ordered("later", "key", deferred_for(LONG)),
        ordered("parked", "key", parked()),
        entry("dead", dead(false)),
        entry("handled", Fate::Handled),
        entry("leased", deferred()),
    ];
    done(&store, inbox(rows)).await;
    let leased = take_one(&store, "leased").await;
    let ids_all = ["later", "parked", "dead", "handled", "leased", "unknown"];
    let claims = ids_all.map(claim);
    let reschedule = async |due_in| {
        let count = store.deferred().reschedule(&claims, due_in).await;
        count.expect("they are rescheduled")
    };
    assert_eq!(reschedule(Duration::ZERO).await, 1);
    let due = take_one(&store, "later").await;
    assert_eq!(due.failures, 1, "nothing but its time is changed");
    assert_eq!(reschedule(Duration::ZERO).await, 0, "both are leased");
    done(&store, inbox([settled(&leased, Fate::Handled)])).await;
    done(&store, inbox([settled(&due, deferred())])).await;
    assert_eq!(reschedule(LONG).await, 1);
    assert!(take(&store, LONG, 10).await.is_empty(), "it is due later");
    assert_eq!(state(&store, "parked").await, Some(InboxState::Parked));
}

pub(super) async fn what_waits_or_is_dead_can_be_discarded_unless_leased(
    subject: Arc<impl Subject>,
) {
    let store = subject.store();
    let rows = [
        entry("deferred", deferred_for(LONG)),
        entry("dead", dead(false)),
        entry("handled", Fate::Handled),
        entry("leased", deferred()),
    ];
    done(&store, inbox(rows)).await;
    let leased = take_one(&store, "leased").await;
    let claims = ["deferred", "dead", "handled", "leased", "unknown"].map(claim);
    let discard = async || {
        let count = store.deferred().discard(&claims).await;
        count.expect("they are discarded")
    };
    assert_eq!(discard().await, 2);
    assert_eq!(discard().await, 0, "they are gone already");
    for message in ["deferred", "dead"] {
        let state = state(&store, message).await;
        assert_eq!(state, Some(InboxState::Handled), "it counts as handled");
        refused(&store, entry(message, Fate::Handled), Refusal::Known).await;
    }
    let redrive = redriven(9, entry("dead", Fate::Handled));
    refused(&store, redrive, Refusal::Known).await;
    done(&store, inbox([settled(&leased, deferred())])).await;
    assert_eq!(discard().await, 1, "it is leased no more");
    assert!(unhandled(&store).await.is_empty());
    assert_eq!(state(&store, "unknown").await, None);
}

pub(super) async fn a_message_that_cannot_be_read_is_due_with_its_reason(
    subject: Arc<impl Subject>,
) {
    let store = subject.store();
    for message in ["1", "2", "3"] {
        done(&store, inbox([entry(message, deferred())])).await;
    }
    if !subject.damage(Damage::Inbox(&claim("2"))).await {
        eprintln!("  skipped: stored messages cannot be damaged here");
        return;
    }
    let mut due = take(&store, LONG, 10).await;
    due.sort_by(|one, other| one.claim.cmp(&other.claim));
    assert_eq!(ids(&due), ["1", "2", "3"]);
    let reason = due[1].envelope.as_ref().expect_err("it is damaged");
    assert!(!reason.is_empty());
    assert!(due[0].envelope.is_ok() && due[2].envelope.is_ok());
    assert_eq!(due[1].failures, 1, "what can be read is");
    assert_eq!(unhandled(&store).await.len(), 3, "it can be listed");
    done(&store, inbox([settled(&due[1], dead(false))])).await;
    assert_eq!(state(&store, "2").await, Some(InboxState::Dead));
}

pub(super) async fn consumers_that_have_rows_are_listed(subject: Arc<impl Subject>) {
    let store = subject.store();
    let consumers = async |limit| {
        let consumers = store.deferred().consumers(limit).await;
        consumers.expect("consumers can be listed")
    };
    assert!(consumers(10).await.is_empty());
    for (consumer, message, fate) in [
        ("b", "1", Fate::Handled),
        ("c", "1", dead(false)),
        ("a", "1", deferred_for(LONG)),
        ("b", "2", Fate::Handled),
    ] {
        let row = InboxEntry {
            claim: claim_of(consumer, message),
            ..entry(message, fate)
        };
        done(&store, inbox([row])).await;
    }
    let told: Vec<String> = consumers(10)
        .await
        .iter()
        .map(|it| it.to_string())
        .collect();
    assert_eq!(
        told,
        ["a", "b", "c"],
        "each once, whatever its rows' states"
    );
    assert_eq!(consumers(2).await.len(), 2, "no more than asked");
}

//! What is known of messages: looked up, forgotten, reopened.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tidings_core::{Ask, Committed, Fate, InboxEntry, InboxState, Refusal, Seen};
use tokio::time::{Instant, sleep};

use super::{Subject, support::*};

pub(super) async fn look_answers_each_question_and_changes_nothing(subject: Arc<impl Subject>) {
    let store = subject.store();
    assert!(store.look(&[]).await.expect("an answer").is_empty());
    let rows = [
        entry("handled", Fate::Handled),
        ordered("first", "key", deferred()),
        ordered("second", "key", parked()),
        redriven(3, ordered("dead", "blocked", dead(true))),
    ];
    done(&store, inbox(rows)).await;
    let behind = Seen {
        behind: true,
        ..Seen::default()
    };
    let with = |state| Seen {
        state: Some(state),
        ..Seen::default()
    };
    let cases = [
        ("new", Some("key"), behind),
        ("handled", None, with(InboxState::Handled)),
        ("new", None, Seen::default()),
        ("new", Some("blocked"), behind),
        ("new", Some("free"), Seen::default()),
        ("first", Some("key"), with(InboxState::Deferred)),
        (
            "second",
            Some("key"),
            Seen {
                behind: true,
                ..with(InboxState::Parked)
            },
        ),
        (
            // Nothing is before it: it blocks the others.
            "dead",
            Some("blocked"),
            Seen {
                redrive: 3,
                ..with(InboxState::Dead)
            },
        ),
    ];
    let asked: Vec<Ask> = cases
        .iter()
        .map(|(message, order, _)| Ask {
            claim: claim(message),
            order: order.map(key),
        })
        .collect();
    for _ in 0..2 {
        let seen = store.look(&asked).await.expect("the inbox can be read");
        assert_eq!(seen.len(), cases.len());
        for ((message, order, expected), seen) in cases.iter().zip(seen) {
            assert_eq!(seen, *expected, "`{message}` with the key {order:?}");
        }
    }
}

pub(super) async fn handled_rows_are_forgotten_by_consumer_and_age(subject: Arc<impl Subject>) {
    const YOUNG: Duration = Duration::from_secs(60);
    const OLD: Duration = Duration::from_millis(30);
    let store = subject.store();
    for number in 0..10 {
        for consumer in [CONSUMER, "another"] {
            let claim = claim_of(consumer, &number.to_string());
            done(&store, inbox([InboxEntry::handled(claim)])).await;
        }
    }
    let forget = async |consumer, age, limit| {
        let forgotten = store.forget(consumer, age, limit).await;
        forgotten.expect("rows can be deleted")
    };
    assert_eq!(forget(CONSUMER, YOUNG, 100).await, 0, "all are young");
    sleep(OLD + CLOCK).await;
    done(&store, inbox([InboxEntry::handled(claim("young"))])).await;
    assert_eq!(forget(CONSUMER, OLD, 0).await, 0, "none was asked for");
    assert_eq!(forget(CONSUMER, OLD, 7).await, 7, "no more than asked");
    let young = state(&store, "young").await;
    assert_eq!(young, Some(InboxState::Handled), "the oldest go first");
    assert_eq!(forget(CONSUMER, YOUNG, 100).await, 0, "it is young");
    assert_eq!(forget("nobody", OLD, 100).await, 0);
    sleep(OLD + CLOCK).await;
    assert_eq!(forget(CONSUMER, OLD, 100).await, 4, "the rest");
    done(&store, inbox([InboxEntry::handled(claim("1"))])).await;

    let other = seen(&store, &claim_of("another", "1"), None).await;
    assert_eq!(
        other.state,
        Some(InboxState::Handled),
        "each consumer has a window of its own"
    );
    assert_eq!(forget("another", YOUNG, 100).await, 0);
    assert_eq!(forget("another", OLD, 100).await, 10);
}

pub(super) async fn a_claim_holds_for_its_whole_window_while_old_ones_are_forgotten(
    subject: Arc<impl Subject>,
) {
    const WINDOW: Duration = Duration::from_millis(400);
    const MESSAGES: usize = 3;
    const TURNS: usize = 4;
    // Both go on all the while: what is forgotten and what comes again meet at the window's end.
    let forgetting = async {
        let store = subject.store();
        loop {
            let forgotten = store.forget(CONSUMER, WINDOW, 2).await;
            forgotten.expect("rows can be deleted");
            tokio::task::yield_now().await;
        }
    };
    let coming_again = async |message: String| {
        let store = subject.store();
        let mut before: Option<Instant> = None;
        let mut turns = 0;
        while turns < TURNS {
            let began = Instant::now();
            let entry = InboxEntry::handled(claim(&message));
            match store.commit(inbox([entry])).await.expect("an answer") {
                Committed::Done => {
                    // The claim before was made after its commit began, and this one is made now.
                    if let Some(before) = before {
                        not_before(before, WINDOW);
                    }
                    before = Some(began);
                    turns += 1;
                }
                Committed::Refused { why, .. } => {
                    assert_eq!(why, Refusal::Known);
                    let since = before.expect("nothing of it was there").elapsed();
                    assert!(since < WINDOW * 20, "it is known for {since:?}");
                }
            }
            tokio::task::yield_now().await;
        }
    };
    let messages = (0..MESSAGES).map(|number| coming_again(number.to_string()));
    tokio::select! {
        _ = join_all(messages) => {}
        () = forgetting => {}
    }
}

pub(super) async fn rows_that_wait_or_are_dead_are_not_forgotten(subject: Arc<impl Subject>) {
    let store = subject.store();
    let rows = [
        ordered("deferred", "key", deferred()),
        ordered("parked", "key", parked()),
        entry("dead", dead(false)),
        entry("handled later", deferred()),
    ];
    done(&store, inbox(rows)).await;
    sleep(CLOCK).await;
    let forget = async || {
        let forgotten = store.forget(CONSUMER, Duration::from_millis(1), 100).await;
        forgotten.expect("rows can be deleted")
    };
    assert_eq!(forget().await, 0);
    let due = take(&store, LONG, 100).await;
    let later = due.iter().find(|due| due.claim == claim("handled later"));
    let later = later.expect("it is due");
    let handled = settled(later, Fate::Handled);
    done(&store, inbox([handled])).await;
    sleep(CLOCK).await;
    assert_eq!(forget().await, 1, "it is handled now");
    assert_eq!(unhandled(&store).await.len(), 3);
}

pub(super) async fn a_redrive_reopens_a_dead_message_once(subject: Arc<impl Subject>) {
    use Fate::Handled;
    let store = subject.store();
    let redrive = |number, fate| redriven(number, entry("1", fate));
    let number = async || seen(&store, &claim("1"), None).await.redrive;
    done(&store, inbox([entry("1", dead(false))])).await;
    assert_eq!(number().await, 0);
    refused(&store, redrive(0, Handled), Refusal::Known).await;

    done(&store, inbox([redrive(2, dead(false))])).await;
    assert_eq!(number().await, 2);
    for lower in [1, 2] {
        refused(&store, redrive(lower, Handled), Refusal::Known).await;
    }
    done(&store, inbox([redrive(3, deferred())])).await;
    assert_eq!(state(&store, "1").await, Some(InboxState::Deferred));
    assert_eq!(number().await, 3);
    refused(&store, redrive(4, Handled), Refusal::Known).await;

    let due = take_one(&store, "1").await;
    assert_eq!(due.failures, 1, "what the redrive's attempt wrote");
    assert!(due.envelope.is_ok(), "what the redrive brought");
    done(&store, inbox([settled(&due, dead(false))])).await;
    assert_eq!(number().await, 3, "its number stays with it");
    refused(&store, redrive(3, Handled), Refusal::Known).await;
    done(&store, inbox([redrive(4, Handled)])).await;
    assert_eq!(state(&store, "1").await, Some(InboxState::Handled));
    refused(&store, redrive(5, Handled), Refusal::Known).await;

    // The row may have been lost or discarded with its database.
    done(&store, inbox([redriven(7, entry("new", dead(false)))])).await;
    refused(&store, redriven(7, entry("new", Handled)), Refusal::Known).await;
    assert_eq!(seen(&store, &claim("new"), None).await.redrive, 7);
}

pub(super) async fn processes_share_what_is_known_of_messages(subject: Arc<impl Subject>) {
    let here = subject.store();
    let Some(there) = subject.in_another_process().await else {
        eprintln!("  skipped: there is no other process");
        return;
    };
    done(&here, inbox([ordered("1", "key", deferred())])).await;
    assert_eq!(state(&there, "1").await, Some(InboxState::Deferred));
    refused(&there, entry("1", deferred()), Refusal::Known).await;
    refused(&there, ordered("2", "key", deferred()), Refusal::Behind).await;
    let due = take_one(&there, "1").await;
    assert!(take(&here, LONG, 1).await.is_empty(), "it is taken there");
    let handled = settled(&due, Fate::Handled);
    done(&here, inbox([handled])).await;
    assert_eq!(state(&there, "1").await, Some(InboxState::Handled));
}

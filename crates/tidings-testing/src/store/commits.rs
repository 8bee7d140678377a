//! Transactions: all or nothing, and each message once.

use std::{sync::Arc, time::Duration};

use tidings_core::{
    Ask, Commit, Committed, Expected, Fate, InboxEntry, InboxState, Over, RecordChange, RecordId,
    RecordValue, Refusal, Seen, Store, TransactionSlot, Work, WorkError,
};
use tokio::task::JoinSet;

use super::{Subject, support::*};

fn record(expected: Expected) -> RecordChange {
    RecordChange {
        id: RecordId::new("kind", "id"),
        expected,
        value: Some(RecordValue::default()),
    }
}

async fn has_record(store: &Arc<dyn Store>) -> bool {
    let read = store.records().read(&[RecordId::new("kind", "id")]).await;
    read.expect("records can be read")[0].is_some()
}

pub(super) async fn a_commit_is_inbox_row_writes_messages_and_records_together(
    subject: Arc<impl Subject>,
) {
    let store = subject.store();
    let mut transaction = begin(&store).await;
    write(&subject, &mut transaction, "note").await;
    assert_eq!(state(&store, "1").await, None, "nothing is committed yet");
    assert!(subject.notes().await.is_empty(), "nothing is committed yet");

    let mut commit = outbox(&["a", "b"]);
    commit.inbox = vec![entry("1", deferred()), InboxEntry::handled(claim("2"))];
    commit.records = vec![record(Expected::Nothing)];
    let committed = transaction.commit(commit).await.expect("it commits");
    assert_eq!(committed, Committed::Done);
    assert_eq!(state(&store, "1").await, Some(InboxState::Deferred));
    assert_eq!(state(&store, "2").await, Some(InboxState::Handled));
    assert_eq!(subject.notes().await, ["note"]);
    assert_eq!(bodies(&ready(&store).await), ["a", "b"]);
    assert!(has_record(&store).await);
}

pub(super) async fn a_message_is_handled_once_and_a_duplicate_writes_nothing(
    subject: Arc<impl Subject>,
) {
    let store = subject.store();
    let known = Committed::Refused {
        entry: 0,
        why: Refusal::Known,
    };
    let attempt = |body| {
        let mut commit = outbox(&[body]);
        commit.inbox = vec![InboxEntry::handled(claim("1"))];
        commit
    };
    done(&store, attempt("first")).await;

    let again = store.commit(attempt("second")).await.expect("an answer");
    assert_eq!(again, known);
    assert!(again.is_known());
    let mut transaction = begin(&store).await;
    write(&subject, &mut transaction, "note").await;
    let mut commit = attempt("third");
    commit.records = vec![record(Expected::Anything)];
    let again = transaction.commit(commit).await.expect("an answer");
    assert_eq!(again, known);
    let mut commit = attempt("fourth");
    commit.records = vec![record(Expected::Version(7))];
    let again = store.commit(commit).await.expect("an answer");
    assert_eq!(again, known, "a duplicate is one, whatever else it wants");
    let notes = subject.notes().await;
    assert!(notes.is_empty(), "a duplicate writes nothing");
    assert!(!has_record(&store).await, "a duplicate writes nothing");
    assert_eq!(bodies(&ready(&store).await), ["first"]);

    for free in [
        claim_of("another", "1"),
        claim("2"),
        claim_of(&format!("{CONSUMER}1"), ""),
    ] {
        let seen = seen(&store, &free, None).await;
        assert_eq!(seen, Seen::default(), "{free:?} is another");
        done(&store, inbox([InboxEntry::handled(free)])).await;
    }
    for _ in 0..2 {
        done(&store, inbox([])).await;
    }
}

pub(super) async fn a_delivery_of_a_message_that_has_a_row_is_a_duplicate_whatever_its_state(
    subject: Arc<impl Subject>,
) {
    let store = subject.store();
    let rows = [
        entry("handled", Fate::Handled),
        ordered("deferred", "key", deferred()),
        ordered("parked", "key", parked()),
        entry("dead", dead(false)),
        ordered("dead, blocks", "another key", dead(true)),
    ];
    done(&store, inbox(rows.clone())).await;
    for row in rows {
        let message = row.claim.message.as_str();
        let before = seen(&store, &row.claim, None).await.state;
        for fate in [Fate::Handled, deferred(), dead(true)] {
            refused(&store, entry(message, fate), Refusal::Known).await;
        }
        for fate in [deferred(), parked()] {
            refused(&store, ordered(message, "key", fate), Refusal::Known).await;
        }
        let after = seen(&store, &row.claim, None).await.state;
        assert_eq!(after, before, "`{message}` stays as it was");
    }
}

pub(super) async fn of_many_who_commit_one_message_at_once_one_wins(subject: Arc<impl Subject>) {
    let store = subject.store();
    let mut attempts = JoinSet::new();
    for number in 0..32 {
        let (subject, store) = (Arc::clone(&subject), Arc::clone(&store));
        attempts.spawn(async move {
            let mut commit = outbox(&["message"]);
            let fate = match number % 3 {
                0 => deferred(),
                _ => Fate::Handled,
            };
            commit.inbox = vec![entry("contested", fate)];
            if number % 4 == 0 {
                return store.commit(commit).await.expect("an answer");
            }
            let mut transaction = begin(&store).await;
            write(&subject, &mut transaction, &number.to_string()).await;
            transaction.commit(commit).await.expect("an answer")
        });
    }
    let committed = attempts.join_all().await;
    let winners = committed.iter().filter(|one| **one == Committed::Done);
    assert_eq!(winners.count(), 1, "one message, one winner");
    let known = committed.iter().filter(|one| one.is_known());
    assert_eq!(known.count(), 31, "the others hear of it");
    assert_eq!(ready(&store).await.len(), 1, "the winner's message");
    assert!(subject.notes().await.len() <= 1, "no loser's write");
}

pub(super) async fn one_entry_that_is_refused_leaves_nothing_of_its_commit(
    subject: Arc<impl Subject>,
) {
    let store = subject.store();
    done(&store, inbox([ordered("first", "key", deferred())])).await;
    let cases = [
        (entry("first", dead(true)), Refusal::Known),
        (ordered("late", "key", deferred()), Refusal::Behind),
        (ordered("late", "free key", parked()), Refusal::Free),
    ];
    for (entry_refused, why) in cases {
        let mut transaction = begin(&store).await;
        write(&subject, &mut transaction, "undone").await;
        let mut commit = outbox(&["undone"]);
        commit.inbox = vec![
            entry("a", Fate::Handled),
            ordered("b", "another key", deferred()),
            entry_refused,
            entry("c", deferred()),
        ];
        commit.records = vec![record(Expected::Anything)];
        let committed = transaction.commit(commit).await.expect("an answer");
        assert_eq!(committed, Committed::Refused { entry: 2, why });
        assert!(subject.notes().await.is_empty(), "{why:?}");
        assert!(ready(&store).await.is_empty(), "{why:?}");
        assert!(!has_record(&store).await, "{why:?}");
        for message in ["a", "b", "c", "late"] {
            assert_eq!(state(&store, message).await, None, "{why:?}: {message}");
        }
    }
    // What was undone is free: for the same messages and for the same key.
    let again = [
        entry("a", Fate::Handled),
        ordered("c", "another key", deferred()),
    ];
    done(&store, inbox(again)).await;
}

pub(super) async fn a_rollback_leaves_nothing(subject: Arc<impl Subject>) {
    let store = subject.store();
    begin(&store).await.rollback().await;
    let mut transaction = begin(&store).await;
    write(&subject, &mut transaction, "undone").await;
    transaction.rollback().await;

    let mut transaction = begin(&store).await;
    write(&subject, &mut transaction, "done").await;
    transaction.commit(inbox([])).await.expect("it commits");
    assert_eq!(subject.notes().await, ["done"]);
}

pub(super) async fn a_dropped_transaction_leaves_nothing(subject: Arc<impl Subject>) {
    let store = subject.store();
    drop(begin(&store).await);
    let mut transaction = begin(&store).await;
    write(&subject, &mut transaction, "dropped").await;
    drop(transaction);

    // A handler that is cancelled in the middle drops it too.
    let (subject_there, store_there) = (Arc::clone(&subject), Arc::clone(&store));
    let (written, is_written) = tokio::sync::oneshot::channel();
    let handler = tokio::spawn(async move {
        let mut transaction = begin(&store_there).await;
        write(&subject_there, &mut transaction, "cancelled").await;
        let _ = written.send(());
        std::future::pending::<()>().await;
    });
    is_written.await.expect("the handler runs");
    handler.abort();

    let mut transaction = begin(&store).await;
    write(&subject, &mut transaction, "done").await;
    transaction.commit(inbox([])).await.expect("it commits");
    assert_eq!(subject.notes().await, ["done"]);
}

pub(super) async fn an_empty_commit_is_done(subject: Arc<impl Subject>) {
    let store = subject.store();
    done(&store, inbox([])).await;
    let committed = begin(&store).await.commit(inbox([])).await;
    assert_eq!(committed.expect("it commits"), Committed::Done);
}

/// Writes through the transaction of a unit of work, as a handler does.
async fn write_in(subject: &Arc<impl Subject>, slot: &Arc<TransactionSlot>, note: &str) {
    let mut handle = slot.handle();
    let transaction = handle.get_any().await.expect("a transaction");
    let written = subject.write(transaction, note).await;
    written.expect("it can be written");
}

pub(super) async fn works_of_a_batch_do_not_harm_each_other(subject: Arc<impl Subject>) {
    let store = subject.store();
    done(&store, inbox([InboxEntry::handled(claim("known"))])).await;
    assert!(store.run(Vec::new()).await.is_empty());

    // What each does: writes a note or not, and ends so.
    let works = [
        ("writes", true, Ok(inbox([entry("a", deferred())]))),
        ("fails", true, Err("it fails")),
        ("is refused", true, Ok(inbox([entry("known", deferred())]))),
        ("conflicts", true, {
            let mut commit = inbox([entry("b", Fate::Handled)]);
            commit.records = vec![record(Expected::Version(1))];
            Ok(commit)
        }),
        ("sends only", false, Ok(outbox(&["sent"]))),
        ("fails early", false, Err("it fails")),
        ("writes too", true, Ok(inbox([entry("c", Fate::Handled)]))),
        ("does nothing", false, Ok(inbox([]))),
    ];
    let batch = works.map(|(note, writes, end)| {
        let slot = Arc::new(TransactionSlot::new(Arc::clone(&store)));
        let (subject, within) = (Arc::clone(&subject), Arc::clone(&slot));
        Work::new(slot, async move {
            if writes {
                write_in(&subject, &within, note).await;
            }
            end.map_err(Into::into)
        })
    });
    let outcomes = store.run(batch.into()).await;
    let told: Vec<String> = outcomes
        .iter()
        .map(|outcome| match outcome {
            Ok(Committed::Done) => "done".into(),
            Ok(Committed::Refused { entry, why }) => format!("refused {entry} {why:?}"),
            Err(WorkError::NotBegun(error)) => format!("not begun: {error}"),
            Err(WorkError::Failed(error)) => error.to_string(),
            Err(WorkError::Store(error)) if error.is_conflict() => "conflict".into(),
            Err(WorkError::Store(error)) => format!("store: {error}"),
        })
        .collect();
    let expected = [
        "done",
        "it fails",
        "refused 0 Known",
        "conflict",
        "done",
        "it fails",
        "done",
        "done",
    ];
    assert_eq!(told, expected);
    assert_eq!(subject.notes().await, ["writes", "writes too"]);
    assert_eq!(bodies(&ready(&store).await), ["sent"]);
    assert_eq!(state(&store, "a").await, Some(InboxState::Deferred));
    assert_eq!(state(&store, "b").await, None);
    assert_eq!(state(&store, "c").await, Some(InboxState::Handled));
}

pub(super) async fn works_of_a_batch_claim_each_message_once(subject: Arc<impl Subject>) {
    let store = subject.store();
    done(&store, inbox([InboxEntry::handled(claim("known"))])).await;
    let attempt = |message: &'static str, note: &'static str, is_good: bool| {
        let slot = Arc::new(TransactionSlot::new(Arc::clone(&store)));
        let (subject, within) = (Arc::clone(&subject), Arc::clone(&slot));
        let work = Work::new(slot, async move {
            write_in(&subject, &within, note).await;
            match is_good {
                true => Ok(outbox(&[note])),
                false => Err("it fails".into()),
            }
        });
        work.claiming(InboxEntry::handled(claim(message)))
    };
    let batch = vec![
        attempt("1", "first", true),
        attempt("1", "twice", true),
        attempt("known", "known", true),
        attempt("2", "fails", false),
        attempt("2", "again", true),
        attempt("3", "fails", false),
    ];
    let outcomes = store.run(batch).await;
    let known = |outcome: &Result<Committed, WorkError>| {
        matches!(
            outcome,
            Ok(Committed::Refused {
                entry: 0,
                why: Refusal::Known
            })
        )
    };
    let is_done = |outcome: &Result<_, _>| matches!(outcome, Ok(Committed::Done));
    assert!(is_done(&outcomes[0]) && known(&outcomes[1]), "{outcomes:?}");
    assert!(known(&outcomes[2]), "{outcomes:?}");
    assert!(
        matches!(outcomes[3], Err(WorkError::Failed(_))),
        "{outcomes:?}"
    );
    assert!(is_done(&outcomes[4]), "{outcomes:?}");
    assert!(
        matches!(outcomes[5], Err(WorkError::Failed(_))),
        "{outcomes:?}"
    );
    let (mut notes, mut sent) = (subject.notes().await, bodies(&ready(&store).await));
    notes.sort_unstable();
    sent.sort_unstable();
    assert_eq!(notes, ["again", "first"]);
    assert_eq!(sent, ["again", "first"]);
    assert_eq!(state(&store, "1").await, Some(InboxState::Handled));
    assert_eq!(state(&store, "2").await, Some(InboxState::Handled));
    assert_eq!(state(&store, "3").await, None, "what failed is not handled");
}

pub(super) async fn a_work_with_many_messages_is_refused_by_the_one_that_is_known(
    subject: Arc<impl Subject>,
) {
    let store = subject.store();
    done(&store, inbox([InboxEntry::handled(claim("b"))])).await;
    done(&store, inbox([entry("lease", deferred())])).await;
    let consumers = [claim("lease").consumer];
    let taken = store.deferred().take_due(&consumers, "worker", LONG, 1);
    let taken = taken.await.expect("rows can be taken").remove(0);
    let over_lease = InboxEntry {
        over: Over::Lease(taken.lease),
        ..InboxEntry::handled(taken.claim)
    };
    // The first claim is the work's own, the others come with the commit. A handler that awaits
    // something else in between is run in other ways.
    let work = |messages: &[&str], over_lease: Option<InboxEntry>, awaits: bool| {
        let slot = Arc::new(TransactionSlot::new(Arc::clone(&store)));
        let (subject, within) = (Arc::clone(&subject), Arc::clone(&slot));
        let note = messages.concat();
        let entries = messages.iter().map(|it| InboxEntry::handled(claim(it)));
        let mut entries = over_lease.into_iter().chain(entries).collect::<Vec<_>>();
        let first = entries.remove(0);
        let work = Work::new(slot, async move {
            write_in(&subject, &within, &note).await;
            if awaits {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok(inbox(entries))
        });
        work.claiming(first)
    };
    let refused = |entry| Committed::Refused {
        entry,
        why: Refusal::Known,
    };
    for awaits in [false, true] {
        for (messages, expected) in [
            (["a", "b", "c"], refused(1)),
            (["a", "c", "b"], refused(2)),
            (["b", "a", "c"], refused(0)),
        ] {
            let outcome = work(&messages, None, awaits).hand_to(&*store).await;
            assert_eq!(outcome.expect("an answer"), expected, "{messages:?}");
        }
    }
    assert!(subject.notes().await.is_empty(), "nothing of it is written");
    for free in ["a", "c"] {
        assert_eq!(state(&store, free).await, None, "{free}");
    }
    let outcome = work(&["c", "a"], Some(over_lease), false)
        .hand_to(&*store)
        .await;
    assert_eq!(outcome.expect("an answer"), Committed::Done);
    let outcome = work(&["d", "e"], None, true).hand_to(&*store).await;
    assert_eq!(outcome.expect("an answer"), Committed::Done);
    for message in ["a", "c", "d", "e", "lease"] {
        let handled = Some(InboxState::Handled);
        assert_eq!(state(&store, message).await, handled, "{message}");
    }
    assert_eq!(subject.notes().await, ["ca", "de"]);
}

/// Some databases cannot hold a NUL in a text, for example. Then they say so, in a way by which it
/// can be told from a database that cannot be reached.
pub(super) async fn what_cannot_be_stored_is_invalid_and_harms_nothing(subject: Arc<impl Subject>) {
    let store = subject.store();
    let odd = "a\0b";
    let odd_record = RecordChange {
        id: RecordId::new("kind", odd),
        ..record(Expected::Nothing)
    };
    let commits = [
        inbox([entry(odd, Fate::Handled)]),
        inbox([ordered("1", odd, deferred())]),
        Commit {
            outbox: vec![message("odd", odd)],
            ..Commit::default()
        },
        Commit {
            records: vec![odd_record],
            ..Commit::default()
        },
    ];
    for commit in commits {
        let mut transaction = begin(&store).await;
        let note = format!("{commit:?}").replace('\0', "");
        write(&subject, &mut transaction, &note).await;
        let is_stored = match transaction.commit(commit.clone()).await {
            Ok(committed) => {
                assert_eq!(committed, Committed::Done);
                true
            }
            Err(error) => {
                assert!(error.is_invalid(), "{error}");
                false
            }
        };
        let is_written = subject.notes().await.contains(&note);
        assert_eq!(is_written, is_stored, "all or nothing: {commit:?}");
    }
    let asked = [Ask {
        claim: claim(odd),
        order: Some(key(odd)),
    }];
    if let Err(error) = store.look(&asked).await {
        assert!(error.is_invalid(), "{error}");
    }
    if let Err(error) = store.records().read(&[RecordId::new("kind", odd)]).await {
        assert!(error.is_invalid(), "{error}");
    }
    let sound = [InboxEntry::handled(claim("sound"))];
    done(&store, inbox(sound)).await;
}

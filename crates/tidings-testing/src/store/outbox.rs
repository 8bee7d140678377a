//! The outbox: what was committed comes out, once and in order.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tidings_core::{Commit, InboxEntry, Lane, OutboxRow, Outgoing, Store};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{Subject, support::*};

async fn next(
    store: &Arc<dyn Store>,
    lanes: &[Lane],
    except: &[i64],
    limit: usize,
) -> Vec<OutboxRow> {
    let rows = store.outbox().next(lanes, &[], except, limit).await;
    rows.expect("the outbox can be read")
}

async fn confirmed(store: &Arc<dyn Store>, positions: &[i64]) {
    let confirmed = store.outbox().confirmed(positions).await;
    confirmed.expect("rows can be removed");
}

pub(super) async fn a_message_comes_out_as_it_went_in(subject: Arc<impl Subject>) {
    let store = subject.store();
    let mut bare = message("", "");
    bare.envelope.key = None;
    bare.envelope.content_type = "".into();
    let sent = vec![bare, message("with a key", "key"), full_message()];
    let commit = Commit {
        outbox: sent.clone(),
        ..Commit::default()
    };
    done(&store, commit).await;
    let rows = ready(&store).await;
    let got: Vec<Outgoing> = rows
        .into_iter()
        .map(|row| row.message.expect("it can be read"))
        .collect();
    assert_eq!(got, sent);
}

/// Forty messages with a key each.
async fn send_forty(store: &Arc<dyn Store>) -> Vec<OutboxRow> {
    for number in 0..40 {
        let commit = Commit {
            outbox: vec![message(&number.to_string(), &format!("key-{number}"))],
            ..Commit::default()
        };
        done(store, commit).await;
    }
    let all = ready(store).await;
    assert_eq!(all.len(), 40);
    all
}

pub(super) async fn next_gives_the_oldest_of_its_lanes_and_no_more_than_asked(
    subject: Arc<impl Subject>,
) {
    let store = subject.store();
    let all = send_forty(&store).await;
    assert!(
        all.is_sorted_by_key(|row| row.position),
        "in order of position"
    );
    assert!(all.iter().all(|row| !row.is_behind), "nothing is held");
    let few = next(&store, &lanes(), &[], 7).await;
    assert_eq!(bodies(&few), bodies(&all[..7]), "the oldest");
    assert!(next(&store, &lanes(), &[], 0).await.is_empty());
    assert!(next(&store, &[], &[], 10).await.is_empty());

    let half = &lanes()[..8];
    let in_half = all.iter().filter(|row| {
        let message = row.message.as_ref().expect("it can be read");
        half.contains(&Lane::of_message(message))
    });
    let expected: Vec<i64> = in_half.map(|row| row.position).take(10).collect();
    let got = next(&store, half, &[], 10).await;
    assert_eq!(positions(&got), expected, "only these lanes' rows");
}

pub(super) async fn next_leaves_out_what_is_in_flight(subject: Arc<impl Subject>) {
    let store = subject.store();
    let all = positions(&send_forty(&store).await);
    let in_flight = [&all[..5], &all[10..12], &[i64::MAX]].concat();
    let got = positions(&next(&store, &lanes(), &in_flight, 7).await);
    assert_eq!(got, [&all[5..10], &all[12..14]].concat());
    let got = next(&store, &lanes(), &all, 7).await;
    assert!(got.is_empty(), "all are in flight");
}

pub(super) async fn a_late_commit_is_not_skipped(subject: Arc<impl Subject>) {
    let store = subject.store();
    let mut early = begin(&store).await;
    write(&subject, &mut early, "began first").await;
    let mut overtakes = tokio::spawn(done(&store, outbox(&["committed first"])));
    // Where one writes at a time it cannot overtake; then the case is trivial.
    let overtaken = timeout(Duration::from_millis(500), &mut overtakes).await;
    let mut sent = Vec::new();
    for row in ready(&store).await {
        confirmed(&store, &[row.position]).await;
        sent.push(body(&row));
    }
    let commit = early.commit(outbox(&["committed last"])).await;
    commit.expect("it commits");
    if overtaken.is_err() {
        overtakes.await.expect("it commits");
    }
    sent.extend(bodies(&ready(&store).await));
    sent.sort();
    assert_eq!(sent, ["committed first", "committed last"]);
}

pub(super) async fn concurrent_writers_and_a_relay_lose_nothing_and_keep_order_per_key(
    subject: Arc<impl Subject>,
) {
    const WRITERS: usize = 8;
    const COMMITS: usize = 25;
    let store = subject.store();
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (subject, store) = (Arc::clone(&subject), Arc::clone(&store));
        writers.spawn(async move {
            for number in 0..COMMITS {
                let key = format!("key-{writer}");
                let messages = (0..2).map(|half| message(&(number * 2 + half).to_string(), &key));
                let note = format!("{writer}-{number}");
                let commit = Commit {
                    outbox: messages.collect(),
                    ..inbox([InboxEntry::handled(claim(&note))])
                };
                if number % 2 == 0 {
                    done(&store, commit).await;
                } else {
                    let mut transaction = begin(&store).await;
                    write(&subject, &mut transaction, &note).await;
                    transaction.commit(commit).await.expect("it commits");
                }
            }
        });
    }
    let mut seen: HashMap<String, Vec<usize>> = HashMap::new();
    let mut count = 0;
    while count < WRITERS * COMMITS * 2 {
        let rows = next(&store, &lanes(), &[], 50).await;
        if rows.is_empty() {
            let committed = store.outbox().committed();
            let _ = timeout(Duration::from_millis(50), committed).await;
        }
        confirmed(&store, &positions(&rows)).await;
        for row in &rows {
            let message = row.message.as_ref().expect("it can be read");
            let key = message.envelope.key.as_deref().unwrap_or_default();
            let number = body(row).parse().expect("a number");
            seen.entry(key.to_owned()).or_default().push(number);
            count += 1;
        }
    }
    writers.join_all().await;
    assert!(ready(&store).await.is_empty(), "each message came once");
    for (key, numbers) in seen {
        assert!(
            numbers.into_iter().eq(0..COMMITS * 2),
            "in order of `{key}`"
        );
    }
}

pub(super) async fn what_commits_later_with_a_key_has_a_later_place(subject: Arc<impl Subject>) {
    const WRITERS: usize = 8;
    const COMMITS: usize = 15;
    const MESSAGES: usize = 20;
    let store = subject.store();
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let (subject, store) = (Arc::clone(&subject), Arc::clone(&store));
        writers.spawn(async move {
            for _ in 0..COMMITS {
                let mut transaction = begin(&store).await;
                write(&subject, &mut transaction, "note").await;
                let commit = outbox(&["message"; MESSAGES]);
                transaction.commit(commit).await.expect("it commits");
            }
        });
    }
    let mut last = i64::MIN;
    let mut count = 0;
    while count < WRITERS * COMMITS * MESSAGES {
        let rows = ready(&store).await;
        let new = rows.iter().filter(|row| row.position > last).count();
        assert_eq!(
            count + new,
            rows.len(),
            "a row turned up before one that was there"
        );
        last = rows.last().map_or(last, |row| row.position);
        count = rows.len();
    }
    writers.join_all().await;
}

pub(super) async fn confirmed_removes_those_rows_and_no_other(subject: Arc<impl Subject>) {
    let store = subject.store();
    done(&store, outbox(&["a", "b", "c", "d"])).await;
    let rows = positions(&ready(&store).await);
    confirmed(&store, &[]).await;
    let sent = [rows[1], rows[2], i64::MAX];
    confirmed(&store, &sent).await;
    confirmed(&store, &sent).await;
    assert_eq!(bodies(&ready(&store).await), ["a", "d"]);

    confirmed(&store, &[rows[0], rows[3]]).await;
    done(&store, outbox(&["e"])).await;
    let left = ready(&store).await;
    assert_eq!(bodies(&left), ["e"]);
    assert!(
        left[0].position > rows[3],
        "a place is not given twice: the confirm may come late"
    );
}

pub(super) async fn committed_wakes_after_a_commit_with_messages(subject: Arc<impl Subject>) {
    let store = subject.store();
    let woken = async |what: &str| {
        let woken = timeout(SOON, store.outbox().committed()).await;
        assert!(woken.is_ok(), "no wake {what}");
    };
    done(&store, outbox(&["a"])).await;
    woken("for a commit before the call").await;

    let transaction = begin(&store).await;
    let (committed, ()) = tokio::join!(
        async {
            sleep(Duration::from_millis(50)).await;
            transaction.commit(outbox(&["b"])).await
        },
        woken("for a commit during the call"),
    );
    committed.expect("it commits");

    // It may wake without cause, but not all the time: a relay would never rest.
    let mut wakes = 0;
    let quiet = async {
        loop {
            store.outbox().committed().await;
            wakes += 1;
        }
    };
    let _ = timeout(Duration::from_millis(500), quiet).await;
    assert!(wakes < 20, "{wakes} wakes without cause");
}

pub(super) async fn processes_share_messages_and_lanes(subject: Arc<impl Subject>) {
    let here = subject.store();
    let Some(there) = subject.in_another_process().await else {
        eprintln!("  skipped: there is no other process");
        return;
    };
    done(&here, outbox(&["a"])).await;
    assert_eq!(bodies(&ready(&there).await), ["a"]);
    let leased = here.outbox().lease("here", LONG).await;
    assert_eq!(leased.expect("an answer").lanes, lanes());
    let leased = there.outbox().lease("there", LONG).await;
    let leased = leased.expect("an answer").lanes;
    assert!(leased.is_empty(), "they are the other process's");
    let leased = here.outbox().lease("here", LONG).await;
    assert_eq!(leased.expect("an answer").surplus, 8, "it knows the other");

    // The relay here has the lanes: it must hear of what is committed there.
    let quiet = here.outbox().committed();
    let _ = timeout(Duration::from_millis(500), quiet).await;
    let (woken, ()) = tokio::join!(timeout(SOON, here.outbox().committed()), async {
        sleep(Duration::from_millis(50)).await;
        done(&there, outbox(&["c"])).await;
    });
    woken.expect("a commit of another process wakes");
    assert_eq!(bodies(&ready(&here).await), ["a", "c"]);
}

//! The log: what was committed is kept, if that was asked for, and can be read again in order.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tidings_core::{
    Commit, InboxEntry, Log, LogEntry, LogPage, Outgoing, Store, TransactionSlot, Work,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{Damage, Subject, support::*};

fn log(store: &Arc<dyn Store>) -> &dyn Log {
    store.log().expect("a store with a log")
}

async fn horizon(store: &Arc<dyn Store>) -> i64 {
    let horizon = log(store).horizon().await;
    horizon.expect("the log has an end")
}

async fn read(store: &Arc<dyn Store>, after: i64, until: i64, limit: usize) -> LogPage {
    let page = log(store).read(after, until, limit).await;
    page.expect("the log can be read")
}

/// All that is in the log.
async fn kept(store: &Arc<dyn Store>) -> Vec<LogEntry> {
    let until = horizon(store).await;
    read(store, i64::MIN, until, 10_000).await.entries
}

fn texts(entries: &[LogEntry]) -> Vec<String> {
    let text = |entry: &LogEntry| {
        let message = entry.message.as_ref().expect("a message that can be read");
        String::from_utf8_lossy(&message.envelope.body).into_owned()
    };
    entries.iter().map(text).collect()
}

fn places(entries: &[LogEntry]) -> Vec<i64> {
    entries.iter().map(|entry| entry.position).collect()
}

pub(super) async fn nothing_is_kept_unless_asked_for(subject: Arc<impl Subject>) {
    let store = subject.store();
    assert_eq!(log(&store).kept(), None);
    done(&store, outbox(&["a"])).await;
    assert!(kept(&store).await.is_empty());
    log(&store).keep(LONG);
    assert_eq!(log(&store).kept(), Some(LONG));
    assert!(kept(&store).await.is_empty(), "what was before is not kept");
    done(&store, outbox(&["b"])).await;
    assert_eq!(texts(&kept(&store).await), ["b"]);
}

/// Every way to commit, each with an event and a command; and some that commit nothing.
pub(super) async fn events_are_kept_as_they_were_committed_and_nothing_else_is(
    subject: Arc<impl Subject>,
) {
    let store = subject.store();
    log(&store).keep(LONG);
    let command = full_message();
    let mut event = full_message();
    event.destination = message("", "").destination;
    let mut bare = message("", "");
    bare.envelope.key = None;
    bare.envelope.content_type = "".into();
    let all = vec![command.clone(), event.clone(), bare.clone()];
    let commit = |inbox: &[&str]| Commit {
        outbox: all.clone(),
        inbox: inbox
            .iter()
            .map(|it| InboxEntry::handled(claim(it)))
            .collect(),
        ..Commit::default()
    };
    done(&store, commit(&[])).await;
    done(&store, commit(&["1"])).await;
    done(&store, commit(&["2", "3"])).await;
    let mut transaction = begin(&store).await;
    write(&subject, &mut transaction, "note").await;
    let committed = transaction.commit(commit(&["4"])).await;
    committed.expect("it commits");
    // Alone, and with one that fails.
    let works = |claims: [&'static str; 2]| {
        let works = claims.map(|it| {
            let slot = Arc::new(TransactionSlot::new(Arc::clone(&store)));
            let commit = commit(&[]);
            let subject = Arc::clone(&subject);
            let mut handle = slot.handle();
            let work = Work::new(slot, async move {
                let transaction = handle.get_any().await?;
                subject.write(transaction, it).await?;
                drop(handle);
                match it.starts_with("fails") {
                    true => Err("it fails".into()),
                    false => Ok(commit),
                }
            });
            work.claiming(InboxEntry::handled(claim(it)))
        });
        Vec::from(works)
    };
    let mut alone = works(["5", "unused"]);
    alone.truncate(1);
    assert!(store.run(alone).await[0].is_ok());
    let outcomes = store.run(works(["6", "fails"])).await;
    assert!(outcomes[0].is_ok() && outcomes[1].is_err(), "{outcomes:?}");

    let refused = store.commit(commit(&["1"])).await.expect("an answer");
    assert!(refused.is_known());
    let mut undone = begin(&store).await;
    write(&subject, &mut undone, "undone").await;
    undone.rollback().await;

    let entries = kept(&store).await;
    assert!(entries.is_sorted_by_key(|entry| entry.position));
    let got: Vec<&Outgoing> = entries
        .iter()
        .map(|entry| entry.message.as_ref().expect("it can be read"))
        .collect();
    let expected = std::iter::repeat_n([&event, &bare], 6).flatten();
    assert_eq!(got, expected.collect::<Vec<_>>());
    // Their places are those that the outbox gave.
    let rows = ready(&store).await;
    let sent = rows.iter().filter(|row| {
        let message = row.message.as_ref().expect("it can be read");
        message.destination == event.destination
    });
    let sent: Vec<i64> = sent.map(|row| row.position).collect();
    assert_eq!(places(&entries), sent);
    // It stays when the broker has it.
    let all = positions(&rows);
    store.outbox().confirmed(&all).await.expect("removed");
    assert_eq!(kept(&store).await.len(), 12);
}

pub(super) async fn the_log_is_read_in_pages(subject: Arc<impl Subject>) {
    let store = subject.store();
    log(&store).keep(LONG);
    assert!(
        read(&store, i64::MIN, i64::MAX, 10)
            .await
            .entries
            .is_empty()
    );
    for number in 0..25 {
        done(&store, outbox(&[&number.to_string()])).await;
    }
    let all = kept(&store).await;
    assert_eq!(all.len(), 25);
    let mut after = i64::MIN;
    let mut paged = Vec::new();
    loop {
        let page = read(&store, after, i64::MAX, 7).await;
        assert_eq!(page.dropped_until, 0);
        let Some(last) = page.entries.last() else {
            break;
        };
        assert!(page.entries.len() <= 7);
        after = last.position;
        paged.extend(places(&page.entries));
    }
    assert_eq!(paged, places(&all));
    let until = all[9].position;
    let first = read(&store, all[4].position, until, 100).await.entries;
    assert_eq!(places(&first), places(&all[5..10]));
    assert!(read(&store, until, until, 100).await.entries.is_empty());
    assert!(read(&store, i64::MIN, i64::MAX, 0).await.entries.is_empty());
}

pub(super) async fn a_reader_of_the_log_misses_nothing_while_it_is_written(
    subject: Arc<impl Subject>,
) {
    const WRITERS: usize = 8;
    const COMMITS: usize = 40;
    let store = subject.store();
    log(&store).keep(LONG);
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (subject, store) = (Arc::clone(&subject), Arc::clone(&store));
        writers.spawn(async move {
            for number in 0..COMMITS {
                let key = format!("key-{writer}");
                let commit = Commit {
                    outbox: vec![message(&number.to_string(), &key)],
                    ..Commit::default()
                };
                if number % 2 == 0 {
                    done(&store, commit).await;
                } else {
                    let mut transaction = begin(&store).await;
                    write(&subject, &mut transaction, "note").await;
                    transaction.commit(commit).await.expect("it commits");
                }
            }
        });
    }
    let mut seen: HashMap<String, Vec<usize>> = HashMap::new();
    let (mut after, mut count) = (i64::MIN, 0);
    let mut are_done = false;
    while count < WRITERS * COMMITS {
        assert!(!are_done, "only {count} events are in the log");
        are_done = writers.is_empty();
        while writers.try_join_next().is_some() {}
        let until = horizon(&store).await;
        loop {
            let page = read(&store, after, until, 30).await.entries;
            let Some(last) = page.last() else { break };
            after = last.position;
            count += page.len();
            for entry in &page {
                let message = entry.message.as_ref().expect("it can be read");
                let key = message.envelope.key.as_deref().unwrap_or_default();
                let number = String::from_utf8_lossy(&message.envelope.body).parse();
                seen.entry(key.to_owned())
                    .or_default()
                    .push(number.expect("a number"));
            }
        }
        sleep(Duration::from_millis(1)).await;
    }
    for (key, numbers) in seen {
        assert!(numbers.into_iter().eq(0..COMMITS), "in order of `{key}`");
    }
}

pub(super) async fn events_that_are_old_are_dropped_and_young_ones_stay(
    subject: Arc<impl Subject>,
) {
    let age = Duration::from_millis(800);
    let store = subject.store();
    log(&store).keep(age);
    let drop_older = async || {
        let dropped = log(&store).drop_older(age).await;
        dropped.expect("old events can be dropped")
    };
    assert_eq!(drop_older().await, 0, "there is nothing");
    let (mut last, mut sent, mut gap_max) = (0, Vec::new(), Duration::ZERO);
    // Far more rounds than there are segments at a time.
    for round in 0..40 {
        sent.push(Instant::now());
        done(&store, outbox(&[&round.to_string(), "same round"])).await;
        drop_older().await;
        let entries = kept(&store).await;
        let Some(newest) = entries.last() else {
            // The machine stood still until the newest was old, too.
            let dropped = sent[round].elapsed();
            assert!(dropped + CLOCK >= age, "dropped after {dropped:?}");
            gap_max = gap_max.max(dropped);
            continue;
        };
        last = newest.position;
        let first: usize = texts(&entries)[0]
            .parse()
            .expect("whole rounds are dropped");
        let rounds = (entries.len() / 2, round - first + 1);
        assert_eq!(rounds.0, rounds.1, "from the oldest on nothing is missing");
        if first > 0 {
            let dropped = sent[first - 1].elapsed();
            assert!(dropped + CLOCK >= age, "dropped after {dropped:?}");
        }
        // A part of the retention more, as often as it was looked.
        let oldest = sent[first].elapsed();
        assert!(oldest <= age * 3 / 2 + gap_max * 4, "kept for {oldest:?}");
        sleep(Duration::from_millis(50)).await;
        gap_max = gap_max.max(sent[round].elapsed());
    }
    let page = read(&store, i64::MIN, i64::MAX, 10_000).await;
    let first = page.entries[0].position;
    assert!(page.dropped_until > 0 && page.dropped_until < first);

    sleep(age + Duration::from_millis(100)).await;
    until(async || {
        drop_older().await;
        kept(&store).await.is_empty().then_some(())
    })
    .await;
    let page = read(&store, i64::MIN, i64::MAX, 10).await;
    assert_eq!(page.dropped_until, last, "it says what was dropped");
    assert_eq!(drop_older().await, 0);
    done(&store, outbox(&["new"])).await;
    drop_older().await;
    let page = read(&store, i64::MIN, i64::MAX, 10).await;
    assert_eq!(texts(&page.entries), ["new"]);
    assert!(page.dropped_until < page.entries[0].position);
}

pub(super) async fn an_event_that_cannot_be_read_says_why(subject: Arc<impl Subject>) {
    let store = subject.store();
    log(&store).keep(LONG);
    done(&store, outbox(&["a", "b", "c"])).await;
    let second = kept(&store).await[1].position;
    if !subject.damage(Damage::Log(second)).await {
        eprintln!("  skipped: nothing can be damaged");
        return;
    }
    let entries = kept(&store).await;
    assert_eq!(entries.len(), 3);
    let why = entries[1].message.as_ref().expect_err("it is damaged");
    assert!(!why.to_string().is_empty());
    assert_eq!(texts(&entries[2..]), ["c"], "the others can be read");
}

pub(super) async fn processes_share_the_log(subject: Arc<impl Subject>) {
    let here = subject.store();
    let Some(there) = subject.in_another_process().await else {
        eprintln!("  skipped: there is no other process");
        return;
    };
    log(&here).keep(LONG);
    assert_eq!(log(&there).kept(), None, "each says for itself");
    log(&there).keep(LONG);
    for round in 0..3 {
        done(&here, outbox(&[&format!("here {round}")])).await;
        done(&there, outbox(&[&format!("there {round}")])).await;
        // Whoever does the upkeep, the others go on.
        log(&there).drop_older(LONG).await.expect("upkeep");
        log(&here).drop_older(LONG).await.expect("upkeep");
    }
    let expected = [
        "here 0", "there 0", "here 1", "there 1", "here 2", "there 2",
    ];
    assert_eq!(texts(&kept(&here).await), expected);
    assert_eq!(texts(&kept(&there).await), expected);
    // A new segment while the other process writes to the old one.
    sleep(Duration::from_millis(30)).await;
    log(&there)
        .drop_older(Duration::from_millis(100))
        .await
        .expect("upkeep");
    done(&here, outbox(&["here 3"])).await;
    done(&there, outbox(&["there 3"])).await;
    assert!(texts(&kept(&here).await).ends_with(&["here 3".into(), "there 3".into()]));
}

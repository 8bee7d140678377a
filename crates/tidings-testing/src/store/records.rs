//! Records: expected versions, locks, due times, lists.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tidings_core::{
    Commit, Committed, Expected, Fate, Lease, Record, RecordChange, RecordId, RecordQuery,
    RecordValue, Store, StoreError,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{Subject, support::*};

const KIND: &str = "schedule";

fn value(label: &str, body: &str) -> RecordValue {
    RecordValue {
        label: label.into(),
        due: None,
        body: body.to_owned().into(),
    }
}

/// A value that is due `seconds` from now, which may be less than none. The clock is this
/// process's, so a margin is kept where the database's could differ.
fn due_in(seconds: i64) -> RecordValue {
    let due = Timestamp::now() + SignedDuration::from_secs(seconds);
    // Databases keep microseconds.
    let due = Timestamp::from_microsecond(due.as_microsecond()).expect("a time");
    RecordValue {
        due: Some(due),
        ..value("", "")
    }
}

fn change(id: &str, expected: Expected, value: impl Into<Option<RecordValue>>) -> RecordChange {
    RecordChange {
        id: RecordId::new(KIND, id),
        expected,
        value: value.into(),
    }
}

fn commit(changes: impl Into<Vec<RecordChange>>) -> Commit {
    Commit {
        records: changes.into(),
        ..Commit::default()
    }
}

async fn put(store: &Arc<dyn Store>, id: &str, value: RecordValue) {
    let change = change(id, Expected::Anything, value);
    done(store, commit([change])).await;
}

async fn read(store: &Arc<dyn Store>, id: &str) -> Option<Record> {
    let mut read = read_all(store, &[RecordId::new(KIND, id)]).await;
    read.remove(0)
}

async fn read_all(store: &Arc<dyn Store>, ids: &[RecordId]) -> Vec<Option<Record>> {
    let read = store.records().read(ids).await;
    let read = read.expect("records can be read");
    assert_eq!(read.len(), ids.len(), "one answer for each");
    read
}

async fn take_records(
    store: &Arc<dyn Store>,
    lease: Duration,
    limit: usize,
) -> Vec<(Lease, Record)> {
    let taken = store.records().take_due(KIND, "worker", lease, limit).await;
    taken.expect("due records can be taken")
}

fn names(taken: &[(Lease, Record)]) -> Vec<&str> {
    taken.iter().map(|(_, record)| &*record.id.id).collect()
}

#[track_caller]
fn conflicts(committed: Result<Committed, StoreError>) {
    let error = committed.expect_err("it is not as expected");
    assert!(error.is_conflict(), "{error}");
}

pub(super) async fn a_record_says_what_was_written_and_counts_its_writes(
    subject: Arc<impl Subject>,
) {
    let store = subject.store();
    assert!(read_all(&store, &[]).await.is_empty());
    assert_eq!(read(&store, "1").await, None);
    let full = RecordValue {
        label: "a \"label\" \u{1F600}".into(),
        body: (0..=255).collect::<Vec<u8>>().repeat(1024).into(),
        ..due_in(3600)
    };
    put(&store, "1", full.clone()).await;
    let first = read(&store, "1").await.expect("it is there");
    assert_eq!(first.id, RecordId::new(KIND, "1"));
    assert_eq!((first.version, &first.value), (1, &full));

    put(&store, "1", value("", "")).await;
    let second = read(&store, "1").await.expect("it is there");
    assert_eq!((second.version, &second.value), (2, &value("", "")));
    assert!(second.written >= first.written);
    let other_kind = RecordChange {
        id: RecordId::new("pause", "1"),
        ..change("1", Expected::Nothing, value("", "another kind"))
    };
    done(&store, commit([other_kind])).await;
    put(&store, "2", value("", "two")).await;
    let ids = [("pause", "1"), (KIND, "unknown"), (KIND, "2"), (KIND, "2")]
        .map(|(kind, id)| RecordId::new(kind, id));
    let all = read_all(&store, &ids).await;
    let bodies: Vec<_> = all
        .iter()
        .map(|record| record.as_ref().map(|record| &record.value.body[..]))
        .collect();
    let two = Some(&b"two"[..]);
    assert_eq!(bodies, [Some(&b"another kind"[..]), None, two, two]);

    let delete = change("1", Expected::Anything, None);
    for _ in 0..2 {
        done(&store, commit([delete.clone()])).await;
    }
    assert_eq!(read(&store, "1").await, None);
    put(&store, "1", value("", "")).await;
    let anew = read(&store, "1").await.expect("it is there");
    assert_eq!(anew.version, 1, "a record that was deleted begins anew");
}

pub(super) async fn a_record_that_is_not_as_expected_fails_the_commit(subject: Arc<impl Subject>) {
    let store = subject.store();
    put(&store, "1", value("", "first")).await;
    put(&store, "1", value("", "second")).await;
    let before = read(&store, "1").await;
    let unexpected = [
        change("1", Expected::Nothing, value("", "undone")),
        change("1", Expected::Version(1), value("", "undone")),
        change("1", Expected::Version(3), None),
        change("1", Expected::Lease(Lease("none".into())), None),
        change("unknown", Expected::Version(1), value("", "undone")),
        change("unknown", Expected::Version(0), value("", "undone")),
        change("unknown", Expected::Lease(Lease("none".into())), None),
    ];
    for change_refused in unexpected {
        let all = || Commit {
            inbox: vec![entry("1", Fate::Handled), ordered("2", "key", deferred())],
            outbox: vec![message("undone", "key")],
            records: vec![
                change("0", Expected::Anything, value("", "undone")),
                change_refused.clone(),
                change("2", Expected::Nothing, value("", "undone")),
            ],
        };
        let mut transaction = begin(&store).await;
        write(&subject, &mut transaction, "undone").await;
        conflicts(transaction.commit(all()).await);
        conflicts(store.commit(all()).await);
        assert_eq!(read(&store, "0").await, None);
        assert_eq!(read(&store, "1").await, before);
        assert_eq!(read(&store, "2").await, None);
        assert_eq!(read(&store, "unknown").await, None);
        assert!(subject.notes().await.is_empty());
        assert!(ready(&store).await.is_empty());
        assert_eq!(state(&store, "1").await, None);
        assert_eq!(state(&store, "2").await, None);
    }
    let expected = [
        change("1", Expected::Version(2), value("", "third")),
        change("2", Expected::Nothing, value("", "new")),
        change("3", Expected::Nothing, None),
    ];
    done(&store, commit(expected)).await;
    assert_eq!(
        read(&store, "1").await.map(|record| record.version),
        Some(3)
    );
    assert_eq!(read(&store, "3").await, None);
    let delete = change("1", Expected::Version(3), None);
    done(&store, commit([delete])).await;
    assert_eq!(read(&store, "1").await, None);
}

const OF_EACH_WAY: usize = 4;

/// Changes in all ways in which a commit writes records, several in each.
fn in_all_ways(leases: &[(Lease, Record)]) -> Vec<RecordChange> {
    let mut changes = Vec::new();
    for number in 0..OF_EACH_WAY {
        let name = |way: &str| format!("{way}-{number}");
        let lease = |way: &str| {
            let mut leases = leases.iter();
            let found = leases.find(|(_, record)| *record.id.id == *name(way));
            Expected::Lease(found.expect("it was due").0.clone())
        };
        let new = || value("new", &name("body"));
        changes.extend([
            change(&name("put"), Expected::Anything, new()),
            change(&name("put-new"), Expected::Anything, new()),
            change(&name("insert"), Expected::Nothing, new()),
            change(&name("update"), Expected::Version(1), new()),
            change(&name("fire"), lease("fire"), due_in(3600)),
            change(&name("delete"), Expected::Anything, None),
            change(&name("delete-version"), Expected::Version(1), None),
            change(&name("delete-fired"), lease("delete-fired"), None),
            change(&name("delete-none"), Expected::Anything, None),
            change(&name("miss"), Expected::Nothing, None),
        ]);
    }
    changes
}

pub(super) async fn a_commit_writes_many_records_in_all_ways_or_none(subject: Arc<impl Subject>) {
    let store = subject.store();
    let before = ["put", "update", "delete", "delete-version"].map(|way| (way, value("old", "")));
    let due = ["fire", "delete-fired"].map(|way| (way, due_in(-60)));
    for number in 0..OF_EACH_WAY {
        for (way, old) in before.iter().chain(&due) {
            put(&store, &format!("{way}-{number}"), old.clone()).await;
        }
    }
    let leases = take_records(&store, Duration::from_secs(600), 2 * OF_EACH_WAY).await;
    let changes = in_all_ways(&leases);
    let ids: Vec<RecordId> = changes.iter().map(|change| change.id.clone()).collect();
    let old = read_all(&store, &ids).await;

    // One in the middle is not as expected, in each way once.
    let wrong = [
        ("insert", Expected::Nothing, "put-1"),
        ("update", Expected::Version(2), "update-1"),
        ("update", Expected::Version(1), "miss-1"),
        ("update", Expected::Lease(Lease("none".into())), "fire-1"),
        ("delete", Expected::Version(2), "delete-version-1"),
        (
            "delete",
            Expected::Lease(Lease("none".into())),
            "delete-fired-1",
        ),
        ("miss", Expected::Nothing, "put-1"),
    ];
    for (way, expected, id) in wrong {
        let mut changes = changes.clone();
        let place = ids.iter().position(|it| *it.id == *id).expect("a change");
        let is_put = matches!(way, "insert" | "update");
        changes[place] = change(id, expected, is_put.then(|| value("wrong", "")));
        let mut transaction = begin(&store).await;
        let read = transaction.read(&ids).await.expect("records can be read");
        assert_eq!(read, old);
        for committed in [
            transaction.commit(commit(changes.clone())).await,
            store.commit(commit(changes)).await,
        ] {
            let error = committed.expect_err("one is not as expected");
            assert!(error.is_conflict(), "{error}");
            assert!(error.to_string().contains(&format!("`{id}`")), "{error}");
        }
        assert_eq!(read_all(&store, &ids).await, old, "after {way} of {id}");
    }

    done(&store, commit(changes.clone())).await;
    let new = read_all(&store, &ids).await;
    for ((change, old), new) in changes.iter().zip(old).zip(new) {
        let version = old.as_ref().map_or(0, |old| old.version) + 1;
        let new = new.map(|new| (new.version, new.value));
        let expected = change.value.clone().map(|value| (version, value));
        assert_eq!(new, expected, "{:?}", change.id);
    }
    assert!(take_records(&store, Duration::ZERO, 1).await.is_empty());
}

pub(super) async fn of_many_who_expect_one_version_one_writes(subject: Arc<impl Subject>) {
    const WRITERS: u64 = 12;
    let store = subject.store();
    for (id, expected) in [("new", Expected::Nothing), ("old", Expected::Version(1))] {
        put(&store, "old", value("", "")).await;
        let mut writers = JoinSet::new();
        for number in 0..WRITERS {
            let (subject, store) = (Arc::clone(&subject), Arc::clone(&store));
            let change = change(id, expected.clone(), value("", &number.to_string()));
            writers.spawn(async move {
                if number % 2 == 0 {
                    return store.commit(commit([change])).await;
                }
                let mut transaction = begin(&store).await;
                write(&subject, &mut transaction, &format!("{number}")).await;
                transaction.commit(commit([change])).await
            });
        }
        let mut winners = 0;
        for committed in writers.join_all().await {
            match committed {
                Ok(committed) => {
                    assert_eq!(committed, Committed::Done);
                    winners += 1;
                }
                Err(error) => assert!(error.is_conflict(), "{error}"),
            }
        }
        assert_eq!(winners, 1, "of those who want to write `{id}`");
        let delete = change("old", Expected::Anything, None);
        done(&store, commit([delete])).await;
    }
}

pub(super) async fn a_record_read_in_a_transaction_is_locked(subject: Arc<impl Subject>) {
    const WRITERS: usize = 8;
    const TIMES: usize = 5;
    let store = subject.store();
    put(&store, "1", value("", "0")).await;
    let ids = ["1", "unknown"].map(|id| RecordId::new(KIND, id));
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let (store, ids) = (Arc::clone(&store), ids.clone());
        writers.spawn(async move {
            for _ in 0..TIMES {
                let mut transaction = begin(&store).await;
                let read = transaction.read(&ids).await.expect("it can be read");
                assert_eq!(read.len(), 2);
                assert_eq!(read[1], None);
                let record = read[0].as_ref().expect("it is there");
                let text = String::from_utf8(record.value.body.to_vec()).expect("text");
                let number: usize = text.parse().expect("a number");
                // Nobody can have written it meanwhile.
                let expected = Expected::Version(record.version);
                let next = value("", &(number + 1).to_string());
                let committed = transaction.commit(commit([change("1", expected, next)]));
                let committed = committed.await.expect("it is locked");
                assert_eq!(committed, Committed::Done);
            }
        });
    }
    writers.join_all().await;
    let record = read(&store, "1").await.expect("it is there");
    assert_eq!(record.value.body, (WRITERS * TIMES).to_string());

    // Who writes it without reading it waits too.
    let mut transaction = begin(&store).await;
    let read_first = transaction.read(&ids).await.expect("it can be read");
    let record = read_first[0].as_ref().expect("it is there");
    let expected = Expected::Version(record.version);
    let over = change("1", Expected::Anything, value("", "written last"));
    let mut waits = tokio::spawn(done(&store, commit([over])));
    let early = timeout(Duration::from_millis(200), &mut waits).await;
    assert!(early.is_err(), "it is locked");
    let first = change("1", expected, value("", "written first"));
    let committed = transaction.commit(commit([first])).await;
    assert_eq!(committed.expect("it is locked"), Committed::Done);
    waits.await.expect("it is unlocked");
    let record = read(&store, "1").await.expect("it is there");
    assert_eq!(record.value.body, "written last");

    // A transaction that ends without a commit unlocks it.
    let mut transaction = begin(&store).await;
    transaction.read(&ids).await.expect("it can be read");
    transaction.rollback().await;
    put(&store, "1", value("", "over")).await;
}

pub(super) async fn due_records_go_to_one_worker_under_a_lease(subject: Arc<impl Subject>) {
    let store = subject.store();
    put(&store, "no time", value("", "")).await;
    put(&store, "later", due_in(7200)).await;
    put(&store, "z, second", due_in(-7200)).await;
    put(&store, "m, first", due_in(-9000)).await;
    put(&store, "a, third", due_in(-3600)).await;
    let other_kind = RecordChange {
        id: RecordId::new("pause", "1"),
        ..change("1", Expected::Nothing, due_in(-3600))
    };
    done(&store, commit([other_kind])).await;
    let before = read(&store, "m, first").await.expect("it is there");
    assert!(take_records(&store, LONG, 0).await.is_empty());
    let taken = take_records(&store, LONG, 2).await;
    assert_eq!(names(&taken), ["m, first", "z, second"], "due longest");
    assert_eq!(taken[0].1, before, "as it was written");
    let after = read(&store, "m, first").await;
    assert_eq!(after, Some(before), "taking it is no write");
    assert_eq!(names(&take_records(&store, LONG, 9).await), ["a, third"]);

    let over = |taken: &(Lease, Record), value: Option<RecordValue>| {
        commit([change(
            &taken.1.id.id,
            Expected::Lease(taken.0.clone()),
            value,
        )])
    };
    done(&store, over(&taken[0], Some(due_in(-1800)))).await;
    conflicts(store.commit(over(&taken[0], None)).await);
    let again = take_records(&store, LONG, 9).await;
    assert_eq!(
        names(&again),
        ["m, first"],
        "what was written ended the lease"
    );
    assert_eq!(again[0].1.version, 2);
    conflicts(store.commit(over(&taken[0], None)).await);
    done(&store, over(&again[0], None)).await;
    assert_eq!(read(&store, "m, first").await, None);
    // Whoever writes it otherwise takes it away from the worker.
    put(&store, "z, second", due_in(7200)).await;
    conflicts(store.commit(over(&taken[1], None)).await);

    let many = (0..60).map(|id| change(&id.to_string(), Expected::Nothing, due_in(-3600)));
    done(&store, commit(many.collect::<Vec<_>>())).await;
    let mut workers = JoinSet::new();
    for _ in 0..4 {
        let store = Arc::clone(&store);
        workers.spawn(async move {
            let mut all = Vec::new();
            for _ in 0..15 {
                all.extend(take_records(&store, LONG, 4).await);
            }
            all
        });
    }
    let mut all: Vec<(Lease, Record)> = workers.join_all().await.concat();
    all.extend(take_records(&store, LONG, 60).await);
    let ids: BTreeSet<&str> = names(&all).into_iter().collect();
    assert_eq!((all.len(), ids.len()), (60, 60), "each went to one");
}

pub(super) async fn a_lease_on_a_record_ends(subject: Arc<impl Subject>) {
    let store = subject.store();
    put(&store, "1", due_in(-7200)).await;
    let since = Instant::now();
    let slow = take_records(&store, SHORT, 1).await.remove(0);
    let other = until(async || take_records(&store, LONG, 1).await.pop()).await;
    not_before(since, SHORT);
    assert_ne!(slow.0, other.0, "a lease is never used twice");
    assert_eq!(slow.1, other.1, "it is the same record");
    let late = change("1", Expected::Lease(slow.0), None);
    conflicts(store.commit(commit([late])).await);
    let ends = change("1", Expected::Lease(other.0), None);
    done(&store, commit([ends])).await;
}

pub(super) async fn next_due_says_how_long_until_a_record_is_due(subject: Arc<impl Subject>) {
    let store = subject.store();
    let next = async |kind: &str| {
        let next = store.records().next_due(kind).await;
        next.expect("records can be read")
    };
    put(&store, "no time", value("", "")).await;
    assert_eq!(next(KIND).await, None);
    put(&store, "far", due_in(36_000)).await;
    put(&store, "near", due_in(7200)).await;
    let near = next(KIND).await.expect("one has a time").as_secs();
    assert!((3600..=10_800).contains(&near), "{near}");
    assert_eq!(next("another kind").await, None);
    put(&store, "past", due_in(-7200)).await;
    assert_eq!(next(KIND).await, Some(Duration::ZERO));
    take_records(&store, Duration::from_secs(60), 1).await;
    let leased = next(KIND).await.expect("its lease ends").as_secs();
    assert!((1..=60).contains(&leased), "{leased}");
}

pub(super) async fn records_are_listed_by_kind_label_and_age_in_pages(subject: Arc<impl Subject>) {
    const OLD: Duration = Duration::from_millis(300);
    let store = subject.store();
    for (id, label) in [("d", "open"), ("b", "open"), ("c", "closed"), ("a", "open")] {
        put(&store, id, value(label, "")).await;
        sleep(Duration::from_millis(2)).await;
    }
    let at_once = ["g", "e", "f"].map(|id| change(id, Expected::Nothing, value("open", "")));
    done(&store, commit(at_once)).await;
    let other_kind = RecordChange {
        id: RecordId::new("pause", "z"),
        ..change("z", Expected::Nothing, value("open", ""))
    };
    done(&store, commit([other_kind])).await;
    let list = async |query: &RecordQuery| {
        let records = store.records().list(query).await;
        records.expect("records can be listed")
    };
    let ids = |records: &[Record]| {
        records
            .iter()
            .map(|one| one.id.id.clone())
            .collect::<String>()
    };
    let all = RecordQuery {
        kind: KIND.into(),
        limit: 100,
        ..RecordQuery::default()
    };
    let open = RecordQuery {
        label: Some("open".into()),
        ..all.clone()
    };
    assert_eq!(
        ids(&list(&all).await),
        "dbcaefg",
        "written longest ago first"
    );
    assert_eq!(ids(&list(&open).await), "dbaefg");
    for (query, expected) in [(&all, "dbcaefg"), (&open, "dbaefg")] {
        // Pages, until one is empty.
        let mut query = RecordQuery {
            limit: 2,
            ..query.clone()
        };
        let mut told = String::new();
        loop {
            let page = list(&query).await;
            assert!(page.len() <= 2);
            told.push_str(&ids(&page));
            let Some(last) = page.last() else { break };
            query.after = Some((last.written, last.id.id.clone()));
        }
        assert_eq!(told, expected, "in pages");
    }
    sleep(OLD + CLOCK).await;
    put(&store, "d", value("closed", "")).await;
    let old = RecordQuery {
        older_than: Some(OLD),
        ..open.clone()
    };
    until(async || {
        let since = Instant::now();
        put(&store, "b", value("open", "young again")).await;
        let listed = ids(&list(&old).await);
        // On a machine that is too busy it is old before it is looked for.
        (since.elapsed() < OLD).then(|| assert_eq!(listed, "aefg"))
    })
    .await;
    let young = RecordQuery {
        older_than: Some(LONG),
        ..open.clone()
    };
    assert!(list(&young).await.is_empty());
    assert_eq!(ids(&list(&open).await), "aefgb", "a write makes it young");
}

pub(super) async fn kinds_of_records_are_listed(subject: Arc<impl Subject>) {
    let store = subject.store();
    let kinds = async |limit| {
        let kinds = store.records().kinds(limit).await;
        kinds.expect("kinds can be listed")
    };
    assert!(kinds(10).await.is_empty());
    for (kind, id) in [
        ("saga:b", "1"),
        ("saga:a", "1"),
        ("saga:b", "2"),
        ("lone", "1"),
    ] {
        let change = RecordChange {
            id: RecordId::new(kind, id),
            expected: Expected::Anything,
            value: Some(value("", "")),
        };
        done(&store, commit([change])).await;
    }
    let told: Vec<String> = kinds(10).await.iter().map(|it| it.to_string()).collect();
    assert_eq!(told, ["lone", "saga:a", "saga:b"], "each once");
    assert_eq!(kinds(2).await.len(), 2, "no more than asked");
}

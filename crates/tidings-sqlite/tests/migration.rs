//! A database that the first version wrote is opened by this one: nothing that it kept is lost, and
//! the order of its messages holds.

use std::{path::Path, time::Duration};

use tidings_core::{
    Ask, Claim, Commit, Committed, Destination, Envelope, InboxEntry, InboxState, Lane, OutboxRow,
    OutboxState, Outgoing, Refusal, Seen, Store, Unrouted, hash_of_key,
};
use tidings_sqlite::{
    SqliteStore,
    rusqlite::{Connection, params},
};

/// The tables as version `0001` made them.
const OLD: &str = "
    create table tidings_migration (
        owner text not null, name text not null, run_at integer not null,
        primary key (owner, name)
    ) strict, without rowid;
    insert into tidings_migration values ('tidings', '0001', 0);
    create table tidings_inbox (
        claim integer primary key, consumer text not null, message text not null,
        claimed_at integer not null, unique (consumer, message)
    ) strict;
    create table tidings_outbox (
        position integer primary key autoincrement, lane integer not null,
        created_at integer not null, deferred_until integer, message text not null,
        body blob not null
    ) strict;
    create index tidings_outbox_ready on tidings_outbox (lane, position)
        where deferred_until is null;
    create index tidings_outbox_deferred on tidings_outbox (deferred_until)
        where deferred_until is not null;
    create table tidings_lane (
        lane integer primary key, relay text, leased_until integer not null
    ) strict;
    with recursive numbers (lane) as (
        select 0 union all select lane + 1 from numbers where lane < 15
    )
    insert into tidings_lane (lane, leased_until) select lane, 0 from numbers;";

const LONG_AGO: i64 = 1_700_000_000_000;
const FAR_AWAY: i64 = 4_000_000_000_000;

fn make_old(path: &Path, fill: impl FnOnce(&Connection)) {
    let connection = Connection::open(path).expect("a file");
    connection
        .pragma_update(None, "journal_mode", "wal")
        .expect("WAL");
    connection.execute_batch(OLD).expect("the old tables");
    fill(&connection);
}

fn send(connection: &Connection, key: &str, deferred_until: Option<i64>, message: &str) {
    connection
        .execute(
            "insert into tidings_outbox (lane, created_at, deferred_until, message, body) \
             values (?1, ?2, ?3, ?4, x'7b7d')",
            params![Lane::of(key).0, LONG_AGO, deferred_until, message],
        )
        .expect("an old row");
}

fn lanes() -> Vec<Lane> {
    (0..Lane::COUNT).map(Lane).collect()
}

async fn open(path: &Path) -> SqliteStore {
    SqliteStore::open(path)
        .await
        .expect("it is brought up to date")
}

async fn next(store: &SqliteStore, held: &[Destination]) -> Vec<OutboxRow> {
    let rows = store.outbox().next(&lanes(), held, &[], 10_000).await;
    rows.expect("rows")
}

fn names(rows: &[OutboxRow]) -> Vec<&str> {
    let messages = rows.iter().map(|row| row.message.as_ref());
    messages
        .map(|message| &*message.expect("it can be read").envelope.name)
        .collect()
}

#[tokio::test]
async fn claims_are_handled_messages() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.db");
    make_old(&path, |connection| {
        for message in ["1", "2", "3"] {
            let claim = "insert into tidings_inbox (consumer, message, claimed_at) \
                         values ('c', ?1, ?2)";
            connection
                .execute(claim, (message, LONG_AGO))
                .expect("an old row");
        }
    });
    let store = open(&path).await;
    let claim = |message: &str| Claim {
        consumer: "c".into(),
        message: message.to_owned().into(),
    };
    let ask = |message| Ask {
        claim: claim(message),
        order: None,
    };
    let seen = store.look(&[ask("1"), ask("4")]).await.expect("an answer");
    let handled = Seen {
        state: Some(InboxState::Handled),
        ..Seen::default()
    };
    assert_eq!(seen, [handled, Seen::default()]);
    let again = |message| Commit {
        inbox: vec![InboxEntry::handled(claim(message))],
        ..Commit::default()
    };
    let committed = store.commit(again("1")).await.expect("an answer");
    let known = Committed::Refused {
        entry: 0,
        why: Refusal::Known,
    };
    assert_eq!(committed, known);
    let committed = store.commit(again("4")).await.expect("an answer");
    assert_eq!(committed, Committed::Done);

    let old = Duration::from_secs(24 * 60 * 60);
    assert_eq!(store.forget("c", old, 2).await.expect("an answer"), 2);
    assert_eq!(store.forget("c", old, 2).await.expect("an answer"), 1);
    assert_eq!(store.forget("c", old, 2).await.expect("an answer"), 0);
}

#[tokio::test]
async fn unsent_messages_are_ready_in_their_order_and_keep_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.db");
    make_old(&path, |connection| {
        let deferred = Some(FAR_AWAY);
        send(
            connection,
            "k",
            deferred,
            r#"{"topic":"t","name":"1","key":"k"}"#,
        );
        send(
            connection,
            "k",
            None,
            r#"{"topic":"t","name":"2","key":"k"}"#,
        );
        send(
            connection,
            "k",
            None,
            r#"{"queue":"q","name":"3","key":"k"}"#,
        );
        send(
            connection,
            "l",
            None,
            r#"{"topic":"t","name":"4","key":"l"}"#,
        );
        send(
            connection,
            "m",
            deferred,
            r#"{"topic":"t","name":"5","id":"m"}"#,
        );
    });
    let store = open(&path).await;
    let rows = next(&store, &[]).await;
    assert_eq!(names(&rows), ["1", "2", "3", "4", "5"]);
    assert!(rows.iter().all(|row| !row.is_behind));
    let to: Vec<Destination> = rows
        .iter()
        .map(|row| row.message.as_ref().expect("readable").destination.clone())
        .collect();
    assert_eq!(to[2], Destination::queue("q"));

    // The order of a key holds between old rows, and between old ones and new ones.
    let leased = store.outbox().lease("r", Duration::from_secs(60)).await;
    assert_eq!(leased.expect("an answer").lanes, lanes());
    let held = store
        .outbox()
        .hold("r", &[rows[0].position], "nobody")
        .await;
    held.expect("it is held");
    let mut new = rows[1].message.as_ref().expect("readable").clone();
    new.envelope.name = "6".into();
    let commit = Commit {
        outbox: vec![new],
        ..Commit::default()
    };
    store.commit(commit).await.expect("it commits");
    let held = store.outbox().held(&lanes()).await.expect("an answer");
    assert_eq!(held, [Destination::topic("t")]);
    let rows = next(&store, &held).await;
    let behind: Vec<(&str, bool)> = names(&rows)
        .into_iter()
        .zip(rows.iter().map(|row| row.is_behind))
        .collect();
    let expected = [
        ("2", true),
        ("3", false),
        ("4", false),
        ("5", false),
        ("6", true),
    ];
    assert_eq!(behind, expected);

    let stats = store.outbox().stats().await.expect("stats");
    assert_eq!((stats.ready, stats.held, stats.set_aside), (5, 1, 0));
    assert!(stats.oldest_ready_age > Duration::from_secs(24 * 60 * 60));
}

#[tokio::test]
async fn an_old_row_that_cannot_be_read_is_set_aside_and_stops_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.db");
    make_old(&path, |connection| {
        send(connection, "k", None, "{");
        send(connection, "k", None, r#"{"topic":"t","key":"no name"}"#);
        send(connection, "k", None, r#"{"name":"goes nowhere"}"#);
        connection
            .execute(
                "insert into tidings_outbox (lane, created_at, message, body) \
                 values (0, 0, cast(x'ff' as text), x'')",
                (),
            )
            .expect("a text that is none");
        send(connection, "k", None, r#"{"topic":"t","name":"good"}"#);
    });
    let store = open(&path).await;
    assert_eq!(names(&next(&store, &[]).await), ["good"]);
    let aside = store.outbox().list(OutboxState::SetAside, None, 10).await;
    let aside = aside.expect("rows");
    assert_eq!(aside.len(), 4);
    assert_eq!(
        aside[1].destination,
        Destination::topic("t"),
        "it can be guessed"
    );
    for row in aside {
        assert!(row.message.is_none());
        assert!(row.reason.contains("cannot be read: "), "{}", row.reason);
    }
}

#[tokio::test]
async fn many_old_rows_are_all_found_by_destination_and_key_and_lanes_stay_leased() {
    const ROWS: i64 = 2500;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.db");
    make_old(&path, |connection| {
        let fill = "with recursive numbers (number) as (
                select 1 union all select number + 1 from numbers where number < ?1
            )
            insert into tidings_outbox (lane, created_at, message, body)
            select 3, 0, '{\"topic\":\"t\",\"name\":\"n\",\"key\":\"k\"}', x'' from numbers";
        connection.execute(fill, (ROWS,)).expect("rows");
        let lease = "update tidings_lane set relay = 'old', leased_until = ?1 where lane < 4";
        connection.execute(lease, (FAR_AWAY,)).expect("a lease");
    });
    let store = open(&path).await;
    let hash = hash_of_key("k").cast_signed();
    let routed: i64 = store
        .read(move |connection| {
            let count = "select count(*) from tidings_outbox \
                         where destination = 'topic:t' and key_hash = ?1 and state = 0";
            connection.query_one(count, (hash,), |row| row.get(0))
        })
        .await
        .expect("a count");
    assert_eq!(routed, ROWS);
    let leased = store.outbox().lease("new", Duration::from_secs(60)).await;
    let leased = leased.expect("an answer").lanes;
    assert_eq!(leased, lanes()[4..], "the old relay's lease has not ended");
    drop(store);
    // Opening it again changes nothing.
    assert_eq!(next(&open(&path).await, &[]).await.len(), 2500);
}

#[tokio::test]
async fn an_old_file_can_keep_events() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.db");
    make_old(&path, |connection| {
        send(
            connection,
            "k",
            None,
            r#"{"topic":"t","name":"before","key":"k"}"#,
        );
    });
    let store = open(&path).await;
    let log = store.log().expect("a log");
    log.keep(Duration::from_secs(3600));
    let event = Outgoing {
        destination: Destination::topic("t"),
        unrouted: Unrouted::Hold,
        envelope: Envelope::new("after", "{}"),
    };
    let commit = Commit {
        outbox: vec![event.clone()],
        ..Commit::default()
    };
    store.commit(commit).await.expect("it commits");
    let until = log.horizon().await.expect("an end");
    let page = log.read(0, until, 10).await.expect("a page");
    let kept: Vec<_> = page.entries.iter().flat_map(|it| &it.message).collect();
    assert_eq!(kept, [&event]);
    assert_eq!(names(&next(&store, &[]).await), ["before", "after"]);
}

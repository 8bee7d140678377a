//! What an error says: whether to wait, to try again, or to give the message up. And that one bad
//! value harms nothing else.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use server::{SOON, claim, commit, deferred, fresh_schema, message, of, open, ordered, waiting};
use tidings_core::{
    Ask, Commit, Committed, Expected, Fate, InboxEntry, OrderKey, RecordChange, RecordId,
    RecordValue, Store, StoreError, TransactionSlot,
};
use tidings_postgres::{PostgresOptions, PostgresStore, Tx};
use tidings_testing::servers::Postgres;

mod server;

/// Everything that may come from outside, with a NUL in it, which PostgreSQL's texts cannot hold.
fn with_a_nul() -> Vec<(&'static str, Commit)> {
    let bad_order = OrderKey {
        group: "g".into(),
        key: "k\0".into(),
    };
    let ordered = InboxEntry {
        order: Some(bad_order),
        ..deferred("fine", Duration::ZERO)
    };
    let mut bad_topic = message("t", "fine", None);
    bad_topic.destination = tidings_core::Destination::Topic("t\0".into());
    let record = RecordChange {
        id: RecordId::new("kind", "id\0"),
        expected: Expected::Anything,
        value: Some(RecordValue::default()),
    };
    vec![
        ("an id", of(InboxEntry::handled(claim("a\0b")))),
        ("a deferred id", of(deferred("a\0b", Duration::ZERO))),
        ("a key", of(ordered)),
        (
            "a destination",
            Commit {
                outbox: vec![bad_topic],
                ..Commit::default()
            },
        ),
        (
            "a record",
            Commit {
                records: vec![record],
                ..Commit::default()
            },
        ),
        // Longer than an index can hold, and not to be compressed.
        ("a long id", of(InboxEntry::handled(claim(noise(20_000))))),
    ]
}

fn noise(length: usize) -> String {
    let mut state = 7_u64;
    let letters = (0..length).map(|_| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        char::from(b'!' + u8::try_from((state >> 40) % 90).unwrap_or(0))
    });
    letters.collect()
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn what_the_database_cannot_hold_is_invalid_and_the_connection_goes_on() {
    // One connection for transactions: whatever follows runs on the one that failed.
    let options = PostgresOptions::new(server::url(), fresh_schema()).connections_max(5);
    let store = options.connect().await.expect("a store");
    for (what, bad) in with_a_nul() {
        let error = store.commit(bad.clone()).await.expect_err(what);
        assert!(error.is_invalid(), "{what}: {error}");
        let transaction = store.begin().await.expect("a transaction");
        let error = transaction.commit(bad).await.expect_err(what);
        assert!(error.is_invalid(), "{what} in a transaction: {error}");
        let fine = commit(&store, InboxEntry::handled(claim(what))).await;
        assert_eq!(fine, Committed::Done, "after {what}");
    }
    let asked = [Ask {
        claim: claim("a\0b"),
        order: None,
    }];
    let error = store.look(&asked).await.expect_err("it cannot be there");
    assert!(error.is_invalid(), "{error}");
    let count = server::number(&store, "select count(*) from tidings_outbox", &[]).await;
    assert_eq!(count, 0, "nothing of what failed stayed");
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_reason_with_a_nul_still_sets_the_row_aside() {
    let store = open(&fresh_schema()).await;
    server::send(&store, vec![message("t", "1", None)]).await;
    let outbox = store.outbox();
    let lease = Duration::from_secs(60);
    let lanes = outbox.lease("relay", lease).await.expect("lanes").lanes;
    let rows = outbox.next(&lanes, &[], &[], 10).await.expect("rows");
    let aside = outbox.set_aside("relay", &[rows[0].position], "a\0b").await;
    aside.expect("a reason is for people");
    let stats = outbox.stats().await.expect("counts");
    assert_eq!((stats.ready, stats.set_aside), (0, 1));
}

/// No statement of it failed at its end: the server answers `commit` with a rollback, which is
/// no error to the driver.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_commit_after_a_statement_that_failed_and_was_ignored_is_an_error() {
    let store = open(&fresh_schema()).await;
    let tables = [("0001", "create table a (x int primary key)")];
    store.migrate(&tables).await.expect("a table");
    for commit in [
        Commit::default(),
        of(InboxEntry::handled(claim("1"))),
        of(ordered("2", "k", Fate::Deferred(waiting(Duration::ZERO)))),
    ] {
        let slot = TransactionSlot::new(store.clone().into());
        let slot = Arc::new(slot);
        let mut tx = Tx::from(slot.handle());
        for _ in 0..2 {
            // The second fails, and nobody looks.
            let _ = tx.execute("insert into a values (1)", &[]).await;
        }
        drop(tx);
        let transaction = slot.take().expect("handed back").expect("begun");
        let error = transaction.commit(commit).await;
        let error = error.expect_err("nothing was committed").to_string();
        assert!(error.contains("was ignored"), "{error}");
    }
    let count = server::number(&store, "select count(*) from a", &[]).await;
    assert_eq!(count, 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn who_loses_a_deadlock_or_a_lock_time_out_may_try_again() {
    let store = open(&fresh_schema()).await;
    let holder = server::begin(&store).await;
    holder
        .batch_execute("insert into tidings_inbox (consumer, message) values ('c', '1')")
        .await
        .expect("a claim that is not committed");
    let slot = Arc::new(TransactionSlot::new(store.clone().into()));
    let mut tx = Tx::from(slot.handle());
    tx.execute("set local lock_timeout = '50ms'", &[])
        .await
        .expect("set");
    drop(tx);
    let transaction = slot.take().expect("handed back").expect("begun");
    let error = transaction
        .commit(of(InboxEntry::handled(claim("1"))))
        .await
        .expect_err("it waited in vain");
    assert!(error.is_conflict(), "{error}");
    holder.batch_execute("rollback").await.expect("undone");
    drop(holder);

    assert!(deadlock(&store).await.is_conflict());
}

/// Two transactions that each hold what the other wants.
async fn deadlock(store: &PostgresStore) -> StoreError {
    let holder = server::begin(store).await;
    let claim_of = "insert into tidings_inbox (consumer, message) values ('c', $1)";
    holder
        .batch_execute("set local deadlock_timeout = '60s'")
        .await
        .expect("it does not look for deadlocks");
    holder.execute(claim_of, &[&"x"]).await.expect("x");
    let slot = Arc::new(TransactionSlot::new(store.clone().into()));
    let mut tx = Tx::from(slot.handle());
    tx.execute(claim_of, &[&"y"]).await.expect("y");
    drop(tx);
    let transaction = slot.take().expect("handed back").expect("begun");
    let wants_y = tokio::spawn(async move {
        // Waits for the other, which loses.
        let done = holder.execute(claim_of, &[&"y"]).await;
        holder.batch_execute("rollback").await.expect("undone");
        done.map(drop)
    });
    let lost = transaction
        .commit(of(InboxEntry::handled(claim("x"))))
        .await
        .expect_err("one of the two loses");
    wants_y.await.expect("an end").expect("the other wins");
    lost
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_database_that_goes_away_is_unavailable_and_found_again() {
    let mut postgres = Postgres::start().expect("a server of its own");
    let options = PostgresOptions::new(postgres.url(), "s");
    let store = options.connect().await.expect("a store");
    commit(&store, InboxEntry::handled(claim("1"))).await;
    let transaction = store.begin().await.expect("a transaction");
    postgres.stop().expect("it stops");

    let entry = InboxEntry::handled(claim("2"));
    let error = transaction.commit(of(entry)).await;
    let error = error.expect_err("it is away");
    assert!(error.is_unavailable(), "{error}");
    let began = Instant::now();
    let error = store.outbox().stats().await.expect_err("it is away");
    assert!(error.is_unavailable(), "{error}");
    assert!(began.elapsed() < SOON, "a relay hears soon");

    postgres.restart().expect("it starts");
    server::until("it is found again", async || {
        store.outbox().stats().await.is_ok()
    })
    .await;
    let again = commit(&store, InboxEntry::handled(claim("1"))).await;
    assert!(again.is_known());
}

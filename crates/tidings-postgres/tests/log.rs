//! What is peculiar to the log on PostgreSQL: positions are committed late, segments are emptied while
//! others read and write.

use std::time::Duration;

use server::{fresh_schema, message, open, send};
use tidings_core::{Log, Store};
use tidings_postgres::PostgresStore;
use tokio::time::timeout;

mod server;

const HOUR: Duration = Duration::from_secs(3600);

async fn keeping() -> PostgresStore {
    let store = open(&fresh_schema()).await;
    log(&store).keep(HOUR);
    store
}

fn log(store: &PostgresStore) -> &dyn Log {
    store.log().expect("a log")
}

async fn ids(store: &PostgresStore, after: i64, until: i64) -> Vec<String> {
    let page = log(store).read(after, until, 100).await.expect("a page");
    let messages = page.entries.iter().map(|entry| &entry.message);
    let ids = messages.map(|message| message.as_ref().expect("readable").envelope.id.clone());
    ids.map(|id| id.expect("an id").as_str().to_owned())
        .collect()
}

/// Writes an event as a commit does, in a transaction that is open.
const WRITE: &str = "
    with written as (
        insert into tidings_outbox (lane, destination, key_hash, message, body)
        values (0, 'topic:t', null, '{\"topic\":\"t\",\"name\":\"n\",\"id\":\"late\"}', '')
        returning position, created_at, message, body
    )
    insert into tidings_log (segment, position, written, message, body)
    select (select segment from tidings_log_state), position, created_at, message, body
    from written";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_reader_waits_for_an_event_that_is_committed_after_later_ones() {
    let store = keeping().await;
    send(&store, vec![message("t", "first", None)]).await;
    let late = server::begin(&store).await;
    late.batch_execute(WRITE).await.expect("it writes");
    send(&store, vec![message("t", "early", None)]).await;
    // Somebody else who writes, and has nothing to do with the log.
    let stranger = server::begin(&store).await;
    stranger
        .batch_execute("insert into tidings_relay values ('x', now())")
        .await
        .expect("it writes");

    let mut horizon = Box::pin(log(&store).horizon());
    let waited = timeout(Duration::from_millis(400), horizon.as_mut()).await;
    assert!(waited.is_err(), "an earlier position is not committed yet");
    // One that begins afterwards is not waited for.
    let later = server::begin(&store).await;
    later.batch_execute(WRITE).await.expect("it writes");
    late.batch_execute("commit").await.expect("it commits");
    let until = timeout(Duration::from_secs(5), horizon).await;
    let until = until.expect("nobody is in the way").expect("an end");
    assert_eq!(ids(&store, 0, until).await, ["first", "late", "early"]);
    later.batch_execute("rollback").await.expect("it ends");
    stranger.batch_execute("rollback").await.expect("it ends");
    let end = log(&store).horizon().await.expect("an end");
    assert!(ids(&store, until, end).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_segment_that_somebody_reads_is_dropped_the_next_time_and_nobody_waits_for_it() {
    let store = keeping().await;
    send(&store, vec![message("t", "old", None)]).await;
    let report = server::begin(&store).await;
    report
        .query("select count(*) from tidings_log", &[])
        .await
        .expect("it reads");
    let dropped = log(&store).drop_older(Duration::ZERO).await;
    assert_eq!(dropped.expect("it gives up"), 0);
    let sent = timeout(
        Duration::from_secs(2),
        send(&store, vec![message("t", "new", None)]),
    );
    sent.await.expect("commits go on");
    report.batch_execute("rollback").await.expect("it ends");
    let dropped = log(&store).drop_older(Duration::ZERO).await;
    assert_eq!(dropped.expect("it drops"), 2, "each in its segment");
    let page = log(&store).read(0, i64::MAX, 10).await.expect("a page");
    assert!(page.entries.is_empty());
    assert_eq!(page.dropped_until, 2);
}

/// What a commit costs that keeps nothing does not grow: its statements do not name the log.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn who_keeps_no_events_has_nothing_to_do_with_the_log() {
    let store = open(&fresh_schema()).await;
    // Whoever touched it would fail.
    let client = store.client().await.expect("a connection");
    client
        .batch_execute("drop table tidings_log, tidings_log_state")
        .await
        .expect("they are gone");
    send(&store, vec![message("t", "1", Some("key"))]).await;
    let transaction = store.begin().await.expect("a transaction");
    let commit = tidings_core::Commit {
        outbox: vec![message("t", "2", Some("key"))],
        ..server::of(tidings_core::InboxEntry::handled(server::claim("1")))
    };
    transaction.commit(commit).await.expect("it commits");
}

//! What is peculiar to the log on SQLite: a segment ends at a size, and is dropped by itself.

use std::time::Duration;

use tidings_core::{Commit, Destination, Envelope, Log, Outgoing, Store, Unrouted};
use tidings_sqlite::SqliteStore;

const HOUR: Duration = Duration::from_secs(3600);

async fn open() -> (SqliteStore, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let store = SqliteStore::open(folder.path().join("a.db")).await;
    (store.expect("a store"), folder)
}

fn log(store: &SqliteStore) -> &dyn Log {
    store.log().expect("a log")
}

/// Commits `count` events of a mebibyte, one by one.
async fn send(store: &SqliteStore, count: usize) {
    for _ in 0..count {
        let commit = Commit {
            outbox: vec![Outgoing {
                destination: Destination::topic("photos"),
                unrouted: Unrouted::Hold,
                envelope: Envelope::new("photo-taken.v1", vec![7; 1024 * 1024]),
            }],
            ..Commit::default()
        };
        store.commit(commit).await.expect("it commits");
    }
}

/// How many events are in each segment.
async fn segments(store: &SqliteStore) -> Vec<usize> {
    let read = store.read(|connection| {
        let list = "select name from sqlite_master where name glob 'tidings_log_[0-9]*' \
                    order by cast(substr(name, 13) as integer)";
        let mut names = connection.prepare(list)?;
        let names: Vec<String> = names
            .query_map((), |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let count = |name: &String| {
            let count = format!("select count(*) from {name}");
            connection.query_one(&count, (), |row| Ok(row.get::<_, i64>(0)? as usize))
        };
        names.iter().map(count).collect::<Result<Vec<_>, _>>()
    });
    read.await.expect("segments")
}

#[tokio::test]
async fn a_segment_ends_at_sixteen_mebibytes_and_old_ones_are_dropped_one_by_one() {
    let (store, _folder) = open().await;
    log(&store).keep(HOUR);
    send(&store, 40).await;
    assert_eq!(segments(&store).await, [16, 16, 8]);
    let page = log(&store).read(0, i64::MAX, 100).await.expect("a page");
    let positions: Vec<i64> = page.entries.iter().map(|entry| entry.position).collect();
    assert!(positions.iter().copied().eq(1..=40), "{positions:?}");
    let page = log(&store).read(15, 34, 100).await.expect("a page");
    assert_eq!(page.entries.len(), 19, "across segments");
    assert_eq!(log(&store).drop_older(HOUR).await.expect("none is old"), 0);
    assert_eq!(
        log(&store)
            .drop_older(Duration::ZERO)
            .await
            .expect("dropped"),
        3
    );
    assert_eq!(segments(&store).await, [0; 0]);
    send(&store, 1).await;
    assert_eq!(segments(&store).await, [1]);
    let page = log(&store).read(0, i64::MAX, 100).await.expect("a page");
    assert_eq!((page.entries[0].position, page.dropped_until), (41, 40));
}

#[tokio::test]
async fn who_keeps_no_events_has_nothing_to_do_with_the_log() {
    let (store, _folder) = open().await;
    // Whoever touched it would fail.
    let gone = "drop table tidings_log_segment; drop table tidings_log_state";
    let gone = store.write(move |connection| connection.execute_batch(gone));
    gone.await.expect("they are gone");
    send(&store, 1).await;
}

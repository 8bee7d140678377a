//! Bad surroundings are one clear error that says what to do, and damage nothing.

use std::path::Path;

use tidings_core::{Commit, Store};
use tidings_sqlite::{SqliteOptions, SqliteStore, rusqlite::Connection};

const ONE: &[(&str, &str)] = &[("0001", "create table a (x)")];
const TWO: &[(&str, &str)] = &[
    ("0001", "create table a (x)"),
    ("0002", "create table b (x)"),
];

async fn check(path: impl AsRef<Path>, expected: &str) {
    let error = SqliteStore::open(path.as_ref())
        .await
        .map(|_| ())
        .expect_err("it must not open");
    assert!(error.to_string().contains(expected), "{error}");
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_refused_with_the_way_out() {
    let folder = tempfile::tempdir().expect("a folder");
    check(
        folder.path().join("no/such/folder/a.db"),
        "folder must exist",
    )
    .await;
    check(folder.path(), "cannot be opened").await;

    let text = folder.path().join("text.db");
    std::fs::write(
        &text,
        "this is not a database, but long enough to look".repeat(50),
    )
    .expect("a file");
    check(&text, "not an intact SQLite database").await;
    let kept = std::fs::read_to_string(&text).expect("it is still there");
    assert!(
        kept.starts_with("this is not a database"),
        "nothing was damaged"
    );
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.db");
    drop(SqliteStore::open(&path).await.expect("a new database"));
    Connection::open(&path)
        .and_then(|connection| {
            connection.execute(
                "insert into tidings_migration values ('tidings', '9999', 0)",
                (),
            )
        })
        .expect("the database of a later day");
    check(&path, "written by a newer version").await;
}

#[tokio::test]
async fn an_applications_migrations_run_once_and_a_newer_one_is_refused() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = SqliteStore::open(folder.path().join("a.db"))
        .await
        .expect("a new database");
    store.migrate(ONE).await.expect("the first version");
    store.migrate(ONE).await.expect("the same again");
    store.migrate(TWO).await.expect("the second version");
    store
        .write(|connection| connection.execute("insert into b values (1)", ()))
        .await
        .expect("the second version's table");
    let error = store
        .migrate(ONE)
        .await
        .expect_err("the first version must not run now");
    assert!(
        error.to_string().contains("written by a newer version"),
        "{error}"
    );

    let broken: &[(&str, &str)] = &[
        TWO[0],
        TWO[1],
        ("0003", "create table c (x); create nonsense"),
    ];
    let error = store.migrate(broken).await.expect_err("it is no SQL");
    assert!(
        error.to_string().contains("run migration `0003`"),
        "{error}"
    );
    store
        .migrate(TWO)
        .await
        .expect("nothing of the broken one stayed");
}

#[tokio::test]
async fn a_full_disk_is_an_error_that_loses_nothing_and_passes() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = SqliteStore::open(folder.path().join("a.db"))
        .await
        .expect("a new database");
    store.migrate(ONE).await.expect("a table");
    let pages = |pages: i64| {
        store.write(move |connection| {
            connection.pragma_update(None, "max_page_count", pages)?;
            Ok(())
        })
    };
    pages(1)
        .await
        .expect("SQLite keeps the pages there are and takes no more");
    let error = store
        .write(|connection| connection.execute("insert into a values (zeroblob(1000000))", ()))
        .await
        .expect_err("there is no space");
    assert!(error.to_string().contains("the disk is full"), "{error}");
    assert!(error.is_unavailable(), "it is not the writer's fault");
    pages(1_000_000).await.expect("there is space again");
    store
        .write(|connection| connection.execute("insert into a values (zeroblob(1000000))", ()))
        .await
        .expect("and it is used");
    store.commit(Commit::default()).await.expect("all is well");
}

#[tokio::test]
async fn a_database_that_another_program_keeps_locked_is_unavailable_until_it_is_free() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.db");
    let store = SqliteStore::open(&path).await.expect("a new database");
    store.migrate(ONE).await.expect("a table");
    let other = Connection::open(&path).expect("another connection");
    other.execute_batch("begin immediate").expect("a lock");
    let insert = || store.write(|connection| connection.execute("insert into a values (1)", ()));
    let error = insert().await.expect_err("it is locked");
    assert!(error.is_unavailable(), "{error}");
    assert!(error.to_string().contains("kept it locked"), "{error}");
    other.execute_batch("commit").expect("the lock is freed");
    insert().await.expect("it is free");

    let violated = store.write(|connection| {
        connection.execute_batch("create unique index once on a (x); insert into a values (1)")
    });
    let error = violated.await.expect_err("it is there already");
    assert!(!error.is_unavailable() && !error.is_conflict(), "{error}");
}

#[tokio::test]
async fn who_operates_a_database_makes_none_and_brings_none_up_to_date() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    let refused = async |name: &str, expected: &str| {
        let options = SqliteOptions::new(at(name));
        for options in [options.clone().existing(), options.read_only()] {
            let error = options
                .open()
                .await
                .map(drop)
                .expect_err("it must not open");
            assert!(error.to_string().contains(expected), "{error}");
        }
    };
    refused("none.db", "open").await;
    assert!(!at("none.db").exists());
    Connection::open(at("other.db"))
        .and_then(|other| other.execute_batch("create table a (x)"))
        .expect("a database of somebody else");
    refused("other.db", "none of the toolkit's tables").await;

    drop(SqliteStore::open(at("a.db")).await.expect("a database"));
    for (sql, expected) in [
        (
            "insert into tidings_migration values ('tidings', '9999', 0)",
            "a newer version",
        ),
        (
            "delete from tidings_migration where name > '0001'",
            "an older version",
        ),
    ] {
        Connection::open(at("a.db"))
            .and_then(|it| it.execute_batch(sql))
            .expect("another version");
        refused("a.db", expected).await;
    }
}

#[tokio::test]
async fn a_store_that_only_reads_sees_what_is_committed_and_writes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("a.db");
    let store = SqliteStore::open(&path).await.expect("a new database");
    let reader = SqliteOptions::new(&path).read_only().open().await;
    let reader = reader.expect("it is there");
    store.migrate(ONE).await.expect("a table");
    let insert = "insert into a values (1)";
    let written = store.write(move |it| it.execute(insert, ())).await;
    written.expect("it is written");
    let count = reader.read(|it| it.query_row("select count(*) from a", (), |row| row.get(0)));
    let count: u32 = count.await.expect("it is read");
    assert_eq!(count, 1);
    for write in [reader.write(move |it| it.execute(insert, ())).await, {
        reader.read(move |it| it.execute(insert, ())).await
    }] {
        let error = write.expect_err("it must not write");
        assert!(error.to_string().contains("cannot be written"), "{error}");
    }
    let existing = SqliteOptions::new(&path).existing().open().await;
    let written = existing
        .expect("it is there")
        .write(move |it| it.execute(insert, ()))
        .await;
    written.expect("who may write writes");
}

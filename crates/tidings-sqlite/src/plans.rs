//! Statements that run while much is stored find their rows through an index, whatever else there
//! is: none walks a table, and none sorts.

use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use rusqlite::Connection;
use tempfile::TempDir;
use tidings_core::Lane;

use crate::{Access, deferred, inbox, outbox, records, schema};

fn database() -> (TempDir, Connection) {
    let folder = tempfile::tempdir().expect("a folder");
    let connection = schema::open_writer(&folder.path().join("test.db"), Access::Own);
    let connection = connection.expect("a database");
    (folder, connection)
}

/// The steps of a statement's plan, as SQLite tells them.
fn plan(connection: &Connection, sql: &str) -> Vec<String> {
    let mut explain = connection
        .prepare(&format!("explain query plan {sql}"))
        .expect("SQL");
    let parameters = explain.parameter_count();
    let steps = explain
        .query_map(
            rusqlite::params_from_iter(std::iter::repeat_n(1, parameters)),
            |row| row.get("detail"),
        )
        .expect("a plan");
    steps.collect::<rusqlite::Result<_>>().expect("steps")
}

#[track_caller]
fn check(connection: &Connection, sql: &str, index: &str) {
    let plan = plan(connection, sql);
    assert!(
        plan.iter()
            .any(|step| step.contains(&format!("INDEX {index} ")) || step.ends_with(index)),
        "`{index}` is not used: {plan:#?}\n{sql}"
    );
    for step in &plan {
        let reads_all = step.starts_with("SCAN tidings_")
            && !step.starts_with("SCAN tidings_lane")
            && !step.contains(index);
        assert!(
            !reads_all && !step.contains("TEMP B-TREE") && !step.contains("AUTOMATIC"),
            "`{step}` costs more the more there is:\n{sql}"
        );
    }
}

#[test]
fn every_statement_that_must_not_walk_a_table_has_its_index() {
    let (_folder, connection) = database();
    for (sql, index) in [
        (
            outbox::READY,
            "tidings_outbox_ready (lane=? AND position>?)",
        ),
        (outbox::ROWS, "INTEGER PRIMARY KEY (rowid>? AND rowid<?)"),
        (
            outbox::CONFIRMED,
            "INTEGER PRIMARY KEY (rowid>? AND rowid<?)",
        ),
        (outbox::OLDEST_READY, "tidings_outbox_ready"),
        (outbox::COUNT_READY, "tidings_outbox_ready"),
        (
            outbox::HELD_AFTER,
            "tidings_outbox_held (lane=? AND destination>?)",
        ),
        (
            outbox::NEXT_HELD,
            "tidings_outbox_held (lane=? AND destination=?)",
        ),
        (
            outbox::IS_HELD,
            "tidings_outbox_held_key (destination=? AND key_hash=?)",
        ),
        (
            outbox::LIST,
            "tidings_outbox_state (state=? AND position>?)",
        ),
        (outbox::COUNT_SET_ASIDE, "tidings_outbox_state"),
        (outbox::OLDEST_HELD, "tidings_outbox_state"),
        (
            inbox::FORGET,
            "tidings_inbox_handled (consumer=? AND changed_at<?)",
        ),
        (
            inbox::HEAD,
            "tidings_inbox_head (order_group=? AND order_key=?)",
        ),
        (inbox::GO_ON, "tidings_inbox_parked"),
        (inbox::GO_ON, "tidings_inbox_head"),
        (deferred::DUE, "tidings_inbox_due (consumer=? AND due_at<?)"),
        (deferred::NEXT_DUE, "tidings_inbox_due (consumer=?)"),
        (deferred::WAITING, "tidings_inbox_open"),
        (
            deferred::LIST_OF,
            "tidings_inbox_open (consumer=? AND state=? AND claim>?)",
        ),
        (deferred::LIST, "tidings_inbox_state (state=? AND claim>?)"),
        (records::DUE, "tidings_record_due (kind=? AND take_us<?)"),
        (records::NEXT_DUE, "tidings_record_due"),
        (
            deferred::CONSUMERS,
            "sqlite_autoindex_tidings_inbox_1 (consumer>?)",
        ),
        (records::KINDS, "(kind>?)"),
        (
            records::PUT_OVER_VERSION,
            "sqlite_autoindex_tidings_record_1 (kind=? AND id=?)",
        ),
        (
            records::PUT_OVER_LEASE,
            "sqlite_autoindex_tidings_record_1 (kind=? AND id=?)",
        ),
        (records::LIST, "tidings_record_written"),
        (records::LIST_LABEL, "tidings_record_label"),
    ] {
        check(&connection, sql, index);
    }
    // Any index that holds no other rows will do for a count.
    let plan = plan(&connection, outbox::COUNT_HELD);
    assert!(
        plan.iter().any(|step| step.contains("tidings_outbox_held")),
        "{plan:?}"
    );
}

/// How many steps SQLite's virtual machine takes for `work`: the same however busy the computer is.
fn steps(connection: &Connection, work: impl FnOnce(&Connection) -> rusqlite::Result<()>) -> u64 {
    let steps = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&steps);
    let count = move || {
        counted.fetch_add(1, Ordering::Relaxed);
        false
    };
    connection
        .progress_handler(1, Some(count))
        .expect("a handler");
    work(connection).expect("it works");
    connection
        .progress_handler(1, None::<fn() -> bool>)
        .expect("no handler");
    steps.load(Ordering::Relaxed)
}

/// Rows of lane 0, half of them for each of two destinations, a key for each thousand.
const FILL_OUTBOX: &str = "\
with recursive numbers (number) as (
    select 1 union all select number + 1 from numbers where number < ?1
)
insert into tidings_outbox (lane, created_at, state, destination, key_hash, message, body)
select 0, 0, ?2, 'topic:' || (number % 2), number % 1000, ?3, x''
from numbers";

const MESSAGE: &str = r#"{"topic":"0","name":"noted.v1","key":"k"}"#;

#[test]
fn what_is_held_or_handled_does_not_slow_down_what_is_ready() {
    const HELD: i64 = 200_000;
    const READY: i64 = 100;
    let (_folder, connection) = database();
    let fill = |count: i64, state: i64| {
        connection
            .execute(FILL_OUTBOX, (count, state, MESSAGE))
            .expect("rows");
    };
    let lanes: Vec<Lane> = (0..Lane::COUNT).map(Lane).collect();
    let round = |connection: &Connection| {
        let held = HashSet::from(["topic:0".to_owned()]);
        let rows = outbox::next(connection, &lanes, &held, &[], 50)?;
        assert_eq!(rows.len(), 50);
        let behind = rows.iter().filter(|row| row.is_behind).count();
        let destinations = outbox::held(connection, &lanes)?;
        assert_eq!(destinations.len(), 2);
        // Every second row goes to the one destination that is asked about.
        assert_eq!(behind, 25);
        let probe = outbox::next_held(connection, &lanes, "topic:0", 1)?;
        assert_eq!(probe.len(), 1);
        Ok(())
    };
    fill(READY, 0);
    // As many as there are keys, so that each ready row has one before it.
    fill(1000, 1);
    let few = steps(&connection, round);
    fill(HELD, 1);
    fill(20_000, 2);
    let many = steps(&connection, round);
    assert!(few > 100, "{few} steps cannot be all");
    assert!(
        many <= few + few / 10,
        "{many} steps with {HELD} rows held, {few} with 1000"
    );
}

/// Rows of a consumer in one state, all of one order key, all due.
const FILL_INBOX: &str = "\
with recursive numbers (number) as (
    select 1 union all select number + 1 from numbers where number < ?1
)
insert into tidings_inbox (consumer, message, changed_at, state, order_group, order_key, due_at)
select 'c', ?2 || '-' || number, 1000000 + number, ?2, 'g', 'k', 0 from numbers";

#[test]
fn what_is_handled_or_parked_does_not_slow_down_the_worker_or_upkeep() {
    let (_folder, connection) = database();
    let fill = |count: i64, state: i64| {
        connection
            .execute(FILL_INBOX, (count, state))
            .expect("rows");
    };
    let round = |connection: &Connection| {
        let due = connection
            .prepare_cached(deferred::DUE)?
            .query_map(("c", 1, 10), |_| Ok(()))?
            .count();
        assert_eq!(due, 10);
        let next = connection
            .prepare_cached(deferred::NEXT_DUE)?
            .exists(("c",))?;
        assert!(next);
        let waiting: i64 = connection
            .prepare_cached(deferred::WAITING)?
            .query_row(("c", 15), |row| row.get(0))?;
        assert_eq!(waiting, 15);
        let young = connection
            .prepare_cached(inbox::FORGET)?
            .execute(("c", 1000, 10))?;
        assert_eq!(young, 0);
        let head = connection.prepare_cached(inbox::HEAD)?.exists(("g", "k"))?;
        assert!(!head);
        let moved = connection
            .prepare_cached(inbox::GO_ON)?
            .execute(("g", "another", 1))?;
        assert_eq!(moved, 0);
        Ok(())
    };
    for state in 0..=3 {
        fill(20, state);
    }
    let few = steps(&connection, round);
    for state in 0..=3 {
        fill_more(&connection, state);
    }
    let many = steps(&connection, round);
    assert!(few > 100, "{few} steps cannot be all");
    assert!(
        many <= few + few / 10,
        "{many} steps with many rows in each state, {few} with 20"
    );
}

fn fill_more(connection: &Connection, state: i64) {
    connection
        .execute(
            &FILL_INBOX.replace("?2 || '-' || number", "?2 || '+' || number"),
            (20_000, state),
        )
        .expect("rows");
}

//! What the statements that run all the time read, as the planner says it: never the rows that do
//! not concern them, however many there are.

use serde_json::Value;
use tidings_core::{BoxError, Store};
use tokio_postgres::types::{FromSql, Type};

use crate::{
    PostgresStore,
    connection::{Params, Pool},
    deferred, inbox, outbox, records,
};

/// Rows that are in the way.
const ROWS: i64 = 100_000;

/// More rows than this were read: the statement walked over those.
const READ_MAX: f64 = 2_000.0;

async fn store() -> PostgresStore {
    let url = std::env::var("TIDINGS_TEST_POSTGRES_URL")
        .expect("set TIDINGS_TEST_POSTGRES_URL, or run `cargo xtask test`, which does");
    let schema = format!("test_{}", uuid::Uuid::new_v4().simple());
    let store = PostgresStore::connect(url, schema).await;
    store.expect("a store")
}

async fn fill(pool: &Pool, sql: &str) {
    let connection = pool.get().await.expect("a connection");
    connection.run(sql).await.expect("rows");
}

async fn analyze(pool: &Pool) {
    let tables = "analyze tidings_inbox, tidings_outbox, tidings_record";
    fill(pool, tables).await;
}

/// What `explain` says, as the text that JSON is on the wire.
struct Plan(Value);

impl FromSql<'_> for Plan {
    fn from_sql(_: &Type, text: &[u8]) -> Result<Self, BoxError> {
        Ok(Self(serde_json::from_slice(text)?))
    }

    fn accepts(of: &Type) -> bool {
        *of == Type::JSON
    }
}

/// How many rows the plan of `sql` reads, and the indexes it uses.
async fn check(pool: &Pool, sql: &str, params: Params<'_>, indexes: &[&str]) {
    // By what was learnt of the table's contents before, since one that fills up quickly is planned
    // by old figures; and by what is true.
    for analyzed in [false, true] {
        if analyzed {
            analyze(pool).await;
        }
        // A plan for these values, and one for all values, as a prepared statement gets after some
        // runs.
        for mode in ["force_custom_plan", "force_generic_plan"] {
            let transaction = pool.begin().await.expect("a transaction");
            let set = format!("set local plan_cache_mode = {mode}");
            transaction.run(&set).await.expect("set");
            let explain = format!("explain (analyze, format json) {sql}");
            let row = transaction.row(&explain, params).await.expect("a plan");
            let Plan(plan) = row.try_get(0).expect("JSON");
            transaction.rollback().await.expect("undone");
            let plan = &plan[0]["Plan"];
            let (read, used) = walk(plan);
            assert!(read < READ_MAX, "{mode}: {read} rows: {}", brief(plan, 0));
            for index in indexes {
                let is_used = used.iter().any(|used| used == index);
                assert!(is_used, "{index}: {}", brief(plan, 0));
            }
        }
    }
}

/// The plan, for people.
fn brief(node: &Value, depth: usize) -> String {
    let text = |name: &str| match &node[name] {
        Value::Null => String::new(),
        Value::String(text) => format!(" {text}"),
        number => format!(" {name}: {number}"),
    };
    let mut brief = format!("\n{:1$}", "", 2 * depth);
    for name in [
        "Node Type",
        "Index Name",
        "Relation Name",
        "Index Cond",
        "Filter",
        "Actual Rows",
        "Actual Loops",
        "Rows Removed by Filter",
    ] {
        brief += &text(name);
    }
    for child in node["Plans"].as_array().into_iter().flatten() {
        brief += &self::brief(child, depth + 1);
    }
    brief
}

fn walk(node: &Value) -> (f64, Vec<String>) {
    let number = |name: &str| node[name].as_f64().unwrap_or(0.0);
    let loops = number("Actual Loops");
    let mut read = loops
        * (number("Actual Rows")
            + number("Rows Removed by Filter")
            + number("Rows Removed by Index Recheck")
            + number("Rows Removed by Join Filter"));
    let mut used: Vec<String> = node["Index Name"]
        .as_str()
        .map(str::to_owned)
        .into_iter()
        .collect();
    for child in node["Plans"].as_array().into_iter().flatten() {
        let (more, indexes) = walk(child);
        read += more;
        used.extend(indexes);
    }
    (read, used)
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn rounds_of_a_relay_do_not_read_held_rows() {
    let store = store().await;
    let pool = &store.0.pool;
    // It was an outbox like any other when it was last looked at.
    fill(
        pool,
        "insert into tidings_outbox (lane, destination, key_hash, message, body)
         select number % 16, 'topic:t' || number % 3, number, '{}', ''
         from generate_series(1, 500) as number;
         analyze tidings_outbox;
         delete from tidings_outbox",
    )
    .await;
    fill(
        pool,
        &format!(
            "insert into tidings_outbox (lane, destination, key_hash, message, body, state, reason)
             select number % 16, 'topic:t' || number % 3, number, '{{}}', '', 1, 'nobody listens'
             from generate_series(1, {ROWS}) as number;
             insert into tidings_outbox (lane, destination, key_hash, message, body)
             select number % 16, 'topic:t' || number % 3, number, '{{}}', ''
             from generate_series(1, 40) as number;
             insert into tidings_outbox (lane, destination, message, body, state, reason)
             select number % 16, 'topic:t', '{{}}', '', 2, 'broken'
             from generate_series(1, 10) as number"
        ),
    )
    .await;
    let lanes: Vec<i16> = (0..16).collect();
    let held = vec!["topic:t0", "topic:t1", "topic:t2"];
    check(
        pool,
        outbox::NEXT,
        &[&lanes, &vec![1_i64, 2], &20_i64, &held, &20_i64],
        &["tidings_outbox_ready", "tidings_outbox_held_key"],
    )
    .await;
    check(pool, outbox::HELD, &[&lanes], &["tidings_outbox_held"]).await;
    check(
        pool,
        outbox::NEXT_HELD,
        &[&lanes, &"topic:t1", &5_i64],
        &["tidings_outbox_held"],
    )
    .await;
    check(
        pool,
        outbox::LIST_HELD,
        &[&70_000_i64, &5_i64],
        &["tidings_outbox_held"],
    )
    .await;
    let limit = 100_i64;
    check(
        pool,
        outbox::STATS,
        &[&limit],
        &[
            "tidings_outbox_ready",
            "tidings_outbox_held",
            "tidings_outbox_aside",
        ],
    )
    .await;
    let stats = store.outbox().stats().await.expect("counts");
    assert_eq!((stats.ready, stats.set_aside), (40, 10));
    assert_eq!(stats.held, 100_000);
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn taking_what_is_due_does_not_read_what_is_not() {
    let store = store().await;
    let pool = &store.0.pool;
    fill(
        pool,
        &format!(
            "insert into tidings_inbox (consumer, message) select 'c', number
             from generate_series(1, {ROWS}) as number;
             analyze tidings_inbox;
             insert into tidings_inbox (consumer, message, state, number, due, metadata, body)
             select case number % 2 when 0 then 'c' else 'paused' end, 'd' || number, 1,
                 nextval('tidings_inbox_number'), now() + case number % 2
                     when 0 then interval '1 day' else interval '-1 day' end, '{{}}', ''
             from generate_series(1, {ROWS}) as number;
             insert into tidings_inbox (consumer, message, state, number, due, metadata, body)
             select 'c', 'due' || number, 1, nextval('tidings_inbox_number'), now(), '{{}}', ''
             from generate_series(1, 20) as number"
        ),
    )
    .await;
    check(
        pool,
        deferred::TAKE_DUE,
        // Fewer rows than it may take: it must end where they do.
        &[&vec!["c"], &100_i64, &60.0_f64, &"worker"],
        &["tidings_inbox_due", "tidings_inbox_pkey"],
    )
    .await;
    check(
        pool,
        deferred::NEXT_DUE,
        &[&vec!["c", "paused"]],
        &["tidings_inbox_due"],
    )
    .await;
    let leases = vec!["a", "b"];
    for sql in [deferred::RENEW, deferred::RELEASE] {
        check(pool, sql, &[&leases, &60.0_f64], &["tidings_inbox_leased"]).await;
    }
    check(
        pool,
        inbox::SETTLE,
        &[
            &"c",
            &"due1",
            &"a",
            &0_i16,
            &None::<f64>,
            &0_i64,
            &None::<&str>,
            &false,
            &false,
        ],
        &[],
    )
    .await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn looking_and_forgetting_read_only_what_they_are_about() {
    let store = store().await;
    let pool = &store.0.pool;
    fill(
        pool,
        &format!(
            "insert into tidings_inbox (consumer, message, claimed_at)
             select case number % 2 when 0 then 'c' else 'other' end, number,
                 now() - number * interval '1 minute'
             from generate_series(1, {ROWS}) as number;
             analyze tidings_inbox;
             insert into tidings_inbox (consumer, message, state, number, order_group, order_key)
             select 'c', 'h' || number, 1, nextval('tidings_inbox_number'), 'g', 'k' || number
             from generate_series(1, {ROWS}) as number;
             insert into tidings_inbox (consumer, message, state, number, order_group, order_key)
             select 'c', 'p' || number, 2, nextval('tidings_inbox_number'), 'g', 'k'
             from generate_series(1, {ROWS}) as number"
        ),
    )
    .await;
    check(
        pool,
        inbox::FORGET,
        // Fewer rows than it may forget: it must end where they do.
        &[&"c", &(60.0 * 99_900.0), &1_000_i64],
        &["tidings_inbox_handled"],
    )
    .await;
    check(
        pool,
        inbox::LOOK,
        &[
            &vec!["c", "c"],
            &vec!["2", "new"],
            &vec!["g", "g"],
            &vec!["k", "k"],
        ],
        &["tidings_inbox_pkey", "tidings_inbox_head"],
    )
    .await;
    check(
        pool,
        inbox::GO_ON,
        &[&"g", &"k"],
        &["tidings_inbox_parked", "tidings_inbox_head"],
    )
    .await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn taking_due_records_does_not_read_those_that_are_not() {
    let store = store().await;
    let pool = &store.0.pool;
    fill(
        pool,
        &format!(
            "insert into tidings_record (kind, id, label, due, take_at, body)
             select 'k', number, '', now() + interval '1 day', now() + interval '1 day', ''
             from generate_series(1, {ROWS}) as number;
             insert into tidings_record (kind, id, label, due, take_at, body)
             select 'k', 'due' || number, '', now(), now(), ''
             from generate_series(1, 20) as number"
        ),
    )
    .await;
    check(
        pool,
        records::TAKE_DUE,
        &[&"k", &100_i64, &60.0_f64, &"worker"],
        &["tidings_record_due", "tidings_record_pkey"],
    )
    .await;
}

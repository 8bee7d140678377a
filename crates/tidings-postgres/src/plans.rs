//! What the statements that run all the time read, as the planner says it: never the rows that do
//! not concern them, however many there are.

use serde_json::Value;
use tidings_core::{Ask, BoxError, Claim, OrderKey, Store};
use tokio_postgres::types::{FromSql, Type};

use crate::{PostgresStore, connection::Pool, deferred, inbox, log, outbox, records};

/// Rows that are in the way.
const ROWS: i64 = 100_000;

/// More rows than this were read: the statement walked over those.
const READ_MAX: f64 = 2_000.0;

const LANES: &str = "'{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}'";

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
    let tables = "analyze tidings_inbox, tidings_outbox, tidings_record, tidings_log";
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

/// How many rows the plan of `sql` reads with these values, and the indexes it uses.
///
/// The statement is prepared in SQL, and its values stand in SQL: an `explain` with parameters would be
/// planned for their values, whatever is asked for.
async fn check(pool: &Pool, sql: &str, values: &str, indexes: &[&str]) {
    check_that_reads(READ_MAX, pool, sql, values, indexes).await;
}

async fn check_that_reads(read_max: f64, pool: &Pool, sql: &str, values: &str, indexes: &[&str]) {
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
            let prepare = format!("set local plan_cache_mode = {mode}; prepare explained as {sql}");
            transaction.run(&prepare).await.expect("prepared");
            let explain = format!("explain (analyze, format json) execute explained ({values})");
            let row = transaction.row(&explain, &[]).await.expect("a plan");
            transaction.run("deallocate explained").await.expect("gone");
            let Plan(plan) = row.try_get(0).expect("JSON");
            transaction.rollback().await.expect("undone");
            let plan = &plan[0]["Plan"];
            let (read, used) = walk(plan);
            assert!(read < read_max, "{mode}: {read} rows: {}", brief(plan, 0));
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
    const HELD: &str = "array['topic:t0', 'topic:t1', 'topic:t2']";
    for after in [i64::MIN, ROWS] {
        let after = after + 1; // The smallest is no literal.
        check(
            pool,
            outbox::NEXT,
            &format!("{LANES}, array[1, 2], 20, {HELD}, 20, {after}"),
            &["tidings_outbox_ready", "tidings_outbox_held_key"],
        )
        .await;
    }
    check(pool, outbox::HELD, LANES, &["tidings_outbox_held"]).await;
    check(
        pool,
        outbox::NEXT_HELD,
        &format!("{LANES}, 'topic:t1', 5"),
        &["tidings_outbox_held"],
    )
    .await;
    check(
        pool,
        outbox::LIST_HELD,
        "70000, 5",
        &["tidings_outbox_held"],
    )
    .await;
    check(
        pool,
        outbox::STATS,
        "100, 0",
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
async fn a_round_of_a_relay_reads_no_more_of_a_backlog_than_it_takes() {
    let store = store().await;
    let pool = &store.0.pool;
    // The planner has never looked at it: the first backlog of a new service.
    fill(
        pool,
        &format!(
            "insert into tidings_outbox (lane, destination, key_hash, message, body)
             select 3, 'topic:t', number, repeat(' ', 200), repeat(' ', 200)::bytea
             from generate_series(1, {ROWS}) as number"
        ),
    )
    .await;
    for after in [i64::MIN + 1, ROWS / 2] {
        // More than there seem to be: taking and sorting all of them must not look cheaper. Each row
        // is counted in each step of the plan.
        check_that_reads(
            15.0 * 1000.0,
            pool,
            outbox::NEXT,
            &format!("'{{3}}', array[1, 2], 1000, '{{}}', 1000, {after}"),
            &["tidings_outbox_ready"],
        )
        .await;
    }
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
        "array['c'], 100, 60.0, 'worker'",
        &["tidings_inbox_due", "tidings_inbox_pkey"],
    )
    .await;
    check(
        pool,
        deferred::NEXT_DUE,
        "array['c', 'paused']",
        &["tidings_inbox_due"],
    )
    .await;
    for sql in [deferred::RENEW, deferred::RELEASE] {
        let values = "array['a', 'b'], 60.0";
        check(pool, sql, values, &["tidings_inbox_leased"]).await;
    }
    check(
        pool,
        inbox::SETTLE,
        "'c', 'due1', 'a', 0, null, 0, null, false, false",
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
    for from in ["'1970-01-01'", "now() - interval '99950 minutes'"] {
        check(
            pool,
            inbox::FORGET,
            // Fewer rows than it may forget: it must end where they do.
            &format!("'c', 60.0 * 99900, 1000, {from}"),
            &["tidings_inbox_handled"],
        )
        .await;
    }
    check(
        pool,
        inbox::LOOK,
        "array['c', 'c'], array['2', 'new'], array['g', 'g'], array['k', 'k']",
        &["tidings_inbox_pkey", "tidings_inbox_head"],
    )
    .await;
    check(
        pool,
        inbox::LOOK_ONE_OF_KEY,
        "'c', '2', 'g', 'k'",
        &["tidings_inbox_pkey", "tidings_inbox_head"],
    )
    .await;
    check(
        pool,
        inbox::GO_ON,
        "'g', 'k'",
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
        "'k', 100, 60.0, 'worker'",
        &["tidings_record_due", "tidings_record_pkey"],
    )
    .await;
}

/// It is asked in front of each attempt that may call the outside: planning costs ten times as much as looking.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn looking_for_one_message_is_not_planned_each_time() {
    const LOOKS: i64 = 20;
    let store = store().await;
    let pool = &store.0.pool;
    let claim = Claim {
        consumer: "c".into(),
        message: "m".into(),
    };
    let order = OrderKey {
        group: "g".into(),
        key: "k".into(),
    };
    for order in [None, Some(order)] {
        let asked = [Ask {
            claim: claim.clone(),
            order,
        }];
        for _ in 0..LOOKS {
            inbox::look(pool, &asked).await.expect("nothing");
        }
    }
    // One after the other, so it was one connection.
    let plans = "select generic_plans, custom_plans from pg_prepared_statements
                 where statement like '%from (select) as asked%'
                   and statement not like '%pg_prepared_statements%'";
    let plans = pool.rows(plans, &[]).await.expect("plans");
    assert_eq!(plans.len(), 2, "statements");
    for row in plans {
        let [generic, custom] = [0, 1].map(|column| row.get::<_, i64>(column));
        assert_eq!(generic + custom, LOOKS);
        assert!(
            custom <= 5,
            "planned for its values {custom} times of {LOOKS}"
        );
    }
}

/// What is looked up by name is not joined: the plan for all values that a connection keeps may have been
/// made while there was next to nothing.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn looking_up_by_name_reads_no_others_in_tables_that_were_empty() {
    const NAMED: &str = "array['k', 'k', 'k'], array['1', '70000', 'new']";
    let records = format!(
        "insert into tidings_record (kind, id, label, body)
         select 'k', number, '', '' from generate_series(1, {ROWS}) as number"
    );
    let inbox = format!(
        "insert into tidings_inbox (consumer, message)
         select 'k', number from generate_series(1, {ROWS}) as number"
    );
    let none = "array[null, null, null]::text[]";
    let versions = "array[1, 1, null]::bigint[]";
    let values = "array['', '', ''], array[null, null, null]::bigint[], array['', '', '']::bytea[]";
    let read = ["tidings_record_pkey"];
    for (rows, sql, values, indexes) in [
        (&records, records::READ, NAMED.to_owned(), read),
        (&records, records::LOCK, NAMED.to_owned(), read),
        (
            &records,
            records::UPDATE,
            format!("{NAMED}, {versions}, {none}, {values}"),
            read,
        ),
        (
            &records,
            records::DELETE,
            format!("{NAMED}, {versions}, {none}"),
            read,
        ),
        (
            &inbox,
            inbox::LOOK,
            format!("{NAMED}, {none}, {none}"),
            ["tidings_inbox_pkey"],
        ),
        (
            &inbox,
            inbox::LOOK_ONE,
            "'k', '70000'".to_owned(),
            ["tidings_inbox_pkey"],
        ),
    ] {
        let store = store().await;
        let connection = store.0.pool.get().await.expect("a connection");
        let prepare = format!("set plan_cache_mode = force_generic_plan; prepare early as {sql}");
        connection.run(&prepare).await.expect("prepared");
        let explain = format!("explain (analyze, format json) execute early ({values})");
        // The plan is made now, and kept.
        for rows in ["select", &**rows] {
            connection.run(rows).await.expect("rows");
            let row = connection.row(&explain, &[]).await.expect("a plan");
            let Plan(plan) = row.try_get(0).expect("JSON");
            let plan = &plan[0]["Plan"];
            let (read, used) = walk(plan);
            assert!(read < READ_MAX, "{read} rows: {}", brief(plan, 0));
            for index in indexes {
                let is_used = used.iter().any(|used| used == index);
                assert!(is_used, "{index}: {}", brief(plan, 0));
            }
        }
        connection.discard();
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_page_of_the_log_reads_no_other() {
    let store = store().await;
    let pool = &store.0.pool;
    // Three segments, one behind the other.
    let fill_log = format!(
        "insert into tidings_log (segment, position, written, message, body)
         select n * 3 / {ROWS}, n, now(), '{{}}', ''
         from generate_series(0, {ROWS} - 1) as n"
    );
    fill(pool, &fill_log).await;
    for after in [0, ROWS / 3 - 10, ROWS - 10] {
        let values = format!("{after}, {}, 100", i64::MAX);
        check(pool, log::READ, &values, &[]).await;
    }
    let newest = log::newest_if_old(0);
    let index = ["tidings_log_0_position_idx"];
    check_that_reads(20.0, pool, &newest, "3600.0", &index).await;
}

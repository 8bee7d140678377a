//! What an elder version stored is kept.

use std::time::Duration;

use server::{claim, commit, fresh_schema, message, open};
use tidings_core::{
    Ask, Destination, InboxEntry, InboxState, Lane, OutboxRow, OutboxState, Outgoing, Store,
};
use tidings_postgres::PostgresStore;

mod server;

/// The schema as the first version made it.
const FIRST: &str = "
    create table tidings_migration (
        owner text not null, name text not null, run_at timestamptz not null default now(),
        primary key (owner, name)
    );
    insert into tidings_migration (owner, name) values ('tidings', '0001');
    create table tidings_inbox (
        consumer text not null,
        message text not null,
        claimed_at timestamptz not null default clock_timestamp(),
        primary key (consumer, message)
    );
    create index tidings_inbox_age on tidings_inbox using brin (claimed_at);
    create table tidings_outbox (
        position bigint generated always as identity primary key,
        lane smallint not null,
        created_at timestamptz not null default clock_timestamp(),
        deferred_until timestamptz,
        message text not null,
        body bytea not null
    );
    create index tidings_outbox_ready on tidings_outbox (position) include (lane)
        where deferred_until is null;
    create index tidings_outbox_deferred on tidings_outbox (deferred_until)
        where deferred_until is not null;
    create table tidings_lane (
        lane smallint primary key,
        relay text,
        leased_until timestamptz not null default '-infinity'
    ) with (fillfactor = 10);
    insert into tidings_lane (lane) select generate_series(0, 15);";

/// A schema of the first version with `rows` in it, each with whether it is deferred.
async fn elder(rows: &[(String, Lane, bool)]) -> String {
    let schema = fresh_schema();
    let other = open(&fresh_schema()).await;
    let transaction = server::begin(&other).await;
    let make = format!("create schema {schema}; set local search_path = {schema}; {FIRST}");
    transaction
        .batch_execute(&make)
        .await
        .expect("the first version's tables");
    transaction
        .batch_execute(
            "insert into tidings_inbox values ('c', 'old', now() - interval '9 days');
             insert into tidings_inbox values ('c', 'young', now());
             update tidings_lane set relay = 'elder', leased_until = now() + interval '1 day'
             where lane = 3",
        )
        .await
        .expect("claims and a lease");
    for (metadata, lane, is_deferred) in rows {
        transaction
            .execute(
                "insert into tidings_outbox (lane, message, body, deferred_until, created_at)
                 values ($1, $2, '{}', case when $3 then now() + interval '1 day' end,
                         now() - interval '1 hour')",
                &[&lane.0.cast_signed(), metadata, is_deferred],
            )
            .await
            .expect("a row");
    }
    let committed = transaction.batch_execute("commit").await;
    committed.expect("an elder schema");
    schema
}

fn row(message: &Outgoing, is_deferred: bool) -> (String, Lane, bool) {
    (
        message.to_metadata(),
        Lane::of_message(message),
        is_deferred,
    )
}

async fn ready(store: &PostgresStore, held: &[Destination]) -> Vec<OutboxRow> {
    let lanes: Vec<Lane> = (0..Lane::COUNT).map(Lane).collect();
    let rows = store.outbox().next(&lanes, held, &[], 100).await;
    rows.expect("the outbox can be read")
}

fn ids(rows: &[OutboxRow]) -> Vec<&str> {
    let messages = rows
        .iter()
        .map(|row| row.message.as_ref().expect("readable"));
    let ids = messages.map(|message| message.envelope.id.as_ref().expect("an id").as_str());
    ids.collect()
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn claims_become_handled_messages_and_are_pruned_by_their_age() {
    let store = open(&elder(&[]).await).await;
    let asked = ["old", "young", "new"].map(|id| Ask {
        claim: claim(id),
        order: None,
    });
    let seen = store.look(&asked).await.expect("an answer");
    let states: Vec<_> = seen.iter().map(|seen| seen.state).collect();
    let handled = Some(InboxState::Handled);
    assert_eq!(states, [handled, handled, None]);
    let again = commit(&store, InboxEntry::handled(claim("old"))).await;
    assert!(again.is_known(), "a duplicate stays one");

    let week = Duration::from_secs(7 * 86_400);
    let forgotten = store.forget("c", week, 100).await.expect("a count");
    assert_eq!(forgotten, 1);
    let seen = store.look(&asked).await.expect("an answer");
    let states: Vec<_> = seen.iter().map(|seen| seen.state).collect();
    assert_eq!(states, [None, handled, None]);
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn unsent_rows_are_ready_in_their_order_and_know_where_they_go() {
    let first = message("orders", "1", Some("key"));
    let hidden = message("orders", "2", Some("key"));
    let mut command = message("", "3", None);
    command.destination = Destination::queue("payment.refund.v1");
    let rows = [row(&first, false), row(&hidden, true), row(&command, true)];
    let store = open(&elder(&rows).await).await;
    let migrated = ready(&store, &[]).await;
    assert_eq!(ids(&migrated), ["1", "2", "3"]);
    assert!(
        migrated[0].age > Duration::from_secs(3_500),
        "its age stays"
    );
    let sent: Vec<&Outgoing> = migrated.iter().flat_map(|row| &row.message).collect();
    assert_eq!(sent[2].destination, command.destination);

    // Order holds among what was migrated and what is new.
    let lease = Duration::from_secs(60);
    let leased = store.outbox().lease("relay", lease).await.expect("lanes");
    assert_eq!(leased.lanes.len(), 15, "the elder relay has one still");
    let lane_of_key = Lane::of("key");
    assert_ne!(lane_of_key, Lane(3), "the test's own choice of a key");
    let held = store.outbox();
    held.hold("relay", &[migrated[0].position], "nobody listens")
        .await
        .expect("held");
    server::send(&store, vec![message("orders", "4", Some("key"))]).await;
    server::send(&store, vec![message("orders", "5", Some("else"))]).await;
    let destinations = store.outbox().held(&leased.lanes).await.expect("held");
    assert_eq!(destinations, [Destination::topic("orders")]);
    let rows = ready(&store, &destinations).await;
    assert_eq!(ids(&rows), ["2", "3", "4", "5"]);
    let behind: Vec<bool> = rows.iter().map(|row| row.is_behind).collect();
    assert_eq!(behind, [true, false, true, false]);
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_row_that_cannot_be_read_is_set_aside_and_stops_nobody() {
    let fine = message("orders", "1", Some("key"));
    let broken = [
        ("{\"topic\":\"orders\",".to_owned(), Lane(0), false),
        (
            "{\"topic\":\"orders\",\"key\":\"key\"}".to_owned(),
            Lane(0),
            true,
        ),
        ("null".to_owned(), Lane(0), false),
    ];
    let mut rows = broken.to_vec();
    rows.push(row(&fine, false));
    let store = open(&elder(&rows).await).await;
    assert_eq!(ids(&ready(&store, &[]).await), ["1"]);
    let aside = store.outbox().list(OutboxState::SetAside, None, 10).await;
    let aside = aside.expect("a list");
    assert_eq!(aside.len(), broken.len());
    for row in &aside {
        assert!(row.reason.contains("cannot be read"), "{}", row.reason);
        assert_eq!(row.message, None);
    }
    assert_eq!(aside[1].destination, Destination::topic("orders"));
    let positions: Vec<i64> = aside.iter().map(|row| row.position).collect();
    let discarded = store.outbox().discard(&positions).await;
    assert_eq!(discarded.expect("a count"), 3);
}

/// More rows than are read at once, and the new version may open it again.
#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn a_long_outbox_is_migrated_once() {
    let schema = elder(&[]).await;
    let writer = open(&fresh_schema()).await;
    let fill = format!(
        "insert into {schema}.tidings_outbox (lane, message, body)
         select number % 16, '{{\"topic\":\"t' || number % 3 || '\",\"name\":\"n\",\"key\":\"k'
             || number || '\"}}', '{{}}'
         from generate_series(1, 12000) as number"
    );
    let client = writer.client().await.expect("a connection");
    client.batch_execute(&fill).await.expect("rows");
    for _ in 0..2 {
        let store = open(&schema).await;
        let stats = store.outbox().stats().await.expect("counts");
        assert_eq!((stats.ready, stats.set_aside), (12_000, 0));
        let client = store.client().await.expect("a connection");
        let columns =
            "select count(distinct destination), count(distinct key_hash) from tidings_outbox";
        let columns = client.query_one(columns, &[]).await.expect("counts");
        let columns: (i64, i64) = (columns.get(0), columns.get(1));
        assert_eq!(columns, (3, 12_000));
    }
}

#[tokio::test]
#[ignore = "needs PostgreSQL"]
async fn an_elder_schema_can_keep_events() {
    let before = message("orders", "before", Some("key"));
    let store = open(&elder(&[row(&before, false)]).await).await;
    let log = store.log().expect("a log");
    log.keep(Duration::from_secs(3600));
    let event = message("orders", "after", Some("key"));
    server::send(&store, vec![event.clone()]).await;
    let until = log.horizon().await.expect("an end");
    let page = log.read(0, until, 10).await.expect("a page");
    let kept: Vec<_> = page.entries.iter().flat_map(|it| &it.message).collect();
    assert_eq!(kept, [&event]);
    let rows = ready(&store, &[]).await;
    assert_eq!(ids(&rows), ["before", "after"]);
}

//! The floor of an order: what the shop writes for one, as bare statements through the raw driver, while
//! RabbitMQ carries as many messages as an order has, from and to the raw client.
//!
//! Counted in the shop, for one order, over seven services, each with a schema of its own:
//!
//! | | |
//! | --- | ---: |
//! | deliveries, and with each a claim | 12 |
//! | inserts of the shop's own | 14 |
//! | updates with `returning` | 8 |
//! | outbox rows, in and out; messages published | 7 |
//!
//! What it reads (5 selects), its savepoints and its HTTP are left out. 64 orders share a commit; the
//! claims of a commit are one statement, and so are its outbox rows. Outbox rows are read and removed meanwhile, on another connection, whose commits do not wait
//! for the disk, as the toolkit's do not. Database and messages take their time side by side; a turn
//! ends when both are done.

use std::time::Instant;

use anyhow::{anyhow, ensure};
use futures_util::future::{BoxFuture, join_all, try_join_all};
use tidings_postgres::{
    PostgresStore,
    tokio_postgres::{self, Client},
};
use tokio::sync::watch;

use crate::{amqp, floors::postgres::connect};

/// Orders that share a commit.
const PER_COMMIT: u64 = 64;

/// Of each service: claims, inserts, updates and outbox rows of an order.
const SERVICES: [Share; 7] = [
    share(2, 2, 2, 1),
    share(2, 2, 1, 1),
    share(2, 2, 1, 1),
    share(2, 2, 1, 1),
    share(2, 2, 1, 1),
    share(1, 2, 1, 1),
    share(1, 2, 1, 1),
];

/// Messages of an order, and how many of these have two consumers.
const PUBLISHED: u64 = 7;
const FOR_TWO: u64 = 5;

/// Publishes that may wait for their confirm, and deliveries for their acknowledgement.
const WINDOW: u16 = 1000;

const BODY: &[u8] = &[b'x'; 256];
const METADATA: &str = r#"{"name":"order-placed.v1","id":"01930000-0000-7000-8000-000000000000","source":"orders","time":"2026-01-01T00:00:00Z","key":"01930000-0000-7000-8000-000000000000","causation_id":"01930000-0000-7000-8000-000000000000","correlation_id":"01930000-0000-7000-8000-000000000000","content_type":"application/json","topic":"order-placed.v1"}"#;

#[derive(Clone, Copy)]
struct Share {
    claims: u64,
    inserts: u64,
    updates: u64,
    sent: u64,
}

const fn share(claims: u64, inserts: u64, updates: u64, sent: u64) -> Share {
    Share {
        claims,
        inserts,
        updates,
        sent,
    }
}

/// When the answers of statements are awaited.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Awaits {
    /// Once for each order: its statements are sent at once.
    EachOrder,
    /// Once for each commit: everything is sent at once, which no handler can do.
    EachCommit,
}

type Sent<'a> = BoxFuture<'a, Result<(), tokio_postgres::Error>>;

async fn answers(sent: Vec<Sent<'_>>) -> Result<(), tokio_postgres::Error> {
    join_all(sent).await.into_iter().collect()
}

/// What is written for an order has such ids.
fn ids(order: u64, count: u64) -> impl Iterator<Item = String> {
    (0..count).map(move |number| format!("{order}-{number}"))
}

/// Orders per second, with an empty database and an empty broker.
pub(crate) async fn run(
    database: &str,
    rabbitmq: &str,
    orders: u64,
    awaits: Awaits,
) -> anyhow::Result<f64> {
    amqp::fan_out(rabbitmq, "floor", &["floor-a", "floor-b"])?;
    let mut services = Vec::new();
    for (number, share) in SERVICES.into_iter().enumerate() {
        services.push(Service::new(database, &format!("floor_{number}"), share).await?);
    }
    let began = Instant::now();
    let messages = {
        let url = rabbitmq.to_owned();
        tokio::task::spawn_blocking(move || carry(&url, orders))
    };
    let worked = services.iter().map(|service| service.work(orders, awaits));
    try_join_all(worked).await?;
    messages.await??;
    let took = began.elapsed();
    for service in &services {
        service.check(orders).await?;
    }
    for queue in ["floor-a", "floor-b"] {
        let left = amqp::depth(rabbitmq, queue)?;
        ensure!(left == 0, "{left} messages are left in `{queue}`");
    }
    Ok(orders as f64 / took.as_secs_f64())
}

/// The messages of the orders, by the raw client: each publish is confirmed, each delivery acknowledged.
fn carry(url: &str, orders: u64) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let consume = |queue, of_order: u64| {
            scope.spawn(move || amqp::drain(url, queue, WINDOW, of_order * orders, |_| {}))
        };
        let consumers = [consume("floor-a", PUBLISHED), consume("floor-b", FOR_TWO)];
        amqp::publish(
            url,
            PUBLISHED * orders,
            WINDOW.into(),
            BODY,
            |number| match number % PUBLISHED < FOR_TWO {
                true => ("floor", ""),
                false => ("", "floor-a"),
            },
        )?;
        for consumer in consumers {
            let consumed = consumer.join();
            consumed.map_err(|_| anyhow!("a consumer panicked"))??;
        }
        Ok(())
    })
}

/// One service's schema, and its two connections.
struct Service {
    share: Share,
    writes: Client,
    relays: Client,
}

impl Service {
    async fn new(database: &str, schema: &str, share: Share) -> anyhow::Result<Self> {
        let store = PostgresStore::connect(database, schema).await?;
        let table = "create table row (id text primary key, status text not null)";
        store.migrate(&[("1", table)]).await?;
        let url = format!("{database}?options=-c%20search_path={schema}");
        let relays = connect(&url).await?;
        relays.batch_execute("set synchronous_commit = off").await?;
        Ok(Self {
            share,
            writes: connect(&url).await?,
            relays,
        })
    }

    async fn work(&self, orders: u64, awaits: Awaits) -> anyhow::Result<()> {
        let (done, is_done) = watch::channel(false);
        let writing = async {
            self.write(orders, awaits).await?;
            done.send_replace(true);
            Ok(())
        };
        tokio::try_join!(writing, self.relay(is_done))?;
        Ok(())
    }

    async fn write(&self, orders: u64, awaits: Awaits) -> anyhow::Result<()> {
        let client = &self.writes;
        let claim = client
            .prepare(
                "insert into tidings_inbox (consumer, message)
                 select * from unnest($1::text[], $2::text[])
                 on conflict do nothing returning message",
            )
            .await?;
        let insert = &client
            .prepare("insert into row (id, status) values ($1, $2)")
            .await?;
        let update = &client
            .prepare("update row set status = $2 where id = $1 returning status")
            .await?;
        let send = client
            .prepare(
                "insert into tidings_outbox (lane, destination, key_hash, message, body)
                 select 3::smallint, 'topic:order-placed.v1', 7::bigint, message, body
                 from unnest($1::text[], $2::bytea[]) as row (message, body)",
            )
            .await?;
        for first in (0..orders).step_by(PER_COMMIT as usize) {
            let batch = first..orders.min(first + PER_COMMIT);
            let claims: Vec<String> = batch
                .clone()
                .flat_map(|order| ids(order, self.share.claims))
                .collect();
            let consumers = vec!["floor.order-placed.v1"; claims.len()];
            let sent = (self.share.sent * (batch.end - batch.start)) as usize;
            let (messages, bodies) = (vec![METADATA; sent], vec![BODY; sent]);
            let inserts: Vec<Vec<String>> = batch
                .map(|order| ids(order, self.share.inserts).collect())
                .collect();
            let mut all: Vec<Sent<'_>> = vec![
                Box::pin(client.batch_execute("begin")),
                Box::pin(async { client.query(&claim, &[&consumers, &claims]).await.map(drop) }),
            ];
            for ids in &inserts {
                all.extend(ids.iter().map(|id| {
                    Box::pin(async move { client.execute(insert, &[id, &"NEW"]).await.map(drop) })
                        as Sent<'_>
                }));
                all.extend(ids.iter().take(self.share.updates as usize).map(|id| {
                    Box::pin(
                        async move { client.query_one(update, &[id, &"PAID"]).await.map(drop) },
                    ) as Sent<'_>
                }));
                if awaits == Awaits::EachOrder {
                    answers(std::mem::take(&mut all)).await?;
                }
            }
            all.push(Box::pin(async {
                client.execute(&send, &[&messages, &bodies]).await.map(drop)
            }));
            all.push(Box::pin(client.batch_execute("commit")));
            answers(all).await?;
        }
        Ok(())
    }

    /// Reads and removes what is sent, until it is `done` and nothing is left.
    async fn relay(&self, mut done: watch::Receiver<bool>) -> anyhow::Result<()> {
        let client = &self.relays;
        let next = client
            .prepare(
                "select position, message, body, destination from tidings_outbox
                 where state = 0 order by position limit 1000",
            )
            .await?;
        let remove = client
            .prepare("delete from tidings_outbox where position = any ($1)")
            .await?;
        loop {
            let is_done = *done.borrow_and_update();
            let rows = client.query(&next, &[]).await?;
            if rows.is_empty() {
                if is_done {
                    return Ok(());
                }
                // More often than any commit brings something.
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                continue;
            }
            let positions: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
            client.execute(&remove, &[&positions]).await?;
        }
    }

    /// What a turn had to write must be there, and nothing else.
    async fn check(&self, orders: u64) -> anyhow::Result<()> {
        let share = self.share;
        for (table, expected) in [
            ("tidings_inbox", share.claims * orders),
            ("row", share.inserts * orders),
            ("row where status = 'PAID'", share.updates * orders),
            ("tidings_outbox", 0),
        ] {
            let count = format!("select count(*) from {table}");
            let there: i64 = self.writes.query_one(&count, &[]).await?.try_get(0)?;
            let there = there.unsigned_abs();
            ensure!(there == expected, "{there} rows in {table}, not {expected}");
        }
        Ok(())
    }
}

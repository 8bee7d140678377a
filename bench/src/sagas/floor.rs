//! The rows of sagas, written bare: what any manager of sagas on this database has to do.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::ensure;
use futures_util::future::{BoxFuture, join_all};
use tidings_postgres::tokio_postgres;
use tidings_sqlite::rusqlite;

use crate::floors::{World, postgres::connect};

/// Transitions for one commit: as many as the toolkit's at most.
const PER_COMMIT: u64 = 64;

/// Messages that are read and removed at once: as many as the toolkit's.
const ROUND: u64 = 1000;

/// What an outbox row says, in the toolkit's words.
const METADATA: &str = r#"{"name":"do-errand.v1","id":"errand/0/second/m-1000","source":"bench","time":"2026-01-01T00:00:00Z","correlation_id":"errand-begun.v1/m-1000","content_type":"application/json","headers":[["tidings-reply-to","bench.tidings.step-answer.v1"],["tidings-step","errand/0/second/m-1000"]],"queue":"errands.do-errand.v1"}"#;
const BODY: &[u8] = br#"{"id":"m-1000"}"#;

/// The same rows as `sagas` sagas write, with these journals after each transition.
pub(super) async fn run(
    world: &World,
    sagas: u64,
    journals: &[Vec<u8>],
) -> anyhow::Result<Duration> {
    let took = match world {
        World::Sqlite(_, file) => {
            let (file, journals) = (file.clone(), journals.to_vec());
            let raw = move || sqlite(&file, sagas, &journals);
            tokio::task::spawn_blocking(raw).await??
        }
        World::Postgres(_, url) => postgres(url, sagas, journals).await?,
    };
    let transitions = sagas * journals.len() as u64;
    for (table, expected) in [
        ("tidings_inbox", transitions),
        ("tidings_record", sagas),
        ("tidings_outbox", 0),
    ] {
        let there = world.count(table).await?;
        ensure!(there == expected, "{there} rows in {table}, not {expected}");
    }
    Ok(took)
}

/// The numbers of sagas, as many as share a commit.
fn batches(sagas: u64) -> impl Iterator<Item = std::ops::Range<u64>> {
    let firsts = (0..sagas).step_by(PER_COMMIT as usize);
    firsts.map(move |first| first..sagas.min(first + PER_COMMIT))
}

fn sqlite(file: &Path, sagas: u64, journals: &[Vec<u8>]) -> anyhow::Result<Duration> {
    let mut connection = rusqlite::Connection::open(file)?;
    connection.execute_batch("pragma synchronous = full")?;
    let began = Instant::now();
    let mut unsent = 0;
    for (number, journal) in journals.iter().enumerate() {
        for batch in batches(sagas) {
            unsent += batch.end - batch.start;
            let transaction = connection.transaction()?;
            for saga in batch {
                sqlite_transition(&transaction, number, saga, journal)?;
            }
            transaction.commit()?;
            if unsent >= ROUND {
                unsent = 0;
                sqlite_send(&connection)?;
            }
        }
    }
    sqlite_send(&connection)?;
    Ok(began.elapsed())
}

fn sqlite_transition(
    connection: &rusqlite::Connection,
    number: usize,
    saga: u64,
    journal: &[u8],
) -> rusqlite::Result<()> {
    let key = format!("m-{saga}");
    connection
        .prepare_cached(
            "insert into tidings_inbox (consumer, message, changed_at)
             values (?1, ?2, ?3) on conflict do nothing",
        )?
        .execute((
            "bench.tidings.step-answer.v1",
            format!("reply/errand/0/{number}/{key}"),
            1_800_000_000_000_i64,
        ))?;
    if number > 0 {
        let _: Vec<u8> = connection
            .prepare_cached(
                "select body, version, label, due_us, written_us from tidings_record
                 where kind = 'saga:errand' and id = ?1",
            )?
            .query_row((&key,), |row| row.get(0))?;
    }
    connection
        .prepare_cached(
            "insert into tidings_record
                 (kind, id, version, label, due_us, take_us, written_us, body)
             values ('saga:errand', ?1, 1, 'running', null, null, ?2, ?3)
             on conflict (kind, id) do update set version = version + 1,
                 label = excluded.label, written_us = excluded.written_us, body = excluded.body",
        )?
        .execute((&key, 1_800_000_000_000_000_i64, journal))?;
    connection
        .prepare_cached(
            "insert into tidings_outbox
                 (lane, created_at, destination, key_hash, message, body)
             values (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute((
            3,
            1_800_000_000_000_i64,
            "queue:errands.do-errand.v1",
            7_i64,
            METADATA,
            BODY,
        ))?;
    Ok(())
}

/// Reads what is to be sent, and removes it.
fn sqlite_send(connection: &rusqlite::Connection) -> rusqlite::Result<()> {
    loop {
        let rows: Vec<i64> = connection
            .prepare_cached(
                "select position, message, body, destination from tidings_outbox
                 where state = 0 order by position limit ?1",
            )?
            .query_map((ROUND as i64,), |row| {
                let _: (String, Vec<u8>, String) = (row.get(1)?, row.get(2)?, row.get(3)?);
                row.get(0)
            })?
            .collect::<Result<_, _>>()?;
        if rows.is_empty() {
            return Ok(());
        }
        connection.execute_batch("begin immediate")?;
        for position in rows {
            connection
                .prepare_cached("delete from tidings_outbox where position = ?1")?
                .execute((position,))?;
        }
        connection.execute_batch("commit")?;
    }
}

/// The statements of a transition, many at a time.
struct Statements {
    claim: tokio_postgres::Statement,
    read: tokio_postgres::Statement,
    insert: tokio_postgres::Statement,
    update: tokio_postgres::Statement,
    send: tokio_postgres::Statement,
    next: tokio_postgres::Statement,
    remove: tokio_postgres::Statement,
}

impl Statements {
    async fn prepare(client: &tokio_postgres::Client) -> Result<Self, tokio_postgres::Error> {
        Ok(Self {
            claim: client
                .prepare(
                    "insert into tidings_inbox (consumer, message)
                     select 'bench.tidings.step-answer.v1', unnest($1::text[])
                     on conflict do nothing",
                )
                .await?,
            read: client
                .prepare(
                    "select row.id, row.version, row.label, row.due, row.written, row.body
                     from unnest($1::text[]) with ordinality as named (id, number)
                     join tidings_record as row on row.kind = 'saga:errand' and row.id = named.id
                     order by named.number for update of row",
                )
                .await?,
            insert: client
                .prepare(
                    "insert into tidings_record (kind, id, label, body)
                     select 'saga:errand', id, 'running', $2::bytea from unnest($1::text[]) as id",
                )
                .await?,
            update: client
                .prepare(
                    "update tidings_record as row
                     set version = version + 1, label = 'running', lease = null,
                         written = statement_timestamp(), body = $2::bytea
                     from unnest($1::text[]) as named (id)
                     where row.kind = 'saga:errand' and row.id = named.id",
                )
                .await?,
            send: client
                .prepare(
                    "insert into tidings_outbox (lane, destination, key_hash, message, body)
                     select 3::smallint, 'queue:errands.do-errand.v1', 7::bigint, message, body
                     from unnest($1::text[], $2::bytea[]) as row (message, body)",
                )
                .await?,
            next: client
                .prepare(
                    "select position, message, body, destination from tidings_outbox
                     where state = 0 order by position limit $1",
                )
                .await?,
            remove: client
                .prepare("delete from tidings_outbox where position = any ($1)")
                .await?,
        })
    }

    /// All of a commit is sent at once.
    async fn transitions(
        &self,
        client: &tokio_postgres::Client,
        number: usize,
        keys: &[String],
        journal: &[u8],
    ) -> anyhow::Result<()> {
        type Sent<'a> = BoxFuture<'a, Result<(), tokio_postgres::Error>>;
        let claims: Vec<String> = keys
            .iter()
            .map(|key| format!("reply/errand/0/{number}/{key}"))
            .collect();
        let (messages, bodies) = (vec![METADATA; keys.len()], vec![BODY; keys.len()]);
        let write = match number {
            0 => &self.insert,
            _ => &self.update,
        };
        let mut sent: Vec<Sent<'_>> = vec![Box::pin(client.batch_execute("begin"))];
        sent.push(Box::pin(async {
            client.execute(&self.claim, &[&claims]).await.map(drop)
        }));
        if number > 0 {
            sent.push(Box::pin(async {
                client.query(&self.read, &[&keys]).await.map(drop)
            }));
        }
        sent.push(Box::pin(async {
            client.execute(write, &[&keys, &journal]).await.map(drop)
        }));
        sent.push(Box::pin(async {
            client
                .execute(&self.send, &[&messages, &bodies])
                .await
                .map(drop)
        }));
        sent.push(Box::pin(client.batch_execute("commit")));
        for outcome in join_all(sent).await {
            outcome?;
        }
        Ok(())
    }

    /// Reads what is to be sent, and removes it.
    async fn send(&self, client: &tokio_postgres::Client) -> anyhow::Result<()> {
        loop {
            let rows = client.query(&self.next, &[&(ROUND as i64)]).await?;
            if rows.is_empty() {
                return Ok(());
            }
            let positions: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
            client.execute(&self.remove, &[&positions]).await?;
        }
    }
}

async fn postgres(url: &str, sagas: u64, journals: &[Vec<u8>]) -> anyhow::Result<Duration> {
    let client = connect(url).await?;
    let statements = Statements::prepare(&client).await?;
    let began = Instant::now();
    let mut unsent = 0;
    for (number, journal) in journals.iter().enumerate() {
        for batch in batches(sagas) {
            unsent += batch.end - batch.start;
            let keys: Vec<String> = batch.map(|saga| format!("m-{saga}")).collect();
            statements
                .transitions(&client, number, &keys, journal)
                .await?;
            if unsent >= ROUND {
                unsent = 0;
                statements.send(&client).await?;
            }
        }
    }
    statements.send(&client).await?;
    Ok(began.elapsed())
}

//! Outbox rows of the first version are told where they go.
//!
//! That version kept a message's destination and key in its metadata only, and the hash of a key is
//! nothing that SQL can compute. So a program reads them, once, within the migration. A row that
//! cannot be read is set aside: it stops nobody, and an operator sees why.

use bytes::Bytes;
use sqlx::{PgConnection, raw_sql};
use tidings_core::{Destination, OutboxState, Outgoing};

use crate::outbox::key_hash;

/// How many rows are read at once.
const ROWS_MAX: i64 = 5_000;

pub(crate) async fn route(connection: &mut PgConnection) -> sqlx::Result<()> {
    let mut after = i64::MIN;
    loop {
        let rows: Vec<(i64, String)> = sqlx::query_as(
            "select position, message from tidings_outbox
             where position > $1 order by position limit $2",
        )
        .bind(after)
        .bind(ROWS_MAX)
        .fetch_all(&mut *connection)
        .await?;
        let Some((last, _)) = rows.last() else { break };
        after = *last;
        write(connection, &rows).await?;
    }
    raw_sql("alter table tidings_outbox alter column destination set not null")
        .execute(connection)
        .await
        .map(drop)
}

/// What the new columns of a row say.
struct Columns {
    destination: String,
    key_hash: Option<i64>,
    /// Why it is set aside.
    reason: Option<String>,
}

async fn write(connection: &mut PgConnection, rows: &[(i64, String)]) -> sqlx::Result<()> {
    let columns: Vec<Columns> = rows.iter().map(|(_, metadata)| columns(metadata)).collect();
    let columns = || columns.iter();
    sqlx::query(
        "update tidings_outbox as row
         set destination = new.destination, key_hash = new.key_hash, reason = new.reason,
             state = case when new.reason is null then 0 else $5 end
         from unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[])
             as new (position, destination, key_hash, reason)
         where row.position = new.position",
    )
    .bind(
        rows.iter()
            .map(|(position, _)| *position)
            .collect::<Vec<_>>(),
    )
    .bind(columns().map(|new| &*new.destination).collect::<Vec<_>>())
    .bind(columns().map(|new| new.key_hash).collect::<Vec<_>>())
    .bind(
        columns()
            .map(|new| new.reason.as_deref())
            .collect::<Vec<_>>(),
    )
    .bind(OutboxState::SetAside as i16)
    .execute(connection)
    .await
    .map(drop)
}

fn columns(metadata: &str) -> Columns {
    match Outgoing::from_metadata(metadata, Bytes::new()) {
        Ok(message) => Columns {
            destination: message.destination.to_text(),
            key_hash: key_hash(&message),
            reason: None,
        },
        Err(error) => Columns {
            destination: destination(metadata).to_text(),
            key_hash: None,
            reason: Some(format!("its metadata cannot be read: {error}")),
        },
    }
}

/// Where a row goes whose metadata are not all there, as far as they say it.
fn destination(metadata: &str) -> Destination {
    let metadata: serde_json::Value = serde_json::from_str(metadata).unwrap_or_default();
    let text = |field: &str| metadata[field].as_str().map(str::to_owned);
    match (text("topic"), text("queue")) {
        (Some(topic), _) => Destination::Topic(topic.into()),
        (None, queue) => Destination::Queue(queue.unwrap_or_default().into()),
    }
}

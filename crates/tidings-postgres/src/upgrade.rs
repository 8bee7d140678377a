//! Outbox rows of the first version are told where they go.
//!
//! That version kept a message's destination and key in its metadata only, and the hash of a key is
//! nothing that SQL can compute. So a program reads them, once, within the migration. A row that
//! cannot be read is set aside: it stops nobody, and an operator sees why.

use bytes::Bytes;
use tidings_core::{Destination, OutboxState, Outgoing};

use crate::{connection::Connection, error::Error, outbox::key_hash};

/// How many rows are read at once.
const ROWS_MAX: i64 = 5_000;

pub(crate) async fn route(connection: &Connection) -> Result<(), Error> {
    let mut after = i64::MIN;
    loop {
        let rows = connection
            .rows(
                "select position, message from tidings_outbox
                 where position > $1 order by position limit $2",
                &[&after, &ROWS_MAX],
            )
            .await?;
        let rows = rows
            .iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect::<Result<Vec<(i64, &str)>, Error>>()?;
        let Some((last, _)) = rows.last() else { break };
        after = *last;
        write(connection, &rows).await?;
    }
    connection
        .run("alter table tidings_outbox alter column destination set not null")
        .await
}

/// What the new columns of a row say.
struct Columns {
    destination: String,
    key_hash: Option<i64>,
    /// Why it is set aside.
    reason: Option<String>,
}

async fn write(connection: &Connection, rows: &[(i64, &str)]) -> Result<(), Error> {
    let columns: Vec<Columns> = rows.iter().map(|(_, metadata)| columns(metadata)).collect();
    let columns = || columns.iter();
    let positions: Vec<i64> = rows.iter().map(|(position, _)| *position).collect();
    connection
        .execute(
            "update tidings_outbox as row
             set destination = new.destination, key_hash = new.key_hash, reason = new.reason,
                 state = case when new.reason is null then 0 else $5::smallint end
             from unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[])
                 as new (position, destination, key_hash, reason)
             where row.position = new.position",
            &[
                &positions,
                &columns().map(|new| &*new.destination).collect::<Vec<_>>(),
                &columns().map(|new| new.key_hash).collect::<Vec<_>>(),
                &columns()
                    .map(|new| new.reason.as_deref())
                    .collect::<Vec<_>>(),
                &(OutboxState::SetAside as i16),
            ],
        )
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

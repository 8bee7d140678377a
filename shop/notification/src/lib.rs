//! Notification: writes to the customer how the order ended.
//!
//! A mail leaves before it is noted as sent, so a crash in between sends it again; it is the same
//! mail then, with the same `Message-ID`, and a file of the same name.

mod heard;
mod mail;

use std::time::Duration;

use axum::{Json, extract::State as HttpState, routing::get};
use jiff::Timestamp;
use shop_contracts::EmailSent;
use shop_kit::{Database, Db, Problem, QueryOf, Service, StoreError, Tx, sql};
use tidings::{Topology, event_map::EventMap, prelude::*};

pub use heard::{OrderCancelled, OrderConfirmed};
use mail::Letter;
pub use mail::{Mailer, MailerError};

const MIGRATIONS: &[&str] = &["create table email (
        message_id text primary key,
        order_id text not null,
        recipient text not null,
        subject text not null,
        sent_at bigint not null
    );
    create index email_by_order on email (order_id)"];

/// The mails under way at the same time; mail servers do not like to be hurried.
const MAILS_AT_ONCE_MAX: u16 = 16;

/// A mail server may be down for days: a mail waits for it. With delays of at most half a minute
/// this is about a month.
const ATTEMPTS_MAX: u32 = 100_000;

/// Opens notification's database and makes the service.
///
/// # Errors
///
/// When its database cannot be opened.
pub async fn service(database: &Database, mailer: Mailer) -> Result<Service, StoreError> {
    let db = database.open("notification", MIGRATIONS).await?;
    let messages = messages()
        .transactional(db.store())
        .with_state(mailer)
        .with_state(db.clone());
    let http = axum::Router::new()
        .route("/emails", get(emails))
        .with_state(db.clone());
    Ok(Service {
        name: "notification",
        http,
        messages: Some(messages),
        db: Some(db),
    })
}

/// The shape of the consumer: what it handles and how it retries.
fn messages() -> Router {
    let retry = Retry::exponential(Duration::from_millis(500))
        .delay_max(Duration::from_secs(30))
        .attempts(ATTEMPTS_MAX);
    Router::new("notification")
        .on(confirmed)
        .on(cancelled)
        .retry(retry)
        .concurrency(MAILS_AT_ONCE_MAX)
}

/// The queues and delays it needs on the broker, exactly as the service declares them. Whoever
/// starts the shop declares them before the first order, so that messages wait there for a service
/// that has never run.
pub fn topology() -> Topology {
    messages().topology().without_delays()
}

/// What it handles and sends, from the types of its handlers.
pub fn event_map() -> EventMap {
    EventMap::of([&messages()])
}

async fn confirmed(
    order: OrderConfirmed,
    id: MessageId,
    State(mailer): State<Mailer>,
    tx: Tx,
) -> Result<Option<EmailSent>> {
    let letter = order.email.map(|to| Letter {
        to,
        subject: format!("Your order {} is confirmed", order.order_id),
        text: format!(
            "Thank you. Your order {} over {} is paid, and will be sent to you.\n",
            order.order_id, order.amount
        ),
    });
    send(letter, order.order_id, id, &mailer, tx).await
}

async fn cancelled(
    order: OrderCancelled,
    id: MessageId,
    State(mailer): State<Mailer>,
    tx: Tx,
) -> Result<Option<EmailSent>> {
    let letter = order.email.map(|to| Letter {
        to,
        subject: format!("Your order {} is cancelled", order.order_id),
        text: format!(
            "We are sorry. Your order {} is cancelled: {}.\n\nYou pay nothing for it.\n",
            order.order_id, order.reason
        ),
    });
    send(letter, order.order_id, id, &mailer, tx).await
}

/// Nothing happens for a customer without an address.
async fn send(
    letter: Option<Letter>,
    order_id: String,
    id: MessageId,
    mailer: &Mailer,
    mut tx: Tx,
) -> Result<Option<EmailSent>> {
    let Some(letter) = letter else {
        return Ok(None);
    };
    mailer.send(&letter, &id).await?;
    let note = sql(
        "insert into email (message_id, order_id, recipient, subject, sent_at)
         values ($1, $2, $3, $4, $5) on conflict (message_id) do nothing",
    )
    .bind(id.as_str())
    .bind(&order_id)
    .bind(&letter.to)
    .bind(&letter.subject)
    .bind(Timestamp::now().as_microsecond());
    tx.execute(note).await?;
    Ok(Some(EmailSent {
        order_id,
        subject: letter.subject,
    }))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OfOrder {
    order_id: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Email {
    to: String,
    subject: String,
    sent_at: Timestamp,
}

async fn emails(
    HttpState(db): HttpState<Db>,
    QueryOf(of): QueryOf<OfOrder>,
) -> Result<Json<Vec<Email>>, Problem> {
    let query =
        sql("select recipient, subject, sent_at from email where order_id = $1 order by sent_at");
    let rows = db.read(query.bind(&of.order_id)).await?;
    let emails = rows.iter().map(|row| {
        Ok(Email {
            to: row.get(0)?,
            subject: row.get(1)?,
            sent_at: shop_kit::timestamp(row.get(2)?)?,
        })
    });
    Ok(Json(emails.collect::<Result<_, StoreError>>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_declared_beforehand_is_what_the_service_declares() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::Sqlite(folder.path().into());
        let service = service(
            &database,
            Mailer::folder(folder.path().join("mail")).unwrap(),
        );
        let served = service.await.unwrap().messages.unwrap().topology();
        assert_eq!(topology(), served);
        assert!(!served.queues.is_empty());
    }
}

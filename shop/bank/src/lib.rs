//! The bank: a simulator of an external payment provider, with a ledger that is the truth about
//! money and a behaviour that can be changed while it runs.
//!
//! It knows nothing of events. It charges and refunds at most once per idempotency key, which is
//! what a real provider promises and what payment builds on: payment's key is the order, so an
//! order is charged once and refunded once. Keys are compared byte by byte, as they stand in the
//! header `Idempotency-Key`.
//!
//! `POST /bank/charges` is answered `{"status": "CHARGED"}` or `{"status": "DECLINED", "reason"}`.
//! `POST /bank/refunds` is answered `{"status": "REFUNDED", "amount"}`, the second time too, or, if
//! nothing was charged with the key, `{"status": "NOTHING_TO_REFUND"}`. That is no entry of the
//! ledger, but the key is void from then on: a charge with it that was under way and arrives later
//! is declined. So whoever cancels an order can be sure after one answer. A charge that is declined
//! makes its key void in the same way: whatever two charges with one key say, the money is taken by
//! both answers or by none.
//!
//! | card | what happens |
//! | --- | --- |
//! | `tok_ok`, or none (the card on file) | charged |
//! | `tok_flaky` | a server error for the first [`FLAKY_FAILURES`] requests with a key, then charged |
//! | `tok_declined`, and any other | declined |

mod behaviour;
mod http;
mod ledger;

use shop_kit::{Database, Service, StoreError};

pub use ledger::FLAKY_FAILURES;

const MIGRATIONS: &[&str] = &[
    "create table ledger (
        idempotency_key text not null,
        kind text not null,
        order_id text not null,
        amount bigint not null,
        at bigint not null,
        primary key (idempotency_key, kind)
    );
    create index ledger_by_order on ledger (order_id);
    create table flaky_card (
        idempotency_key text primary key,
        requests bigint not null
    );
    create table behaviour (
        id bigint primary key,
        settings text not null
    )",
    "create table used_key (
        idempotency_key text primary key,
        is_void bigint not null
    )",
];

/// Opens the bank's database and makes the bank.
///
/// # Errors
///
/// When its database cannot be opened.
pub async fn service(database: &Database) -> Result<Service, StoreError> {
    let db = database.open("bank", MIGRATIONS).await?;
    let behaviour = behaviour::Behaviour::load(&db).await?;
    Ok(Service {
        name: "bank",
        http: http::routes(db.clone(), behaviour),
        messages: None,
        db: Some(db),
    })
}

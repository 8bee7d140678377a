//! Orders: takes them, tells everyone, and joins what the others answer.
//!
//! `POST /orders` waits for nobody: the order and its `OrderPlaced` are committed together, and the
//! answer is `202`. Payment and inventory answer in any order. The first refusal cancels the order;
//! when both have accepted it is confirmed; and when the deadline comes first, it is cancelled. An
//! order that has ended never changes again: later answers are only noted, and whoever gave them
//! undoes what they did when they hear of the cancellation (decision 0014).
//!
//! An order that the service checkout leads is ended as that says ([`CheckoutStyle`]); its deadline is kept
//! here all the same.
//!
//! An order that a foreign program published is adopted: then it can be asked for like any other.

mod deadline;
mod handlers;
mod http;
mod live;
mod orders;
mod overdue;
mod request;
mod stuck;
#[cfg(test)]
mod tests;

use shop_contracts::{CheckoutStyle, OrderCancelled, OrderPlaced};
use shop_kit::{Database, Service, StoreError};
use tidings::{HandlerOptions, Producer, Router, Topology, event_map::EventMap};

pub use deadline::OrderDeadline;
pub use overdue::Overdue;

/// Its name: who sends its events.
const NAME: &str = "orders";

/// The steps to the tables of orders, for programs that open its database beside it (tests do).
///
/// Of an order that was answered but not placed (yet), only the answers are known, and when the
/// first came. Steps are only ever added.
pub const MIGRATIONS: &[&str] = &[TABLES, NUMBERS, OPEN_ORDERS, HISTORY, LED];

const TABLES: &str = "create table orders (
        order_id text primary key,
        status text not null,
        amount bigint,
        customer_id text,
        email text,
        placed_at bigint,
        idempotency_key text unique,
        request text,
        payment text,
        stock text,
        reason text
    );
    create index orders_by_customer on orders (customer_id, placed_at, order_id);
    create table happening (
        order_id text not null,
        event text not null,
        at bigint not null,
        primary key (order_id, event)
    )";

/// In what order things were heard of, from 1 on; `OrderPlaced` is 0. What an elder version stored
/// keeps the order in which it showed it.
const NUMBERS: &str = "alter table happening add column number bigint not null default 0;
    update happening set number = (
        select count(*) from happening as other
        where other.order_id = happening.order_id and other.event <> 'OrderPlaced'
          and (other.at < happening.at
               or (other.at = happening.at and other.event <= happening.event))
    ) where event <> 'OrderPlaced'";

/// Who looks for what is undecided passes over no order that has ended.
const OPEN_ORDERS: &str = "create index orders_open on orders (placed_at, order_id)
    where status = 'CREATED'";

/// What decides an order, and when it happened, stands in the order's row, which is written anyway:
/// the answers and the end, in the order in which they were heard of (`PaymentAuthorized 1764000000000000 `,
/// one after the other). When it was placed stands there too. The table `happening` keeps what decides
/// nothing. Of what an elder version stored, that is moved which a decision may follow yet.
const HISTORY: &str = "alter table orders add column history text not null default '';
    update orders set history = coalesce((
        select string_agg(event || ' ' || at || ' ', '' order by number) from happening
        where happening.order_id = orders.order_id and number > 0
    ), '') where status = 'CREATED';
    delete from happening where number = 0
        or order_id in (select order_id from orders where status = 'CREATED')";

/// The checkout has had something done for the order, and decides on it.
const LED: &str = "alter table orders add column led bigint not null default 0";

/// Opens the orders' database and makes the service, and the task that keeps the deadline, which
/// has to run beside it.
///
/// # Errors
///
/// When its database cannot be opened.
pub async fn service(
    database: &Database,
    deadline: OrderDeadline,
    style: CheckoutStyle,
) -> Result<(Service, Overdue), StoreError> {
    let db = database.open(NAME, MIGRATIONS).await?;
    let messages = messages().transactional(db.store()).with_state(db.clone());
    let producer = Producer::new(NAME, db.store());
    let overdue = Overdue {
        db: db.clone(),
        producer: producer.clone(),
        deadline,
    };
    let service = Service {
        name: NAME,
        http: http::routes(db.clone(), producer, deadline, style),
        messages: Some(messages),
        db: Some(db),
    };
    Ok((service, overdue))
}

/// The checkout may end an order before orders has heard of it, when orders has much to work off. It
/// waits for that for a day, at delays of ten seconds.
const END_ATTEMPTS_MAX: u32 = 10_000;

/// The shape of the consumer: what it handles, publishes, and how it retries.
fn messages() -> Router {
    let patient = HandlerOptions::new().retry(shop_kit::retry().attempts(END_ATTEMPTS_MAX));
    Router::new(NAME)
        .on(handlers::adopt)
        .on(handlers::payment_authorized)
        .on(handlers::payment_declined)
        .on(handlers::stock_reserved)
        .on(handlers::stock_rejected)
        .on(handlers::payment_refunded)
        .on(handlers::stock_released)
        .on(handlers::shipment_booked)
        .on(handlers::email_sent)
        .on(handlers::points_awarded)
        .on_with(handlers::confirm, patient.clone())
        .on_with(handlers::cancel, patient)
        .publishes::<OrderPlaced>() // Over HTTP.
        .publishes::<OrderCancelled>() // At the deadline.
        .retry(shop_kit::retry())
}

/// The topics, queues and delays it needs on the broker, exactly as the service declares them.
/// Whoever starts the shop declares them beforehand, so that answers wait there for a service that
/// has never run.
pub fn topology() -> Topology {
    messages().topology().without_delays()
}

/// What it handles and sends, from the types of its handlers.
pub fn event_map() -> EventMap {
    EventMap::of([&messages()])
}

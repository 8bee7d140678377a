//! Three services with a database each, and a saga that leads orders through them.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tidings::{Permanent, RecordQuery, Saga, Sagas, StepError, StepReply, Store, prelude::*};
use tidings_sqlite::Tx;

use super::{Database, Running, broker::Broker, outgoing, until};

#[derive(Clone, Serialize, Deserialize, Event)]
#[event(id = "order_id", key = "order_id")]
pub(crate) struct OrderPlaced {
    pub(crate) order_id: String,
    pub(crate) card: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(id = "order_id", key = "order_id")]
pub(crate) struct OrderConfirmed {
    pub(crate) order_id: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Event)]
#[event(id = "order_id", key = "order_id")]
pub(crate) struct OrderCancelled {
    pub(crate) order_id: String,
    pub(crate) reason: String,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "inventory", reply = u64)]
pub(crate) struct ReserveStock {
    pub(crate) order_id: String,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "inventory", reply = ())]
pub(crate) struct ReleaseStock {
    pub(crate) order_id: String,
    pub(crate) reservation: u64,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "payment", reply = String)]
pub(crate) struct ChargeCard {
    pub(crate) order_id: String,
    pub(crate) card: String,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "payment", reply = ())]
pub(crate) struct CancelCharge {
    pub(crate) order_id: String,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "payment", reply = ())]
pub(crate) struct RefundCard {
    pub(crate) charge: String,
}

pub(crate) async fn checkout(
    order: OrderPlaced,
    saga: Saga,
) -> Result<OrderConfirmed, OrderCancelled> {
    let order_id = order.order_id;
    let cancelled = |error: StepError| OrderCancelled {
        order_id: order_id.clone(),
        reason: error.to_string(),
    };
    let reserve = ReserveStock {
        order_id: order_id.clone(),
    };
    let of_order = order_id.clone();
    let stock = saga
        .step("reserve-stock", reserve)
        .undo(move |reservation| ReleaseStock {
            order_id: of_order.clone(),
            reservation,
        });
    stock.await.map_err(cancelled)?;
    let deadline = match &*order.card {
        "in a hurry" => Duration::from_millis(1500),
        "at once" => Duration::from_millis(60),
        _ => Duration::from_secs(60),
    };
    let charge = ChargeCard {
        order_id: order_id.clone(),
        card: order.card,
    };
    let cancel = CancelCharge {
        order_id: order_id.clone(),
    };
    saga.step("charge-card", charge)
        .cancel(cancel)
        .deadline(deadline)
        .undo(|charge| RefundCard { charge })
        .await
        .map_err(cancelled)?;
    Ok(OrderConfirmed { order_id })
}

/// What the services did, in order.
#[derive(Clone, Default)]
pub(crate) struct Book(pub(crate) Arc<Mutex<Vec<String>>>);

impl Book {
    pub(crate) fn note(&self, what: impl Into<String>) {
        self.0.lock().push(what.into());
    }

    pub(crate) fn read(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

pub(crate) async fn reserve(
    command: ReserveStock,
    State(book): State<Book>,
    mut tx: Tx,
) -> Result<StepReply<u64>> {
    if command.order_id.contains("sold-out") {
        return Ok(StepReply::refused("sold out"));
    }
    tx.execute(
        "insert into effect (number, account) values (1, ?1)",
        (command.order_id.clone(),),
    )
    .await?;
    book.note(format!("reserved {}", command.order_id));
    Ok(StepReply::Done(7))
}

pub(crate) async fn release(
    command: ReleaseStock,
    State(book): State<Book>,
    mut tx: Tx,
) -> Result<()> {
    tx.execute(
        "insert into effect (number, account) values (-1, ?1)",
        (command.order_id,),
    )
    .await?;
    book.note(format!("released {}", command.reservation));
    Ok(())
}

pub(crate) async fn charge(
    command: ChargeCard,
    State(book): State<Book>,
    State(silent): State<Silent>,
    State(slow): State<Slow>,
    mut tx: Tx,
) -> Result<StepReply<String>> {
    if silent.0.lock().contains(&command.order_id) {
        return Err(tidings::Error::msg("the bank does not answer"));
    }
    if command.order_id == "slow-bank" {
        slow.0.notified().await;
    }
    match &*command.card {
        "declined" => Ok(StepReply::refused("the card was declined")),
        "broken" => Err(Permanent::new("the bank cannot be understood").into()),
        _ => {
            let row = (command.order_id.clone(),);
            tx.execute("insert into effect (number, account) values (1, ?1)", row)
                .await?;
            book.note(format!("charged {}", command.order_id));
            Ok(StepReply::Done(format!("c-{}", command.order_id)))
        }
    }
}

/// The bank answers about the order `slow-bank` when it is told to.
#[derive(Clone, Default)]
pub(crate) struct Slow(pub(crate) Arc<tokio::sync::Notify>);

/// The orders about which the bank says nothing.
#[derive(Clone, Default)]
pub(crate) struct Silent(pub(crate) Arc<Mutex<Vec<String>>>);

pub(crate) async fn cancel(command: CancelCharge, State(book): State<Book>) -> Result<()> {
    book.note(format!("cancelled {}", command.order_id));
    Ok(())
}

pub(crate) async fn refund(
    command: RefundCard,
    State(book): State<Book>,
    mut tx: Tx,
) -> Result<()> {
    let order_id = command.charge.trim_start_matches("c-").to_owned();
    tx.execute(
        "insert into effect (number, account) values (-1, ?1)",
        (order_id,),
    )
    .await?;
    book.note(format!("refunded {}", command.charge));
    Ok(())
}

pub(crate) async fn confirmed(event: OrderConfirmed, State(book): State<Book>) -> Result<()> {
    book.note(format!("confirmed {}", event.order_id));
    Ok(())
}

pub(crate) async fn gone(event: OrderCancelled, State(book): State<Book>) -> Result<()> {
    book.note(format!("cancelled {}: {}", event.order_id, event.reason));
    Ok(())
}

/// The services, each with a database.
pub(crate) struct World {
    pub(crate) broker: Broker,
    pub(crate) book: Book,
    pub(crate) silent: Silent,
    pub(crate) slow: Slow,
    pub(crate) checkout: Arc<dyn Store>,
    _checkout: Option<Database>,
    pub(crate) inventory: Database,
    pub(crate) payment: Database,
}

impl World {
    pub(crate) async fn new() -> Self {
        let database = Database::new().await;
        let world = Self::with(Arc::new(database.store.clone())).await;
        Self {
            _checkout: Some(database),
            ..world
        }
    }

    /// With the sagas in this store.
    pub(crate) async fn with(checkout: Arc<dyn Store>) -> Self {
        let (inventory, payment) = (Database::new().await, Database::new().await);
        Self::of(checkout, inventory, payment)
    }

    /// With these databases.
    pub(crate) fn of(checkout: Arc<dyn Store>, inventory: Database, payment: Database) -> Self {
        Self {
            broker: Broker::default(),
            book: Book::default(),
            silent: Silent::default(),
            slow: Slow::default(),
            checkout,
            _checkout: None,
            inventory,
            payment,
        }
    }

    pub(crate) fn routers(&self) -> Vec<Router> {
        let sagas = Sagas::new("checkout", |order: &OrderPlaced| order.order_id.clone());
        let quick = Retry::exponential(Duration::from_millis(100)).attempts(50);
        vec![
            Router::new("checkout")
                .saga(sagas.version(1, checkout))
                .transactional(Arc::clone(&self.checkout)),
            Router::new("inventory")
                .on(reserve)
                .on(release)
                .transactional(self.inventory.store.clone())
                .with_state(self.book.clone()),
            Router::new("payment")
                .on(charge)
                .on(cancel)
                .on(refund)
                .retry(quick)
                .transactional(self.payment.store.clone())
                .with_state(self.book.clone())
                .with_state(self.silent.clone())
                .with_state(self.slow.clone()),
            Router::new("watcher")
                .on(confirmed)
                .on(gone)
                .with_state(self.book.clone()),
        ]
    }

    pub(crate) async fn start(&self) -> Running {
        Running::start_all(&self.broker, self.routers()).await
    }

    pub(crate) fn place(&self, order_id: &str, card: &str) {
        let order = OrderPlaced {
            order_id: order_id.into(),
            card: card.into(),
        };
        self.broker.publish_raw(outgoing(&order));
    }

    /// Waits until this is the last that happened.
    pub(crate) async fn until(&self, last: &str) {
        let has_come = async || self.book.read().iter().any(|it| it == last);
        let waiting = until("it is in the book", has_come);
        if tokio::time::timeout(Duration::from_secs(15), waiting)
            .await
            .is_err()
        {
            panic!(
                "waited for `{last}`: {:?}, {:?}",
                self.book.read(),
                self.states().await
            );
        }
    }

    /// How many messages to the sagas wait to be tried again.
    pub(crate) async fn waiting(&self) -> u64 {
        let handlers = [
            "checkout.order-placed.v1",
            "checkout.tidings.step-answer.v1",
        ];
        let mut waiting = 0;
        for handler in handlers {
            let of_handler = self.checkout.deferred().waiting(handler, 1000).await;
            waiting += of_handler.expect("a count");
        }
        waiting
    }

    pub(crate) async fn states(&self) -> Vec<String> {
        let query = RecordQuery {
            kind: "saga:checkout".into(),
            limit: 10_000,
            ..RecordQuery::default()
        };
        let found = self.checkout.records().list(&query).await.expect("records");
        let state = |record: tidings::Record| format!("{} {}", record.id.id, record.value.label);
        found.into_iter().map(state).collect()
    }
}

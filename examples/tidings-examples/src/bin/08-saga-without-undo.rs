//! The wrong way: a saga whose first step says `.no_undo()` although it takes money. Whoever is refused
//! after it has paid for nothing.
//!
//! `Explorer` finds that without a broker: it tries everything that can happen, and says which steps are
//! still in effect at each ending.

use tidings::{
    Saga, Sagas, StepError,
    prelude::*,
    sagas::{Explorer, Start},
};

#[derive(Serialize, Deserialize, Event)]
#[event(key = "order_id", id = "order_id")]
struct OrderPlaced {
    order_id: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(key = "order_id")]
struct OrderConfirmed {
    order_id: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(key = "order_id")]
struct OrderCancelled {
    order_id: String,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "payment", reply = ())]
struct TakePayment {
    order_id: String,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "payment", reply = ())]
struct ReturnPayment {
    order_id: String,
}

#[derive(Serialize, Deserialize, Command)]
#[command(target = "inventory", reply = ())]
struct ReserveStock {
    order_id: String,
}

async fn wrong(order: OrderPlaced, saga: Saga) -> Result<OrderConfirmed, OrderCancelled> {
    let order_id = order.order_id;
    let cancelled = |_: StepError| OrderCancelled {
        order_id: order_id.clone(),
    };
    let take = TakePayment {
        order_id: order_id.clone(),
    };
    // This is the mistake: it says that nothing has to be undone.
    let payment = saga.step("take-payment", take).no_undo();
    payment.await.map_err(cancelled)?;
    let reserve = ReserveStock {
        order_id: order_id.clone(),
    };
    let stock = saga.step("reserve-stock", reserve).no_undo();
    stock.await.map_err(cancelled)?;
    Ok(OrderConfirmed { order_id })
}

async fn right(order: OrderPlaced, saga: Saga) -> Result<OrderConfirmed, OrderCancelled> {
    let order_id = order.order_id;
    let cancelled = |_: StepError| OrderCancelled {
        order_id: order_id.clone(),
    };
    let take = TakePayment {
        order_id: order_id.clone(),
    };
    let of = order_id.clone();
    let payment = saga
        .step("take-payment", take)
        .undo(move |()| ReturnPayment {
            order_id: of.clone(),
        });
    payment.await.map_err(cancelled)?;
    let reserve = ReserveStock {
        order_id: order_id.clone(),
    };
    let stock = saga.step("reserve-stock", reserve).no_undo();
    stock.await.map_err(cancelled)?;
    Ok(OrderConfirmed { order_id })
}

/// Prints how the saga can end, and what is in effect then.
fn explore(what: &str, sagas: Sagas<OrderPlaced>) -> anyhow::Result<()> {
    let order = OrderPlaced {
        order_id: "o-1".into(),
    };
    let start = Start::of(&order).map_err(|why| anyhow::anyhow!("{why}"))?;
    let explored = Explorer::new(sagas.define("orders"), "o-1", start).run();
    println!("{what}: {} states", explored.states);
    for (end, steps) in &explored.in_effect {
        let is_wrong = *end == "compensated" && !steps.is_empty();
        let mark = if is_wrong {
            "   <- paid for nothing"
        } else {
            ""
        };
        println!("    {end} with [{}]{mark}", steps.join(", "));
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let sagas = || Sagas::new("checkout", |order: &OrderPlaced| order.order_id.clone());
    explore("without an undo", sagas().version(1, wrong))?;
    explore("with an undo", sagas().version(1, right))
}

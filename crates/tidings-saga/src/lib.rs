//! Sagas: an async function over a journal of replies. No I/O, no clock.
//!
//! A saga leads several services through one piece of business, and undoes what was done if it cannot
//! be finished. It is an async function: each step sends a command and awaits the answer of its target.
//!
//! ```
//! # use serde::{Deserialize, Serialize};
//! # use std::borrow::Cow;
//! use tidings_core::{Command, Destination, Event, Message};
//! use tidings_saga::{Saga, Sagas, Step, StepError};
//! # macro_rules! messages { ($($of:ident: $name:literal, $to:expr;)+) => {$(
//! # #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)] struct $of { order_id: String }
//! # impl Message for $of { const NAME: &'static str = $name; const DESTINATION: Destination = $to; }
//! # )+} }
//! # messages! {
//! #     OrderPlaced: "order-placed.v1", Destination::topic("orders");
//! #     OrderConfirmed: "order-confirmed.v1", Destination::topic("orders");
//! #     OrderCancelled: "order-cancelled.v1", Destination::topic("orders");
//! #     ReserveStock: "reserve-stock.v1", Destination::queue("inventory.reserve-stock.v1");
//! #     ReleaseStock: "release-stock.v1", Destination::queue("inventory.release-stock.v1");
//! #     BookParcel: "book-parcel.v1", Destination::queue("shipping.book-parcel.v1");
//! # }
//! # impl Command for ReserveStock { const TARGET: &'static str = "inventory"; }
//! # impl Command for ReleaseStock { const TARGET: &'static str = "inventory"; }
//! # impl Command for BookParcel { const TARGET: &'static str = "shipping"; }
//! # #[derive(Serialize, Deserialize)] struct Reserved { place: String }
//! # impl Step for ReserveStock { type Reply = Reserved; }
//! # impl Step for ReleaseStock { type Reply = (); }
//! # impl Step for BookParcel { type Reply = (); }
//!
//! async fn checkout(order: OrderPlaced, saga: Saga) -> Result<OrderConfirmed, OrderCancelled> {
//!     let order_id = order.order_id;
//!     let cancelled = |_: StepError| OrderCancelled { order_id: order_id.clone() };
//!     saga.step("reserve-stock", ReserveStock { order_id: order_id.clone() })
//!         .undo(|reserved| ReleaseStock { order_id: reserved.place })
//!         .await
//!         .map_err(cancelled)?;
//!     saga.step("book-parcel", BookParcel { order_id: order_id.clone() })
//!         .pivot()
//!         .await
//!         .map_err(cancelled)?;
//!     Ok(OrderConfirmed { order_id })
//! }
//!
//! let sagas = Sagas::new("checkout", |order: &OrderPlaced| order.order_id.clone()).version(1, checkout);
//! ```
//!
//! Nothing waits in memory. What has happened to a saga is its [`Journal`], one record in the database;
//! when something arrives, the function is run again from its start over the journal, and whatever
//! it asks for that is not there yet is sent ([`Definition::advance`]). A restart needs no recovery.
//! Whoever writes the function never sees that, as long as it does nothing but compute and await
//! what a [`Saga`] offers; anything else is found out and makes the saga *stuck*, which an operator sees.
//!
//! If the function fails, its steps are undone in reverse, by commands that were kept with their
//! replies. Undoing runs no code of the function, so it survives a deployment, a panic and a bug.

mod child;
mod definition;
mod explore;
mod function;
mod journal;
mod progress;
mod run;
mod saga;
mod step_id;
mod turn;

pub use child::{CALL_OFF_NAME, CallOff, ChildSagas, Parent, Told};
pub use definition::{ANSWER_NAME, Definition, Sagas, StartCheck};
pub use explore::{Explored, Explorer};
pub use journal::{BYTES_MAX, ENTRIES_MAX, Entry, Journal, SagaState, Start, Stored, Undo, What};
pub use saga::{
    All, Awaited, Draft, First, Planned, Restart, Saga, Signal, Step, StepError, Timer, WaitAll,
    WaitFirst,
};
pub use step_id::{Part, STEP_HEADER, StepId};
pub use turn::{Action, Answer, Arrival, Turn};

//! Event-driven services from plain async functions: handlers, retries, dead letters, the
//! transactional outbox and its relay, the idempotent inbox, order per key.
//!
//! It never speaks to a broker or a database itself: a transport (`tidings-amqp`, `tidings-memory`)
//! and a store (`tidings-postgres`, `tidings-sqlite`, `tidings-memory`) do, and only a program
//! chooses them.
//!
//! ```
//! use serde::{Deserialize, Serialize};
//! use tidings::prelude::*;
//!
//! #[derive(Serialize, Deserialize, Event)]
//! #[event(key = "order_id", id = "order_id")]
//! struct OrderPlaced { order_id: String, amount: u32 }
//!
//! #[derive(Serialize, Deserialize, Event)]
//! #[event(key = "order_id")]
//! struct PaymentSettled { order_id: String }
//!
//! /// The message comes first and is the subscription; what is returned is published.
//! async fn settle(order: OrderPlaced, id: MessageId) -> Result<PaymentSettled> {
//!     println!("charging {} once under {id}", order.amount);
//!     Ok(PaymentSettled { order_id: order.order_id })
//! }
//!
//! let router = Router::new("payment").on(settle);
//! assert_eq!(router.topology().queues[0].name, "payment.order-placed.v1");
//! // serve(transport, router.transactional(store)).with_graceful_shutdown(ctrl_c()).await?
//! ```
//!
//! # What is promised, and what it rests on
//!
//! - An attempt is one transaction: the inbox row of the message, the handler's writes, the messages
//!   it sends. It commits whole or not at all, and nothing is acknowledged before.
//! - An error tries again, as the [`Retry`] policy says: a few times at once, then later, out of the
//!   consumer's own store. A permanent one, and a body that cannot be read, goes to the dead letters
//!   at once, with the reason. A message whose handler ends the process three times does, too.
//! - While nothing can be tried (the database is away, a [`CircuitBreaker`] is open), the handler
//!   pauses, nothing is counted, and the backlog stays in the broker.
//! - Messages are handled in any order, unless the consumer asks: [`Router::ordered`] keeps the order
//!   of each key across message types, instances, retries, redelivery and restarts.
//! - A message that is committed to the outbox is published at least once, under one id, in the
//!   order of commits per key; when nobody listens, or a queue refuses it, it is held, visibly, and
//!   holds up nothing else.
//!
//! # What is measured
//!
//! With the `metrics` crate, whatever recorder the program installs:
//!
//! | metric | labels | |
//! | --- | --- | --- |
//! | `tidings_messages_total` | `queue`, `end` | messages by what became of them: `handled`, `duplicate`, `retried`, `deferred`, `parked`, `returned`, `dead-lettered`, `skipped` |
//! | `tidings_handler_duration_seconds` | `queue` | how long handlers took |
//! | `tidings_batch_messages` | `queue` | how many messages a batch had, of those that had several |
//! | `tidings_deferred_messages` | `queue` | what waits in the store |
//! | `tidings_outbox_unsent`, `tidings_outbox_oldest_age_seconds` | `service` | what is ready to be published |
//! | `tidings_outbox_held`, `tidings_outbox_oldest_held_age_seconds` | `service` | what the broker did not take |
//! | `tidings_outbox_set_aside` | `service` | what cannot be sent as it is |
//! | `tidings_outbox_sent_total` | `service` | what was published |
//! | `tidings_replay_sent_total` | `queue` | events of the past that were sent to a consumer |
//! | `tidings_circuit_breaker_state` | `breaker` | 0 closed, 1 trying, 2 open |
//! | `tidings_sagas_open`, `tidings_sagas_oldest_age_seconds` | `saga`, `version`, `state` | sagas that have not ended (at most 10,000 of each state are counted, once a minute), and the age of the oldest |
//! | `tidings_sagas_total` | `saga`, `end` | sagas that ended: `completed`, `compensated`, `abandoned` |
//! | `tidings_saga_step_duration_seconds` | `saga`, `command` | from a step's command to its answer |
//! | `tidings_saga_late_replies_total` | `saga` | answers that say it is done, for which nobody waits any more |
//! | `tidings_saga_ignored_total` | `saga` | what changed nothing: answers that came twice, signals that nobody took |
//! | `tidings_saga_mismatches_total` | `saga` | turns in which a function went another way than its journal |
//! | `tidings_saga_conflicts_total` | `saga` | turns of a clock or an operator that an answer overtook |
//! | `tidings_saga_timer_lag_seconds` | `saga` | how long after its time a saga was told that it is due |
//! | `tidings_saga_journal_bytes` | `saga` | the size of journals as they are written |

// So that the derives work within this crate's own tests and examples.
extern crate self as tidings;

mod accept;
mod batch;
mod breaker;
mod consumer;
mod control;
pub mod dead_letters;
pub mod event_map;
mod extract;
mod gate;
mod gather;
mod handler;
pub mod handlers;
mod handling;
mod held;
mod limit;
pub mod moving;
mod needs;
mod options;
mod ordered;
mod partitions;
mod producer;
mod publish;
mod relay;
pub mod replay;
mod request;
mod retry;
mod round;
mod router;
mod saga;
mod schedule;
mod serve;
mod steps;
mod telemetry;
mod throttle;
mod trace;
mod upkeep;
mod worker;

pub use batch::{Batch, HandlerArgument, HandlerInput};
pub use breaker::{
    CircuitBreaker, CircuitBreakerLayer, CircuitBreakerService, CircuitOpen, Permit,
};
pub use control::{Paused, pause, paused, resume};
pub use extract::{Metadata, State};
pub use handler::{Handled, Handler, HandlerResult, HandlerService};
pub use options::{AfterDeadLetter, HandlerOptions};
pub use partitions::ordered_groups;
pub use producer::{Producer, ProducerTransaction};
pub use request::{AskError, Requester, Requests};
pub use retry::Retry;
pub use router::Router;
pub use schedule::{Cron, Missed, Occurrence};
pub use serve::{IntoRouters, Serve, ServeError, serve};
pub use steps::StepReply;
pub use tidings_core::*;
#[cfg(feature = "avro")]
pub use tidings_formats::avro;
#[cfg(feature = "protobuf")]
pub use tidings_formats::protobuf;
pub use tidings_macros::{Command, Event, Sensitive, handler, test};
pub use tidings_saga::{ChildSagas, First, Saga, Sagas, Step, StepError};
pub use tower;

/// Looking at sagas, operating them, and testing their functions.
pub mod sagas {
    pub use crate::saga::{
        asked::{CheckId, CheckReport, CheckState, ask_check, check_state, end_check},
        check::{Checked, Mismatch, check},
        operator::{
            Operation, OperationId, Query, Summary, is_pending, journal, list, names, operate,
        },
    };
    pub use tidings_saga::{
        ANSWER_NAME, Action, Answer, Arrival, CALL_OFF_NAME, Definition, Entry, Explored, Explorer,
        Journal, Parent, Part, STEP_HEADER, SagaState, Start, StartCheck, StepId, Turn, Undo, What,
    };
}

/// Looking at messages that are sent later, and operating them.
pub mod schedules {
    pub use crate::schedule::operator::{Planned, Query, Recurs, cancel, get, list, pause, resume};
}

/// What a handler returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything a service usually names: `use tidings::prelude::*`.
pub mod prelude {
    pub use crate::{
        Batch, CircuitBreaker, CircuitBreakerLayer, Command, Context, Event, Message, MessageId,
        Metadata, PermanentExt, Producer, Result, Retry, Router, SendWith, State, serve,
    };
    pub use serde::{Deserialize, Serialize};
    pub use tower::{ServiceBuilder, timeout::TimeoutLayer};
}

//! The operator endpoint of a running service: its stores and its broker over HTTP, for an operator who has
//! no access to the database and the broker themselves. It serves what an operator's tools use of the ports,
//! and nothing else; handlers' work (leases, commits of messages, subscriptions) is not there.
//!
//! ```no_run
//! use tidings_operator::{Operator, Token};
//!
//! # async fn example(
//! #     amqp: std::sync::Arc<dyn tidings_core::Transport>,
//! #     store: std::sync::Arc<dyn tidings_core::Store>,
//! #     stopped: impl Future<Output = ()>,
//! # ) -> Result<(), tidings_operator::Error> {
//! let operator = Operator::new(amqp).service("payment", store);
//! let endpoint = operator.listen(([127, 0, 0, 1], 7070).into()).await?;
//! println!("tidings --at http://{} doctor", endpoint.address());
//! endpoint.serve(stopped).await; // beside `tidings::serve`
//! # Ok(())
//! # }
//! ```
//!
//! # Who may
//!
//! On a loopback address everybody on the machine may, unless there is a [`Token`]; on any other address there
//! must be one, or the endpoint does not start. The token crosses the network as it is: put TLS or a tunnel
//! between. [`Operator::look_only`] refuses every change. A web page cannot use the endpoint: requests need a
//! header that a page cannot set without being asked, any `Origin` is refused, and on loopback so is a `Host`
//! that is not loopback's.
//!
//! # Limits
//!
//! [`CONNECTIONS_MAX`] connections, one request each; a request has [`REQUEST_BYTES_MAX`], must have come within
//! [`REQUEST_TIME_MAX`] and is answered within [`WORK_TIME_MAX`]; an answer has about [`ANSWER_BYTES_MAX`] and
//! at most [`ROWS_MAX`] rows: the client asks for more. Of dead letters at most [`HOLDS_MAX`] queues are held at a
//! time, and one that its client forgot goes back after [`HOLD_IDLE_MAX`].
//!
//! # The other side
//!
//! [`Remote`] is the client: [`Remote::store`] is a `Store`, [`Remote::broker`] a `Transport`, of which the same
//! part works; the rest is an error that says so.

mod client;
mod dispatch;
mod error;
mod guard;
mod holds;
mod limits;
mod remote_broker;
mod remote_store;
mod server;
mod token;
mod wire;

pub use self::{
    client::{Access, Remote},
    error::Error,
    limits::{
        ANSWER_BYTES_MAX, CONNECTIONS_MAX, HOLD_IDLE_MAX, HOLDS_MAX, REQUEST_BYTES_MAX,
        REQUEST_TIME_MAX, ROWS_MAX, WORK_TIME_MAX,
    },
    remote_broker::RemoteBroker,
    remote_store::RemoteStore,
    server::{Endpoint, Operator},
    token::{TOKEN_BYTES_MIN, Token},
};

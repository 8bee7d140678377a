//! What every service of the shop needs and none owns: one SQL text on two databases, problem
//! details, HTTP in and out.
//!
//! It knows no order, no payment and no parcel.

mod client;
mod database;
mod json;
#[cfg(feature = "postgres")]
mod postgres;
mod problem;
mod service;
mod sql;
mod text;
mod time;

pub use client::{BaseUrl, HttpClient, HttpError};
pub use database::{Database, Db, Tx};
pub use json::{JsonBody, QueryOf, REQUEST_BYTES_MAX};
pub use problem::{FieldError, Problem};
pub use service::{Service, idempotency_key, retry, timestamp};
pub use sql::{FromValue, Row, Statement, Value, sql};
pub use text::one_line;
pub use tidings_core::StoreError;
pub use time::Time;

//! What every service of the shop needs and none owns: one SQL text on two databases, problem
//! details, HTTP in and out.
//!
//! It knows no order, no payment and no parcel.

mod client;
mod json;
mod problem;
mod sql;

pub use client::{BaseUrl, HttpClient, HttpError};
pub use json::{JsonBody, QueryOf, REQUEST_BYTES_MAX};
pub use problem::{FieldError, Problem};
pub use sql::{FromValue, Outcome, Row, Statement, Value, sql};

//! What is bounded, on both sides.

use std::time::Duration;

/// How many connections the endpoint has at a time; further ones wait until one has ended.
pub const CONNECTIONS_MAX: usize = 32;

/// How many bytes a request may have.
pub const REQUEST_BYTES_MAX: usize = 16 * 1024 * 1024;

/// After how many bytes of rows an answer is cut. One row is always in it, however large.
pub const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How many rows are in an answer.
pub const ROWS_MAX: usize = 200;

/// How long the head of a request may take.
pub(crate) const HEAD_TIME_MAX: Duration = Duration::from_secs(5);

/// How long a whole request may take to come.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(20);

/// How long it may take to answer a request.
pub const WORK_TIME_MAX: Duration = Duration::from_secs(60);

/// How long a connection lasts, whatever its other end does.
pub(crate) const CONNECTION_TIME_MAX: Duration = Duration::from_secs(120);

/// How long a broker that is not there is waited for when queues are looked at.
pub(crate) const BROKER_TIME_MAX: Duration = Duration::from_secs(8);

/// How many queues of dead letters are held at a time.
pub const HOLDS_MAX: usize = 16;

/// After how long without a word from its client a held queue of dead letters goes back.
pub const HOLD_IDLE_MAX: Duration = Duration::from_secs(30);

/// How long requests under way may take when the service stops.
pub(crate) const FINISH_TIME_MAX: Duration = Duration::from_secs(2);

/// How many names there are in an answer.
pub(crate) const NAMES_MAX: usize = 10_000;

//! Envelopes as AMQP messages: CloudEvents in binary mode, and the history of what failed.
//!
//! Attributes are application headers (`cloudEvents:id`) and, where AMQP has a property of the
//! same meaning, that too. When reading, the header wins; the prefix `cloudEvents_`, which JMS
//! programs have to use, is known as well.

mod copied;
mod outgoing;
mod received;
#[cfg(test)]
mod tests;

use tidings_core::{FAILURES_HEADER, HISTORY_HEADER, QUEUE_HEADER, REASON_HEADER};
use tidings_wire::Properties;

pub(crate) use copied::{CopyFor, properties_of_copy};
pub(crate) use outgoing::put_properties;
pub(crate) use received::read;

const PERSISTENT: u8 = 2;

/// What the transport itself writes about deliveries that failed.
const OURS: [&str; 4] = [FAILURES_HEADER, HISTORY_HEADER, REASON_HEADER, QUEUE_HEADER];
/// The reasons in a history are cut to the first of these lengths, in bytes, with which all headers
/// fit into one frame.
const REASON_BYTES_MAX: [usize; 3] = [4 * 1024, 256, 16];
/// How often a quorum queue has handed a message out before.
const DELIVERY_COUNT: &str = "x-delivery-count";

/// What `make` makes with the longest reasons that fit, or else with the shortest.
fn fitting(
    bytes_max: usize,
    make: impl Fn(usize) -> Result<Properties, String>,
) -> Result<Properties, String> {
    let [rest @ .., shortest] = REASON_BYTES_MAX;
    for reason_bytes_max in rest {
        let made = make(reason_bytes_max)?;
        if made.as_bytes().len() <= bytes_max {
            return Ok(made);
        }
    }
    make(shortest)
}

/// What a broker adds when it moves a message out of a queue by itself.
fn is_of_broker(header: &str) -> bool {
    ["x-death", "x-first-death-", "x-last-death-"]
        .iter()
        .any(|prefix| header.starts_with(prefix))
}

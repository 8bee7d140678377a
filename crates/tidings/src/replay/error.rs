//! Why a replay did not come to its end.

use std::{error::Error as StdError, fmt};

use crate::StoreError;

use super::Start;

/// Why a replay did not come to its end. How far it came is written down, if it had begun.
#[derive(Debug)]
pub struct ReplayError {
    kind: Kind,
    message: String,
    source: Option<StoreError>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    NoLog,
    NoEvents,
    NoQueue,
    Unfinished,
    TakenOver,
    Dropped,
    Store,
}

impl ReplayError {
    /// The queue it goes to does not exist.
    pub fn is_no_queue(&self) -> bool {
        self.kind == Kind::NoQueue
    }

    /// An earlier run with another start or other events did not come to its end.
    pub fn is_unfinished(&self) -> bool {
        self.kind == Kind::Unfinished
    }

    /// Another run of the same replay was started, and goes on in its place.
    pub fn is_taken_over(&self) -> bool {
        self.kind == Kind::TakenOver
    }

    /// Events that were to be sent were dropped before, because their retention was over.
    pub fn is_dropped(&self) -> bool {
        self.kind == Kind::Dropped
    }

    fn new(kind: Kind, message: String) -> Self {
        Self {
            kind,
            message,
            source: None,
        }
    }

    pub(super) fn no_log() -> Self {
        let message = "this store cannot keep events, so there is nothing to replay";
        Self::new(Kind::NoLog, message.into())
    }

    pub(super) fn no_events(group: &str) -> Self {
        let message = format!(
            "the ordered group `{group}` may take events of any name; say which are to be sent, \
             with their names"
        );
        Self::new(Kind::NoEvents, message)
    }

    pub(super) fn no_queue(queue: &str, is_partition: bool) -> Self {
        let advice = match is_partition {
            true => {
                "start the service once, which declares its partitions, and ask for as many \
                 partitions as it has"
            }
            false => {
                "start the service once, which declares its queue, or declare its topology; a \
                 consumer that asks for order has partitions instead"
            }
        };
        let message = format!("there is no queue `{queue}` to send events to: {advice} (TDG-7001)");
        Self::new(Kind::NoQueue, message)
    }

    pub(super) fn unfinished(queue: &str, start: Start, position: i64) -> Self {
        let from = match start {
            Start::Beginning => "the beginning".to_owned(),
            Start::Time(time) => format!("the time {time}"),
            Start::After(position) => format!("position {position}"),
        };
        let message = format!(
            "a replay to `{queue}` from {from} came to position {position} and was not finished; \
             give the same start and events to go on with it, or say that it is to begin anew \
             (TDG-7002)"
        );
        Self::new(Kind::Unfinished, message)
    }

    pub(super) fn taken_over(queue: &str) -> Self {
        let message = format!(
            "another run of the replay to `{queue}` has taken over, and goes on in place of this \
             one (TDG-7003)"
        );
        Self::new(Kind::TakenOver, message)
    }

    pub(super) fn dropped(queue: &str, position: i64, dropped: i64) -> Self {
        let message = format!(
            "events after position {position} were to be sent to `{queue}`, but the log was \
             dropped up to position {dropped}, because their retention was over; begin anew with \
             what is left, or keep events for longer (TDG-7004)"
        );
        Self::new(Kind::Dropped, message)
    }
}

impl From<StoreError> for ReplayError {
    fn from(error: StoreError) -> Self {
        Self {
            source: Some(error),
            ..Self::new(
                Kind::Store,
                "the replay stopped where it was, start it again to go on".into(),
            )
        }
    }
}

impl fmt::Display for ReplayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for ReplayError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        let source = self.source.as_ref();
        source.map(|source| source as &(dyn StdError + 'static))
    }
}

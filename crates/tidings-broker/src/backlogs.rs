//! Backlogs that are longer than memory: when messages go away, and how they come back.
//!
//! From half of the memory that messages may take, what the log has and is not wanted soon is let go of
//! (`Broker::send_away`). A thread of its own reads it back, so that nobody but that queue waits for the
//! disk. The memory alarm is left for what cannot go away: transient messages, those that are out with
//! consumers, transactions.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use parking_lot::{Condvar, Mutex};
use tidings_broker_core::{Broker, Message, MessageId, QueueId};
use tidings_broker_log::LogError;

use crate::Error;
use crate::engine::Shared;
use crate::meter::Meter;

/// Messages of a queue that are to be read.
#[derive(Debug)]
struct Request {
    queue: QueueId,
    messages: Vec<MessageId>,
}

/// What was read.
pub(crate) type Read = Result<Vec<(MessageId, Arc<Message>)>, Arc<LogError>>;

/// Memory is looked at again when so much more is taken, or a sixteenth of what there may be: to look
/// costs something for each thousand messages that wait.
const STEP_BYTES_MAX: u64 = 4 << 20;

#[derive(Debug)]
pub(crate) struct Backlogs {
    /// From here on messages go away.
    budget: u64,
    step: u64,
    /// When to see to it again.
    next_at: u64,
    requests: Arc<Requests>,
}

/// What is to be read, in the order in which it was asked for: one request for each queue at most.
#[derive(Debug, Default)]
struct Requests {
    waiting: Mutex<Waiting>,
    came: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    requests: VecDeque<Request>,
    /// The broker is gone.
    is_over: bool,
}

impl Requests {
    /// The next one; nothing if there will be none.
    fn next(&self) -> Option<Request> {
        let mut waiting = self.waiting.lock();
        loop {
            if waiting.is_over {
                return None;
            }
            if let Some(request) = waiting.requests.pop_front() {
                return Some(request);
            }
            self.came.wait(&mut waiting);
        }
    }
}

impl Drop for Backlogs {
    fn drop(&mut self) {
        self.requests.waiting.lock().is_over = true;
        self.requests.came.notify_one();
    }
}

impl Backlogs {
    pub(crate) fn new(memory_bytes_max: u64) -> Self {
        let budget = memory_bytes_max / 2;
        Self {
            budget,
            step: STEP_BYTES_MAX.min(memory_bytes_max / 16),
            next_at: budget,
            requests: Arc::default(),
        }
    }

    /// Lets go of messages if they take too much memory.
    pub(crate) fn spare_memory(&mut self, core: &mut Broker, meter: &Meter) {
        let bytes = meter.bytes();
        if bytes < self.next_at {
            self.next_at = self.next_at.min(bytes.max(self.budget) + self.step);
            return;
        }
        core.send_away(bytes - self.budget + self.step);
        self.next_at = meter.bytes().max(self.budget) + self.step;
    }

    /// Has messages read.
    pub(crate) fn fetch(&mut self, queue: QueueId, messages: Vec<MessageId>) {
        let request = Request { queue, messages };
        self.requests.waiting.lock().requests.push_back(request);
        self.requests.came.notify_one();
    }
}

/// Starts the thread that reads; it ends with the broker.
pub(crate) fn start(shared: &Arc<Shared>) -> Result<(), Error> {
    let (reader, requests) = {
        let locked = shared.lock();
        let Some(reader) = locked.reader() else {
            // Without a log nothing goes away.
            return Ok(());
        };
        (reader, locked.backlogs().requests.clone())
    };
    let broker: Weak<Shared> = Arc::downgrade(shared);
    let thread = std::thread::Builder::new().name("broker-reader".to_owned());
    let reading = move || {
        while let Some(Request { queue, messages }) = requests.next() {
            let read = reader.read(messages.clone());
            let Some(shared) = broker.upgrade() else {
                return;
            };
            shared.lock().fetched(queue, &messages, read);
        }
    };
    thread.spawn(reading).map(drop).map_err(Error::thread)
}

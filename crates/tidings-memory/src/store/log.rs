//! Sent events that are kept.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use tidings_core::{LogEntry, LogPage, Outgoing};

use super::clock::earlier;

#[derive(Default)]
pub(super) struct Log {
    /// By position; a message is `None` if it cannot be read.
    events: BTreeMap<i64, (Timestamp, Option<Outgoing>)>,
    dropped_until: i64,
}

impl Log {
    pub(super) fn append(&mut self, position: i64, event: Outgoing, now: Timestamp) {
        self.events.insert(position, (now, Some(event)));
    }

    pub(super) fn read(&self, after: i64, until: i64, limit: usize) -> LogPage {
        let events = self.events.range(after.saturating_add(1)..);
        let events = events.take_while(|(position, _)| **position <= until);
        let entries = events.take(limit).map(|(position, (written, message))| {
            let message = message.clone();
            LogEntry {
                position: *position,
                written: *written,
                message: message.ok_or_else(|| "the metadata are damaged".into()),
            }
        });
        LogPage {
            entries: entries.collect(),
            dropped_until: self.dropped_until,
        }
    }

    /// Drops what is older than `age`, as if each event were a segment.
    pub(super) fn drop_older(&mut self, age: Duration, now: Timestamp) -> u64 {
        let end = earlier(now, age);
        let mut dropped = 0;
        while let Some(first) = self.events.first_entry()
            && first.get().0 <= end
        {
            self.dropped_until = *first.key();
            first.remove();
            dropped += 1;
        }
        dropped
    }

    pub(super) fn damage(&mut self, position: i64) -> bool {
        let event = self.events.get_mut(&position);
        event.map(|(_, message)| *message = None).is_some()
    }
}

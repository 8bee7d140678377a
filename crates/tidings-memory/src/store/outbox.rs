//! The rows of the outbox, and the relays that share its lanes.
//!
//! Rows that are held or set aside are kept apart from those that are ready, so that a relay's
//! rounds do not see them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use jiff::Timestamp;
use tidings_core::{
    Destination, Lane, Leased, ListedRow, OutboxRow, OutboxState, OutboxStats, Outgoing,
    hash_of_key,
};

use super::clock::{later, until};

#[derive(Default)]
pub(super) struct Outbox {
    ready: BTreeMap<i64, Row>,
    held: BTreeMap<i64, Row>,
    set_aside: BTreeMap<i64, Row>,
    /// How many rows are held of each destination and key.
    held_keys: HashMap<(Destination, u64), usize>,
    positions: i64,
    lanes: HashMap<Lane, (Box<str>, Timestamp)>,
    /// When each relay counts as dead.
    relays: HashMap<Box<str>, Timestamp>,
}

struct Row {
    destination: Destination,
    key: Option<u64>,
    lane: Lane,
    written: Timestamp,
    /// Why it is not ready; empty if it is.
    reason: String,
    /// `None` if it cannot be read.
    message: Option<Outgoing>,
}

impl Outbox {
    /// Writes a message, and says where.
    pub(super) fn write(&mut self, message: Outgoing, now: Timestamp) -> i64 {
        self.positions += 1;
        let row = Row {
            destination: message.destination.clone(),
            key: message.envelope.key.as_deref().map(hash_of_key),
            lane: Lane::of_message(&message),
            written: now,
            reason: String::new(),
            message: Some(message),
        };
        self.ready.insert(self.positions, row);
        self.positions
    }

    /// The greatest position so far.
    pub(super) fn last(&self) -> i64 {
        self.positions
    }

    pub(super) fn lease(&mut self, relay: &str, lease: Duration, now: Timestamp) -> Leased {
        let ends = later(now, lease);
        self.relays.retain(|_, ends| *ends > now);
        self.relays.insert(relay.into(), ends);
        let share = usize::from(Lane::COUNT).div_ceil(self.relays.len());

        let all = || (0..Lane::COUNT).map(Lane);
        let has = |lane: &Lane| matches!(self.lanes.get(lane), Some((of, _)) if **of == *relay);
        let is_free = |lane: &Lane| match self.lanes.get(lane) {
            Some((of, ends)) => **of != *relay && *ends <= now,
            None => true,
        };
        let mut lanes: Vec<Lane> = all().filter(has).collect();
        let room = share.saturating_sub(lanes.len());
        lanes.extend(all().filter(is_free).take(room));
        lanes.sort_unstable();
        for lane in &lanes {
            self.lanes.insert(*lane, (relay.into(), ends));
        }
        Leased {
            surplus: u16::try_from(lanes.len().saturating_sub(share)).unwrap_or(Lane::COUNT),
            lanes,
        }
    }

    pub(super) fn release(&mut self, relay: &str, lanes: Option<&[Lane]>) {
        self.lanes.retain(|lane, (of, _)| {
            **of != *relay || lanes.is_some_and(|lanes| !lanes.contains(lane))
        });
        if lanes.is_none() {
            self.relays.remove(relay);
        }
    }

    fn is_leased_by(&self, relay: &str, lane: Lane, now: Timestamp) -> bool {
        let lease = self.lanes.get(&lane);
        lease.is_some_and(|(of, ends)| **of == *relay && *ends > now)
    }

    pub(super) fn next(
        &self,
        lanes: &[Lane],
        held: &[Destination],
        except: &[i64],
        limit: usize,
        now: Timestamp,
    ) -> Vec<OutboxRow> {
        let except: BTreeSet<i64> = except.iter().copied().collect();
        let wanted = self
            .ready
            .iter()
            .filter(|(position, row)| lanes.contains(&row.lane) && !except.contains(position));
        let rows = wanted.take(limit).map(|(position, row)| OutboxRow {
            is_behind: held.contains(&row.destination) && self.is_behind(row),
            ..row.for_relay(*position, now)
        });
        rows.collect()
    }

    fn is_behind(&self, row: &Row) -> bool {
        row.key.is_some_and(|key| {
            let key = (row.destination.clone(), key);
            self.held_keys.contains_key(&key)
        })
    }

    pub(super) fn confirmed(&mut self, positions: &[i64]) {
        for position in positions {
            self.ready.remove(position);
            self.take_held(*position);
            self.set_aside.remove(position);
        }
    }

    pub(super) fn hold(&mut self, relay: &str, positions: &[i64], reason: &str, now: Timestamp) {
        for position in positions {
            if let Some(mut row) = self.take_unsent(relay, *position, now) {
                reason.clone_into(&mut row.reason);
                if let Some(key) = row.key {
                    let key = (row.destination.clone(), key);
                    *self.held_keys.entry(key).or_default() += 1;
                }
                self.held.insert(*position, row);
            }
        }
    }

    pub(super) fn set_aside(
        &mut self,
        relay: &str,
        positions: &[i64],
        reason: &str,
        now: Timestamp,
    ) {
        for position in positions {
            if let Some(mut row) = self.take_unsent(relay, *position, now) {
                reason.clone_into(&mut row.reason);
                self.set_aside.insert(*position, row);
            }
        }
    }

    /// Takes out a row that is ready or held, if `relay` has its lane.
    fn take_unsent(&mut self, relay: &str, position: i64, now: Timestamp) -> Option<Row> {
        let row = self.ready.get(&position).or(self.held.get(&position))?;
        if !self.is_leased_by(relay, row.lane, now) {
            return None;
        }
        let ready = self.ready.remove(&position);
        ready.or_else(|| self.take_held(position))
    }

    fn take_held(&mut self, position: i64) -> Option<Row> {
        let row = self.held.remove(&position)?;
        if let Some(key) = row.key {
            let key = (row.destination.clone(), key);
            if let Some(count) = self.held_keys.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.held_keys.remove(&key);
                }
            }
        }
        Some(row)
    }

    pub(super) fn held(&self, lanes: &[Lane]) -> Vec<Destination> {
        let mut destinations: BTreeMap<String, &Destination> = BTreeMap::new();
        for row in self.held.values() {
            if lanes.contains(&row.lane) {
                destinations.insert(row.destination.to_text(), &row.destination);
            }
        }
        destinations.into_values().cloned().collect()
    }

    pub(super) fn next_held(
        &self,
        lanes: &[Lane],
        destination: &Destination,
        limit: usize,
        now: Timestamp,
    ) -> Vec<OutboxRow> {
        let wanted = self
            .held
            .iter()
            .filter(|(_, row)| lanes.contains(&row.lane) && row.destination == *destination);
        let rows = wanted.take(limit);
        rows.map(|(position, row)| row.for_relay(*position, now))
            .collect()
    }

    pub(super) fn list(
        &self,
        state: OutboxState,
        after: Option<i64>,
        limit: usize,
    ) -> Vec<ListedRow> {
        let rows = match state {
            OutboxState::Held => &self.held,
            OutboxState::SetAside => &self.set_aside,
        };
        let rows = rows
            .iter()
            .filter(|(position, _)| after.is_none_or(|after| **position > after));
        let listed = rows.take(limit).map(|(position, row)| ListedRow {
            position: *position,
            written: row.written,
            destination: row.destination.clone(),
            reason: row.reason.clone(),
            message: row.message.clone(),
        });
        listed.collect()
    }

    pub(super) fn restore(&mut self, positions: &[i64]) -> u64 {
        let mut count = 0;
        for position in positions {
            if let Some(mut row) = self.set_aside.remove(position) {
                row.reason.clear();
                self.ready.insert(*position, row);
                count += 1;
            }
        }
        count
    }

    pub(super) fn discard(&mut self, positions: &[i64]) -> u64 {
        let discarded = positions
            .iter()
            .filter_map(|position| self.set_aside.remove(position));
        discarded.count() as u64
    }

    pub(super) fn stats(&self, now: Timestamp) -> OutboxStats {
        let count = |rows: &BTreeMap<i64, Row>| OutboxStats::COUNT_MAX.min(rows.len() as u64);
        let age = |rows: &BTreeMap<i64, Row>| {
            let oldest = rows.values().next();
            oldest.map_or(Duration::ZERO, |row| until(row.written, now))
        };
        OutboxStats {
            ready: count(&self.ready),
            oldest_ready_age: age(&self.ready),
            held: count(&self.held),
            oldest_held_age: age(&self.held),
            set_aside: count(&self.set_aside),
        }
    }

    /// The messages that can be read, in order.
    pub(super) fn messages(&self) -> Vec<Outgoing> {
        let all = [&self.ready, &self.held, &self.set_aside];
        let rows: BTreeMap<i64, &Row> = all
            .into_iter()
            .flatten()
            .map(|(position, row)| (*position, row))
            .collect();
        rows.into_values()
            .filter_map(|row| row.message.clone())
            .collect()
    }

    /// Makes a message unreadable. False if it is not there.
    pub(super) fn damage(&mut self, position: i64) -> bool {
        let mut all = [&mut self.ready, &mut self.held, &mut self.set_aside].into_iter();
        let row = all.find_map(|rows| rows.get_mut(&position));
        row.map(|row| row.message = None).is_some()
    }
}

impl Row {
    fn for_relay(&self, position: i64, now: Timestamp) -> OutboxRow {
        OutboxRow {
            position,
            age: until(self.written, now),
            is_behind: false,
            message: self
                .message
                .clone()
                .ok_or_else(|| "the metadata are damaged".into()),
        }
    }
}

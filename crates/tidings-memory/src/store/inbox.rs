//! The rows of the inbox and what keeps their order.
//!
//! Of the rows with one order key at most one is the *head*: it is deferred, or dead and blocks the
//! key. The key is open as long as there is a head; parked rows wait behind it. Each write that
//! takes a head away makes the first parked row the next one, in the same commit.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use tidings_core::{
    Ask, Attempt, Claim, Due, Envelope, Fate, InboxEntry, InboxQuery, InboxRow, InboxState, Lease,
    OrderKey, Over, Refusal, Seen, StoreError, Waiting,
};

use super::clock::{earlier, later, until};

#[derive(Default)]
pub(super) struct Inbox {
    rows: HashMap<Claim, Row>,
    /// The row of each key that the others wait for.
    heads: HashMap<OrderKey, Claim>,
    /// The rows of each key that wait for its head, by number.
    parked: HashMap<OrderKey, BTreeMap<i64, Claim>>,
    /// Deferred rows by when they are due.
    due: BTreeMap<(Timestamp, i64), Claim>,
    leases: HashMap<Lease, Claim>,
    /// Rows that are not handled, by number.
    unhandled: BTreeMap<i64, Claim>,
    /// Handled rows by consumer and by when they were.
    handled: BTreeMap<(Box<str>, Timestamp, i64), Claim>,
    numbers: i64,
    takings: u64,
}

#[derive(Clone)]
struct Row {
    number: i64,
    order: Option<OrderKey>,
    redrive: u32,
    failures: u32,
    history: Vec<Attempt>,
    /// While it waits: the message, or why it cannot be read.
    envelope: Option<Result<Arc<Envelope>, Box<str>>>,
    state: State,
}

#[derive(Clone)]
enum State {
    Handled {
        at: Timestamp,
    },
    Deferred {
        /// When it is due, or when its lease ends.
        due: Timestamp,
        lease: Option<Lease>,
        unfinished: u32,
    },
    Parked,
    Dead {
        blocks: bool,
    },
}

/// Rows as they were before a commit, in the order it wrote them.
#[derive(Default)]
pub(super) struct Before(Vec<(Claim, Option<Row>)>);

/// An entry that was refused, by its place.
pub(super) type Refused = (usize, Refusal);

impl Inbox {
    /// Writes all entries or none. What is returned undoes them.
    pub(super) fn write_all(
        &mut self,
        entries: Vec<InboxEntry>,
        now: Timestamp,
    ) -> Result<Result<Before, Refused>, StoreError> {
        let mut before = Before::default();
        for (place, entry) in entries.into_iter().enumerate() {
            match self.write(entry, now, &mut before) {
                Ok(None) => {}
                Ok(Some(why)) => {
                    self.undo(before);
                    return Ok(Err((place, why)));
                }
                Err(error) => {
                    self.undo(before);
                    return Err(error);
                }
            }
        }
        Ok(Ok(before))
    }

    pub(super) fn undo(&mut self, before: Before) {
        for (claim, row) in before.0.into_iter().rev() {
            self.set(&claim, row);
        }
    }

    fn write(
        &mut self,
        entry: InboxEntry,
        now: Timestamp,
        before: &mut Before,
    ) -> Result<Option<Refusal>, StoreError> {
        let claim = entry.claim;
        let old = self.rows.get(&claim).cloned();
        let known = match (&entry.over, &old) {
            (Over::Nothing | Over::Dead { .. }, None) => false,
            (Over::Dead { redrive }, Some(row)) => {
                !matches!(row.state, State::Dead { .. }) || row.redrive >= *redrive
            }
            (Over::Lease(lease), Some(row)) => row.lease() != Some(lease),
            (Over::Nothing, Some(_)) | (Over::Lease(_), None) => true,
        };
        if known {
            return Ok(Some(Refusal::Known));
        }
        let parks = matches!(entry.fate, Fate::Parked(_));
        let over_lease = matches!(entry.over, Over::Lease(_));
        if parks && (over_lease || entry.order.is_none()) {
            return Err(StoreError::new(format!(
                "message `{}` of `{}` cannot be parked: only a delivery with an order key can wait \
                 behind another",
                claim.message, claim.consumer
            )));
        }
        if !over_lease && let Some(key) = &entry.order {
            match self.is_behind(key, &claim) {
                true if !parks => return Ok(Some(Refusal::Behind)),
                false if parks => return Ok(Some(Refusal::Free)),
                _ => {}
            }
        }
        let order = match &old {
            Some(row) if over_lease => row.order.clone(),
            _ => entry.order,
        };
        let redrive = match entry.over {
            Over::Dead { redrive } => redrive,
            _ => old.as_ref().map_or(0, |row| row.redrive),
        };
        let number = match &old {
            Some(row) => row.number,
            None => {
                self.numbers += 1;
                self.numbers
            }
        };
        let kept = old.as_ref().and_then(|row| row.envelope.clone());
        let row = Row::new(number, order, redrive, kept, entry.fate, now);
        let keys = [old.and_then(|row| row.order), row.order.clone()];
        self.replace(&claim, row, before);
        for key in keys.into_iter().flatten() {
            self.go_on(&key, now, before);
        }
        Ok(None)
    }

    /// Another message of `key` must end before that of `claim` can be handled.
    fn is_behind(&self, key: &OrderKey, claim: &Claim) -> bool {
        self.heads.get(key).is_some_and(|head| head != claim)
    }

    /// Makes the first parked row of `key` due, if nothing is before it any more.
    fn go_on(&mut self, key: &OrderKey, now: Timestamp, before: &mut Before) {
        if self.heads.contains_key(key) {
            return;
        }
        let first = self.parked.get(key).and_then(|rows| rows.values().next());
        let Some(claim) = first.cloned() else { return };
        if let Some(mut row) = self.rows.get(&claim).cloned() {
            row.state = State::Deferred {
                due: now,
                lease: None,
                unfinished: 0,
            };
            self.replace(&claim, row, before);
        }
    }

    fn replace(&mut self, claim: &Claim, row: Row, before: &mut Before) {
        let old = self.set(claim, Some(row));
        before.0.push((claim.clone(), old));
    }

    /// Puts a row in the place of another, and returns that one. All indexes are kept here.
    fn set(&mut self, claim: &Claim, row: Option<Row>) -> Option<Row> {
        let old = self.rows.remove(claim);
        if let Some(old) = &old {
            self.unindex(claim, old);
        }
        if let Some(row) = row {
            self.index(claim, &row);
            self.rows.insert(claim.clone(), row);
        }
        old
    }

    fn index(&mut self, claim: &Claim, row: &Row) {
        if let (Some(key), true) = (&row.order, row.is_head()) {
            let other = self.heads.insert(key.clone(), claim.clone());
            debug_assert!(other.is_none(), "one head per key");
        }
        if let (Some(key), State::Parked) = (&row.order, &row.state) {
            let parked = self.parked.entry(key.clone()).or_default();
            parked.insert(row.number, claim.clone());
        }
        if let State::Handled { at } = row.state {
            let place = (claim.consumer.clone(), at, row.number);
            self.handled.insert(place, claim.clone());
        } else {
            self.unhandled.insert(row.number, claim.clone());
        }
        if let State::Deferred { due, lease, .. } = &row.state {
            self.due.insert((*due, row.number), claim.clone());
            if let Some(lease) = lease {
                self.leases.insert(lease.clone(), claim.clone());
            }
        }
    }

    fn unindex(&mut self, claim: &Claim, row: &Row) {
        if let (Some(key), true) = (&row.order, row.is_head()) {
            self.heads.remove(key);
        }
        if let (Some(key), State::Parked) = (&row.order, &row.state)
            && let Some(parked) = self.parked.get_mut(key)
        {
            parked.remove(&row.number);
            if parked.is_empty() {
                self.parked.remove(key);
            }
        }
        if let State::Handled { at } = row.state {
            let place = (claim.consumer.clone(), at, row.number);
            self.handled.remove(&place);
        } else {
            self.unhandled.remove(&row.number);
        }
        if let State::Deferred { due, lease, .. } = &row.state {
            self.due.remove(&(*due, row.number));
            if let Some(lease) = lease {
                self.leases.remove(lease);
            }
        }
    }

    pub(super) fn look(&self, ask: &Ask) -> Seen {
        let row = self.rows.get(&ask.claim);
        Seen {
            state: row.map(|row| row.state()),
            redrive: row.map_or(0, |row| row.redrive),
            behind: ask
                .order
                .as_ref()
                .is_some_and(|key| self.is_behind(key, &ask.claim)),
        }
    }

    pub(super) fn forget(
        &mut self,
        consumer: &str,
        age: Duration,
        limit: usize,
        now: Timestamp,
    ) -> u64 {
        let end = earlier(now, age);
        let start = (consumer.into(), Timestamp::MIN, i64::MIN);
        let old: Vec<Claim> = self
            .handled
            .range(start..(consumer.into(), end, i64::MIN))
            .take(limit)
            .map(|(_, claim)| claim.clone())
            .collect();
        for claim in &old {
            self.set(claim, None);
        }
        old.len() as u64
    }

    pub(super) fn take_due(
        &mut self,
        consumers: &[Box<str>],
        worker: &str,
        lease: Duration,
        limit: usize,
        now: Timestamp,
    ) -> Vec<Due> {
        let due: Vec<Claim> = self
            .due
            .range(..=(now, i64::MAX))
            .filter(|(_, claim)| consumers.contains(&claim.consumer))
            .take(limit)
            .map(|(_, claim)| claim.clone())
            .collect();
        let mut taken = Vec::with_capacity(due.len());
        for claim in due {
            self.takings += 1;
            let new = Lease(format!("{worker}-{}", self.takings).into());
            let until = later(now, lease);
            let Some(mut row) = self.rows.get(&claim).cloned() else {
                continue;
            };
            let State::Deferred {
                due,
                lease,
                unfinished,
            } = &mut row.state
            else {
                continue;
            };
            let unfinished_before = *unfinished;
            (*due, *lease, *unfinished) = (until, Some(new.clone()), unfinished_before + 1);
            taken.push(Due {
                claim: claim.clone(),
                lease: new,
                order: row.order.clone(),
                envelope: row
                    .envelope
                    .clone()
                    .unwrap_or_else(|| Err("no message".into())),
                failures: row.failures,
                history: row.history.clone(),
                unfinished: unfinished_before,
            });
            self.set(&claim, Some(row));
        }
        taken
    }

    /// Changes the rows that are under these leases.
    fn change_leased(
        &mut self,
        leases: &[Lease],
        change: impl Fn(&mut Timestamp, &mut Option<Lease>, &mut u32),
    ) {
        for lease in leases {
            let Some(claim) = self.leases.get(lease).cloned() else {
                continue;
            };
            let Some(mut row) = self.rows.get(&claim).cloned() else {
                continue;
            };
            if let State::Deferred {
                due,
                lease,
                unfinished,
            } = &mut row.state
            {
                change(due, lease, unfinished);
            }
            self.set(&claim, Some(row));
        }
    }

    pub(super) fn renew(&mut self, leases: &[Lease], until: Timestamp) {
        self.change_leased(leases, |due, _, _| *due = until);
    }

    pub(super) fn release(&mut self, leases: &[Lease], due_at: Timestamp) {
        self.change_leased(leases, |due, lease, unfinished| {
            (*due, *lease, *unfinished) = (due_at, None, unfinished.saturating_sub(1));
        });
    }

    pub(super) fn next_due(&self, consumers: &[Box<str>], now: Timestamp) -> Option<Duration> {
        let mut rows = self.due.iter();
        let ((due, _), _) = rows.find(|(_, claim)| consumers.contains(&claim.consumer))?;
        Some(until(now, *due))
    }

    pub(super) fn waiting(&self, consumer: &str, limit: u64) -> u64 {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let waits = |claim: &&Claim| {
            *claim.consumer == *consumer
                && self.rows.get(*claim).is_some_and(|row| {
                    matches!(row.state(), InboxState::Deferred | InboxState::Parked)
                })
        };
        self.unhandled.values().filter(waits).take(limit).count() as u64
    }

    pub(super) fn consumers(&self, limit: usize) -> Vec<Box<str>> {
        let consumers: BTreeSet<&Box<str>> = self.rows.keys().map(|it| &it.consumer).collect();
        consumers.into_iter().take(limit).cloned().collect()
    }

    pub(super) fn list(&self, query: &InboxQuery, now: Timestamp) -> Vec<InboxRow> {
        let after = query.after.unwrap_or(i64::MIN);
        self.unhandled
            .range(after..)
            .filter(|(number, _)| query.after.is_none_or(|after| **number > after))
            .filter_map(|(_, claim)| Some((claim, self.rows.get(claim)?)))
            .filter(|(claim, row)| {
                let consumer = query.consumer.as_ref();
                consumer.is_none_or(|consumer| *consumer == claim.consumer)
                    && query.state.is_none_or(|state| state == row.state())
            })
            .take(query.limit)
            .map(|(claim, row)| row.for_people(claim, now))
            .collect()
    }

    pub(super) fn reschedule(&mut self, claims: &[Claim], due_in: Duration, now: Timestamp) -> u64 {
        let mut count = 0;
        for claim in claims {
            let Some(mut row) = self.rows.get(claim).cloned() else {
                continue;
            };
            if row.is_leased(now) {
                continue;
            }
            if let State::Deferred { due, lease, .. } = &mut row.state {
                (*due, *lease) = (later(now, due_in), None);
                self.set(claim, Some(row));
                count += 1;
            }
        }
        count
    }

    pub(super) fn discard(&mut self, claims: &[Claim], now: Timestamp) -> u64 {
        let mut count = 0;
        for claim in claims {
            let Some(row) = self.rows.get(claim).cloned() else {
                continue;
            };
            if row.is_leased(now) || matches!(row.state, State::Handled { .. }) {
                continue;
            }
            let order = row.order.clone();
            let handled = Row::new(row.number, row.order, row.redrive, None, Fate::Handled, now);
            self.set(claim, Some(handled));
            if let Some(key) = order {
                self.go_on(&key, now, &mut Before::default());
            }
            count += 1;
        }
        count
    }

    /// Makes the message of a row that waits unreadable. False if no such row waits.
    pub(super) fn damage(&mut self, claim: &Claim) -> bool {
        let envelope = self
            .rows
            .get_mut(claim)
            .and_then(|row| row.envelope.as_mut());
        envelope
            .map(|envelope| *envelope = Err("the metadata are damaged".into()))
            .is_some()
    }
}

impl Row {
    fn new(
        number: i64,
        order: Option<OrderKey>,
        redrive: u32,
        kept: Option<Result<Arc<Envelope>, Box<str>>>,
        fate: Fate,
        now: Timestamp,
    ) -> Self {
        let row = Self {
            number,
            order,
            redrive,
            failures: 0,
            history: Vec::new(),
            envelope: None,
            state: State::Parked,
        };
        let waits = |waiting: Waiting, state| Self {
            failures: waiting.failures,
            history: waiting.history,
            envelope: Some(kept.unwrap_or(Ok(waiting.envelope))),
            state,
            ..row.clone()
        };
        match fate {
            Fate::Handled => Self {
                state: State::Handled { at: now },
                ..row
            },
            Fate::Deferred(waiting) => {
                let state = State::Deferred {
                    due: later(now, waiting.due_in),
                    lease: None,
                    unfinished: 0,
                };
                waits(waiting, state)
            }
            Fate::Parked(waiting) => waits(waiting, State::Parked),
            Fate::Dead {
                failures,
                history,
                blocks,
            } => Self {
                failures,
                history,
                state: State::Dead { blocks },
                ..row
            },
        }
    }

    fn is_head(&self) -> bool {
        matches!(
            self.state,
            State::Deferred { .. } | State::Dead { blocks: true }
        )
    }

    fn lease(&self) -> Option<&Lease> {
        match &self.state {
            State::Deferred { lease, .. } => lease.as_ref(),
            _ => None,
        }
    }

    fn is_leased(&self, now: Timestamp) -> bool {
        matches!(&self.state, State::Deferred { due, lease: Some(_), .. } if *due > now)
    }

    fn state(&self) -> InboxState {
        match self.state {
            State::Handled { .. } => InboxState::Handled,
            State::Deferred { .. } => InboxState::Deferred,
            State::Parked => InboxState::Parked,
            State::Dead { .. } => InboxState::Dead,
        }
    }

    fn for_people(&self, claim: &Claim, now: Timestamp) -> InboxRow {
        InboxRow {
            number: self.number,
            claim: claim.clone(),
            state: self.state(),
            order: self.order.clone(),
            due: match self.state {
                State::Deferred { due, .. } => Some(due),
                _ => None,
            },
            is_leased: self.is_leased(now),
            failures: self.failures,
            history: self.history.clone(),
            envelope: self.envelope.clone().and_then(Result::ok),
        }
    }
}

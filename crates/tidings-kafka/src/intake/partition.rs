//! A partition while it is assigned: its window, what waits for a lease, and what there is to commit.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{Place, state::Held};
use crate::{
    bindings::Wanted,
    window::{Progress, Window},
};

/// The fewest offsets that are leased at once.
const LEASE_MIN: i64 = 256;
/// The most.
const LEASE_MAX: i64 = 65_536;
/// How long messages wait for a lease before they are handed out without.
pub(super) const LEASE_WAIT_MAX: Duration = Duration::from_secs(1);
/// A lease that was used up sooner makes the next one longer, one that lasted much longer makes it shorter.
const LEASE_LASTS: Duration = Duration::from_secs(1);

pub(super) struct Partition {
    pub(super) place: Place,
    /// Never the same one again.
    pub(super) assignment: u64,
    pub(super) window: Window,
    pub(super) wanted: Wanted,
    /// Offsets below this may be handed out.
    pub(super) lease: i64,
    pub(super) lease_size: i64,
    pub(super) leased_at: Option<Instant>,
    /// Fetched and not leased yet, in order.
    pub(super) unleased: VecDeque<Held>,
    /// Since when they wait for that.
    pub(super) unleased_since: Option<Instant>,
    /// Nothing more is handed out: it goes elsewhere.
    pub(super) is_leaving: bool,
    /// Where it began.
    pub(super) begun_at: i64,
    /// What was committed last.
    pub(super) committed: Option<(i64, String)>,
}

/// What is to be committed of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Commit {
    /// Of which assignment: what is on its way says nothing about a later one.
    pub(super) assignment: u64,
    pub(crate) place: Place,
    pub(crate) watermark: i64,
    pub(crate) text: String,
}

impl Partition {
    /// One that was just assigned.
    pub(super) fn new(
        place: Place,
        assignment: u64,
        position: i64,
        before: Progress,
        wanted: Wanted,
    ) -> Self {
        Self {
            place,
            assignment,
            lease: position,
            begun_at: position,
            window: Window::new(position, before),
            wanted,
            lease_size: LEASE_MIN,
            leased_at: None,
            unleased: VecDeque::new(),
            unleased_since: None,
            is_leaving: false,
            committed: None,
        }
    }

    /// What there is to commit, if it is another than before.
    pub(super) fn due(&self, leased: i64) -> Option<Commit> {
        let watermark = self.window.watermark();
        let text = self.window.progress(leased).text(watermark);
        let is_new = match &self.committed {
            Some(committed) => *committed != (watermark, text.clone()),
            // Nothing was fetched.
            None => self.window.len() > 0 || watermark != self.begun_at,
        };
        is_new.then(|| Commit {
            assignment: self.assignment,
            place: self.place.clone(),
            watermark,
            text,
        })
    }

    /// What may be handed out now.
    pub(super) fn take_leased(&mut self) -> impl Iterator<Item = Held> + use<> {
        let count = self.unleased.partition_point(|it| it.offset < self.lease);
        let rest = self.unleased.split_off(count);
        let now = std::mem::replace(&mut self.unleased, rest);
        if self.unleased.is_empty() {
            self.unleased_since = None;
        }
        now.into_iter()
    }

    /// Leases more at once if the last lease was used up soon, and less if it lasted.
    fn grow(&mut self) {
        if let Some(at) = self.leased_at.take() {
            let size = match at.elapsed() {
                short if short < LEASE_LASTS / 8 => self.lease_size * 8,
                short if short < LEASE_LASTS => self.lease_size * 2,
                long if long > LEASE_LASTS * 8 => self.lease_size / 2,
                _ => self.lease_size,
            };
            self.lease_size = size.clamp(LEASE_MIN, LEASE_MAX);
        }
    }

    /// True before half of the lease is used up, so that nobody waits for the next one.
    pub(super) fn wants_lease(&self) -> bool {
        let is_used = self.window.len() > 0 || self.committed.is_some();
        is_used && self.lease < self.window.next() + self.lease_size / 2
    }

    /// What there is to commit, with a lease of what is handed out next.
    pub(super) fn due_with_lease(&mut self) -> Option<Commit> {
        let mut leased = self.lease;
        if self.wants_lease() {
            self.grow();
            leased = self.window.next() + self.lease_size;
        }
        self.due(leased)
    }
}

//! How far this process has read, so that it need not begin at the beginning each time.
//!
//! PostgreSQL keeps what was removed, in the table and in its indexes, until no snapshot can see it
//! any more. Somebody who reads for an hour keeps an hour of removed rows, and whoever then asks for
//! the oldest row walks over all of them. So the relay's reading begins where everything before was
//! read and is gone, and forgetting begins where it ended the last time.
//!
//! A transaction may commit later than one with greater positions, and its rows must be sent. What is
//! written is therefore passed over only when it is [`RIPE`]; and now and then reading begins at the
//! beginning all the same, as a share of the time that it takes. So rows of a transaction that took
//! longer than that are read a little later. Order is not touched: a key's positions follow the order
//! of commits (see [`outbox`](crate::outbox)).

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use tidings_core::{Lane, OutboxRow};

/// How old a row is before which none is expected to be committed any more.
const RIPE: Duration = Duration::from_secs(1);

/// How often reading begins at the beginning...
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// ...if it takes no larger part of the time than this.
const LOOK_SHARE: u32 = 20;

/// How far a store has read.
#[derive(Default)]
pub(crate) struct Progress {
    outbox: Mutex<Ready>,
    /// The time before which everything of a consumer was forgotten.
    forgotten: Mutex<HashMap<Box<str>, SystemTime>>,
}

/// How far the ready rows of some lanes were read.
#[derive(Default)]
struct Ready {
    lanes: Vec<i16>,
    /// No position up to this is expected any more.
    ripe: i64,
    /// Positions that will be ripe, and when.
    ripening: VecDeque<(Instant, i64)>,
    /// What was read and is not out of the way.
    open: BTreeSet<i64>,
    /// When to begin at the beginning; `None`: at once.
    look_at: Option<Instant>,
}

/// One reading of ready rows.
pub(crate) struct Reading {
    /// The position that it begins after.
    pub(crate) after: i64,
    began: Instant,
}

impl Progress {
    /// Begins to read the ready rows of `lanes`.
    pub(crate) fn read(&self, lanes: &[i16]) -> Reading {
        let mut ready = self.outbox.lock();
        let began = Instant::now();
        if ready.lanes != lanes {
            *ready = Ready {
                lanes: lanes.to_vec(),
                ripe: i64::MIN,
                ..Ready::default()
            };
        }
        while let Some((at, position)) = ready.ripening.front().copied()
            && at <= began
        {
            ready.ripening.pop_front();
            ready.ripe = ready.ripe.max(position);
        }
        let looks = ready.look_at.is_none_or(|at| at <= began);
        let after = if looks { i64::MIN } else { ready.after() };
        Reading { after, began }
    }

    /// What was read: `rows`, and there are more if it `is_full`. `except` was left out.
    pub(crate) fn have_read(
        &self,
        reading: &Reading,
        rows: &[OutboxRow],
        except: &[i64],
        is_full: bool,
    ) {
        let mut ready = self.outbox.lock();
        let now = Instant::now();
        let last = rows.last().map(|row| row.position);
        if reading.after == i64::MIN {
            let took = now - reading.began;
            ready.look_at = Some(now + LOOK_EVERY.max(took * LOOK_SHARE));
        }
        // What was open and is not here is gone, whoever removed it, unless it comes before or after
        // these. What was left out may be out of the way meanwhile: none of it becomes open again.
        let except: HashSet<i64> = except.iter().copied().collect();
        let end = last.filter(|_| is_full).unwrap_or(i64::MAX);
        ready.open.retain(|position| {
            *position <= reading.after || *position > end || except.contains(position)
        });
        ready.open.extend(rows.iter().map(|row| row.position));
        let old = rows.iter().take_while(|row| row.age >= RIPE).last();
        if let Some(old) = old {
            ready.ripe = ready.ripe.max(old.position);
        }
        if let Some(last) = last
            && ready
                .ripening
                .back()
                .is_none_or(|(_, before)| *before < last)
        {
            ready.ripening.push_back((now + RIPE, last));
        }
    }

    /// The position after which ready rows are, if this process reads those of all lanes.
    pub(crate) fn after_in_all_lanes(&self) -> i64 {
        let ready = self.outbox.lock();
        let has_all = ready.lanes.len() == usize::from(Lane::COUNT);
        if has_all { ready.after() } else { i64::MIN }
    }

    /// These are out of the way: removed, held or set aside.
    pub(crate) fn settled(&self, positions: &[i64]) {
        let mut ready = self.outbox.lock();
        for position in positions {
            ready.open.remove(position);
        }
    }

    /// Rows became ready that were not: begin at the beginning.
    pub(crate) fn begin_anew(&self) {
        self.outbox.lock().look_at = None;
    }

    /// Nothing of `consumer` that was handled before this is left, as far as is known.
    pub(crate) fn forgotten_before(&self, consumer: &str) -> SystemTime {
        let before = self.forgotten.lock().get(consumer).copied();
        before.unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// Forgetting has come to this time; `None`: to its end.
    pub(crate) fn has_forgotten(&self, consumer: &str, until: Option<SystemTime>) {
        let mut forgotten = self.forgotten.lock();
        match until {
            Some(until) => forgotten.insert(consumer.into(), until),
            // What was left out (locked by another, or committed late) is found from the beginning.
            None => forgotten.remove(consumer),
        };
    }
}

impl Ready {
    fn after(&self) -> i64 {
        let open = self.open.first().map(|first| first - 1);
        open.map_or(self.ripe, |open| open.min(self.ripe))
    }
}

#[cfg(test)]
mod tests {
    use tidings_core::Envelope;

    use super::*;

    const LANES: [i16; 2] = [0, 1];

    fn row(position: i64, age: Duration) -> OutboxRow {
        OutboxRow {
            position,
            age,
            is_behind: false,
            message: Err(Envelope::new("", "").name.into_owned().into()),
        }
    }

    /// Reads, and says after which position.
    fn read(progress: &Progress, rows: &[(i64, Duration)], is_full: bool) -> i64 {
        let reading = progress.read(&LANES);
        let rows: Vec<_> = rows
            .iter()
            .map(|(position, age)| row(*position, *age))
            .collect();
        progress.have_read(&reading, &rows, &[], is_full);
        reading.after
    }

    #[test]
    fn reading_goes_on_behind_what_is_old_and_out_of_the_way() {
        let progress = Progress::default();
        assert_eq!(read(&progress, &[(1, RIPE), (2, RIPE)], true), i64::MIN);
        let rest = [(1, RIPE), (2, RIPE), (3, RIPE)];
        assert_eq!(read(&progress, &rest, true), 0, "1 is open");
        progress.settled(&[1]);
        assert_eq!(read(&progress, &rest[1..], false), 1);
        progress.settled(&[3, 2]);
        assert_eq!(read(&progress, &[(4, Duration::ZERO)], false), 3);
        progress.settled(&[4]);
        assert_eq!(
            read(&progress, &[], false),
            3,
            "4 is young: others may come"
        );
        progress.begin_anew();
        assert_eq!(read(&progress, &[(2, RIPE)], false), i64::MIN);
        assert_eq!(read(&progress, &[], false), 1, "it was found late");
    }

    #[test]
    fn what_somebody_else_removed_holds_up_nothing() {
        let progress = Progress::default();
        read(&progress, &[(1, RIPE), (2, RIPE), (3, RIPE)], true);
        progress.settled(&[1]);
        assert_eq!(read(&progress, &[(4, RIPE)], true), 1, "2 and 3 are open");
        progress.settled(&[4]);
        assert_eq!(
            read(&progress, &[], false),
            4,
            "they were not there any more"
        );
    }

    #[test]
    fn other_lanes_are_read_from_the_beginning() {
        let progress = Progress::default();
        read(&progress, &[(1, RIPE)], false);
        progress.settled(&[1]);
        assert_eq!(progress.read(&LANES).after, 1);
        assert_eq!(progress.read(&[0]).after, i64::MIN);
        assert_eq!(progress.read(&LANES).after, i64::MIN);
    }

    #[test]
    fn what_is_removed_while_reading_begins_anew_does_not_become_open_again() {
        let progress = Progress::default();
        read(&progress, &[(1, RIPE), (2, RIPE)], true);
        progress.begin_anew();
        let reading = progress.read(&LANES);
        progress.settled(&[1]);
        progress.have_read(&reading, &[row(3, RIPE)], &[1, 2], true);
        assert_eq!(progress.read(&LANES).after, 1, "2 is being removed");
        progress.settled(&[2, 3]);
        assert_eq!(progress.read(&LANES).after, 3);
    }

    #[test]
    fn what_is_open_and_behind_a_full_look_is_not_passed_over() {
        let progress = Progress::default();
        read(&progress, &[(1, RIPE), (2, RIPE), (3, RIPE)], true);
        progress.settled(&[1]);
        progress.begin_anew();
        assert_eq!(read(&progress, &[(2, RIPE)], true), i64::MIN);
        progress.settled(&[2]);
        assert_eq!(read(&progress, &[], true), 2, "3 was not sent");
    }
}

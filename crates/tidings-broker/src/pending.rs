//! Memory that peers hold for what the broker has not accepted yet: bodies that are not finished, and
//! transactions that are not committed.
//!
//! Only the peer itself can free it. It therefore has no part in the memory alarm, which holds up
//! every publisher and ends when consumers take messages, but caps of its own. A connection that is
//! over its cap is told so. When all together are over theirs, the connection is closed that
//! holds what has grown least recently: whoever still sends goes on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tidings_wire::{WireError, reply};

use crate::options::Limits;
use crate::outbound::Outbound;

/// What all connections hold.
#[derive(Debug)]
pub(crate) struct Pending {
    bytes_max: u64,
    connection_bytes_max: u64,
    lines: Mutex<Lines>,
    in_bodies: AtomicU64,
    in_transactions: AtomicU64,
    /// What of it the meter counts, too.
    metered: AtomicU64,
}

/// One line for each unfinished body and each open transaction, the least recently grown first.
#[derive(Debug, Default)]
struct Lines {
    next: u64,
    by_growth: BTreeMap<u64, Line>,
}

#[derive(Debug)]
struct Line {
    holder: Arc<Holder>,
    of: Of,
    amount: Amount,
}

/// What a part is held for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    Body,
    Transaction,
}

/// Bytes that are held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    /// Payloads that the meter counts.
    pub(crate) metered: u64,
    /// Everything else.
    pub(crate) other: u64,
}

impl Amount {
    fn bytes(self) -> u64 {
        self.metered + self.other
    }
}

impl Pending {
    pub(crate) fn new(limits: &Limits) -> Pending {
        Pending {
            bytes_max: limits.pending_bytes_max,
            connection_bytes_max: limits.connection_pending_bytes_max,
            lines: Mutex::default(),
            in_bodies: AtomicU64::new(0),
            in_transactions: AtomicU64::new(0),
            metered: AtomicU64::new(0),
        }
    }

    /// Bytes in bodies that are not finished.
    pub(crate) fn in_bodies(&self) -> u64 {
        self.in_bodies.load(Ordering::Relaxed)
    }

    /// Bytes in transactions that are not committed.
    pub(crate) fn in_transactions(&self) -> u64 {
        self.in_transactions.load(Ordering::Relaxed)
    }

    /// What of all this the meter counts, too.
    pub(crate) fn metered(&self) -> u64 {
        self.metered.load(Ordering::Relaxed)
    }

    fn bytes(&self) -> u64 {
        self.in_bodies() + self.in_transactions()
    }

    fn sum(&self, of: Of) -> &AtomicU64 {
        match of {
            Of::Body => &self.in_bodies,
            Of::Transaction => &self.in_transactions,
        }
    }

    /// Under the lock of the lines, as [`Pending::remove`].
    fn add(&self, lines: &mut Lines, line: Line) -> u64 {
        let Line { holder, of, amount } = &line;
        self.sum(*of).fetch_add(amount.bytes(), Ordering::Relaxed);
        self.metered.fetch_add(amount.metered, Ordering::Relaxed);
        holder.bytes.fetch_add(amount.bytes(), Ordering::Relaxed);
        let number = lines.next;
        lines.next += 1;
        lines.by_growth.insert(number, line);
        number
    }

    fn remove(&self, lines: &mut Lines, number: u64) -> Option<Line> {
        let line = lines.by_growth.remove(&number)?;
        let Line { holder, of, amount } = &line;
        self.sum(*of).fetch_sub(amount.bytes(), Ordering::Relaxed);
        self.metered.fetch_sub(amount.metered, Ordering::Relaxed);
        holder.bytes.fetch_sub(amount.bytes(), Ordering::Relaxed);
        Some(line)
    }

    /// Sends connections away until the others hold no more than they may. What is held by those that
    /// go counts no more: it is freed as soon as they notice.
    fn make_room(&self, lines: &mut Lines) {
        while self.bytes() > self.bytes_max {
            let Some((_, line)) = lines.by_growth.first_key_value() else {
                return;
            };
            let holder = line.holder.clone();
            tracing::warn!(
                connection = holder.outbound.id.0,
                bytes = holder.bytes(),
                in_unfinished_bodies = self.in_bodies(),
                in_transactions = self.in_transactions(),
                limit = self.bytes_max,
                "`pending_bytes_max` is reached: the connection is closed whose unfinished body or \
                 open transaction has not grown for the longest time"
            );
            holder.sent_away.store(true, Ordering::Relaxed);
            holder.outbound.wake();
            let its = lines.by_growth.iter();
            let its = its.filter(|(_, line)| Arc::ptr_eq(&line.holder, &holder));
            let its: Vec<u64> = its.map(|(number, _)| *number).collect();
            for number in its {
                self.remove(lines, number);
            }
        }
    }
}

/// A connection, as far as it holds something.
#[derive(Debug)]
pub(crate) struct Holder {
    pending: Arc<Pending>,
    outbound: Arc<Outbound>,
    bytes: AtomicU64,
    sent_away: AtomicBool,
}

impl Holder {
    pub(crate) fn new(pending: &Arc<Pending>, outbound: &Arc<Outbound>) -> Arc<Holder> {
        Arc::new(Holder {
            pending: pending.clone(),
            outbound: outbound.clone(),
            bytes: AtomicU64::new(0),
            sent_away: AtomicBool::new(false),
        })
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Why the connection holds more than one may, if it does.
    pub(crate) fn excess(&self) -> Option<String> {
        let max = self.pending.connection_bytes_max;
        let bytes = self.bytes();
        (bytes > max).then(|| {
            format!(
                "bodies that are not finished and transactions that are not committed hold {bytes} \
                 bytes, but at most {max} may be held by one connection \
                 (`connection_pending_bytes_max`)"
            )
        })
    }

    /// Why the connection has to go, if it has.
    pub(crate) fn sent_away(&self) -> Option<WireError> {
        let max = self.pending.bytes_max;
        self.sent_away.load(Ordering::Relaxed).then(|| {
            let text = format!(
                "unfinished bodies and open transactions of all connections hold more than {max} \
                 bytes (`pending_bytes_max`), and those of this connection have not grown for the \
                 longest time"
            );
            WireError::new(reply::RESOURCE_ERROR, text)
        })
    }

    /// Something that holds nothing yet.
    pub(crate) fn holds(self: &Arc<Holder>, of: Of) -> Held {
        Held {
            holder: self.clone(),
            of,
            amount: Amount::default(),
            line: None,
        }
    }
}

/// What one body or one transaction holds.
#[derive(Debug)]
pub(crate) struct Held {
    holder: Arc<Holder>,
    of: Of,
    amount: Amount,
    /// The number of its line.
    line: Option<u64>,
}

impl Held {
    pub(crate) fn amount(&self) -> Amount {
        self.amount
    }

    /// It holds this much now.
    pub(crate) fn set(&mut self, amount: Amount) {
        if amount == self.amount {
            return;
        }
        self.amount = amount;
        let pending = &self.holder.pending;
        let mut lines = pending.lines.lock();
        if let Some(number) = self.line.take() {
            pending.remove(&mut lines, number);
        }
        // Of a connection that has to go nothing counts any more.
        if amount.bytes() == 0 || self.holder.sent_away.load(Ordering::Relaxed) {
            return;
        }
        let line = Line {
            holder: self.holder.clone(),
            of: self.of,
            amount,
        };
        self.line = Some(pending.add(&mut lines, line));
        pending.make_room(&mut lines);
    }

    pub(crate) fn clear(&mut self) {
        self.set(Amount::default());
    }

    /// Why its connection holds more than one may, if it does.
    pub(crate) fn excess(&self) -> Option<String> {
        self.holder.excess()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use tidings_broker_core::ConnectionId;

    use super::*;

    fn connection(pending: &Arc<Pending>, id: u64) -> Arc<Holder> {
        Holder::new(pending, &Arc::new(Outbound::new(ConnectionId(id), true)))
    }

    fn other(other: u64) -> Amount {
        Amount { metered: 0, other }
    }

    #[test]
    fn whoever_has_not_sent_more_for_the_longest_time_has_to_go() {
        let pending = Arc::new(Pending::new(&Limits {
            pending_bytes_max: 100,
            connection_pending_bytes_max: 60,
            ..Limits::default()
        }));
        let [a, b, c] = [1, 2, 3].map(|id| connection(&pending, id));
        let mut body_of_a = a.holds(Of::Body);
        body_of_a.set(other(30));
        let mut transaction_of_b = b.holds(Of::Transaction);
        transaction_of_b.set(Amount {
            metered: 20,
            other: 10,
        });
        let mut body_of_b = b.holds(Of::Body);
        body_of_b.set(other(30));
        // It grew, so that b's transaction is what waits.
        body_of_a.set(other(40));
        assert_eq!((pending.in_bodies(), pending.in_transactions()), (70, 30));
        assert_eq!(pending.metered(), 20);
        assert_eq!(b.excess(), None);

        let mut body_of_c = c.holds(Of::Body);
        body_of_c.set(other(60));
        assert_eq!(c.excess(), None);
        let gone = [&a, &b, &c].map(|holder| holder.sent_away().is_some());
        assert_eq!(gone, [false, true, false]);
        // All of b's is off the books, and stays so.
        body_of_b.set(other(90));
        transaction_of_b.clear();
        assert_eq!((pending.in_bodies(), pending.in_transactions()), (100, 0));
        // A connection may hold less than all together.
        body_of_c.set(other(61));
        assert!(c.excess().is_some_and(|text| text.contains("61 bytes")));
    }

    #[test]
    fn what_is_let_go_of_counts_no_more() {
        let pending = Arc::new(Pending::new(&Limits::default()));
        let holder = connection(&pending, 1);
        let mut body = holder.holds(Of::Body);
        let mut transaction = holder.holds(Of::Transaction);
        body.set(other(5));
        transaction.set(Amount {
            metered: 7,
            other: 1,
        });
        transaction.clear();
        assert_eq!((pending.in_transactions(), pending.metered()), (0, 0));
        drop(body);
        assert_eq!((pending.bytes(), holder.bytes()), (0, 0));
        assert!(pending.lines.lock().by_growth.is_empty());
    }
}

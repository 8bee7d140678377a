//! `tx`: publications and settlements that wait for their commit.

use std::collections::BTreeSet;
use std::sync::Arc;

use tidings_broker_core::{self as core, ChannelId, Effect, Settlement};
use tidings_wire::{TxCommitOk, reply};

use super::Fail;
use super::publish::{Publication, Returning};
use crate::engine::{Locked, now};
use crate::outbound::Outbound;
use crate::pending::{Amount, Held};

/// What a channel in tx mode has gathered.
pub(super) struct Transaction {
    operations_max: usize,
    publications: Vec<Publication>,
    settlements: Vec<Settlement>,
    /// Deliveries that the settlements are about: all up to the first, and each of the second.
    settled_through: u64,
    settled: BTreeSet<u64>,
    held: Held,
}

/// What a name in a list of them takes besides its bytes, and a settlement with its place among those
/// that are known. Measured roughly.
const NAME_BYTES: usize = 64;
const SETTLEMENT_BYTES: usize = 96;

impl Transaction {
    pub(super) fn new(operations_max: usize, held: Held) -> Transaction {
        Transaction {
            operations_max,
            publications: Vec::new(),
            settlements: Vec::new(),
            settled_through: 0,
            settled: BTreeSet::new(),
            held,
        }
    }

    pub(super) fn publish(&mut self, publication: Publication) -> Result<(), Fail> {
        let (message, bcc) = publication.message?;
        self.check_room()?;
        let names = message.cc.iter().chain(&bcc);
        let names: usize = names.map(|name| NAME_BYTES + name.len()).sum();
        let publication = Publication {
            message: Ok((message, bcc)),
            ..publication
        };
        let other = names + size_of::<Publication>();
        self.hold(publication.weight, other)?;
        self.publications.push(publication);
        Ok(())
    }

    /// Counts what it holds more.
    fn hold(&mut self, metered: u64, other: usize) -> Result<(), Fail> {
        let before = self.held.amount();
        self.held.set(Amount {
            metered: before.metered + metered,
            other: before.other + other as u64,
        });
        match self.held.excess() {
            None => Ok(()),
            Some(text) => Err(Fail::precondition(text)),
        }
    }

    /// Takes note of a settlement. What was settled before, or never delivered, is known at once.
    pub(super) fn settle(
        &mut self,
        core: &core::Broker,
        channel: ChannelId,
        mut settlement: Settlement,
    ) -> Result<(), Fail> {
        self.check_room()?;
        let Settlement {
            delivery_tag: tag,
            multiple,
            ..
        } = settlement;
        let is_all = multiple && tag == 0;
        let is_settled = tag <= self.settled_through || self.settled.contains(&tag);
        if !is_all && (is_settled || !core.is_unacked(channel, tag)) {
            return Err(Fail::precondition(format!("unknown delivery tag {tag}")));
        }
        if is_all {
            // What is delivered from now on is not meant.
            settlement.delivery_tag = core.last_delivery_tag(channel);
        }
        if multiple {
            self.settled_through = settlement.delivery_tag;
        } else {
            self.settled.insert(tag);
        }
        self.hold(0, SETTLEMENT_BYTES)?;
        self.settlements.push(settlement);
        Ok(())
    }

    fn check_room(&self) -> Result<(), Fail> {
        let max = self.operations_max;
        if self.publications.len() + self.settlements.len() < max {
            return Ok(());
        }
        let text = format!("a transaction has at most {max} operations: commit more often");
        Err(Fail::new(reply::PRECONDITION_FAILED, text))
    }

    /// Carries everything out, returns what found no queue, and answers when all of it is durable.
    pub(super) fn commit(
        self,
        engine: &mut Locked<'_>,
        outbound: &Arc<Outbound>,
        channel: ChannelId,
        number: u16,
    ) -> Result<(), Fail> {
        // From here on it is in queues, or nowhere.
        drop(self.held);
        let mut publications = Vec::with_capacity(self.publications.len());
        let mut returning = Vec::with_capacity(self.publications.len());
        let mut room: usize = 0;
        let queues = engine.core().durable_queues();
        for publication in self.publications {
            returning.push(Returning::of(&publication));
            let (message, bcc) = publication.message?;
            if message.persistent {
                room = room.saturating_add(message.stored_bytes(queues));
            }
            publications.push((message, bcc));
        }
        let settlements = self.settlements;
        let commit = |core: &mut core::Broker, out: &mut Vec<Effect>| {
            core.commit(channel, publications, &settlements, now(), out)
        };
        let mut outcome = None;
        engine.run_with_room(room, commit, |published, after| {
            outcome = Some((published, after));
        })?;
        let Some((published, after)) = outcome else {
            return Ok(());
        };
        let returned = published.iter().zip(returning);
        let returned = returned
            .filter_map(|(published, returning)| returning.filter(|_| published.queues == 0));
        for returning in returned {
            returning.send(outbound, number);
        }
        if published.iter().any(|published| published.rejected) {
            return Err(Fail::precondition("partial tx completion"));
        }
        outbound.reply(number, TxCommitOk {}, after);
        Ok(())
    }
}

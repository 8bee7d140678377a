//! `tx`: publications and settlements that wait for their commit.

use std::collections::BTreeSet;
use std::sync::Arc;

use tidings_broker_core::{self as core, ChannelId, Effect, Refusal};
use tidings_wire::{TxCommitOk, reply};

use super::Fail;
use super::publish::{Publication, Returning};
use crate::engine::{Locked, now};
use crate::outbound::Outbound;

/// What a channel in tx mode has gathered.
pub(super) struct Transaction {
    operations_max: usize,
    publications: Vec<Publication>,
    settlements: Vec<Settlement>,
    /// Deliveries that the settlements are about: all up to the first, and each of the second.
    settled_through: u64,
    settled: BTreeSet<u64>,
}

/// An ack, nack or reject.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settlement {
    pub(super) delivery_tag: u64,
    pub(super) multiple: bool,
    /// `None` acknowledges; otherwise whether to requeue.
    pub(super) requeue: Option<bool>,
}

impl Settlement {
    pub(super) fn run(
        self,
        core: &mut core::Broker,
        channel: ChannelId,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let Settlement {
            delivery_tag,
            multiple,
            requeue,
        } = self;
        match requeue {
            None => core.ack(channel, delivery_tag, multiple, now(), out),
            Some(requeue) => core.nack(channel, delivery_tag, multiple, requeue, now(), out),
        }
    }
}

impl Transaction {
    pub(super) fn new(operations_max: usize) -> Transaction {
        Transaction {
            operations_max,
            publications: Vec::new(),
            settlements: Vec::new(),
            settled_through: 0,
            settled: BTreeSet::new(),
        }
    }

    pub(super) fn publish(&mut self, publication: Publication) -> Result<(), Fail> {
        let publication = Publication {
            message: Ok(publication.message?),
            ..publication
        };
        self.check_room()?;
        self.publications.push(publication);
        Ok(())
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
        let mut returned = Vec::new();
        let mut rejected = false;
        let commit = |core: &mut core::Broker, out: &mut Vec<Effect>| {
            for publication in self.publications {
                let returning = Returning::of(&publication);
                let Ok((message, bcc)) = publication.message else {
                    continue;
                };
                let published = core.publish(channel, message, &bcc, now(), out)?;
                rejected |= published.rejected;
                returned.extend(returning.filter(|_| published.queues == 0));
            }
            for settlement in self.settlements {
                settlement.run(core, channel, out)?;
            }
            Ok(())
        };
        let mut durable_at = None;
        engine.run(commit, |(), after| durable_at = Some(after))?;
        for returning in returned {
            returning.send(outbound, number);
        }
        if rejected {
            return Err(Fail::precondition("partial tx completion"));
        }
        if let Some(after) = durable_at {
            outbound.reply(number, TxCommitOk {}, after);
        }
        Ok(())
    }
}

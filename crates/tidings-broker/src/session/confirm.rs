//! Publisher confirms: in order, and as few as possible, because one sync of the log makes many
//! messages durable.

use std::collections::VecDeque;

use tidings_broker_log::Lsn;
use tidings_wire::{BasicAck, BasicNack};

use crate::outbound::Outbound;

/// What a publisher was not told yet.
#[derive(Debug, Default)]
pub(super) struct Confirms {
    /// The tag of the last publication; the first is 1.
    last: u64,
    /// Runs of publications with the same fate, in order.
    pending: VecDeque<Run>,
    /// The tag of the last publication that was told.
    told: u64,
}

#[derive(Debug)]
struct Run {
    /// The last tag of the run; it begins behind the run before.
    up_to: u64,
    after: Lsn,
    accepted: bool,
    /// It stops growing with the turn it began in, so that the first of many need not wait for the
    /// last of them.
    grows: bool,
}

impl Confirms {
    /// One more publication, to be told once the log is durable up to `after`.
    pub(super) fn push(&mut self, after: Lsn, accepted: bool) {
        self.last += 1;
        match self.pending.back_mut() {
            Some(run) if run.accepted == accepted && run.grows => {
                run.up_to = self.last;
                run.after = run.after.max(after);
            }
            _ => self.pending.push_back(Run {
                up_to: self.last,
                after,
                accepted,
                grows: true,
            }),
        }
    }

    /// Tells what can be told. Gives whether something still waits.
    pub(super) fn settle(&mut self, outbound: &Outbound, channel: u16, durable: Lsn) -> bool {
        let mut told: Option<Run> = None;
        while self.pending.front().is_some_and(|run| run.after <= durable) {
            let Some(run) = self.pending.pop_front() else {
                break;
            };
            if let Some(before) = told.take_if(|before| before.accepted != run.accepted) {
                self.tell(outbound, channel, &before);
            }
            told = Some(run);
        }
        if let Some(run) = told {
            self.tell(outbound, channel, &run);
        }
        if let Some(run) = self.pending.back_mut() {
            run.grows = false;
        }
        !self.pending.is_empty()
    }

    fn tell(&mut self, outbound: &Outbound, channel: u16, run: &Run) {
        let delivery_tag = run.up_to;
        let multiple = delivery_tag > self.told + 1;
        self.told = delivery_tag;
        if run.accepted {
            outbound.reply(
                channel,
                BasicAck {
                    delivery_tag,
                    multiple,
                },
                Lsn(0),
            );
        } else {
            outbound.reply(
                channel,
                BasicNack {
                    delivery_tag,
                    multiple,
                    requeue: false,
                },
                Lsn(0),
            );
        }
    }
}

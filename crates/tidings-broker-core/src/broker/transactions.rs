//! `tx.commit`: publications and settlements that happen together or not at all.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use super::Broker;
use super::settling::Verdict;
use crate::queue::check_name;
use crate::{ChannelId, Effect, Message, Published, Refusal, Settlement};

impl Broker {
    /// Publishes all of the messages, each with its further routing keys, and settles all of the
    /// deliveries: or is refused, and nothing has changed. Gives what became of the messages.
    pub fn commit(
        &mut self,
        channel: ChannelId,
        publications: Vec<(Message, Vec<Bytes>)>,
        settlements: &[Settlement],
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<Vec<Published>, Refusal> {
        self.check_settlements(channel, settlements)?;
        // Publishing and settling change neither exchanges nor bindings: what is a route now is one
        // when its message's turn comes.
        let mut routes = Vec::with_capacity(publications.len());
        let mut room: usize = 0;
        for (message, bcc) in &publications {
            let exchange = self.publishable(&message.exchange)?;
            check_name("routing key", &message.routing_key)?;
            let mut queues = Vec::new();
            self.route(exchange, message, bcc, &mut queues);
            room = room.saturating_add(self.room_for(message, &queues));
            routes.push(queues);
        }
        self.check_room(room)?;
        let publications = publications.into_iter().zip(routes);
        let published = publications
            .map(|((message, _), queues)| self.distribute(Arc::new(message), &queues, now, out))
            .collect();
        for settlement in settlements {
            self.carry_out(channel, *settlement, now, out);
        }
        self.bury(now, out);
        Ok(published)
    }

    /// Refuses a delivery that was settled meanwhile, or twice in this transaction. Several at once
    /// are those that are still there.
    fn check_settlements(
        &mut self,
        channel: ChannelId,
        settlements: &[Settlement],
    ) -> Result<(), Refusal> {
        let session = self.channel_mut(channel)?;
        let mut settled_through = 0;
        let mut settled = BTreeSet::new();
        for settlement in settlements {
            let tag = settlement.delivery_tag;
            if settlement.multiple {
                settled_through = tag.max(settled_through);
            } else if tag <= settled_through
                || !session.unacked.contains(tag)
                || !settled.insert(tag)
            {
                return Err(Refusal::unknown_delivery(tag));
            }
        }
        Ok(())
    }

    fn carry_out(
        &mut self,
        channel: ChannelId,
        settlement: Settlement,
        now: u64,
        out: &mut Vec<Effect>,
    ) {
        let verdict = Verdict::of(settlement.requeue);
        let tag = settlement.delivery_tag;
        if settlement.multiple {
            self.settle_through(channel, tag, verdict, now, out);
        } else {
            self.settle_single(channel, tag, verdict, now, out);
        }
    }
}

//! Channels and connections come and go.

use super::Broker;
use crate::session::Channel;
use crate::slab::Key;
use crate::{ChannelId, ConnectionId, Effect};

impl Broker {
    /// Opens channel `number` of a connection.
    pub fn open_channel(&mut self, connection: ConnectionId, number: u16) -> ChannelId {
        let state = self.connections.entry(connection).or_default();
        let key = self
            .channels
            .insert(Channel::new(connection, number, state.paused));
        state.channels.insert(key);
        ChannelId(key)
    }

    /// Cancels the channel's consumers and requeues what they have not settled.
    pub fn close_channel(&mut self, channel: ChannelId, now: u64, out: &mut Vec<Effect>) {
        let Some(session) = self.channels.get(channel.0) else {
            return;
        };
        let connection = session.connection;
        self.close_channels(&[channel.0], now, out);
        if let Some(state) = self.connections.get_mut(&connection) {
            state.channels.remove(&channel.0);
        }
    }

    /// Closes every channel of the connection and deletes its exclusive queues.
    pub fn close_connection(&mut self, connection: ConnectionId, now: u64, out: &mut Vec<Effect>) {
        let Some(state) = self.connections.remove(&connection) else {
            return;
        };
        let channels: Vec<Key> = state.channels.into_iter().collect();
        self.close_channels(&channels, now, out);
        for queue in state.exclusive_queues {
            self.remove_queue(queue, out);
        }
    }

    /// All consumers leave before any message goes back, so that none of them is given it again.
    fn close_channels(&mut self, channels: &[Key], now: u64, out: &mut Vec<Effect>) {
        let mut left = Vec::new();
        for &channel in channels {
            let session = self
                .channels
                .get(channel)
                .expect("connections lead to channels");
            let consumers: Vec<Key> = session.consumers.values().copied().collect();
            for consumer in consumers {
                left.push(self.remove_consumer(consumer, now));
            }
        }
        let mut returned = Vec::new();
        for &channel in channels {
            returned.extend(self.requeue_all(channel, now, out));
            self.channels.remove(channel);
        }
        left.sort_unstable();
        left.dedup();
        for queue in left {
            self.after_consumer_left(queue, now, out);
        }
        for queue in returned {
            self.drop_overflow(queue, now, out);
            self.pump(queue, now, out);
        }
        self.bury(now, out);
    }

    /// Delivers nothing more to the connection until [`Broker::resume_connection`]: for one whose
    /// socket does not keep up, so that what waits for it waits in queues and not in buffers.
    pub fn pause_connection(&mut self, connection: ConnectionId) {
        self.set_paused(connection, true);
    }

    /// Delivers to the connection again.
    pub fn resume_connection(&mut self, connection: ConnectionId, now: u64, out: &mut Vec<Effect>) {
        for channel in self.set_paused(connection, false) {
            self.wake_channel(channel, now, out);
        }
    }

    fn set_paused(&mut self, connection: ConnectionId, paused: bool) -> Vec<Key> {
        let Some(state) = self.connections.get_mut(&connection) else {
            return Vec::new();
        };
        state.paused = paused;
        let channels: Vec<Key> = state.channels.iter().copied().collect();
        for channel in &channels {
            let channel = self
                .channels
                .get_mut(*channel)
                .expect("connections lead to channels");
            channel.paused = paused;
        }
        channels
    }
}

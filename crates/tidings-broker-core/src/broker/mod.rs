//! The state machine: every command of AMQP that concerns exchanges, queues and messages.
//!
//! Each command takes the time and a list to add effects to. A refused command changes nothing.

use bytes::Bytes;

use crate::{
    Binding, BindingStats, ChannelId, ConnectionId, Consume, Effect, ExchangeDeclare,
    ExchangeStats, Got, Message, Published, QueueDeclare, QueueDeclared, QueueStats, Record,
    Refusal, Table,
};

/// How a broker is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// The name of the virtual host, for refusals' texts.
    pub vhost: String,
    /// Decodes the headers of a message from its properties. Called only when a message meets a
    /// headers exchange that has bindings.
    pub decode_headers: fn(&Bytes) -> Table,
    /// Where generated queue names and consumer tags start; give each process another, so that
    /// they cannot be guessed or met again.
    pub names_seed: u64,
    /// Routing results remembered per exchange. When it is full it starts anew.
    pub cached_routes_max: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            vhost: "/".to_owned(),
            decode_headers: |_| Table::new(),
            names_seed: 0,
            cached_routes_max: 4096,
        }
    }
}

/// One virtual host.
#[derive(Debug)]
pub struct Broker {
    options: Options,
}

#[allow(unused_variables, clippy::todo)]
impl Broker {
    /// A broker with the predeclared exchanges and nothing else.
    pub fn new(options: Options) -> Self {
        Self { options }
    }

    /// Replays one record of a store. All records come before the first command, in the order they
    /// were made or that [`Record`] allows. Facts about things that are not there are ignored.
    pub fn restore(&mut self, record: Record) {
        todo!()
    }

    /// When [`Broker::tick`] is next needed, if at all. Ask after every command.
    pub fn next_deadline(&self) -> Option<u64> {
        todo!()
    }

    /// Expires what is due. Calling it too early or too often does no harm.
    pub fn tick(&mut self, now: u64, out: &mut Vec<Effect>) {
        todo!()
    }

    /// Opens channel `number` of a connection.
    pub fn open_channel(&mut self, connection: ConnectionId, number: u16) -> ChannelId {
        todo!()
    }

    /// Cancels the channel's consumers and requeues what they have not settled.
    pub fn close_channel(&mut self, channel: ChannelId, now: u64, out: &mut Vec<Effect>) {
        todo!()
    }

    /// Closes every channel of the connection and deletes its exclusive queues.
    pub fn close_connection(&mut self, connection: ConnectionId, now: u64, out: &mut Vec<Effect>) {
        todo!()
    }

    /// Delivers nothing more to the connection until [`Broker::resume_connection`]: for one whose
    /// socket does not keep up, so that what waits for it waits in queues and not in buffers.
    pub fn pause_connection(&mut self, connection: ConnectionId) {
        todo!()
    }

    /// Delivers to the connection again.
    pub fn resume_connection(&mut self, connection: ConnectionId, now: u64, out: &mut Vec<Effect>) {
        todo!()
    }

    /// `exchange.declare`.
    pub fn declare_exchange(
        &mut self,
        declare: ExchangeDeclare,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        todo!()
    }

    /// `exchange.delete`. Deleting what is not there is fine.
    pub fn delete_exchange(
        &mut self,
        name: &[u8],
        if_unused: bool,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        todo!()
    }

    /// `exchange.bind`. Binding twice is fine.
    pub fn bind_exchange(
        &mut self,
        binding: Binding,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        todo!()
    }

    /// `exchange.unbind`. Unbinding what is not bound is fine.
    pub fn unbind_exchange(
        &mut self,
        binding: Binding,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        todo!()
    }

    /// `queue.declare`.
    pub fn declare_queue(
        &mut self,
        channel: ChannelId,
        declare: QueueDeclare,
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<QueueDeclared, Refusal> {
        todo!()
    }

    /// `queue.delete`; gives the number of messages that were ready. Deleting what is not there is
    /// fine.
    pub fn delete_queue(
        &mut self,
        channel: ChannelId,
        name: &[u8],
        if_unused: bool,
        if_empty: bool,
        out: &mut Vec<Effect>,
    ) -> Result<u64, Refusal> {
        todo!()
    }

    /// `queue.purge`; gives the number of messages that were ready.
    pub fn purge_queue(
        &mut self,
        channel: ChannelId,
        name: &[u8],
        out: &mut Vec<Effect>,
    ) -> Result<u64, Refusal> {
        todo!()
    }

    /// `queue.bind`. Binding twice is fine.
    pub fn bind_queue(
        &mut self,
        channel: ChannelId,
        binding: Binding,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        todo!()
    }

    /// `queue.unbind`. Unbinding what is not bound is fine.
    pub fn unbind_queue(
        &mut self,
        channel: ChannelId,
        binding: Binding,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        todo!()
    }

    /// `basic.publish`: routes the message to queues and delivers what can be delivered. `bcc` are
    /// further routing keys that no receiver is to see.
    pub fn publish(
        &mut self,
        channel: ChannelId,
        message: Message,
        bcc: &[Bytes],
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<Published, Refusal> {
        todo!()
    }

    /// Whether `basic.publish` to this exchange would be refused, for servers that must answer
    /// before the message's content has arrived.
    pub fn check_publish(&self, exchange: &[u8]) -> Result<(), Refusal> {
        todo!()
    }

    /// `basic.qos`: with `global` for the channel as a whole, at once; otherwise for each consumer
    /// that starts on the channel from now on. 0 is unlimited.
    pub fn qos(
        &mut self,
        channel: ChannelId,
        prefetch_count: u16,
        global: bool,
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        todo!()
    }

    /// `basic.consume`; gives the consumer's tag. Deliveries may follow at once: send `consume-ok`
    /// before the effects.
    pub fn consume(
        &mut self,
        channel: ChannelId,
        consume: Consume,
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<Bytes, Refusal> {
        todo!()
    }

    /// `basic.cancel`: what the consumer has not settled stays with the channel. Cancelling what
    /// is not there is fine.
    pub fn cancel(
        &mut self,
        channel: ChannelId,
        consumer_tag: &[u8],
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        todo!()
    }

    /// `basic.get`; `None` is `get-empty`.
    pub fn get(
        &mut self,
        channel: ChannelId,
        queue: &[u8],
        no_ack: bool,
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<Option<Got>, Refusal> {
        todo!()
    }

    /// `basic.ack`. Tag 0 with `multiple` is everything outstanding on the channel.
    pub fn ack(
        &mut self,
        channel: ChannelId,
        delivery_tag: u64,
        multiple: bool,
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        todo!()
    }

    /// `basic.nack`, and `basic.reject` with `multiple` false. With `requeue` the messages go back
    /// to where they were; without, to the dead-letter exchange if there is one.
    pub fn nack(
        &mut self,
        channel: ChannelId,
        delivery_tag: u64,
        multiple: bool,
        requeue: bool,
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        todo!()
    }

    /// `basic.recover` with requeue: everything outstanding on the channel goes back to where it
    /// was. (Without requeue it is 540, which is the server's to say.)
    pub fn recover(
        &mut self,
        channel: ChannelId,
        now: u64,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        todo!()
    }

    /// Every queue.
    pub fn queues(&self) -> impl Iterator<Item = QueueStats> {
        std::iter::empty()
    }

    /// One queue.
    pub fn queue(&self, name: &[u8]) -> Option<QueueStats> {
        todo!()
    }

    /// Every exchange.
    pub fn exchanges(&self) -> impl Iterator<Item = ExchangeStats> {
        std::iter::empty()
    }

    /// Every binding, but for those of the default exchange.
    pub fn bindings(&self) -> impl Iterator<Item = BindingStats> {
        std::iter::empty()
    }

    /// Deliveries out on the channel and not settled.
    pub fn unacked(&self, channel: ChannelId) -> usize {
        todo!()
    }
}

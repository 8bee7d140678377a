//! The methods of an open channel, each in a few lines: to the core, and back.

use std::sync::Arc;

use bytes::Bytes;
use tidings_broker_core::{self as core, Binding, Effect, Refusal, Settlement};
use tidings_broker_log::Lsn;
use tidings_wire::{
    AccessRequestOk, BasicCancel, BasicCancelOk, BasicConsume, BasicConsumeOk, BasicGet,
    BasicGetEmpty, BasicGetOk, BasicQos, BasicQosOk, BasicRecoverOk, ChannelFlow, ChannelFlowOk,
    ConfirmSelectOk, ExchangeBindOk, ExchangeDeclare, ExchangeDeclareOk, ExchangeDelete,
    ExchangeDeleteOk, ExchangeUnbindOk, Method, QueueBindOk, QueueDeclare, QueueDeclareOk,
    QueueDelete, QueueDeleteOk, QueuePurge, QueuePurgeOk, QueueUnbindOk, ShortStr, Table,
    TxRollbackOk, TxSelectOk, reply,
};

use super::Fail;
use super::channel::{Channel, Mode};
use super::confirm::Confirms;
use super::reply_to::{REPLY_TO, declared, is_reply_name};
use crate::engine::{Locked, now};
use crate::outbound::{Item, Outbound, content};
use crate::translate::{delivered_properties, table};

pub(super) type Out = Vec<Effect>;

/// One method's surroundings.
pub(super) struct Turn<'a, 'e> {
    engine: &'a mut Locked<'e>,
    outbound: &'a Arc<Outbound>,
    number: u16,
}

impl Turn<'_, '_> {
    /// Runs a command and answers with `answer`, unless the peer does not wait for one.
    pub(super) fn run<T, M: Into<Method>>(
        &mut self,
        no_wait: bool,
        command: impl FnOnce(&mut core::Broker, &mut Out) -> Result<T, Refusal>,
        answer: impl FnOnce(T) -> M,
    ) -> Result<(), Fail> {
        self.run_with_room(0, no_wait, command, answer)
    }

    /// The same for a command that records at most `room` bytes of something new.
    fn run_with_room<T, M: Into<Method>>(
        &mut self,
        room: usize,
        no_wait: bool,
        command: impl FnOnce(&mut core::Broker, &mut Out) -> Result<T, Refusal>,
        answer: impl FnOnce(T) -> M,
    ) -> Result<(), Fail> {
        let (outbound, number) = (self.outbound, self.number);
        self.engine.run_with_room(room, command, |done, after| {
            if !no_wait {
                outbound.reply(number, answer(done), after);
            }
        })?;
        Ok(())
    }

    fn reply(&self, method: impl Into<Method>) -> Result<(), Fail> {
        self.outbound.reply(self.number, method, Lsn(0));
        Ok(())
    }
}

fn binding(source: ShortStr, destination: ShortStr, key: ShortStr, arguments: &Table) -> Binding {
    Binding {
        source: own(&source),
        destination: own(&destination),
        routing_key: own(&key),
        arguments: table(arguments),
    }
}

/// A name of its own, not a slice of what was read. Line ends are no part of a name: they are
/// dropped, as RabbitMQ does.
fn own(name: &ShortStr) -> Bytes {
    if name.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
        return name
            .iter()
            .copied()
            .filter(|byte| !matches!(byte, b'\r' | b'\n'))
            .collect();
    }
    Bytes::copy_from_slice(name)
}

/// A name as the wire has it. The core neither makes nor lets in one that is too long.
pub(super) fn short(name: Bytes) -> ShortStr {
    ShortStr::try_from(name).unwrap_or_else(|error| {
        tracing::error!("a name is left empty, please report this: {error}");
        ShortStr::default()
    })
}

/// A count as the wire has it.
fn count(count: u64) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl Channel {
    pub(super) fn on_method(
        &mut self,
        engine: &mut Locked<'_>,
        outbound: &Arc<Outbound>,
        method: Method,
    ) -> Result<(), Fail> {
        let id = self.id;
        let mut turn = Turn {
            engine,
            outbound,
            number: self.number,
        };
        match method {
            Method::BasicAck(ack) => self.settle(turn, ack.delivery_tag, ack.multiple, None),
            Method::BasicNack(nack) => {
                self.settle(turn, nack.delivery_tag, nack.multiple, Some(nack.requeue))
            }
            Method::BasicReject(reject) => {
                self.settle(turn, reject.delivery_tag, false, Some(reject.requeue))
            }
            Method::BasicGet(get) => self.get(turn, &get),
            Method::BasicConsume(consume) => self.consume(turn, &consume),
            Method::BasicCancel(cancel) => self.cancel(turn, cancel),
            Method::BasicQos(qos) => self.qos(turn, &qos),
            Method::BasicRecover(recover) => {
                require_requeue(recover.requeue)?;
                let recover = |core: &mut core::Broker, out: &mut Out| core.recover(id, now(), out);
                turn.run(false, recover, |()| BasicRecoverOk {})
            }
            Method::BasicRecoverAsync(recover) => {
                require_requeue(recover.requeue)?;
                let recover = |core: &mut core::Broker, out: &mut Out| core.recover(id, now(), out);
                turn.run(true, recover, |()| BasicRecoverOk {})
            }
            Method::ConfirmSelect(select) => self.confirm_select(&turn, select.no_wait),
            Method::TxSelect(_) => self.tx_select(&turn),
            Method::TxCommit(_) => match std::mem::replace(&mut self.mode, Mode::Plain) {
                Mode::Tx(transaction) => {
                    self.mode = Mode::Tx(self.transaction());
                    transaction.commit(turn.engine, outbound, id, self.number)
                }
                mode => {
                    self.mode = mode;
                    Err(Fail::precondition("channel is not transactional"))
                }
            },
            Method::TxRollback(_) => match self.mode {
                Mode::Tx(_) => {
                    self.mode = Mode::Tx(self.transaction());
                    turn.reply(TxRollbackOk {})
                }
                _ => Err(Fail::precondition("channel is not transactional")),
            },
            Method::ChannelFlow(ChannelFlow { active: true }) => {
                turn.reply(ChannelFlowOk { active: true })
            }
            Method::ChannelFlow(_) => Err(Fail::new(reply::NOT_IMPLEMENTED, "active=false")),
            Method::ChannelOpen(_) => Err(Fail::new(
                reply::CHANNEL_ERROR,
                "second 'channel.open' seen",
            )),
            Method::AccessRequest(_) => turn.reply(AccessRequestOk { ticket: 1 }),
            method => self.on_topology(turn, method),
        }
    }

    /// Exchanges, queues and bindings.
    fn on_topology(&mut self, mut turn: Turn<'_, '_>, method: Method) -> Result<(), Fail> {
        let id = self.id;
        match method {
            Method::QueueDeclare(declare) => self.declare_queue(turn, &declare),
            Method::QueueBind(b) => {
                let binding = binding(b.exchange, b.queue, b.routing_key, &b.arguments);
                turn.run_with_room(
                    binding.arguments.record_bytes_max(),
                    b.no_wait,
                    |core, out| core.bind_queue(id, binding, out),
                    |()| QueueBindOk {},
                )
            }
            Method::QueueUnbind(b) => {
                let binding = binding(b.exchange, b.queue, b.routing_key, &b.arguments);
                let unbind =
                    |core: &mut core::Broker, out: &mut Out| core.unbind_queue(id, binding, out);
                turn.run(false, unbind, |()| QueueUnbindOk {})
            }
            Method::QueuePurge(QueuePurge { queue, no_wait }) => turn.run(
                no_wait,
                |core, out| core.purge_queue(id, &own(&queue), out),
                |purged| QueuePurgeOk {
                    message_count: count(purged),
                },
            ),
            Method::QueueDelete(QueueDelete {
                queue,
                if_unused,
                if_empty,
                no_wait,
            }) => turn.run(
                no_wait,
                |core, out| core.delete_queue(id, &own(&queue), if_unused, if_empty, out),
                |deleted| QueueDeleteOk {
                    message_count: count(deleted),
                },
            ),
            Method::ExchangeDeclare(declare) => self.declare_exchange(turn, &declare),
            Method::ExchangeDelete(ExchangeDelete {
                exchange,
                if_unused,
                no_wait,
            }) => turn.run(
                no_wait,
                |core, out| core.delete_exchange(&own(&exchange), if_unused, out),
                |()| ExchangeDeleteOk {},
            ),
            Method::ExchangeBind(b) => {
                let binding = binding(b.source, b.destination, b.routing_key, &b.arguments);
                turn.run_with_room(
                    binding.arguments.record_bytes_max(),
                    b.no_wait,
                    |core, out| core.bind_exchange(binding, out),
                    |()| ExchangeBindOk {},
                )
            }
            Method::ExchangeUnbind(b) => {
                let binding = binding(b.source, b.destination, b.routing_key, &b.arguments);
                let unbind =
                    |core: &mut core::Broker, out: &mut Out| core.unbind_exchange(binding, out);
                turn.run(b.no_wait, unbind, |()| ExchangeUnbindOk {})
            }
            method => {
                let text = format!("{} is not for the server", method.name());
                Err(Fail::new(reply::COMMAND_INVALID, text))
            }
        }
    }

    fn declare_queue(
        &mut self,
        mut turn: Turn<'_, '_>,
        declare: &QueueDeclare,
    ) -> Result<(), Fail> {
        if is_reply_name(&declare.queue) {
            let declared = declared(turn.engine.core(), &declare.queue)?;
            return if declare.no_wait {
                Ok(())
            } else {
                turn.reply(declared)
            };
        }
        let id = self.id;
        let wanted = core::QueueDeclare {
            name: own(&declare.queue),
            passive: declare.passive,
            durable: declare.durable,
            exclusive: declare.exclusive,
            auto_delete: declare.auto_delete,
            arguments: table(&declare.arguments),
        };
        turn.run_with_room(
            wanted.arguments.record_bytes_max(),
            declare.no_wait,
            |core, out| core.declare_queue(id, wanted, now(), out),
            |queue| QueueDeclareOk {
                queue: short(queue.name),
                message_count: count(queue.messages),
                consumer_count: count(queue.consumers),
            },
        )
    }

    fn declare_exchange(
        &mut self,
        mut turn: Turn<'_, '_>,
        declare: &ExchangeDeclare,
    ) -> Result<(), Fail> {
        let wanted = core::ExchangeDeclare {
            name: own(&declare.exchange),
            kind: own(&declare.kind),
            passive: declare.passive,
            durable: declare.durable,
            auto_delete: declare.auto_delete,
            internal: declare.internal,
            arguments: table(&declare.arguments),
        };
        turn.run_with_room(
            wanted.arguments.record_bytes_max(),
            declare.no_wait,
            |core, out| core.declare_exchange(wanted, out),
            |()| ExchangeDeclareOk {},
        )
    }

    fn settle(
        &mut self,
        turn: Turn<'_, '_>,
        delivery_tag: u64,
        multiple: bool,
        requeue: Option<bool>,
    ) -> Result<(), Fail> {
        let settlement = Settlement {
            delivery_tag,
            multiple,
            requeue,
        };
        if let Mode::Tx(transaction) = &mut self.mode {
            return transaction.settle(turn.engine.core(), self.id, settlement);
        }
        let id = self.id;
        let settle = |core: &mut core::Broker, out: &mut Out| match requeue {
            None => core.ack(id, delivery_tag, multiple, now(), out),
            Some(requeue) => core.nack(id, delivery_tag, multiple, requeue, now(), out),
        };
        Ok(turn.engine.run(settle, |(), _| ())?)
    }

    fn get(&mut self, turn: Turn<'_, '_>, get: &BasicGet) -> Result<(), Fail> {
        let (id, number, outbound) = (self.id, self.number, turn.outbound);
        turn.engine.bring_for_get(id, &get.queue)?;
        let command = |core: &mut core::Broker, out: &mut Out| {
            core.get(id, &get.queue, get.no_ack, now(), out)
        };
        turn.engine.run(command, |got, _| {
            let Some(got) = got else {
                return outbound.reply(number, BasicGetEmpty {}, Lsn(0));
            };
            let method = BasicGetOk {
                delivery_tag: got.delivery_tag,
                redelivered: got.redelivered,
                exchange: short(got.message.exchange.clone()),
                routing_key: short(got.message.routing_key.clone()),
                message_count: count(got.remaining),
            };
            let properties = delivered_properties(&got.message, got.delivery_count);
            let item: Item = content(number, method, properties, got.message.body.clone());
            outbound.push([item]);
        })?;
        Ok(())
    }

    fn consume(&mut self, mut turn: Turn<'_, '_>, consume: &BasicConsume) -> Result<(), Fail> {
        if consume.queue == REPLY_TO {
            return self.consume_replies(&mut turn, consume);
        }
        let id = self.id;
        let wanted = core::Consume {
            queue: own(&consume.queue),
            consumer_tag: Bytes::copy_from_slice(&consume.consumer_tag),
            no_ack: consume.no_ack,
            exclusive: consume.exclusive,
            arguments: table(&consume.arguments),
        };
        turn.run(
            consume.no_wait,
            |core, out| core.consume(id, wanted, now(), out),
            |consumer_tag| BasicConsumeOk {
                consumer_tag: short(consumer_tag),
            },
        )
    }

    fn cancel(&mut self, mut turn: Turn<'_, '_>, cancel: BasicCancel) -> Result<(), Fail> {
        let id = self.id;
        let BasicCancel {
            consumer_tag,
            no_wait,
        } = cancel;
        self.replies
            .take_if(|replies| *replies.consumer_tag == *consumer_tag);
        turn.run(
            no_wait,
            |core, out| core.cancel(id, &consumer_tag, now(), out),
            |()| BasicCancelOk {
                consumer_tag: consumer_tag.clone(),
            },
        )
    }

    fn qos(&mut self, mut turn: Turn<'_, '_>, qos: &BasicQos) -> Result<(), Fail> {
        if qos.prefetch_size != 0 {
            let text = format!("prefetch_size!=0 ({})", qos.prefetch_size);
            return Err(Fail::new(reply::NOT_IMPLEMENTED, text));
        }
        let id = self.id;
        turn.run(
            false,
            |core, out| core.qos(id, qos.prefetch_count, qos.global, now(), out),
            |()| BasicQosOk {},
        )
    }

    fn confirm_select(&mut self, turn: &Turn<'_, '_>, no_wait: bool) -> Result<(), Fail> {
        match self.mode {
            Mode::Tx(_) => return Err(Fail::precondition("cannot switch from tx to confirm mode")),
            Mode::Plain => self.mode = Mode::Confirm(Confirms::default()),
            Mode::Confirm(_) => {}
        }
        if no_wait {
            Ok(())
        } else {
            turn.reply(ConfirmSelectOk {})
        }
    }

    fn tx_select(&mut self, turn: &Turn<'_, '_>) -> Result<(), Fail> {
        match self.mode {
            Mode::Confirm(_) => {
                return Err(Fail::precondition("cannot switch from confirm to tx mode"));
            }
            Mode::Plain => self.mode = Mode::Tx(self.transaction()),
            Mode::Tx(_) => {}
        }
        turn.reply(TxSelectOk {})
    }
}

fn require_requeue(requeue: bool) -> Result<(), Fail> {
    if requeue {
        Ok(())
    } else {
        Err(Fail::new(reply::NOT_IMPLEMENTED, "requeue=false"))
    }
}

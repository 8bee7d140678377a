//! Exchanges and bindings.

use bytes::Bytes;

use super::{Broker, PREDECLARED};
use crate::exchange::{Exchange, Index, RouteCache, Target};
use crate::queue::{check_argument, check_depth, check_flag, check_name, name, text};
use crate::slab::Key;
use crate::{
    Binding, BindingEnd, BindingRecord, ChannelId, Effect, ExchangeDeclare, Record, Refusal,
    ReplyCode, Table, Value,
};

pub(super) const ALTERNATE: &str = "alternate-exchange";

impl Broker {
    /// `exchange.declare`.
    pub fn declare_exchange(
        &mut self,
        declare: ExchangeDeclare,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        refuse_default(&declare.name)?;
        if declare.passive {
            return self.exchange_key(&declare.name).map(drop);
        }
        let kind = || text(&declare.kind);
        let Some(index) = Index::new(&declare.kind) else {
            let why = format_args!("unknown exchange type '{}'", kind());
            return Err(Refusal::precondition(why));
        };
        let vhost = &self.options.vhost;
        let what = format!("exchange '{}' in vhost '{vhost}'", text(&declare.name));
        if let Ok(key) = self.exchange_key(&declare.name) {
            let exchange = self.exchanges.get(key).expect("names lead to exchanges");
            if exchange.index.kind() != index.kind() {
                return Err(Refusal::precondition(format_args!(
                    "inequivalent arg 'type' for {what}: received '{}' but current is '{}'",
                    kind(),
                    exchange.index.kind()
                )));
            }
            check_flag("durable", &what, declare.durable, exchange.durable)?;
            check_flag(
                "auto_delete",
                &what,
                declare.auto_delete,
                exchange.auto_delete,
            )?;
            check_flag("internal", &what, declare.internal, exchange.internal)?;
            return check_argument(ALTERNATE, &what, &declare.arguments, &exchange.arguments);
        }
        refuse_reserved("exchange", &declare.name)?;
        check_name("name of an exchange", &declare.name)?;
        if let Some(why) = alternate_fault(&declare.arguments) {
            return Err(Refusal::precondition(format_args!(
                "invalid arg '{ALTERNATE}' for {what}: {why}"
            )));
        }
        check_depth(&what, &declare.arguments)?;
        self.check_exchange_limit(&declare.name)?;
        if declare.durable {
            let record = Record::ExchangeDeclared {
                name: declare.name.clone(),
                kind: declare.kind.clone(),
                auto_delete: declare.auto_delete,
                internal: declare.internal,
                arguments: declare.arguments.clone(),
            };
            self.check_room(record.stored_bytes())?;
            self.store(record, out);
        }
        self.create_exchange(declare, index);
        Ok(())
    }

    pub(super) fn create_exchange(&mut self, declare: ExchangeDeclare, index: Index) {
        let alternate = match declare.arguments.get(ALTERNATE) {
            Some(alternate @ Value::Str(word)) if name(alternate).is_ok() => Some(word.clone()),
            _ => None,
        };
        self.add_exchange(Exchange {
            name: declare.name,
            durable: declare.durable,
            auto_delete: declare.auto_delete,
            internal: declare.internal,
            arguments: declare.arguments,
            alternate,
            index,
            bindings: Default::default(),
            incoming: Default::default(),
            routes: RouteCache::default(),
        });
    }

    /// `exchange.delete`. Deleting what is not there is fine.
    pub fn delete_exchange(
        &mut self,
        name: &[u8],
        if_unused: bool,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        refuse_default(name)?;
        let vhost = &self.options.vhost;
        if PREDECLARED
            .iter()
            .any(|(predeclared, _)| predeclared.as_bytes() == name)
        {
            let why = format_args!(
                "deletion of system exchange '{}' in vhost '{vhost}' not allowed",
                text(name)
            );
            return Err(Refusal::new(ReplyCode::AccessRefused, why));
        }
        let Some(&key) = self.exchange_names.get(name) else {
            return Ok(());
        };
        let exchange = self.exchanges.get(key).expect("names lead to exchanges");
        if if_unused && !exchange.bindings.is_empty() {
            let why = format_args!("exchange '{}' in vhost '{vhost}' in use", text(name));
            return Err(Refusal::precondition(why));
        }
        self.remove_exchanges(vec![key], out);
        Ok(())
    }

    /// Removes exchanges with their bindings, and auto-delete exchanges that thereby lose their last.
    pub(super) fn remove_exchanges(&mut self, mut doomed: Vec<Key>, out: &mut Vec<Effect>) {
        while let Some(key) = doomed.pop() {
            let Some(exchange) = self.exchanges.get(key) else {
                continue;
            };
            for (source, routing_key) in exchange.incoming.clone() {
                let target = Target::Exchange(key);
                doomed.extend(self.unbind_all(source, target, &routing_key, out));
            }
            let exchange = self.exchanges.get(key).expect("still there");
            let bound: Vec<_> = exchange.bindings.keys().cloned().collect();
            for (target, routing_key) in bound {
                self.unbind_all(key, target, &routing_key, out);
            }
            let exchange = self.exchanges.remove(key).expect("still there");
            self.exchange_names.remove(&exchange.name);
            self.topology_version += 1;
            if exchange.durable {
                out.push(Effect::Store(Record::ExchangeDeleted {
                    name: exchange.name,
                }));
            }
        }
    }

    /// `exchange.bind`. Binding twice is fine.
    pub fn bind_exchange(
        &mut self,
        binding: Binding,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let (source, target) = self.exchange_ends(&binding)?;
        check_binding(&binding)?;
        self.bind(
            source,
            target,
            &binding.routing_key,
            &binding.arguments,
            out,
        )
    }

    /// `exchange.unbind`. Unbinding what is not bound is fine.
    pub fn unbind_exchange(
        &mut self,
        binding: Binding,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let (source, target) = self.exchange_ends(&binding)?;
        self.unbind(
            source,
            target,
            &binding.routing_key,
            &binding.arguments,
            out,
        );
        Ok(())
    }

    /// `queue.bind`. Binding twice is fine.
    pub fn bind_queue(
        &mut self,
        channel: ChannelId,
        binding: Binding,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let (source, target, routing_key) = self.queue_ends(channel, &binding)?;
        check_binding(&binding)?;
        self.bind(source, target, &routing_key, &binding.arguments, out)
    }

    /// `queue.unbind`. Unbinding what is not bound is fine.
    pub fn unbind_queue(
        &mut self,
        channel: ChannelId,
        binding: Binding,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let (source, target, routing_key) = self.queue_ends(channel, &binding)?;
        self.unbind(source, target, &routing_key, &binding.arguments, out);
        Ok(())
    }

    fn exchange_ends(&self, binding: &Binding) -> Result<(Key, Target), Refusal> {
        refuse_default(&binding.source)?;
        refuse_default(&binding.destination)?;
        let source = self.exchange_key(&binding.source)?;
        Ok((
            source,
            Target::Exchange(self.exchange_key(&binding.destination)?),
        ))
    }

    fn queue_ends(
        &mut self,
        channel: ChannelId,
        binding: &Binding,
    ) -> Result<(Key, Target, Bytes), Refusal> {
        let queue = self.queue_key(channel, &binding.destination)?;
        refuse_default(&binding.source)?;
        let source = self.exchange_key(&binding.source)?;
        let mut routing_key = binding.routing_key.clone();
        if routing_key.is_empty() && binding.destination.is_empty() {
            routing_key = self.target_name(Target::Queue(queue));
        }
        Ok((source, Target::Queue(queue), routing_key))
    }

    fn bind(
        &mut self,
        source: Key,
        target: Target,
        routing_key: &Bytes,
        arguments: &Table,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let exchange = self.exchanges.get(source);
        if !exchange.is_some_and(|exchange| exchange.is_bound(target, routing_key, arguments)) {
            self.check_binding_limit(source, target)?;
        }
        self.add_binding(source, target, routing_key, arguments, out)
    }

    /// Binds, if it is not bound, however many bindings there are.
    pub(super) fn add_binding(
        &mut self,
        source: Key,
        target: Target,
        routing_key: &Bytes,
        arguments: &Table,
        out: &mut Vec<Effect>,
    ) -> Result<(), Refusal> {
        let record = self.binding_record(source, target, routing_key, arguments);
        let record = record.map(Record::Bound);
        let room = self.check_room(record.as_ref().map_or(0, Record::stored_bytes));
        let exchange = self
            .exchanges
            .get_mut(source)
            .expect("a source that exists");
        if exchange.is_bound(target, routing_key, arguments) {
            return Ok(());
        }
        room?;
        exchange.bind(target, routing_key, arguments)?;
        self.bindings += 1;
        self.topology_version += 1;
        if let Some(incoming) = self.incoming_mut(target) {
            incoming.insert((source, routing_key.clone()));
        }
        if let Some(record) = record {
            self.store(record, out);
        }
        Ok(())
    }

    fn unbind(
        &mut self,
        source: Key,
        target: Target,
        routing_key: &Bytes,
        arguments: &Table,
        out: &mut Vec<Effect>,
    ) {
        if self.remove_binding(source, target, routing_key, arguments, out) {
            let unneeded = self.auto_deleted(source);
            self.remove_exchanges(unneeded.into_iter().collect(), out);
        }
    }

    /// Takes every binding from `source` to `target` with this key away. Gives `source` back if it
    /// is to go because this was its last.
    pub(super) fn unbind_all(
        &mut self,
        source: Key,
        target: Target,
        routing_key: &Bytes,
        out: &mut Vec<Effect>,
    ) -> Option<Key> {
        let bindings = &self.exchanges.get(source)?.bindings;
        let all = bindings.get(&(target, routing_key.clone()))?.clone();
        for arguments in &all {
            self.remove_binding(source, target, routing_key, arguments, out);
        }
        self.auto_deleted(source)
    }

    pub(super) fn remove_binding(
        &mut self,
        source: Key,
        target: Target,
        routing_key: &Bytes,
        arguments: &Table,
        out: &mut Vec<Effect>,
    ) -> bool {
        let Some(exchange) = self.exchanges.get_mut(source) else {
            return false;
        };
        let Some(bound) = exchange.unbind(target, routing_key, arguments) else {
            return false;
        };
        let last = !exchange.leads_to(target, routing_key);
        self.bindings -= 1;
        self.topology_version += 1;
        if let Some(record) = self.binding_record(source, target, routing_key, &bound) {
            out.push(Effect::Store(Record::Unbound(record)));
        }
        if last && let Some(incoming) = self.incoming_mut(target) {
            incoming.remove(&(source, routing_key.clone()));
        }
        true
    }

    fn auto_deleted(&self, key: Key) -> Option<Key> {
        let exchange = self.exchanges.get(key)?;
        (exchange.auto_delete && exchange.bindings.is_empty()).then_some(key)
    }

    fn incoming_mut(
        &mut self,
        target: Target,
    ) -> Option<&mut std::collections::BTreeSet<(Key, Bytes)>> {
        match target {
            Target::Queue(key) => self.queues.get_mut(key).map(|queue| &mut queue.incoming),
            Target::Exchange(key) => self.exchanges.get_mut(key).map(|x| &mut x.incoming),
        }
    }

    /// A binding is durable when both its ends are.
    fn binding_record(
        &self,
        source: Key,
        target: Target,
        routing_key: &Bytes,
        arguments: &Table,
    ) -> Option<BindingRecord> {
        let source = self
            .exchanges
            .get(source)
            .filter(|exchange| exchange.durable)?;
        let destination = match target {
            Target::Queue(key) => {
                let queue = self.queues.get(key).filter(|queue| queue.survives())?;
                BindingEnd::Queue(queue.id)
            }
            Target::Exchange(key) => {
                let exchange = self
                    .exchanges
                    .get(key)
                    .filter(|exchange| exchange.durable)?;
                BindingEnd::Exchange(exchange.name.clone())
            }
        };
        Some(BindingRecord {
            source: source.name.clone(),
            destination,
            routing_key: routing_key.clone(),
            arguments: arguments.clone(),
        })
    }
}

/// Why the alternate exchange among an exchange's arguments cannot be one.
pub(super) fn alternate_fault(arguments: &Table) -> Option<&'static str> {
    arguments.get(ALTERNATE).and_then(|value| name(value).err())
}

fn check_binding(binding: &Binding) -> Result<(), Refusal> {
    check_name("binding key", &binding.routing_key)?;
    let (source, destination) = (text(&binding.source), text(&binding.destination));
    check_depth(
        &format!("the binding from '{source}' to '{destination}'"),
        &binding.arguments,
    )
}

pub(super) fn refuse_reserved(what: &str, name: &[u8]) -> Result<(), Refusal> {
    if !name.starts_with(b"amq.") {
        return Ok(());
    }
    let why = format_args!(
        "{what} name '{}' contains reserved prefix 'amq.*'",
        text(name)
    );
    Err(Refusal::new(ReplyCode::AccessRefused, why))
}

fn refuse_default(exchange: &[u8]) -> Result<(), Refusal> {
    if !exchange.is_empty() {
        return Ok(());
    }
    let why = "operation not permitted on the default exchange";
    Err(Refusal::new(ReplyCode::AccessRefused, why))
}

//! Reading a message: from a body, maybe of an older version, to what a handler takes, with its
//! identity and its key.

use std::{
    any::{Any, type_name},
    borrow::Cow,
    sync::Arc,
};

use tidings_saga::STEP_HEADER;

use crate::{
    BodyError, Context, Envelope, Incoming, Message, MessageId, OrderKey, Permanent, States, Store,
    identity_of,
};

/// Decodes a message on arrival, and finds out what identifies it and what order is kept by.
pub(crate) fn accept<M: Message>(
    mut incoming: Incoming,
    upcasts: &[Upcast],
    states: &Arc<States>,
    store: Option<&Arc<dyn Store>>,
) -> Result<Context, Permanent> {
    let message = decode::<M>(&incoming.envelope, upcasts)?;
    let identity = identity(&message, &incoming.envelope);
    // The consumer has named its group; what the message says its key is counts more than the
    // envelope's.
    incoming.order = incoming.order.and_then(|OrderKey { group, key }| {
        let own = message.key().map(|key| key.into_owned().into());
        let key = own.or_else(|| (!key.is_empty()).then_some(key))?;
        Some(OrderKey { group, key })
    });
    let context = Context::new(
        incoming,
        identity,
        message,
        Arc::clone(states),
        store.cloned(),
    );
    context.ok_or_else(|| {
        Permanent::new(format!(
            "the message has no id, so a duplicate of it could not be told; send a \
             `message_id` property or a `cloudEvents:id` header with it, or say which field \
             identifies a `{}` with `id = \"field\"` beside its name",
            M::NAME
        ))
    })
}

/// What the message says it is counts more than the id it came with: a foreign program may send
/// the same fact twice under two ids. Not so the step of a saga: two sagas may ask for the same, and one
/// asks again after a refusal; the step's fence sees to it that each is done once.
fn identity<M: Message>(message: &M, envelope: &Envelope) -> Option<MessageId> {
    match envelope.header(STEP_HEADER) {
        Some(_) => None,
        None => identity_of(message),
    }
}

/// An older message that a handler of a newer one takes as well.
#[derive(Clone)]
pub(crate) struct Upcast {
    /// The older message's name.
    pub(crate) name: &'static str,
    pub(crate) topic: Cow<'static, str>,
    /// Its fields that are not to be shown.
    pub(crate) sensitive: fn() -> Vec<String>,
    /// Decodes the older message and makes the newer one of it.
    decode: fn(&Envelope) -> Result<Box<dyn Any + Send>, Permanent>,
}

impl Upcast {
    pub(crate) fn new<Old, New>(topic: Cow<'static, str>) -> Self
    where
        Old: Message,
        New: Message + From<Old>,
    {
        Self {
            name: Old::NAME,
            topic,
            sensitive: Old::sensitive_paths,
            decode: |envelope| {
                let old: Old = parse(envelope)?;
                Ok(Box::new(New::from(old)))
            },
        }
    }
}

/// The message in an envelope, which may hold an older one.
pub(crate) fn decode<M: Message>(envelope: &Envelope, upcasts: &[Upcast]) -> Result<M, Permanent> {
    let Some(upcast) = upcasts.iter().find(|upcast| envelope.name == upcast.name) else {
        return parse(envelope);
    };
    let newer = (upcast.decode)(envelope)?;
    newer.downcast().map(|newer| *newer).map_err(|_| {
        Permanent::new(format!(
            "`{}` was made into another message than `{}`",
            upcast.name,
            M::NAME
        ))
    })
}

fn parse<M: Message>(envelope: &Envelope) -> Result<M, Permanent> {
    M::from_body(&envelope.body, &envelope.content_type).map_err(|error| {
        let hint = if envelope.body.is_empty() {
            "; the body is empty".to_owned()
        } else if envelope.content_type.is_empty() || envelope.content_type.contains("json") {
            String::new()
        } else {
            format!("; its content type is `{}`", envelope.content_type)
        };
        let format = error.format();
        let error = told::<M>(&error);
        let shape = type_name::<M>().rsplit("::").next().unwrap_or_default();
        Permanent::new(format!(
            "the body is not the {format} of a `{}` (`{shape}`): {error}{hint}",
            M::NAME
        ))
    })
}

/// What was wrong with a body. Errors say which value they found; of a message with sensitive
/// fields that might be one, so it is left out: the reason of a dead letter is read by many, and logged. What
/// the author of a type says in their own words about JSON stays.
fn told<M: Message>(error: &BodyError) -> String {
    let told = error.to_string();
    if M::sensitive_paths().is_empty() {
        return told;
    }
    let BodyError::Json(error) = error else {
        return "it cannot be read (what was found is not told, since the message has sensitive fields)"
            .to_owned();
    };
    let with_a_value = ["invalid type: ", "invalid value: ", "unknown variant `"];
    if !error.is_data() || !with_a_value.iter().any(|it| told.starts_with(it)) {
        return told;
    }
    let (line, column) = (error.line(), error.column());
    let place = format!(" at line {line} column {column}");
    // What was found comes before, whatever it is.
    let expected = told.strip_suffix(&*place).unwrap_or(&told);
    let expected = expected.rsplit_once(", expected ");
    let expected = expected.map(|(_, expected)| format!(", expected {expected}"));
    format!("a value is wrong{}{place}", expected.unwrap_or_default())
}

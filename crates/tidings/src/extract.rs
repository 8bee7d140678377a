//! Extractors: what a handler can take after its message.

use std::{any::type_name, ops::Deref};

use crate::{
    BoxFuture, Context, Envelope, Error, FromBatch, FromContext, Message, MessageId, Provided,
    With, trace,
};

/// A value that was given to the router with [`with_state`](crate::Router::with_state), cloned for
/// each attempt.
///
/// A router that was not given one does not start.
#[derive(Debug, Clone, Copy)]
pub struct State<T>(pub T);

impl<T: Clone + Send + Sync + 'static> FromContext for State<T> {
    fn from_context(context: &Context) -> BoxFuture<'_, Result<Self, Error>> {
        Box::pin(std::future::ready(state(context)))
    }

    fn at_once(context: &Context) -> Option<Result<Self, Error>> {
        Some(state(context))
    }

    fn check(provided: &Provided<'_>) -> Result<(), String> {
        match provided.has_state::<T>() {
            true => Ok(()),
            false => Err(missing::<T>()),
        }
    }
}

impl<T: Clone + Send + Sync + 'static> FromBatch for State<T> {}

fn state<T: Clone + Send + Sync + 'static>(context: &Context) -> Result<State<T>, Error> {
    let state = context.state_ref::<T>().cloned().map(State);
    state.ok_or_else(|| Error::msg(missing::<T>()))
}

fn missing<T>() -> String {
    let name = type_name::<T>();
    format!("it takes a `State<{name}>`, but the router has none; add `.with_state(value)`")
}

/// What is known about the message: an [`Envelope`] by reference, and where it came from.
#[derive(Clone)]
pub struct Metadata(pub(crate) Context);

impl Metadata {
    /// The id that identifies the message for ever: its identity, if the fact itself says what it
    /// is; else the [`Envelope`]'s.
    pub fn message_id(&self) -> &MessageId {
        self.0.message_id()
    }

    /// `message` as something that follows from this one: with its correlation, its trace, and this
    /// one as its cause. What a handler of one message returns has all that anyway; a handler of a
    /// [`Batch`](crate::Batch) says which of the messages it was.
    pub fn causes<M: Message>(&self, message: M) -> With<M> {
        With::from(message).caused_by(&self.0, trace::of(&self.0))
    }

    /// The queue the message came from.
    pub fn queue(&self) -> &str {
        self.0.queue()
    }

    /// How many deliveries of the message failed before this one.
    pub fn failures(&self) -> u32 {
        self.0.failures()
    }
}

impl Deref for Metadata {
    type Target = Envelope;

    fn deref(&self) -> &Envelope {
        self.0.envelope()
    }
}

impl FromContext for Metadata {
    fn from_context(context: &Context) -> BoxFuture<'_, Result<Self, Error>> {
        Box::pin(std::future::ready(Ok(Self(context.clone()))))
    }

    fn at_once(context: &Context) -> Option<Result<Self, Error>> {
        Some(Ok(Self(context.clone())))
    }
}

//! What a handler returns, and what a producer is given: messages to send, now or later.

use std::time::Duration;

use jiff::Timestamp;

use crate::{Context, Destination, Error, Message, Outgoing, RecordChange};

/// Names a message that is sent later, so that it can be cancelled until then. The same name for the
/// same thing (`order-deadline/o-1`): scheduling it again replaces what was scheduled before.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScheduleId(Box<str>);

impl ScheduleId {
    /// Takes any text as a name.
    pub fn new(id: impl Into<Box<str>>) -> Self {
        Self(id.into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// When a message is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// So long after the commit.
    After(Duration),
    /// At this time, or at once if it is past.
    At(Timestamp),
}

/// A message that is sent later.
#[derive(Debug, Clone, PartialEq)]
pub struct Scheduled {
    /// Its name, if it has one of its own; otherwise the message's id.
    pub id: Option<ScheduleId>,
    /// When it is sent.
    pub when: When,
    /// The message.
    pub message: Outgoing,
}

/// What is sent with one commit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Messages {
    /// Sent at once, in this order.
    pub now: Vec<Outgoing>,
    /// Sent later. Needs a store, in which they wait.
    pub later: Vec<Scheduled>,
    /// Not sent after all, if they have not been sent yet.
    pub cancelled: Vec<ScheduleId>,
    /// Answers to whoever asked; where they go stands in the message that is being handled.
    pub replies: Vec<Outgoing>,
    /// For the toolkit: records that are written with it. Needs a store.
    pub records: Vec<RecordChange>,
}

/// A kind of message that somebody may send, known from the types alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sends {
    /// The message's name: `order-placed.v1`.
    pub name: &'static str,
    /// Where it goes. `None`: to whoever asked.
    pub to: Option<Destination>,
    /// Whether whoever succeeds has sent it: false for what is in an `Option` or a `Vec`.
    pub always: bool,
}

impl Sends {
    /// Messages of this type, always sent.
    pub fn of<M: Message>() -> Self {
        Self {
            name: M::NAME,
            to: Some(M::DESTINATION),
            always: true,
        }
    }

    /// The same, of which it is not known whether it is sent.
    pub fn maybe(self) -> Self {
        Self {
            always: false,
            ..self
        }
    }
}

/// What can be sent: what a handler may return.
///
/// `()`, an event or a command, one [`With`] headers or a delay, a [`Reply`], a [`Cancel`], `Option`s
/// and `Vec`s of them, and tuples of up to four of all these.
#[diagnostic::on_unimplemented(
    message = "a handler cannot return `{Self}`",
    label = "not a message to send",
    note = "a handler returns `tidings::Result<T>` where `T` is `()`, a type with \
            `#[derive(Event)]` or `#[derive(Command)]`, an `Option` or `Vec` of one, or a tuple of \
            up to four of these"
)]
pub trait IntoMessages: Send {
    /// Which messages there may be. Known without a value, so that what a service sends is known
    /// before it does: the topics it declares and the event map are made of this.
    fn sends(into: &mut Vec<Sends>);

    /// Encodes the messages, in the order they are to be sent.
    ///
    /// # Errors
    ///
    /// As [`Outgoing::new`].
    fn into_messages(self, into: &mut Messages) -> Result<(), Error>;

    /// Whether there may be a [`Reply`] among them, which needs one message that it answers.
    fn may_reply() -> bool {
        false
    }
}

impl<M: Message> IntoMessages for M {
    fn sends(into: &mut Vec<Sends>) {
        into.push(Sends::of::<M>());
    }

    fn into_messages(self, into: &mut Messages) -> Result<(), Error> {
        into.now.push(Outgoing::new(&self)?);
        Ok(())
    }
}

/// A message with something said about how it is sent; made by the methods of [`SendWith`].
#[derive(Debug, Clone, PartialEq)]
#[must_use = "return it from a handler, or give it to a producer"]
pub struct With<M> {
    message: M,
    headers: Vec<(Box<str>, Box<str>)>,
    when: Option<When>,
    schedule: Option<ScheduleId>,
    cause: Option<Cause>,
}

/// What a message follows from.
#[derive(Debug, Clone, PartialEq)]
struct Cause {
    correlation_id: Box<str>,
    causation_id: Box<str>,
    traceparent: Box<str>,
}

/// Says how a message is sent: `Ok(OrderExpired { order_id }.after(DEADLINE))`.
pub trait SendWith: Message + Sized {
    /// With a header of its own. Headers travel beside the body; consumers find them in
    /// `Metadata`.
    fn header(self, name: impl Into<Box<str>>, value: impl Into<Box<str>>) -> With<Self> {
        With::from(self).header(name, value)
    }

    /// So long after the commit.
    fn after(self, delay: Duration) -> With<Self> {
        With::from(self).after(delay)
    }

    /// At this time, or at once if it is past.
    fn at(self, time: Timestamp) -> With<Self> {
        With::from(self).at(time)
    }
}

impl<M: Message> SendWith for M {}

impl<M: Message> From<M> for With<M> {
    fn from(message: M) -> Self {
        Self {
            message,
            headers: Vec::new(),
            when: None,
            schedule: None,
            cause: None,
        }
    }
}

impl<M: Message> With<M> {
    /// With a header of its own.
    pub fn header(mut self, name: impl Into<Box<str>>, value: impl Into<Box<str>>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// So long after the commit.
    pub fn after(mut self, delay: Duration) -> Self {
        self.when = Some(When::After(delay));
        self
    }

    /// At this time, or at once if it is past.
    pub fn at(mut self, time: Timestamp) -> Self {
        self.when = Some(When::At(time));
        self
    }

    /// For the toolkit: it follows from the message of `context`, whose handling is the span
    /// `traceparent`.
    pub fn caused_by(mut self, context: &Context, traceparent: &str) -> Self {
        let id = context.message_id().as_str();
        let correlation_id = context.envelope().correlation_id.clone();
        self.cause = Some(Cause {
            correlation_id: correlation_id.unwrap_or_else(|| id.into()),
            causation_id: id.into(),
            traceparent: traceparent.into(),
        });
        self
    }

    /// Under this name, by which it can be cancelled until it is sent.
    pub fn scheduled_as(mut self, id: ScheduleId) -> Self {
        self.schedule = Some(id);
        self
    }
}

impl<M: Message> IntoMessages for With<M> {
    fn sends(into: &mut Vec<Sends>) {
        into.push(Sends::of::<M>());
    }

    fn into_messages(self, into: &mut Messages) -> Result<(), Error> {
        let mut message = Outgoing::new(&self.message)?;
        message.envelope.headers.extend(self.headers);
        if let Some(cause) = self.cause {
            message.envelope.correlation_id = Some(cause.correlation_id);
            message.envelope.causation_id = Some(cause.causation_id);
            message.envelope.traceparent = Some(cause.traceparent);
        }
        match self.when {
            None => into.now.push(message),
            Some(when) => into.later.push(Scheduled {
                id: self.schedule,
                when,
                message,
            }),
        }
        Ok(())
    }
}

/// An answer to whoever asked with this command: it goes to the instance that asked, and to nobody if
/// the command was only sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply<M>(pub M);

impl<M: Message> IntoMessages for Reply<M> {
    fn sends(into: &mut Vec<Sends>) {
        into.push(Sends {
            to: None,
            ..Sends::of::<M>()
        });
    }

    fn into_messages(self, into: &mut Messages) -> Result<(), Error> {
        into.replies.push(Outgoing::new(&self.0)?);
        Ok(())
    }

    fn may_reply() -> bool {
        true
    }
}

/// Cancels what was scheduled under a name, if it has not been sent yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cancel(pub ScheduleId);

impl IntoMessages for Cancel {
    fn sends(_: &mut Vec<Sends>) {}

    fn into_messages(self, into: &mut Messages) -> Result<(), Error> {
        into.cancelled.push(self.0);
        Ok(())
    }
}

impl IntoMessages for () {
    fn sends(_: &mut Vec<Sends>) {}

    fn into_messages(self, _: &mut Messages) -> Result<(), Error> {
        Ok(())
    }
}

fn sends_maybe<T: IntoMessages>(into: &mut Vec<Sends>) {
    let before = into.len();
    T::sends(into);
    for sends in &mut into[before..] {
        sends.always = false;
    }
}

impl<T: IntoMessages> IntoMessages for Option<T> {
    fn sends(into: &mut Vec<Sends>) {
        sends_maybe::<T>(into);
    }

    fn into_messages(self, into: &mut Messages) -> Result<(), Error> {
        self.map_or(Ok(()), |messages| messages.into_messages(into))
    }

    fn may_reply() -> bool {
        T::may_reply()
    }
}

impl<T: IntoMessages> IntoMessages for Vec<T> {
    fn sends(into: &mut Vec<Sends>) {
        sends_maybe::<T>(into);
    }

    fn into_messages(self, into: &mut Messages) -> Result<(), Error> {
        self.into_iter()
            .try_for_each(|messages| messages.into_messages(into))
    }

    fn may_reply() -> bool {
        T::may_reply()
    }
}

macro_rules! tuples_into_messages {
    ($(($($part:ident)+))+) => {$(
        impl<$($part: IntoMessages),+> IntoMessages for ($($part,)+) {
            fn sends(into: &mut Vec<Sends>) {
                $($part::sends(into);)+
            }

            #[allow(non_snake_case)]
            fn into_messages(self, into: &mut Messages) -> Result<(), Error> {
                let ($($part,)+) = self;
                $($part.into_messages(into)?;)+
                Ok(())
            }

            fn may_reply() -> bool {
                false $(|| $part::may_reply())+
            }
        }
    )+};
}

tuples_into_messages! { (A) (A B) (A B C) (A B C D) }

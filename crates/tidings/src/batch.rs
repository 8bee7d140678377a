//! Many messages at once: what a handler takes that inserts rows in bulk, keeps a timeline, or sends
//! mails by the hundred.

use std::{
    fmt,
    iter::Zip,
    ops::Deref,
    slice,
    vec::{self, IntoIter},
};

use crate::{Context, FromBatch, FromContext, Message, Metadata};

/// The messages that were waiting when the handler was free: one or many, in the order they came,
/// never the same one twice.
///
/// A handler that takes a `Batch` has one transaction and one outcome for all of them. Nothing waits
/// for company: a handler that is free gets the message that comes, at once; what comes while it runs
/// is the next batch, up to [`batch_max`](crate::HandlerOptions::batch_max) messages.
///
/// - `Ok`: what it wrote, what it returns and the inbox rows of all messages are one commit.
/// - `Err`, a panic, or an attempt that takes longer than the
///   [`attempt_timeout`](crate::Router::attempt_timeout): nothing is written, and each message is
///   tried again at once, as a batch of one. Only these count as attempts, so one bad message becomes
///   a dead letter and the others are handled.
/// - A message that has failed before is tried as a batch of one.
///
/// Expect any number of messages, and expect to see a message again whose batch failed. Batches of
/// one may run beside a larger one, and a batch that takes longer than a second does not keep the next
/// one waiting.
///
/// ```
/// use tidings::{Batch, prelude::*};
/// # struct Tx;
/// # impl Tx { async fn execute(&mut self, _: &str, _: (Vec<String>, Vec<i64>)) -> Result<u64> { Ok(1) } }
/// # impl tidings::FromContext for Tx {
/// #     fn from_context(_: &Context) -> tidings::BoxFuture<'_, Result<Self>> {
/// #         Box::pin(async { Ok(Tx) })
/// #     }
/// # }
/// # impl tidings::FromBatch for Tx {}
///
/// #[derive(Serialize, Deserialize, Event)]
/// #[event(id = "order_id")]
/// struct OrderPlaced { order_id: String, amount: i64 }
///
/// /// One statement for all of them.
/// async fn record(orders: Batch<OrderPlaced>, mut tx: Tx) -> Result<()> {
///     let (ids, amounts) = orders.into_iter().map(|order| (order.order_id, order.amount)).unzip();
///     let sql = "insert into sale select * from unnest($1::text[], $2::bigint[])";
///     tx.execute(sql, (ids, amounts)).await?;
///     Ok(())
/// }
///
/// let router = Router::new("reports").on(record);
/// ```
///
/// What is about one message cannot be an argument beside a batch; the batch knows it for each, as
/// [`metadata`](Self::metadata). This does not compile:
///
/// ```compile_fail,E0277
/// # use tidings::{Batch, prelude::*};
/// # #[derive(Serialize, Deserialize, Event)]
/// # struct OrderPlaced { order_id: String }
/// async fn record(orders: Batch<OrderPlaced>, id: MessageId) -> Result<()> { Ok(()) }
///
/// Router::new("reports").on(record);
/// ```
///
/// A message that a handler of batches returns has no cause and begins a correlation of its own,
/// unless the handler says which message it follows from, with [`Metadata::causes`].
pub struct Batch<M> {
    messages: Vec<M>,
    metadata: Vec<Metadata>,
}

impl<M> Batch<M> {
    pub(crate) fn new(messages: Vec<(M, Metadata)>) -> Self {
        let (messages, metadata) = messages.into_iter().unzip();
        Self { messages, metadata }
    }

    /// What is known about each message, in the order of the messages.
    pub fn metadata(&self) -> &[Metadata] {
        &self.metadata
    }

    /// Each message with what is known about it.
    pub fn with_metadata(self) -> Zip<vec::IntoIter<M>, vec::IntoIter<Metadata>> {
        self.messages.into_iter().zip(self.metadata)
    }
}

impl<M> Deref for Batch<M> {
    type Target = [M];

    fn deref(&self) -> &[M] {
        &self.messages
    }
}

impl<M> IntoIterator for Batch<M> {
    type Item = M;
    type IntoIter = IntoIter<M>;

    fn into_iter(self) -> IntoIter<M> {
        self.messages.into_iter()
    }
}

impl<'a, M> IntoIterator for &'a Batch<M> {
    type Item = &'a M;
    type IntoIter = slice::Iter<'a, M>;

    fn into_iter(self) -> slice::Iter<'a, M> {
        self.messages.iter()
    }
}

impl<M: fmt::Debug> fmt::Debug for Batch<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.messages).finish()
    }
}

/// Makes many messages into one input.
pub(crate) type Gather<M, T> = fn(Vec<(M, Metadata)>) -> T;

/// What a handler takes first: a message, or a [`Batch`] of them. There is nothing to implement by
/// hand.
#[diagnostic::on_unimplemented(
    message = "a handler cannot take a `{Self}` first",
    label = "neither a message nor a `Batch` of messages",
    note = "a handler's first argument is its subscription: a type with `#[derive(Event)]` or \
            `#[derive(Command)]`, or a `Batch` of one"
)]
pub trait HandlerInput: Sized + Send + 'static {
    /// The message.
    type Message: Message;

    /// How many messages are made into one input, for inputs of more than one.
    const GATHER: Option<Gather<Self::Message, Self>>;

    /// The input of one message.
    fn of_one(message: Self::Message, context: &Context) -> Self;
}

#[diagnostic::do_not_recommend]
impl<M: Message> HandlerInput for M {
    type Message = M;

    const GATHER: Option<Gather<M, M>> = None;

    fn of_one(message: M, _: &Context) -> M {
        message
    }
}

impl<M: Message> HandlerInput for Batch<M> {
    type Message = M;

    const GATHER: Option<Gather<M, Self>> = Some(Self::new);

    fn of_one(message: M, context: &Context) -> Self {
        Self::new(vec![(message, Metadata(context.clone()))])
    }
}

/// What a handler can take after its first argument, if that is a `T`: any extractor after a message,
/// and those that say the same for all messages ([`FromBatch`]) after a [`Batch`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be an argument of a handler that takes `{T}` first"
)]
pub trait HandlerArgument<T>: FromContext {}

impl<M: Message, A: FromContext> HandlerArgument<M> for A {}

impl<M: Message, A: FromBatch> HandlerArgument<Batch<M>> for A {}

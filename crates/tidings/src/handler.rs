//! Handlers: plain async functions, and one attempt to run one.
//!
//! An attempt is a tower service from [`Context`] to [`Handled`], so that any tower layer can stand
//! around it. Everything that belongs together happens inside: the duplicate is turned away, the
//! message decoded, the function run, and then *one* commit holds the claim, what the function
//! wrote and what it sends. `Ok` therefore means done for ever, and an error of a layer outside
//! (a timeout, say) means no more than "try again": if the commit did happen, the next attempt
//! finds its claim.

use std::{
    any::Any,
    marker::PhantomData,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::{self, Poll},
    time::Duration,
};

use futures_util::FutureExt;
use parking_lot::Mutex;
use tower::{Service, ServiceExt};
use tracing::Instrument;

use crate::{
    BoxError, BoxFuture, Claim, Commit, Committed, Context, Error, Fate, HandlerArgument,
    HandlerInput, InboxEntry, IntoMessages, Messages, Permanent, Provided, Refusal, Sends,
    TransactionSlot, Transport, Work,
    accept::{Upcast, decode},
    gather::Gatherer,
    limit::{Begun, within},
    publish::Sender,
    retry::of_work,
    steps::{self, Fenced},
};

/// An async function that handles `T`: a message, or a [`Batch`](crate::Batch) of messages. It takes
/// that first, then up to eight extractors `A`.
///
/// It is implemented for functions and closures; there is nothing to implement by hand. What is not
/// a handler does not compile:
///
/// ```compile_fail,E0277
/// # use serde::{Deserialize, Serialize};
/// # use tidings::prelude::*;
/// # #[derive(Serialize, Deserialize, Event)]
/// # struct OrderPlaced { order_id: String }
/// struct Gateway; // no extractor: it should be `State<Gateway>`
///
/// async fn settle(order: OrderPlaced, gateway: Gateway) -> Result<()> { Ok(()) }
///
/// Router::new("payment").on(settle);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler",
    label = "not a handler",
    note = "a handler is an `async fn(Message, extractors...) -> tidings::Result<messages>`: first \
            a type with `#[derive(Event)]` or `#[derive(Command)]`, or a `Batch` of one, then at \
            most eight types that implement `FromContext` (`State<T>`, `MessageId`, `Tx`, ...), and \
            `FromBatch` beside a `Batch`",
    note = "write `#[tidings::handler]` above the function to see which part is wrong"
)]
pub trait Handler<T, A>: Clone + Send + Sync + 'static {
    /// Makes the extractors, runs the function and encodes what it returns.
    fn call(
        self,
        input: T,
        context: Context,
    ) -> impl Future<Output = Result<Messages, Error>> + Send;

    /// Which messages it may return.
    fn sends(into: &mut Vec<Sends>);

    /// What the router must still be given for the extractors.
    ///
    /// # Errors
    ///
    /// A sentence that says what to add.
    fn check(provided: &Provided<'_>) -> Result<(), String>;
}

/// What a handler returns: `tidings::Result<T>`, or a `Result` with any error.
#[diagnostic::on_unimplemented(
    message = "a handler cannot return `{Self}`",
    note = "a handler returns `tidings::Result<T>`: `Ok` acknowledges the message and sends what is \
            in it, `Err` tries again"
)]
pub trait HandlerResult {
    /// The messages to send.
    type Messages: IntoMessages;

    /// The messages, or why the attempt failed.
    ///
    /// # Errors
    ///
    /// The handler's.
    fn into_result(self) -> Result<Self::Messages, Error>;
}

impl<T: IntoMessages, E: Into<Error>> HandlerResult for Result<T, E> {
    type Messages = T;

    fn into_result(self) -> Result<T, Error> {
        self.map_err(Into::into)
    }
}

macro_rules! functions_are_handlers {
    ($(($($argument:ident)*))+) => {$(
        #[allow(non_snake_case, unused_variables)]
        impl<F, Fut, T, $($argument,)*> Handler<T, ($($argument,)*)> for F
        where
            F: Fn(T, $($argument),*) -> Fut + Clone + Send + Sync + 'static,
            Fut: Future + Send,
            Fut::Output: HandlerResult,
            T: HandlerInput,
            $($argument: HandlerArgument<T> + Send,)*
        {
            async fn call(self, input: T, context: Context) -> Result<Messages, Error> {
                $(let $argument = match $argument::at_once(&context) {
                    Some(argument) => argument?,
                    None => $argument::from_context(&context).await?,
                };)*
                let returned = self(input, $($argument),*).await.into_result()?;
                let mut messages = Messages::default();
                returned.into_messages(&mut messages)?;
                Ok(messages)
            }

            fn sends(into: &mut Vec<Sends>) {
                <Fut::Output as HandlerResult>::Messages::sends(into);
            }

            fn check(provided: &Provided<'_>) -> Result<(), String> {
                let may_reply = <Fut::Output as HandlerResult>::Messages::may_reply();
                if may_reply && T::GATHER.is_some() {
                    return Err(CANNOT_REPLY.into());
                }
                $($argument::check(provided)?;)*
                Ok(())
            }
        }
    )+};
}

functions_are_handlers! {
    () (A) (A B) (A B C) (A B C D) (A B C D E) (A B C D E G) (A B C D E G H) (A B C D E G H I)
}

/// How an attempt ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Handled {
    /// The handler ran and its effects are committed.
    Done,
    /// The message was known already (handled, or waiting in the store); nothing was done.
    Duplicate,
    /// An earlier message of its key is not done, so it has to wait; nothing was done.
    Behind,
}

/// One attempt to handle a message, as the tower service that layers stand around.
///
/// Cloning is cheap.
#[derive(Clone)]
pub struct HandlerService(Arc<dyn Fn(Context) -> Attempting + Send + Sync>);

type Attempting = BoxFuture<'static, Result<Handled, BoxError>>;

impl HandlerService {
    /// Makes one type out of any stack of layers.
    pub(crate) fn new<S>(service: S) -> Self
    where
        S: Service<Context, Response = Handled> + Clone + Send + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
    {
        // The lock is only for services that are not `Sync`; it is held for the time of a clone.
        let service = Mutex::new(service);
        Self(Arc::new(move |context| {
            let service = service.lock().clone();
            Box::pin(async move { service.oneshot(context).await.map_err(Into::into) })
        }))
    }

    /// The innermost service: an attempt of `handler`, alone or in a batch.
    pub(crate) fn attempt<H, T, A>(handler: H, surroundings: Surroundings) -> Self
    where
        H: Handler<T, A>,
        T: HandlerInput,
        A: 'static,
    {
        let attempts = Arc::new(Attempts {
            handler,
            surroundings,
            signature: PhantomData,
        });
        if let Some(gather) = T::GATHER {
            let gatherer = Arc::new(Gatherer::new(attempts, gather));
            return Self(Arc::new(move |context| {
                Box::pin(Arc::clone(&gatherer).attempt(context))
            }));
        }
        Self(Arc::new(move |context| {
            let attempts = Arc::clone(&attempts);
            match context.transaction().map(Arc::clone) {
                None => Box::pin(attempts.directly(context, None)),
                Some(slot) => Box::pin(attempts.transactional(context, None, slot)),
            }
        }))
    }
}

impl Service<Context> for HandlerService {
    type Response = Handled;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Handled, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, context: Context) -> Self::Future {
        (self.0)(context)
    }
}

/// What attempts need beyond their context.
pub(crate) struct Effects {
    pub(crate) sender: Sender,
    /// Where messages go at once if the consumer has no store.
    pub(crate) transport: Arc<dyn Transport>,
}

/// What surrounds a handler.
pub(crate) struct Surroundings {
    pub(crate) queue: Arc<str>,
    pub(crate) effects: Arc<Effects>,
    /// Older messages that it handles as well.
    pub(crate) upcasts: Arc<[Upcast]>,
    /// The longest time an attempt may take.
    pub(crate) limit: Duration,
    /// How many messages it takes at once, if it takes many.
    pub(crate) batch_max: usize,
    /// It takes many steps of sagas at once, and answers each itself.
    pub(crate) answers_steps: bool,
    /// It may run in vain.
    pub(crate) only_writes: bool,
}

/// A handler with what its attempts need.
pub(crate) struct Attempts<H, T, A> {
    pub(crate) handler: H,
    pub(crate) surroundings: Surroundings,
    signature: PhantomData<fn(T) -> A>,
}

impl<H, T, A> Attempts<H, T, A>
where
    H: Handler<T, A>,
    T: HandlerInput,
    A: 'static,
{
    /// Tries one message, alone. It is decoded already, or is now.
    pub(crate) async fn attempt(
        self: Arc<Self>,
        context: Context,
        message: Option<T::Message>,
    ) -> Result<Handled, BoxError> {
        match context.transaction().map(Arc::clone) {
            None => self.directly(context, message).await,
            Some(slot) => self.transactional(context, message, slot).await,
        }
    }

    /// The same for a consumer without a store: what it sends leaves at once.
    async fn directly(
        self: Arc<Self>,
        context: Context,
        message: Option<T::Message>,
    ) -> Result<Handled, BoxError> {
        within(self.surroundings.limit, None, async {
            let messages = self.call_with(message, &context).await?;
            if messages != Messages::default() {
                Box::pin(self.publish(messages, &context)).await?;
            }
            Ok(Handled::Done)
        })
        .await
    }

    async fn transactional(
        self: Arc<Self>,
        context: Context,
        message: Option<T::Message>,
        slot: Arc<TransactionSlot>,
    ) -> Result<Handled, BoxError> {
        let limit = self.surroundings.limit;
        let store = Arc::clone(slot.store());
        let entry = entry_of(&context);
        // Before there is a transaction, which a call to the outside would hold open. Batches have no
        // fence: of steps they get only those that start sagas, whose journal is the fence.
        let fenced = match T::GATHER {
            None => steps::look(&store, &context).await,
            Some(_) => Ok(None),
        };
        let fenced = fenced.map_err(Error::into_inner)?;
        let begun = Begun::default();
        let begins = begun.clone();
        let work = async move {
            begins.begin();
            let writing = match fenced {
                None => None,
                Some(Fenced::CarryOut(writing)) => Some(writing),
                Some(Fenced::Answer(answer)) => {
                    let mut messages = Messages::default();
                    messages.replies.push(answer);
                    return self.commit(messages, &context);
                }
            };
            let mut messages = self.call_with(message, &context).await?;
            let Some(writing) = writing else {
                return self.commit(messages, &context);
            };
            writing.complete(&mut messages).map_err(Error::into_inner)?;
            let mut commit = self.commit(messages, &context)?;
            writing.add_to(&mut commit).map_err(Error::into_inner)?;
            Ok(commit)
        };
        // The store may run it in a thread of its own.
        let work = Work::new(slot, work.in_current_span()).claiming(entry);
        within(limit, Some(&begun), async {
            match work.hand_to(&*store).await.map_err(of_work)? {
                Committed::Done => Ok(Handled::Done),
                Committed::Refused { why, .. } => Ok(refused(why)),
            }
        })
        .await
    }

    /// Decodes the message and runs the handler.
    async fn call_with(
        &self,
        message: Option<T::Message>,
        context: &Context,
    ) -> Result<Messages, BoxError> {
        let message = match message.or_else(|| context.take_decoded()) {
            Some(message) => message,
            None => self.decode(context)?,
        };
        self.call(T::of_one(message, context), context).await
    }

    pub(crate) fn decode(&self, context: &Context) -> Result<T::Message, BoxError> {
        Ok(decode(context.envelope(), &self.surroundings.upcasts)?)
    }

    /// Runs the handler.
    pub(crate) async fn call(&self, input: T, context: &Context) -> Result<Messages, BoxError> {
        let messages = guard(self.handler.clone().call(input, context.clone())).await;
        let messages = messages.map_err(Error::into_inner)?;
        match T::GATHER {
            Some(_) if !messages.replies.is_empty() => Err(Permanent::new(CANNOT_REPLY).into()),
            _ => Ok(messages),
        }
    }

    /// What is committed to send what the handler returned.
    pub(crate) fn commit(&self, messages: Messages, context: &Context) -> Result<Commit, BoxError> {
        let sender = &self.surroundings.effects.sender;
        let commit = sender.commit(messages, Self::cause(context));
        commit.map_err(Error::into_inner)
    }

    /// Sends what the handler returned, without a store.
    pub(crate) async fn publish(
        &self,
        messages: Messages,
        context: &Context,
    ) -> Result<(), BoxError> {
        let Effects { sender, transport } = &*self.surroundings.effects;
        let published = sender.directly(&**transport, messages, Self::cause(context));
        published.await.map_err(Error::into_inner)
    }

    /// What the handler returns follows from its message. Which one of a batch it follows from, only
    /// the handler knows; the same for a batch of one, which is not to look different.
    fn cause(context: &Context) -> Option<&Context> {
        T::GATHER.is_none().then_some(context)
    }
}

const CANNOT_REPLY: &str = "it takes a `Batch` and returns a `Reply` or a `StepReply`, but a \
                            reply answers one message; take one message instead";

/// The row of a message that is handled.
pub(crate) fn entry_of(context: &Context) -> InboxEntry {
    let incoming = context.incoming();
    InboxEntry {
        claim: claim_of(context),
        over: incoming.over.clone(),
        order: incoming.order.clone(),
        fate: Fate::Handled,
    }
}

/// What a refused commit means for the message.
pub(crate) fn refused(why: Refusal) -> Handled {
    match why {
        Refusal::Known => Handled::Duplicate,
        Refusal::Behind | Refusal::Free => Handled::Behind,
    }
}

/// The row of a message in the inbox.
pub(crate) fn claim_of(context: &Context) -> Claim {
    Claim {
        consumer: context.queue().into(),
        message: context.message_id().clone(),
    }
}

/// Runs a future of the user's; its panic is an error like any other.
async fn guard<T>(future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    AssertUnwindSafe(future)
        .catch_unwind()
        .await
        .unwrap_or_else(|panic| Err(Error::msg(panicked("the handler", &*panic))))
}

/// Whose panic it was, and what it said.
pub(crate) fn panicked(who: &str, panic: &(dyn Any + Send)) -> String {
    let said = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("something that is not text");
    format!("{who} panicked: {said}")
}

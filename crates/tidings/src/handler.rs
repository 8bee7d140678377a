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
    future,
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::Arc,
    task::{self, Poll},
    time::Duration,
};

use futures_util::FutureExt;
use parking_lot::Mutex;
use tower::{Service, ServiceExt};
use tracing::Instrument;

use crate::{
    BoxError, BoxFuture, Claim, Committed, Context, Destination, Error, Fate, FromContext,
    InboxEntry, IntoMessages, Message, Messages, Provided, Refusal, TransactionSlot, Transport,
    Work, WorkError,
    accept::{Upcast, decode},
    publish::Sender,
    retry::NotAsked,
};

/// An async function that handles messages of type `M`: the message first, then up to eight
/// extractors `A`.
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
            a type with `#[derive(Event)]` or `#[derive(Command)]`, then at most eight types that \
            implement `FromContext` (`State<T>`, `MessageId`, `Tx`, ...)",
    note = "write `#[tidings::handler]` above the function to see which part is wrong"
)]
pub trait Handler<M, A>: Clone + Send + Sync + 'static {
    /// Makes the extractors, runs the function and encodes what it returns.
    fn call(
        self,
        message: M,
        context: Context,
    ) -> impl Future<Output = Result<Messages, Error>> + Send;

    /// Where the returned messages may go.
    fn destinations(into: &mut Vec<Destination>);

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
        impl<F, Fut, M, $($argument,)*> Handler<M, ($($argument,)*)> for F
        where
            F: Fn(M, $($argument),*) -> Fut + Clone + Send + Sync + 'static,
            Fut: Future + Send,
            Fut::Output: HandlerResult,
            M: Message,
            $($argument: FromContext + Send,)*
        {
            async fn call(self, message: M, context: Context) -> Result<Messages, Error> {
                $(let $argument = $argument::from_context(&context).await?;)*
                let returned = self(message, $($argument),*).await.into_result()?;
                let mut messages = Messages::default();
                returned.into_messages(&mut messages)?;
                Ok(messages)
            }

            fn destinations(into: &mut Vec<Destination>) {
                <Fut::Output as HandlerResult>::Messages::destinations(into);
            }

            fn check(provided: &Provided<'_>) -> Result<(), String> {
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

    /// The innermost service: an attempt of `handler`.
    pub(crate) fn attempt<H, M, A>(
        handler: H,
        effects: Arc<Effects>,
        upcasts: Arc<[Upcast]>,
        limit: Duration,
    ) -> Self
    where
        H: Handler<M, A>,
        M: Message,
    {
        Self(Arc::new(move |context| {
            let handler = handler.clone();
            let (effects, upcasts) = (Arc::clone(&effects), Arc::clone(&upcasts));
            match context.transaction().map(Arc::clone) {
                None => Box::pin(async move {
                    within(limit, directly(handler, effects, upcasts, context)).await
                }),
                Some(slot) => Box::pin(async move {
                    within(limit, attempt(handler, effects, upcasts, context, slot)).await
                }),
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

/// `attempt`, unless it still runs this long after it first had to wait. The clock is for those that
/// have to wait: most attempts of a consumer without a store do not.
async fn within(
    limit: Duration,
    attempt: impl Future<Output = Result<Handled, BoxError>>,
) -> Result<Handled, BoxError> {
    let (mut attempt, mut late) = (pin!(attempt), pin!(None));
    future::poll_fn(|task| {
        if let Poll::Ready(outcome) = attempt.as_mut().poll(task) {
            return Poll::Ready(outcome);
        }
        if late.is_none() {
            late.set(Some(tokio::time::sleep(limit)));
        }
        let is_late = late.as_mut().as_pin_mut().map(|late| late.poll(task));
        match is_late {
            Some(Poll::Ready(())) => Poll::Ready(Err(format!(
                "the handler was still running after the `attempt_timeout` of {limit:?}"
            )
            .into())),
            _ => Poll::Pending,
        }
    })
    .await
}

/// An attempt of a consumer without a store: what it sends leaves at once.
async fn directly<H, M, A>(
    handler: H,
    effects: Arc<Effects>,
    upcasts: Arc<[Upcast]>,
    context: Context,
) -> Result<Handled, BoxError>
where
    H: Handler<M, A>,
    M: Message,
{
    let messages = call(handler, &upcasts, &context).await?;
    if messages == Messages::default() {
        return Ok(Handled::Done);
    }
    let sent = effects
        .sender
        .directly(&*effects.transport, messages, &context);
    Box::pin(sent).await.map_err(Error::into_inner)?;
    Ok(Handled::Done)
}

async fn attempt<H, M, A>(
    handler: H,
    effects: Arc<Effects>,
    upcasts: Arc<[Upcast]>,
    context: Context,
    slot: Arc<TransactionSlot>,
) -> Result<Handled, BoxError>
where
    H: Handler<M, A>,
    M: Message,
{
    let store = Arc::clone(slot.store());
    let entry = InboxEntry {
        claim: claim_of(&context),
        over: context.incoming().over.clone(),
        order: context.incoming().order.clone(),
        fate: Fate::Handled,
    };
    let work = async move {
        let messages = call(handler, &upcasts, &context).await?;
        let commit = effects.sender.commit(messages, Some(&context));
        commit.map_err(Error::into_inner)
    };
    // The store may run it in a thread of its own.
    let work = Work::new(slot, work.in_current_span()).claiming(entry);
    let committed = match work.hand_to(&*store).await {
        Ok(committed) => committed,
        Err(WorkError::NotBegun(error)) if !error.is_invalid() => {
            return Err(NotAsked(error).into());
        }
        Err(error) => return Err(error.into_inner()),
    };
    Ok(match committed {
        Committed::Done => Handled::Done,
        Committed::Refused { why, .. } => match why {
            Refusal::Known => Handled::Duplicate,
            Refusal::Behind | Refusal::Free => Handled::Behind,
        },
    })
}

/// Decodes the message and runs the handler.
async fn call<H, M, A>(
    handler: H,
    upcasts: &[Upcast],
    context: &Context,
) -> Result<Messages, BoxError>
where
    H: Handler<M, A>,
    M: Message,
{
    let message = match context.take_decoded::<M>() {
        Some(message) => message,
        None => decode(context.envelope(), upcasts)?,
    };
    let messages = guard(handler.call(message, context.clone())).await;
    messages.map_err(Error::into_inner)
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

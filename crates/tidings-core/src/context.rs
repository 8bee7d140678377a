//! What a handler's arguments are made from.
//!
//! A [`Context`] exists once per attempt. Its [`TransactionSlot`] holds the attempt's transaction:
//! begun when it is first used, lent to the handler as a [`TransactionHandle`], handed back when
//! that is dropped, committed or rolled back by the toolkit alone.

use std::{
    any::{Any, TypeId, type_name},
    collections::HashMap,
    future,
    sync::{Arc, OnceLock},
    task::{self, Poll, Waker},
};

use parking_lot::Mutex;

use crate::{
    BoxError, BoxFuture, Commit, Envelope, Error, MessageId, OrderKey, Over, Store, StoreError,
    Transaction, WorkFuture,
};

/// Values that were given to a router with `with_state`, by type.
pub type States = HashMap<TypeId, Arc<dyn Any + Send + Sync>>;

/// One attempt to handle one delivery.
///
/// Cloning is cheap and gives the same attempt.
#[derive(Clone)]
pub struct Context {
    message: Arc<Received>,
    states: Arc<States>,
    transaction: Option<Arc<TransactionSlot>>,
}

/// A message that is to be handled, from the broker or from the store.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// Metadata and body.
    pub envelope: Arc<Envelope>,
    /// The consumer's queue for it.
    pub queue: Arc<str>,
    /// How many deliveries or attempts failed before.
    pub failures: u32,
    /// What the inbox must say of it already, for the commit of the attempt.
    pub over: Over,
    /// What order is kept by, at consumers that ask for order.
    pub order: Option<OrderKey>,
    /// W3C trace context of the handling: what messages carry that it sends. The toolkit makes it when
    /// it is first asked for.
    pub traceparent: OnceLock<Box<str>>,
}

/// What all attempts at a message share, in one piece of memory.
struct Received<D: ?Sized = dyn Any + Send> {
    incoming: Incoming,
    /// `None`: the envelope's.
    identity: Option<MessageId>,
    /// An `Option` of the message's own type.
    decoded: Mutex<D>,
}

impl Context {
    /// For the toolkit: the first attempt at a message. It keeps `decoded`, so that the attempt need not
    /// decode the message again. `identity` counts more than the envelope's id. `None` if there is neither.
    pub fn new<M: Send + 'static>(
        incoming: Incoming,
        identity: Option<MessageId>,
        decoded: M,
        states: Arc<States>,
        store: Option<Arc<dyn Store>>,
    ) -> Option<Self> {
        identity.as_ref().or(incoming.envelope.id.as_ref())?;
        let message = Received {
            incoming,
            identity,
            decoded: Mutex::new(Some(decoded)),
        };
        Some(Self {
            message: Arc::new(message),
            states,
            transaction: store.map(|store| Arc::new(TransactionSlot::new(store))),
        })
    }

    /// For the toolkit: the same delivery, tried again, with a transaction of its own.
    pub fn again(&self) -> Self {
        let store = self
            .transaction
            .as_ref()
            .map(|slot| Arc::clone(&slot.store));
        Self {
            message: Arc::clone(&self.message),
            states: Arc::clone(&self.states),
            transaction: store.map(|store| Arc::new(TransactionSlot::new(store))),
        }
    }

    /// For the toolkit: the message that [`new`](Self::new) was given; once.
    pub fn take_decoded<M: Send + 'static>(&self) -> Option<M> {
        let mut decoded = self.message.decoded.lock();
        decoded.downcast_mut::<Option<M>>()?.take()
    }

    /// Metadata and body of the message.
    pub fn envelope(&self) -> &Envelope {
        &self.message.incoming.envelope
    }

    /// For the toolkit: where the message came from.
    pub fn incoming(&self) -> &Incoming {
        &self.message.incoming
    }

    /// The id that identifies the message for ever.
    pub fn message_id(&self) -> &MessageId {
        let Received {
            identity, incoming, ..
        } = &*self.message;
        let id = identity.as_ref().or(incoming.envelope.id.as_ref());
        id.expect("`new` makes no context without one")
    }

    /// The queue the message came from.
    pub fn queue(&self) -> &str {
        &self.message.incoming.queue
    }

    /// How many deliveries or attempts of this message failed before this one.
    pub fn failures(&self) -> u32 {
        self.message.incoming.failures
    }

    /// The value of type `T` that was given with `with_state`.
    pub fn state<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        let state = self.states.get(&TypeId::of::<T>())?;
        Arc::clone(state).downcast().ok()
    }

    /// The same, lent.
    pub fn state_ref<T: Send + Sync + 'static>(&self) -> Option<&T> {
        self.states.get(&TypeId::of::<T>())?.downcast_ref()
    }

    /// This attempt's transaction. `None` if the consumer has no store.
    pub fn transaction(&self) -> Option<&Arc<TransactionSlot>> {
        self.transaction.as_ref()
    }
}

/// The place of one unit of work's transaction.
pub struct TransactionSlot {
    store: Arc<dyn Store>,
    state: Mutex<SlotState>,
}

enum SlotState {
    NotBegun,
    /// The store puts the transaction here, as soon as it is wanted.
    ByStore(Waiting),
    Lent,
    Begun(Box<dyn Transaction>),
}

/// Who waits for a transaction that the store puts into a slot.
#[derive(Default)]
struct Waiting {
    /// The handler, once it wants the transaction.
    user: Option<Waker>,
    /// The store, until it is wanted.
    store: Option<Waker>,
}

impl TransactionSlot {
    /// A slot with no transaction begun.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self {
            store,
            state: Mutex::new(SlotState::NotBegun),
        }
    }

    /// The store that transactions come from.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// For stores: the transaction to use, begun already.
    pub fn put(&self, transaction: Box<dyn Transaction>) {
        if let SlotState::ByStore(Waiting {
            user: Some(user), ..
        }) = self.replace(SlotState::Begun(transaction))
        {
            user.wake();
        }
    }

    /// For stores that [`put`](Self::put) the transaction when [`is_wanted`](Self::is_wanted) says
    /// so, instead of being asked to begin one. What is begun already stays.
    pub fn put_when_wanted(&self) {
        let mut state = self.state.lock();
        if let SlotState::NotBegun = *state {
            *state = SlotState::ByStore(Waiting::default());
        }
    }

    /// For stores: whether somebody waits for a transaction to be [`put`](Self::put). If not, the
    /// waker of `task` is called when somebody does.
    pub fn is_wanted(&self, task: &mut task::Context<'_>) -> bool {
        match &mut *self.state.lock() {
            SlotState::ByStore(Waiting { user: Some(_), .. }) => true,
            SlotState::ByStore(waiting) => {
                waiting.store = Some(task.waker().clone());
                false
            }
            SlotState::NotBegun | SlotState::Lent | SlotState::Begun(_) => false,
        }
    }

    /// For stores: polls a work in the caller's own task, until it has ended or wants its transaction
    /// (`None`). Says besides whether it has awaited something else meanwhile.
    pub async fn until_wanted(
        &self,
        work: &mut WorkFuture,
    ) -> (Option<Result<Commit, BoxError>>, bool) {
        let mut has_waited = false;
        let ended = future::poll_fn(|task| match work.as_mut().poll(task) {
            Poll::Ready(ended) => Poll::Ready(Some(ended)),
            Poll::Pending if self.is_wanted(task) => Poll::Ready(None),
            Poll::Pending => {
                has_waited = true;
                Poll::Pending
            }
        });
        (ended.await, has_waited)
    }

    /// True if the transaction was used, or is being used.
    pub fn is_used(&self) -> bool {
        match &*self.state.lock() {
            SlotState::NotBegun => false,
            SlotState::ByStore(waiting) => waiting.user.is_some(),
            SlotState::Lent | SlotState::Begun(_) => true,
        }
    }

    /// A handle through which the transaction is used.
    pub fn handle(self: &Arc<Self>) -> TransactionHandle {
        TransactionHandle {
            slot: Arc::clone(self),
            transaction: None,
        }
    }

    /// Takes the transaction, if one was begun, to commit it or roll it back.
    ///
    /// # Errors
    ///
    /// When the handler kept its transaction beyond its return (moved it into a task, say): what
    /// was written there cannot be committed with the rest.
    pub fn take(&self) -> Result<Option<Box<dyn Transaction>>, StoreError> {
        match self.replace(SlotState::NotBegun) {
            SlotState::NotBegun | SlotState::ByStore(_) => Ok(None),
            SlotState::Begun(transaction) => Ok(Some(transaction)),
            SlotState::Lent => Err(StoreError::new(
                "the handler returned but its `Tx` is still in use; a transaction cannot outlive \
                 its handler: do not move `Tx` into a spawned task",
            )),
        }
    }

    async fn borrow(&self) -> Result<Box<dyn Transaction>, StoreError> {
        match future::poll_fn(|task| self.poll_borrow(task)).await {
            Borrowed::Begun(transaction) => Ok(transaction),
            Borrowed::ToBegin => {
                let unless_begun = NotBegunAgain(self);
                let transaction = self.store.begin().await?;
                std::mem::forget(unless_begun);
                Ok(transaction)
            }
            Borrowed::Lent => Err(StoreError::new(
                "the transaction is in use by another argument of this handler; take one `Tx` per \
                 handler",
            )),
        }
    }

    fn poll_borrow(&self, task: &mut task::Context<'_>) -> Poll<Borrowed> {
        let mut state = self.state.lock();
        if let SlotState::ByStore(waiting) = &mut *state {
            waiting.user = Some(task.waker().clone());
            waiting.store.take().inspect(Waker::wake_by_ref);
            return Poll::Pending;
        }
        Poll::Ready(match std::mem::replace(&mut *state, SlotState::Lent) {
            SlotState::Begun(transaction) => Borrowed::Begun(transaction),
            SlotState::NotBegun => Borrowed::ToBegin,
            SlotState::ByStore(_) | SlotState::Lent => Borrowed::Lent,
        })
    }

    fn replace(&self, state: SlotState) -> SlotState {
        std::mem::replace(&mut *self.state.lock(), state)
    }
}

enum Borrowed {
    Begun(Box<dyn Transaction>),
    ToBegin,
    Lent,
}

/// Puts a slot back when its transaction could not begin, or nobody waited until it had.
struct NotBegunAgain<'a>(&'a TransactionSlot);

impl Drop for NotBegunAgain<'_> {
    fn drop(&mut self) {
        self.0.replace(SlotState::NotBegun);
    }
}

/// Lends a transaction to a handler. Stores wrap it in their own `Tx`.
pub struct TransactionHandle {
    slot: Arc<TransactionSlot>,
    transaction: Option<Box<dyn Transaction>>,
}

impl TransactionHandle {
    /// The transaction, begun now if it was not yet, as the store's own type.
    ///
    /// # Errors
    ///
    /// When the database cannot begin one, when two arguments of a handler use it at once, or when
    /// the consumer's store makes transactions of another type than `T`.
    pub async fn get<T: Transaction>(&mut self) -> Result<&mut T, StoreError> {
        let transaction: &mut dyn Any = self.get_any().await?;
        transaction.downcast_mut().ok_or_else(|| {
            StoreError::new(format!(
                "the handler asks for a `{}`, but the store given to `transactional` makes \
                 another kind of transaction; use the `Tx` of that store's crate",
                type_name::<T>()
            ))
        })
    }
}

impl TransactionHandle {
    /// The transaction, begun now if it was not yet, whichever store's it is.
    ///
    /// # Errors
    ///
    /// When the database cannot begin one, or two arguments of a handler use it at once.
    pub async fn get_any(&mut self) -> Result<&mut dyn Transaction, StoreError> {
        let transaction = match self.transaction.take() {
            Some(transaction) => transaction,
            None => self.slot.borrow().await?,
        };
        Ok(self.transaction.insert(transaction).as_mut())
    }
}

impl Drop for TransactionHandle {
    fn drop(&mut self) {
        if let Some(transaction) = self.transaction.take() {
            self.slot.replace(SlotState::Begun(transaction));
        }
    }
}

/// What the `Tx` of every store is made from.
impl FromContext for TransactionHandle {
    fn from_context(context: &Context) -> BoxFuture<'_, Result<Self, Error>> {
        Box::pin(async move {
            let slot = context.transaction().ok_or_else(|| {
                Error::msg("the handler takes a `Tx` but has no store; add `.transactional(store)`")
            })?;
            Ok(slot.handle())
        })
    }

    fn check(provided: &Provided<'_>) -> Result<(), String> {
        provided.needs_store()
    }
}

/// Something a handler can take as an argument after its message.
///
/// ```
/// use tidings_core::{BoxFuture, Context, Error, FromContext};
///
/// /// How often this message failed before.
/// struct Failures(u32);
///
/// impl FromContext for Failures {
///     fn from_context(context: &Context) -> BoxFuture<'_, Result<Self, Error>> {
///         Box::pin(async move { Ok(Failures(context.failures())) })
///     }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be an argument of a handler",
    note = "a handler takes its message first, then extractors: `State<T>`, `MessageId`, `Tx`, \
            `Metadata`, or your own type that implements `FromContext`"
)]
pub trait FromContext: Sized {
    /// Makes the argument. An error counts as a failed attempt.
    fn from_context(context: &Context) -> BoxFuture<'_, Result<Self, Error>>;

    /// The same for an extractor that never waits: the toolkit asks for this first, and then needs no
    /// future. `None` (the default) if it may have to wait.
    fn at_once(context: &Context) -> Option<Result<Self, Error>> {
        let _ = context;
        None
    }

    /// Says, before the service starts, what the router must still be given for this argument. An
    /// error stops the start; it says what to add.
    fn check(provided: &Provided<'_>) -> Result<(), String> {
        let _ = provided;
        Ok(())
    }
}

/// An extractor that says the same for all messages, so that a handler that takes a whole batch of
/// them can have it too: a transaction, a state.
///
/// Whatever is made from a [`TransactionHandle`] is one already: the `Tx` of every store. An
/// extractor of your own that never asks the [`Context`] about the message says so:
///
/// ```
/// use tidings_core::{BoxFuture, Context, Error, FromBatch, FromContext};
///
/// #[derive(Clone)]
/// struct Clock(fn() -> u64);
///
/// impl FromContext for Clock {
///     fn from_context(context: &Context) -> BoxFuture<'_, Result<Self, Error>> {
///         let clock = context.state::<Clock>().map(|clock| (*clock).clone());
///         Box::pin(async move { clock.ok_or_else(|| Error::msg("add `.with_state(clock)`")) })
///     }
/// }
///
/// impl FromBatch for Clock {}
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be an argument of a handler that takes a `Batch`",
    note = "`MessageId`, `Metadata` and `Context` are about one message: ask the batch, with \
            `batch.metadata()`",
    note = "an extractor of your own that says the same for all messages implements `FromBatch`"
)]
pub trait FromBatch: FromContext {}

#[diagnostic::do_not_recommend]
impl<T: FromContext + From<TransactionHandle>> FromBatch for T {}

/// What a router can give to its handlers, for [`FromContext::check`].
#[derive(Clone, Copy)]
pub struct Provided<'a> {
    states: &'a States,
    store: Option<&'a Arc<dyn Store>>,
}

impl<'a> Provided<'a> {
    /// For the toolkit: what a router was given.
    pub fn new(states: &'a States, store: Option<&'a Arc<dyn Store>>) -> Self {
        Self { states, store }
    }

    /// Whether a value of type `T` was given with `with_state`.
    pub fn has_state<T: 'static>(&self) -> bool {
        self.states.contains_key(&TypeId::of::<T>())
    }

    /// An error that says to call `.transactional(store)`, if that was not done.
    ///
    /// # Errors
    ///
    /// When the router has no store.
    pub fn needs_store(&self) -> Result<(), String> {
        match self.store {
            Some(_) => Ok(()),
            None => Err(
                "it takes a `Tx`, but the router has no store; add `.transactional(store)`".into(),
            ),
        }
    }
}

impl FromContext for MessageId {
    fn from_context(context: &Context) -> BoxFuture<'_, Result<Self, Error>> {
        Box::pin(async move { Ok(context.message_id().clone()) })
    }

    fn at_once(context: &Context) -> Option<Result<Self, Error>> {
        Some(Ok(context.message_id().clone()))
    }
}

impl FromContext for Context {
    fn from_context(context: &Context) -> BoxFuture<'_, Result<Self, Error>> {
        Box::pin(async move { Ok(context.clone()) })
    }

    fn at_once(context: &Context) -> Option<Result<Self, Error>> {
        Some(Ok(context.clone()))
    }
}

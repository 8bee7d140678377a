//! Sending from outside of handlers: from an HTTP handler, a timer, a command line.

use std::{borrow::Cow, sync::Arc};

use jiff::Timestamp;
use tracing::Instrument;

use crate::{
    Command, Cron, Error, Event, Expected, IntoMessages, Message, Messages, Outgoing, RecordChange,
    ScheduleId, Store, TransactionHandle, TransactionSlot, Work, WorkError, publish::Sender, retry,
    schedule,
};

/// Sends events and commands through the outbox, in one transaction with what else is written.
///
/// Cloning is cheap. The relay of the service that has the same store ([`serve`](crate::serve))
/// publishes what was committed.
#[derive(Clone)]
pub struct Producer {
    store: Arc<dyn Store>,
    sender: Arc<Sender>,
}

impl Producer {
    /// A producer for the service `source`, which stands in each message as its source.
    pub fn new(source: impl Into<Cow<'static, str>>, store: impl Into<Arc<dyn Store>>) -> Self {
        Self {
            store: store.into(),
            sender: Arc::new(Sender {
                source: source.into(),
                on_send: Vec::new(),
            }),
        }
    }

    /// As [`Router::on_send`](crate::Router::on_send), for what this producer sends.
    pub fn on_send(
        mut self,
        look: impl Fn(&mut Outgoing) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Self {
        Arc::make_mut(&mut self.sender).on_send.push(Arc::new(look));
        self
    }

    /// A unit of work. Its database transaction begins when [`handle`](ProducerTransaction::handle)
    /// is first used.
    pub fn transaction(&self) -> ProducerTransaction {
        ProducerTransaction {
            slot: Arc::new(TransactionSlot::new(Arc::clone(&self.store))),
            sender: Arc::clone(&self.sender),
            messages: Messages::default(),
            traceparent: None,
        }
    }

    /// Commits one event to the outbox, with nothing else.
    ///
    /// # Errors
    ///
    /// When the event is too large, or the database does not commit.
    pub async fn publish<E: Event>(&self, event: &E) -> Result<(), Error> {
        let mut transaction = self.transaction();
        transaction.publish(event)?;
        transaction.commit().await
    }

    /// Sends `message` again and again, as `cron` says, whether or not this program goes on running: any
    /// instance of the service that has the same store sends it, until it is
    /// [cancelled](Self::cancel) under the schedule's name. What is scheduled under that name is replaced.
    /// For what the program itself always does there is [`Router::schedule`](crate::Router::schedule).
    ///
    /// # Errors
    ///
    /// When the message is too large, or the database does not commit.
    pub async fn schedule<M: Message>(&self, cron: Cron, message: &M) -> Result<(), Error> {
        let mut transaction = self.transaction();
        transaction.schedule(cron, message)?;
        transaction.commit().await
    }

    /// Cancels what was scheduled under `id`, once or recurring, if it has not been sent yet. Returns
    /// whether there was something to cancel.
    ///
    /// # Errors
    ///
    /// When the database does not answer.
    pub async fn cancel(&self, id: &ScheduleId) -> Result<bool, Error> {
        Ok(schedule::cancel(&*self.store, id).await?)
    }

    /// Commits one command to the outbox, with nothing else.
    ///
    /// # Errors
    ///
    /// When the command is too large, or the database does not commit.
    pub async fn send<C: Command>(&self, command: &C) -> Result<(), Error> {
        let mut transaction = self.transaction();
        transaction.send(command)?;
        transaction.commit().await
    }
}

/// Writes and messages that become durable together, or not at all.
///
/// Dropping it undoes everything.
#[must_use = "nothing is written or sent before `commit`"]
pub struct ProducerTransaction {
    slot: Arc<TransactionSlot>,
    sender: Arc<Sender>,
    messages: Messages,
    traceparent: Option<Box<str>>,
}

impl ProducerTransaction {
    /// The database transaction, for the store's own `Tx`. Drop it before
    /// [`commit`](Self::commit).
    pub fn handle(&self) -> TransactionHandle {
        self.slot.handle()
    }

    /// The W3C trace context that the messages after this carry on.
    pub fn traceparent(&mut self, traceparent: impl Into<Box<str>>) {
        self.traceparent = Some(traceparent.into());
    }

    /// Tells everybody what happened, if the transaction commits.
    ///
    /// # Errors
    ///
    /// Permanent: the body is over the event's size budget.
    pub fn publish<E: Event>(&mut self, event: &E) -> Result<(), Error> {
        self.push(event)
    }

    /// Tells one consumer what to do, if the transaction commits.
    ///
    /// # Errors
    ///
    /// Permanent: the body is over the command's size budget.
    pub fn send<C: Command>(&mut self, command: &C) -> Result<(), Error> {
        self.push(command)
    }

    /// Sends whatever a handler may return, if the transaction commits: several messages, one with
    /// headers, one that is sent later, the cancellation of one.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # use tidings::prelude::*;
    /// # #[derive(Serialize, Deserialize, Event)]
    /// # struct OrderExpired { order_id: String }
    /// # fn example(transaction: &mut tidings::ProducerTransaction) -> Result<()> {
    /// let day = std::time::Duration::from_secs(24 * 3600);
    /// transaction.say(OrderExpired { order_id: "o-1".into() }.after(day))?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Permanent: a body is over its size budget.
    pub fn say(&mut self, messages: impl IntoMessages) -> Result<(), Error> {
        let mut said = Messages::default();
        messages.into_messages(&mut said)?;
        let later = said
            .later
            .iter_mut()
            .map(|scheduled| &mut scheduled.message);
        for message in said.now.iter_mut().chain(later) {
            message.envelope.traceparent = self.traceparent.clone();
        }
        self.messages.now.extend(said.now);
        self.messages.later.extend(said.later);
        self.messages.cancelled.extend(said.cancelled);
        Ok(())
    }

    /// As [`Producer::schedule`], if the transaction commits.
    ///
    /// # Errors
    ///
    /// When the message is too large.
    pub fn schedule<M: Message>(&mut self, cron: Cron, message: &M) -> Result<(), Error> {
        let message = Outgoing::new(message)?;
        let now = Timestamp::now();
        let recurring = schedule::recurring(cron, message, &self.sender, false, now)?;
        self.messages.records.push(RecordChange {
            id: recurring.record_id(),
            expected: Expected::Anything,
            value: Some(recurring.value()),
        });
        Ok(())
    }

    fn push<M: Message>(&mut self, message: &M) -> Result<(), Error> {
        let mut outgoing = Outgoing::new(message)?;
        outgoing.envelope.traceparent = self.traceparent.clone();
        self.messages.now.push(outgoing);
        Ok(())
    }

    /// Runs `work` where the database is, with the transaction's handle, and commits what it wrote
    /// together with the messages that it returns and those that were said before. Returns what else
    /// it returns.
    ///
    /// The store may run it in a thread of its own, many such works with one disk sync; so it awaits
    /// nothing but the database.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # use tidings::prelude::*;
    /// # #[derive(Serialize, Deserialize, Event)]
    /// # struct OrderPlaced { order_id: String }
    /// # async fn example(producer: tidings::Producer) -> std::result::Result<(), tidings::WorkError> {
    /// let place = |handle| async move {
    ///     let mut tx = tidings_sqlite::Tx::from(handle);
    ///     let orders = tx.execute("insert into orders (id) values (?1)", ("o-1",)).await?;
    ///     Ok((orders, OrderPlaced { order_id: "o-1".into() }))
    /// };
    /// assert_eq!(producer.transaction().run(place).await?, 1);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// [`WorkError::NotBegun`] and [`WorkError::Failed`]: nothing was written or sent.
    /// [`WorkError::Store`]: nothing if it [is a conflict](crate::StoreError::is_conflict),
    /// otherwise the outcome may be unknown.
    pub async fn run<T, M, F, Fut>(mut self, work: F) -> Result<T, WorkError>
    where
        T: Send + 'static,
        M: IntoMessages,
        F: FnOnce(TransactionHandle) -> Fut,
        Fut: Future<Output = Result<(T, M), Error>> + Send + 'static,
    {
        let slot = Arc::clone(&self.slot);
        let working = work(self.handle());
        let work = async move {
            let (value, messages) = working.await.map_err(Error::into_inner)?;
            self.say(messages).map_err(Error::into_inner)?;
            let commit = self.sender.commit(self.messages, None);
            Ok((value, commit.map_err(Error::into_inner)?))
        };
        Work::value_of(slot, work.in_current_span()).await
    }

    /// Makes it all durable; the relay publishes the messages soon after.
    ///
    /// # Errors
    ///
    /// When a handle is still in use or a record was in the way
    /// ([`StoreError::is_conflict`](crate::StoreError::is_conflict)): nothing was written. When the
    /// database does not answer the outcome may be unknown.
    pub async fn commit(self) -> Result<(), Error> {
        let commit = self.sender.commit(self.messages, None)?;
        match self.slot.take()? {
            Some(transaction) => transaction.commit(commit).await?,
            None => retry::commit(&**self.slot.store(), commit).await?,
        };
        Ok(())
    }

    /// Undoes everything, and resolves when that is done.
    pub async fn rollback(self) {
        if let Ok(Some(transaction)) = self.slot.take() {
            transaction.rollback().await;
        }
    }
}

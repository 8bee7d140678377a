//! Batches: what a handler that takes many messages at once is given, and what becomes of each.
//!
//! Messages flow one by one through consumer, gate, retries and layers, as for any handler. Here, in
//! the innermost service, they meet. Who comes first when nobody has the *turn* takes it, and is tried
//! alone, at once. Who comes meanwhile waits; when the turn is passed on, the first who waits leads
//! the others, as many as fit, into the next batch. The turn is passed on when a batch ends, or after
//! [`TURN_MAX`], so that a batch that hangs holds up nobody else.
//!
//! A batch runs in a task of its own, since it belongs to no single caller: one that stops waiting
//! (a layer's time-out, a shutdown) harms no other. When all of them do, it is dropped.
//!
//! If a batch fails, nothing of it is written, and each caller tries its message alone, in its own
//! task, as if there were no batches: only that is its attempt. So do those whose message has failed
//! before, which keeps a bad message out of further batches.

use std::{
    collections::{HashSet, VecDeque},
    error::Error as StdError,
    fmt,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use metrics::{Histogram, histogram};
use parking_lot::Mutex;
use tokio::{sync::oneshot, time::timeout};
use tracing::{Instrument, debug_span, warn};

use crate::{
    Ask, BoxError, Committed, Context, Handled, Handler, HandlerInput, InboxEntry, Metadata, Over,
    Store, StoreError, TransactionSlot, Work,
    batch::Gather,
    handler::{Attempts, claim_of, entry_of, refused},
    limit::{Begun, within},
    retry::{is_conflict, not_begun, of_work, reason, untried},
    steps,
    throttle::Throttle,
};

/// How long who waits for the next batch waits for the last one.
const TURN_MAX: Duration = Duration::from_secs(1);

/// How often the log says that batches fail.
const FAILED_LOG_EVERY: Duration = Duration::from_secs(10);

/// Gathers messages into batches, and has them handled.
pub(crate) struct Gatherer<H, T: HandlerInput, A> {
    attempts: Arc<Attempts<H, T, A>>,
    gather: Gather<T::Message, T>,
    line: Arc<Line<T::Message>>,
    sizes: Histogram,
    failed_log: Mutex<Throttle>,
}

/// A message on its way into a batch.
struct Member<M> {
    context: Context,
    /// `None` once a handler had it: then it is decoded again.
    message: Option<M>,
}

/// What who waits is told.
enum Told<M> {
    /// Its message is the first of the next batch.
    Lead(Turn<M>, Member<M>),
    /// Its message is to be tried by itself.
    Alone,
    /// Its message was in a batch.
    Ended(Result<Handled, BoxError>),
}

type Telling<M> = oneshot::Sender<Told<M>>;

impl<H, T, A> Gatherer<H, T, A>
where
    H: Handler<T, A>,
    T: HandlerInput,
    A: 'static,
{
    pub(crate) fn new(attempts: Arc<Attempts<H, T, A>>, gather: Gather<T::Message, T>) -> Self {
        let queue = attempts.surroundings.queue.to_string();
        Self {
            attempts,
            gather,
            line: Arc::default(),
            sizes: histogram!("tidings_batch_messages", "queue" => queue),
            failed_log: Mutex::new(Throttle::new(FAILED_LOG_EVERY)),
        }
    }

    /// An attempt at one message, in a batch if that comes about.
    pub(crate) async fn attempt(self: Arc<Self>, context: Context) -> Result<Handled, BoxError> {
        if !self.attempts.surroundings.answers_steps {
            steps::refuse_batch(context.envelope())?;
        }
        // What was decoded on arrival is there for the first attempt only.
        let message = context.take_decoded();
        let attempts = Arc::clone(&self.attempts);
        if message.is_none() || context.failures() > 0 {
            return attempts.attempt(context, message).await;
        }
        let member = Member {
            context: context.clone(),
            message,
        };
        let mut told = self.line.enter(member).await;
        loop {
            told = match told {
                Told::Ended(outcome) => return outcome,
                Told::Alone => return attempts.attempt(context, None).await,
                Told::Lead(turn, first) => {
                    let room = self.attempts.surroundings.batch_max - 1;
                    let others = self.line.company(&first, room);
                    if others.is_empty() {
                        let Member { context, message } = first;
                        return turn.during(attempts.attempt(context, message)).await;
                    }
                    let (tell, told) = oneshot::channel();
                    let mut waiting = vec![Waiting {
                        member: first,
                        tell,
                    }];
                    waiting.extend(others);
                    let span = debug_span!("batch", messages = waiting.len());
                    let running = turn.during(Arc::clone(&self).run(waiting));
                    tokio::spawn(running.instrument(span));
                    answer(told).await
                }
            };
        }
    }

    /// Runs a batch of several, and tells each what became of its message.
    async fn run(self: Arc<Self>, waiting: Vec<Waiting<T::Message>>) {
        self.sizes.record(waiting.len() as f64);
        let (members, mut tellings): (Vec<_>, Vec<_>) = waiting
            .into_iter()
            .map(|waiting| (waiting.member, waiting.tell))
            .unzip();
        let outcomes = tokio::select! {
            outcomes = self.outcomes(members) => outcomes,
            () = all_gone(&mut tellings) => return,
        };
        for (tell, outcome) in tellings.into_iter().zip(outcomes) {
            let _ = tell.send(outcome); // Who is gone comes again, and finds it handled.
        }
    }

    /// What becomes of each of these. The handler runs until no message is refused; nearly always
    /// once.
    async fn outcomes(&self, mut members: Vec<Member<T::Message>>) -> Vec<Told<T::Message>> {
        let mut outcomes: Vec<Told<T::Message>> = Vec::new();
        outcomes.resize_with(members.len(), || Told::Alone);
        // The places of those that are left.
        let mut left: Vec<usize> = (0..members.len()).collect();
        let mut asks = !self.attempts.surroundings.only_writes;
        loop {
            let limit = self.attempts.surroundings.limit;
            let begun = Begun::default();
            let once = self.once(&begun, asks, &mut members, &mut left, &mut outcomes);
            match within(limit, Some(&begun), once).await {
                // There may be more of them.
                Ok(Once::Refused) => asks = true,
                Ok(Once::Done) => {
                    for place in left {
                        outcomes[place] = Told::Ended(Ok(Handled::Done));
                    }
                    return outcomes;
                }
                Ok(Once::Few) => return outcomes,
                // Nothing was tried: trying each would find out the same.
                Err(error) if untried(&*error).is_some() => {
                    let error = Arc::new(error);
                    for place in left {
                        let error = OfBatch(Arc::clone(&error)).into();
                        outcomes[place] = Told::Ended(Err(error));
                    }
                    return outcomes;
                }
                Err(error) => {
                    // Another transaction that was in the way is nothing to worry about.
                    if !is_conflict(&*error) && self.failed_log.lock().allows() {
                        warn!(
                            queue = &*self.attempts.surroundings.queue,
                            messages = left.len(),
                            "a batch failed, each of its messages is tried alone: {}",
                            reason(&*error)
                        );
                    }
                    return outcomes;
                }
            }
        }
    }

    /// Runs the handler once with those that are `left`. Those that need not be handled are told before,
    /// if it `asks` for them.
    async fn once(
        &self,
        begun: &Begun,
        asks: bool,
        members: &mut [Member<T::Message>],
        left: &mut Vec<usize>,
        outcomes: &mut [Told<T::Message>],
    ) -> Result<Once, BoxError> {
        let slot = left
            .first()
            .and_then(|it| members[*it].context.transaction());
        if let Some(store) = slot.filter(|_| asks).map(|slot| Arc::clone(slot.store())) {
            self.sort_out(&*store, members, left, outcomes).await?;
        }
        if left.len() < 2 {
            return Ok(Once::Few);
        }
        let context = members[left[0]].context.again();
        let mut messages = Vec::with_capacity(left.len());
        for place in &*left {
            let Member { context, message } = &mut members[*place];
            let message = match message.take() {
                Some(message) => message,
                None => self.attempts.decode(context)?,
            };
            messages.push((message, Metadata(context.clone())));
        }
        let input = (self.gather)(messages);
        let Some(slot) = context.transaction().map(Arc::clone) else {
            begun.begin();
            let messages = self.attempts.call(input, &context).await?;
            self.attempts.publish(messages, &context).await?;
            return Ok(Once::Done);
        };
        let (places, entries) = entries_of(members, left);
        let begun = begun.clone();
        match self.commit(begun, slot, context, input, entries).await? {
            Committed::Done => Ok(Once::Done),
            Committed::Refused { entry, why } => {
                let place = places.get(entry).copied().ok_or_else(|| {
                    StoreError::new(format!("the store refused entry {entry}, which is none"))
                })?;
                outcomes[place] = Told::Ended(Ok(refused(why)));
                left.retain(|other| *other != place);
                Ok(Once::Refused)
            }
        }
    }

    /// Asks the store about all messages, so that the handler does not get what it need not handle.
    async fn sort_out(
        &self,
        store: &dyn Store,
        members: &[Member<T::Message>],
        left: &mut Vec<usize>,
        outcomes: &mut [Told<T::Message>],
    ) -> Result<(), BoxError> {
        let incoming = |place: usize| members[place].context.incoming();
        // A lease says enough.
        let asked = left.iter().copied();
        let asked: Vec<usize> = asked
            .filter(|place| !matches!(incoming(*place).over, Over::Lease(_)))
            .collect();
        if asked.is_empty() {
            return Ok(());
        }
        let asks: Vec<Ask> = asked
            .iter()
            .map(|place| Ask {
                claim: claim_of(&members[*place].context),
                order: incoming(*place).order.clone(),
            })
            .collect();
        let seen = store.look(&asks).await.map_err(not_begun)?;
        for (place, seen) in asked.into_iter().zip(seen) {
            if let Some(why) = seen.refusal(&incoming(place).over) {
                outcomes[place] = Told::Ended(Ok(refused(why)));
                left.retain(|other| *other != place);
            }
        }
        Ok(())
    }

    /// Runs the handler as one piece of work, whose commit holds all `entries`.
    async fn commit(
        &self,
        begun: Begun,
        slot: Arc<TransactionSlot>,
        context: Context,
        input: T,
        entries: Vec<InboxEntry>,
    ) -> Result<Committed, BoxError> {
        let store = Arc::clone(slot.store());
        let attempts = Arc::clone(&self.attempts);
        let mut entries = entries.into_iter();
        let claim = entries.next();
        let rest: Vec<InboxEntry> = entries.collect();
        let work = async move {
            begun.begin();
            let messages = attempts.call(input, &context).await?;
            let mut commit = attempts.commit(messages, &context)?;
            commit.inbox = rest;
            Ok(commit)
        };
        let mut work = Work::new(slot, work.in_current_span());
        // The store learns by it whose work it is, and where to run it.
        if let Some(claim) = claim {
            work = work.claiming(claim);
        }
        work.hand_to(&*store).await.map_err(of_work)
    }
}

/// How running the handler once went.
enum Once {
    Done,
    /// A message was refused: nothing is written, and it is not left any more.
    Refused,
    /// Less than two messages were left, so it did not run.
    Few,
}

/// The inbox rows of those that are left, and their places. In the order of their names, so that two
/// commits with the same rows do not wait for each other in a circle. One that only fits into a
/// transaction of its own comes first: the store decides by that.
fn entries_of<M>(members: &[Member<M>], left: &[usize]) -> (Vec<usize>, Vec<InboxEntry>) {
    let entry = |place: &usize| (*place, entry_of(&members[*place].context));
    let mut entries: Vec<(usize, InboxEntry)> = left.iter().map(entry).collect();
    entries.sort_by(|(_, one), (_, other)| {
        let plain = |entry: &InboxEntry| entry.over == Over::Nothing && entry.order.is_none();
        (plain(one), &one.claim).cmp(&(plain(other), &other.claim))
    });
    entries.into_iter().unzip()
}

async fn all_gone<M>(tellings: &mut [Telling<M>]) {
    for tell in tellings {
        tell.closed().await;
    }
}

/// What who waits is told; if nobody is left to tell it, it tries by itself.
async fn answer<M>(told: oneshot::Receiver<Told<M>>) -> Told<M> {
    told.await.unwrap_or(Told::Alone)
}

/// The error of a batch, for each of its messages.
#[derive(Debug)]
struct OfBatch(Arc<BoxError>);

impl fmt::Display for OfBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for OfBatch {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&**self.0)
    }
}

/// Where messages wait for the next batch.
struct Line<M>(Mutex<State<M>>);

struct State<M> {
    /// Empty while nobody has the turn.
    waiting: VecDeque<Waiting<M>>,
    has_turn: bool,
}

struct Waiting<M> {
    member: Member<M>,
    tell: Telling<M>,
}

impl<M> Default for Line<M> {
    fn default() -> Self {
        Self(Mutex::new(State {
            waiting: VecDeque::new(),
            has_turn: false,
        }))
    }
}

impl<M> Line<M> {
    /// Takes the turn, or waits for what comes.
    async fn enter(self: &Arc<Self>, member: Member<M>) -> Told<M> {
        let told = {
            let mut state = self.0.lock();
            if !std::mem::replace(&mut state.has_turn, true) {
                return Told::Lead(Turn(Some(Arc::clone(self))), member);
            }
            let (tell, told) = oneshot::channel();
            state.waiting.push_back(Waiting { member, tell });
            told
        };
        answer(told).await
    }

    /// Takes at most `room` of those that wait, to be in a batch with `first`. The same message is
    /// never twice in a batch: the second waits for the next one. (Of an ordered key only one message
    /// is under way anyway.)
    fn company(&self, first: &Member<M>, room: usize) -> Vec<Waiting<M>> {
        let mut names = HashSet::from([first.context.message_id().clone()]);
        let mut state = self.0.lock();
        let mut company = Vec::with_capacity(room.min(state.waiting.len()));
        let waiting = std::mem::take(&mut state.waiting);
        for waiting in waiting {
            if waiting.tell.is_closed() {
                continue;
            }
            let name = waiting.member.context.message_id();
            if company.len() == room || !names.insert(name.clone()) {
                state.waiting.push_back(waiting);
                continue;
            }
            company.push(waiting);
        }
        company
    }
}

/// The right to run the next batch. It goes to the first who waits when it is dropped.
struct Turn<M>(Option<Arc<Line<M>>>);

impl<M> Turn<M> {
    /// Keeps it while something runs, but not for long.
    async fn during<R>(mut self, running: impl Future<Output = R>) -> R {
        let mut running = pin!(running);
        if let Ok(done) = timeout(TURN_MAX, &mut running).await {
            return done;
        }
        self.pass_on();
        running.await
    }

    fn pass_on(&mut self) {
        let Some(line) = self.0.take() else { return };
        loop {
            let next = {
                let mut state = line.0.lock();
                let next = state.waiting.pop_front();
                state.has_turn = next.is_some();
                next
            };
            let Some(Waiting { member, tell }) = next else {
                return;
            };
            let turn = Self(Some(Arc::clone(&line)));
            match tell.send(Told::Lead(turn, member)) {
                // It does not wait any more.
                Err(Told::Lead(mut turn, _)) => turn.0 = None,
                _ => return,
            }
        }
    }
}

impl<M> Drop for Turn<M> {
    fn drop(&mut self) {
        self.pass_on();
    }
}

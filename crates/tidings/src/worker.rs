//! The worker: tries the messages that wait in the store when they are due.
//!
//! Each instance of a service has one. It leases due rows, has them handled like deliveries, and
//! settles each by a commit over its lease; the rows of an instance that died are due again when
//! their leases end, no human needed (rule: what waits, waits in the store).
//!
//! A row that was taken and never settled may be one whose handler ends the process. Such a row is
//! a *suspect*: it is taken and tried alone, with nothing else under way in its `serve`, so that the
//! next crash counts against nobody else. After [`ALONE_STARTS_MAX`] of these starts that never
//! finished it is a dead letter. It keeps its lease twice as long each time, so that a process that
//! is ended again and again for another reason does not blame the same row each time. A slow suspect
//! holds up the others for [`ALONE_MAX`] at most; one that finds no quiet is given back for a while.

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::{
    sync::{Notify, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock},
    task::{Id, JoinSet},
    time::{Interval, MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};

use crate::{
    Attempt, BoxError, Context, Due, Incoming, Lease, Over, Store, StoreError,
    gate::Source,
    handling::{Handling, Message, Outcome},
    throttle::Throttle,
};

/// How many rows are under way at the same time.
const ROWS_MAX: usize = 64;
/// How long to wait without being woken: rows that another instance deferred are found by then.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// How long to leave a database alone that does not answer.
const STORE_PAUSE: Duration = Duration::from_millis(500);
/// How many starts alone that never finished make a dead letter.
const ALONE_STARTS_MAX: u32 = 3;
/// How many starts of all that is: the first was beside others, and shows nothing.
const UNFINISHED_MAX: u32 = ALONE_STARTS_MAX + 1;
/// How long a suspect waits at first until nothing else is under way; nothing else begins meanwhile.
/// Then the others have twice that time for themselves, and the next suspect waits twice as long.
const QUIET_MAX: Duration = Duration::from_secs(5);
/// How long a suspect keeps the others waiting.
const ALONE_MAX: Duration = Duration::from_secs(5);

/// The worker of one instance of a service.
pub(crate) struct Worker {
    id: String,
    store: Arc<dyn Store>,
    /// How long a worker that died keeps its rows.
    lease: Duration,
    handlings: HashMap<Box<str>, Arc<Handling>>,
    /// Notified when something new waits.
    deferred: Arc<Notify>,
    tasks: JoinSet<()>,
    /// The leases of what is under way, by task, and how long they last.
    leases: HashMap<Id, (Lease, Duration)>,
    /// Suspects may be due: one row is taken at a time, alone.
    has_suspects: bool,
    /// How long to wait until nothing else is under way.
    quiet_max: Duration,
    /// Held by everything that is handled in one `serve`; wholly by a suspect.
    company: Arc<RwLock<()>>,
    renew: Interval,
    trouble: Throttle,
}

/// While it is held, nothing else is handled.
type Alone = OwnedRwLockWriteGuard<()>;

/// What else is handled while rows are taken.
enum Company {
    Nobody(Alone),
    /// No suspect as long as this is held. One that is taken is given back, due again after this time.
    Others(OwnedRwLockReadGuard<()>, Duration),
}

impl Worker {
    /// A worker for handlers that share `store`.
    pub(crate) fn new(
        id: String,
        store: Arc<dyn Store>,
        lease: Duration,
        handlings: &[Arc<Handling>],
        deferred: Arc<Notify>,
        company: Arc<RwLock<()>>,
    ) -> Self {
        let mut renew = interval(lease / 3);
        renew.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let by_name = handlings
            .iter()
            .map(|it| ((*it.queue).into(), Arc::clone(it)));
        Self {
            id,
            store,
            lease,
            handlings: by_name.collect(),
            deferred,
            tasks: JoinSet::new(),
            leases: HashMap::new(),
            // The process before this one may have left some.
            has_suspects: true,
            quiet_max: QUIET_MAX,
            company,
            renew,
            trouble: Throttle::new(Duration::from_secs(5)),
        }
    }

    /// Works until `stop`, then finishes what has begun. What has not finished at `cut_off` is given
    /// back: it did not end the process.
    pub(crate) async fn run(mut self, stop: CancellationToken, cut_off: CancellationToken) {
        let deferred = Arc::clone(&self.deferred);
        let mut wait = Duration::ZERO;
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => break,
                Some(joined) = self.tasks.join_next_with_id() => {
                    self.joined(joined.map_or_else(|error| error.id(), |(id, ())| id));
                }
                () = deferred.notified() => {}
                () = sleep(wait) => {}
                _ = self.renew.tick() => self.renew().await,
            }
            wait = match self.take(&stop).await {
                Ok(wait) => wait,
                Err(error) => {
                    if self.trouble.allows() {
                        warn!("the worker cannot take deferred messages, it tries again: {error}");
                    }
                    STORE_PAUSE
                }
            };
        }
        loop {
            tokio::select! {
                biased;
                joined = self.tasks.join_next_with_id() => match joined {
                    Some(joined) => self.joined(joined.map_or_else(|error| error.id(), |(id, ())| id)),
                    None => return,
                },
                () = cut_off.cancelled() => return self.cut_off().await,
            }
        }
    }

    async fn cut_off(mut self) {
        self.tasks.shutdown().await;
        let leases: Vec<Lease> = self.leases.into_values().map(|(lease, _)| lease).collect();
        let released = self.store.deferred().release(&leases, Duration::ZERO);
        // If not even this goes, their leases end.
        if let Err(error) = released.await {
            debug!("rows were not given back, their leases will end: {error}");
        }
    }

    fn joined(&mut self, id: Id) {
        self.leases.remove(&id);
    }

    /// Keeps what is under way.
    async fn renew(&mut self) {
        let mut leases: HashMap<Duration, Vec<Lease>> = HashMap::new();
        for (lease, lasts) in self.leases.values() {
            leases.entry(*lasts).or_default().push(lease.clone());
        }
        for (lasts, leases) in leases {
            // A lease that ends costs an attempt that is made twice; the commit decides.
            if let Err(error) = self.store.deferred().renew(&leases, lasts).await
                && self.trouble.allows()
            {
                warn!("the worker cannot renew its leases: {error}");
            }
        }
    }

    /// Takes what is due, as far as there is room. Returns how long to wait for more.
    async fn take(&mut self, stop: &CancellationToken) -> Result<Duration, StoreError> {
        loop {
            let free = ROWS_MAX.saturating_sub(self.tasks.len());
            let consumers: Vec<Box<str>> = self
                .handlings
                .iter()
                .filter(|(_, handling)| handling.gate.is_passable(Source::Store))
                .map(|(name, _)| name.clone())
                .collect();
            let gates = self.handlings.values().map(|handling| &handling.gate);
            let next_trial = gates
                .filter_map(|gate| gate.passable_in(Source::Store))
                .min();
            let poll_every = next_trial.map_or(POLL_EVERY, |trial| trial.min(POLL_EVERY));
            if free == 0 || consumers.is_empty() {
                return Ok(poll_every);
            }
            // Before anything is taken: what is taken counts as started, so no suspect of another
            // worker of the service may be tried meanwhile.
            let company = if self.has_suspects {
                // Asked for first, so that nobody waits for a database that does not answer.
                let next = self.store.deferred().next_due(&consumers).await?;
                if next != Some(Duration::ZERO) {
                    return Ok(next.map_or(poll_every, |due| due.min(poll_every)));
                }
                self.quiet(stop).await
            } else {
                self.beside(stop, Duration::ZERO).await
            };
            let Some(company) = company else {
                return Ok(Duration::ZERO);
            };
            let room = match company {
                Company::Nobody(_) => 1,
                Company::Others(..) => free,
            };
            let deferred = self.store.deferred();
            let due = deferred
                .take_due(&consumers, &self.id, self.lease, room)
                .await?;
            let is_full = due.len() == room;
            self.start(due, company, stop).await?;
            if !is_full {
                let next = self.store.deferred().next_due(&consumers).await?;
                return Ok(next.map_or(poll_every, |due| due.min(poll_every)));
            }
        }
    }

    /// Waits until nothing else is under way, but not too long. `None`: the worker is to stop.
    async fn quiet(&mut self, stop: &CancellationToken) -> Option<Company> {
        let quiet = timeout(self.quiet_max, Arc::clone(&self.company).write_owned());
        if let Ok(alone) = self.renewing(stop, quiet).await? {
            self.quiet_max = QUIET_MAX;
            return Some(Company::Nobody(alone));
        }
        self.quiet_max *= 2;
        self.beside(stop, self.quiet_max).await
    }

    /// Waits for a suspect that is being tried, if there is one. `None`: the worker is to stop.
    async fn beside(&mut self, stop: &CancellationToken, suspects_in: Duration) -> Option<Company> {
        let others = Arc::clone(&self.company).read_owned();
        let guard = self.renewing(stop, others).await?;
        Some(Company::Others(guard, suspects_in))
    }

    /// Waits for something, and keeps what is under way meanwhile. `None`: the worker is to stop.
    async fn renewing<T>(
        &mut self,
        stop: &CancellationToken,
        waiting: impl Future<Output = T>,
    ) -> Option<T> {
        let mut waiting = pin!(waiting);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return None,
                done = &mut waiting => return Some(done),
                _ = self.renew.tick() => self.renew().await,
            }
        }
    }

    /// Starts what was taken. Suspects that were not taken alone are given back.
    async fn start(
        &mut self,
        due: Vec<Due>,
        company: Company,
        stop: &CancellationToken,
    ) -> Result<(), StoreError> {
        let is_suspect = |due: &Due| due.unfinished > 0;
        let (mut alone, _others, suspects_in) = match company {
            Company::Nobody(alone) => (Some(alone), None, Duration::ZERO),
            Company::Others(others, suspects_in) => (None, Some(others), suspects_in),
        };
        let (suspects, now): (Vec<Due>, Vec<Due>) = due
            .into_iter()
            .partition(|due| is_suspect(due) && alone.is_none());
        // Those that are put off are found again when they are due.
        self.has_suspects = match alone {
            Some(_) => now.iter().any(is_suspect),
            None => !suspects.is_empty() && suspects_in.is_zero(),
        };
        // Before anything runs: else what that does to the process counts against these, too.
        if !suspects.is_empty() {
            let leases: Vec<Lease> = suspects.into_iter().map(|due| due.lease).collect();
            self.give_back(&leases, suspects_in, stop).await?;
        }
        for due in now {
            if !is_suspect(&due) {
                self.spawn(due, self.lease, None);
                continue;
            }
            let mut lasts = self.lease * 2_u32.pow(due.unfinished.min(UNFINISHED_MAX));
            let lease = std::slice::from_ref(&due.lease);
            if let Err(error) = self.store.deferred().renew(lease, lasts).await {
                // It counts as started: so it is tried, in the time that it has.
                debug!("a suspect's lease stays as short as the others': {error}");
                lasts = self.lease;
            }
            self.spawn(due, lasts, alone.take());
        }
        Ok(())
    }

    /// Gives back what was not tried. A database that is away is asked until it answers: what is not
    /// given back counts as started.
    async fn give_back(
        &mut self,
        leases: &[Lease],
        due_in: Duration,
        stop: &CancellationToken,
    ) -> Result<(), StoreError> {
        loop {
            let released = self.store.deferred().release(leases, due_in).await;
            match released {
                Err(error) if error.is_unavailable() && !stop.is_cancelled() => {
                    if self.trouble.allows() {
                        warn!("the worker cannot give back suspects, it tries again: {error}");
                    }
                    self.renewing(stop, sleep(STORE_PAUSE)).await;
                }
                released => return released,
            }
        }
    }

    fn spawn(&mut self, due: Due, lasts: Duration, alone: Option<Alone>) {
        let Some(handling) = self.handlings.get(&due.claim.consumer) else {
            return; // Not asked for; its lease will end.
        };
        let lease = due.lease.clone();
        let task = handle(Arc::clone(handling), Arc::clone(&self.store), due, alone);
        let handle = self.tasks.spawn(task);
        self.leases.insert(handle.id(), (lease, lasts));
    }
}

/// From a row that is due to its settlement. The database may be away meanwhile: what was found out
/// is written down when it is back, rather than found out again.
async fn handle(handling: Arc<Handling>, store: Arc<dyn Store>, due: Due, alone: Option<Alone>) {
    let lease = due.lease.clone();
    let write = match handle_once(&handling, due, alone).await {
        None => return,
        Some(Settling::Release) => {
            let deferred = store.deferred();
            // If not even this goes, its lease ends.
            if let Err(error) = deferred.release(&[lease], Duration::ZERO).await {
                debug!("a row was not given back, its lease will end: {error}");
            }
            return;
        }
        Some(Settling::Write(write)) => *write,
    };
    loop {
        let written = match &write {
            Write::Defer(message, due_in) => {
                handling.defer(&*store, &message.borrow(), *due_in).await
            }
            Write::GiveUp(message) => handling.give_up(&*store, &message.borrow()).await,
        };
        match written {
            Ok(()) => return,
            Err(error) if error.is_unavailable() || error.is_conflict() => {
                sleep(STORE_PAUSE).await;
            }
            Err(error) => {
                error!(
                    queue = &*handling.queue,
                    "what became of a deferred message cannot be written down, it is tried again \
                     when its lease ends: {error}"
                );
                return;
            }
        }
    }
}

/// How a row is settled that its own commit did not settle.
enum Settling {
    /// It was not tried.
    Release,
    Write(Box<Write>),
}

enum Write {
    Defer(OwnedMessage, Duration),
    GiveUp(OwnedMessage),
}

/// A [`Message`] with what it borrows.
struct OwnedMessage {
    due: Due,
    incoming: Option<Incoming>,
    failures: u32,
    history: Vec<Attempt>,
}

impl OwnedMessage {
    fn failed(due: Due, incoming: Option<Incoming>, attempt: Attempt) -> Self {
        let mut history = due.history.clone();
        attempt.add_to(&mut history);
        Self {
            failures: due.failures.saturating_add(1),
            history,
            incoming,
            due,
        }
    }

    fn borrow(&self) -> Message<'_> {
        Message {
            claim: self.due.claim.clone(),
            over: Over::Lease(self.due.lease.clone()),
            incoming: self.incoming.as_ref(),
            failures: self.failures,
            history: self.history.clone(),
        }
    }
}

async fn handle_once(handling: &Handling, due: Due, alone: Option<Alone>) -> Option<Settling> {
    let envelope = match &due.envelope {
        Ok(envelope) => Arc::clone(envelope),
        Err(why) => {
            let error = format!("what is stored of the message cannot be read: {why}");
            return Some(give_up(handling, due, None, &error.into()));
        }
    };
    let incoming = Incoming {
        envelope,
        queue: Arc::clone(&handling.queue),
        failures: due.failures,
        over: Over::Lease(due.lease.clone()),
        order: due.order.clone(),
        traceparent: OnceLock::new(),
    };
    if due.unfinished >= UNFINISHED_MAX {
        let error = format!(
            "its handler was started alone {ALONE_STARTS_MAX} times and never finished; maybe it ends \
             the process"
        );
        return Some(give_up(handling, due, Some(incoming), &error.into()));
    }
    let context = match handling.accept(incoming.clone()) {
        Ok(context) => context,
        Err(error) => return Some(give_up(handling, due, Some(incoming), &error)),
    };
    let outcome = match alone {
        None => handling.run(context, Source::Store).await,
        Some(alone) => run_alone(handling, context, alone).await,
    };
    match outcome {
        Outcome::Settled => None,
        Outcome::Untried | Outcome::Behind => Some(Settling::Release),
        Outcome::Again(error, delay) => {
            let attempt = handling.attempt(&error);
            handling.counts.retried.increment(1);
            let message = OwnedMessage::failed(due, Some(incoming), attempt);
            Some(Settling::Write(Box::new(Write::Defer(message, delay))))
        }
        Outcome::Dead(error) => Some(give_up(handling, due, Some(incoming), &error)),
    }
}

/// Runs the handler while nothing else is handled; with the others again if it takes long.
async fn run_alone(handling: &Handling, context: Context, alone: Alone) -> Outcome {
    let mut running = pin!(handling.run_alone(context, Source::Store));
    if let Ok(outcome) = timeout(ALONE_MAX, &mut running).await {
        return outcome;
    }
    let _beside = alone.downgrade();
    running.await
}

fn give_up(
    handling: &Handling,
    due: Due,
    incoming: Option<Incoming>,
    error: &BoxError,
) -> Settling {
    let attempt = handling.attempt(error);
    let message = OwnedMessage::failed(due, incoming, attempt);
    Settling::Write(Box::new(Write::GiveUp(message)))
}

//! Receiving one partition of an ordered group: messages of one key are handled one after the other.
//!
//! In the process, each key has its own line: one message of it is under way, the others wait in the
//! order they came. A message that is to be tried again leaves the line into the store, and later
//! ones of its key follow it there (the store refuses to handle them before it), so nothing here has
//! to be remembered when the process dies. Other keys go on.
//!
//! While nothing can be handled the whole partition is given back: what runs is finished, then the
//! stream is dropped, and the broker keeps all the rest in its old order.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    num::NonZeroU16,
    sync::Arc,
};

use futures_util::{StreamExt, future::select_all};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::{
    BoxError, Context, Deliveries, Delivery, Subscription, Transport, TransportError,
    consumer::{dead_letter, handle_accepted, pass_over, skip},
    gate::Source,
    handling::Handling,
};

/// How many foreign message names are remembered, to be named in the log once each.
const SKIPPED_NAMES_MAX: usize = 100;

/// What receives a partition.
pub(crate) struct Partition {
    pub(crate) queue: String,
    /// The handlers of the group.
    pub(crate) handlings: Arc<[Arc<Handling>]>,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) prefetch: NonZeroU16,
}

/// A message in hand.
struct Job {
    handling: Arc<Handling>,
    delivery: Delivery,
    context: Context,
}

/// What a task leaves: its key's line goes on, unless it gives back its delivery.
#[derive(Default)]
struct Done {
    key: Option<Box<str>>,
    untried: Option<Delivery>,
}

impl Partition {
    /// Receives until `stop`; then finishes what runs and gives back the rest.
    ///
    /// # Errors
    ///
    /// When the subscription ended by itself.
    pub(crate) async fn run(self, stop: CancellationToken) -> Result<(), TransportError> {
        let mut lines = Lines::new(&self);
        loop {
            let passable = async {
                for handling in &*self.handlings {
                    handling.gate.passable(Source::Broker).await;
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                () = passable => {}
            }
            let is_trial = self
                .handlings
                .iter()
                .any(|it| !it.gate.is_open(Source::Broker));
            let one = const { NonZeroU16::new(1).unwrap() };
            let subscription = Subscription::new(self.queue.clone())
                .prefetch(if is_trial { one } else { self.prefetch })
                .ordered();
            let deliveries = tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                subscribed = self.transport.subscribe(subscription) => subscribed?,
            };
            lines.receive(deliveries, is_trial, &stop).await?;
            debug!(queue = self.queue, "gave back what was not handled");
        }
    }
}

/// Messages by key.
struct Lines {
    handlings: Arc<[Arc<Handling>]>,
    /// The keys under way, with those that wait behind.
    keys: HashMap<Box<str>, VecDeque<Job>>,
    tasks: JoinSet<Done>,
    /// Nothing was tried with these; they go back with the stream.
    untried: Vec<Delivery>,
    skipped_names: HashSet<String>,
}

impl Lines {
    fn new(partition: &Partition) -> Self {
        Self {
            handlings: Arc::clone(&partition.handlings),
            keys: HashMap::new(),
            tasks: JoinSet::new(),
            untried: Vec::new(),
            skipped_names: HashSet::new(),
        }
    }

    async fn receive(
        &mut self,
        mut deliveries: Deliveries,
        is_trial: bool,
        stop: &CancellationToken,
    ) -> Result<(), TransportError> {
        let gates = Arc::clone(&self.handlings);
        let mut ended = Ok(());
        while self.untried.is_empty() {
            let gates = gates.iter().map(|handling| &handling.gate);
            let shut = select_all(gates.map(|gate| Box::pin(gate.shut(Source::Broker))));
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                _ = shut, if !is_trial => break,
                Some(done) = self.tasks.join_next() => {
                    self.done(done);
                    if is_trial && self.tasks.is_empty() {
                        break;
                    }
                }
                delivery = deliveries.next() => match delivery {
                    Some(Ok(delivery)) => self.arrive(delivery).await,
                    Some(Err(error)) => {
                        ended = Err(error);
                        break;
                    }
                    None => {
                        ended = Err(TransportError::fatal(
                            "the transport ended the subscription without a reason",
                        ));
                        break;
                    }
                },
            }
        }
        // What runs is finished, what waits is not begun; then everything goes back at once.
        let waiting: Vec<Job> = self.keys.drain().flat_map(|(_, jobs)| jobs).collect();
        while let Some(done) = self.tasks.join_next().await {
            self.untried.extend(done.ok().and_then(|done| done.untried));
        }
        drop(deliveries);
        drop(waiting);
        self.untried.clear();
        ended
    }

    fn done(&mut self, done: Result<Done, tokio::task::JoinError>) {
        // Panics are caught inside the task, so an error is the runtime shutting down.
        let Ok(Done { key, untried }) = done else {
            return;
        };
        if let Some(untried) = untried {
            return self.untried.push(untried); // And its key waits until the stream is dropped.
        }
        let Some(key) = key else {
            return;
        };
        match self.keys.get_mut(&key).and_then(VecDeque::pop_front) {
            Some(next) => self.start(next, Some(key)),
            None => drop(self.keys.remove(&key)),
        }
    }

    async fn arrive(&mut self, delivery: Delivery) {
        let Some((handling, context)) = self.accept(&delivery) else {
            self.skip(delivery);
            return;
        };
        if handling.skips_replayed && delivery.envelope.is_replayed() {
            self.tasks.spawn(async move {
                skip(&handling, delivery).await;
                Done::default()
            });
            return;
        }
        let context = match context {
            Ok(context) => context,
            Err(error) => {
                self.tasks.spawn(async move {
                    dead_letter(&handling, delivery, &error).await;
                    Done::default()
                });
                return;
            }
        };
        let order = context.incoming().order.as_ref();
        let key = order.map(|order| order.key.clone());
        let job = Job {
            handling,
            delivery,
            context,
        };
        match key {
            None => self.start(job, None),
            Some(key) => match self.keys.get_mut(&key) {
                Some(waiting) => waiting.push_back(job),
                None => {
                    self.keys.insert(key.clone(), VecDeque::new());
                    self.start(job, Some(key));
                }
            },
        }
    }

    /// Whose message it is, and what it says. A message that does not say what it is, is taken by
    /// the handler that can read it. `None` if it is nobody's here.
    fn accept(&self, delivery: &Delivery) -> Option<(Arc<Handling>, Result<Context, BoxError>)> {
        let name = &delivery.envelope.name;
        let accept = |handling: &Arc<Handling>| {
            let accepted = handling.accept(handling.incoming(delivery));
            (Arc::clone(handling), accepted)
        };
        if let Some(own) = self.handlings.iter().find(|handling| handling.takes(name)) {
            return Some(accept(own));
        }
        // In a topic's messages there may be some that are none of the group's business; a command
        // is somebody's, here.
        if !name.is_empty() && self.handlings.iter().any(|handling| handling.is_subscribed) {
            return None;
        }
        let mut first_error = None;
        for handling in &*self.handlings {
            let (handling, accepted) = accept(handling);
            match accepted {
                Ok(context) => return Some((handling, Ok(context))),
                Err(error) => drop(first_error.get_or_insert((handling, Err(error)))),
            }
        }
        first_error
    }

    fn skip(&mut self, delivery: Delivery) {
        let Some(handling) = self.handlings.first().map(Arc::clone) else {
            return;
        };
        let name = &delivery.envelope.name;
        if self.skipped_names.len() < SKIPPED_NAMES_MAX
            && self.skipped_names.insert(name.to_string())
        {
            info!(
                group = handling.group.as_deref(),
                "passing over messages named `{name}`: no handler of this group takes them"
            );
        }
        self.tasks.spawn(async move {
            pass_over(&handling, delivery).await;
            Done::default()
        });
    }

    fn start(&mut self, job: Job, key: Option<Box<str>>) {
        let Job {
            handling,
            delivery,
            context,
        } = job;
        self.tasks.spawn(async move {
            let untried = match delivery.is_stale() {
                true => None, // It comes again.
                false => handle_accepted(&handling, delivery, context).await,
            };
            Done { key, untried }
        });
    }
}

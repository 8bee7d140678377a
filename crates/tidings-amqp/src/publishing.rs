//! The connection for publishing and declaring: what is declared on it, and which way messages take.
//!
//! A batch is sent when it is known of each message where it goes. Topics that nobody has declared
//! yet are declared. Of a queue it is looked up whether a group takes what is sent to it
//! (`groups.rs`), once for each connection, and again after a message came back because there is no
//! such queue.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tidings_core::{PublishError, PublishErrorKind};
use tokio::time::{timeout, timeout_at};
use tracing::{error, warn};

use crate::{
    groups,
    link::Role,
    publisher::{Item, Outcome, Publisher, Way, unavailable},
    session::{Closed, Session},
    topology::{self, DeclareError, Declared},
};

/// Of how many queues it is remembered whether a group stands before them.
const WAYS_COUNT_MAX: usize = 10_000;
/// How long a new connection is kept from publishing by what was declared on the one before. RabbitMQ 4 does not answer about
/// a classic queue while its node is away.
const DECLARE_AGAIN_MAX: Duration = Duration::from_secs(3);

pub(crate) fn all_unavailable(count: usize, closed: &Closed) -> Vec<Outcome> {
    let outcome = || Err(unavailable(closed));
    std::iter::repeat_with(outcome).take(count).collect()
}

/// The connection for publishing and declaring.
pub(crate) struct Publishing {
    pub(crate) declared: Arc<Mutex<Declared>>,
    pub(crate) confirm_timeout: Duration,
}

pub(crate) struct PublishingUp {
    pub(crate) session: Arc<Session>,
    pub(crate) publisher: Publisher,
    /// Exchanges of topics and delays that exist, as far as we know.
    pub(crate) known: Mutex<HashSet<String>>,
    /// How messages to queues go there, as far as we know; at most [`WAYS_COUNT_MAX`].
    ways: Mutex<HashMap<String, Way>>,
}

impl Role for Publishing {
    type Up = PublishingUp;

    const PURPOSE: &'static str = "publishing";

    async fn set_up(&self, session: &Arc<Session>) -> Result<PublishingUp, Closed> {
        let declared = self.declared.lock().clone();
        let up = PublishingUp {
            session: Arc::clone(session),
            publisher: Publisher::open(session, self.confirm_timeout).await?,
            known: Mutex::default(),
            ways: Mutex::default(),
        };
        match timeout(DECLARE_AGAIN_MAX, declared.declare(session)).await {
            Ok(Ok(())) => up.note(&declared),
            Ok(Err(DeclareError::Closed { closed, .. })) if closed.is_connection => {
                return Err(closed);
            }
            // Somebody changed something meanwhile, or a node of a cluster is away. What can go on, goes on.
            Ok(Err(_)) | Err(_) => {
                match timeout(DECLARE_AGAIN_MAX, up.declare_apart(&declared)).await {
                    Ok(done) => done?,
                    Err(_) => warn!(
                        "the broker did not answer within {DECLARE_AGAIN_MAX:?} whether all exchanges and queues are \
                         there (is a node of its cluster away?); publishing goes on without"
                    ),
                }
            }
        }
        Ok(up)
    }

    async fn worn_out(&self, up: &PublishingUp) {
        up.publisher.worn().await;
    }
}

impl PublishingUp {
    /// Remembers what was declared.
    pub(crate) fn note(&self, declared: &Declared) {
        self.known.lock().extend(declared.exchanges());
        let commands = declared.commands().map(|it| (it.to_owned(), Way::Group));
        self.ways.lock().extend(commands);
    }

    /// Declares each thing for itself: topics first, since they are published to.
    async fn declare_apart(&self, declared: &Declared) -> Result<(), Closed> {
        for part in declared.apart() {
            match part.declare(&self.session).await {
                Ok(()) => self.note(&part),
                Err(DeclareError::Closed { closed, .. }) if closed.is_connection => {
                    return Err(closed);
                }
                Err(error) => error!("{}", error.into_transport()),
            }
        }
        Ok(())
    }

    pub(crate) async fn publish(&self, mut items: Vec<Item>, time: Duration) -> Vec<Outcome> {
        let deadline = Instant::now() + time;
        // Before anything is sent: what is first in the batch is to be there first.
        let preparing = async {
            self.find_ways(&mut items).await;
            self.declare_unknown_topics(&items).await
        };
        let Ok(missing) = timeout_at(deadline.into(), preparing).await else {
            let silent = Closed::lost(format!("it did not declare a topic within {time:?}"));
            return all_unavailable(items.len(), &silent);
        };
        let queues: Vec<Option<String>> = items
            .iter()
            .map(|item| item.plain_queue().map(ToOwned::to_owned))
            .collect();
        let outcomes = self.publish_to_known(items, missing, deadline).await;
        for (outcome, queue) in outcomes.iter().zip(queues) {
            // Next time there may be a group that takes it.
            if let (Err(error), Some(queue)) = (outcome, queue)
                && error.kind() == PublishErrorKind::Unroutable
            {
                self.ways.lock().remove(&queue);
            }
        }
        outcomes
    }

    /// Decides for each message to a queue whether it goes by an ordered group.
    async fn find_ways(&self, items: &mut [Item]) {
        let unknown: BTreeSet<String> = {
            let ways = self.ways.lock();
            let queues = items.iter().filter_map(Item::plain_queue);
            let unknown = queues.filter(|queue| !ways.contains_key(*queue));
            unknown.map(ToOwned::to_owned).collect()
        };
        for queue in unknown {
            let exchange = groups::command_exchange(&queue);
            let way = match topology::find_exchange(&self.session, &exchange).await {
                Ok(()) => Way::Group,
                // Nothing can be published on it either.
                Err(error) if error.is_connection() => return,
                Err(_) => Way::Plain,
            };
            let mut ways = self.ways.lock();
            if ways.len() >= WAYS_COUNT_MAX {
                ways.clear();
            }
            ways.insert(queue, way);
        }
        let ways = self.ways.lock();
        for item in items {
            let way = item.plain_queue().and_then(|queue| ways.get(queue));
            if let Some(way) = way {
                item.take(*way);
            }
        }
    }

    async fn publish_to_known(
        &self,
        items: Vec<Item>,
        missing: HashMap<String, (PublishErrorKind, String)>,
        deadline: Instant,
    ) -> Vec<Outcome> {
        if missing.is_empty() {
            return self.publisher.publish(items, deadline).await;
        }
        // To a missing exchange one message would close the channel for all.
        let topic = |item: &Item| item.topic().and_then(|topic| missing.get(topic)).cloned();
        let refusals: Vec<Option<_>> = items.iter().map(topic).collect();
        let there = items.into_iter().zip(&refusals);
        let there = there.filter(|(_, refusal)| refusal.is_none());
        let there = there.map(|(item, _)| item).collect();
        let mut outcomes = self.publisher.publish(there, deadline).await.into_iter();
        let refusals = refusals.into_iter();
        refusals
            .filter_map(|refusal| match refusal {
                Some((kind, reason)) => Some(Err(PublishError::new(kind, reason))),
                None => outcomes.next(),
            })
            .collect()
    }

    /// Declares the topics that nobody has declared yet. Returns those that are not there
    /// nevertheless, with the reason.
    async fn declare_unknown_topics(
        &self,
        items: &[Item],
    ) -> HashMap<String, (PublishErrorKind, String)> {
        let mut missing = HashMap::new();
        for topic in self.unknown_topics(items) {
            let error = match Declared::topic(&topic).declare(&self.session).await {
                Ok(()) => None,
                Err(error) if error.is_connection() => break,
                Err(DeclareError::Name(reason)) => Some((PublishErrorKind::Invalid, reason)),
                // It may be of another type, or not ours to declare: enough if it is there.
                Err(error) => match topology::find_exchange(&self.session, &topic).await {
                    Ok(()) => None,
                    Err(not_found) if not_found.is_connection() => break,
                    Err(_) => {
                        let reason = error.into_transport().to_string();
                        Some((PublishErrorKind::Unroutable, reason))
                    }
                },
            };
            match error {
                None => drop(self.known.lock().insert(topic)),
                Some(error) => drop(missing.insert(topic, error)),
            }
        }
        missing
    }

    fn unknown_topics(&self, items: &[Item]) -> BTreeSet<String> {
        let known = self.known.lock();
        let topics = items.iter().filter_map(Item::topic);
        let unknown = topics.filter(|topic| !known.contains(*topic));
        unknown.map(ToOwned::to_owned).collect()
    }
}

//! Destinations that take nothing for now: why, and the one message of each that asks again.
//!
//! It asks *apart*: it is published beside the [relay](crate::relay)'s rounds, so that no round waits
//! for a queue that does not answer. When it is taken, the destination is drained: what is held goes
//! out in the rounds, oldest first, before what is ready.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use tokio::{
    task::{JoinError, JoinSet},
    time::Instant,
};
use tracing::warn;

use crate::{
    Destination, Outgoing, PublishError, PublishErrorKind, Transport,
    round::{About, Round, Why},
    throttle::Throttle,
};

/// How long a destination is left alone that took nothing: at first, and at most.
const ASK_AFTER: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How often the log repeats that a destination takes nothing.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// The destinations that have held rows.
#[derive(Default)]
pub(crate) struct HeldDestinations {
    held: HashMap<Destination, Held>,
    asking: JoinSet<Answer>,
    answers: Vec<Answer>,
}

type Answer = (About, Result<(), PublishError>);

struct Held {
    why: Why,
    /// When its turn is, unless one of its messages asks already.
    next: Instant,
    is_asking: bool,
    pause: Duration,
    log: Throttle,
}

impl Held {
    fn new(why: Why) -> Self {
        Self {
            why,
            next: Instant::now(),
            is_asking: false,
            pause: ASK_AFTER.0,
            log: Throttle::new(LOG_EVERY),
        }
    }
}

impl HeldDestinations {
    pub(crate) fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    pub(crate) fn names(&self) -> Vec<Destination> {
        self.held.keys().cloned().collect()
    }

    pub(crate) fn why(&self, destination: &Destination) -> Option<Why> {
        self.held.get(destination).map(|held| held.why)
    }

    /// Those whose turn it is.
    pub(crate) fn due(&self) -> Vec<(Destination, Why)> {
        let now = Instant::now();
        let due = self
            .held
            .iter()
            .filter(|(_, held)| held.next <= now && !held.is_asking);
        due.map(|(destination, held)| (destination.clone(), held.why))
            .collect()
    }

    /// When the next one's turn is.
    pub(crate) fn next(&self) -> Option<Instant> {
        let waiting = self.held.values().filter(|held| !held.is_asking);
        waiting.map(|held| held.next).min()
    }

    /// True if one is drained in the next round.
    pub(crate) fn is_draining(&self) -> bool {
        let mut all = self.held.values();
        all.any(|held| held.why == Why::Draining && !held.is_asking)
    }

    /// Something is held for it, nobody here knows why.
    pub(crate) fn found(&mut self, destination: Destination) {
        let unknown = || Held::new(Why::Unrouted);
        self.held.entry(destination).or_insert_with(unknown);
    }

    /// Nothing is held for it any more.
    pub(crate) fn forget(&mut self, destination: &Destination) {
        self.held.remove(destination);
    }

    /// It took a message.
    pub(crate) fn reached(&mut self, destination: &Destination) {
        if let Some(held) = self.held.get_mut(destination) {
            held.why = Why::Draining;
            held.next = Instant::now();
        }
    }

    /// It takes nothing for now.
    pub(crate) fn hold(&mut self, destination: Destination, why: Why, reason: &str) {
        let held = match self.held.entry(destination.clone()) {
            Entry::Occupied(entry) => {
                let held = entry.into_mut();
                held.pause = match held.why {
                    Why::Draining => ASK_AFTER.0,
                    _ => (held.pause * 2).min(ASK_AFTER.1),
                };
                held
            }
            Entry::Vacant(entry) => entry.insert(Held::new(why)),
        };
        held.why = why;
        held.next = Instant::now() + held.pause;
        if !held.log.allows() {
            return;
        }
        match why {
            Why::Unrouted => warn!(
                "nobody listens to {destination}: its messages are held in the outbox until \
                 somebody does; start a consumer of it, or write `unrouted = \"drop\"` beside \
                 the event's name if nobody has to"
            ),
            Why::Unconfirmed => warn!(
                "{destination} does not confirm messages: those are held in the outbox and offered \
                 again; has a queue or partition behind it lost its leader, or too many of its \
                 replicas? ({reason})"
            ),
            Why::Refused | Why::Draining => warn!(
                "{destination} refuses messages: those are held in the outbox and offered \
                 again; is a queue behind it full? ({reason})"
            ),
        }
    }

    /// Offers a held message to its destination.
    pub(crate) fn ask(&mut self, transport: &Arc<dyn Transport>, about: About, message: Outgoing) {
        if let Some(held) = self.held.get_mut(&about.destination) {
            held.is_asking = true;
        }
        let transport = Arc::clone(transport);
        self.asking.spawn(async move {
            let outcome = transport.publish(vec![message]).await.pop();
            let none = || {
                let why = "the transport gave no outcome";
                Err(PublishError::new(PublishErrorKind::Unavailable, why))
            };
            (about, outcome.unwrap_or_else(none))
        });
    }

    /// Resolves when one was answered; never, if none asks. May be dropped at any time.
    pub(crate) async fn answered(&mut self) {
        match self.asking.join_next().await {
            Some(joined) => self.answers.push(answer_of(joined)),
            None => std::future::pending().await,
        }
    }

    /// What came of those that asked.
    pub(crate) fn answers(&mut self) -> Round {
        while let Some(joined) = self.asking.try_join_next() {
            self.answers.push(answer_of(joined));
        }
        let mut round = Round::default();
        for (about, outcome) in self.answers.drain(..) {
            if let Some(held) = self.held.get_mut(&about.destination) {
                held.is_asking = false;
                held.next = match &outcome {
                    Err(error) if error.kind() == PublishErrorKind::Unavailable => {
                        Instant::now() + held.pause
                    }
                    _ => Instant::now(),
                };
            }
            round.take(about, outcome);
        }
        round
    }
}

/// A transport that panics takes the relay with it, as in a round.
fn answer_of(joined: Result<Answer, JoinError>) -> Answer {
    joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

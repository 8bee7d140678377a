//! The relay: publishes what the outbox holds, and removes what the broker confirmed.
//!
//! There is no leader. Each instance of a service leases the lanes that are free and keeps renewing
//! them; an instance that dies loses its lanes when the lease ends. A round reads the oldest unsent
//! rows of its lanes, publishes them as one pipelined batch, and removes the confirmed ones. A
//! crash between the two publishes the same rows again, under the same ids, which consumers know
//! (P1 at the sender, P2 at the receiver).
//!
//! Order per key: rows of a key are in one lane, read and published in the order of their
//! positions, on one connection. Three things may get in the way of a row, and each is met so that
//! no later row of its key overtakes it:
//!
//! - *The connection is lost.* What the broker got is a prefix of the batch, so everything from the
//!   first unconfirmed row on is published again, in order.
//! - *Nobody listens* (unroutable). The destination is parked: all its rows, later ones too, are
//!   hidden until one moment, and then the oldest goes alone to see.
//! - *The broker refuses a row.* The relay goes on carefully, with one row per key at a time, until
//!   a round is without refusals. (A row of the same batch that the broker took behind the refused
//!   one has overtaken it; a broker that takes turns refusing is the one case where this can be.)
//!
//! A row that can never be published stays, is put off for an hour at a time, and is named in the
//! log as an error: somebody must look at it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use metrics::{Counter, counter};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    CircuitBreaker, Destination, Lane, OutboxRow, Outgoing, Permit, PublishError, PublishErrorKind,
    Store, StoreError, Transport, Unrouted, throttle::Throttle,
};

/// How long a relay that died keeps its lanes.
const LEASE: Duration = Duration::from_secs(4);
/// How often a lease is renewed.
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// How long to leave a database alone that does not answer.
const STORE_PAUSE: Duration = Duration::from_millis(500);
/// How many rows a round takes.
const BATCH_COUNT_MAX: usize = 1000;
/// How long to wait without being woken.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// How long the broker may take to confirm a batch before it counts as not confirmed.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a row is put off that can never be published.
const INVALID_DELAY: Duration = Duration::from_secs(60 * 60);
/// How long the rows of a destination nobody listens to are put off: at first, and at most.
const PARKED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How much longer a destination stays parked than its rows are hidden, so that all of them can be
/// seen before the first one goes out, and they go in their order.
const PARKED_SLACK: Duration = Duration::from_millis(500);
/// How long to leave a broker alone that does not answer: at first, and at most.
const BREAKER: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));

/// A relay of one instance of a service.
pub(crate) struct Relay {
    /// Who holds the lanes.
    id: String,
    store: Arc<dyn Store>,
    transport: Arc<dyn Transport>,
    breaker: CircuitBreaker,
    lanes: Vec<Lane>,
    leased_until: Instant,
    renew_at: Instant,
    parked: HashMap<Destination, Parked>,
    careful: bool,
    sent: Counter,
    store_trouble: Throttle,
    broker_trouble: Throttle,
}

/// The rows of a round.
#[derive(Default)]
struct Sorted {
    /// Those that are published now.
    now: Vec<OutboxRow>,
    /// Positions of those that are hidden for a time.
    put_off: Vec<(Duration, Vec<i64>)>,
    /// How many stay as they are for the next round.
    left: usize,
}

/// A destination nobody listens to.
struct Parked {
    until: Instant,
    delay: Duration,
}

/// What to do after a round.
enum After {
    /// There may be more.
    Again,
    /// The outbox was empty.
    Wait,
    /// It makes no sense to go on before this.
    Pause(Duration),
}

impl Relay {
    pub(crate) fn new(
        service: &str,
        id: String,
        store: Arc<dyn Store>,
        transport: Arc<dyn Transport>,
    ) -> Self {
        Self {
            id,
            store,
            transport,
            breaker: CircuitBreaker::new(format!("relay of {service}"))
                .failures_max(1)
                .open_for(BREAKER.0)
                .open_for_max(BREAKER.1),
            lanes: Vec::new(),
            leased_until: Instant::now(),
            renew_at: Instant::now(),
            parked: HashMap::new(),
            careful: false,
            sent: counter!("tidings_outbox_sent_total", "service" => service.to_owned()),
            store_trouble: Throttle::new(Duration::from_secs(5)),
            broker_trouble: Throttle::new(Duration::from_secs(5)),
        }
    }

    /// Publishes until `stop`; then what is left, for at most `flush`; then gives up its lanes.
    pub(crate) async fn run(mut self, stop: CancellationToken, flush: Duration) {
        while !stop.is_cancelled() {
            match self.round().await {
                After::Again => {}
                After::Wait => tokio::select! {
                    () = stop.cancelled() => {}
                    () = self.store.committed() => {}
                    () = sleep(POLL_EVERY) => {}
                },
                After::Pause(pause) => tokio::select! {
                    () = stop.cancelled() => {}
                    () = sleep(pause) => {}
                },
            }
        }
        let drain = async { while let After::Again = self.round().await {} };
        if timeout(flush, drain).await.is_err() {
            info!("stopping with unsent messages in the outbox; they go out after the next start");
        }
        if let Err(error) = self.store.release_lanes(&self.id).await {
            debug!("lanes not released, their lease will end: {error}");
        }
    }

    async fn round(&mut self) -> After {
        if self.renew_at <= Instant::now() {
            self.renew().await;
        }
        match self.try_round().await {
            Ok(after) => after,
            Err(error) => {
                if self.store_trouble.allows() {
                    warn!("the relay cannot work on the outbox, it tries again: {error}");
                }
                After::Pause(STORE_PAUSE)
            }
        }
    }

    async fn try_round(&mut self) -> Result<After, StoreError> {
        if self.lanes.is_empty() {
            return Ok(After::Wait);
        }
        let permit = match self.breaker.permit() {
            Ok(permit) => permit,
            Err(open) => return Ok(After::Pause(open.retry_after())),
        };
        let limit = if permit.is_trial() {
            1
        } else {
            BATCH_COUNT_MAX
        };
        let rows = match self.store.unsent(&self.lanes, limit).await {
            Ok(rows) => rows,
            Err(error) => {
                permit.unused();
                return Err(error);
            }
        };
        let full = rows.len() == limit;
        let Sorted { now, put_off, left } = self.sort_out(rows);
        for (delay, positions) in &put_off {
            self.store.defer(positions, *delay).await?;
        }
        let idle = now.is_empty();
        if idle {
            permit.unused();
        } else {
            let round = self.publish(now).await;
            self.conclude(round, permit).await?;
        }
        Ok(match (idle, left > 0) {
            (true, true) => After::Pause(PARKED_SLACK / 5),
            (false, true) => After::Again,
            // After trouble the breaker says, in the next round, how long to wait.
            (_, false) if full || self.breaker.is_open() => After::Again,
            (_, false) => After::Wait,
        })
    }

    /// Takes away the rows of parked destinations, and in careful times all rows of a key but the
    /// first.
    fn sort_out(&self, rows: Vec<OutboxRow>) -> Sorted {
        let now = Instant::now();
        let mut sorted = Sorted::default();
        let mut put_off: HashMap<&Destination, (Duration, Vec<i64>)> = HashMap::new();
        let (mut trials, mut keys) = (HashSet::new(), HashSet::new());
        for row in rows {
            let message = &row.message;
            let goes = match self.parked.get_key_value(&message.destination) {
                Some((destination, parked)) if now < parked.until => {
                    let delay = parked.until - now;
                    let (_, positions) = put_off.entry(destination).or_insert((delay, Vec::new()));
                    positions.push(row.position);
                    continue;
                }
                Some((_, parked)) if now < parked.until + PARKED_SLACK => false,
                // The oldest goes alone, to see whether somebody listens now.
                Some((destination, _)) => trials.insert(destination),
                None => true,
            };
            let key = message.envelope.key.as_ref().filter(|_| self.careful);
            if goes && key.is_none_or(|key| keys.insert(key.clone())) {
                sorted.now.push(row);
            } else {
                sorted.left += 1;
            }
        }
        sorted.put_off = put_off.into_values().collect();
        sorted
    }

    /// Publishes rows and sorts them by their outcome; keeps the lease meanwhile.
    async fn publish(&mut self, rows: Vec<OutboxRow>) -> Round {
        let mut about = Vec::with_capacity(rows.len());
        let mut batch = Vec::with_capacity(rows.len());
        for OutboxRow { position, message } in rows {
            about.push(About::new(position, &message));
            batch.push(message);
        }
        let transport = Arc::clone(&self.transport);
        let mut publishing = std::pin::pin!(timeout(CONFIRM_TIMEOUT, transport.publish(batch)));
        let outcomes = loop {
            tokio::select! {
                outcomes = &mut publishing => break outcomes,
                () = sleep_until(self.renew_at) => self.renew().await,
            }
        };
        let outcomes = outcomes.unwrap_or_else(|_| {
            let late = || format!("the broker did not confirm within {CONFIRM_TIMEOUT:?}");
            let unavailable = || PublishError::new(PublishErrorKind::Unavailable, late());
            about.iter().map(|_| Err(unavailable())).collect()
        });
        let mut round = Round::default();
        for (about, outcome) in about.into_iter().zip(outcomes) {
            round.take(about, outcome);
        }
        round
    }

    /// Writes down what came of a round.
    async fn conclude(&mut self, round: Round, permit: Permit) -> Result<(), StoreError> {
        self.careful = round.refused || (self.careful && round.trouble.is_some());
        match &round.trouble {
            None => permit.succeeded(),
            Some(trouble) => {
                if self.broker_trouble.allows() {
                    warn!("messages wait in the outbox, publishing them is tried again: {trouble}");
                }
                permit.failed();
            }
        }
        for destination in &round.reached {
            if self.parked.remove(destination).is_some() {
                info!("somebody listens to {destination} now: its messages go out");
            }
        }
        self.sent.increment(round.sent.len() as u64);
        if !round.sent.is_empty() {
            self.store.sent(&round.sent).await?;
        }
        for (destination, (name, positions)) in &round.unroutable {
            let delay = self.park(destination, name, positions.len());
            self.store.defer(positions, delay).await?;
        }
        if !round.invalid.is_empty() {
            self.store.defer(&round.invalid, INVALID_DELAY).await?;
        }
        Ok(())
    }

    fn park(&mut self, destination: &Destination, name: &str, count: usize) -> Duration {
        let before = self.parked.get(destination);
        let delay = before.map_or(PARKED.0, |parked| (parked.delay * 2).min(PARKED.1));
        let until = Instant::now() + delay;
        self.parked
            .insert(destination.clone(), Parked { until, delay });
        warn!(
            "nobody listens to {destination}: {count} messages (`{name}`) wait in the outbox and \
             are tried again in {delay:?}; start a consumer of it, or write `unrouted = \"drop\"` \
             beside the event's name if nobody has to"
        );
        delay
    }

    async fn renew(&mut self) {
        let now = Instant::now();
        match self.store.lease_lanes(&self.id, LEASE).await {
            Ok(lanes) => {
                self.lanes = lanes;
                self.leased_until = now + LEASE;
                self.renew_at = now + RENEW_EVERY;
            }
            Err(error) => {
                self.renew_at = now + STORE_PAUSE;
                if now >= self.leased_until {
                    self.lanes.clear(); // Somebody else may have them by now.
                }
                if self.store_trouble.allows() {
                    warn!("the relay cannot renew its lease of the outbox: {error}");
                }
            }
        }
    }
}

/// What is needed of a row after it has been handed to the transport.
struct About {
    position: i64,
    destination: Destination,
    unrouted: Unrouted,
    name: std::borrow::Cow<'static, str>,
    id: String,
}

impl About {
    fn new(position: i64, message: &Outgoing) -> Self {
        let envelope = &message.envelope;
        Self {
            position,
            destination: message.destination.clone(),
            unrouted: message.unrouted,
            name: envelope.name.clone(),
            id: envelope
                .id
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
        }
    }
}

/// What came of a round, by position.
#[derive(Default)]
struct Round {
    sent: Vec<i64>,
    reached: HashSet<Destination>,
    unroutable: HashMap<Destination, (String, Vec<i64>)>,
    invalid: Vec<i64>,
    refused: bool,
    trouble: Option<PublishError>,
}

impl Round {
    fn take(&mut self, about: About, outcome: Result<(), PublishError>) {
        let About {
            position,
            destination,
            name,
            ..
        } = about;
        let Err(error) = outcome else {
            self.sent.push(position);
            if !self.reached.contains(&destination) {
                self.reached.insert(destination);
            }
            return;
        };
        match error.kind() {
            PublishErrorKind::Unroutable if about.unrouted == Unrouted::Drop => {
                self.sent.push(position);
            }
            PublishErrorKind::Unroutable => {
                let (_, positions) = self
                    .unroutable
                    .entry(destination)
                    .or_insert_with(|| (name.into_owned(), Vec::new()));
                positions.push(position);
            }
            PublishErrorKind::Invalid => {
                error!(
                    id = about.id,
                    position,
                    "the message `{name}` to {destination} can never be published as it is; it \
                     stays in the outbox: {error}"
                );
                self.invalid.push(position);
            }
            kind => {
                self.refused |= kind == PublishErrorKind::Refused;
                self.trouble = Some(error);
            }
        }
    }
}

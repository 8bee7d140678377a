//! The relay: publishes what the outbox holds, and removes what the broker confirmed.
//!
//! While there is more to send, the rows of one round are removed, and those of the next but one are
//! read, while those of the round between them are published.
//!
//! There is no leader. The instances of a service share the outbox's lanes by leases; an instance
//! that dies loses its lanes when the lease ends. A round reads the oldest ready rows of its lanes,
//! publishes them as one pipelined batch, and removes the confirmed ones. A crash between the two
//! publishes the same rows again, under the same ids, which consumers know (P1 at the sender, P2 at
//! the receiver).
//!
//! One bad row, one full queue, one silent listener harms nobody else:
//!
//! - *The connection is lost.* What the broker got is a prefix of the batch, so everything from the
//!   first unconfirmed row on is published again, in order, when the broker is back.
//! - *Nobody listens* to a destination. Its rows are held, later ones without being offered; one of
//!   them asks from time to time, and when it is taken the others follow in order.
//! - *A row is not confirmed in time*, though the broker is there: a queue behind its destination has
//!   no leader, say. It is held likewise. A round waits for its slowest row, so the one that asks is
//!   published beside the rounds (see [`held`](crate::held)).
//! - *The broker refuses a row.* That row is held, unless an earlier one of its key was not confirmed in the same round: then
//!   it stays ready behind that, since held rows go before ready ones. A refusal does not name the queue that is full, so
//!   other keys' rows to that destination are still offered, each once and in its turn; rows of a
//!   key that has one held are held behind it. One held row of the destination asks from time to
//!   time. (Rows of one batch and key that the broker took behind the first refused one have
//!   overtaken it: a queue that refuses messages is promised no order.)
//! - *A row cannot be sent as it is*, or not even be read. It is set aside with its reason, and an
//!   operator decides.
//!
//! Order per key rests on this: rows of a key are in one lane, a lane has one relay, rows are read
//! and published in the order of their positions on one connection, and held rows go before ready
//! ones. A relay that was paused past its lease may publish rows again that are long gone, but holds
//! none that are not its own (the store checks), and removes only what was confirmed.

use std::{
    collections::HashSet,
    sync::{Arc, OnceLock},
    time::Duration,
};

use metrics::{Counter, counter};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    CircuitBreaker, Destination, Lane, OutboxRow, Outgoing, Permit, Store, StoreError, Transport,
    held::HeldDestinations,
    round::{About, Ahead, Batch, ReadAhead, Round, Why, read_ahead},
    throttle::Throttle,
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
    /// How many lanes to give up for relays that have fewer.
    surplus: usize,
    /// Since when it has had just these lanes.
    lanes_since: Instant,
    leased_until: Instant,
    renew_at: Instant,
    held: HeldDestinations,
    /// Rows that the broker has, removed while the next round reads and publishes.
    removing: Vec<i64>,
    /// Ready rows of the lanes it has, read ahead while the round before was published.
    read_ahead: Vec<OutboxRow>,
    /// How long a topic's rows may be held, if not for ever.
    held_max: Option<Duration>,
    sent: Counter,
    store_trouble: Throttle,
    broker_trouble: Throttle,
}

/// What to do after a round.
enum After {
    /// There may be more.
    Again,
    /// Nothing is ready.
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
        held_max: Option<Duration>,
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
            surplus: 0,
            lanes_since: Instant::now(),
            leased_until: Instant::now(),
            renew_at: Instant::now(),
            held: HeldDestinations::default(),
            removing: Vec::new(),
            read_ahead: Vec::new(),
            held_max,
            sent: counter!("tidings_outbox_sent_total", "service" => service.to_owned()),
            store_trouble: Throttle::new(Duration::from_secs(5)),
            broker_trouble: Throttle::new(Duration::from_secs(5)),
        }
    }

    /// Publishes until `stop`; then what is left, until the time in `flush_until`; then gives up its
    /// lanes.
    pub(crate) async fn run(mut self, stop: CancellationToken, flush_until: &OnceLock<Instant>) {
        while !stop.is_cancelled() {
            match self.round().await {
                After::Again => {}
                After::Wait => {
                    let poll_at = Instant::now() + POLL_EVERY;
                    let next_at = self.held.next().map_or(poll_at, |at| at.min(poll_at));
                    tokio::select! {
                        () = stop.cancelled() => {}
                        () = self.store.outbox().committed() => {}
                        () = self.held.answered() => {}
                        () = sleep_until(next_at) => {}
                    }
                }
                After::Pause(pause) => tokio::select! {
                    () = stop.cancelled() => {}
                    () = sleep(pause) => {}
                },
            }
        }
        let drain = async { while let After::Again = self.round().await {} };
        let flush_until = flush_until.get().copied().unwrap_or_else(Instant::now);
        if timeout_at(flush_until, drain).await.is_err() {
            info!("stopping with unsent messages in the outbox; they go out after the next start");
        }
        if let Err(error) = self.hear().await.and(self.remove().await) {
            debug!("messages that were sent are not removed, and will be sent again: {error}");
        }
        if let Err(error) = self.store.outbox().release(&self.id, None).await {
            debug!("lanes not released, their lease will end: {error}");
        }
    }

    async fn round(&mut self) -> After {
        let outcome = async {
            // Also after a pause of the whole process, in which others may have taken the lanes.
            if self.renew_at <= Instant::now() {
                self.renew().await?;
            }
            self.hear().await?;
            self.share().await?;
            if self.lanes.is_empty() {
                self.remove().await?;
                return Ok(After::Wait);
            }
            self.publish_ready().await
        };
        let after = outcome.await;
        if !matches!(after, Ok(After::Again)) {
            self.read_ahead.clear(); // It would be old by then.
        }
        match after {
            Ok(after) => after,
            Err(error) => {
                if self.store_trouble.allows() {
                    warn!("the relay cannot work on the outbox, it tries again: {error}");
                }
                After::Pause(STORE_PAUSE)
            }
        }
    }

    /// One batch of ready rows, and those held rows whose turn it is to ask.
    async fn publish_ready(&mut self) -> Result<After, StoreError> {
        let permit = match self.breaker.permit() {
            Ok(permit) => permit,
            Err(open) => {
                self.remove().await?;
                return Ok(After::Pause(open.retry_after()));
            }
        };
        let limit = if permit.is_trial() {
            1
        } else {
            BATCH_COUNT_MAX
        };
        let batch = match self.next_batch(limit).await {
            Ok(batch) => batch,
            Err(error) => {
                permit.unused();
                return Err(error);
            }
        };
        let is_full = batch.is_full;
        if batch.rows.is_empty() || self.leased_until <= Instant::now() {
            permit.unused();
        } else {
            // What is held is read with regard to what was held before.
            let read = match is_full && self.held.is_empty() && !permit.is_trial() {
                true => {
                    let in_flight = batch.rows.iter().map(|(position, _)| *position).collect();
                    let removed = self.removing.clone();
                    let (store, lanes) = (Arc::clone(&self.store), self.lanes.clone());
                    Some(read_ahead(
                        store,
                        lanes,
                        in_flight,
                        removed,
                        BATCH_COUNT_MAX,
                    ))
                }
                false => None,
            };
            let (round, read) = self.publish(batch.rows, read).await;
            let taken = read.map_or(Ok(()), |read| self.take_ahead(read, round.is_clean()));
            self.conclude(round, permit).await?;
            taken?;
            if !is_full {
                self.remove().await?;
            }
        }
        Ok(match is_full {
            true => After::Again,
            // After trouble the breaker says, in the next round, how long to wait.
            false if self.breaker.is_open() => After::Again,
            false if self.held.is_draining() => After::Again,
            false => After::Wait,
        })
    }

    async fn next_batch(&mut self, limit: usize) -> Result<Batch, StoreError> {
        let mut batch = Batch::default();
        if !self.held.is_empty() {
            // Held rows are read without regard to what is to be removed.
            self.remove().await?;
            self.offer_held(&mut batch, limit).await?;
        }
        let room = limit.saturating_sub(batch.rows.len());
        if room == 0 {
            batch.is_full = true;
            return Ok(batch);
        }
        let ready = self.next_ready(&self.held.names(), room).await?;
        let outbox = self.store.outbox();
        batch.is_full = ready.len() == room;
        self.sort_out(ready, &mut batch);
        for (reason, positions) in std::mem::take(&mut batch.to_hold) {
            outbox.hold(&self.id, &positions, reason).await?;
        }
        self.set_aside(std::mem::take(&mut batch.unreadable))
            .await?;
        Ok(batch)
    }

    /// Reads ready rows, while those of the last round are removed.
    async fn next_ready(
        &mut self,
        held: &[Destination],
        limit: usize,
    ) -> Result<Vec<OutboxRow>, StoreError> {
        let read_ahead = std::mem::take(&mut self.read_ahead);
        if !read_ahead.is_empty() && held.is_empty() && read_ahead.len() <= limit {
            return Ok(read_ahead);
        }
        let outbox = self.store.outbox();
        if self.removing.is_empty() {
            return outbox.next(&self.lanes, held, &[], limit).await;
        }
        let (ready, removed) = tokio::join!(
            outbox.next(&self.lanes, held, &self.removing, limit),
            outbox.confirmed(&self.removing),
        );
        removed?;
        self.removing.clear();
        ready
    }

    /// Keeps what was read ahead, unless rows before it were not taken, or the lanes had somebody else
    /// meanwhile.
    fn take_ahead(&mut self, read: ReadAhead, is_clean: bool) -> Result<(), StoreError> {
        read.confirmed?;
        self.removing.clear();
        let rows = read.rows?;
        if is_clean && self.lanes_since <= read.began {
            self.read_ahead = rows;
        }
        Ok(())
    }

    /// Removes what the broker has.
    async fn remove(&mut self) -> Result<(), StoreError> {
        if !self.removing.is_empty() {
            self.store.outbox().confirmed(&self.removing).await?;
            self.removing.clear();
        }
        Ok(())
    }

    /// Offers the held rows whose turn it is: one of each destination that may take messages again,
    /// apart; in this batch, as many as there is room for, of those that do.
    async fn offer_held(&mut self, batch: &mut Batch, limit: usize) -> Result<(), StoreError> {
        for (destination, why) in self.held.due() {
            let is_draining = why == Why::Draining;
            let wanted = match is_draining {
                true => limit.saturating_sub(batch.rows.len()),
                false => 1,
            };
            if wanted == 0 {
                continue;
            }
            let outbox = self.store.outbox();
            if why == Why::Unrouted {
                self.end_of_waiting(&destination).await?;
            }
            let rows = outbox.next_held(&self.lanes, &destination, wanted).await?;
            if rows.is_empty() {
                self.held.forget(&destination);
                info!("no message to {destination} is held any more");
                continue;
            }
            let is_last = rows.len() < wanted;
            for row in rows {
                match row.message {
                    Ok(message) if !is_draining => {
                        let about = About::new(row.position, &message);
                        self.held.ask(&self.transport, about, message);
                    }
                    _ => batch.push(row),
                }
            }
            if is_draining && is_last {
                batch.drained.insert(destination);
            }
        }
        Ok(())
    }

    /// Writes down what came of the rows that asked apart.
    async fn hear(&mut self) -> Result<(), StoreError> {
        let round = self.held.answers();
        self.write_down(round).await
    }

    /// Sets aside what nobody listened to for too long, if that was configured.
    async fn end_of_waiting(&self, destination: &Destination) -> Result<(), StoreError> {
        let (Some(held_max), Destination::Topic(_)) = (self.held_max, destination) else {
            return Ok(());
        };
        let outbox = self.store.outbox();
        let rows = outbox
            .next_held(&self.lanes, destination, BATCH_COUNT_MAX)
            .await?;
        let old = rows.iter().take_while(|row| row.age > held_max);
        let positions: Vec<i64> = old.map(|row| row.position).collect();
        if positions.is_empty() {
            return Ok(());
        }
        let reason = format!("nobody listened to {destination} for {held_max:?}");
        warn!("{} messages are set aside: {reason}", positions.len());
        outbox.set_aside(&self.id, &positions, &reason).await
    }

    /// Sorts rows that are ready into those that are offered now and those that are held.
    fn sort_out(&self, ready: Vec<OutboxRow>, batch: &mut Batch) {
        let mut offered: HashSet<(Destination, Box<str>)> = HashSet::new();
        for row in ready {
            let Ok(message) = &row.message else {
                batch.push(row);
                continue;
            };
            let Some(why) = self.held.why(&message.destination) else {
                batch.push(row);
                continue;
            };
            let key = message.envelope.key.clone();
            match why {
                // All that are held are in this batch, before it.
                Why::Draining if batch.drained.contains(&message.destination) => batch.push(row),
                Why::Unrouted => batch.hold("nobody listens to its destination", row.position),
                Why::Unconfirmed => {
                    batch.hold("an earlier message was not confirmed", row.position);
                }
                Why::Draining => batch.hold("earlier messages go first", row.position),
                Why::Refused if row.is_behind => {
                    batch.hold("an earlier message of its key was refused", row.position);
                }
                // One of each key at a time, so that none overtakes one that is refused; the
                // others of its key stay as they are for the next round.
                Why::Refused => match key {
                    Some(key) if offered.contains(&(message.destination.clone(), key.clone())) => {
                        batch.is_full = true; // There is more for the next round.
                    }
                    Some(key) => {
                        offered.insert((message.destination.clone(), key));
                        batch.push(row);
                    }
                    None => batch.push(row),
                },
            }
        }
    }

    /// Publishes rows and sorts them by their outcome; reads ahead and keeps the lease meanwhile.
    async fn publish(
        &mut self,
        rows: Vec<(i64, Outgoing)>,
        mut ahead: Option<Ahead>,
    ) -> (Round, Option<ReadAhead>) {
        let mut about = Vec::with_capacity(rows.len());
        let mut batch = Vec::with_capacity(rows.len());
        for (position, message) in rows {
            about.push(About::new(position, &message));
            batch.push(message);
        }
        let transport = Arc::clone(&self.transport);
        let mut publishing = transport.publish(batch);
        let (mut outcomes, mut read) = (None, None);
        while outcomes.is_none() || ahead.is_some() {
            let reading = async {
                match &mut ahead {
                    Some(ahead) => ahead.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                told = &mut publishing, if outcomes.is_none() => outcomes = Some(told),
                rows = reading => (read, ahead) = (Some(rows), None),
                () = sleep_until(self.renew_at) => if let Err(error) = self.renew().await
                    && self.store_trouble.allows()
                {
                    warn!("the relay cannot renew its lease of the outbox: {error}");
                },
            }
        }
        drop(publishing);
        let mut round = Round::default();
        for (about, outcome) in about.into_iter().zip(outcomes.into_iter().flatten()) {
            round.take(about, outcome);
        }
        (round, read)
    }

    /// Takes note of what a round says of the broker, and writes down what came of its rows.
    async fn conclude(&mut self, round: Round, permit: Permit) -> Result<(), StoreError> {
        match &round.trouble {
            None => permit.succeeded(),
            Some(trouble) => {
                if self.broker_trouble.allows() {
                    warn!("messages wait in the outbox, publishing them is tried again: {trouble}");
                }
                permit.failed();
            }
        }
        self.write_down(round).await
    }

    async fn write_down(&mut self, round: Round) -> Result<(), StoreError> {
        for destination in &round.reached {
            if !round.held.contains_key(destination) {
                self.held.reached(destination);
            }
        }
        self.sent.increment(round.sent.len() as u64);
        let store = Arc::clone(&self.store);
        self.removing.extend(round.sent);
        for (destination, (why, reason, positions)) in round.held {
            store.outbox().hold(&self.id, &positions, &reason).await?;
            self.held.hold(destination, why, &reason);
        }
        self.set_aside(round.invalid).await
    }

    async fn set_aside(&self, rows: Vec<(i64, String)>) -> Result<(), StoreError> {
        for (position, reason) in rows {
            error!(
                position,
                "a message in the outbox cannot be sent as it is; it is set aside, mend it or \
                 discard it: {reason}"
            );
            let outbox = self.store.outbox();
            outbox.set_aside(&self.id, &[position], &reason).await?;
        }
        Ok(())
    }

    /// Renews the lease, and takes and gives up lanes so that all relays have their share.
    async fn renew(&mut self) -> Result<(), StoreError> {
        let now = Instant::now();
        let outbox = self.store.outbox();
        let leased = match outbox.lease(&self.id, LEASE).await {
            Ok(leased) => leased,
            Err(error) => {
                self.renew_at = now + STORE_PAUSE;
                if now >= self.leased_until {
                    self.lanes.clear(); // Somebody else may have them by now.
                }
                return Err(error);
            }
        };
        if leased.lanes != self.lanes || self.leased_until <= now {
            self.lanes_since = Instant::now();
            self.read_ahead.clear();
            // What others held there meanwhile is not known here yet.
            for destination in outbox.held(&leased.lanes).await? {
                self.held.found(destination);
            }
        }
        self.leased_until = now + LEASE;
        self.renew_at = now + RENEW_EVERY;
        self.lanes = leased.lanes;
        self.surplus = leased.surplus.into();
        Ok(())
    }

    /// Gives up the lanes that are beyond its share; between two rounds nothing of theirs is in
    /// flight.
    async fn share(&mut self) -> Result<(), StoreError> {
        if self.surplus == 0 {
            return Ok(());
        }
        self.remove().await?;
        let given_up = self
            .lanes
            .split_off(self.lanes.len().saturating_sub(self.surplus));
        self.surplus = 0;
        self.lanes_since = Instant::now();
        self.read_ahead.clear();
        self.store.outbox().release(&self.id, Some(&given_up)).await
    }
}

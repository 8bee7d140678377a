//! When the world is quiet, and how its clock moves.
//!
//! Quiet means: nothing is under way (no operation of a service, no delivery that a service holds, no
//! row that a worker has leased), and nothing begins although every task had its turns. What then
//! still waits, waits for the clock: a retry, a handler that pauses, a destination that refuses.

use std::time::Duration;

use tokio::{task::yield_now, time::Instant};

use super::{
    PATIENCE, TestWorld,
    broker::LISTENER,
    clock::{BEAT, SCHEDULE},
};

/// How often all other tasks get their turn before it counts that nothing began.
const TURNS: usize = 64;
/// How many beats without anything begun it takes to believe that what is ready waits for the clock.
const STILL_BEATS: u32 = 10;
/// How far the clock moves while something that is ready waits for it: at first, and at most.
const STEP: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

impl TestWorld {
    /// Waits until nothing is under way and nothing more happens unless the clock moves: everything
    /// that was published is handled, deferred or dead, and what that sent is published.
    ///
    /// # Panics
    ///
    /// When that takes longer than ten seconds by the machine's clock, with a list of what is still
    /// under way; and when a service has ended by itself.
    #[track_caller]
    pub fn quiet(&self) -> impl Future<Output = ()> {
        let location = std::panic::Location::caller();
        async move {
            if let Err(what) = self.become_quiet().await {
                panic!("the test at {location} waits for quiet in vain: {what}");
            }
        }
    }

    async fn become_quiet(&self) -> Result<(), String> {
        let deadline = std::time::Instant::now() + PATIENCE;
        let mut still_beats = 0;
        loop {
            self.check_services()?;
            let activity = self.watch.activity();
            for _ in 0..TURNS {
                yield_now().await;
            }
            let (mut under_way, has_handler) = self.watch.under_way();
            under_way.extend(self.starting_or_ending());
            let mut waits = Vec::new();
            if under_way.is_empty() {
                waits = self.ready().await?;
            }
            if self.watch.activity() != activity {
                still_beats = 0;
            } else if under_way.is_empty() {
                still_beats += 1;
                if waits.is_empty() || (!self.is_real_time && still_beats > STILL_BEATS) {
                    return self.check_services();
                }
            }
            if std::time::Instant::now() > deadline {
                under_way.extend(waits);
                let list = under_way.join("\n  ");
                return Err(format!("after {PATIENCE:?} there is still\n  {list}"));
            }
            if self.watch.activity() == activity {
                self.beat(has_handler).await;
            }
        }
    }

    /// Waits for something to happen, but not longer than a beat. A handler's time passes meanwhile.
    async fn beat(&self, has_handler: bool) {
        self.pulse.demand();
        self.watch.changed.notified().await;
        if has_handler && !self.is_real_time {
            tokio::time::advance(BEAT).await;
        }
    }

    /// What could begin now, for people.
    async fn ready(&self) -> Result<Vec<String>, String> {
        let mut ready = Vec::new();
        let consumers = self.watch.consumers();
        for known in self.databases() {
            let failed = |error| format!("a store does not answer: {error}");
            let outbox = known.store.outbox().stats().await.map_err(failed)?;
            if outbox.ready > 0 {
                ready.push(format!("{} unsent messages in an outbox", outbox.ready));
            }
            let deferred = known.store.deferred();
            let next = deferred.next_due(&consumers).await.map_err(failed)?;
            if next == Some(Duration::ZERO) {
                ready.push("a deferred message that is due".to_owned());
            }
            let next = known
                .store
                .records()
                .next_due(SCHEDULE)
                .await
                .map_err(failed)?;
            if next == Some(Duration::ZERO) {
                ready.push("a scheduled message that is due".to_owned());
            }
        }
        for queue in self.state.lock().queues.iter().filter(|it| *it != LISTENER) {
            let count = self.broker.messages(queue).len();
            let count = count.saturating_sub(self.watch.delayed_in(queue));
            if count > 0 {
                ready.push(format!("{count} messages ready in `{queue}`"));
            }
        }
        Ok(ready)
    }

    /// Moves the clock by `duration`, from one thing that is due to the next, and waits for quiet
    /// after each: retries, breakers and scheduled messages happen in their order. The clocks of the
    /// machine and of databases outside the process cannot be moved; what is deferred or scheduled
    /// in such a database is brought forward instead.
    ///
    /// # Panics
    ///
    /// As [`quiet`](Self::quiet); and in a test with `real_time`.
    #[track_caller]
    pub fn advance(&self, duration: Duration) -> impl Future<Output = ()> {
        assert!(
            !self.is_real_time,
            "this test runs in `real_time`, so its clock cannot be moved"
        );
        let location = std::panic::Location::caller();
        async move {
            if let Err(what) = self.move_clock(duration).await {
                panic!("the test at {location} moves the clock in vain: {what}");
            }
        }
    }

    async fn move_clock(&self, duration: Duration) -> Result<(), String> {
        self.become_quiet().await?;
        let target = Instant::now() + duration;
        let mut pause = STEP.0;
        loop {
            let left = target.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            let step = if self.ready().await?.is_empty() {
                pause = STEP.0;
                self.next_due().await?.unwrap_or(left)
            } else {
                let step = pause;
                pause = (pause * 2).min(STEP.1);
                step
            };
            // The timers of the runtime count milliseconds.
            let step = Duration::from_millis(step.as_micros().div_ceil(1000) as u64);
            self.step(step.clamp(BEAT, left.max(BEAT))).await?;
            self.become_quiet().await?;
        }
    }

    async fn step(&self, step: Duration) -> Result<(), String> {
        for known in self.databases() {
            let brought = known.bring_forward(step).await;
            brought.map_err(|error| format!("a store does not answer: {error}"))?;
        }
        tokio::time::advance(step).await;
        Ok(())
    }

    /// How long until the next thing is due that waits in a store or in the broker.
    async fn next_due(&self) -> Result<Option<Duration>, String> {
        let mut next = self.watch.next_due();
        let consumers = self.watch.consumers();
        for known in self.databases() {
            let failed = |error| format!("a store does not answer: {error}");
            let deferred = known
                .store
                .deferred()
                .next_due(&consumers)
                .await
                .map_err(failed)?;
            let records = known
                .store
                .records()
                .next_due(SCHEDULE)
                .await
                .map_err(failed)?;
            next = [next, deferred, records].into_iter().flatten().min();
        }
        Ok(next)
    }
}

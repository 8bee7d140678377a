//! A handler's gate: whether its messages are handled now.
//!
//! A gate closes when attempts cannot even be made: the database does not answer, a circuit breaker
//! is open, a layer sheds load. While it is closed the handler receives nothing, and the backlog
//! stays where it is: in the broker, or in the store. When the pause is over, one message is the
//! *trial*: if its attempt is made (whether it succeeds or fails), the gate opens; if not, the next
//! pause is longer. Two more things keep it closed for as long as they hold: an operator who paused
//! the consumer, and a store in which too many messages of the consumer wait.
//!
//! This is a state machine with a clock and a notification; it starts no task.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// The longest pause between two trials.
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Whether the messages of one handler are handled now.
pub(crate) struct Gate {
    state: Mutex<State>,
    changes: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    closed: Option<Closed>,
    is_held: bool,
    is_full: bool,
}

struct Closed {
    until: Instant,
    pause: Duration,
    is_tried: bool,
}

impl State {
    fn is_barred(&self, source: Source) -> bool {
        self.is_held || (self.is_full && source == Source::Broker)
    }
}

/// Where a message comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// From the broker: may add to what waits in the store.
    Broker,
    /// From the store: takes away from it.
    Store,
}

/// What a message finds at the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    /// It may be handled.
    Open,
    /// It may be handled, as the trial.
    Trial,
    /// Not now.
    Closed,
}

impl Gate {
    /// An open gate; one that is held until it is known whether an operator paused the consumer.
    pub(crate) fn new(is_held: bool) -> Self {
        Self {
            state: Mutex::new(State {
                is_held,
                ..State::default()
            }),
            changes: watch::Sender::new(()),
        }
    }

    /// Asks for leave to handle one message. After [`Pass::Trial`], say how it went with
    /// [`open`](Self::open), [`close`](Self::close) or [`untried`](Self::untried).
    pub(crate) fn pass(&self, source: Source) -> Pass {
        let mut state = self.state.lock();
        if state.is_barred(source) {
            return Pass::Closed;
        }
        match &mut state.closed {
            None => Pass::Open,
            Some(closed) if !closed.is_tried && closed.until <= Instant::now() => {
                closed.is_tried = true;
                Pass::Trial
            }
            Some(_) => Pass::Closed,
        }
    }

    pub(crate) fn is_open(&self, source: Source) -> bool {
        let state = self.state.lock();
        !state.is_barred(source) && state.closed.is_none()
    }

    /// Whether a message may pass, as a trial or not.
    pub(crate) fn is_passable(&self, source: Source) -> bool {
        let state = self.state.lock();
        let is_due = |closed: &Closed| !closed.is_tried && closed.until <= Instant::now();
        !state.is_barred(source) && state.closed.as_ref().is_none_or(is_due)
    }

    /// How long until a message may pass as the trial; `None` if that is not known, or one may now.
    pub(crate) fn passable_in(&self, source: Source) -> Option<Duration> {
        let state = self.state.lock();
        let closed = state.closed.as_ref()?;
        let is_known = !state.is_barred(source) && !closed.is_tried;
        is_known.then(|| closed.until.saturating_duration_since(Instant::now()))
    }

    /// Closes it for `pause`. If the trial before came to this too, and nobody knows how long it is
    /// going to take (`grows`), for twice as long as before.
    pub(crate) fn close(&self, pause: Duration, grows: bool) {
        let mut state = self.state.lock();
        let pause = match &state.closed {
            None => pause,
            Some(closed) if closed.is_tried && grows => {
                pause.max((closed.pause * 2).min(PAUSE_MAX))
            }
            Some(closed) if closed.is_tried => pause,
            // One that had begun before it closed.
            Some(_) => return,
        };
        state.closed = Some(Closed {
            until: Instant::now() + pause,
            pause,
            is_tried: false,
        });
        drop(state);
        self.changes.send_replace(());
    }

    /// The trial was made.
    pub(crate) fn open(&self) {
        self.change(|state| state.closed = None);
    }

    /// The trial turned out to be none (a duplicate, say): the next message is it.
    pub(crate) fn untried(&self) {
        self.change(|state| {
            if let Some(closed) = &mut state.closed {
                closed.is_tried = false;
            }
        });
    }

    /// An operator pauses the consumer, or lets it go on.
    pub(crate) fn hold(&self, is_held: bool) {
        self.change(|state| state.is_held = is_held);
    }

    /// Too many of its messages wait in the store, or no longer.
    pub(crate) fn set_full(&self, is_full: bool) {
        self.change(|state| state.is_full = is_full);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock());
        self.changes.send_replace(());
    }

    /// Resolves when a message may pass, as a trial or not.
    pub(crate) async fn passable(&self, source: Source) {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let until = {
                let state = self.state.lock();
                match &state.closed {
                    _ if state.is_barred(source) => None,
                    None => return,
                    Some(closed) if closed.is_tried => None,
                    Some(closed) => Some(closed.until),
                }
            };
            let due = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => return,
                // An error is impossible: `self` holds the sender.
                _ = changes.changed() => {}
            }
        }
    }

    /// Resolves when it is open.
    pub(crate) async fn opened(&self, source: Source) {
        self.until(|| self.is_open(source)).await;
    }

    /// Resolves when it is not open.
    pub(crate) async fn shut(&self, source: Source) {
        self.until(|| !self.is_open(source)).await;
    }

    async fn until(&self, condition: impl Fn() -> bool) {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            if condition() {
                return;
            }
            let _ = changes.changed().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{advance, timeout};

    use super::*;

    const PAUSE: Duration = Duration::from_secs(1);

    async fn is_passable(gate: &Gate) -> bool {
        timeout(Duration::ZERO, gate.passable(Source::Broker))
            .await
            .is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_pause_one_message_tries_and_opens_it() {
        let gate = Gate::new(false);
        assert_eq!(gate.pass(Source::Broker), Pass::Open);
        gate.close(PAUSE, true);
        assert_eq!(gate.pass(Source::Broker), Pass::Closed);
        assert!(!is_passable(&gate).await);
        advance(PAUSE).await;
        assert!(is_passable(&gate).await);
        assert_eq!(gate.pass(Source::Broker), Pass::Trial);
        assert_eq!(gate.pass(Source::Broker), Pass::Closed, "one at a time");
        gate.untried();
        assert_eq!(
            gate.pass(Source::Broker),
            Pass::Trial,
            "the next one is the trial"
        );
        gate.open();
        assert_eq!(gate.pass(Source::Broker), Pass::Open);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trial_in_vain_doubles_the_pause_and_late_failures_do_not() {
        let gate = Gate::new(false);
        gate.close(PAUSE, true);
        gate.close(PAUSE * 8, true); // One that had begun before.
        advance(PAUSE).await;
        assert_eq!(gate.pass(Source::Broker), Pass::Trial);
        gate.close(PAUSE, true);
        advance(PAUSE).await;
        assert_eq!(gate.pass(Source::Broker), Pass::Closed);
        advance(PAUSE).await;
        assert_eq!(gate.pass(Source::Broker), Pass::Trial);
    }

    #[tokio::test(start_paused = true)]
    async fn an_operator_and_a_full_store_keep_it_closed_until_they_say_otherwise() {
        let gate = Gate::new(false);
        for (set, of_store) in [
            (Gate::hold as fn(&Gate, bool), Pass::Closed),
            (Gate::set_full, Pass::Open),
        ] {
            set(&gate, true);
            assert_eq!(gate.pass(Source::Broker), Pass::Closed);
            assert_eq!(gate.pass(Source::Store), of_store);
            advance(PAUSE_MAX * 2).await;
            assert!(!is_passable(&gate).await);
            set(&gate, false);
            assert!(is_passable(&gate).await);
            assert_eq!(gate.pass(Source::Broker), Pass::Open);
        }
    }
}

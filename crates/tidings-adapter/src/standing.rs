//! Whether an engine is there, as all clients of a transport see it.

use std::sync::atomic::{AtomicBool, Ordering};

use tidings_core::TransportError;
use tokio::sync::watch;
use tracing::{info, warn};

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// It has not answered yet.
    Starting,
    /// It has answered.
    Up,
    /// Waiting does not help.
    Refused(String),
    /// The transport was closed.
    Closed,
}

/// How it stands with an engine. What changes is told in the log, once.
#[derive(Debug)]
pub struct Standing {
    /// `Kafka`, in `Kafka answers again`.
    engine: &'static str,
    state: watch::Sender<State>,
    /// It does not answer at the moment.
    is_down: AtomicBool,
    /// That it refuses this program was told, and it has not answered since.
    is_refusal_told: AtomicBool,
}

impl Standing {
    /// Nothing is known of the engine yet.
    pub fn new(engine: &'static str) -> Self {
        Self {
            engine,
            state: watch::Sender::new(State::Starting),
            is_down: AtomicBool::new(false),
            is_refusal_told: AtomicBool::new(false),
        }
    }

    /// It answered, whatever it said.
    pub fn answered(&self) {
        if self.is_down.swap(false, Ordering::Relaxed) {
            info!("{}: it answers again", self.engine);
        }
        self.is_refusal_told.store(false, Ordering::Relaxed);
    }

    /// It can be used.
    pub fn up(&self) {
        self.leave_start(State::Up);
        self.answered();
    }

    /// It does not answer.
    pub fn down(&self, why: &str) {
        if !self.is_down.swap(true, Ordering::Relaxed) {
            warn!(why, "{}: it does not answer", self.engine);
        }
    }

    /// Waiting does not help. Who was let in before goes on to knock.
    pub fn refused(&self, why: String) {
        if !self.is_refusal_told.swap(true, Ordering::Relaxed) {
            warn!("{why}");
        }
        self.leave_start(State::Refused(why));
    }

    fn leave_start(&self, state: State) {
        self.state.send_if_modified(|current| {
            let is_new = *current == State::Starting;
            if is_new {
                *current = state;
            }
            is_new
        });
    }

    /// The transport is closed.
    pub fn close(&self) {
        self.state.send_replace(State::Closed);
    }

    /// True when the transport was closed.
    pub fn is_closed(&self) -> bool {
        *self.state.borrow() == State::Closed
    }

    /// True when the engine never let this program in.
    pub fn is_refused(&self) -> bool {
        matches!(*self.state.borrow(), State::Refused(_))
    }

    /// True while there is something to publish to.
    pub fn is_connected(&self) -> bool {
        *self.state.borrow() == State::Up && !self.is_down()
    }

    /// True while it does not answer.
    pub fn is_down(&self) -> bool {
        self.is_down.load(Ordering::Relaxed)
    }

    /// Waits until it has answered once.
    ///
    /// # Errors
    ///
    /// When waiting does not help: it refuses this program, or the transport is closed.
    pub async fn reached(&self) -> Result<(), TransportError> {
        let mut state = self.state.subscribe();
        loop {
            match &*state.borrow_and_update() {
                State::Starting => {}
                State::Up => return Ok(()),
                State::Refused(why) => return Err(TransportError::fatal(why.clone())),
                State::Closed => return Err(closed()),
            }
            // The sender is in `self`.
            let _ = state.changed().await;
        }
    }
}

/// The error of whoever asks a transport that was closed.
pub fn closed() -> TransportError {
    TransportError::fatal("the transport was closed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_is_told_how_it_ends() {
        let check = async |end: fn(&Standing), expected: Result<(), &str>| {
            let standing = Standing::new("Kafka");
            let waiting = standing.reached();
            let (outcome, ()) = tokio::join!(waiting, async { end(&standing) });
            let outcome = outcome.map_err(|error| (error.is_temporary(), error.to_string()));
            assert_eq!(outcome, expected.map_err(|why| (false, why.to_owned())));
        };
        check(Standing::up, Ok(())).await;
        check(|it| it.refused("no".into()), Err("no")).await;
        check(Standing::close, Err("the transport was closed")).await;
    }

    #[test]
    fn who_was_let_in_once_is_not_refused_and_comes_back() {
        let standing = Standing::new("Kafka");
        standing.up();
        assert!(standing.is_connected());
        standing.refused("the password was changed".into());
        standing.down("nobody answers");
        assert!(!standing.is_refused() && standing.is_down() && !standing.is_connected());
        standing.answered();
        assert!(standing.is_connected());
        standing.close();
        assert!(standing.is_closed() && !standing.is_connected());
    }
}

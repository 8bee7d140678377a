//! A connection that comes back: one task dials, sets up what the connection is for, waits until
//! it is lost, and starts over.
//!
//! Where the URL names several hosts, the nodes of a cluster, each connection has them in an order of its own, and
//! after a loss or a failure goes on with the next one. It pauses when all have failed.

use std::{
    collections::HashMap,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use tidings_adapter::{Backoff, closed};
use tidings_core::TransportError;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use crate::{
    address::{Address, Host},
    dial::{DialError, dial},
    queues::Making,
    session::{Closed, Session},
};

/// A connection that lasted this long was a good one.
const GOOD_AFTER: Duration = Duration::from_secs(5);
/// How often it is said that the broker is still not there.
const REMIND_EVERY: Duration = Duration::from_secs(30);

/// What a connection is for.
pub(crate) trait Role: Send + Sync + 'static {
    /// What there is while the connection is up.
    type Up: Send + Sync + 'static;

    /// What it is for, for people.
    const PURPOSE: &'static str;

    /// Makes a new connection ready.
    fn set_up(
        &self,
        session: &Arc<Session>,
    ) -> impl Future<Output = Result<Self::Up, Closed>> + Send;

    /// Resolves when it has to be set up again although the connection lives.
    fn worn_out(&self, up: &Self::Up) -> impl Future<Output = ()> + Send;
}

/// A supervised connection.
pub(crate) struct Link<R: Role> {
    state: watch::Receiver<State<R::Up>>,
}

enum State<U> {
    /// Not connected, with what stands in the way if waiting alone does not help.
    Down(Option<Arc<str>>),
    Up {
        up: Arc<U>,
        session: Arc<Session>,
    },
    Closed,
}

/// What a link needs to know.
#[derive(Clone)]
pub(crate) struct Surroundings {
    pub(crate) address: Arc<Address>,
    pub(crate) name: Arc<str>,
    pub(crate) tasks: TaskTracker,
    /// Connections that are lost do not come back.
    pub(crate) closing: CancellationToken,
    /// Everything ends at once.
    pub(crate) stop: CancellationToken,
}

impl<R: Role> Link<R> {
    /// Starts to connect, and goes on until `stop`.
    pub(crate) fn start(role: R, around: &Surroundings) -> Self {
        let (sender, state) = watch::channel(State::Down(None));
        let supervisor = Supervisor {
            role,
            hosts: around.address.shuffled(),
            around: around.clone(),
            state: sender,
        };
        let stop = around.stop.clone();
        around.tasks.spawn(async move {
            tokio::select! {
                () = supervisor.run() => {}
                () = stop.cancelled() => {}
            }
            supervisor.state.send_replace(State::Closed);
        });
        Self { state }
    }

    /// What there is now, if the connection is up.
    pub(crate) fn now(&self) -> Option<Arc<R::Up>> {
        match &*self.state.borrow() {
            State::Up { up, session } if !session.is_ended() => Some(Arc::clone(up)),
            _ => None,
        }
    }

    /// The connection itself, if there is one.
    pub(crate) fn session(&self) -> Option<Arc<Session>> {
        match &*self.state.borrow() {
            State::Up { session, .. } => Some(Arc::clone(session)),
            _ => None,
        }
    }

    /// Waits until the connection is up.
    ///
    /// # Errors
    ///
    /// When waiting does not help: it was closed, or the broker refuses us.
    pub(crate) async fn up(&self) -> Result<Arc<R::Up>, TransportError> {
        let mut state = self.state.clone();
        loop {
            match &*state.borrow_and_update() {
                State::Up { up, session } if !session.is_ended() => return Ok(Arc::clone(up)),
                State::Closed => return Err(closed()),
                State::Down(Some(reason)) => return Err(TransportError::fatal(&**reason)),
                State::Up { .. } | State::Down(None) => {}
            }
            if state.changed().await.is_err() {
                return Err(closed());
            }
        }
    }
}

struct Supervisor<R: Role> {
    role: R,
    /// In the order in which they are tried.
    hosts: Vec<Host>,
    around: Surroundings,
    state: watch::Sender<State<R::Up>>,
}

impl<R: Role> Supervisor<R> {
    async fn run(&self) {
        let mut backoff = Backoff::default();
        let mut was_up = false;
        let mut next = 0;
        loop {
            let (host, session) = tokio::select! {
                connected = self.connect(&mut backoff, &mut next, was_up) => connected,
                () = self.around.closing.cancelled() => return,
            };
            let since = Instant::now();
            let closed = self.serve(&session).await;
            if self.around.closing.is_cancelled() {
                return;
            }
            was_up = true;
            self.state.send_replace(State::Down(None));
            warn!(
                broker = %host,
                reason = %closed.reason,
                "lost the connection for {}; connecting again",
                R::PURPOSE
            );
            session.close().await;
            if since.elapsed() > GOOD_AFTER {
                backoff = Backoff::default();
            }
            backoff.pause().await;
        }
    }

    /// Dials one host after the other, from `next` on, until it works, and pauses after each round.
    async fn connect(
        &self,
        backoff: &mut Backoff,
        next: &mut usize,
        was_up: bool,
    ) -> (&Host, Arc<Session>) {
        let Surroundings {
            address,
            name,
            tasks,
            stop,
            ..
        } = &self.around;
        let name = format!("{name} ({})", R::PURPOSE);
        let mut said: HashMap<&Host, (Instant, String)> = HashMap::new();
        loop {
            let mut fatal = None;
            for _ in &self.hosts {
                let host = &self.hosts[*next % self.hosts.len()];
                *next = (*next + 1) % self.hosts.len();
                let failure = match dial(address, host, &name).await {
                    Ok(dialled) => {
                        info!(broker = %host, "connected for {}", R::PURPOSE);
                        let making = Making::of(address);
                        let session = Session::start(dialled, making, tasks, stop);
                        return (host, session);
                    }
                    Err(failure) => failure,
                };
                let is_news = said.get(host).is_none_or(|(when, what)| {
                    *what != failure.message || when.elapsed() > REMIND_EVERY
                });
                if is_news {
                    self.complain(&failure);
                    said.insert(host, (Instant::now(), failure.message.clone()));
                }
                if !failure.temporary {
                    fatal.get_or_insert(failure.message);
                }
            }
            // Not before every host was asked: it may be the trouble of one. And who connected before may do so
            // again: passwords and permissions get mended.
            let fatal = fatal.filter(|_| !was_up).map(Into::into);
            self.state.send_replace(State::Down(fatal));
            backoff.pause().await;
        }
    }

    fn complain(&self, failure: &DialError) {
        let next = match (self.hosts.len(), failure.temporary) {
            (1, true) => "waiting for it",
            (1, false) => "trying again",
            _ => "trying the next host",
        };
        if failure.temporary {
            warn!("{}; {next}", failure.message);
        } else {
            error!("{}; {next}", failure.message);
        }
    }

    /// Lets the connection be used until it is lost.
    async fn serve(&self, session: &Arc<Session>) -> Closed {
        loop {
            let up = tokio::select! {
                up = self.role.set_up(session) => up,
                () = session.ended() => return session.end(),
            };
            let up = match up {
                Ok(up) => Arc::new(up),
                Err(closed) => return closed,
            };
            self.state.send_replace(State::Up {
                up: Arc::clone(&up),
                session: Arc::clone(session),
            });
            tokio::select! {
                () = self.role.worn_out(&up) => {}
                () = session.ended() => return session.end(),
            }
            // What is worn out is used until it is set up again: it may still do.
        }
    }
}

//! The broker as a whole: the listener, the timers, and the handle that stops them.

use std::net::{Shutdown, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::engine::{Shared, now};
use crate::{Error, Options, connection};

/// The broker. Start one with [`Broker::start`].
#[derive(Debug)]
pub struct Broker(());

impl Broker {
    /// Opens the data folder, brings back what is there, and listens.
    ///
    /// When this returns, clients can connect. Must be called within a tokio runtime.
    ///
    /// ```
    /// # #[tokio::main] async fn main() -> Result<(), tidings_broker::Error> {
    /// use tidings_broker::{Broker, Options};
    ///
    /// let broker = Broker::start(Options::ephemeral()).await?;
    /// println!("connect to {}", broker.amqp_url());
    /// broker.shutdown().await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// When the address is taken, the data folder cannot be used, or an option makes no sense.
    pub async fn start(options: Options) -> Result<Handle, Error> {
        options.check()?;
        let bind_error = |source| Error::bind(options.listen, source);
        let listener = TcpListener::bind(options.listen)
            .await
            .map_err(bind_error)?;
        let addr = listener.local_addr().map_err(bind_error)?;
        let shared = tokio::task::spawn_blocking(move || Shared::open(options))
            .await
            .map_err(|error| Error::options(format!("cannot start: {error}")))??;
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        tasks.spawn(accept(
            listener,
            shared.clone(),
            stop.clone(),
            tasks.clone(),
        ));
        tasks.spawn(keep_time(shared.clone(), stop.clone()));
        tracing::info!(%addr, "listening for AMQP");
        Ok(Handle {
            addr,
            shared,
            stop,
            tasks,
        })
    }
}

/// A running broker. Dropping it stops the broker; [`Handle::shutdown`] also waits for that.
#[derive(Debug)]
pub struct Handle {
    addr: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// How long connections may take to end before the log is closed under them.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(6);

impl Handle {
    /// Where clients connect.
    pub fn amqp_addr(&self) -> SocketAddr {
        self.addr
    }

    /// A URL for the default user on the default virtual host.
    pub fn amqp_url(&self) -> String {
        format!("amqp://guest:guest@{}/%2f", self.addr)
    }

    /// Completes if the broker can no longer store anything, with the reason: stop it then.
    ///
    /// What was confirmed is safe; a new start on the same folder finds it.
    pub async fn failed(&self) -> String {
        self.shared.signals().failed().await
    }

    /// Tells clients to go (`320 CONNECTION_FORCED`), waits for them for a few seconds, and syncs
    /// and closes the log.
    ///
    /// # Errors
    ///
    /// When the log could not be closed properly. What was confirmed is on disk nevertheless.
    pub async fn shutdown(self) -> Result<(), Error> {
        self.stop();
        if tokio::time::timeout(SHUTDOWN_TIMEOUT, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("some connections did not end in time");
        }
        let shared = self.shared.clone();
        tokio::task::spawn_blocking(move || shared.close_log())
            .await
            .map_err(|error| Error::options(format!("cannot stop: {error}")))?
    }

    fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.shared.signals().stop();
        self.shared.wake_all();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return close(listener),
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Mostly too many open files: it passes when connections end.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        tasks.spawn(connection::serve(stream, peer, shared.clone()));
    }
}

/// Stops listening at once. Closing is not enough: a process that is just being started by another
/// thread has a copy of the socket for a moment, and would keep the address from the next broker.
fn close(listener: TcpListener) {
    if let Err(error) = SockRef::from(&listener).shutdown(Shutdown::Both) {
        tracing::debug!(%error, "the listening socket was not shut down");
    }
}

/// Lets messages and queues expire in time, and spreads alarms.
async fn keep_time(shared: Arc<Shared>, stop: CancellationToken) {
    /// While publishers wait, how often to look whether they may go on.
    const ALARM_POLL: Duration = Duration::from_millis(50);
    const IDLE: Duration = Duration::from_secs(3600);
    let mut alarmed = false;
    loop {
        let due = shared.lock().expire();
        let mut pause = due.map_or(IDLE, |due| Duration::from_millis(due.saturating_sub(now())));
        let alarm = shared.alarm().is_some();
        if alarm != alarmed {
            alarmed = alarm;
            shared.wake_all();
        }
        if alarmed {
            pause = pause.min(ALARM_POLL);
        }
        let signals = shared.signals();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = signals.deadline.notified() => {}
            () = signals.changed() => shared.wake_all(),
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_is_free_when_it_is_let_go_of_even_if_a_copy_of_its_socket_is_open() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        listener.set_nonblocking(true).expect("set");
        let address = listener.local_addr().expect("an address");
        // What a process has that is just being started by somebody else.
        let copy = listener.try_clone().expect("a copy");
        close(TcpListener::from_std(listener).expect("a listener"));
        TcpListener::bind(address).await.expect("free");
        drop(copy);
    }
}

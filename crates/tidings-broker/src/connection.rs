//! One connection's task: bytes between the socket and the session, heartbeats, deadlines.
//!
//! It is one task, not a reader and a writer, so that an idle connection costs little. Everything
//! that concerns it wakes it in one way; it then looks around. It stops reading while the peer has
//! to wait (alarms, a log that cannot keep up, replies that are not fetched) and never waits for
//! one direction before it serves the other.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tidings_wire::{WireError, encode_heartbeat, reply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::admission::Login;
use crate::deadlines::{CLOSE_TIMEOUT, Deadlines, Due, Waiting};
use crate::engine::Shared;
use crate::handshake::{Agreed, Failed, greet, turn_away};
use crate::outbound::{Encoder, Outbound};
use crate::session::{Session, State};

/// What one read takes at most, and what is encoded before a write.
const READ_BYTES: usize = 64 * 1024;
const WRITE_BYTES: usize = 256 * 1024;

/// Why a connection is over.
type Over = String;

/// Serves one peer until either side ends it.
pub(crate) async fn serve(mut stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let mut input = BytesMut::with_capacity(1024);
    let limits = &shared.options.limits;
    let stranger = shared.admission.greet(peer.ip());
    let greeting = greet(&mut stream, &mut input, peer, &shared.options, &stranger);
    let greeted = tokio::select! {
        greeted = timeout(limits.handshake_timeout, greeting) => greeted,
        () = stranger.pushed_out() => {
            tracing::info!(
                %peer,
                "dropped before its login: there are `handshakes_max` other ones, or \
                 `handshakes_per_address_max` from its address"
            );
            return;
        }
    };
    let (agreed, _place) = match greeted {
        Ok(Ok(agreed)) => agreed,
        Ok(Err(failed)) => {
            return refuse(&mut stream, peer, failed, limits.refused_login_delay).await;
        }
        Err(_) => {
            tracing::info!(%peer, "dropped: no handshake within `handshake_timeout`");
            return;
        }
    };
    drop(stranger);
    let outbound = shared.connect(agreed.client.consumer_cancel_notify);
    let id = outbound.id.0;
    tracing::debug!(connection = id, %peer, user = %agreed.user, client = agreed.client.name, "connected");
    let mut connection = Connection::new(stream, input, shared, outbound, agreed);
    let over = connection.run().await;
    tracing::debug!(connection = id, over, "disconnected");
    if connection.session.state() == State::Closed {
        let Connection { mut stream, .. } = connection;
        linger(&mut stream).await;
    }
}

/// Lets a peer finish that goes on writing after both sides have said goodbye. A socket closed with
/// unread input would reset the connection, and the goodbye could be lost.
async fn linger(stream: &mut TcpStream) {
    let mut rest = vec![0; 4096];
    let drain = async {
        stream.shutdown().await?;
        while stream.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    // The connection is over in any case.
    let _ = timeout(CLOSE_TIMEOUT, drain).await;
}

async fn refuse(stream: &mut TcpStream, peer: SocketAddr, failed: Failed, delay: Duration) {
    let error = match failed {
        Failed::Gone(why) => return tracing::debug!(%peer, "no connection: {why}"),
        Failed::Close(error) => error,
        Failed::Login { error, login } => {
            hold_up(login, delay).await;
            match error {
                Some(error) => error,
                None => return,
            }
        }
    };
    tracing::info!(%peer, "no connection: {error}");
    // The peer may be gone; there is nobody else to tell.
    let _ = turn_away(stream, &error).await;
}

/// Lets whoever gave a wrong password wait, and count meanwhile, also if it hangs up.
async fn hold_up(login: Login, delay: Duration) {
    tokio::time::sleep(delay).await;
    drop(login);
}

struct Connection {
    stream: TcpStream,
    shared: Arc<Shared>,
    outbound: Arc<Outbound>,
    session: Session,
    encoder: Encoder,
    input: BytesMut,
    output: BytesMut,
    frame_max: u32,
    deadlines: Deadlines,
    /// `input` may hold more commands than the last turn took.
    more: bool,
}

impl Connection {
    fn new(
        stream: TcpStream,
        input: BytesMut,
        shared: Arc<Shared>,
        outbound: Arc<Outbound>,
        agreed: Agreed,
    ) -> Connection {
        let write_timeout = shared.options.limits.write_timeout;
        Connection {
            stream,
            encoder: Encoder::default(),
            more: !input.is_empty(),
            input,
            output: BytesMut::new(),
            frame_max: agreed.frame_max,
            deadlines: Deadlines::new(agreed.heartbeat, write_timeout, Instant::now()),
            session: Session::new(shared.clone(), outbound.clone(), agreed),
            shared,
            outbound,
        }
    }

    async fn run(&mut self) -> Over {
        let timer = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(timer);
        loop {
            match self.look_around() {
                Err(over) => return over,
                Ok(true) => {
                    // There is more to do, and others have to do, too.
                    tokio::task::yield_now().await;
                    continue;
                }
                Ok(false) => {}
            }
            let waiting = self.waiting();
            let deadline = self.deadlines.next(Instant::now(), waiting);
            if timer.is_elapsed() || deadline < timer.deadline() {
                timer.as_mut().reset(deadline);
            }
            self.release_buffers();
            tokio::select! {
                () = self.outbound.woken() => {}
                result = self.stream.readable(), if waiting.to_read => {
                    if let Err(error) = result { return error.to_string() }
                }
                result = self.stream.writable(), if waiting.to_write => {
                    if let Err(error) = result { return error.to_string() }
                }
                () = &mut timer => if let Err(over) = self.on_time() { return over },
            }
        }
    }

    /// Does what can be done without waiting. Gives whether there is more of it.
    fn look_around(&mut self) -> Result<bool, Over> {
        self.heed_signals();
        let written = self.write()?;
        if self.session.state() == State::Closed && self.output.is_empty() {
            return Err("closed".into());
        }
        let read = self.may_read() && self.read()?;
        Ok(written || read)
    }

    /// The broker stops, its log has failed, or an alarm has ended.
    fn heed_signals(&mut self) {
        let signals = self.shared.signals();
        if self.session.state() == State::Running {
            if let Some(failure) = signals.failure() {
                let text = format!("the broker's log has failed, nothing can be stored: {failure}");
                self.session
                    .close(&WireError::new(reply::INTERNAL_ERROR, text));
            } else if signals.is_stopping() {
                self.session.close(&WireError::new(
                    reply::CONNECTION_FORCED,
                    "the broker is stopping",
                ));
            } else if let Some(error) = self.session.sent_away() {
                self.session.close(&error);
            }
        }
        if self.session.is_blocked() {
            self.session.block_if_alarmed();
        }
        if self.session.state() != State::Running && self.deadlines.closing_since.is_none() {
            self.deadlines.closing_since = Some(Instant::now());
        }
    }

    /// Confirms, encodes and writes until the socket is full. Gives whether there is more to write
    /// at once.
    fn write(&mut self) -> Result<bool, Over> {
        let signals = self.shared.signals();
        let durable = signals.durable();
        let mut waits = self.session.confirm(durable);
        let failed = signals.failure().is_some();
        let filled = self.encoder.fill(
            &self.outbound,
            durable,
            failed,
            &mut self.output,
            WRITE_BYTES,
            self.frame_max,
        );
        waits |= filled.map_err(|error| {
            tracing::error!(
                connection = self.outbound.id.0,
                "dropped: the broker made a frame that cannot be written; please report this: {error}"
            );
            error.to_string()
        })?;
        if waits {
            signals.wake_when_durable(&self.outbound);
            if signals.durable() > durable {
                return Ok(true);
            }
        }
        while !self.output.is_empty() {
            match self.stream.try_write(&self.output) {
                Ok(written) => {
                    self.output.advance(written);
                    self.deadlines.last_write = Instant::now();
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.to_string()),
            }
        }
        let limit = self.shared.options.limits.outbound_bytes_max;
        if self.outbound.bytes() < limit / 2 && self.outbound.take_paused() {
            self.shared.lock().resume(self.outbound.id);
        }
        Ok(self.output.is_empty() && self.encoder.has_more(&self.outbound, durable))
    }

    /// Whether what the peer says is welcome now.
    fn may_read(&self) -> bool {
        let limits = &self.shared.options.limits;
        !self.session.is_blocked()
            // Replies that are not fetched; deliveries alone never get there.
            && self.outbound.bytes() < limits.outbound_bytes_max.saturating_mul(8)
            && !self.must_wait_for_the_log()
    }

    fn must_wait_for_the_log(&self) -> bool {
        let signals = self.shared.signals();
        let is_behind = || signals.unsynced_bytes() > self.shared.options.limits.unsynced_bytes_max;
        if !is_behind() || signals.failure().is_some() {
            return false;
        }
        signals.wake_when_durable(&self.outbound);
        // It may have caught up before it knew whom to wake.
        is_behind()
    }

    /// Takes what the peer has sent, and a turn of it. Gives whether there may be more.
    fn read(&mut self) -> Result<bool, Over> {
        if !self.more {
            self.input.reserve(READ_BYTES);
            match self.stream.try_read_buf(&mut self.input) {
                Ok(0) => return Err("the peer hung up".into()),
                Ok(_) => self.deadlines.last_read = Instant::now(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error.to_string()),
            }
        }
        self.more = self.session.turn(&mut self.input);
        Ok(true)
    }

    fn waiting(&self) -> Waiting {
        Waiting {
            to_write: !self.output.is_empty(),
            to_read: self.may_read(),
        }
    }

    fn on_time(&mut self) -> Result<(), Over> {
        let waiting = self.waiting();
        match self.deadlines.due(Instant::now(), waiting) {
            Due::Nothing => Ok(()),
            Due::Heartbeat => {
                encode_heartbeat(&mut self.output);
                Ok(())
            }
            Due::End(why) => Err(why.into()),
        }
    }

    /// An idle connection keeps no buffers.
    fn release_buffers(&mut self) {
        if self.input.is_empty() {
            self.input = BytesMut::new();
        }
        if self.output.is_empty() {
            self.output = BytesMut::new();
        }
    }
}

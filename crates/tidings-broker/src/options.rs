//! How a broker is set up. Every limit has a name and a unit, and a default that somebody can
//! defend.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::Error;
use crate::users::User;

/// Where a broker listens, where it keeps its data, who may use it, and its limits.
///
/// ```
/// use tidings_broker::Options;
///
/// // For a test: any free port, everything in memory.
/// let options = Options::ephemeral();
/// // For a service: the usual port, durable.
/// let options = Options::durable("./data").listen(([127, 0, 0, 1], 5672));
/// ```
#[derive(Debug, Clone)]
pub struct Options {
    pub(crate) listen: SocketAddr,
    pub(crate) data: Option<PathBuf>,
    pub(crate) users: Vec<User>,
    pub(crate) limits: Limits,
}

impl Options {
    /// A broker on a free loopback port that keeps everything in memory.
    ///
    /// Its confirms promise only that: what it confirmed is gone with the process.
    pub fn ephemeral() -> Options {
        Options {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            data: None,
            users: vec![User::guest()],
            limits: Limits::default(),
        }
    }

    /// A broker on a free loopback port that keeps durable things in this folder.
    pub fn durable(data: impl Into<PathBuf>) -> Options {
        Options {
            data: Some(data.into()),
            ..Options::ephemeral()
        }
    }

    /// Listens here. Port 0 picks a free one; [`Handle::amqp_addr`](crate::Handle::amqp_addr) says
    /// which.
    pub fn listen(mut self, addr: impl Into<SocketAddr>) -> Options {
        self.listen = addr.into();
        self
    }

    /// Lets these users in, and nobody else: the default user `guest` goes when it is not among
    /// them.
    pub fn users(mut self, users: impl IntoIterator<Item = User>) -> Options {
        self.users = users.into_iter().collect();
        self
    }

    /// Sets the limits.
    pub fn limits(mut self, limits: Limits) -> Options {
        self.limits = limits;
        self
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let limits = &self.limits;
        let wrong = |what: String| Err(Error::options(what));
        if limits.frame_max < FRAME_MIN_SIZE {
            return wrong(format!(
                "`frame_max` is {} but the least that clients must be able to use is {FRAME_MIN_SIZE}",
                limits.frame_max
            ));
        }
        if limits.frame_max > FRAME_MAX_MOST {
            return wrong(format!(
                "`frame_max` is {} but at most {FRAME_MAX_MOST} can be stored of a message's \
                 properties",
                limits.frame_max
            ));
        }
        if limits.body_bytes_max > BODY_BYTES_MOST {
            return wrong(format!(
                "`body_bytes_max` is {} but at most {BODY_BYTES_MOST} can be stored of a message's \
                 body",
                limits.body_bytes_max
            ));
        }
        if limits.channel_max == 0 || limits.connections_max == 0 {
            return wrong("`channel_max` and `connections_max` must be at least 1".into());
        }
        // A buffer that grows has up to twice the room that is used.
        let body = limits.body_bytes_max * 2 + u64::from(limits.frame_max) + UNFINISHED_BYTES;
        if limits.connection_pending_bytes_max < body {
            return wrong(format!(
                "`connection_pending_bytes_max` is {} but one body of `body_bytes_max` ({}) may take \
                 {body} while it comes in",
                limits.connection_pending_bytes_max, limits.body_bytes_max
            ));
        }
        if limits.pending_bytes_max < limits.connection_pending_bytes_max {
            return wrong(format!(
                "`pending_bytes_max`, for all connections together, is {} but \
                 `connection_pending_bytes_max` lets one have {}",
                limits.pending_bytes_max, limits.connection_pending_bytes_max
            ));
        }
        if limits.handshake_timeout.is_zero() {
            return wrong("`handshake_timeout` must be longer than nothing".into());
        }
        if limits.heartbeat.as_secs() > u64::from(u16::MAX) {
            return wrong(format!(
                "`heartbeat` is {:?} but the protocol has room for {} seconds",
                limits.heartbeat,
                u16::MAX
            ));
        }
        Ok(())
    }
}

/// The smallest `frame_max` a peer may ask for: RabbitMQ 4's, so that its clients agree.
pub(crate) const FRAME_MIN_SIZE: u32 = 8192;

/// The largest `frame_max` and `body_bytes_max` that can be set. A record of the log has a length of
/// 32 bits, and holds the properties, the body and what the broker adds to them.
const FRAME_MAX_MOST: u32 = 256 * 1024 * 1024;
const BODY_BYTES_MOST: u64 = 1024 * 1024 * 1024;

/// What a body that is not finished counts besides its bytes: the buffer that its beginning was read
/// into stays for it.
pub(crate) const UNFINISHED_BYTES: u64 = 64 * 1024;

/// What one broker allows. Change a field of the default: `Limits { channel_max: 16,
/// ..Limits::default() }`.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at once; a further one is closed when it arrives. Default 8192.
    pub connections_max: usize,
    /// The highest channel number of a connection, hence its channels. Default 2047.
    pub channel_max: u16,
    /// Bytes of a frame, everything included. Default 131072, at most 256 MiB.
    pub frame_max: u32,
    /// Bytes of a message's body. Default 16 MiB, at most 1 GiB.
    pub body_bytes_max: u64,
    /// How long a peer may take from connecting to `connection.open`. Default 10 s.
    pub handshake_timeout: Duration,
    /// The heartbeat proposed to clients; zero proposes none. Default 60 s.
    pub heartbeat: Duration,
    /// Bytes of messages in queues, and on their way from there to consumers, above which publishers
    /// are not read any more. Default 1 GiB.
    pub memory_bytes_max: u64,
    /// Bytes that all connections together may hold in bodies that are not finished and transactions
    /// that are not committed, besides `memory_bytes_max`. Above it the connection is closed (506)
    /// that holds the one which has not grown for the longest time. Default 512 MiB.
    pub pending_bytes_max: u64,
    /// The same for one connection. A transaction that takes it over this closes its channel (406),
    /// a body its connection (506). At least twice `body_bytes_max` and a little. Default 256 MiB.
    pub connection_pending_bytes_max: u64,
    /// Bytes waiting for one connection's peer to read them, above which its consumers pause.
    /// Default 1 MiB.
    pub outbound_bytes_max: usize,
    /// Bytes appended to the log and not yet synced, above which publishers are not read. Default
    /// 16 MiB.
    pub unsynced_bytes_max: u64,
    /// How long a peer may leave written bytes unread before its connection is dropped. Default 60
    /// s.
    pub write_timeout: Duration,
    /// Messages and settlements that one transaction may hold before `tx.commit`. Default 100000.
    pub tx_operations_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: 8192,
            channel_max: 2047,
            frame_max: 128 * 1024,
            body_bytes_max: 16 * 1024 * 1024,
            handshake_timeout: Duration::from_secs(10),
            heartbeat: Duration::from_secs(60),
            memory_bytes_max: 1024 * 1024 * 1024,
            pending_bytes_max: 512 * 1024 * 1024,
            connection_pending_bytes_max: 256 * 1024 * 1024,
            outbound_bytes_max: 1024 * 1024,
            unsynced_bytes_max: 16 * 1024 * 1024,
            write_timeout: Duration::from_secs(60),
            tx_operations_max: 100_000,
        }
    }
}

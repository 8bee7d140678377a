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
        if limits.channel_max == 0 {
            return wrong("`channel_max` must be at least 1".into());
        }
        for (name, limit) in [
            ("connections_max", limits.connections_max),
            (
                "connections_per_address_max",
                limits.connections_per_address_max,
            ),
            ("handshakes_max", limits.handshakes_max),
            (
                "handshakes_per_address_max",
                limits.handshakes_per_address_max,
            ),
            (
                "refused_logins_per_address_max",
                limits.refused_logins_per_address_max,
            ),
            ("channels_max", limits.channels_max),
        ] {
            if limit == 0 {
                return wrong(format!("`{name}` must be at least 1"));
            }
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
    /// Connections at once that have logged in; a further one is refused (530). Default 8192.
    pub connections_max: usize,
    /// The same from one address (in IPv6: one network of 64 bits). Default 4096.
    pub connections_per_address_max: usize,
    /// Connections at once that have not logged in yet; above it the one is dropped that has been there
    /// for the longest time. Default 2048.
    pub handshakes_max: usize,
    /// The same from one address. Default 512.
    pub handshakes_per_address_max: usize,
    /// Refused logins from one address that wait for their answer; while there are as many, no
    /// other login from there is looked at (530). Default 16.
    pub refused_logins_per_address_max: usize,
    /// How long a peer waits for the answer that its login is refused. Default 1 s.
    pub refused_login_delay: Duration,
    /// The highest channel number of a connection, hence its channels. Default 2047.
    pub channel_max: u16,
    /// Channels of all connections together; a connection that opens a further one is closed (530).
    /// Default 131072.
    pub channels_max: usize,
    /// Queues; a further one is refused (406). What is in the data folder is kept in any case; the same
    /// is true of exchanges and bindings. Default 100000.
    pub queues_max: usize,
    /// Exchanges besides those that are always there. Default 50000.
    pub exchanges_max: usize,
    /// Bindings besides those of the default exchange. Default 500000.
    pub bindings_max: usize,
    /// Bytes of a frame, everything included. Default 131072, at most 256 MiB.
    pub frame_max: u32,
    /// Bytes of a message's body. Default 16 MiB, at most 1 GiB.
    pub body_bytes_max: u64,
    /// How long a peer may take from connecting to `connection.open`. Default 10 s.
    pub handshake_timeout: Duration,
    /// The heartbeat proposed to clients; zero proposes none. Default 60 s.
    pub heartbeat: Duration,
    /// Bytes that messages in queues, and on their way from there to consumers, take in memory. From
    /// half of it on, those that the log has and that are not wanted soon are let go of, and read
    /// back before their turn. Above it, since what is left cannot go away, publishers are not read any
    /// more. Default 1 GiB.
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
            connections_per_address_max: 4096,
            handshakes_max: 2048,
            handshakes_per_address_max: 512,
            refused_logins_per_address_max: 16,
            refused_login_delay: Duration::from_secs(1),
            channel_max: 2047,
            channels_max: 131_072,
            queues_max: 100_000,
            exchanges_max: 50_000,
            bindings_max: 500_000,
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

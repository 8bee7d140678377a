//! A TCP proxy that breaks connections: it cuts them, delays them, refuses them, or goes on holding
//! them open while nothing passes any more (half-open).

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{sleep, timeout},
};

/// Bytes that pass at once.
const CHUNK_BYTES: usize = 16 * 1024;

/// How long to try to reach the server.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// What is wrong with the network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Weather {
    /// Connections with a number up to this one are cut.
    cut_until: u64,
    /// Connections with a number up to this one are silent.
    silent_until: u64,
    /// How long each chunk takes on its way.
    delay: Duration,
    /// New connections are closed at once.
    refuses: bool,
}

/// A proxy in front of one server.
pub(crate) struct Proxy {
    port: u16,
    weather: watch::Sender<Weather>,
    connections: Arc<AtomicU64>,
}

/// The proxies in front of all nodes of a broker.
pub(crate) struct Proxies(pub(crate) Vec<Proxy>);

impl Proxies {
    /// Ends all connections that there are.
    pub(crate) fn cut(&self) {
        self.0.iter().for_each(Proxy::cut);
    }

    /// Lets nothing pass any more on the connections that there are; new ones work.
    pub(crate) fn silence(&self) {
        self.0.iter().for_each(Proxy::silence);
    }

    /// Delays everything by this time, each way.
    pub(crate) fn delay(&self, delay: Duration) {
        self.0.iter().for_each(|proxy| proxy.delay(delay));
    }

    /// Refuses connections, and cuts those that there are.
    pub(crate) fn refuse(&self) {
        self.0.iter().for_each(Proxy::refuse);
    }

    /// Fine weather; connections that went silent are cut.
    pub(crate) fn heal(&self) {
        self.0.iter().for_each(Proxy::heal);
    }
}

impl Proxy {
    /// Passes connections on to `to`.
    pub(crate) async fn start(to: u16) -> Result<Self> {
        Self::start_at(tidings_testing::servers::free_port()?, to).await
    }

    /// The same, for those who come to `from`.
    pub(crate) async fn start_at(from: u16, to: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", from)).await;
        let listener = listener.context("cannot start a proxy")?;
        let (weather, _) = watch::channel(Weather::default());
        let connections = Arc::new(AtomicU64::new(0));
        let to = SocketAddr::from(([127, 0, 0, 1], to));
        tokio::spawn(accept(
            listener,
            to,
            weather.clone(),
            Arc::clone(&connections),
        ));
        Ok(Self {
            port: from,
            weather,
            connections,
        })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Ends all connections that there are.
    pub(crate) fn cut(&self) {
        let now = self.connections.load(Ordering::Acquire);
        self.weather.send_modify(|weather| weather.cut_until = now);
    }

    /// Lets nothing pass any more on the connections that there are; new ones work.
    pub(crate) fn silence(&self) {
        let now = self.connections.load(Ordering::Acquire);
        self.weather
            .send_modify(|weather| weather.silent_until = now);
    }

    /// Delays everything by this time, each way.
    pub(crate) fn delay(&self, delay: Duration) {
        self.weather.send_modify(|weather| weather.delay = delay);
    }

    /// Refuses connections, and cuts those that there are.
    pub(crate) fn refuse(&self) {
        self.weather.send_modify(|weather| weather.refuses = true);
        self.cut();
    }

    /// Fine weather; connections that went silent are cut.
    pub(crate) fn heal(&self) {
        self.weather.send_modify(|weather| {
            weather.cut_until = weather.cut_until.max(weather.silent_until);
            weather.delay = Duration::ZERO;
            weather.refuses = false;
        });
    }
}

async fn accept(
    listener: TcpListener,
    to: SocketAddr,
    weather: watch::Sender<Weather>,
    connections: Arc<AtomicU64>,
) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        if weather.borrow().refuses {
            continue;
        }
        let number = connections.fetch_add(1, Ordering::AcqRel) + 1;
        tokio::spawn(pass(client, to, weather.subscribe(), number));
    }
}

async fn pass(client: TcpStream, to: SocketAddr, weather: watch::Receiver<Weather>, number: u64) {
    let Ok(Ok(server)) = timeout(CONNECT_MAX, TcpStream::connect(to)).await else {
        return;
    };
    let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut until_cut = weather.clone();
    tokio::select! {
        () = one_way(from_client, to_server, weather.clone(), number) => {}
        () = one_way(from_server, to_client, weather, number) => {}
        _ = until_cut.wait_for(|weather| weather.cut_until >= number) => {}
    }
}

async fn one_way(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    weather: watch::Receiver<Weather>,
    number: u64,
) {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = from.read(&mut chunk).await;
        let Weather {
            silent_until,
            delay,
            ..
        } = *weather.borrow();
        if silent_until >= number {
            // Not even the end passes, until the connection is cut.
            std::future::pending::<()>().await;
        }
        let Ok(count @ 1..) = read else {
            return;
        };
        if !delay.is_zero() {
            sleep(delay).await;
        }
        if to.write_all(&chunk[..count]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> (Proxy, TcpStream) {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = server.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.into_split();
                    tokio::io::copy(&mut from, &mut to).await
                });
            }
        });
        let proxy = Proxy::start(port).await.unwrap();
        let client = connect(&proxy).await;
        (proxy, client)
    }

    async fn connect(proxy: &Proxy) -> TcpStream {
        TcpStream::connect(("127.0.0.1", proxy.port()))
            .await
            .unwrap()
    }

    /// What comes back: the byte, the end, or nothing for a while.
    async fn ask(client: &mut TcpStream, patience: Duration) -> Option<usize> {
        let _ = client.write_all(b"x").await;
        let mut byte = [0];
        let answer = timeout(patience, client.read(&mut byte)).await;
        answer.ok().map(|read| read.unwrap_or(0))
    }

    const LONG: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn what_is_cut_ends_and_what_comes_after_works() {
        let (proxy, mut client) = echo().await;
        assert_eq!(ask(&mut client, LONG).await, Some(1));
        proxy.cut();
        assert_eq!(ask(&mut client, LONG).await, Some(0));
        assert_eq!(ask(&mut connect(&proxy).await, LONG).await, Some(1));
    }

    #[tokio::test]
    async fn what_is_silent_neither_answers_nor_ends_until_it_is_healed() {
        let (proxy, mut client) = echo().await;
        assert_eq!(ask(&mut client, LONG).await, Some(1));
        proxy.silence();
        assert_eq!(ask(&mut client, Duration::from_millis(200)).await, None);
        assert_eq!(ask(&mut connect(&proxy).await, LONG).await, Some(1));
        proxy.heal();
        assert_eq!(ask(&mut client, LONG).await, Some(0));
    }

    #[tokio::test]
    async fn what_is_refused_ends_at_once() {
        let (proxy, mut client) = echo().await;
        proxy.refuse();
        assert_eq!(ask(&mut client, LONG).await, Some(0));
        assert_eq!(ask(&mut connect(&proxy).await, LONG).await, Some(0));
        proxy.heal();
        assert_eq!(ask(&mut connect(&proxy).await, LONG).await, Some(1));
    }
}

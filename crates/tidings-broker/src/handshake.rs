//! From the first byte of a peer to `connection.open-ok`: the version, who it is, the limits, the
//! virtual host.
//!
//! The peer is a stranger here, so that everything it sends is small and all of it together has one
//! deadline.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tidings_wire::{
    ConnectionClose, ConnectionCloseOk, ConnectionOpenOk, ConnectionStart, ConnectionStartOk,
    ConnectionTune, ConnectionTuneOk, EncodeMethod, Frame, HeaderCheck, Method, PROTOCOL_HEADER,
    Payload, ShortStr, Table, Value, WireError, check_protocol_header, decode_frame, encode_method,
    reply,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::admission::{Login, Place, Stranger};
use crate::options::{FRAME_MIN_SIZE, Options};
use crate::users::{Refused, login, parse_plain};

/// What the two sides agreed on.
#[derive(Debug, Clone)]
pub(crate) struct Agreed {
    pub(crate) channel_max: u16,
    pub(crate) frame_max: u32,
    /// Zero is none.
    pub(crate) heartbeat: Duration,
    pub(crate) user: ShortStr,
    pub(crate) client: Client,
}

/// What the client said of itself.
#[derive(Debug, Clone, Default)]
pub(crate) struct Client {
    pub(crate) name: String,
    pub(crate) consumer_cancel_notify: bool,
    pub(crate) connection_blocked: bool,
    authentication_failure_close: bool,
}

/// Why a handshake led to no connection.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The peer went away, or spoke something else; there is nobody to tell.
    Gone(String),
    /// The peer is told why.
    Close(WireError),
    /// Wrong user or password. The peer is told when it has waited, if it understands that.
    Login {
        error: Option<WireError>,
        login: Login,
    },
}

impl From<std::io::Error> for Failed {
    fn from(error: std::io::Error) -> Failed {
        Failed::Gone(error.to_string())
    }
}

impl From<WireError> for Failed {
    fn from(error: WireError) -> Failed {
        Failed::Close(error)
    }
}

/// Greets a peer; `input` is what came behind the handshake.
pub(crate) async fn greet(
    stream: &mut TcpStream,
    input: &mut BytesMut,
    peer: SocketAddr,
    options: &Options,
    stranger: &Stranger,
) -> Result<(Agreed, Place), Failed> {
    let mut talk = Talk {
        stream,
        input,
        out: BytesMut::new(),
    };
    talk.header().await?;
    let start = ConnectionStart {
        version_major: 0,
        version_minor: 9,
        server_properties: server_properties(),
        mechanisms: Bytes::from_static(b"PLAIN AMQPLAIN"),
        locales: Bytes::from_static(b"en_US"),
    };
    let start_ok: ConnectionStartOk = talk.ask(&start).await?;
    let client = Client::read(&start_ok.client_properties);
    let login = stranger.log_in()?;
    let user = match authenticate(&start_ok, peer.ip(), options) {
        Err(error) if error.code() == reply::ACCESS_REFUSED => {
            let told = client.authentication_failure_close;
            let error = told.then_some(error);
            return Err(Failed::Login { error, login });
        }
        result => result?,
    };
    drop(login);
    let limits = &options.limits;
    let tune = ConnectionTune {
        channel_max: limits.channel_max,
        frame_max: limits.frame_max,
        heartbeat: limits.heartbeat.as_secs() as u16,
    };
    let tune_ok: ConnectionTuneOk = talk.ask(&tune).await?;
    let channel_max = negotiate("channel_max", tune_ok.channel_max, tune.channel_max, 1)?;
    let frame_max = negotiate(
        "frame_max",
        tune_ok.frame_max,
        tune.frame_max,
        FRAME_MIN_SIZE,
    )?;
    let place = talk.open(stranger).await?;
    let heartbeat = Duration::from_secs(tune_ok.heartbeat.into());
    let agreed = Agreed {
        channel_max,
        frame_max,
        heartbeat,
        user,
        client,
    };
    Ok((agreed, place))
}

/// The client may lower a limit; zero means "as you say".
fn negotiate<N>(what: &str, client: N, server: N, least: N) -> Result<N, WireError>
where
    N: Copy + Ord + Default + std::fmt::Display,
{
    if client == N::default() {
        return Ok(server);
    }
    let wrong = |relation: &str, bound: N| {
        let text = format!("negotiated {what} = {client} is {relation} allowed value ({bound})");
        Err(WireError::new(reply::NOT_ALLOWED, text))
    };
    if client < least {
        return wrong("lower than the minimum", least);
    }
    if client > server {
        return wrong("higher than the maximum", server);
    }
    Ok(client)
}

fn authenticate(
    start_ok: &ConnectionStartOk,
    peer: IpAddr,
    options: &Options,
) -> Result<ShortStr, WireError> {
    let mechanism = &start_ok.mechanism;
    let credentials = if *mechanism == "PLAIN" {
        parse_plain(&start_ok.response).map(|(user, password)| (user.to_vec(), password.to_vec()))
    } else if *mechanism == "AMQPLAIN" {
        parse_amqplain(&start_ok.response)
    } else {
        let text = format!("unknown authentication mechanism '{mechanism}'");
        return Err(WireError::new(reply::COMMAND_INVALID, text));
    };
    let refused = || {
        let text = format!(
            "Login was refused using authentication mechanism {mechanism}. For details see the \
             broker logfile."
        );
        WireError::new(reply::ACCESS_REFUSED, text)
    };
    let (user, password) = credentials.ok_or_else(refused)?;
    match login(&options.users, &user, &password, peer) {
        Ok(()) => ShortStr::try_from(Bytes::from(user)).map_err(|_| refused()),
        Err(why) => {
            let why = match why {
                Refused::Credentials => "user or password is wrong",
                Refused::NotLoopback => "the user can only connect from this machine",
            };
            let user = String::from_utf8_lossy(&user).into_owned();
            tracing::warn!(%peer, user, why, "login refused");
            Err(refused())
        }
    }
}

/// AMQPLAIN is a table with `LOGIN` and `PASSWORD`, without the length before it.
fn parse_amqplain(response: &Bytes) -> Option<(Vec<u8>, Vec<u8>)> {
    let table = Table::parse(response.clone()).ok()?;
    let text = |name| match table.get(name)? {
        Value::LongStr(bytes) => Some(bytes.to_vec()),
        _ => None,
    };
    Some((text("LOGIN")?, text("PASSWORD")?))
}

impl Client {
    fn read(properties: &Table) -> Client {
        let text = |name| {
            properties
                .get(name)
                .and_then(|value| value.as_str().map(str::to_owned))
        };
        let capabilities = match properties.get("capabilities") {
            Some(Value::Table(table)) => table,
            _ => Table::default(),
        };
        let can = |name| capabilities.get(name) == Some(Value::Bool(true));
        Client {
            name: text("connection_name")
                .or_else(|| text("product"))
                .unwrap_or_default(),
            consumer_cancel_notify: can("consumer_cancel_notify"),
            connection_blocked: can("connection.blocked"),
            authentication_failure_close: can("authentication_failure_close"),
        }
    }
}

/// What the server says of itself. `product` and `version` are ours; the capabilities are
/// RabbitMQ's words.
fn server_properties() -> Table {
    const CAPABILITIES: [&str; 9] = [
        "publisher_confirms",
        "exchange_exchange_bindings",
        "basic.nack",
        "consumer_cancel_notify",
        "connection.blocked",
        "consumer_priorities",
        "authentication_failure_close",
        "per_consumer_qos",
        "direct_reply_to",
    ];
    let text = |text: &'static str| Value::LongStr(Bytes::from_static(text.as_bytes()));
    let mut capabilities = Table::builder();
    for name in CAPABILITIES {
        capabilities.push(&ShortStr::from_static(name), &Value::Bool(true));
    }
    let mut properties = Table::builder();
    for (name, value) in [
        ("capabilities", Value::Table(capabilities.build())),
        ("cluster_name", text("tidings")),
        ("copyright", text("Copyright (c) the Tidings authors")),
        ("information", text("Licensed under MIT or Apache-2.0")),
        ("platform", text("Rust")),
        ("product", text("RabbitMQ")),
        ("version", text(env!("CARGO_PKG_VERSION"))),
    ] {
        properties.push(&ShortStr::from_static(name), &value);
    }
    properties.build()
}

/// The two ends of a conversation that takes turns.
struct Talk<'a> {
    stream: &'a mut TcpStream,
    input: &'a mut BytesMut,
    out: BytesMut,
}

impl Talk<'_> {
    async fn header(&mut self) -> Result<(), Failed> {
        loop {
            match check_protocol_header(self.input) {
                HeaderCheck::Accepted => return Ok(()),
                HeaderCheck::Incomplete => self.read().await?,
                HeaderCheck::OtherVersion | HeaderCheck::NotAmqp => {
                    self.stream.write_all(&PROTOCOL_HEADER).await?;
                    return Err(Failed::Gone("it does not speak AMQP 0-9-1".into()));
                }
            }
        }
    }

    /// Sends a method and waits for the one that answers it.
    async fn ask<A: TryFromMethod>(&mut self, question: &impl EncodeMethod) -> Result<A, Failed> {
        self.say(question).await?;
        let method = self.hear().await?;
        let (class_id, method_id) = (method.class_id(), method.method_id());
        A::try_from_method(method).ok_or_else(|| {
            let text = format!("expected {}, got method {class_id}.{method_id}", A::NAME);
            Failed::Close(WireError::new(reply::COMMAND_INVALID, text))
        })
    }

    async fn open(&mut self, stranger: &Stranger) -> Result<Place, Failed> {
        let Method::ConnectionOpen(open) = self.hear().await? else {
            return Err(WireError::new(reply::COMMAND_INVALID, "expected connection.open").into());
        };
        if open.virtual_host != "/" {
            let text = format!("vhost {} not found", open.virtual_host);
            return Err(WireError::new(reply::NOT_ALLOWED, text).into());
        }
        let place = stranger.let_in()?;
        self.say(&ConnectionOpenOk {}).await?;
        Ok(place)
    }

    async fn say(&mut self, method: &impl EncodeMethod) -> Result<(), Failed> {
        encode_method(&mut self.out, 0, method);
        self.stream.write_all(&self.out).await?;
        self.out.clear();
        Ok(())
    }

    /// The next method on channel 0. A client that closes now is answered and gone.
    async fn hear(&mut self) -> Result<Method, Failed> {
        loop {
            match decode_frame(self.input, FRAME_MIN_SIZE)? {
                None => self.read().await?,
                Some(Frame {
                    payload: Payload::Heartbeat,
                    ..
                }) => {}
                Some(Frame {
                    channel: 0,
                    payload: Payload::Method(method),
                }) => {
                    if let Method::ConnectionClose(_) = method {
                        self.say(&ConnectionCloseOk {}).await?;
                        return Err(Failed::Gone("it closed the connection".into()));
                    }
                    return Ok(method);
                }
                Some(_) => {
                    let text = "only methods of channel 0 are allowed before connection.open-ok";
                    return Err(WireError::new(reply::UNEXPECTED_FRAME, text).into());
                }
            }
        }
    }

    async fn read(&mut self) -> Result<(), Failed> {
        match self.stream.read_buf(self.input).await? {
            0 => Err(Failed::Gone("it hung up".into())),
            _ => Ok(()),
        }
    }
}

/// Tells a peer why there will be no connection, and gives it a moment to answer.
pub(crate) async fn turn_away(stream: &mut TcpStream, error: &WireError) -> std::io::Result<()> {
    let mut out = BytesMut::new();
    encode_method(&mut out, 0, &close_method(error));
    stream.write_all(&out).await?;
    let mut rest = [0; 512];
    let deadline = tokio::time::sleep(Duration::from_secs(1));
    tokio::pin!(deadline);
    loop {
        tokio::select! {
            read = stream.read(&mut rest) => if matches!(read, Ok(0) | Err(_)) { return Ok(()) },
            () = &mut deadline => return Ok(()),
        }
    }
}

/// `connection.close` for an error.
pub(crate) fn close_method(error: &WireError) -> ConnectionClose {
    ConnectionClose {
        reply_code: error.code(),
        reply_text: ShortStr::truncated(&error.to_string()),
        class_id: error.class_id(),
        method_id: error.method_id(),
    }
}

trait TryFromMethod: Sized {
    const NAME: &str;
    fn try_from_method(method: Method) -> Option<Self>;
}

impl TryFromMethod for ConnectionStartOk {
    const NAME: &str = "connection.start-ok";
    fn try_from_method(method: Method) -> Option<Self> {
        if let Method::ConnectionStartOk(method) = method {
            Some(method)
        } else {
            None
        }
    }
}

impl TryFromMethod for ConnectionTuneOk {
    const NAME: &str = "connection.tune-ok";
    fn try_from_method(method: Method) -> Option<Self> {
        if let Method::ConnectionTuneOk(method) = method {
            Some(method)
        } else {
            None
        }
    }
}

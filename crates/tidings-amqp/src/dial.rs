//! From an address to an open connection: TCP, TLS, the protocol header, who we are, how large
//! frames may be, which virtual host.

use std::{io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tidings_wire::{
    ConnectionClose, ConnectionCloseOk, ConnectionOpen, ConnectionStart, ConnectionStartOk,
    ConnectionTuneOk, FRAME_BYTES_MIN, Method, PROTOCOL_HEADER, Payload, ShortStr, Table, Value,
    decode_frame, encode_method, reply,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::address::{Address, Host, TlsFiles};

/// An open connection, before anything runs on it.
pub(crate) struct Dialled {
    pub(crate) reader: Box<dyn AsyncRead + Send + Unpin>,
    pub(crate) writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// What was read beyond the handshake.
    pub(crate) read: BytesMut,
    pub(crate) frame_bytes_max: u32,
    pub(crate) channel_max: u16,
    /// Zero if both sides do without.
    pub(crate) heartbeat: Duration,
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) struct DialError {
    /// Waiting and trying again can help.
    pub(crate) temporary: bool,
    pub(crate) message: String,
}

impl DialError {
    fn temporary(message: impl Into<String>) -> Self {
        Self {
            temporary: true,
            message: message.into(),
        }
    }

    fn fatal(message: impl Into<String>) -> Self {
        Self {
            temporary: false,
            message: message.into(),
        }
    }
}

/// Frames as large as RabbitMQ's default; a larger limit wins nothing.
const FRAME_BYTES_MAX: u32 = 131_072;
const CHANNEL_MAX: u16 = 2047;

/// Connects with one of the address's hosts, within its timeout.
pub(crate) async fn dial(address: &Address, host: &Host, name: &str) -> Result<Dialled, DialError> {
    match timeout(address.connect_timeout, connect(address, host, name)).await {
        Ok(result) => result,
        Err(_) => Err(DialError::temporary(format!(
            "the broker at `{host}` did not answer within {:?}",
            address.connect_timeout
        ))),
    }
}

async fn connect(address: &Address, host: &Host, name: &str) -> Result<Dialled, DialError> {
    let tcp = TcpStream::connect((&*host.name, host.port))
        .await
        .and_then(|tcp| tcp.set_nodelay(true).map(|()| tcp))
        .map_err(|error| {
            DialError::temporary(format!("the broker at `{host}` cannot be reached: {error}"))
        })?;
    match &address.tls {
        None => {
            let mut handshake = Handshake::new(tcp, address, host);
            let tuned = handshake.run(name).await?;
            let (reader, writer) = handshake.stream.into_split();
            Ok(tuned.dialled(Box::new(reader), Box::new(writer), handshake.read))
        }
        Some(files) => {
            let stream = secure(tcp, host, files).await?;
            let mut handshake = Handshake::new(stream, address, host);
            let tuned = handshake.run(name).await?;
            let (reader, writer) = tokio::io::split(handshake.stream);
            Ok(tuned.dialled(Box::new(reader), Box::new(writer), handshake.read))
        }
    }
}

async fn secure(
    tcp: TcpStream,
    host: &Host,
    files: &TlsFiles,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, DialError> {
    let config = tls_config(files).map_err(DialError::fatal)?;
    let name = files.server_name.as_ref().unwrap_or(&host.name).clone();
    let name = ServerName::try_from(name).map_err(|_| {
        DialError::fatal(format!(
            "the broker's host `{host}` is no name that TLS could verify"
        ))
    })?;
    TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .map_err(|error| {
            // Broken connections pass; certificates that do not fit, and peers without TLS, stay.
            if let Some(alert) = refused_certificate(&error) {
                of_certificate(host, &alert)
            } else if matches!(error.kind(), io::ErrorKind::InvalidData) {
                DialError::fatal(format!(
                    "no secure connection with the broker at `{host}`: {error}; check that the \
                     port is the one for TLS, and that its certificate is signed by an authority \
                     the system knows or `cacertfile=...` names"
                ))
            } else {
                DialError::temporary(format!(
                    "the broker at `{host}` broke off the TLS handshake: {error}"
                ))
            }
        })
}

/// What the other side says of the certificate that it was shown, or not shown. With TLS 1.3 it says so after the handshake.
fn refused_certificate(error: &io::Error) -> Option<String> {
    use rustls::AlertDescription::{
        AccessDenied, BadCertificate, CertificateExpired, CertificateRequired, CertificateRevoked,
        CertificateUnknown, HandshakeFailure, UnknownCA, UnsupportedCertificate,
    };
    let error = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    let rustls::Error::AlertReceived(alert) = error else {
        return None;
    };
    let of_certificates = matches!(
        alert,
        AccessDenied
            | BadCertificate
            | CertificateExpired
            | CertificateRequired
            | CertificateRevoked
            | CertificateUnknown
            | HandshakeFailure
            | UnknownCA
            | UnsupportedCertificate
    );
    of_certificates.then(|| error.to_string())
}

fn of_certificate(host: &Host, alert: &str) -> DialError {
    DialError::fatal(format!(
        "the broker at `{host}` does not take the certificate of this client, or asks for one: {alert}; \
         `certfile=...` and `keyfile=...` name one, signed by an authority that the broker knows, for clients"
    ))
}

fn tls_config(files: &TlsFiles) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &files.authorities {
        for certificate in read_certificates(path)? {
            roots.add(certificate).map_err(|error| {
                format!(
                    "`{}` has a certificate that is not one: {error}",
                    path.display()
                )
            })?;
        }
    } else {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err("the system has no certificates of authorities; install \
                        `ca-certificates`, or name a file with `cacertfile=...`"
                .into());
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    match (&files.certificate, &files.key) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(certificate), Some(key)) => {
            let chain = read_certificates(certificate)?;
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| format!("`{}` has no private key: {error}", key.display()))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| format!("`certfile` and `keyfile` do not fit: {error}"))
        }
        _ => Err("`certfile` and `keyfile` belong together; give both".into()),
    }
}

fn read_certificates(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, String> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| format!("`{}` has no certificates: {error}", path.display()))
}

struct Tuned {
    frame_bytes_max: u32,
    channel_max: u16,
    heartbeat: Duration,
}

impl Tuned {
    fn dialled(
        self,
        reader: Box<dyn AsyncRead + Send + Unpin>,
        writer: Box<dyn AsyncWrite + Send + Unpin>,
        read: BytesMut,
    ) -> Dialled {
        Dialled {
            reader,
            writer,
            read,
            frame_bytes_max: self.frame_bytes_max,
            channel_max: self.channel_max,
            heartbeat: self.heartbeat,
        }
    }
}

struct Handshake<'a, S> {
    stream: S,
    address: &'a Address,
    host: &'a Host,
    read: BytesMut,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Handshake<'a, S> {
    fn new(stream: S, address: &'a Address, host: &'a Host) -> Self {
        Self {
            stream,
            address,
            host,
            read: BytesMut::with_capacity(8192),
        }
    }

    async fn run(&mut self, name: &str) -> Result<Tuned, DialError> {
        let header = self.stream.write_all(&PROTOCOL_HEADER).await;
        header.map_err(|error| self.broken(&error))?;
        match self.next().await? {
            Method::ConnectionStart(start) => self.log_in(&start, name).await?,
            other => return Err(self.unexpected(&other)),
        }
        let tuned = self.tune().await?;
        let open = ConnectionOpen {
            virtual_host: self.short(&self.address.vhost, "vhost")?,
        };
        self.send(&open.into()).await?;
        match self.next().await? {
            Method::ConnectionOpenOk(_) => Ok(tuned),
            other => Err(self.unexpected(&other)),
        }
    }

    async fn log_in(&mut self, start: &ConnectionStart, name: &str) -> Result<(), DialError> {
        let offers_plain = start
            .mechanisms
            .split(|byte| *byte == b' ')
            .any(|it| it == b"PLAIN");
        if !offers_plain {
            return Err(DialError::fatal(format!(
                "the broker at `{}` does not take a password (no `PLAIN` among its mechanisms)",
                self.host
            )));
        }
        let Address { user, password, .. } = self.address;
        let start_ok = ConnectionStartOk {
            client_properties: client_properties(name),
            mechanism: ShortStr::from_static("PLAIN"),
            response: Bytes::from(format!("\0{user}\0{password}")),
            locale: ShortStr::from_static("en_US"),
        };
        self.send(&start_ok.into()).await
    }

    async fn tune(&mut self) -> Result<Tuned, DialError> {
        let offered = match self.next().await {
            Ok(Method::ConnectionTune(tune)) => tune,
            Ok(other) => return Err(self.unexpected(&other)),
            // Some brokers hang up on a wrong password without a word; but so does one that dies.
            Err(error) if error.temporary => {
                return Err(DialError::temporary(format!(
                    "{} (if this goes on, check user and password in its URL)",
                    error.message
                )));
            }
            Err(error) => return Err(error),
        };
        // Zero means no limit, or no heartbeat, and then the other side's wish counts.
        let agree = |ours: u32, theirs: u32| match (ours, theirs) {
            (0, other) | (other, 0) => other,
            (ours, theirs) => ours.min(theirs),
        };
        let our_heartbeat = self.address.heartbeat.as_secs() as u32;
        let tune_ok = ConnectionTuneOk {
            channel_max: agree(CHANNEL_MAX.into(), offered.channel_max.into()) as u16,
            frame_max: agree(FRAME_BYTES_MAX, offered.frame_max).max(FRAME_BYTES_MIN),
            heartbeat: agree(our_heartbeat, offered.heartbeat.into()) as u16,
        };
        let tuned = Tuned {
            frame_bytes_max: tune_ok.frame_max,
            channel_max: tune_ok.channel_max,
            heartbeat: Duration::from_secs(tune_ok.heartbeat.into()),
        };
        self.send(&tune_ok.into()).await?;
        Ok(tuned)
    }

    async fn send(&mut self, method: &Method) -> Result<(), DialError> {
        let mut out = BytesMut::new();
        encode_method(&mut out, 0, method);
        let written = self.stream.write_all(&out).await;
        let written = match written {
            Ok(()) => self.stream.flush().await,
            Err(error) => Err(error),
        };
        written.map_err(|error| self.broken(&error))
    }

    /// The next method on channel 0; a close is an error.
    async fn next(&mut self) -> Result<Method, DialError> {
        loop {
            if self.read.starts_with(b"AMQP") {
                return Err(self.not_amqp("it speaks another version"));
            }
            let frame = decode_frame(&mut self.read, FRAME_BYTES_MAX)
                .map_err(|error| self.not_amqp(&error.to_string()))?;
            match frame.map(|frame| frame.payload) {
                Some(Payload::Method(Method::ConnectionClose(close))) => {
                    let _ = self.send(&ConnectionCloseOk {}.into()).await;
                    return Err(self.closed(&close));
                }
                Some(Payload::Method(method)) => return Ok(method),
                Some(Payload::Heartbeat) => continue,
                Some(_) => return Err(self.not_amqp("it sent content before the connection")),
                None => {}
            }
            match self.stream.read_buf(&mut self.read).await {
                Ok(0) => {
                    let host = self.host;
                    return Err(DialError::temporary(format!(
                        "the broker at `{host}` closed the connection during the handshake"
                    )));
                }
                Ok(_) => {}
                Err(error) => return Err(self.broken(&error)),
            }
        }
    }

    fn closed(&self, close: &ConnectionClose) -> DialError {
        let text = &close.reply_text;
        match close.reply_code {
            reply::ACCESS_REFUSED => self.refused(&text.to_str_lossy()),
            // Shutting down, starting up, or full.
            reply::CONNECTION_FORCED | reply::INTERNAL_ERROR | reply::RESOURCE_ERROR => {
                DialError::temporary(format!("the broker is not ready: {text}"))
            }
            _ if text.to_str_lossy().contains("limit") => {
                DialError::temporary(format!("the broker takes no more connections: {text}"))
            }
            code => DialError::fatal(format!(
                "the broker at `{}` refused the virtual host `{}`: {text} ({code}); check the \
                 part of the URL behind the host, or create it and grant `{}` its permissions",
                self.host, self.address.vhost, self.address.user,
            )),
        }
    }

    fn refused(&self, text: &str) -> DialError {
        DialError::fatal(format!(
            "the broker at `{}` refused the user `{}`: check user and password in its URL \
             (the broker said: {text})",
            self.host, self.address.user
        ))
    }

    fn broken(&self, error: &io::Error) -> DialError {
        let host = self.host;
        if let Some(alert) = refused_certificate(error) {
            return of_certificate(host, &alert);
        }
        DialError::temporary(format!("the connection with `{host}` broke: {error}"))
    }

    fn not_amqp(&self, what: &str) -> DialError {
        DialError::fatal(format!(
            "what listens at `{}` does not speak AMQP 0-9-1 ({what}); check host and port, and \
             whether it expects `amqps://`",
            self.host
        ))
    }

    fn unexpected(&self, method: &Method) -> DialError {
        self.not_amqp(&format!("it sent `{}` out of turn", method.name()))
    }

    fn short(&self, text: &str, what: &str) -> Result<ShortStr, DialError> {
        ShortStr::try_from(text).map_err(|error| DialError::fatal(format!("the {what}: {error}")))
    }
}

fn client_properties(name: &str) -> Table {
    const CAPABILITIES: [&str; 6] = [
        "authentication_failure_close",
        "basic.nack",
        "connection.blocked",
        "consumer_cancel_notify",
        "exchange_exchange_bindings",
        "publisher_confirms",
    ];
    let capabilities: Table = CAPABILITIES
        .into_iter()
        .map(|name| (ShortStr::from_static(name), Value::Bool(true)))
        .collect();
    [
        ("product", Value::from("Tidings")),
        ("version", Value::from(env!("CARGO_PKG_VERSION"))),
        ("platform", Value::from("Rust")),
        ("connection_name", Value::from(name)),
        ("capabilities", Value::from(capabilities)),
    ]
    .into_iter()
    .map(|(name, value)| (ShortStr::from_static(name), value))
    .collect()
}

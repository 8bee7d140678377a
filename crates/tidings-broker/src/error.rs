//! What can go wrong when a broker starts or stops. What goes wrong on a connection is told to that
//! connection, in the protocol's own codes, and never ends up here.

use std::fmt;
use std::net::SocketAddr;

use tidings_broker_log::LogError;

/// Why a broker could not start, or did not stop cleanly.
///
/// The message says what was attempted and what to do; the predicates let a program decide.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    AddressTaken,
    DataInUse,
    DataNewer,
    Other,
}

impl Error {
    /// Whether another program already listens on the address.
    pub fn is_address_taken(&self) -> bool {
        self.kind == Kind::AddressTaken
    }

    /// Whether another process already uses the data folder.
    pub fn is_data_in_use(&self) -> bool {
        self.kind == Kind::DataInUse
    }

    /// Whether the data folder was written by a newer version.
    pub fn is_data_newer(&self) -> bool {
        self.kind == Kind::DataNewer
    }

    pub(crate) fn bind(addr: SocketAddr, source: std::io::Error) -> Error {
        let taken = source.kind() == std::io::ErrorKind::AddrInUse;
        let message = if taken {
            format!(
                "cannot listen for AMQP on `{addr}`: port {} is taken by another program; stop it, \
                 or choose another address with `--listen` (port 0 picks a free one)",
                addr.port()
            )
        } else {
            format!("cannot listen for AMQP on `{addr}`; choose another address with `--listen`")
        };
        let kind = if taken {
            Kind::AddressTaken
        } else {
            Kind::Other
        };
        // The source of a taken port only repeats what the message says.
        Error {
            kind,
            message,
            source: (!taken).then(|| source.into()),
        }
    }

    pub(crate) fn options(message: impl Into<String>) -> Error {
        Error {
            kind: Kind::Other,
            message: message.into(),
            source: None,
        }
    }

    pub(crate) fn thread(source: std::io::Error) -> Error {
        Error {
            kind: Kind::Other,
            message: "cannot start a thread: the system allows no more of them".to_owned(),
            source: Some(source.into()),
        }
    }

    /// A log that could not be opened or closed. It says itself what to do; only the flag is ours.
    pub(crate) fn log(error: &LogError) -> Error {
        let kind = if error.is_in_use() {
            Kind::DataInUse
        } else if error.is_newer_version() {
            Kind::DataNewer
        } else {
            Kind::Other
        };
        let source = std::error::Error::source(error).map(|source| source.to_string().into());
        Error {
            kind,
            message: format!("{error} (`--data` names the folder)"),
            source,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as _)
    }
}

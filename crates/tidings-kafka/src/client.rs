//! What all clients of the cluster in this process share: how they log, and whether the cluster is there.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use rdkafka::{ClientContext, config::RDKafkaLogLevel, error::KafkaError, types::RDKafkaErrorCode};
use tidings_core::TransportError;
use tokio::sync::watch;
use tracing::{debug, info, warn};

/// How it stands with the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It was not reached yet.
    Starting,
    /// It was reached.
    Up,
    /// Waiting does not help.
    Refused(String),
    /// The transport was closed.
    Closed,
}

/// What is known of the cluster.
#[derive(Debug)]
pub(crate) struct Status {
    standing: watch::Sender<Standing>,
    /// No broker answers at the moment.
    is_down: AtomicBool,
    /// That the brokers do not let this program in was told, and none has answered since.
    is_locked_out: AtomicBool,
}

impl Status {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            standing: watch::Sender::new(Standing::Starting),
            is_down: AtomicBool::new(false),
            is_locked_out: AtomicBool::new(false),
        })
    }

    /// A broker answered.
    pub(crate) fn answered(&self) {
        if self.is_down.swap(false, Ordering::Relaxed) {
            info!("a broker of Kafka answers again");
        }
        self.is_locked_out.store(false, Ordering::Relaxed);
    }

    /// All that is needed was read once.
    pub(crate) fn up(&self) {
        self.standing.send_if_modified(|standing| {
            let is_new = *standing == Standing::Starting;
            if is_new {
                *standing = Standing::Up;
            }
            is_new
        });
        self.answered();
    }

    /// Waiting does not help.
    pub(crate) fn refused(&self, why: String) {
        warn!("{why}");
        self.standing.send_if_modified(|standing| {
            let is_new = *standing == Standing::Starting;
            if is_new {
                *standing = Standing::Refused(why);
            }
            is_new
        });
    }

    pub(crate) fn close(&self) {
        self.standing.send_replace(Standing::Closed);
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.standing.borrow() == Standing::Closed
    }

    pub(crate) fn is_refused(&self) -> bool {
        matches!(*self.standing.borrow(), Standing::Refused(_))
    }

    pub(crate) fn is_connected(&self) -> bool {
        *self.standing.borrow() == Standing::Up && !self.is_down()
    }

    pub(crate) fn is_down(&self) -> bool {
        self.is_down.load(Ordering::Relaxed)
    }

    /// Waits until the cluster was reached.
    pub(crate) async fn reached(&self) -> Result<(), TransportError> {
        let mut standing = self.standing.subscribe();
        loop {
            match &*standing.borrow_and_update() {
                Standing::Starting => {}
                Standing::Up => return Ok(()),
                Standing::Refused(why) => return Err(TransportError::fatal(why.clone())),
                Standing::Closed => return Err(closed()),
            }
            // The sender is in `self`.
            let _ = standing.changed().await;
        }
    }

    fn error(&self, error: &KafkaError, reason: &str) {
        let Some(code) = error.rdkafka_error_code() else {
            return debug!(%error, reason, "told by librdkafka");
        };
        if code == RDKafkaErrorCode::AllBrokersDown {
            if !self.is_down.swap(true, Ordering::Relaxed) {
                warn!(reason, "no broker of Kafka answers");
            }
        } else if let Some(advice) = locked_out(code, reason) {
            // A program that was let in before goes on to knock, and says so once.
            if !self.is_locked_out.swap(true, Ordering::Relaxed) {
                self.refused(format!(
                    "the brokers of Kafka do not let this program in: {advice} ({reason}) (TDG-4014)"
                ));
            }
        } else {
            debug!(%error, reason, "told by librdkafka");
        }
    }
}

/// What to do about an error of a connection that no waiting mends.
fn locked_out(code: RDKafkaErrorCode, reason: &str) -> Option<&'static str> {
    use RDKafkaErrorCode as Code;
    // A broker that goes while it asks who comes.
    let passing = ["Broker transport failure", "Disconnected", "timed out"];
    if passing.iter().any(|words| reason.contains(words)) {
        return None;
    }
    let is_alert = reason.contains("alert") && reason.contains("certificate");
    match code {
        Code::SSL if reason.contains("certificate verify failed") => Some(
            "they show a certificate that is not trusted; name the file of its authority with `cacertfile=` in the \
             broker's URL, and the host as the certificate does",
        ),
        // With TLS 1.3 it is told on a connection that was made.
        Code::SSL | Code::BrokerTransportFailure if is_alert => Some(
            "they want a certificate that they trust; name it, and its key, with `certfile=` and `keyfile=` in the \
             broker's URL",
        ),
        Code::SSL => {
            Some("see that the port in the broker's URL is one for TLS, and mend its certificates")
        }
        Code::UnsupportedSASLMechanism => {
            Some("say with `sasl=` in the broker's URL how they want user and password")
        }
        Code::Authentication | Code::SaslAuthenticationFailed => {
            Some("mend user and password in the broker's URL, and `sasl=`")
        }
        _ => None,
    }
}

/// The error of whoever asks a closed transport.
pub(crate) fn closed() -> TransportError {
    TransportError::fatal("the transport was closed")
}

/// The error of what passes by itself.
pub(crate) fn passing(what: &str, error: &KafkaError) -> TransportError {
    TransportError::temporary(format!("{what}: {error}"))
}

/// The error of who may not do something with a topic.
pub(crate) fn may_not(what: &str, topic: &str) -> TransportError {
    TransportError::fatal(format!(
        "the user of the broker's URL may not {what} topic `{topic}`: {ALLOW} (TDG-4015)"
    ))
}

/// What to do about that.
pub(crate) const ALLOW: &str = "let it describe, create, read and write the topics of the service and \
                                `tidings.bindings`, and read the groups of its queues";

/// True if somebody else has to allow it.
pub(crate) fn is_forbidden(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
    )
}

/// True if waiting does not mend it.
pub(crate) fn is_refusal(code: RDKafkaErrorCode) -> bool {
    is_forbidden(code)
        || matches!(
            code,
            RDKafkaErrorCode::InvalidTopic
                | RDKafkaErrorCode::InvalidReplicationFactor
                | RDKafkaErrorCode::InvalidPartitions
                | RDKafkaErrorCode::InvalidConfig
                | RDKafkaErrorCode::PolicyViolation
        )
}

/// The context of a client that has nothing else to tell.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) status: Arc<Status>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.status.error(&error, reason);
    }
}

impl rdkafka::consumer::ConsumerContext for Context {}

/// What librdkafka has to say about lost connections is no warning: it connects again by itself.
pub(crate) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            warn!(facility, "{message}");
        }
        _ => debug!(facility, "{message}"),
    }
}

/// For contexts that hold a status themselves.
pub(crate) fn told(status: &Status, error: &KafkaError, reason: &str) {
    status.error(error, reason);
}

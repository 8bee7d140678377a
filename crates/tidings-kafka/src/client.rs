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
}

impl Status {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            standing: watch::Sender::new(Standing::Starting),
            is_down: AtomicBool::new(false),
        })
    }

    /// A broker answered.
    pub(crate) fn answered(&self) {
        if self.is_down.swap(false, Ordering::Relaxed) {
            info!("a broker of Kafka answers again");
        }
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
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AllBrokersDown) => {
                if !self.is_down.swap(true, Ordering::Relaxed) {
                    warn!(reason, "no broker of Kafka answers");
                }
            }
            Some(
                RDKafkaErrorCode::Authentication
                | RDKafkaErrorCode::SaslAuthenticationFailed
                | RDKafkaErrorCode::SSL
                | RDKafkaErrorCode::UnsupportedSASLMechanism,
            ) => {
                let why = format!(
                    "the brokers of Kafka do not let this program in: mend user, password or certificates in the \
                     broker's URL ({reason})"
                );
                self.refused(why);
            }
            _ => debug!(%error, reason, "told by librdkafka"),
        }
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

/// True if waiting does not mend it.
pub(crate) fn is_refusal(code: RDKafkaErrorCode) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
            | RDKafkaErrorCode::InvalidTopic
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

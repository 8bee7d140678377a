//! What all clients of the cluster in this process share: how they log, and what they hear of the cluster.

use std::sync::Arc;

use rdkafka::{ClientContext, config::RDKafkaLogLevel, error::KafkaError, types::RDKafkaErrorCode};
use tidings_adapter::Standing;
use tidings_core::TransportError;
use tracing::{debug, warn};

/// What librdkafka tells of the cluster.
pub(crate) fn told(standing: &Standing, error: &KafkaError, reason: &str) {
    let Some(code) = error.rdkafka_error_code() else {
        return debug!(%error, reason, "told by librdkafka");
    };
    if code == RDKafkaErrorCode::AllBrokersDown {
        standing.down(reason);
    } else if let Some(advice) = locked_out(code, reason) {
        standing.refused(format!(
            "the brokers of Kafka do not let this program in: {advice} ({reason}) (TDG-4014)"
        ));
    } else {
        debug!(%error, reason, "told by librdkafka");
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
    pub(crate) status: Arc<Standing>,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        told(&self.status, &error, reason);
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

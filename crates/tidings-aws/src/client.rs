//! The clients of SNS, SQS and STS, and what their errors mean.

use std::{error::Error as StdError, fmt::Debug, time::Duration};

use aws_config::{AppName, BehaviorVersion, Region, retry::RetryConfig, timeout::TimeoutConfig};
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sns::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use tidings_core::TransportError;

use crate::address::Address;

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a call may take, beyond what it is to wait.
pub(crate) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the SDK tries a call.
const CALLS_MAX: u32 = 2;

/// The clients, with one pool of connections.
#[derive(Debug, Clone)]
pub(crate) struct Clients {
    pub(crate) sns: aws_sdk_sns::Client,
    pub(crate) sqs: aws_sdk_sqs::Client,
    pub(crate) sts: aws_sdk_sts::Client,
}

/// What the thread needs that makes the clients: without optimisation the SDK takes more than the two mebibytes that
/// a thread of a runtime has.
const STACK_BYTES: usize = 16 * 1024 * 1024;

impl Clients {
    /// Makes the clients, on a thread of its own.
    pub(crate) async fn start(address: &Address, name: &str) -> Result<Self, TransportError> {
        let (address, name) = (address.clone(), name.to_owned());
        let runtime = tokio::runtime::Handle::current();
        let (done, made) = tokio::sync::oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("aws clients".into())
            .stack_size(STACK_BYTES);
        let started = thread.spawn(move || {
            let _ = done.send(runtime.block_on(Self::new(&address, &name)));
        });
        started.map_err(|error| {
            TransportError::temporary("no thread can be started to make the clients of SNS and SQS")
                .with_source(error)
        })?;
        made.await
            .map_err(|_| TransportError::fatal("the clients of SNS and SQS could not be made"))
    }

    async fn new(address: &Address, name: &str) -> Self {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(Provider::Rustls(CryptoMode::Ring))
            .build_https();
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(CALL_TIMEOUT)
            .build();
        let mut config = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(address.region.clone()))
            .http_client(http)
            .timeout_config(timeouts)
            .retry_config(RetryConfig::standard().with_max_attempts(CALLS_MAX));
        if let Ok(name) = AppName::new(name.to_owned()) {
            config = config.app_name(name);
        }
        if let Some(endpoint) = &address.endpoint {
            config = config.endpoint_url(endpoint);
        }
        let config = config.load().await;
        Self {
            sns: aws_sdk_sns::Client::new(&config),
            sqs: aws_sdk_sqs::Client::new(&config),
            sts: aws_sdk_sts::Client::new(&config),
        }
    }
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// No answer.
    Away(String),
    /// An answer, but nothing was done: too much at once, or a fault there.
    Busy(String),
    /// What is asked for is not there.
    Missing(String),
    /// Whoever asks may not, or nobody knows who asks.
    Denied(String),
    /// It can never be done like that.
    Invalid(String),
}

impl Trouble {
    /// An error of the transport, about what was attempted.
    pub(crate) fn into_error(self, attempted: &str) -> TransportError {
        match self {
            Self::Away(why) | Self::Busy(why) => {
                TransportError::temporary(format!("{attempted}: {why}"))
            }
            Self::Denied(why) => TransportError::fatal(format!(
                "{attempted} (TDG-4031): {why}; give its credentials the permission"
            )),
            Self::Missing(why) | Self::Invalid(why) => {
                TransportError::fatal(format!("{attempted}: {why}"))
            }
        }
    }

    pub(crate) fn passes(&self) -> bool {
        matches!(self, Self::Away(_) | Self::Busy(_))
    }
}

/// What an error of the SDK means.
pub(crate) fn trouble<E, R>(error: SdkError<E, R>) -> Trouble
where
    E: ProvideErrorMetadata + StdError + 'static,
    R: Debug + 'static,
{
    let text = DisplayErrorContext(&error).to_string();
    if lacks_credentials(&error) {
        return Trouble::Denied(format!(
            "there are no credentials where the SDK looks for them: {text}"
        ));
    }
    match &error {
        SdkError::ServiceError(answer) => {
            let code = answer.err().code().unwrap_or_default();
            let message = answer.err().message().unwrap_or_default();
            of_code(code, format!("{code}: {message}"))
        }
        SdkError::ConstructionFailure(_) => Trouble::Invalid(text),
        _ => Trouble::Away(text),
    }
}

/// What a code means, of a call or of one of a batch.
pub(crate) fn of_code(code: &str, text: String) -> Trouble {
    const DENIED: &[&str] = &[
        "AccessDenied",
        "AuthorizationError",
        "InvalidClientTokenId",
        "InvalidSecurity",
        "KMSAccessDenied",
        "KmsAccessDenied",
        "OptInRequired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    ];
    const BUSY: &[&str] = &[
        "ExpiredToken",
        "InternalError",
        "InternalFailure",
        "OverLimit",
        // Its name is free again after a minute.
        "QueueDeletedRecently",
        "RequestExpired",
        "ServiceUnavailable",
        "TooManyRequests",
    ];
    let has = |codes: &[&str]| codes.iter().any(|it| code.contains(it));
    if code.contains("NonExistentQueue")
        || code.contains("QueueDoesNotExist")
        || code.starts_with("NotFound")
    {
        Trouble::Missing(text)
    } else if has(DENIED) {
        Trouble::Denied(text)
    } else if has(BUSY) || code.contains("Throttl") || code.is_empty() {
        Trouble::Busy(text)
    } else {
        Trouble::Invalid(text)
    }
}

fn lacks_credentials(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<CredentialsError>() {
            return matches!(
                error,
                CredentialsError::CredentialsNotLoaded(_)
                    | CredentialsError::InvalidConfiguration(_)
            );
        }
        next = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_say_what_to_do() {
        let check = |code: &str, expected: fn(String) -> Trouble| {
            assert_eq!(
                of_code(code, "text".into()),
                expected("text".into()),
                "{code}"
            );
        };
        check("AWS.SimpleQueueService.NonExistentQueue", Trouble::Missing);
        check("QueueDoesNotExist", Trouble::Missing);
        check("NotFound", Trouble::Missing);
        check("NotFoundException", Trouble::Missing);
        check("AccessDenied", Trouble::Denied);
        check("AccessDeniedException", Trouble::Denied);
        check("AuthorizationError", Trouble::Denied);
        check("InvalidClientTokenId", Trouble::Denied);
        check("Throttling", Trouble::Busy);
        check("ThrottledException", Trouble::Busy);
        check("RequestThrottled", Trouble::Busy);
        check("OverLimit", Trouble::Busy);
        check("AWS.SimpleQueueService.QueueDeletedRecently", Trouble::Busy);
        check("InternalFailure", Trouble::Busy);
        check("ExpiredTokenException", Trouble::Busy);
        check("", Trouble::Busy);
        check("InvalidParameter", Trouble::Invalid);
        check("InvalidMessageContents", Trouble::Invalid);
    }
}

//! Where SNS and SQS are, and how they are used: `aws://REGION/PREFIX?option=value&…`.
//!
//! Who asks is not in it: credentials come from where the SDK takes them (environment, profile, role of the
//! machine or container).

use std::time::Duration;

use tidings_core::TransportError;

/// A parsed URL.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    pub(crate) region: String,
    /// What the names of topics and queues begin with.
    pub(crate) prefix: String,
    /// Where to ask instead of Amazon: an emulator.
    pub(crate) endpoint: Option<String>,
    /// Whose topics and queues; asked for if it is not said.
    pub(crate) account: Option<String>,
    /// First in, first out within a message group; else standard queues.
    pub(crate) is_fifo: bool,
    /// How long a message that is out is hidden from the others, unless that is renewed.
    pub(crate) visibility: Duration,
    /// How long one receive waits for messages.
    pub(crate) wait: Duration,
    /// How long a message may be out at most.
    pub(crate) handling: Duration,
    /// How long what is out is waited for when its last stream is gone.
    pub(crate) handover: Duration,
}

const VISIBILITY: Duration = Duration::from_secs(30);
const WAIT: Duration = Duration::from_secs(20);
/// SQS ends it after twelve hours, whatever is renewed.
const HANDLING_MAX: Duration = Duration::from_secs(11 * 3600 + 45 * 60);
const HANDOVER: Duration = Duration::from_secs(5);
/// So that there is room for names behind it.
const PREFIX_BYTES_MAX: usize = 20;
const OPTIONS: &str = "`endpoint`, `account`, `queues` (`fifo` or `standard`), and in seconds `visibility`, `wait`, \
                       `handling` and `handover`";

impl Address {
    pub(crate) fn parse(url: &str) -> Result<Self, TransportError> {
        let Some(rest) = url.strip_prefix("aws://") else {
            return Err(malformed("it begins with `aws://`"));
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (region, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let is_region =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if region.is_empty() || !region.bytes().all(is_region) {
            return Err(malformed(
                "behind `aws://` is a region, for example `eu-central-1`",
            ));
        }
        let is_named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if !prefix.bytes().all(is_named) || prefix.len() > PREFIX_BYTES_MAX {
            return Err(malformed(&format!(
                "behind the region is at most one prefix of at most {PREFIX_BYTES_MAX} letters, digits, `-` and `_`"
            )));
        }
        let mut address = Self {
            region: region.to_owned(),
            prefix: prefix.to_owned(),
            endpoint: None,
            account: None,
            is_fifo: true,
            visibility: VISIBILITY,
            wait: WAIT,
            handling: HANDLING_MAX,
            handover: HANDOVER,
        };
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            address.set_option(name, value)?;
        }
        Ok(address)
    }

    fn set_option(&mut self, name: &str, value: &str) -> Result<(), TransportError> {
        let seconds = |max: Duration| match value.parse::<u64>() {
            Ok(number) if (1..=max.as_secs()).contains(&number) => Ok(Duration::from_secs(number)),
            _ => Err(malformed(&format!(
                "the option `{name}` is a whole number of seconds from 1 to {}",
                max.as_secs()
            ))),
        };
        match name {
            "endpoint" if value.starts_with("http://") || value.starts_with("https://") => {
                self.endpoint = Some(value.to_owned());
            }
            "endpoint" => {
                return Err(malformed(
                    "the option `endpoint` begins with `http://` or `https://`",
                ));
            }
            "account" if value.len() == 12 && value.bytes().all(|it| it.is_ascii_digit()) => {
                self.account = Some(value.to_owned());
            }
            "account" => return Err(malformed("the option `account` has twelve digits")),
            "queues" => match value {
                "fifo" => self.is_fifo = true,
                "standard" => self.is_fifo = false,
                _ => {
                    return Err(malformed("the option `queues` is `fifo` or `standard`"));
                }
            },
            "visibility" => self.visibility = seconds(Duration::from_secs(3600))?,
            "wait" => self.wait = seconds(WAIT)?,
            "handling" => self.handling = seconds(HANDLING_MAX)?,
            "handover" => self.handover = seconds(Duration::from_secs(3600))?,
            _ => {
                return Err(malformed(&format!(
                    "there is no option `{name}`; there are {OPTIONS}"
                )));
            }
        }
        Ok(())
    }
}

fn malformed(rule: &str) -> TransportError {
    TransportError::fatal(format!(
        "the broker's URL is not one (TDG-4030): {rule}; write `aws://REGION/PREFIX?option=value`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_where_and_how() {
        let it = Address::parse("aws://eu-central-1").expect("fine");
        assert_eq!((&*it.region, &*it.prefix), ("eu-central-1", ""));
        assert!(it.is_fifo && it.endpoint.is_none() && it.account.is_none());
        assert_eq!((it.visibility, it.wait), (VISIBILITY, WAIT));
        let url = "aws://us-east-1/shop-?endpoint=http://127.0.0.1:4566&queues=standard&visibility=5&wait=1\
                   &handling=60&handover=2&account=123456789012";
        let it = Address::parse(url).expect("fine");
        assert_eq!((&*it.region, &*it.prefix), ("us-east-1", "shop-"));
        assert_eq!(it.endpoint.as_deref(), Some("http://127.0.0.1:4566"));
        assert_eq!(it.account.as_deref(), Some("123456789012"));
        let seconds = [it.visibility, it.wait, it.handling, it.handover].map(|it| it.as_secs());
        assert_eq!((it.is_fifo, seconds), (false, [5, 1, 60, 2]));
    }

    #[test]
    fn a_malformed_url_is_refused_with_its_rule() {
        for (url, rule) in [
            ("sqs://eu-central-1", "begins with `aws://`"),
            ("aws://", "is a region"),
            ("aws://127.0.0.1:4566", "is a region"),
            ("aws://key:secret@eu-central-1", "is a region"),
            ("aws://eu-central-1/a/b", "at most one prefix"),
            ("aws://eu-central-1/a.b", "at most one prefix"),
            ("aws://eu-central-1?endpoint=127.0.0.1", "`http://`"),
            ("aws://eu-central-1?queues=fast", "`standard`"),
            ("aws://eu-central-1?wait=21", "from 1 to 20"),
            ("aws://eu-central-1?handling=43200", "from 1 to 42300"),
            ("aws://eu-central-1?visibility=0", "from 1 to 3600"),
            ("aws://eu-central-1?account=1", "twelve digits"),
            ("aws://eu-central-1?unknown=1", "there are `endpoint`"),
        ] {
            let error = Address::parse(url).expect_err(url);
            let text = error.to_string();
            assert!(
                !error.is_temporary() && text.contains(rule),
                "{url}: {text}"
            );
            assert!(text.contains("TDG-4030") && !text.contains("secret"));
        }
    }
}

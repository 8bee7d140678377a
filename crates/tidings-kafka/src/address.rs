//! Where the cluster is: `kafka://user:password@host:port,host:port/?option=value&…`.
//!
//! Who got in with which password is nobody's business: neither `Debug` nor any error shows it,
//! nor the URL it came from.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use rdkafka::ClientConfig;
use tidings_adapter::decode_percent;
use tidings_core::TransportError;

use crate::schemas::Schemas;

/// A parsed URL.
#[derive(Clone)]
pub(crate) struct Address {
    /// `host:port`, each.
    pub(crate) servers: Vec<String>,
    tls: Option<Tls>,
    login: Option<Login>,
    /// How many partitions a topic gets that is made.
    pub(crate) partitions: u16,
    /// The URL says so.
    pub(crate) has_partitions: bool,
    /// How many replicas a topic gets that is made; `None`: as many as the cluster's default says.
    pub(crate) replication: Option<u16>,
    /// How many of them have to have a message before it is confirmed; `None`: as the cluster's default says.
    pub(crate) min_insync: Option<String>,
    /// How long topics keep messages: for which ones are made, and those that are there at least.
    pub(crate) retention: Option<Duration>,
    /// How long the others wait for a consumer that is silent.
    pub(crate) session_timeout: Duration,
    /// How long a partition that is to go elsewhere waits for what is still being handled.
    pub(crate) handover_timeout: Duration,
    /// How long the thread that receives may be stuck; `None`: long enough for all that it does.
    max_poll_interval: Option<Duration>,
    /// How old what is known of topics may be: so soon a partition that was added is noticed.
    pub(crate) metadata_max_age: Duration,
    /// How bodies are written and read by the schemas of a registry, if they are.
    pub(crate) schemas: Option<Arc<Schemas>>,
}

/// What the URL says of schemas.
#[derive(Default)]
pub(crate) struct SchemaOptions {
    pub(crate) registry: Option<String>,
    pub(crate) subjects: Option<String>,
    pub(crate) without: Option<String>,
}

#[derive(Clone, Default)]
struct Tls {
    authorities: Option<PathBuf>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
}

#[derive(Clone)]
struct Login {
    mechanism: String,
    user: String,
    password: String,
}

const PARTITIONS: u16 = 12;
const PARTITIONS_MAX: u16 = 1000;
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(5);
/// The shortest time for which the thread that receives may be stuck, unless the URL says otherwise.
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(300);
const METADATA_MAX_AGE: Duration = Duration::from_secs(60);
/// Ten years.
const RETENTION_MAX: u64 = 10 * 366 * 24 * 3_600_000;
const OPTIONS: &str = "`partitions`, `replication`, `min_insync`, `retention`, `session_timeout`, `handover_timeout`, `max_poll_interval` and \
                       `metadata_max_age` (milliseconds), `sasl` (`PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512`), `schema_registry`, \
                       `schema_subject` and `without_schema`, and with \
                       `kafkas://` also `cacertfile`, `certfile` and `keyfile`";

impl Address {
    pub(crate) fn parse(url: &str) -> Result<Self, TransportError> {
        let (tls, rest) = match url.split_once("://") {
            Some(("kafka", rest)) => (None, rest),
            Some(("kafkas", rest)) => (Some(Tls::default()), rest),
            _ => return Err(malformed("it begins with `kafka://` or `kafkas://`")),
        };
        if tls.is_some() && !cfg!(feature = "tls") {
            return Err(TransportError::fatal(
                "this program was built without TLS for Kafka: build it with the feature `tls` of `tidings-kafka` \
                 (it needs OpenSSL), or use `kafka://`",
            ));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if !path.is_empty() {
            return Err(malformed("there is nothing behind the hosts but options"));
        }
        let (login, places) = authority.rsplit_once('@').unwrap_or(("", authority));
        let login = match login {
            "" => None,
            login => {
                let (user, password) = login.split_once(':').unwrap_or((login, ""));
                Some(Login {
                    mechanism: "PLAIN".into(),
                    user: decode(user, "user")?,
                    password: decode(password, "password")?,
                })
            }
        };
        let servers = places.split(',').map(server).collect::<Result<_, _>>()?;
        let mut address = Self {
            servers,
            tls,
            login,
            partitions: PARTITIONS,
            has_partitions: false,
            replication: None,
            min_insync: None,
            retention: None,
            session_timeout: SESSION_TIMEOUT,
            handover_timeout: HANDOVER_TIMEOUT,
            max_poll_interval: None,
            metadata_max_age: METADATA_MAX_AGE,
            schemas: None,
        };
        let mut schemas = SchemaOptions::default();
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            let value = decode(value, name)?;
            match name {
                "schema_registry" => schemas.registry = Some(value),
                "schema_subject" => schemas.subjects = Some(value),
                "without_schema" => schemas.without = Some(value),
                _ => address.set_option(name, &value)?,
            }
        }
        address.schemas = Schemas::of(&schemas)?.map(Arc::new);
        let replicas = address.replication.unwrap_or(0);
        match &address.min_insync {
            Some(count) if count.parse::<u16>().is_ok_and(|count| count > replicas) => {
                return Err(malformed(
                    "the option `min_insync` is at most `replication`",
                ));
            }
            None if replicas > 2 => address.min_insync = Some("2".into()),
            _ => {}
        }
        let least = address.session_timeout.max(address.handover_timeout);
        if address.max_poll_interval.is_some_and(|it| it < least) {
            return Err(malformed(
                "the option `max_poll_interval` is at least `session_timeout` and `handover_timeout`",
            ));
        }
        Ok(address)
    }

    /// How long the thread that receives may be stuck before its partitions go to others. It waits for handlers as long
    /// as a hand-over lasts, and for brokers beside that.
    pub(crate) fn max_poll_interval(&self) -> Duration {
        let needed = self.session_timeout + self.handover_timeout + Duration::from_secs(60);
        let otherwise = MAX_POLL_INTERVAL.max(needed);
        self.max_poll_interval.unwrap_or(otherwise)
    }

    fn set_option(&mut self, name: &str, value: &str) -> Result<(), TransportError> {
        let number = |max: u32| match value.parse::<u32>() {
            Ok(number) if (1..=max).contains(&number) => Ok(number),
            _ => Err(malformed(&format!(
                "the option `{name}` is a whole number from 1 to {max}"
            ))),
        };
        let millis = || number(3_600_000).map(|number| Duration::from_millis(number.into()));
        match (name, &mut self.tls, &mut self.login) {
            ("partitions", ..) => {
                self.partitions = number(PARTITIONS_MAX.into())? as u16;
                self.has_partitions = true;
            }
            ("replication", ..) => self.replication = Some(number(100)? as u16),
            ("min_insync", ..) => self.min_insync = Some(number(100)?.to_string()),
            ("retention", ..) => {
                let millis = value
                    .parse()
                    .ok()
                    .filter(|it| (1..=RETENTION_MAX).contains(it));
                let millis = millis.ok_or_else(|| {
                    malformed(&format!(
                        "the option `retention` is a whole number from 1 to {RETENTION_MAX}"
                    ))
                })?;
                self.retention = Some(Duration::from_millis(millis));
            }
            ("session_timeout", ..) => self.session_timeout = millis()?,
            ("handover_timeout", ..) => self.handover_timeout = millis()?,
            ("max_poll_interval", ..) => self.max_poll_interval = Some(millis()?),
            ("metadata_max_age", ..) => self.metadata_max_age = millis()?,
            ("cacertfile", Some(tls), _) => tls.authorities = Some(value.into()),
            ("certfile", Some(tls), _) => tls.certificate = Some(value.into()),
            ("keyfile", Some(tls), _) => tls.key = Some(value.into()),
            ("cacertfile" | "certfile" | "keyfile", None, _) => {
                return Err(malformed(&format!("the option `{name}` needs `kafkas://`")));
            }
            ("sasl", _, Some(login)) => match value {
                "PLAIN" => login.mechanism = value.into(),
                "SCRAM-SHA-256" | "SCRAM-SHA-512" if cfg!(feature = "tls") => {
                    login.mechanism = value.into();
                }
                "SCRAM-SHA-256" | "SCRAM-SHA-512" => {
                    return Err(malformed(&format!(
                        "`sasl={value}` needs a program that was built with the feature `tls` of `tidings-kafka`"
                    )));
                }
                _ => {
                    return Err(malformed(
                        "the option `sasl` is `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`",
                    ));
                }
            },
            ("sasl", _, None) => {
                return Err(malformed(
                    "the option `sasl` needs a user and a password before the hosts",
                ));
            }
            _ => {
                return Err(malformed(&format!(
                    "there is no option `{name}`; there are {OPTIONS}"
                )));
            }
        }
        Ok(())
    }

    /// A text for people, in which the password is not shown.
    pub(crate) fn without_password(&self, text: &str) -> String {
        let login = self.login.as_ref().filter(|it| !it.password.is_empty());
        login.map_or(text.to_owned(), |it| text.replace(&it.password, "…"))
    }

    /// What every client of the cluster is configured with.
    pub(crate) fn client_config(&self, name: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", self.servers.join(","))
            .set("client.id", name)
            // What is not there is to be noticed, not made with somebody's defaults.
            .set("allow.auto.create.topics", "false")
            .set(
                "topic.metadata.refresh.interval.ms",
                self.metadata_max_age.as_millis().to_string(),
            )
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "2000")
            .set("socket.nagle.disable", "true")
            .set("log.connection.close", "false");
        let protocol = match (&self.tls, &self.login) {
            (None, None) => "plaintext",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), None) => "ssl",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        config.set("security.protocol", protocol);
        if let Some(login) = &self.login {
            config
                .set("sasl.mechanisms", &login.mechanism)
                .set("sasl.username", &login.user)
                .set("sasl.password", &login.password);
        }
        let tls = self.tls.clone().unwrap_or_default();
        let files = [
            ("ssl.ca.location", tls.authorities),
            ("ssl.certificate.location", tls.certificate),
            ("ssl.key.location", tls.key),
        ];
        for (option, file) in files {
            if let Some(file) = file {
                config.set(option, file.to_string_lossy());
            }
        }
        config
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address")
            .field("servers", &self.servers)
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

/// One of the hosts, with its port.
fn server(place: &str) -> Result<String, TransportError> {
    let after_host = match place.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map(|(_, after)| after),
        None => place.find(':').map(|at| &place[at..]).or(Some("")),
    };
    let port = match after_host {
        None => return Err(malformed("an IPv6 address ends with `]`")),
        Some("") => None,
        Some(after) => Some(after.strip_prefix(':').unwrap_or(after)),
    };
    if place.is_empty() || place.starts_with(':') {
        return Err(malformed("there is a host"));
    }
    match port {
        None => Ok(format!("{place}:9092")),
        Some(port) if port.parse::<u16>().is_ok() => Ok(place.to_owned()),
        Some(_) => Err(malformed("the port is a number below 65536")),
    }
}

fn decode(text: &str, part: &str) -> Result<String, TransportError> {
    decode_percent(text).ok_or_else(|| {
        malformed(&format!(
            "what is not a letter or digit in the {part} is percent-encoded UTF-8"
        ))
    })
}

pub(crate) fn malformed(rule: &str) -> TransportError {
    TransportError::fatal(format!(
        "the broker's URL is not one: {rule}; write `kafka://user:password@host:port,host:port`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_where_and_as_whom() {
        let check = |url: &str, servers: &[&str], settings: &[(&str, &str)]| {
            let address = Address::parse(url).expect(url);
            assert_eq!(address.servers, servers, "{url}");
            let config = address.client_config("test");
            for (name, value) in settings {
                assert_eq!(config.get(name), Some(*value), "{url}: {name}");
            }
        };
        let plain = ("security.protocol", "plaintext");
        check("kafka://h", &["h:9092"], &[plain]);
        check("kafka://h:1,i/", &["h:1", "i:9092"], &[plain]);
        check("kafka://[::1],[::2]:3", &["[::1]:9092", "[::2]:3"], &[]);
        check(
            "kafka://u%40x:p%3a@h:1",
            &["h:1"],
            &[
                ("security.protocol", "sasl_plaintext"),
                ("sasl.mechanisms", "PLAIN"),
                ("sasl.username", "u@x"),
                ("sasl.password", "p:"),
            ],
        );
        let url = "kafka://h?partitions=3&replication=2&session_timeout=7000&handover_timeout=1";
        let it = Address::parse(url).expect(url);
        assert_eq!((it.partitions, it.replication), (3, Some(2)));
        assert_eq!(it.session_timeout, Duration::from_secs(7));
        assert_eq!(it.handover_timeout, Duration::from_millis(1));
        assert_eq!(it.max_poll_interval(), Duration::from_secs(300));
        let url = "kafka://h?handover_timeout=600000&metadata_max_age=900";
        let it = Address::parse(url).expect(url);
        assert_eq!(it.max_poll_interval(), Duration::from_secs(670));
        assert_eq!(it.metadata_max_age, Duration::from_millis(900));
        let url = "kafka://h?replication=3&retention=604800000";
        let it = Address::parse(url).expect(url);
        assert_eq!(it.min_insync.as_deref(), Some("2"));
        assert_eq!(it.retention, Some(Duration::from_secs(604_800)));
        let url = "kafka://h?min_insync=3&replication=4";
        let it = Address::parse(url).expect(url);
        assert_eq!(it.min_insync.as_deref(), Some("3"));
        let url = "kafka://h?max_poll_interval=10000";
        let it = Address::parse(url).expect(url);
        assert_eq!(it.max_poll_interval(), Duration::from_secs(10));
    }

    #[cfg(feature = "registry")]
    #[test]
    fn what_a_url_says_of_schemas_is_checked() {
        for fine in [
            "kafka://h?schema_registry=http://u:secret@r:8081",
            "kafka://h?schema_registry=https%3A%2F%2Fr%2Fapi&schema_subject=message&without_schema=accept",
        ] {
            let address = Address::parse(fine).expect(fine);
            assert!(address.schemas.is_some(), "{fine}");
            assert!(!format!("{:?}", address.schemas).contains("secret"));
        }
        for wrong in [
            "kafka://h?schema_registry=u:secret@r",
            "kafka://h?schema_registry=",
            "kafka://h?schema_subject=topic",
            "kafka://h?without_schema=accept",
            "kafka://h?schema_registry=http://u:secret@r&schema_subject=record",
            "kafka://h?schema_registry=http://u:secret@r&without_schema=secret",
        ] {
            let error = Address::parse(wrong).expect_err(wrong);
            assert!(!error.is_temporary() && !error.to_string().contains("secret"));
        }
    }

    #[test]
    fn a_malformed_url_is_refused_without_showing_the_password() {
        for url in [
            "http://u:secret@h",
            "u:secret@h",
            "kafka://u:secret@",
            "kafka://u:secret@h,",
            "kafka://u:secret@h:port",
            "kafka://u:secret%2@h",
            "kafka://u:secret%zz@h",
            "kafka://u:secret@[::1/",
            "kafka://u:secret@h/topic",
            "kafka://u:secret@h?unknown=1",
            "kafka://u:secret@h?partitions=0",
            "kafka://u:secret@h?max_poll_interval=9999",
            "kafka://u:secret@h?max_poll_interval=10000&handover_timeout=10001",
            "kafka://u:secret@h?partitions=many",
            "kafka://u:secret@h?min_insync=2",
            "kafka://u:secret@h?min_insync=4&replication=3",
            "kafka://u:secret@h?retention=0",
            "kafka://u:secret@h?retention=7d",
            "kafka://u:secret@h?sasl=secret",
            "kafka://u:secret@h?cacertfile=x",
            "kafka://h?sasl=PLAIN",
        ] {
            let error = Address::parse(url).expect_err(url);
            assert!(!error.is_temporary(), "{url}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        }
        let address = Address::parse("kafka://u:secret@h").expect("fine");
        assert!(!format!("{address:?}").contains("secret"));
        let shown = address.without_password("sasl.password = secret!");
        assert_eq!(shown, "sasl.password = …!");
    }
}

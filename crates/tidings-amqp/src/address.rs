//! Where the broker is: `amqp://user:password@host:port,host:port/vhost?options`.
//!
//! Several hosts are the nodes of one cluster: one of them is enough.
//!
//! Who got in with which password is nobody's business: neither `Debug` nor any error shows it,
//! nor the URL it came from.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    path::PathBuf,
    time::Duration,
};

use tidings_adapter::decode_percent;
use tidings_core::TransportError;

use crate::queues::QueueType;

/// A parsed URL.
#[derive(Clone)]
pub(crate) struct Address {
    /// At least one; more are nodes of one cluster.
    pub(crate) hosts: Vec<Host>,
    pub(crate) vhost: String,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) heartbeat: Duration,
    pub(crate) connect_timeout: Duration,
    /// Topics and queues are declared; otherwise it is only looked whether they are there.
    pub(crate) declares: bool,
    /// The type that new queues get; `None`: what the virtual host has.
    pub(crate) queues: Option<QueueType>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) port: u16,
}

/// What `amqps` was told beyond the system's certificates.
#[derive(Debug, Clone, Default)]
pub(crate) struct TlsFiles {
    pub(crate) authorities: Option<PathBuf>,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) server_name: Option<String>,
}

const HEARTBEAT: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Where there is another host to try: a machine that is gone does not answer at all.
const CONNECT_TIMEOUT_OF_MANY: Duration = Duration::from_secs(3);
/// How many hosts a URL may name.
const HOSTS_COUNT_MAX: usize = 16;

impl Address {
    pub(crate) fn parse(url: &str) -> Result<Self, TransportError> {
        let (tls, rest) = match url.split_once("://") {
            Some(("amqp", rest)) => (None, rest),
            Some(("amqps", rest)) => (Some(TlsFiles::default()), rest),
            _ => return Err(malformed("it begins with `amqp://` or `amqps://`")),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, vhost) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, places) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let hosts = hosts(login, places, if tls.is_some() { 5671 } else { 5672 })?;
        let (user, password) = match login {
            "" => ("guest".into(), "guest".into()),
            _ => (decode(user, "user")?, decode(password, "password")?),
        };
        let vhost = match decode(vhost, "vhost")? {
            empty if empty.is_empty() => "/".into(),
            vhost => vhost,
        };
        let is_cluster = hosts.len() > 1;
        let connect_timeout = match is_cluster {
            false => CONNECT_TIMEOUT,
            true => CONNECT_TIMEOUT_OF_MANY,
        };
        let mut address = Self {
            hosts,
            vhost,
            user,
            password,
            tls,
            heartbeat: HEARTBEAT,
            connect_timeout,
            declares: true,
            queues: is_cluster.then_some(QueueType::Quorum),
        };
        for option in query.split('&').filter(|option| !option.is_empty()) {
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            address.set_option(name, &decode(value, name)?)?;
        }
        Ok(address)
    }

    fn set_option(&mut self, name: &str, value: &str) -> Result<(), TransportError> {
        let number = || {
            value
                .parse::<u32>()
                .map_err(|_| malformed(&format!("the option `{name}` is a whole number")))
        };
        match (name, &mut self.tls) {
            ("heartbeat", _) => {
                let seconds = number()?.min(u16::MAX.into());
                self.heartbeat = Duration::from_secs(seconds.into());
            }
            ("connection_timeout", _) => {
                self.connect_timeout = Duration::from_millis(number()?.max(1).into());
            }
            ("declare", _) => {
                self.declares = value
                    .parse()
                    .map_err(|_| malformed("the option `declare` is `true` or `false`"))?;
            }
            ("queues", _) => {
                self.queues = Some(match value {
                    "quorum" => QueueType::Quorum,
                    "classic" => QueueType::Classic,
                    _ => return Err(malformed("the option `queues` is `quorum` or `classic`")),
                });
            }
            ("cacertfile", Some(tls)) => tls.authorities = Some(value.into()),
            ("certfile", Some(tls)) => tls.certificate = Some(value.into()),
            ("keyfile", Some(tls)) => tls.key = Some(value.into()),
            ("server_name_indication", Some(tls)) => tls.server_name = Some(value.into()),
            ("cacertfile" | "certfile" | "keyfile" | "server_name_indication", None) => {
                return Err(malformed(&format!("the option `{name}` needs `amqps://`")));
            }
            _ => {
                return Err(malformed(&format!(
                    "there is no option `{name}`; there are `heartbeat` (seconds), \
                     `connection_timeout` (milliseconds), `declare` (`false`), `queues` \
                     (`quorum` or `classic`), and with `amqps://` also `cacertfile`, \
                     `certfile`, `keyfile` and `server_name_indication`"
                )));
            }
        }
        Ok(())
    }

    /// The hosts in an order of its own for whoever asks, so that those who lose the same node spread over the
    /// others.
    pub(crate) fn shuffled(&self) -> Vec<Host> {
        let random = RandomState::new();
        let mut hosts = self.hosts.clone();
        hosts.sort_by_cached_key(|host| random.hash_one(host));
        hosts
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name.contains(':') {
            true => write!(f, "[{}]:{}", self.name, self.port),
            false => write!(f, "{}:{}", self.name, self.port),
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address")
            .field("hosts", &self.hosts)
            .field("vhost", &self.vhost)
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

fn hosts(login: &str, places: &str, port: u16) -> Result<Vec<Host>, TransportError> {
    // One part of it would silently be taken for the password.
    let for_each = "user and password stand once, before the first host, and `@` in them is `%40`";
    if login
        .split_once('@')
        .is_some_and(|(_, it)| it.contains([',', ';']))
    {
        return Err(malformed(for_each));
    }
    let count = places.split(',').count();
    if count > HOSTS_COUNT_MAX {
        return Err(malformed(&format!(
            "it names {count} hosts, and at most {HOSTS_COUNT_MAX} are possible"
        )));
    }
    let mut hosts: Vec<Host> = Vec::with_capacity(count);
    for (index, place) in places.split(',').enumerate() {
        let which = match count {
            1 => "its host".to_owned(),
            _ => format!("host {} of {count}", index + 1),
        };
        let host = host(place, port).map_err(|rule| malformed(&format!("{which}: {rule}")))?;
        if hosts.contains(&host) {
            return Err(malformed(&format!("it names the host `{host}` twice")));
        }
        hosts.push(host);
    }
    Ok(hosts)
}

/// A host, or the rule that it breaks.
fn host(place: &str, default: u16) -> Result<Host, String> {
    let (name, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (name, rest) = rest
                .split_once(']')
                .ok_or("an IPv6 address ends with `]`")?;
            match (rest, rest.strip_prefix(':')) {
                ("", _) => (name, None),
                (_, Some(port)) => (name, Some(port)),
                _ => return Err("behind the `]` of an IPv6 address comes `:port`".into()),
            }
        }
        None => match place.split_once(':') {
            // What is left of it before the first slash, behind which the vhost begins.
            Some(("amqp" | "amqps", "")) => {
                return Err("`amqp://` stands once, before the first host".into());
            }
            Some((_, rest)) if rest.contains(':') => {
                return Err("an IPv6 address stands in `[` and `]`".into());
            }
            Some((name, port)) => (name, Some(port)),
            None => (place, None),
        },
    };
    let port = match port {
        None | Some("") => default,
        Some(port) => match port.parse() {
            Ok(port) if port != 0 => port,
            _ => return Err("the port is a number from 1 to 65535".into()),
        },
    };
    match decode_percent(name) {
        Some(empty) if empty.is_empty() => Err("there is no name".into()),
        Some(name) if name.contains([';', ' ', ',']) => {
            Err("hosts are separated by `,` alone".into())
        }
        Some(name) => Ok(Host { name, port }),
        None => Err("what is not a letter or digit in the name is percent-encoded UTF-8".into()),
    }
}

fn decode(text: &str, part: &str) -> Result<String, TransportError> {
    decode_percent(text).ok_or_else(|| {
        malformed(&format!(
            "what is not a letter or digit in the {part} is percent-encoded UTF-8"
        ))
    })
}

fn malformed(rule: &str) -> TransportError {
    TransportError::fatal(format!(
        "the broker's URL is not one: {rule}; write `amqp://user:password@host:port/vhost`, \
         or `…@host:port,host:port/vhost` for the nodes of a cluster"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_where_and_as_whom() {
        let check = |url: &str, expected: (&str, u16, &str, &str, &str)| {
            let it = Address::parse(url).expect(url);
            let (host, port, vhost, user, password) = expected;
            let [only] = &*it.hosts else {
                panic!("{url}: {:?}", it.hosts);
            };
            assert_eq!(
                (&*only.name, only.port, &*it.vhost),
                (host, port, vhost),
                "{url}"
            );
            assert_eq!((&*it.user, &*it.password), (user, password), "{url}");
        };
        check("amqp://h", ("h", 5672, "/", "guest", "guest"));
        check("amqps://h/", ("h", 5671, "/", "guest", "guest"));
        check("amqp://u:p@h:1/v", ("h", 1, "v", "u", "p"));
        check("amqp://u@h/%2F", ("h", 5672, "/", "u", ""));
        check("amqp://u%40x:p%3a@h/a%2Fb", ("h", 5672, "a/b", "u@x", "p:"));
        check(
            "amqp://[::1]:99/v?heartbeat=5",
            ("::1", 99, "v", "guest", "guest"),
        );
        assert!(Address::parse("amqp://h").expect("fine").declares);
        assert!(
            !Address::parse("amqp://h?declare=false")
                .expect("fine")
                .declares
        );
        let queues = |url: &str| Address::parse(url).expect(url).queues;
        assert_eq!(queues("amqp://h"), None);
        assert_eq!(queues("amqp://a,b"), Some(QueueType::Quorum));
        assert_eq!(
            queues("amqp://a,b?queues=classic"),
            Some(QueueType::Classic)
        );
        assert_eq!(queues("amqp://h?queues=quorum"), Some(QueueType::Quorum));
        let tls = Address::parse("amqps://h?cacertfile=%2Fca.pem")
            .expect("fine")
            .tls;
        assert_eq!(tls.expect("tls").authorities, Some("/ca.pem".into()));
    }

    #[test]
    fn a_url_names_the_nodes_of_a_cluster() {
        let check = |url: &str, expected: &[&str]| {
            let it = Address::parse(url).expect(url);
            let hosts: Vec<_> = it.hosts.iter().map(ToString::to_string).collect();
            assert_eq!(hosts, expected, "{url}");
            let mut shuffled = it.shuffled();
            shuffled.sort_by_key(|host| it.hosts.iter().position(|it| it == host));
            assert_eq!(shuffled, it.hosts, "{url}");
            let others = it.hosts.len() > 1;
            assert_eq!(it.connect_timeout < CONNECT_TIMEOUT, others, "{url}");
        };
        check("amqp://h", &["h:5672"]);
        check("amqp://u:p@a:1,b,c:3/v", &["a:1", "b:5672", "c:3"]);
        check(
            "amqps://a,[::1]:9,[fe80::2]?heartbeat=1",
            &["a:5671", "[::1]:9", "[fe80::2]:5671"],
        );
        check("amqp://u:p,q@a,b", &["a:5672", "b:5672"]);
        let given = Address::parse("amqp://a,b?connection_timeout=20000").expect("fine");
        assert_eq!(given.connect_timeout, Duration::from_secs(20));
    }

    #[test]
    fn each_begins_with_another_host() {
        let address = Address::parse("amqp://a,b,c").expect("fine");
        let firsts: std::collections::BTreeSet<_> = (0..200)
            .map(|_| address.shuffled()[0].to_string())
            .collect();
        assert_eq!(firsts.len(), 3);
    }

    #[test]
    fn a_malformed_list_of_hosts_is_named() {
        let check = |url: &str, expected: &str| {
            let error = Address::parse(url).expect_err(url).to_string();
            assert!(error.contains(expected), "{url}: {error}");
            assert!(!error.contains("secret"), "{error}");
        };
        check("amqp://u:secret@", "its host: there is no name");
        check("amqp://u:secret@a,,c", "host 2 of 3: there is no name");
        check("amqp://u:secret@a,b,", "host 3 of 3: there is no name");
        check("amqp://u:secret@a,b:x", "host 2 of 2: the port is a number");
        check("amqp://u:secret@a,b:0", "host 2 of 2: the port is a number");
        check(
            "amqp://u:secret@a,::1",
            "host 2 of 2: an IPv6 address stands",
        );
        check("amqp://u:secret@a,[::1]9", "host 2 of 2: behind the `]`");
        check("amqp://u:secret@a;b", "separated by `,`");
        check("amqp://u:secret@a, b", "separated by `,`");
        check("amqp://u:secret@a:1,a:1", "the host `a:1` twice");
        check("amqp://u:secret@a,a:5672", "the host `a:5672` twice");
        check(
            "amqp://u:secret@a,u:secret@b",
            "user and password stand once",
        );
        check(
            "amqp://u:secret@a,amqp://u:secret@b",
            "`amqp://` stands once",
        );
        let many = vec!["h"; 17].join(",");
        check(&format!("amqp://u:secret@{many}"), "at most 16");
    }

    #[test]
    fn a_malformed_url_is_refused_without_showing_the_password() {
        for url in [
            "http://u:secret@h",
            "u:secret@h",
            "amqp://u:secret@",
            "amqp://u:secret@h:port",
            "amqp://u:secret%2@h",
            "amqp://u:secret%zz@h",
            "amqp://u:secret@[::1/v",
            "amqp://u:secret@h/%ff",
            "amqp://u:secret@h?unknown=1",
            "amqp://u:secret@h?heartbeat=soon",
            "amqp://u:secret@h?declare=no",
            "amqp://u:secret@h?queues=stream",
            "amqp://u:secret@h?cacertfile=x",
        ] {
            let error = Address::parse(url).expect_err(url);
            assert!(!error.is_temporary(), "{url}");
            assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
        }
        let address = Address::parse("amqp://u:secret@h").expect("fine");
        assert!(!format!("{address:?}").contains("secret"));
    }
}

//! Where the broker is: `amqp://user:password@host:port/vhost?options`.
//!
//! Who got in with which password is nobody's business: neither `Debug` nor any error shows it,
//! nor the URL it came from.

use std::{fmt, path::PathBuf, time::Duration};

use tidings_core::TransportError;

/// A parsed URL.
#[derive(Clone)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) vhost: String,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) heartbeat: Duration,
    pub(crate) connect_timeout: Duration,
    /// Topics and queues are declared; otherwise it is only looked whether they are there.
    pub(crate) declares: bool,
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

impl Address {
    pub(crate) fn parse(url: &str) -> Result<Self, TransportError> {
        let (tls, rest) = match url.split_once("://") {
            Some(("amqp", rest)) => (None, rest),
            Some(("amqps", rest)) => (Some(TlsFiles::default()), rest),
            _ => return Err(malformed("it begins with `amqp://` or `amqps://`")),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, vhost) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, place) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (host, port) = host_and_port(place, if tls.is_some() { 5671 } else { 5672 })?;
        let (user, password) = match login {
            "" => ("guest".into(), "guest".into()),
            _ => (decode(user, "user")?, decode(password, "password")?),
        };
        let vhost = match decode(vhost, "vhost")? {
            empty if empty.is_empty() => "/".into(),
            vhost => vhost,
        };
        let mut address = Self {
            host,
            port,
            vhost,
            user,
            password,
            tls,
            heartbeat: HEARTBEAT,
            connect_timeout: CONNECT_TIMEOUT,
            declares: true,
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
                     `connection_timeout` (milliseconds), `declare` (`false`), and with `amqps://` also `cacertfile`, \
                     `certfile`, `keyfile` and `server_name_indication`"
                )));
            }
        }
        Ok(())
    }

    /// Host and port, for people.
    pub(crate) fn place(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Address")
            .field("place", &self.place())
            .field("vhost", &self.vhost)
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

fn host_and_port(place: &str, default: u16) -> Result<(String, u16), TransportError> {
    let (host, port) = match place.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest
                .split_once(']')
                .ok_or_else(|| malformed("an IPv6 address ends with `]`"))?;
            (host, port.strip_prefix(':'))
        }
        None => match place.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (place, None),
        },
    };
    let port = match port {
        None | Some("") => default,
        Some(port) => port
            .parse()
            .map_err(|_| malformed("the port is a number below 65536"))?,
    };
    match decode(host, "host")? {
        empty if empty.is_empty() => Err(malformed("there is a host")),
        host => Ok((host, port)),
    }
}

fn decode(text: &str, part: &str) -> Result<String, TransportError> {
    let wrong = || {
        malformed(&format!(
            "what is not a letter or digit in the {part} is percent-encoded UTF-8"
        ))
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'%' {
            bytes.push(byte);
            rest = tail;
            continue;
        }
        let (hex, tail) = tail.split_at_checked(2).ok_or_else(wrong)?;
        let digit = |at: usize| char::from(hex[at]).to_digit(16).ok_or_else(wrong);
        bytes.push((digit(0)? * 16 + digit(1)?) as u8);
        rest = tail;
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

fn malformed(rule: &str) -> TransportError {
    TransportError::fatal(format!(
        "the broker's URL is not one: {rule}; write `amqp://user:password@host:port/vhost`"
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
            assert_eq!(
                (&*it.host, it.port, &*it.vhost),
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
        let tls = Address::parse("amqps://h?cacertfile=%2Fca.pem")
            .expect("fine")
            .tls;
        assert_eq!(tls.expect("tls").authorities, Some("/ca.pem".into()));
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

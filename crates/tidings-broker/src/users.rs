//! Who may log in. A user has a password; the default one, `guest`, may come from this machine
//! only.

use std::fmt;
use std::net::IpAddr;

/// Somebody who may log in.
#[derive(Clone)]
pub struct User {
    name: String,
    password: String,
    loopback_only: bool,
}

impl User {
    /// A user that may come from anywhere.
    pub fn new(name: impl Into<String>, password: impl Into<String>) -> User {
        User {
            name: name.into(),
            password: password.into(),
            loopback_only: false,
        }
    }

    /// The default user `guest` with password `guest`, that only peers on loopback may use.
    pub fn guest() -> User {
        User::new("guest", "guest").loopback_only()
    }

    /// Lets this user in from loopback addresses only.
    pub fn loopback_only(mut self) -> User {
        self.loopback_only = true;
        self
    }
}

/// Never shows the password.
impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User")
            .field("name", &self.name)
            .field("loopback_only", &self.loopback_only)
            .finish_non_exhaustive()
    }
}

/// Why somebody was not let in. Only the broker's log may say which; the peer learns no more than
/// "refused".
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Credentials,
    NotLoopback,
}

/// Looks the user up and compares the password, in a time that does not depend on where they
/// differ.
pub(crate) fn login(
    users: &[User],
    name: &[u8],
    password: &[u8],
    peer: IpAddr,
) -> Result<(), Refused> {
    let user = users.iter().find(|user| user.name.as_bytes() == name);
    // An unknown name is compared too, so that it takes as long as a known one.
    let expected = user.map_or(b"\0".as_slice(), |user| user.password.as_bytes());
    let same = same_bytes(expected, password);
    match user {
        Some(user) if same && user.loopback_only && !peer.to_canonical().is_loopback() => {
            Err(Refused::NotLoopback)
        }
        Some(_) if same => Ok(()),
        _ => Err(Refused::Credentials),
    }
}

fn same_bytes(expected: &[u8], given: &[u8]) -> bool {
    let mut difference = expected.len() ^ given.len();
    for (index, byte) in given.iter().enumerate() {
        let other = expected
            .get(index % expected.len().max(1))
            .copied()
            .unwrap_or(0);
        difference |= usize::from(byte ^ other);
    }
    std::hint::black_box(difference) == 0
}

/// The user and password in a SASL PLAIN response: `[authorization id] NUL user NUL password`.
pub(crate) fn parse_plain(response: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut parts = response.splitn(3, |byte| *byte == 0);
    let _authorization_id = parts.next()?;
    let user = parts.next()?;
    let password = parts.next()?;
    Some((user, password))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_password_from_the_right_place_gets_in() {
        let users = [
            User::guest(),
            User::new("alice", "s3cret"),
            User::new("blank", ""),
        ];
        let local: IpAddr = [127, 0, 0, 1].into();
        let mapped: IpAddr = std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped().into();
        let remote: IpAddr = [192, 0, 2, 7].into();
        let check = |name: &str, password: &str, peer, expected| {
            let got = login(&users, name.as_bytes(), password.as_bytes(), peer);
            assert_eq!(got, expected, "{name}:{password} from {peer}");
        };
        check("guest", "guest", local, Ok(()));
        check("guest", "guest", mapped, Ok(()));
        check("guest", "guest", remote, Err(Refused::NotLoopback));
        check("guest", "", local, Err(Refused::Credentials));
        check("guest", "guestguest", local, Err(Refused::Credentials));
        check("guest", "wrong", remote, Err(Refused::Credentials));
        check("alice", "s3cret", remote, Ok(()));
        check("alice", "s3cre", remote, Err(Refused::Credentials));
        check("blank", "", remote, Ok(()));
        check("nobody", "", local, Err(Refused::Credentials));
        check("nobody", "\0", local, Err(Refused::Credentials));
    }

    #[test]
    fn a_plain_response_has_three_parts() {
        assert_eq!(parse_plain(b"\0u\0p"), Some((&b"u"[..], &b"p"[..])));
        assert_eq!(parse_plain(b"me\0u\0p\0q"), Some((&b"u"[..], &b"p\0q"[..])));
        assert_eq!(parse_plain(b"u\0p"), None);
    }
}

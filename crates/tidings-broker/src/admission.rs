//! Who may be here: how many connections there are, before their login and after it, from one address
//! and from all, and how often somebody may guess a password.
//!
//! Strangers take no place of those who have logged in. When there are too many strangers, the one
//! goes that has been here longest, because a client that knows its password needs milliseconds;
//! and it goes from the address that is over its own limit, if one is.
//!
//! Whoever gives a wrong password waits for the answer, and while several from one address wait,
//! no further password from there is looked at: guessing is slow, however many connections it takes.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tidings_wire::{WireError, reply};
use tokio::sync::Notify;

use crate::options::Limits;

/// Counts who is here.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: Limits,
    books: Mutex<Books>,
    channels: AtomicUsize,
}

#[derive(Debug, Default)]
struct Books {
    next: u64,
    /// The one that came first is the first.
    strangers: BTreeMap<u64, (Origin, Arc<Notify>)>,
    connections: usize,
    origins: HashMap<Origin, Counts>,
}

/// How many there are from one origin.
#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    strangers: usize,
    connections: usize,
    /// Passwords that are being looked at, or were wrong a moment ago.
    logins: usize,
}

/// What counts as one address: an IPv4 address, or the 64 bits of an IPv6 address that a network gives
/// to one customer at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Origin(IpAddr);

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Origin {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = u128::from(address) >> 64 << 64;
                Origin(Ipv6Addr::from(network).into())
            }
            address => Origin(address),
        }
    }
}

impl Admission {
    pub(crate) fn new(limits: &Limits) -> Arc<Admission> {
        Arc::new(Admission {
            limits: limits.clone(),
            books: Mutex::default(),
            channels: AtomicUsize::new(0),
        })
    }

    /// Somebody has connected.
    pub(crate) fn greet(self: &Arc<Admission>, address: IpAddr) -> Stranger {
        let origin = Origin::from(address);
        let mut books = self.books.lock();
        let of_origin = books.count(origin, |counts| counts.strangers);
        if of_origin >= self.limits.handshakes_per_address_max {
            books.push_out(|other| other == origin);
        } else if books.strangers.len() >= self.limits.handshakes_max {
            books.push_out(|_| true);
        }
        let number = books.next;
        books.next += 1;
        let pushed_out = Arc::new(Notify::new());
        books.strangers.insert(number, (origin, pushed_out.clone()));
        books.change(origin, |counts| counts.strangers += 1);
        Stranger {
            admission: self.clone(),
            origin,
            number,
            pushed_out,
        }
    }

    /// A channel is to be opened.
    pub(crate) fn open_channel(self: &Arc<Admission>) -> Result<ChannelPlace, String> {
        let max = self.limits.channels_max;
        if self.channels.fetch_add(1, Ordering::Relaxed) < max {
            return Ok(ChannelPlace(self.clone()));
        }
        self.channels.fetch_sub(1, Ordering::Relaxed);
        Err(format!(
            "number of channels opened has reached the maximum allowed limit of ({max}) for all \
             connections (`channels_max`)"
        ))
    }
}

impl Books {
    fn count(&self, origin: Origin, what: impl FnOnce(&Counts) -> usize) -> usize {
        self.origins.get(&origin).map_or(0, what)
    }

    fn change(&mut self, origin: Origin, change: impl FnOnce(&mut Counts)) {
        let counts = self.origins.entry(origin).or_default();
        change(counts);
        if *counts == Counts::default() {
            self.origins.remove(&origin);
        }
    }

    /// Ends the handshake that began first among these.
    fn push_out(&mut self, is_meant: impl Fn(Origin) -> bool) {
        let meant = self
            .strangers
            .iter()
            .find(|(_, (origin, _))| is_meant(*origin));
        if let Some(number) = meant.map(|(number, _)| *number) {
            self.forget(number);
        }
    }

    /// The stranger is none any more; if it still waits, it is told.
    fn forget(&mut self, number: u64) {
        if let Some((origin, pushed_out)) = self.strangers.remove(&number) {
            self.change(origin, |counts| counts.strangers -= 1);
            pushed_out.notify_one();
        }
    }
}

/// A connection before its login.
#[derive(Debug)]
pub(crate) struct Stranger {
    admission: Arc<Admission>,
    origin: Origin,
    number: u64,
    pushed_out: Arc<Notify>,
}

impl Stranger {
    /// Completes when it has to go, because there are too many.
    pub(crate) async fn pushed_out(&self) {
        self.pushed_out.notified().await;
    }

    /// It is about to say who it is. Keep what this gives for as long as a wrong password is to hold up
    /// others.
    pub(crate) fn log_in(&self) -> Result<Login, WireError> {
        let mut books = self.admission.books.lock();
        let max = self.admission.limits.refused_logins_per_address_max;
        if books.count(self.origin, |counts| counts.logins) >= max {
            let text = format!(
                "login is not possible now: {max} logins from this address were refused a moment ago \
                 (`refused_logins_per_address_max`)"
            );
            return Err(WireError::new(reply::NOT_ALLOWED, text));
        }
        books.change(self.origin, |counts| counts.logins += 1);
        Ok(Login {
            admission: self.admission.clone(),
            origin: self.origin,
        })
    }

    /// It has logged in, and is to have a place.
    pub(crate) fn let_in(&self) -> Result<Place, WireError> {
        let Limits {
            connections_max,
            connections_per_address_max,
            ..
        } = self.admission.limits;
        let refused = |text: String| Err(WireError::new(reply::NOT_ALLOWED, text));
        let mut books = self.admission.books.lock();
        if books.connections >= connections_max {
            return refused(format!(
                "connection refused: node connection limit ({connections_max}) is reached \
                 (`connections_max`)"
            ));
        }
        if books.count(self.origin, |counts| counts.connections) >= connections_per_address_max {
            return refused(format!(
                "connection refused: connection limit of one address \
                 ({connections_per_address_max}) is reached (`connections_per_address_max`)"
            ));
        }
        books.connections += 1;
        books.change(self.origin, |counts| counts.connections += 1);
        Ok(Place {
            admission: self.admission.clone(),
            origin: self.origin,
        })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.admission.books.lock().forget(self.number);
    }
}

/// A login that is being looked at, or was refused.
#[derive(Debug)]
pub(crate) struct Login {
    admission: Arc<Admission>,
    origin: Origin,
}

impl Drop for Login {
    fn drop(&mut self) {
        let mut books = self.admission.books.lock();
        books.change(self.origin, |counts| counts.logins -= 1);
    }
}

/// The place of a connection.
#[derive(Debug)]
pub(crate) struct Place {
    admission: Arc<Admission>,
    origin: Origin,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut books = self.admission.books.lock();
        books.connections -= 1;
        books.change(self.origin, |counts| counts.connections -= 1);
    }
}

/// The place of a channel.
#[derive(Debug)]
pub(crate) struct ChannelPlace(Arc<Admission>);

impl Drop for ChannelPlace {
    fn drop(&mut self) {
        self.0.channels.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn is_pushed_out(stranger: &Stranger) -> bool {
        let books = stranger.admission.books.lock();
        !books.strangers.contains_key(&stranger.number)
    }

    #[test]
    fn the_stranger_that_has_been_here_longest_makes_room() {
        let admission = Admission::new(&Limits {
            handshakes_max: 4,
            handshakes_per_address_max: 2,
            ..Limits::default()
        });
        let greet = |text| admission.greet(address(text));
        let other = greet("192.0.2.1");
        // Two addresses of one IPv6 network are one origin, and so are the two ways to write one of IPv4.
        let [first, second] = ["2001:db8::1", "2001:db8::2"].map(greet);
        let third = greet("2001:db8::3");
        let out = [&other, &first, &second, &third].map(is_pushed_out);
        assert_eq!(out, [false, true, false, false]);
        let same = greet("::ffff:192.0.2.1");
        let new = greet("192.0.2.3");
        let out = [&other, &second, &third, &same, &new].map(is_pushed_out);
        assert_eq!(out, [true, false, false, false, false]);
        drop((other, first, second, third, same, new));
        let books = admission.books.lock();
        assert!(books.strangers.is_empty() && books.origins.is_empty());
    }

    #[test]
    fn places_are_counted_and_given_back() {
        let admission = Admission::new(&Limits {
            connections_max: 3,
            connections_per_address_max: 2,
            refused_logins_per_address_max: 1,
            channels_max: 1,
            ..Limits::default()
        });
        let [a, b] = ["192.0.2.1", "192.0.2.2"].map(|text| admission.greet(address(text)));
        let refused = |result: Result<Place, WireError>| {
            let error = result.expect_err("no place");
            assert_eq!(error.code(), reply::NOT_ALLOWED);
            error.message().to_owned()
        };
        let first = a.let_in().expect("a place");
        let second = a.let_in().expect("a place");
        assert!(refused(a.let_in()).contains("`connections_per_address_max`"));
        let third = b.let_in().expect("a place");
        assert!(refused(b.let_in()).contains("`connections_max`"));
        drop(first);
        drop((second, third, b.let_in().expect("a place")));

        let login = a.log_in().expect("the first");
        assert_eq!(a.log_in().map(drop).map_err(|e| e.code()), Err(530));
        assert!(b.log_in().is_ok(), "another address");
        drop(login);
        assert!(a.log_in().is_ok());

        let channel = admission.open_channel().expect("a place");
        assert!(
            admission
                .open_channel()
                .is_err_and(|text| text.contains("`channels_max`"))
        );
        drop(channel);
        assert!(admission.open_channel().is_ok());
        drop((a, b));
        assert!(admission.books.lock().origins.is_empty());
    }
}

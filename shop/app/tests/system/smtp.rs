//! A mail server that takes its time and counts: enough of SMTP for a client to hand over mail.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Result, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A running mail server. It lives as long as the test process.
pub(crate) struct SlowMail {
    port: u16,
    received: Arc<Mutex<Received>>,
    closed: Arc<AtomicBool>,
}

#[derive(Default)]
struct Received {
    /// Recipient and subject of each mail, with how often it came.
    mails: BTreeMap<(String, String), usize>,
    first_and_last: Option<(Instant, Instant)>,
}

impl SlowMail {
    /// Listens on a port of its own and will take `delay` for each mail, once it is open.
    pub(crate) fn start(delay: Duration) -> SlowMail {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let received = Arc::new(Mutex::new(Received::default()));
        let closed = Arc::new(AtomicBool::new(true));
        let (shared, waits) = (Arc::clone(&received), Arc::clone(&closed));
        thread::spawn(move || {
            while waits.load(Ordering::Acquire) {
                thread::sleep(Duration::from_millis(10));
            }
            for stream in listener.incoming().flatten() {
                let received = Arc::clone(&shared);
                // A client that goes away in the middle is no concern of a mail server.
                thread::spawn(move || converse(&stream, delay, &received));
            }
        });
        SlowMail {
            port,
            received,
            closed,
        }
    }

    /// Lets those in who wait, and from now on everybody.
    pub(crate) fn open(&self) {
        self.closed.store(false, Ordering::Release);
    }

    pub(crate) fn url(&self) -> String {
        format!("smtp://127.0.0.1:{}", self.port)
    }

    /// How many mails came.
    pub(crate) fn count(&self) -> usize {
        self.received().mails.values().sum()
    }

    /// The mails that came more than once.
    pub(crate) fn repeated(&self) -> Vec<(String, String)> {
        let received = self.received();
        let repeated = received.mails.iter().filter(|(_, count)| **count > 1);
        repeated.map(|(mail, _)| mail.clone()).collect()
    }

    /// The time from the first mail to the last.
    pub(crate) fn took(&self) -> Duration {
        let times = self.received().first_and_last;
        times.map_or(Duration::ZERO, |(first, last)| last - first)
    }

    fn received(&self) -> std::sync::MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn converse(stream: &TcpStream, delay: Duration, received: &Mutex<Received>) -> Result<()> {
    let mut out = stream;
    out.write_all(b"220 ready\r\n")?;
    let mut lines = BufReader::new(stream).lines();
    while let Some(line) = lines.next() {
        match line?.to_ascii_uppercase().split_whitespace().next() {
            Some("DATA") => {
                out.write_all(b"354 go on\r\n")?;
                let mut mail = Vec::new();
                for line in lines.by_ref() {
                    let line = line?;
                    if line == "." {
                        break;
                    }
                    mail.push(line);
                }
                thread::sleep(delay);
                note(received, &mail);
                out.write_all(b"250 taken\r\n")?;
            }
            Some("QUIT") => return out.write_all(b"221 bye\r\n"),
            _ => out.write_all(b"250 ok\r\n")?,
        }
    }
    Ok(())
}

fn note(received: &Mutex<Received>, mail: &[String]) {
    let header = |name: &str| {
        let line = mail.iter().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    };
    let mut received = received.lock().unwrap_or_else(PoisonError::into_inner);
    *received
        .mails
        .entry((header("To:"), header("Subject:")))
        .or_default() += 1;
    let now = Instant::now();
    let first = received.first_and_last.map_or(now, |(first, _)| first);
    received.first_and_last = Some((first, now));
}

//! Who stands beside whom: the broker in the box, and RabbitMQ if it is there.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::Context as _;

/// The program at `path`, or the one called `name` that was built beside this program.
pub(crate) fn sibling(path: Option<&Path>, name: &str) -> anyhow::Result<PathBuf> {
    match path {
        Some(path) => Ok(path.to_owned()),
        None => Ok(std::env::current_exe()?.with_file_name(name)),
    }
}

/// A broker and a kind of queue on it.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    /// D1 or D2: what a confirm of this peer means.
    pub(crate) durability: &'static str,
    pub(crate) url: String,
    /// `x-queue-type`, if it is to be asked for.
    pub(crate) queue_type: Option<&'static str>,
}

/// RabbitMQ's two kinds of durable queue.
pub(crate) fn rabbitmq(url: &str) -> [Peer; 2] {
    let peer = |name, durability, queue_type| Peer {
        name,
        durability,
        url: url.to_owned(),
        queue_type: Some(queue_type),
    };
    // A classic queue confirms from the page cache, a quorum queue after its fsync.
    [
        peer("RabbitMQ quorum", "D2", "quorum"),
        peer("RabbitMQ classic", "D1", "classic"),
    ]
}

/// RabbitMQ with the queues that the toolkit makes.
pub(crate) fn rabbitmq_as_it_is(url: &str) -> Peer {
    Peer {
        name: "RabbitMQ",
        durability: "D1",
        url: url.to_owned(),
        queue_type: None,
    }
}

/// The broker in the box, in a process and a folder of its own.
pub(crate) struct Tidings {
    process: Child,
    pub(crate) peer: Peer,
    _data: tempfile::TempDir,
}

impl Tidings {
    pub(crate) fn start(program: &Path) -> anyhow::Result<Self> {
        let data = tempfile::tempdir_in(std::env::current_dir()?)?;
        let mut process = Command::new(program)
            .args(["--listen", "127.0.0.1:0", "--data"])
            .arg(data.path())
            .env("RUST_LOG", "warn")
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{}`", program.display()))?;
        let stdout = process.stdout.take().context("no stdout")?;
        let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
        let line = lines
            .find_map(|line| line.strip_prefix("listening amqp ").map(str::to_owned))
            .context("the broker ended before it listened")?;
        std::thread::spawn(move || lines.for_each(drop));
        let peer = Peer {
            name: "Tidings",
            durability: "D2",
            url: format!("amqp://guest:guest@{line}/"),
            queue_type: None,
        };
        Ok(Self {
            process,
            peer,
            _data: data,
        })
    }
}

impl Drop for Tidings {
    fn drop(&mut self) {
        // Its folder is temporary: nothing is left to shut down in order.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

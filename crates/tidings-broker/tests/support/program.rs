//! The program itself, as a process.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The running program; killed when it goes out of scope.
pub struct Program {
    pub child: Child,
    pub addr: SocketAddr,
}

impl Program {
    pub fn start(data: &Path) -> Program {
        Program::start_with(data, Stdio::inherit())
    }

    pub fn start_with(data: &Path, log: Stdio) -> Program {
        Program::start_as(data, log, &[])
    }

    /// With so many megabytes of messages in memory.
    pub fn start_with_memory(data: &Path, megabytes: u64) -> Program {
        let memory = megabytes.to_string();
        Program::start_as(data, Stdio::inherit(), &["--memory-max", &memory])
    }

    fn start_as(data: &Path, log: Stdio, more: &[&str]) -> Program {
        let mut child = command(&[
            "--listen",
            "127.0.0.1:0",
            "--data",
            &data.display().to_string(),
        ])
        .args(more)
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .expect("started");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut line = || lines.next().expect("a line").expect("text");
        let first = line();
        let addr = first
            .strip_prefix("listening amqp ")
            .expect("the address first");
        let addr = addr.parse().expect("an address");
        assert_eq!(line(), "ready");
        Program { child, addr }
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("gone");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings-broker"));
    command
        .args(arguments)
        .env("RUST_LOG", "warn")
        .env_remove("TIDINGS_DATA");
    command
        .env_remove("TIDINGS_AMQP_LISTEN")
        .env_remove("TIDINGS_USERS");
    command
}

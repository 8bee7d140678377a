//! A server that speaks S3: `moto` from PyPI, which keeps its buckets in memory.
//!
//! It is a simulator, and no test may claim durability by it; it parses, signs and refuses as S3
//! does. It does not look at signatures.

use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::{Process, free_port, wait_until};

/// It imports for a while.
const START_MAX: Duration = Duration::from_secs(60);

/// A server that is ended when this is dropped.
pub struct S3 {
    port: u16,
    _process: Process,
}

impl S3 {
    /// Starts it with the packages in this folder, in which `pip install --target` put them.
    pub fn start(packages: &Path) -> Result<S3> {
        let port = free_port()?;
        let mut command = Process::command("python3");
        command
            .args([
                "-m",
                "moto.server",
                "-H",
                "127.0.0.1",
                "-p",
                &port.to_string(),
            ])
            .env("PYTHONPATH", packages)
            .env("PYTHONDONTWRITEBYTECODE", "1");
        let mut process = Process::start(command)?;
        wait_until("the S3 server to accept", START_MAX, || {
            !process.is_running() || TcpStream::connect(("127.0.0.1", port)).is_ok()
        })?;
        anyhow::ensure!(
            process.is_running(),
            "it ended: {}",
            process.stderr().join("\n")
        );
        Ok(S3 {
            port,
            _process: process,
        })
    }

    /// Where it answers, with the bucket in the path.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

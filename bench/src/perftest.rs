//! RabbitMQ's own load driver, PerfTest, as a second opinion that nobody here wrote.
//!
//! It comes from Maven as `com.rabbitmq:perf-test`; this only starts it and reads its summary.

use std::{path::Path, process::Command};

use anyhow::{Context as _, ensure};

use crate::{
    broker::{Job, Load},
    peers::Peer,
};

/// Runs PerfTest from the jars in `lib` for one job; returns messages per second.
pub(crate) fn run(
    lib: &Path,
    peer: &Peer,
    queue: &str,
    job: Job,
    load: &Load,
) -> anyhow::Result<f64> {
    let mut command = Command::new("java");
    command
        .arg("-cp")
        .arg(lib.join("*"))
        .arg("com.rabbitmq.perf.PerfTest")
        .args(["--uri", &peer.url, "--queue", queue, "--id", "bench"])
        .args([
            "--producers",
            "1",
            "--flag",
            "persistent",
            "--auto-delete",
            "false",
        ])
        .args(["--size", &load.body_bytes.to_string()])
        .args(["--confirm", &load.window.to_string()])
        .args(["--time", &load.seconds.to_string()]);
    match job {
        Job::Publish => command.args(["--consumers", "0"]),
        Job::PublishAndConsume => command.args([
            "--consumers",
            "1",
            "--qos",
            "1000",
            "--multi-ack-every",
            "100",
        ]),
    };
    if let Some(queue_type) = peer.queue_type {
        command.args(["--queue-args", &format!("x-queue-type={queue_type}")]);
    }
    let output = command.output().context("cannot start `java`")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "PerfTest failed: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let wanted = match job {
        Job::Publish => "sending rate avg: ",
        Job::PublishAndConsume => "receiving rate avg: ",
    };
    let rate = text
        .lines()
        .find_map(|line| line.split_once(wanted)?.1.split_whitespace().next());
    let rate = rate.with_context(|| format!("PerfTest printed no `{wanted}`: {text}"))?;
    rate.parse()
        .with_context(|| format!("`{rate}` is not a rate"))
}

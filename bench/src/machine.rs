//! What the figures were taken on: without it a ratio cannot be judged.

use std::{
    fs,
    io::Write,
    time::{Duration, Instant},
};

use serde::Serialize;

/// The machine and how busy it was when a run began.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
    load_average: String,
    fdatasync_p50_us: u128,
    fdatasync_p99_us: u128,
}

impl Machine {
    /// Looks around, and times 200 appends of 4 KiB with fdatasync into a file made beforehand.
    pub(crate) fn look() -> anyhow::Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map_or("unknown", |(_, model)| model);
        let read = |path: &str| {
            fs::read_to_string(path)
                .unwrap_or_default()
                .trim()
                .to_owned()
        };
        let mut syncs = fdatasync_times(200)?;
        syncs.sort_unstable();
        Ok(Self {
            cpu: cpu.to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            kernel: read("/proc/sys/kernel/osrelease"),
            load_average: read("/proc/loadavg"),
            fdatasync_p50_us: syncs[syncs.len() / 2].as_micros(),
            fdatasync_p99_us: syncs[syncs.len() * 99 / 100].as_micros(),
        })
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} x {}, Linux {}, load {}, fdatasync of 4 KiB: p50 {} us, p99 {} us",
            self.cores,
            self.cpu,
            self.kernel,
            self.load_average,
            self.fdatasync_p50_us,
            self.fdatasync_p99_us
        )
    }
}

fn fdatasync_times(count: usize) -> anyhow::Result<Vec<Duration>> {
    const BLOCK: [u8; 4096] = [7; 4096];
    let mut file = tempfile::tempfile_in(std::env::current_dir()?)?;
    for _ in 0..count {
        file.write_all(&BLOCK)?;
    }
    file.sync_all()?;
    std::io::Seek::rewind(&mut file)?;
    (0..count)
        .map(|_| {
            let start = Instant::now();
            file.write_all(&BLOCK)?;
            file.sync_data()?;
            Ok(start.elapsed())
        })
        .collect()
}

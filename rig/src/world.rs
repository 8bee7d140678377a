//! What is under attack: a broker and a database with a proxy in front of each, and the parts as
//! processes of their own.

use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tidings_testing::servers::{Postgres, Process};
use tokio::runtime::Runtime;

use crate::{
    broker::Broker,
    leg::Leg,
    proxy::{Proxies, Proxy},
    stack::{self, Stack},
    witness::Witness,
};

/// How long a part may take until it is ready, on a machine that is busy.
pub(crate) const READY_MAX: Duration = Duration::from_secs(120);

/// How many processes of each kind there are.
const INSTANCES: u64 = 2;

/// How often a part that ends by itself is started again before that is no accident any more.
const ENDED_MAX: u32 = 200;

/// Everything that runs in one leg.
pub(crate) struct World {
    // First, so that they end before what they depend on.
    pub(crate) parts: Vec<PartProcess>,
    pub(crate) seed: u64,
    sagas_per_mille: u64,
    shelf: u64,
    pub(crate) folder: PathBuf,
    pub(crate) stack: Stack,
    pub(crate) broker_proxies: Proxies,
    pub(crate) database_proxy: Option<Proxy>,
    pub(crate) broker: Broker,
    pub(crate) postgres: Option<Postgres>,
    pub(crate) runtime: Runtime,
    /// Handlers that aborted their process.
    pub(crate) aborted: u32,
    started: Instant,
}

/// What a part is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Producer,
    Consumer,
}

/// One part and its process.
pub(crate) struct PartProcess {
    pub(crate) kind: Kind,
    pub(crate) instance: u64,
    process: Option<Process>,
    /// Nobody starts it now, because a fault keeps it away or stopped.
    pub(crate) is_held: bool,
    ended: u32,
}

impl World {
    /// Starts everything and returns when all parts are ready.
    pub(crate) fn start(leg: &Leg, folder: &Path) -> Result<Self> {
        let stack = leg.stack;
        std::fs::create_dir_all(folder)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        let postgres = match stack.database {
            stack::Database::Postgres => Some(Postgres::start()?),
            stack::Database::Sqlite => None,
        };
        let (broker, broker_proxies) = runtime.block_on(Broker::start(stack.broker, folder))?;
        let database_proxy = match &postgres {
            Some(postgres) => Some(runtime.block_on(Proxy::start(postgres.port()))?),
            None => None,
        };
        let mut world = Self {
            parts: Vec::new(),
            seed: leg.seed,
            sagas_per_mille: leg.sagas_per_mille,
            shelf: leg.shelf,
            folder: folder.to_owned(),
            stack,
            broker_proxies,
            database_proxy,
            broker,
            postgres,
            runtime,
            aborted: 0,
            started: Instant::now(),
        };
        world.allow(0)?;
        for kind in [Kind::Consumer, Kind::Producer] {
            for instance in 0..INSTANCES {
                world.parts.push(PartProcess {
                    kind,
                    instance,
                    process: None,
                    is_held: false,
                    ended: 0,
                });
            }
        }
        for number in 0..world.parts.len() {
            world.start_part(number)?;
        }
        for part in &mut world.parts {
            if let Some(process) = &mut part.process {
                process.wait_for_line(READY_MAX, |line| line == "ready")?;
            }
        }
        Ok(world)
    }

    /// True if the ordered consumer runs: the transport says that it keeps order.
    pub(crate) fn is_ordered(&self) -> bool {
        let consumers = self.parts.iter().filter(|part| part.kind == Kind::Consumer);
        consumers
            .filter_map(|part| part.process.as_ref())
            .any(|process| process.stdout().iter().any(|line| line == "ordered"))
    }

    /// Says how many events there may be in all.
    pub(crate) fn allow(&self, events: u64) -> Result<()> {
        // Renamed, so that nobody reads half a number.
        let (new, quota) = (self.folder.join("quota.new"), self.folder.join("quota"));
        std::fs::write(&new, events.to_string())?;
        std::fs::rename(new, quota).context("cannot write the quota")
    }

    /// The numbers of the parts of a kind.
    pub(crate) fn all_of(&self, kind: Kind) -> Vec<usize> {
        let numbers = 0..self.parts.len();
        numbers
            .filter(|number| self.parts[*number].kind == kind)
            .collect()
    }

    /// Starts a part, if it does not run.
    pub(crate) fn start_part(&mut self, number: usize) -> Result<()> {
        let mut command = Process::command(std::env::current_exe()?);
        let part = &self.parts[number];
        if part.process.is_some() {
            return Ok(());
        }
        let (name, database) = match part.kind {
            Kind::Producer => ("producer", "producer.db"),
            Kind::Consumer => ("consumer", "consumer.db"),
        };
        let database = match &self.database_proxy {
            Some(proxy) => format!("postgres://postgres@127.0.0.1:{}/postgres", proxy.port()),
            None => self.folder.join(database).display().to_string(),
        };
        let broker = self.broker.url(&self.broker_proxies);
        command.envs(self.broker.env());
        command.args(["part", name, "--broker", &broker, "--database", &database]);
        command.args(["--seed", &self.seed.to_string()]);
        command.args(["--instance", &part.instance.to_string()]);
        if part.kind == Kind::Producer {
            command.arg("--quota").arg(self.folder.join("quota"));
            command.args(["--sagas-per-mille", &self.sagas_per_mille.to_string()]);
            if part.instance == 0 {
                command.args(["--shelf", &self.shelf.to_string()]);
            }
        }
        let part = &mut self.parts[number];
        part.process = Some(Process::start(command)?);
        part.is_held = false;
        Ok(())
    }

    /// `kill -9` on a part. It stays away until it is started.
    pub(crate) fn kill_part(&mut self, number: usize) {
        if let Some(mut process) = self.parts[number].process.take() {
            process.kill9();
            self.keep_output(number, &process);
        }
        self.parts[number].is_held = true;
    }

    /// SIGSTOP, or SIGCONT.
    pub(crate) fn stop_part(&mut self, number: usize, stops: bool) -> Result<()> {
        let part = &mut self.parts[number];
        let Some(process) = &mut part.process else {
            return Ok(());
        };
        // Asking first makes sure that the id is still this process's.
        if !process.is_running() {
            return Ok(());
        }
        let id = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
        let id = id.context("a part has no process id")?;
        kill_process(id, if stops { Signal::STOP } else { Signal::CONT })?;
        part.is_held = stops;
        Ok(())
    }

    /// Starts parts again that ended by themselves. Says which.
    pub(crate) fn look_after_parts(&mut self) -> Result<Vec<String>> {
        let mut said = Vec::new();
        for number in 0..self.parts.len() {
            let part = &mut self.parts[number];
            if part.is_held {
                continue;
            }
            let Some(status) = part.process.as_mut().and_then(Process::status) else {
                continue;
            };
            part.ended += 1;
            let name = part.name();
            if let Some(process) = part.process.take() {
                self.keep_output(number, &process);
            }
            if status.signal() == Some(Signal::ABORT.as_raw()) {
                self.aborted += 1;
            }
            said.push(format!(
                "{name} ended by itself ({status}) and is started again"
            ));
            if self.parts[number].ended > ENDED_MAX {
                bail!("{name} has ended by itself more than {ENDED_MAX} times ({status})");
            }
            self.start_part(number)?;
        }
        Ok(said)
    }

    /// The supervisor's own connection with the broker, past the proxy.
    pub(crate) fn witness(&self) -> Result<Witness> {
        self.runtime.block_on(self.broker.witness())
    }

    /// Keeps what a process printed, for whoever looks into a failure.
    fn keep_output(&self, number: usize, process: &Process) {
        let part = &self.parts[number];
        let path = self.folder.join(format!("{}.log", part.name()));
        let file = OpenOptions::new().create(true).append(true).open(path);
        if let Ok(mut file) = file {
            let ended = self.started.elapsed();
            // What cannot be kept is only missed.
            let _ = writeln!(
                file,
                "{}\n--- ended after {ended:.1?}",
                process.stderr().join("\n")
            );
        }
    }

    /// Keeps what all that still run have printed.
    pub(crate) fn keep_all_output(&self) {
        for (number, part) in self.parts.iter().enumerate() {
            if let Some(process) = &part.process {
                self.keep_output(number, process);
            }
        }
    }
}

impl PartProcess {
    pub(crate) fn name(&self) -> String {
        let kind = match self.kind {
            Kind::Producer => "producer",
            Kind::Consumer => "consumer",
        };
        format!("{kind}-{}", self.instance)
    }
}

//! A run: legs, one after the other, whose results are kept in a folder, so that a run that was
//! ended goes on where it was.
//!
//! A leg is the unit that is repeated: it has its own seed, and a world of its own that is gone
//! afterwards. What a leg has found is written down when it ends.

use std::{
    fs::OpenOptions,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::{leg::Leg, random, stack::Stack, tally::Tally};

/// Faults of one leg, at most.
const LEG_FAULTS_MAX: u64 = 50;

/// What a run does, as it is kept in its folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) stack: String,
    pub(crate) seed: u64,
    pub(crate) messages: u64,
    pub(crate) faults: u64,
    #[serde(default)]
    pub(crate) only_kills: bool,
    pub(crate) shelf: u64,
    /// Absent in the plans of runs from before there were sagas.
    #[serde(default)]
    pub(crate) sagas: u64,
    /// Seconds for which all consumers are away in the first leg, after its faults.
    pub(crate) away: u64,
}

/// A run and its folder.
pub(crate) struct Run {
    plan: Plan,
    folder: PathBuf,
}

impl Run {
    /// A new run in `folder`, which is made.
    pub(crate) fn new(plan: Plan, folder: PathBuf) -> Result<Self> {
        let file = folder.join("plan.json");
        ensure!(
            !file.exists(),
            "there is a run in {} already; go on with `--resume`, or take another folder",
            folder.display()
        );
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        // Absolute, because the parts get paths in it.
        let folder = folder.canonicalize()?;
        std::fs::write(&file, serde_json::to_string_pretty(&plan)?)?;
        Ok(Self { plan, folder })
    }

    /// The run that was begun in `folder`.
    pub(crate) fn resume(folder: &Path) -> Result<Self> {
        let file = folder.join("plan.json");
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("cannot resume: there is no run in {}", folder.display()))?;
        let plan = serde_json::from_str(&text);
        let plan = plan.with_context(|| format!("cannot read {}", file.display()))?;
        Ok(Self {
            plan,
            folder: folder.canonicalize()?,
        })
    }

    /// A folder that no run has yet.
    pub(crate) fn new_folder(stack: Stack, seed: u64) -> PathBuf {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or("target".into(), PathBuf::from);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs();
        target.join("rig").join(format!("{stack}-{seed}-{now}"))
    }

    /// Runs the legs that are missing, or only the one with number `only`. Prints the table; true if
    /// every promise was kept.
    pub(crate) fn go(&self, only: Option<u64>) -> Result<bool> {
        let Plan {
            stack,
            seed,
            messages,
            faults,
            ..
        } = &self.plan;
        eprintln!(
            "{stack}, seed {seed}, {messages} messages, {faults} faults, in {}",
            self.folder.display()
        );
        let mut tallies = self.tallies()?;
        if let Some(number) = only {
            ensure!(
                number < self.legs(),
                "there are {} legs, counted from 0",
                self.legs()
            );
            let tally = self.leg(number)?;
            return self.report(&tally);
        }
        while (tallies.len() as u64) < self.legs() {
            let number = tallies.len() as u64;
            let tally = self.leg(number)?;
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(self.folder.join("legs.jsonl"));
            writeln!(file?, "{}", serde_json::to_string(&tally)?)?;
            tallies.push(tally);
        }
        let mut all = Tally::default();
        for tally in &tallies {
            all.add(tally);
        }
        self.report(&all)
    }

    fn legs(&self) -> u64 {
        self.plan.faults.div_ceil(LEG_FAULTS_MAX).max(1)
    }

    fn tallies(&self) -> Result<Vec<Tally>> {
        let file = self.folder.join("legs.jsonl");
        let Ok(text) = std::fs::read_to_string(&file) else {
            return Ok(Vec::new());
        };
        let tallies = text.lines().map(serde_json::from_str);
        let tallies: Result<_, _> = tallies.collect();
        tallies.with_context(|| {
            format!(
                "cannot read {}; remove its damaged last line",
                file.display()
            )
        })
    }

    fn leg(&self, number: u64) -> Result<Tally> {
        let Ok(stack) = self.plan.stack.parse() else {
            bail!("`{}` is no stack", self.plan.stack);
        };
        let legs = self.legs();
        // The parts add up to the whole.
        let part = |whole: u64| whole * (number + 1) / legs - whole * number / legs;
        let leg = Leg {
            stack,
            seed: random::part(self.plan.seed, number),
            messages: part(self.plan.messages),
            faults: part(self.plan.faults),
            only_kills: self.plan.only_kills,
            sagas_per_mille: 1000 * self.plan.sagas / self.plan.messages.max(1),
            shelf: if number == 0 { self.plan.shelf } else { 0 },
            away: Duration::from_secs(if number == 0 { self.plan.away } else { 0 }),
        };
        let folder = self.folder.join(format!("leg-{number}"));
        if folder.exists() {
            std::fs::remove_dir_all(&folder)?;
        }
        let tally = leg.run(&folder);
        let tally = tally.with_context(|| format!("leg {number} could not be run to its end"))?;
        eprintln!(
            "leg {number} of {legs}: {}",
            if tally.is_kept() { "kept" } else { "BROKEN" }
        );
        if tally.is_kept() {
            // Only what says what happened is worth keeping.
            for entry in std::fs::read_dir(&folder)?.flatten() {
                if entry.file_name() != "faults.log" {
                    let path = entry.path();
                    let _ = std::fs::remove_dir_all(&path).or_else(|_| std::fs::remove_file(&path));
                }
            }
        }
        Ok(tally)
    }

    fn report(&self, tally: &Tally) -> Result<bool> {
        println!("seed {}\n", self.plan.seed);
        println!("{}", tally.table(&self.plan.stack));
        for (fault, count) in &tally.faults {
            println!("{count:>6} × {fault}");
        }
        println!("{:>6} × a handler that aborted its process", tally.aborted);
        if tally.elections > 0 {
            let count = tally.elections;
            println!(
                "{count:>6} × an operator had to call an election, for a queue without a leader"
            );
        }
        for (end, count) in &tally.sagas {
            println!("{count:>6} sagas {end}");
        }
        println!("{:>6} events waited for a listener", tally.shelved);
        println!(
            "{:>6} s waited the oldest event of a backlog, {} s one that had failed before",
            tally.waited_ms / 1000,
            tally.retried_waited_ms / 1000
        );
        if tally.is_kept() {
            return Ok(true);
        }
        eprintln!("\nbroken:");
        for finding in &tally.described {
            eprintln!("  {finding}");
        }
        eprintln!(
            "look at leg-*/faults.log and the logs and databases beside it in {}; `--resume {} --leg \
             N` runs one leg again",
            self.folder.display(),
            self.folder.display()
        );
        Ok(false)
    }
}

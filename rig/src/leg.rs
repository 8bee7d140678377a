//! One leg of a run: a new world, some faults while events are committed, peace, and the books.

use std::{
    fs::File,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};

use crate::{
    books::{Ledger, Progress, SHELF_QUEUE},
    faults::{Fault, Faults},
    messages::{SHELF, TOPIC},
    random::Random,
    stack::Stack,
    tally::{Promise, Tally},
    world::{Kind, World},
};

/// Between two faults.
const GAP: (Duration, Duration) = (Duration::from_millis(200), Duration::from_millis(1500));

/// How often to look after the parts and the faults that are on.
const TICK: Duration = Duration::from_millis(50);

/// When nothing has changed for so long after the last fault, what is missing is missing. A cluster of RabbitMQ whose nodes
/// were killed confirms nothing for two minutes on a busy machine.
const STILL_MAX: Duration = Duration::from_secs(300);

/// When nothing has changed for so long, the operator looks whether a queue has lost its leader, and goes on looking.
const ELECT_AFTER: Duration = Duration::from_secs(60);

/// When it still goes on after so long, it goes round in circles.
const SETTLE_MAX: Duration = Duration::from_secs(1800);

/// How often to count.
const COUNT_EVERY: Duration = Duration::from_millis(500);

/// What a leg does.
pub(crate) struct Leg {
    pub(crate) stack: Stack,
    pub(crate) seed: u64,
    pub(crate) messages: u64,
    pub(crate) faults: u64,
    pub(crate) only_kills: bool,
    /// Events that nobody listens to before the end.
    pub(crate) shelf: u64,
    /// Of a thousand events, how many begin a saga.
    pub(crate) sagas_per_mille: u64,
    /// For how long all consumers are away after the faults, while the last events are committed.
    pub(crate) away: Duration,
}

struct Running<'a> {
    leg: &'a Leg,
    world: World,
    faults: Faults,
    tally: Tally,
    log: File,
    started: Instant,
    bar: ProgressBar,
}

impl Leg {
    /// How many events are committed while there are faults.
    fn attacked(&self) -> u64 {
        match self.away.is_zero() {
            true => self.messages,
            false => self.messages * 7 / 10,
        }
    }

    /// Runs it in `folder`, which must be new.
    pub(crate) fn run(&self, folder: &Path) -> Result<Tally> {
        let world = World::start(self, folder)?;
        let bar = ProgressBar::new(self.faults).with_style(ProgressStyle::with_template(
            "{prefix} {wide_bar} {pos}/{len} {msg}",
        )?);
        bar.set_prefix(self.stack.to_string());
        let mut running = Running {
            leg: self,
            world,
            faults: Faults::default(),
            tally: Tally::default(),
            log: File::create(folder.join("faults.log"))?,
            started: Instant::now(),
            bar,
        };
        let outcome = running.run();
        running.bar.finish_and_clear();
        let is_kept = outcome.is_ok() && running.tally.is_kept();
        if !is_kept {
            running.world.keep_all_output();
        }
        outcome?;
        Ok(running.tally)
    }
}

impl Running<'_> {
    fn run(&mut self) -> Result<()> {
        let is_ordered = self.world.is_ordered();
        let witness = self.world.witness()?;
        self.world.runtime.block_on(witness.tap(TOPIC))?;
        drop(witness);
        self.attack()?;
        if !self.leg.away.is_zero() {
            self.build_a_backlog()?;
        }
        self.world.allow(self.leg.messages)?;
        self.say("the last fault; everything is mended")?;
        self.faults.mend_all(&mut self.world)?;
        let witness = self.world.witness()?;
        let listen = witness.listen(SHELF_QUEUE, SHELF);
        self.world.runtime.block_on(listen)?;
        let ledger = self.settle(is_ordered)?;
        self.say("comparing")?;
        let sagas = ledger.compare(&self.world, &mut self.tally)?;
        self.tally.aborted = self.world.aborted.into();
        self.tally.shelved = ledger.shelf_len();
        let (faults, messages) = (self.leg.faults, ledger.len());
        for promise in [
            Promise::LostEvent,
            Promise::EffectsOnce,
            Promise::OrderPerKey,
            Promise::NoPoison,
            Promise::SagasEnd,
            Promise::Decoupling,
        ] {
            if promise == Promise::OrderPerKey && !is_ordered {
                continue;
            }
            let row = self.tally.rows.entry(promise).or_default();
            row.faults = faults;
            row.messages = match promise {
                Promise::SagasEnd => sagas,
                _ => messages,
            };
            if promise == Promise::Decoupling {
                row.messages += ledger.shelf_len();
            }
        }
        for finding in self.tally.described.clone() {
            self.say(&finding)?;
        }
        Ok(())
    }

    /// All faults, while events are committed.
    fn attack(&mut self) -> Result<()> {
        let mut random = Random::new(self.leg.seed);
        let deck = Fault::deck(self.leg.stack, self.leg.only_kills);
        let faults = Fault::draw(&deck, &mut random, self.leg.faults);
        for (number, fault) in faults.into_iter().enumerate() {
            let number = number as u64 + 1;
            let quota = self.leg.attacked() * number / self.leg.faults.max(1);
            self.world.allow(quota)?;
            let is_away = matches!(fault, Fault::BrokerAway | Fault::ConsumersAway);
            let injected = self.faults.inject(fault, &mut self.world, &mut random);
            let said = injected.with_context(|| format!("cannot inject: {fault}"))?;
            self.say(&format!("{number}. {said}"))?;
            self.tally.fault(fault);
            if is_away {
                self.producers_go_on(fault, quota)?;
            }
            self.wait(random.between(GAP.0, GAP.1))?;
            self.bar.set_position(number);
        }
        Ok(())
    }

    /// All consumers are away until the last events are committed, and old.
    fn build_a_backlog(&mut self) -> Result<()> {
        self.faults.mend_all(&mut self.world)?;
        self.say(&format!("no consumer for {:?}", self.leg.away))?;
        let consumers = self.world.all_of(Kind::Consumer);
        for &number in &consumers {
            self.world.kill_part(number);
        }
        self.world.allow(self.leg.messages)?;
        self.wait(self.leg.away)?;
        for number in consumers {
            self.world.start_part(number)?;
        }
        Ok(())
    }

    /// Producers commit while the broker, or everybody who listens, is away (P7).
    fn producers_go_on(&mut self, fault: Fault, quota: u64) -> Result<()> {
        let mut last = 0;
        let mut changed = Instant::now();
        while self.faults.is_on(fault) && changed.elapsed() < STILL_MAX {
            let committed = Progress::read_committed(&self.world);
            if committed >= quota {
                return Ok(());
            }
            if committed != last {
                (last, changed) = (committed, Instant::now());
            }
            self.tick(Some(fault))?;
        }
        if changed.elapsed() >= STILL_MAX {
            let what = format!("with {fault}, producers stopped at {last} of {quota} events");
            self.tally.stuck(Promise::Decoupling, what);
        }
        Ok(())
    }

    fn wait(&mut self, time: Duration) -> Result<()> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.tick(None)?;
        }
        Ok(())
    }

    fn tick(&mut self, keeps: Option<Fault>) -> Result<()> {
        self.faults.mend_due(&mut self.world, keeps)?;
        for said in self.world.look_after_parts()? {
            self.say(&said)?;
        }
        std::thread::sleep(TICK);
        Ok(())
    }

    /// Waits until everything that must happen has happened, or nothing happens any more.
    fn settle(&mut self, is_ordered: bool) -> Result<Ledger> {
        let mut last = Progress::default();
        let mut changed = Instant::now();
        let mut was_done = false;
        let began = Instant::now();
        let mut looked = began;
        loop {
            let progress = Progress::read(&self.world)?;
            if progress != last {
                self.bar.set_message(format!("settling: {progress:?}"));
                (last, changed) = (progress.clone(), Instant::now());
            }
            let mut is_done = false;
            let is_all =
                progress.committed >= self.leg.messages && progress.shelved >= self.leg.shelf;
            let are_sagas_over =
                progress.sagas_over >= progress.trips && progress.trip_ends >= progress.sagas_ended;
            if is_all && are_sagas_over && progress.unsent == 0 && progress.waiting == 0 {
                let ledger = Ledger::read(&self.world, is_ordered)?;
                // More than there should be is for the comparison to tell.
                is_done = progress.effects + progress.dead >= ledger.ends()
                    && progress.answers >= progress.effects;
                // Twice, so that a late duplicate has its chance.
                if is_done && was_done {
                    return Ok(ledger);
                }
            }
            was_done = is_done;
            if changed.elapsed() > STILL_MAX || began.elapsed() > SETTLE_MAX {
                self.say(&format!("it does not come to an end: {last:?}"))?;
                return Ledger::read(&self.world, is_ordered);
            }
            if changed.max(looked).elapsed() > ELECT_AFTER {
                looked = Instant::now();
                for queue in self.world.broker.elect_leaders()? {
                    self.tally.elections += 1;
                    self.say(&format!("an operator calls an election for {queue}"))?;
                }
            }
            let until = Instant::now() + COUNT_EVERY;
            while Instant::now() < until {
                self.tick(None)?;
            }
        }
    }

    /// A line in the log of faults.
    fn say(&mut self, text: &str) -> Result<()> {
        let after = self.started.elapsed().as_secs_f64();
        writeln!(self.log, "{after:>8.2} s  {text}")?;
        self.bar.set_message(text.to_owned());
        Ok(())
    }
}

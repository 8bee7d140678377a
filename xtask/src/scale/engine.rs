//! A simulator of queues: items come to stations, are served in batches on machines with so many cores, and go on.
//!
//! Time is whole nanoseconds and chance comes from a seed, so a run is the same everywhere. It knows nothing of
//! orders; its tests compare it with what the theory of queues says in closed form.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Nanoseconds since the beginning.
pub(crate) type Time = u64;

pub(crate) const SECOND: f64 = 1e9;

/// Numbers by chance (SplitMix64): small, fast, the same on every machine.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 to under 1.
    pub(crate) fn share(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// How long until the next of what comes by chance, so long apart on average.
    pub(crate) fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.share()).ln()
    }
}

/// A part of what a batch takes: so long for the batch and so long for each item in it, in nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stage {
    /// Whose core it needs; without one it is only waited for, as for a disk.
    pub(crate) machine: Option<usize>,
    pub(crate) batch: f64,
    pub(crate) each: f64,
}

/// How service times vary.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Law {
    Fixed,
    Exponential,
}

/// Where items wait for each other and are served together.
#[derive(Debug, Clone)]
pub(crate) struct Station {
    /// One after the other.
    pub(crate) stages: Vec<Stage>,
    /// The items of a batch, at most.
    pub(crate) batch_max: usize,
    /// The batches that may be under way at a time.
    pub(crate) at_once: usize,
    pub(crate) law: Law,
}

struct Place<T> {
    station: Station,
    waiting: VecDeque<T>,
    under_way: usize,
    batches: u64,
}

struct Machine {
    cores: usize,
    busy: usize,
    waiting: VecDeque<(usize, Time)>,
    /// The work that was done, in nanoseconds of one core.
    worked: u128,
}

struct Batch<T> {
    place: usize,
    began: Time,
    items: Vec<T>,
    stage: usize,
}

enum Event<T> {
    Arrives(usize, T),
    /// A batch has had its core for long enough.
    Worked(usize, usize),
    /// A batch has waited for long enough.
    Waited(usize),
    Alarm(T),
}

/// What happened, for whoever runs the simulation to say what follows.
pub(crate) enum Happened<T> {
    /// These have been served together, since then.
    Served(Time, Vec<T>),
    /// The time for this has come.
    Alarm(T),
}

/// Machines, stations, and what is going to happen.
pub(crate) struct Simulation<T> {
    pub(crate) now: Time,
    pub(crate) random: Random,
    queue: BinaryHeap<Reverse<(Time, u64, usize)>>,
    events: Vec<Option<Event<T>>>,
    unused: Vec<usize>,
    count: u64,
    machines: Vec<Machine>,
    places: Vec<Place<T>>,
    batches: Vec<Option<Batch<T>>>,
    unused_batches: Vec<usize>,
}

impl<T> Simulation<T> {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: 0,
            random: Random::new(seed),
            queue: BinaryHeap::new(),
            events: Vec::new(),
            unused: Vec::new(),
            count: 0,
            machines: Vec::new(),
            places: Vec::new(),
            batches: Vec::new(),
            unused_batches: Vec::new(),
        }
    }

    pub(crate) fn machine(&mut self, cores: usize) -> usize {
        self.machines.push(Machine {
            cores,
            busy: 0,
            waiting: VecDeque::new(),
            worked: 0,
        });
        self.machines.len() - 1
    }

    pub(crate) fn station(&mut self, station: Station) -> usize {
        self.places.push(Place {
            station,
            waiting: VecDeque::new(),
            under_way: 0,
            batches: 0,
        });
        self.places.len() - 1
    }

    /// The batches that a station has begun.
    pub(crate) fn batches(&self, place: usize) -> u64 {
        self.places[place].batches
    }

    /// The share of its cores that a machine has used.
    pub(crate) fn utilisation(&self, machine: usize) -> f64 {
        let machine = &self.machines[machine];
        machine.worked as f64 / (self.now.max(1) as f64 * machine.cores as f64)
    }

    /// An item comes to a station after a while.
    pub(crate) fn send(&mut self, place: usize, item: T, after: f64) {
        self.at(after, Event::Arrives(place, item));
    }

    /// [`Happened::Alarm`] after a while.
    pub(crate) fn alarm(&mut self, item: T, after: f64) {
        self.at(after, Event::Alarm(item));
    }

    fn at(&mut self, after: f64, event: Event<T>) {
        let time = self.now + after.max(0.0).round() as Time;
        let index = match self.unused.pop() {
            Some(index) => {
                self.events[index] = Some(event);
                index
            }
            None => {
                self.events.push(Some(event));
                self.events.len() - 1
            }
        };
        // What is due at the same time happens in the order in which it was said.
        self.count += 1;
        self.queue.push(Reverse((time, self.count, index)));
    }

    /// The next thing to happen, if there is one.
    pub(crate) fn next(&mut self) -> Option<Happened<T>> {
        loop {
            let Reverse((time, _, index)) = self.queue.pop()?;
            self.now = time;
            self.unused.push(index);
            match self.events[index].take()? {
                Event::Arrives(place, item) => {
                    self.places[place].waiting.push_back(item);
                    self.begin(place);
                }
                Event::Alarm(item) => return Some(Happened::Alarm(item)),
                Event::Worked(machine, batch) => {
                    self.machines[machine].busy -= 1;
                    self.work(machine);
                    if let Some(happened) = self.advance(batch) {
                        return Some(happened);
                    }
                }
                Event::Waited(batch) => {
                    if let Some(happened) = self.advance(batch) {
                        return Some(happened);
                    }
                }
            }
        }
    }

    /// Begins batches at a station while it may.
    fn begin(&mut self, index: usize) {
        loop {
            let place = &mut self.places[index];
            if place.waiting.is_empty() || place.under_way >= place.station.at_once {
                return;
            }
            let count = place.waiting.len().min(place.station.batch_max);
            let items: Vec<T> = place.waiting.drain(..count).collect();
            place.under_way += 1;
            place.batches += 1;
            let batch = Batch {
                place: index,
                began: self.now,
                items,
                stage: 0,
            };
            let number = match self.unused_batches.pop() {
                Some(number) => {
                    self.batches[number] = Some(batch);
                    number
                }
                None => {
                    self.batches.push(Some(batch));
                    self.batches.len() - 1
                }
            };
            self.stage(number);
        }
    }

    /// Begins the stage that a batch is at.
    fn stage(&mut self, number: usize) {
        let Some(batch) = &self.batches[number] else {
            return;
        };
        let station = &self.places[batch.place].station;
        let stage = station.stages[batch.stage];
        let mut takes = stage.batch + stage.each * batch.items.len() as f64;
        if station.law == Law::Exponential {
            takes = self.random.exponential(takes);
        }
        match stage.machine {
            Some(machine) => {
                let takes = takes.round() as Time;
                self.machines[machine].waiting.push_back((number, takes));
                self.work(machine);
            }
            None => self.at(takes, Event::Waited(number)),
        }
    }

    /// Gives cores that are free to those who wait for one, first come, first served.
    fn work(&mut self, index: usize) {
        loop {
            let machine = &mut self.machines[index];
            if machine.busy >= machine.cores {
                return;
            }
            let Some((batch, takes)) = machine.waiting.pop_front() else {
                return;
            };
            machine.busy += 1;
            machine.worked += u128::from(takes);
            self.at(takes as f64, Event::Worked(index, batch));
        }
    }

    /// A stage is over: the next one begins, or the batch is served.
    fn advance(&mut self, number: usize) -> Option<Happened<T>> {
        let batch = self.batches[number].as_mut()?;
        batch.stage += 1;
        if batch.stage < self.places[batch.place].station.stages.len() {
            self.stage(number);
            return None;
        }
        let batch = self.batches[number].take()?;
        self.unused_batches.push(number);
        self.places[batch.place].under_way -= 1;
        self.begin(batch.place);
        Some(Happened::Served(batch.began, batch.items))
    }
}

/// The value that so large a share of all is not above.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    let at = (last as f64 * share).round() as usize;
    sorted.get(at.min(last)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROSECOND: f64 = 1000.0;

    /// The mean time from coming to being served of `count` items that come by chance.
    fn mean_stay(seed: u64, station: Station, cores: usize, per_second: f64, count: u64) -> f64 {
        let mut simulation = Simulation::new(seed);
        let machine = simulation.machine(cores);
        let mut station = station;
        station.stages[0].machine = Some(machine);
        let place = simulation.station(station);
        let between = SECOND / per_second;
        let mut left = count;
        let mut stays = Vec::new();
        simulation.alarm(0, 0.0);
        while let Some(happened) = simulation.next() {
            match happened {
                Happened::Alarm(_) => {
                    let now = simulation.now;
                    simulation.send(place, now, 0.0);
                    left -= 1;
                    if left > 0 {
                        let after = simulation.random.exponential(between);
                        simulation.alarm(0, after);
                    }
                }
                Happened::Served(_, items) => {
                    let now = simulation.now;
                    stays.extend(items.into_iter().map(|came| (now - came) as f64));
                }
            }
        }
        assert_eq!(stays.len() as u64, count);
        stays.iter().sum::<f64>() / stays.len() as f64
    }

    fn one_by_one(law: Law, at_once: usize, takes: f64) -> Station {
        let stage = Stage {
            machine: None,
            batch: 0.0,
            each: takes,
        };
        Station {
            stages: vec![stage],
            batch_max: 1,
            at_once,
            law,
        }
    }

    #[track_caller]
    fn close(found: f64, expected: f64, tolerance: f64) {
        let off = (found / expected - 1.0).abs();
        assert!(
            off < tolerance,
            "{found} instead of {expected}, off by {:.1} %",
            off * 100.0
        );
    }

    /// M/M/1: 1 / (service rate - arrival rate).
    #[test]
    fn one_server_with_times_by_chance_is_as_the_formula_says() {
        for load in [0.3, 0.5, 0.7, 0.9] {
            let takes = 100.0 * MICROSECOND;
            let station = one_by_one(Law::Exponential, 1, takes);
            let found = mean_stay(1, station, 1, load * SECOND / takes, 1_000_000);
            close(found, takes / (1.0 - load), 0.04);
        }
    }

    /// M/D/1, by Pollaczek and Khinchin: service + load * service / (2 (1 - load)).
    #[test]
    fn one_server_with_a_fixed_time_is_as_the_formula_says() {
        for load in [0.3, 0.5, 0.7, 0.9] {
            let takes = 100.0 * MICROSECOND;
            let station = one_by_one(Law::Fixed, 1, takes);
            let found = mean_stay(2, station, 1, load * SECOND / takes, 1_000_000);
            close(found, takes + load * takes / (2.0 * (1.0 - load)), 0.03);
        }
    }

    /// M/M/2 and M/M/4, by Erlang: the cores of the machine are the servers.
    #[test]
    fn several_cores_are_as_the_formula_says() {
        for (cores, load) in [(2_u32, 0.8_f64), (4, 0.7)] {
            let takes = 100.0 * MICROSECOND;
            let station = one_by_one(Law::Exponential, usize::MAX, takes);
            let offered = load * f64::from(cores);
            let found = mean_stay(
                3,
                station,
                cores as usize,
                offered * SECOND / takes,
                500_000,
            );
            // How likely it is to wait.
            let (mut term, mut sum) = (1.0, 0.0);
            for n in 0..cores {
                sum += term;
                term *= offered / f64::from(n + 1);
            }
            let waits = term / (1.0 - load) / (sum + term / (1.0 - load));
            let expected = takes + waits * takes / (f64::from(cores) * (1.0 - load));
            close(found, expected, 0.04);
        }
    }

    /// However many come: the batches of a station are full, and each takes what it takes.
    #[test]
    fn a_station_that_has_too_much_serves_full_batches_one_after_the_other() {
        let stage = Stage {
            machine: None,
            batch: 400.0 * MICROSECOND,
            each: 25.0 * MICROSECOND,
        };
        let mut simulation = Simulation::new(4);
        let station = Station {
            stages: vec![stage],
            batch_max: 64,
            at_once: 1,
            law: Law::Fixed,
        };
        let place = simulation.station(station);
        (0..6400).for_each(|item| simulation.send(place, item, 0.0));
        let mut served = 0;
        while let Some(happened) = simulation.next() {
            if let Happened::Served(_, items) = happened {
                served += items.len();
            }
        }
        assert_eq!(served, 6400);
        // The first comes alone, and so does what is left in the end.
        assert_eq!(simulation.batches(place), 101);
        close(
            simulation.now as f64,
            100.0 * (400.0 + 64.0 * 25.0) * MICROSECOND,
            0.01,
        );
    }

    #[test]
    fn stations_share_the_cores_of_a_machine() {
        let mut simulation = Simulation::new(5);
        let machine = simulation.machine(1);
        let stage = Stage {
            machine: Some(machine),
            batch: SECOND,
            each: 0.0,
        };
        let wait = Stage {
            machine: None,
            batch: SECOND,
            each: 0.0,
        };
        let station = Station {
            stages: vec![stage, wait],
            batch_max: 1,
            at_once: 1,
            law: Law::Fixed,
        };
        for item in 0..3 {
            let place = simulation.station(station.clone());
            simulation.send(place, item, 0.0);
        }
        while simulation.next().is_some() {}
        // Three seconds of work for one core; what waits needs none, so only the last one's is added.
        assert_eq!(simulation.now, 4_000_000_000);
        close(simulation.utilisation(machine), 0.75, 1e-9);
    }

    #[test]
    fn a_seed_is_a_run() {
        let run = |seed| mean_stay(seed, one_by_one(Law::Exponential, 1, 1000.0), 1, 5e5, 1000);
        assert_eq!(run(7).to_bits(), run(7).to_bits());
        assert_ne!(run(7).to_bits(), run(8).to_bits());
    }
}

//! The books: what was committed, against what came of it.
//!
//! They are read from the tables of both services and from the broker's queues, never through the
//! toolkit.

mod trips;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use anyhow::{Context, Result};
use tidings_sqlite::rusqlite::{Connection, OpenFlags, types::ValueRef};
use uuid::Uuid;

use crate::{
    messages::{Nature, ORDERED, PLAIN, SHELF},
    tally::{Promise, Tally},
    world::World,
};

/// Whose tables.
#[derive(Debug, Clone, Copy)]
enum Owner {
    Producer,
    Consumer,
}

/// The queue that the shelf's topic gets in the end.
pub(crate) const SHELF_QUEUE: &str = "rig.shelf";

/// What counts must say until all is done; those that change show that something goes on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    pub(crate) committed: u64,
    pub(crate) shelved: u64,
    pub(crate) effects: u64,
    pub(crate) answers: u64,
    pub(crate) unsent: u64,
    pub(crate) waiting: u64,
    pub(crate) dead: u64,
    /// Sagas that were asked for, that wait for nothing any more, and that told how they ended.
    pub(crate) trips: u64,
    pub(crate) sagas_over: u64,
    pub(crate) sagas_ended: u64,
    /// How many were heard.
    pub(crate) trip_ends: u64,
}

/// What was committed, and what should come of it.
pub(crate) struct Ledger {
    events: HashMap<String, Event>,
    shelved: HashSet<String>,
    consumers: Vec<&'static str>,
    seed: u64,
}

struct Event {
    key: String,
    place: i64,
}

impl Progress {
    /// How many events are committed; 0 while the database does not say.
    pub(crate) fn read_committed(world: &World) -> u64 {
        let sql = "select cast(coalesce(sum(place), 0) as bigint) from counter";
        let rows = rows(world, Owner::Producer, sql).unwrap_or_default();
        let count = rows.first().and_then(|row| row.first()?.parse().ok());
        count.unwrap_or_default()
    }

    /// Counts now.
    pub(crate) fn read(world: &World) -> Result<Self> {
        let one = |owner, sql: &str| -> Result<u64> {
            let rows = rows(world, owner, sql)?;
            Ok(rows
                .first()
                .and_then(|row| row.first()?.parse().ok())
                .unwrap_or_default())
        };
        let unsent = "select count(*) from tidings_outbox";
        let waiting = "select count(*) from tidings_inbox where state in (1, 2)";
        let (producer, consumer) = (Owner::Producer, Owner::Consumer);
        let mut progress = Self {
            committed: one(
                producer,
                "select count(*) from ledger where kind in ('noted', 'moved')",
            )?,
            shelved: one(
                producer,
                "select count(*) from ledger where kind = 'shelved'",
            )?,
            effects: one(consumer, "select count(*) from effect")?,
            answers: one(producer, "select count(*) from answer")?,
            trips: one(producer, "select count(*) from ledger where kind = 'trip'")?,
            trip_ends: one(producer, "select count(*) from trip_end")?,
            unsent: one(producer, unsent)? + one(consumer, unsent)?,
            waiting: one(producer, waiting)? + one(consumer, waiting)?,
            ..Self::default()
        };
        (progress.sagas_over, progress.sagas_ended) = trips::sagas(world)?;
        let witness = world.witness()?;
        for consumer in [PLAIN, ORDERED] {
            for queue in dead_queues(consumer) {
                // The ordered consumer's is not there if there is none.
                let depth = world.runtime.block_on(witness.depth(&queue));
                if let Ok(depth) = depth {
                    progress.dead += depth;
                } else {
                    break;
                }
            }
        }
        Ok(progress)
    }
}

impl Ledger {
    /// Reads what was committed.
    pub(crate) fn read(world: &World, is_ordered: bool) -> Result<Self> {
        let mut ledger = Self {
            events: HashMap::new(),
            shelved: HashSet::new(),
            consumers: if is_ordered {
                vec![PLAIN, ORDERED]
            } else {
                vec![PLAIN]
            },
            seed: world.seed,
        };
        let sql = "select number, key, place, kind from ledger";
        for row in rows(world, Owner::Producer, sql)? {
            let [number, key, place, kind] = columns(row)?;
            match &*kind {
                "shelved" => drop(ledger.shelved.insert(number)),
                "trip" => {}
                _ => {
                    let place = place.parse()?;
                    ledger.events.insert(number, Event { key, place });
                }
            }
        }
        Ok(ledger)
    }

    pub(crate) fn len(&self) -> u64 {
        self.events.len() as u64
    }

    pub(crate) fn shelf_len(&self) -> u64 {
        self.shelved.len() as u64
    }

    fn nature(&self, consumer: &str, event: &Event) -> Nature {
        Nature::of(self.seed, consumer, &event.key, event.place)
    }

    /// How many effects and dead letters there have to be, over all consumers.
    pub(crate) fn ends(&self) -> u64 {
        self.len() * self.consumers.len() as u64
    }

    /// Compares everything. Empties the queues of dead letters and of the shelf. Returns how many sagas
    /// were asked for.
    pub(crate) fn compare(&self, world: &World, tally: &mut Tally) -> Result<u64> {
        for &consumer in &self.consumers {
            let dead = self.compare_dead_letters(world, consumer, tally)?;
            self.compare_effects(world, consumer, &dead, tally)?;
            self.compare_answers(world, consumer, &dead, tally)?;
        }
        self.compare_shelf(world, tally)?;
        for owner in [Owner::Producer, Owner::Consumer] {
            stuck(world, owner, tally)?;
        }
        trips::compare(world, tally)
    }

    fn compare_effects(
        &self,
        world: &World,
        consumer: &str,
        dead: &HashSet<String>,
        tally: &mut Tally,
    ) -> Result<()> {
        let sql = format!(
            "select number, key, place, before, failures, at from effect
             where consumer = '{consumer}' order by id"
        );
        let mut counts: HashMap<String, u64> = HashMap::new();
        let mut last: BTreeMap<String, i64> = BTreeMap::new();
        for row in rows(world, Owner::Consumer, &sql)? {
            let [number, key, place, before, failures, at] = columns(row)?;
            if consumer == PLAIN {
                let longest = match failures == "0" {
                    true => &mut tally.waited_ms,
                    false => &mut tally.retried_waited_ms,
                };
                *longest = (*longest).max(waited_ms(&number, &at));
            }
            let (place, before): (i64, i64) = (place.parse()?, before.parse()?);
            let count = counts.entry(number.clone()).or_default();
            *count += 1;
            let what = format!("{consumer}: {number}, the {place}th of {key}");
            let Some(event) = self.events.get(&number) else {
                tally.other(Promise::LostEvent, format!("{what}, was never committed"));
                continue;
            };
            if *count > 1 {
                tally.doubled(
                    Promise::EffectsOnce,
                    format!("{what}, took effect {count} times"),
                );
                continue;
            }
            let nature = self.nature(consumer, event);
            if nature.is_deadly() {
                tally.doubled(
                    Promise::NoPoison,
                    format!("{what}, took effect, but it {nature}"),
                );
            }
            if consumer == ORDERED {
                let previous = last.insert(key, place).unwrap_or_default();
                if previous > place || before > place {
                    let what = format!("{what}, came after the {}th", previous.max(before));
                    tally.disorder(Promise::OrderPerKey, what);
                } else if previous != before {
                    let what = format!("{what}, began beside the {previous}th");
                    tally.disorder(Promise::OrderPerKey, what);
                }
            }
        }
        for (number, event) in &self.events {
            let nature = self.nature(consumer, event);
            if !nature.is_deadly() && !counts.contains_key(number) && !dead.contains(number) {
                let Event { key, place } = event;
                let what = format!(
                    "{consumer}: {number}, the {place}th of {key}, which {nature}, took no effect"
                );
                tally.lost(Promise::LostEvent, what);
            }
        }
        Ok(())
    }

    fn compare_answers(
        &self,
        world: &World,
        consumer: &str,
        dead: &HashSet<String>,
        tally: &mut Tally,
    ) -> Result<()> {
        let sql = format!("select number, message from answer where consumer = '{consumer}'");
        let mut answers: HashMap<String, HashSet<String>> = HashMap::new();
        for row in rows(world, Owner::Producer, &sql)? {
            let [number, message] = columns(row)?;
            let messages = answers.entry(number.clone()).or_default();
            let is_new = messages.insert(message);
            if !is_new || messages.len() > 1 {
                let what = match is_new {
                    true => "was answered by two messages",
                    false => "has an answer that took effect twice",
                };
                tally.doubled(Promise::EffectsOnce, format!("{consumer}: {number} {what}"));
            }
        }
        for (number, event) in &self.events {
            let is_dead = self.nature(consumer, event).is_deadly() || dead.contains(number);
            if !is_dead && !answers.contains_key(number) {
                let what = format!("{consumer}: the answer to {number} never came");
                tally.lost(Promise::EffectsOnce, what);
            }
        }
        Ok(())
    }

    fn compare_dead_letters(
        &self,
        world: &World,
        consumer: &str,
        tally: &mut Tally,
    ) -> Result<HashSet<String>> {
        let witness = world.witness()?;
        let mut dead = HashSet::new();
        for queue in dead_queues(consumer) {
            for letter in world.runtime.block_on(witness.take_all(&queue))? {
                let number = number_of(&letter.body);
                let event = self.events.get(&number);
                if event.is_none_or(|event| !self.nature(consumer, event).is_deadly()) {
                    let (id, reason) = (&letter.id, &letter.reason);
                    let what = format!("{consumer}: {id} is a dead letter in `{queue}`: {reason}");
                    tally.other(Promise::NoPoison, what);
                }
                dead.insert(number);
            }
        }
        for (number, event) in &self.events {
            let nature = self.nature(consumer, event);
            if nature.is_deadly() && !dead.contains(number) {
                let what = format!("{consumer}: {number}, which {nature}, is no dead letter");
                tally.lost(Promise::NoPoison, what);
            }
        }
        Ok(dead)
    }

    fn compare_shelf(&self, world: &World, tally: &mut Tally) -> Result<()> {
        let witness = world.witness()?;
        let found = world
            .runtime
            .block_on(witness.take_all_of(SHELF_QUEUE, SHELF))?;
        let found: HashSet<String> = found.iter().map(|found| number_of(&found.body)).collect();
        for number in self.shelved.difference(&found) {
            let what = format!("{number} waited for a listener of `{SHELF}` and never came");
            tally.lost(Promise::Decoupling, what);
        }
        for number in found.difference(&self.shelved) {
            let what = format!("{number} came to `{SHELF}`, but was never committed");
            tally.other(Promise::LostEvent, what);
        }
        Ok(())
    }
}

/// Counts what still waits where nothing should.
fn stuck(world: &World, owner: Owner, tally: &mut Tally) -> Result<()> {
    let sql = "select position, state from tidings_outbox order by position limit 1000";
    for row in rows(world, owner, sql)? {
        let [position, state] = columns(row)?;
        let what = format!("{owner:?}: the outbox row {position} (state {state}) was never sent");
        tally.stuck(Promise::Decoupling, what);
    }
    let sql = "select consumer, message, state from tidings_inbox where state in (1, 2) limit 1000";
    for row in rows(world, owner, sql)? {
        let [consumer, message, state] = columns(row)?;
        let what = format!("{consumer}: {message} still waits in the inbox (state {state})");
        tally.stuck(Promise::NoPoison, what);
    }
    Ok(())
}

/// Where a consumer's dead letters lie.
fn dead_queues(consumer: &str) -> Vec<String> {
    match consumer {
        ORDERED => vec![format!("{consumer}.ordered.dead")],
        _ => ["entry-noted.v1", "entry-moved.v1"]
            .map(|name| format!("{consumer}.{name}.dead"))
            .into(),
    }
}

/// From the making of an event, whose time is in its number, to `at`.
fn waited_ms(number: &str, at: &str) -> u64 {
    let made = Uuid::parse_str(number)
        .ok()
        .and_then(|id| id.get_timestamp())
        .map(|made| made.to_unix());
    let made_ms = made.map(|(seconds, nanos)| seconds * 1000 + u64::from(nanos) / 1_000_000);
    let at_ms: u64 = at.parse().unwrap_or_default();
    at_ms.saturating_sub(made_ms.unwrap_or(at_ms))
}

fn number_of(body: &[u8]) -> String {
    let body: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    body["number"].as_str().unwrap_or_default().to_owned()
}

fn columns<const N: usize>(row: Vec<String>) -> Result<[String; N]> {
    let count = row.len();
    row.try_into()
        .map_err(|_| anyhow::anyhow!("a row has {count} columns instead of {N}"))
}

/// The rows of a query, as text.
fn rows(world: &World, owner: Owner, sql: &str) -> Result<Vec<Vec<String>>> {
    if let Some(postgres) = &world.postgres {
        let schema = match owner {
            Owner::Producer => "rig_producer",
            Owner::Consumer => "rig_consumer",
        };
        let text = postgres.sql(&format!("set search_path = {schema}; {sql}"))?;
        let rows = text.lines().filter(|line| !line.is_empty());
        return Ok(rows
            .map(|line| line.split('|').map(str::to_owned).collect())
            .collect());
    }
    let file = match owner {
        Owner::Producer => "producer.db",
        Owner::Consumer => "consumer.db",
    };
    rows_sqlite(&world.folder.join(file), sql).with_context(|| format!("cannot run `{sql}`"))
}

fn rows_sqlite(path: &std::path::Path, sql: &str) -> Result<Vec<Vec<String>>> {
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    connection.busy_timeout(Duration::from_secs(10))?;
    let mut statement = connection.prepare(sql)?;
    let width = statement.column_count();
    let mut rows = statement.query(())?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        let text = |column| -> Result<String> {
            Ok(match row.get_ref(column)? {
                ValueRef::Integer(number) => number.to_string(),
                ValueRef::Text(text) => String::from_utf8_lossy(text).into_owned(),
                _ => String::new(),
            })
        };
        all.push((0..width).map(text).collect::<Result<_>>()?);
    }
    Ok(all)
}

//! The books of the sagas (P6): each trip that was asked for ended as a whole, and the steps say the same.

use std::collections::HashMap;

use anyhow::Result;

use super::{Owner, columns, rows};
use crate::{
    tally::{Promise, Tally},
    trips::{LEADER, Trip},
    world::World,
};

const SAGAS: Promise = Promise::SagasEnd;

/// What is known of one trip.
#[derive(Default)]
struct Found {
    /// `completed`, `compensated`, ...
    state: String,
    /// How it ended, according to what was told.
    told: Vec<String>,
    /// What its steps did: `seat done`.
    steps: HashMap<String, u64>,
}

impl Found {
    fn count(&self, what: &str) -> u64 {
        self.steps.get(what).copied().unwrap_or_default()
    }
}

/// How many sagas wait for nothing any more, and how many of them told how they ended.
pub(super) fn sagas(world: &World) -> Result<(u64, u64)> {
    let sql = format!(
        "select sum(case when label in ('running', 'compensating') then 0 else 1 end),
             sum(case when label in ('completed', 'compensated') then 1 else 0 end)
         from tidings_record where kind = 'saga:{LEADER}'"
    );
    let found = rows(world, Owner::Consumer, &sql)?.into_iter().next();
    let found = found.map(columns).transpose()?;
    // Null, without any.
    let [over, ended] = found.unwrap_or_default();
    Ok((
        over.parse().unwrap_or_default(),
        ended.parse().unwrap_or_default(),
    ))
}

/// Compares every trip that was asked for.
pub(super) fn compare(world: &World, tally: &mut Tally) -> Result<u64> {
    let mut trips: HashMap<String, Found> = HashMap::new();
    for row in rows(
        world,
        Owner::Producer,
        "select number, kind from ledger where kind = 'trip'",
    )? {
        let [number, _] = columns(row)?;
        trips.entry(number).or_default();
    }
    let asked = trips.len() as u64;
    let mut unknown = |number: &str, what: &str| {
        let what = format!("trip {number} has {what}, and was never asked for");
        tally.other(SAGAS, what);
    };
    let sql = format!("select id, label from tidings_record where kind = 'saga:{LEADER}'");
    for row in rows(world, Owner::Consumer, &sql)? {
        let [number, state] = columns(row)?;
        match trips.get_mut(&number) {
            Some(trip) => trip.state = state,
            None => unknown(&number, "a saga"),
        }
    }
    for row in rows(
        world,
        Owner::Producer,
        "select number, outcome from trip_end",
    )? {
        let [number, outcome] = columns(row)?;
        match trips.get_mut(&number) {
            Some(trip) => trip.told.push(outcome),
            None => unknown(&number, "an end"),
        }
    }
    for row in rows(
        world,
        Owner::Consumer,
        "select number, step, what from step",
    )? {
        let [number, step, what] = columns(row)?;
        match trips.get_mut(&number) {
            Some(trip) => *trip.steps.entry(format!("{step} {what}")).or_default() += 1,
            None => unknown(&number, "steps"),
        }
    }
    for (number, trip) in &trips {
        one(Trip::of(world.seed, number), number, trip, tally);
    }
    Ok(asked)
}

fn one(nature: Trip, number: &str, trip: &Found, tally: &mut Tally) {
    let whose = format!("trip {number}, which {nature}");
    let Found { state, told, steps } = trip;
    let what = format!("{whose}, is `{state}`: {steps:?}, told {told:?}");
    for step in [
        "seat done",
        "room done",
        "ticket done",
        "seat undone",
        "room undone",
        "room voided",
    ] {
        let count = trip.count(step);
        if count > 1 {
            tally.doubled(SAGAS, format!("{what}: {step} {count} times"));
        }
    }
    if told.len() > 1 {
        tally.doubled(SAGAS, format!("{what}: it ended twice"));
    }
    if trip.count("room done") + trip.count("room voided") > 1 {
        tally.doubled(SAGAS, format!("{what}: taken after it was voided"));
    }
    let is_held =
        |step: &str| trip.count(&format!("{step} done")) > trip.count(&format!("{step} undone"));
    *tally.sagas.entry(state.clone()).or_default() += 1;
    let expected = match &**state {
        "completed" => {
            let is_whole = ["seat", "room", "ticket"].into_iter().all(is_held);
            if !is_whole || nature.cannot_be_booked() {
                tally.lost(SAGAS, format!("{what}: it is not whole"));
            }
            Some("booked")
        }
        "compensated" => {
            if ["seat", "room", "ticket"].into_iter().any(is_held) {
                tally.lost(SAGAS, format!("{what}: not all of it is undone"));
            }
            Some("cancelled")
        }
        // A command of it is a dead letter.
        "stuck" if nature.may_be_stuck() => None,
        "" => return tally.lost(SAGAS, format!("{what}: it never began")),
        _ => return tally.stuck(SAGAS, what),
    };
    match (expected, told.first()) {
        (Some(expected), Some(told)) if expected != told => {
            tally.other(SAGAS, format!("{what}: it should be `{expected}`"));
        }
        (Some(_), None) => tally.lost(SAGAS, format!("{what}: nobody was told")),
        (None, Some(_)) => tally.other(SAGAS, format!("{what}: it has not ended")),
        _ => {}
    }
}

//! `tidings move`: what waits on a broker goes to another one.

use std::{collections::BTreeMap, time::Duration};

use indicatif::ProgressBar;
use serde::Serialize;
use tidings::{
    Transport, handlers,
    moving::{self, Place},
};
use tokio::time::{Instant, sleep};

use super::topology::Written;
use crate::{
    code::Code,
    frame::{Ended, Frame, time},
    out::{Cell, Page, Report, counted, one_line},
};

/// How long to wait before places are looked at again.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Moves what waits on a broker to another one: queues, ordered groups, dead letters.
///
/// For services whose broker changes: from the broker in the box to RabbitMQ, say. It moves what services need,
/// as they have written it down in their databases; the queues of foreign programs are theirs.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The broker to move to; `--broker` is the one to move from
    #[arg(
        long,
        value_name = "URL",
        env = "TIDINGS_MOVE_TO",
        hide_env_values = true
    )]
    to: String,
    /// Go on with what comes later, until nothing has come for so long
    #[arg(long, value_name = "TIME", value_parser = time)]
    follow: Option<Duration>,
    /// Move nothing, and say what waits
    #[arg(long, conflicts_with = "follow")]
    dry_run: bool,
}

const EXAMPLES: &str = "\
Examples:
  export TIDINGS_DATABASE=sqlite://data/db TIDINGS_BROKER=amqp://guest:guest@127.0.0.1:5672
  tidings move --to amqp://shop:secret@rabbit:5672/shop --dry-run        what waits
  tidings topology apply --broker amqp://shop:secret@rabbit:5672/shop    first: queues to move to
  tidings move --to amqp://shop:secret@rabbit:5672/shop --follow 30s     while services are restarted there

Where order is kept by key, stop all services first and do without `--follow`: a key's messages would come
over both brokers otherwise. A message may be moved twice if something dies; consumers know it by its id.

As JSON:
  {complete, moved, places: [{place, moved, waiting?, why?}], receivers: [{queue, count}]}
  waiting: what is there still; receivers: who receives on the old broker";

/// What was moved, and what was not.
#[derive(Debug, Serialize)]
struct MoveReport {
    /// Nothing waits on the old broker.
    complete: bool,
    moved: u64,
    places: Vec<Told>,
    receivers: Vec<Receivers>,
    /// The old broker does not say who receives from it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    receivers_unknown: bool,
}

/// What became of a place.
#[derive(Debug, Default, Serialize)]
struct Told {
    place: String,
    moved: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    waiting: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

/// Who receives from a queue of the old broker.
#[derive(Debug, Serialize)]
struct Receivers {
    queue: String,
    count: u32,
}

impl Report for MoveReport {
    fn tell(&self, page: &mut Page) {
        let row = |it: &Told| -> Vec<Cell> {
            vec![
                (&it.place).into(),
                it.moved.to_string().into(),
                match it.waiting {
                    Some(waiting) => Cell::warning(waiting.to_string()),
                    None => "0".to_owned().into(),
                },
                it.why.as_deref().map_or("-".to_owned(), one_line).into(),
            ]
        };
        let rows: Vec<Vec<Cell>> = self.places.iter().map(row).collect();
        if !rows.is_empty() {
            page.table(&["PLACE", "MOVED", "WAITING", "WHY"], &rows);
        }
        page.line(counted(self.moved, "message was moved", "messages were moved"));
        if !self.receivers.is_empty() {
            let queues = counted(self.receivers.len() as u64, "queue", "queues");
            page.line(format!(
                "services still receive from {queues} of the old broker; what they publish there goes on to come"
            ));
        }
        if self.receivers_unknown {
            page.line("the old broker does not say whether services still use it; what they publish there goes on to come");
        }
    }
}

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        let written = Written::read(frame).await?;
        let places = places(&written);
        let from = frame.direct("moving messages").await?;
        let to = Frame::reach(&self.to, "--to").await?;
        let ended = self.run_with(frame, &places, &*from, &*to).await;
        from.close().await;
        to.close().await;
        ended
    }

    async fn run_with(
        &self,
        frame: &Frame,
        places: &[Place],
        from: &dyn Transport,
        to: &dyn Transport,
    ) -> anyhow::Result<Ended> {
        let mut told: BTreeMap<String, Told> = BTreeMap::new();
        if !self.dry_run {
            let waiting = look(frame, from, places).await?.into_iter().map(|(_, it)| it.ready);
            let bar = frame.progress(waiting.sum(), "moving");
            self.go(places, from, to, &bar, &mut told).await;
            bar.finish_and_clear();
        }
        let mut receivers = Vec::new();
        let mut receivers_unknown = false;
        for (place, it) in look(frame, from, places).await? {
            receivers.extend(it.receivers);
            receivers_unknown |= it.receivers_unknown;
            if it.ready > 0 {
                let told = told.entry(place.to_string()).or_default();
                told.waiting = Some(it.ready);
            }
        }
        let mut report = MoveReport {
            complete: true,
            moved: 0,
            places: Vec::new(),
            receivers,
            receivers_unknown,
        };
        for (place, told) in told {
            report.moved += told.moved;
            report.complete &= told.waiting.is_none() && told.why.is_none();
            if told.moved > 0 || told.waiting.is_some() || told.why.is_some() {
                report.places.push(Told { place, ..told });
            }
        }
        frame.out.show(&report)?;
        match report.complete {
            true => Ok(Ended::Done),
            false if self.dry_run => Ok(Ended::Problem),
            false => {
                let left = report.places.iter().filter(|it| it.waiting.is_some() || it.why.is_some());
                let left = counted(left.count() as u64, "place is", "places are");
                frame.out.note(&format!("{left} not moved whole ({})", Code::NotMoved));
                Ok(Ended::Problem)
            }
        }
    }

    /// Moves what there is, and what comes while it is to follow. One place after the other: a place that
    /// cannot be moved does not keep the others.
    async fn go(
        &self,
        places: &[Place],
        from: &dyn Transport,
        to: &dyn Transport,
        bar: &ProgressBar,
        told: &mut BTreeMap<String, Told>,
    ) {
        let mut last = Instant::now();
        loop {
            for place in places {
                let told = told.entry(place.to_string()).or_default();
                let moved = &mut told.moved;
                let before = *moved;
                let done = moving::move_all(from, to, place, |count| {
                    *moved += count;
                    bar.inc(count);
                });
                told.why = done.await.err().map(|error| error.to_string());
                if told.moved > before {
                    last = Instant::now();
                }
            }
            match self.follow {
                Some(idle) if last.elapsed() < idle => sleep(LOOK_AGAIN_AFTER).await,
                _ => return,
            }
        }
    }
}

/// Where services have, or had, messages: what handlers receive from, what they have left, and the record.
fn places(written: &Written) -> Vec<Place> {
    let mut topology = written.topology();
    let handlers = written.handlers.iter().map(|(_, handler)| handler);
    for (left, _) in handlers.flat_map(handlers::abandoned) {
        topology = topology.merge(left);
    }
    Place::of(&topology)
}

/// What there is of a place on the old broker.
#[derive(Default)]
struct Seen {
    ready: u64,
    receivers: Vec<Receivers>,
    receivers_unknown: bool,
}

async fn look<'a>(
    frame: &Frame,
    from: &dyn Transport,
    places: &'a [Place],
) -> anyhow::Result<Vec<(&'a Place, Seen)>> {
    let of_place = |place: &'a Place| place.queues().into_iter().map(move |queue| (place, queue));
    let (of, queues): (Vec<_>, Vec<_>) = places.iter().flat_map(of_place).unzip();
    let depths = frame.depths(from, &queues).await?;
    let mut seen: Vec<(&Place, Seen)> = Vec::new();
    for ((place, queue), depth) in of.into_iter().zip(queues).zip(depths) {
        if seen.last().is_none_or(|(last, _)| *last != place) {
            seen.push((place, Seen::default()));
        }
        let (Some((_, it)), Some(depth)) = (seen.last_mut(), depth) else {
            continue;
        };
        it.ready += u64::from(depth.ready);
        match depth.receivers {
            Some(0) => {}
            Some(count) => it.receivers.push(Receivers { queue, count }),
            None => it.receivers_unknown = true,
        }
    }
    Ok(seen)
}

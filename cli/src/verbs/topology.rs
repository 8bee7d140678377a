//! `tidings topology`: what services need on the broker, making it, and removing what is left.

mod apply;
mod plan;
mod prune;
#[cfg(any(feature = "kafka", feature = "aws"))]
mod topics;

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use clap::Subcommand;
use serde::Serialize;
use tidings::{
    Topology, Transport as _,
    handlers::{self, HandlerRecord, ServiceRecord},
};
use tidings_amqp::{Amqp, Piece, PieceKind};

use crate::{
    code::Code,
    frame::{Ended, Frame, toolkit},
    out::counted,
    places::Access,
};

/// What services need on the broker: exchanges, queues with their dead letters, and bindings.
///
/// Services write their handlers down in their databases when they start; from that and the broker these verbs
/// know what there should be, and what is left of handlers that are gone. A service without a store is not known.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

const EXAMPLES: &str = "\
Examples:
  tidings topology plan                 what is missing, or not as it should be; exit code 1 if anything is
  tidings topology plan --json | jq '.items[] | select(.state == \"missing\")'
  tidings topology apply                makes what is missing; changes and deletes nothing
  tidings topology prune                what is left of handlers that are gone
  tidings topology prune --yes          deletes of that what is empty and unused

A service whose broker user may not configure writes its handlers down and then fails to start: run `apply` as a
user who may, and start it with `?declare=false` at the end of its broker's URL.
Bindings cannot be seen over AMQP: `plan` says `unseen`, and `apply` makes sure of them.
On Kafka and on Amazon SNS and SQS (builds with `--features kafka`, `--features aws`) `plan` and `apply` work too, and `prune` does
not. At Amazon `plan` also prints a policy of IAM for each service, which allows what it asks for and no more; on Kafka it tells
which topics have settings that may lose messages.

As JSON:
  plan   {complete, items: [{kind, name, from?, key?, state, why?, services}], gone, policies?}
         kind: exchange, queue, binding, topic, subscription; policies: one for each service, by its name; state: there, unknown, missing, differs, unseen
  apply  {complete, items: [{kind, name, from?, key?, outcome, why?, services}]}
         outcome: kept, made, ensured, refused
  prune  {items: [{service, consumer, since, kind, name, messages?, receivers?, outcome, why?}], forgotten}
         outcome: would-delete, would-keep, deleted, not-there, refused";

#[derive(Debug, Subcommand)]
enum What {
    /// Says of everything that services need whether it is there
    Plan,
    /// Makes what is missing
    Apply,
    /// Lists what is left of handlers that are gone, and deletes it
    Prune(prune::Prune),
}

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        let written = Written::read(frame).await?;
        #[cfg(feature = "kafka")]
        if let Some(kafka) = frame.kafka_if_named().await? {
            let engine = topics::Engine::Kafka(kafka);
            return topics::run(frame, &engine, &written, self.what).await;
        }
        #[cfg(feature = "aws")]
        if let Some(aws) = frame.aws_if_named().await? {
            let engine = topics::Engine::Aws(aws);
            return topics::run(frame, &engine, &written, self.what).await;
        }
        let broker = frame.amqp("looking at what is on the broker").await?;
        let ended = match self.what {
            What::Plan => plan::run(frame, &broker, &written).await,
            What::Apply => apply::run(frame, &broker, &written).await,
            What::Prune(prune) => prune.run(frame, &broker, &written).await,
        };
        broker.close().await;
        ended
    }
}

/// What services have written down.
pub(super) struct Written {
    /// With the names of their databases.
    pub(super) handlers: Vec<(String, HandlerRecord)>,
    services: Vec<ServiceRecord>,
}

impl Written {
    pub(super) async fn read(frame: &Frame) -> anyhow::Result<Self> {
        let mut written = Self {
            handlers: Vec::new(),
            services: Vec::new(),
        };
        let all = frame.each(Access::Look, async |database| {
            let store = &*database.store;
            let handlers = handlers::list(store).await.map_err(toolkit)?;
            let of_database = |it| (database.service.clone(), it);
            written.handlers.extend(handlers.into_iter().map(of_database));
            let services = handlers::services(store).await.map_err(toolkit)?;
            written.services.extend(services);
            Ok(())
        });
        all.await?;
        if written.services.is_empty() {
            bail!(
                "no service has written down its handlers in these databases; each does when it starts, also \
                 if it then fails because its topology is not there"
            );
        }
        Ok(written)
    }

    /// What all of them need.
    pub(super) fn topology(&self) -> Topology {
        let handlers = self.handlers.iter().map(|(_, handler)| handler);
        handlers::topology(handlers, &self.services)
    }

    /// What each service needs.
    fn topologies(&self) -> impl Iterator<Item = (&str, Topology)> {
        self.services.iter().map(|service| {
            let of_service = self.handlers.iter().map(|(_, handler)| handler);
            let of_service = of_service.filter(|it| it.service == service.service);
            (&*service.service, handlers::topology(of_service, [service]))
        })
    }

    /// Who needs each piece.
    fn needed_by(&self) -> anyhow::Result<BTreeMap<Piece, BTreeSet<String>>> {
        let mut needed: BTreeMap<Piece, BTreeSet<String>> = BTreeMap::new();
        for (service, topology) in self.topologies() {
            for piece in Amqp::pieces(&topology)? {
                needed.entry(piece).or_default().insert(service.to_owned());
            }
        }
        Ok(needed)
    }

    /// How many handlers are gone.
    fn gone(&self) -> usize {
        self.handlers.iter().filter(|(_, it)| it.is_gone()).count()
    }
}

/// A piece in a report.
#[derive(Debug, Serialize)]
struct Needed {
    kind: &'static str,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    services: BTreeSet<String>,
    /// Its name in a table.
    #[serde(skip)]
    told: String,
}

impl Needed {
    fn new(piece: Piece, needed_by: &BTreeMap<Piece, BTreeSet<String>>) -> Self {
        Self {
            kind: kind_of(&piece),
            told: name_of(&piece),
            services: needed_by.get(&piece).cloned().unwrap_or_default(),
            name: piece.name,
            from: piece.source,
            key: piece.routing_key,
        }
    }
}

fn kind_of(piece: &Piece) -> &'static str {
    match piece.kind {
        PieceKind::Exchange => "exchange",
        PieceKind::Queue => "queue",
        PieceKind::Binding => "binding",
    }
}

/// A piece in a table; of a binding, where it leads from.
fn name_of(piece: &Piece) -> String {
    match (&piece.source, piece.routing_key.as_deref()) {
        (None, _) => piece.name.clone(),
        (Some(source), None | Some("")) => format!("{source} -> {}", piece.name),
        (Some(source), Some(key)) => format!("{source} -[{key}]-> {}", piece.name),
    }
}

/// Says on stderr what is not as it should be, with where to read on.
fn note(frame: &Frame, code: Code, count: usize, one: &str, many: &str) {
    if count > 0 {
        let what = counted(count as u64, one, many);
        frame.out.note(&format!("{what} ({code})"));
    }
}

/// Says what a plan has found that is not as services need it.
fn planned(frame: &Frame, missing: usize, differs: usize) -> Ended {
    note(frame, Code::MissingOnBroker, missing, "is missing", "are missing");
    note(
        frame,
        Code::DiffersOnBroker,
        differs,
        "is there otherwise than services need it",
        "are there otherwise than services need them",
    );
    match missing + differs {
        0 => Ended::Done,
        _ => Ended::Problem,
    }
}

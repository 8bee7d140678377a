//! `plan` and `apply` on Amazon SNS and SQS: what is there, and what each service has to be allowed.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use serde::Serialize;
use serde_json::Value;
use tidings::{Topology, Transport as _};
use tidings_aws::{Aws, Piece, PieceKind, PieceState};

use super::{What, Written, note, planned};
use crate::{
    code::Code,
    frame::{Ended, Frame, Usage},
    out::{Cell, Page, Report, counted, one_line},
};

#[derive(Debug, Serialize)]
struct Plan {
    complete: bool,
    items: Vec<Item>,
    gone: usize,
    /// By the service.
    policies: BTreeMap<String, Value>,
}

#[derive(Debug, Serialize)]
struct Applied {
    complete: bool,
    items: Vec<Item>,
}

#[derive(Debug, Serialize)]
struct Item {
    kind: &'static str,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    services: BTreeSet<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

impl Item {
    fn row(&self) -> Vec<Cell> {
        let services: Vec<&str> = self.services.iter().map(|it| &**it).collect();
        let name = match &self.from {
            Some(topic) => format!("{topic} -> {}", self.name),
            None => self.name.clone(),
        };
        let told = self.state.or(self.outcome).unwrap_or_default();
        vec![
            self.kind.into(),
            name.into(),
            match told {
                "there" | "kept" | "made" => Cell::good(told),
                _ => Cell::bad(told),
            },
            services.join(",").into(),
            self.why.as_deref().map_or("-".to_owned(), one_line).into(),
        ]
    }
}

fn table(items: &[Item], told: &'static str, page: &mut Page) {
    let rows: Vec<Vec<Cell>> = items.iter().map(Item::row).collect();
    page.table(&["WHAT", "NAME", told, "SERVICES", "WHY"], &rows);
}

impl Report for Plan {
    fn tell(&self, page: &mut Page) {
        table(&self.items, "STATE", page);
        for (service, policy) in &self.policies {
            page.line("");
            page.line(format!("policy of `{service}`:"));
            for line in format!("{policy:#}").lines() {
                page.line(line);
            }
        }
        if self.gone > 0 {
            let gone = counted(self.gone as u64, "handler is", "handlers are");
            page.line(format!("{gone} gone: its queues are still there, and Amazon's own tools delete them"));
        }
    }
}

impl Report for Applied {
    fn tell(&self, page: &mut Page) {
        table(&self.items, "OUTCOME", page);
    }
}

pub(super) async fn run(frame: &Frame, aws: &Aws, written: &Written, what: What) -> anyhow::Result<Ended> {
    let ended = match what {
        What::Plan => plan(frame, aws, written).await,
        What::Apply => apply(frame, aws, written).await,
        What::Prune(_) => bail!(Usage::new(
            "what is left on Amazon SNS and SQS is not removed by this: SQS does not say who receives from a queue; delete \
             queues with Amazon's own tools"
        )),
    };
    aws.close().await;
    ended
}

async fn plan(frame: &Frame, aws: &Aws, written: &Written) -> anyhow::Result<Ended> {
    let services = needed_by(written);
    let seen = inspect(aws, &written.topology()).await?;
    let items: Vec<Item> = seen.into_iter().map(|it| item(it, &services)).collect();
    let count = |state: &str| items.iter().filter(|it| it.state == Some(state)).count();
    let (missing, differs) = (count("missing"), count("differs"));
    let complete = missing + differs == 0;
    let mut policies = BTreeMap::new();
    let topologies: Vec<(&str, Topology)> = written.topologies().collect();
    for (service, topology) in &topologies {
        let others = topologies.iter().filter(|(other, _)| other != service);
        let commands = others.flat_map(|(_, topology)| commands(topology)).collect();
        let policy = aws.policy(topology, &commands).await;
        let policy = policy.map_err(|error| Code::Broker.of(error))?;
        policies.insert((*service).to_owned(), policy);
    }
    frame.out.show(&Plan {
        complete,
        items,
        gone: written.gone(),
        policies,
    })?;
    Ok(planned(frame, missing, differs))
}

async fn apply(frame: &Frame, aws: &Aws, written: &Written) -> anyhow::Result<Ended> {
    let (services, topology) = (needed_by(written), written.topology());
    let before: BTreeMap<Piece, PieceState> = inspect(aws, &topology).await?.into_iter().collect();
    let declared = aws.declare(&topology).await;
    declared.map_err(|error| Code::Broker.of(error))?;
    let after = inspect(aws, &topology).await?;
    let items = after.into_iter().map(|(piece, state)| {
        let was_there = before.get(&piece) == Some(&PieceState::There);
        let outcome = match (&state, was_there) {
            (PieceState::There, true) => "kept",
            (PieceState::There, false) => "made",
            _ => "refused",
        };
        let mut item = item((piece, state), &services);
        item.state = None;
        item.outcome = Some(outcome);
        item
    });
    let items: Vec<Item> = items.collect();
    let refused = items.iter().filter(|it| it.outcome == Some("refused")).count();
    frame.out.show(&Applied {
        complete: refused == 0,
        items,
    })?;
    note(frame, Code::DiffersOnBroker, refused, "could not be made", "could not be made");
    match refused {
        0 => Ok(Ended::Done),
        _ => Ok(Ended::Problem),
    }
}

async fn inspect(aws: &Aws, topology: &Topology) -> anyhow::Result<Vec<(Piece, PieceState)>> {
    let seen = aws.inspect(topology).await;
    seen.map_err(|error| Code::Broker.of(error))
}

fn item((piece, state): (Piece, PieceState), services: &BTreeMap<Piece, BTreeSet<String>>) -> Item {
    let (state, why) = match state {
        PieceState::There => ("there", None),
        PieceState::Differs(why) => ("differs", Some(why)),
        _ => ("missing", None),
    };
    Item {
        kind: match piece.kind {
            PieceKind::Topic => "topic",
            PieceKind::Subscription => "subscription",
            _ => "queue",
        },
        services: services.get(&piece).cloned().unwrap_or_default(),
        name: piece.name,
        from: piece.topic,
        state: Some(state),
        outcome: None,
        why,
    }
}

fn needed_by(written: &Written) -> BTreeMap<Piece, BTreeSet<String>> {
    let mut needed: BTreeMap<Piece, BTreeSet<String>> = BTreeMap::new();
    for (service, topology) in written.topologies() {
        for piece in Aws::pieces(&topology) {
            needed.entry(piece).or_default().insert(service.to_owned());
        }
    }
    needed
}

/// What others may send to a service: the queues that subscribe to nothing, and the commands of ordered groups.
fn commands(topology: &Topology) -> Vec<String> {
    let queues = topology.queues.iter().filter(|it| it.topics.is_empty());
    let queues = queues.map(|it| it.name.to_string());
    let groups = topology.groups.iter().flat_map(|it| &it.commands);
    queues.chain(groups.map(ToString::to_string)).collect()
}

//! `plan` and `apply` on engines of topics, Kafka and Amazon SNS and SQS: what is there and, at Amazon, what each service has
//! to be allowed.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use serde::Serialize;
use serde_json::Value;
use tidings::{Topology, Transport, TransportError};
use tidings_adapter::{Piece, PieceKind, PieceState};

use super::{What, Written, note, planned};
use crate::{
    code::Code,
    frame::{Ended, Frame, Usage},
    out::{Cell, Page, Report, counted, one_line},
};

/// Where it is.
pub(super) enum Engine {
    #[cfg(feature = "kafka")]
    Kafka(tidings_kafka::Kafka),
    #[cfg(feature = "aws")]
    Aws(tidings_aws::Aws),
}

impl Engine {
    fn transport(&self) -> &dyn Transport {
        match self {
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka,
            #[cfg(feature = "aws")]
            Self::Aws(aws) => aws,
        }
    }

    /// Why nothing is pruned there.
    fn does_not_prune(&self) -> &'static str {
        match self {
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => {
                "what is left on Kafka is not removed by this: delete its topics and consumer groups with Kafka's own tools \
                 (`kafka-topics.sh --delete`, `kafka-consumer-groups.sh --delete`)"
            }
            #[cfg(feature = "aws")]
            Self::Aws(_) => {
                "what is left on Amazon SNS and SQS is not removed by this: SQS does not say who receives from a queue; \
                 delete queues with Amazon's own tools"
            }
        }
    }

    fn pieces(&self, topology: &Topology) -> Result<BTreeSet<Piece>, TransportError> {
        match self {
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.pieces(topology),
            #[cfg(feature = "aws")]
            Self::Aws(_) => Ok(tidings_aws::Aws::pieces(topology)),
        }
    }

    async fn inspect(
        &self,
        topology: &Topology,
    ) -> Result<Vec<(Piece, PieceState)>, TransportError> {
        match self {
            #[cfg(feature = "kafka")]
            Self::Kafka(kafka) => kafka.inspect(topology).await,
            #[cfg(feature = "aws")]
            Self::Aws(aws) => aws.inspect(topology).await,
        }
    }

    /// What each service has to be allowed, where the engine has a language for it.
    async fn policies(&self, written: &Written) -> anyhow::Result<Option<BTreeMap<String, Value>>> {
        match self {
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => {
                let _ = written;
                Ok(None)
            }
            #[cfg(feature = "aws")]
            Self::Aws(aws) => {
                let mut policies = BTreeMap::new();
                let topologies: Vec<(&str, Topology)> = written.topologies().collect();
                for (service, topology) in &topologies {
                    let others = topologies.iter().filter(|(other, _)| other != service);
                    let commands = others
                        .flat_map(|(_, topology)| commands(topology))
                        .collect();
                    let policy = aws.policy(topology, &commands).await;
                    let policy = policy.map_err(|error| Code::Broker.of(error))?;
                    policies.insert((*service).to_owned(), policy);
                }
                Ok(Some(policies))
            }
        }
    }
}

#[derive(Debug, Serialize)]
struct Plan {
    complete: bool,
    items: Vec<Item>,
    gone: usize,
    /// By the service; at Amazon.
    #[serde(skip_serializing_if = "Option::is_none")]
    policies: Option<BTreeMap<String, Value>>,
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
                "there" | "kept" | "made" if self.why.is_some() => Cell::warning(told),
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
        for (service, policy) in self.policies.iter().flatten() {
            page.line("");
            page.line(format!("policy of `{service}`:"));
            for line in format!("{policy:#}").lines() {
                page.line(line);
            }
        }
        if self.gone > 0 {
            let gone = counted(self.gone as u64, "handler is", "handlers are");
            page.line(format!(
                "{gone} gone: what it had is still there, and the engine's own tools delete it"
            ));
        }
    }
}

impl Report for Applied {
    fn tell(&self, page: &mut Page) {
        table(&self.items, "OUTCOME", page);
    }
}

pub(super) async fn run(
    frame: &Frame,
    engine: &Engine,
    written: &Written,
    what: What,
) -> anyhow::Result<Ended> {
    let ended = match what {
        What::Plan => plan(frame, engine, written).await,
        What::Apply => apply(frame, engine, written).await,
        What::Prune(_) => bail!(Usage::new(engine.does_not_prune())),
    };
    engine.transport().close().await;
    ended
}

async fn plan(frame: &Frame, engine: &Engine, written: &Written) -> anyhow::Result<Ended> {
    let services = needed_by(engine, written)?;
    let seen = inspect(engine, &written.topology()).await?;
    let items: Vec<Item> = seen.into_iter().map(|it| item(it, &services)).collect();
    let count = |state: &str| items.iter().filter(|it| it.state == Some(state)).count();
    let (missing, differs) = (count("missing"), count("differs"));
    let complete = missing + differs == 0;
    frame.out.show(&Plan {
        complete,
        items,
        gone: written.gone(),
        policies: engine.policies(written).await?,
    })?;
    Ok(planned(frame, missing, differs))
}

async fn apply(frame: &Frame, engine: &Engine, written: &Written) -> anyhow::Result<Ended> {
    let (services, topology) = (needed_by(engine, written)?, written.topology());
    let before: BTreeMap<Piece, PieceState> =
        inspect(engine, &topology).await?.into_iter().collect();
    let declared = engine.transport().declare(&topology).await;
    declared.map_err(|error| Code::Broker.of(error))?;
    let after = inspect(engine, &topology).await?;
    let items = after.into_iter().map(|(piece, state)| {
        let is_there =
            |state: &PieceState| matches!(state, PieceState::There | PieceState::Risky(_));
        let outcome = match (is_there(&state), before.get(&piece).is_some_and(is_there)) {
            (true, true) => "kept",
            (true, false) => "made",
            _ => "refused",
        };
        let mut item = item((piece, state), &services);
        item.state = None;
        item.outcome = Some(outcome);
        item
    });
    let items: Vec<Item> = items.collect();
    let refused = items
        .iter()
        .filter(|it| it.outcome == Some("refused"))
        .count();
    frame.out.show(&Applied {
        complete: refused == 0,
        items,
    })?;
    note(
        frame,
        Code::DiffersOnBroker,
        refused,
        "could not be made",
        "could not be made",
    );
    match refused {
        0 => Ok(Ended::Done),
        _ => Ok(Ended::Problem),
    }
}

async fn inspect(engine: &Engine, topology: &Topology) -> anyhow::Result<Vec<(Piece, PieceState)>> {
    let seen = engine.inspect(topology).await;
    seen.map_err(|error| Code::Broker.of(error))
}

fn item((piece, state): (Piece, PieceState), services: &BTreeMap<Piece, BTreeSet<String>>) -> Item {
    let (state, why) = match state {
        PieceState::There => ("there", None),
        PieceState::Risky(why) => ("there", Some(why)),
        PieceState::Differs(why) => ("differs", Some(why)),
        _ => ("missing", None),
    };
    Item {
        kind: match piece.kind {
            PieceKind::Topic => "topic",
            PieceKind::Queue => "queue",
            PieceKind::Subscription => "subscription",
        },
        services: services.get(&piece).cloned().unwrap_or_default(),
        name: piece.name,
        from: piece.topic,
        state: Some(state),
        outcome: None,
        why,
    }
}

fn needed_by(
    engine: &Engine,
    written: &Written,
) -> anyhow::Result<BTreeMap<Piece, BTreeSet<String>>> {
    let mut needed: BTreeMap<Piece, BTreeSet<String>> = BTreeMap::new();
    for (service, topology) in written.topologies() {
        let pieces = engine.pieces(&topology);
        for piece in pieces.map_err(|error| Code::Broker.of(error))? {
            needed.entry(piece).or_default().insert(service.to_owned());
        }
    }
    Ok(needed)
}

/// What others may send to a service: the queues that subscribe to nothing, and the commands of ordered groups.
#[cfg(feature = "aws")]
fn commands(topology: &Topology) -> Vec<String> {
    let queues = topology.queues.iter().filter(|it| it.topics.is_empty());
    let queues = queues.map(|it| it.name.to_string());
    let groups = topology.groups.iter().flat_map(|it| &it.commands);
    queues.chain(groups.map(ToString::to_string)).collect()
}

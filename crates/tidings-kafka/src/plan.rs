//! What services need on Kafka, for operators: the topics and subscriptions, and whether they are there.

use std::collections::BTreeSet;

use tidings_core::{Topology, TransportError};

use crate::{Kafka, checks::Finding, topology::subscriptions_of};

/// A topic, or the subscription of a queue to one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Piece {
    /// What it is.
    pub kind: PieceKind,
    /// Its name; of a subscription, that of the queue, or of the ordered group with its number of partitions.
    pub name: String,
    /// Of a subscription, the topic.
    pub topic: Option<String>,
}

/// What a [`Piece`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum PieceKind {
    /// A topic: of events, of what is sent to a queue by name, or of its dead letters.
    Topic,
    /// A queue's subscription to a topic.
    Subscription,
}

/// What there is of a [`Piece`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PieceState {
    /// It is there.
    There,
    /// It is there and can be used, and may lose what is promised to be kept: why, and what to set.
    Risky(String),
    /// It is not there.
    Missing,
    /// It is there and cannot be used: why.
    Differs(String),
}

impl Kafka {
    /// The pieces that a topology is made of, each once.
    ///
    /// # Errors
    ///
    /// When Kafka cannot have them: a name is too long, or an ordered group has too many partitions.
    pub fn pieces(&self, topology: &Topology) -> Result<BTreeSet<Piece>, TransportError> {
        let topics = self.shared.topics_of(topology)?.into_keys();
        let topics = topics.map(|name| Piece {
            kind: PieceKind::Topic,
            name,
            topic: None,
        });
        let subscriptions = subscriptions_of(topology).into_iter();
        let subscriptions = subscriptions.map(|(queue, topic, _)| Piece {
            kind: PieceKind::Subscription,
            name: queue,
            topic: Some(topic),
        });
        Ok(topics.chain(subscriptions).collect())
    }

    /// Looks which pieces of a topology are there, and whether the settings of topics keep what is promised. Makes nothing
    /// (but for the topic of subscriptions, which whoever connects first makes).
    ///
    /// # Errors
    ///
    /// When Kafka does not answer, or the looks are not allowed.
    pub async fn inspect(
        &self,
        topology: &Topology,
    ) -> Result<Vec<(Piece, PieceState)>, TransportError> {
        let shared = &self.shared;
        shared.status.reached().await?;
        let wanted = shared.topics_of(topology)?;
        let there = shared.topics_that_are_there().await?;
        let names = wanted.keys().map(String::as_str);
        let names = names.filter(|name| there.contains_key(*name)).collect();
        let mut found = shared.findings_of(topology, names).await?;
        let mut state_of_topic = |name: &str| {
            let (Some(wanted), Some(there)) = (wanted.get(name), there.get(name)) else {
                return PieceState::Missing;
            };
            if let Some(why) = wanted.is_broken_by(*there) {
                return PieceState::Differs(format!("it {why} (TDG-4013)"));
            }
            let (mut refused, mut told) = (None, Vec::new());
            for finding in found.remove(name).unwrap_or_default() {
                match finding {
                    Finding::Refused(why) => refused = Some(format!("{why} (TDG-4017)")),
                    Finding::Told(what) => told.push(format!("{what} (TDG-4016)")),
                }
            }
            match (refused, told.is_empty()) {
                (Some(why), _) => PieceState::Differs(why),
                (None, true) => PieceState::There,
                (None, false) => PieceState::Risky(told.join("; ")),
            }
        };
        let pieces = self.pieces(topology)?.into_iter().map(|piece| {
            let state = match &piece.topic {
                None => state_of_topic(&piece.name),
                Some(topic) if shared.bindings.is_subscribed(&piece.name, topic) => {
                    PieceState::There
                }
                Some(_) => PieceState::Missing,
            };
            (piece, state)
        });
        Ok(pieces.collect())
    }
}

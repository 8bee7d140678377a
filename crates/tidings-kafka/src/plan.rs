//! What services need on Kafka, for operators: the topics and subscriptions, and whether they are there.

use std::collections::BTreeSet;

use tidings_adapter::{Piece, PieceKind, PieceState};
use tidings_core::{Topology, TransportError};

use crate::{Kafka, checks::Finding, topology::subscriptions_of};

impl Kafka {
    /// The pieces that a topology is made of, each once.
    ///
    /// # Errors
    ///
    /// When Kafka cannot have them: a name is too long, or an ordered group has too many partitions.
    pub fn pieces(&self, topology: &Topology) -> Result<BTreeSet<Piece>, TransportError> {
        let topics = self.shared.topics_of(topology)?.into_keys();
        let topics = topics.map(|name| Piece::new(PieceKind::Topic, name, None));
        let subscriptions = subscriptions_of(topology).into_iter();
        let subscriptions = subscriptions
            .map(|(queue, topic, _)| Piece::new(PieceKind::Subscription, queue, Some(topic)));
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

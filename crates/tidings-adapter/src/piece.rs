//! What services need on an engine of topics, for operators.

/// A topic, a queue, or a subscription between them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Piece {
    /// What it is.
    pub kind: PieceKind,
    /// Its name, as services say it; of a subscription, that of who subscribes.
    pub name: String,
    /// Of a subscription, the topic.
    pub topic: Option<String>,
}

/// What a [`Piece`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PieceKind {
    /// A topic; on Kafka also one of what is sent to a queue by name, or of its dead letters.
    Topic,
    /// A queue.
    Queue,
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

impl Piece {
    /// A piece of this kind and name; of a subscription, with the topic.
    pub fn new(kind: PieceKind, name: String, topic: Option<String>) -> Self {
        Self { kind, name, topic }
    }
}

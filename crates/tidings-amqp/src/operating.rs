//! The topology as an operator sees it: what of it is there, making what is missing, and deleting what nobody
//! needs any more.
//!
//! Over AMQP one can see that an exchange or a queue is there (a passive declaration), and whether it is as
//! described (an active one, which changes nothing of what is there). Bindings cannot be seen: they can only be
//! made again, which changes nothing if they are there.

use std::{collections::HashMap, sync::Arc};

use tidings_core::{AccessError, AccessErrorKind, Topology, TransportError, dead_letter_queue};
use tidings_wire::{
    EncodeMethod, ExchangeDeclare, ExchangeDelete, Method, QueueDeclare, QueueDelete,
    QueueDeleteOk, ShortStr, reply,
};

use crate::{
    Amqp,
    groups::command_exchange,
    letters,
    parts::{Part, is_of_another_type},
    queues::Kind,
    session::{Channel, Closed, Quiet, Session},
    topology::{DeclareError, Declared, checked_name, no_queue_of_a_command},
};

/// Something that a topology is made of on the broker.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Piece {
    /// What it is.
    pub kind: PieceKind,
    /// Its name; of a binding, the queue or exchange that gets the messages.
    pub name: String,
    /// Of a binding, the exchange that they come from.
    pub source: Option<String>,
    /// Of a binding, the routing key; empty for those of topics.
    pub routing_key: Option<String>,
}

/// What a [`Piece`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PieceKind {
    /// An exchange.
    Exchange,
    /// A queue, or one of dead letters.
    Queue,
    /// What leads messages from an exchange into a queue, or into another exchange.
    Binding,
}

/// Whether a [`Piece`] is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PieceState {
    /// It is there, as described. (A queue may be of another type: services use it as it is.)
    There,
    /// It is there; why it is not known whether it is as described.
    Unknown(String),
    /// It is not there.
    Missing,
    /// Something else is there, which is in the way: what the broker said of it.
    Differs(String),
    /// A binding: AMQP does not show them.
    Unseen,
}

/// What became of a [`Piece`] that was to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PieceMade {
    /// It was there.
    Kept,
    /// It was made.
    Made,
    /// A binding: it is there now, and may have been before.
    Ensured,
    /// It could not be made: why.
    Refused(String),
}

/// What became of a queue or an exchange that was to be deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deleted {
    /// It is deleted, with so many messages.
    Done(u32),
    /// It was not there.
    NotThere,
    /// It is still there: why.
    Refused(String),
}

impl Piece {
    fn named(kind: PieceKind, name: &ShortStr) -> Self {
        Self {
            kind,
            name: name.to_str_lossy().into_owned(),
            source: None,
            routing_key: None,
        }
    }

    fn binding(name: &ShortStr, source: &ShortStr, key: &ShortStr) -> Self {
        Self {
            source: Some(source.to_str_lossy().into_owned()),
            routing_key: Some(key.to_str_lossy().into_owned()),
            ..Self::named(PieceKind::Binding, name)
        }
    }

    fn of(part: &Part) -> Option<Self> {
        match part {
            Part::Exchange(it) => Some(Self::named(PieceKind::Exchange, &it.exchange)),
            Part::Queue(it) | Part::Letters(it) => Some(Self::named(PieceKind::Queue, &it.queue)),
            Part::Binding(it) => Some(Self::binding(&it.queue, &it.exchange, &it.routing_key)),
            Part::Link(it) => Some(Self::binding(&it.destination, &it.source, &it.routing_key)),
            Part::Unbinding(_) => None,
        }
    }
}

impl Amqp {
    /// What a topology is made of on a broker, in an order in which it can be made.
    ///
    /// # Errors
    ///
    /// When a name is not possible.
    pub fn pieces(topology: &Topology) -> Result<Vec<Piece>, TransportError> {
        Ok(parts_of(topology)?
            .into_iter()
            .map(|(piece, _)| piece)
            .collect())
    }

    /// The queues and exchanges that belong to the queues and ordered groups of a topology alone, in an order in
    /// which they can be deleted. Topics are not among them: they belong to whoever publishes.
    ///
    /// # Errors
    ///
    /// As [`pieces`](Self::pieces).
    pub fn own_pieces(topology: &Topology) -> Result<Vec<Piece>, TransportError> {
        let declared = Declared::of(topology).map_err(DeclareError::into_transport)?;
        let parts = declared.parts_beside_topics();
        let parts = parts.map_err(DeclareError::into_transport)?;
        let of_kind = |kind| {
            let pieces = parts.iter().filter_map(Piece::of);
            pieces.filter(move |piece| piece.kind == kind)
        };
        // Dead letters come last: their queue is declared first.
        let queues: Vec<Piece> = of_kind(PieceKind::Queue).collect();
        let queues = queues.into_iter().rev();
        Ok(queues.chain(of_kind(PieceKind::Exchange)).collect())
    }

    /// Whether each piece of a topology is there. It changes nothing. (To see whether a piece that is there is as
    /// described, it is declared again: if somebody deletes it in that very moment, it is there again.)
    ///
    /// # Errors
    ///
    /// When the connection is lost.
    pub async fn inspect(
        &self,
        topology: &Topology,
    ) -> Result<Vec<(Piece, PieceState)>, TransportError> {
        let mut asking = self.asking().await?;
        let parts = asking.parts_of(topology)?;
        let in_the_way = asking.commands_in_the_way(topology).await?;
        let mut seen = Vec::with_capacity(parts.len());
        let mut is_missing: HashMap<String, bool> = HashMap::new();
        for (piece, part) in parts {
            let state = match (&piece.source, in_the_way.get(&piece.name)) {
                (None, Some(why)) => PieceState::Differs(why.clone()),
                (None, None) => asking.look(&part).await?,
                (Some(source), _) => {
                    let ends = [&piece.name, source];
                    let lacks = ends
                        .into_iter()
                        .any(|end| is_missing.get(end) == Some(&true));
                    match lacks {
                        true => PieceState::Missing,
                        false => PieceState::Unseen,
                    }
                }
            };
            if piece.kind != PieceKind::Binding {
                let missing = is_missing.entry(piece.name.clone()).or_default();
                *missing |= state == PieceState::Missing;
            }
            seen.push((piece, state));
        }
        Ok(seen)
    }

    /// Makes what is missing of a topology. What is there is neither changed nor deleted; one that cannot be
    /// made does not keep the others from being made. The same call again changes nothing.
    ///
    /// # Errors
    ///
    /// When the connection is lost.
    pub async fn make(
        &self,
        topology: &Topology,
    ) -> Result<Vec<(Piece, PieceMade)>, TransportError> {
        let mut asking = self.asking().await?;
        let parts = asking.parts_of(topology)?;
        let in_the_way = asking.commands_in_the_way(topology).await?;
        let mut refused: HashMap<String, String> = in_the_way;
        let mut all = Vec::with_capacity(parts.len());
        for (piece, part) in parts {
            let ends = std::iter::once(&piece.name).chain(&piece.source);
            let lacks = ends.filter_map(|end| refused.get(end)).next().cloned();
            let made = match (lacks, piece.kind) {
                (Some(why), PieceKind::Binding) => PieceMade::Refused(format!(
                    "it leads from or to something that is not right: {why}"
                )),
                (Some(why), _) => PieceMade::Refused(why),
                (None, PieceKind::Binding) => asking.declare(&part, PieceMade::Ensured).await?,
                (None, _) => match asking.look(&part).await? {
                    PieceState::Missing => asking.declare(&part, PieceMade::Made).await?,
                    PieceState::Differs(why) => PieceMade::Refused(why),
                    _ => PieceMade::Kept,
                },
            };
            if let PieceMade::Refused(why) = &made
                && piece.kind != PieceKind::Binding
            {
                refused.insert(piece.name.clone(), why.clone());
            }
            all.push((piece, made));
        }
        Ok(all)
    }

    /// Deletes a queue from which nobody receives, if it is empty, or with its messages. The broker decides, in
    /// the moment in which it deletes. One of dead letters is not deleted while somebody
    /// [holds](Self::is_held) letters of it, whether they have fetched any or not.
    ///
    /// # Errors
    ///
    /// When the connection is lost.
    pub async fn delete_queue(
        &self,
        queue: &str,
        with_messages: bool,
    ) -> Result<Deleted, TransportError> {
        let name = short("queue", queue)?;
        let is_of_letters = queue.ends_with(dead_letter_queue("").as_str());
        let lock = match is_of_letters {
            true => match self.lock(queue).await {
                Ok(lock) => Some(lock),
                Err(error) => return not_locked(error),
            },
            false => None,
        };
        let passive = QueueDeclare {
            passive: true,
            queue: name.clone(),
            ..QueueDeclare::default()
        };
        let delete = QueueDelete {
            queue: name,
            if_unused: true,
            if_empty: !with_messages,
            ..QueueDelete::default()
        };
        let deleted = self.delete(&passive, &delete).await;
        if let Some(lock) = lock {
            // If it fails, the broker frees it with the connection.
            let _ = lock.release().await;
        }
        deleted
    }

    /// Whether an operator holds dead letters of this queue: looks at them, mends them or sends them. What they have
    /// fetched does not count as being in it ([`depths`](Self::depths)). It changes nothing.
    ///
    /// # Errors
    ///
    /// When the connection is lost, or the broker refuses the look.
    pub async fn is_held(&self, queue: &str) -> Result<bool, TransportError> {
        short("queue", queue)?;
        let session = letters::session(&self.shared).await.map_err(as_transport)?;
        let held = letters::is_held(&self.shared, &session, queue).await;
        held.map_err(as_transport)
    }

    async fn lock(&self, queue: &str) -> Result<letters::Lock, AccessError> {
        let session = letters::session(&self.shared).await?;
        letters::Lock::take(&self.shared, &session, queue).await
    }

    /// Deletes an exchange that leads nowhere.
    ///
    /// # Errors
    ///
    /// When the connection is lost.
    pub async fn delete_exchange(&self, exchange: &str) -> Result<Deleted, TransportError> {
        let name = short("exchange", exchange)?;
        let passive = ExchangeDeclare {
            passive: true,
            ..crate::parts::exchange(name.clone(), "fanout", tidings_wire::Table::default())
        };
        let delete = ExchangeDelete {
            exchange: name,
            if_unused: true,
            ..ExchangeDelete::default()
        };
        self.delete(&passive, &delete).await
    }

    async fn delete(
        &self,
        look: &impl EncodeMethod,
        delete: &impl EncodeMethod,
    ) -> Result<Deleted, TransportError> {
        let mut asking = self.asking().await?;
        match asking.ask(look).await? {
            Err(closed) if closed.code == reply::NOT_FOUND => return Ok(Deleted::NotThere),
            Err(closed) => return Ok(Deleted::Refused(closed.reason.to_string())),
            Ok(_) => {}
        }
        Ok(match asking.ask(delete).await? {
            Ok(Method::QueueDeleteOk(QueueDeleteOk { message_count })) => {
                Deleted::Done(message_count)
            }
            Ok(_) => Deleted::Done(0),
            Err(closed) if closed.code == reply::NOT_FOUND => Deleted::NotThere,
            Err(closed) => Deleted::Refused(closed.reason.to_string()),
        })
    }

    async fn asking(&self) -> Result<Asking, TransportError> {
        let up = self.shared.publishing.up().await?;
        Ok(Asking {
            session: Arc::clone(&up.session),
            channel: None,
        })
    }
}

/// What becomes of a queue of dead letters that could not be locked.
fn not_locked(error: AccessError) -> Result<Deleted, TransportError> {
    match error.kind() {
        AccessErrorKind::Missing => Ok(Deleted::NotThere),
        AccessErrorKind::Unavailable => Err(as_transport(error)),
        _ => Ok(Deleted::Refused(error.to_string())),
    }
}

fn as_transport(error: AccessError) -> TransportError {
    match error.kind() {
        AccessErrorKind::Unavailable => TransportError::temporary(error.to_string()),
        _ => TransportError::fatal(error.to_string()),
    }
}

fn short(what: &str, name: &str) -> Result<ShortStr, TransportError> {
    checked_name(what, name, ShortStr::BYTES_MAX).map_err(DeclareError::into_transport)
}

/// Each once, in order.
fn parts_of(topology: &Topology) -> Result<Vec<(Piece, Part)>, TransportError> {
    let declared = Declared::of(topology).map_err(DeclareError::into_transport)?;
    let parts = declared.parts().map_err(DeclareError::into_transport)?;
    let mut seen = std::collections::HashSet::new();
    let with_pieces = parts.into_iter();
    let with_pieces = with_pieces.filter_map(|part| Some((Piece::of(&part)?, part)));
    Ok(with_pieces
        .filter(|(piece, _)| seen.insert(piece.clone()))
        .collect())
}

/// Questions whose answer may be that the channel is closed.
struct Asking {
    session: Arc<Session>,
    channel: Option<Channel>,
}

impl Asking {
    /// The answer, or why the broker closed the channel on it.
    async fn ask(
        &mut self,
        method: &impl EncodeMethod,
    ) -> Result<Result<Method, Closed>, TransportError> {
        let channel = match self.channel.take() {
            Some(channel) => channel,
            None => Channel::open(&self.session, |_| Box::new(Quiet))
                .await
                .map_err(|closed| DeclareError::from(closed).into_transport())?,
        };
        match channel.call(method).await {
            Ok(answer) => {
                self.channel = Some(channel);
                Ok(Ok(answer))
            }
            Err(closed) if closed.passes() => Err(DeclareError::from(closed).into_transport()),
            Err(closed) => Ok(Err(closed)),
        }
    }

    /// Everything as this connection would make it.
    fn parts_of(&self, topology: &Topology) -> Result<Vec<(Piece, Part)>, TransportError> {
        let making = self.session.making;
        let parts = parts_of(topology)?.into_iter();
        Ok(parts
            .map(|(piece, part)| (piece, making.made(part)))
            .collect())
    }

    async fn look(&mut self, part: &Part) -> Result<PieceState, TransportError> {
        let Some(passive) = part.passive() else {
            return Ok(PieceState::Unseen);
        };
        match self.declared(&passive).await? {
            Err(closed) if closed.code == reply::NOT_FOUND => return Ok(PieceState::Missing),
            Err(closed) => return Ok(PieceState::Unknown(closed.reason.to_string())),
            Ok(_) => {}
        }
        Ok(match self.declared(part).await? {
            Ok(_) => PieceState::There,
            Err(closed) if is_of_another_type(&closed) => self.look_at_type(part, closed).await?,
            Err(closed) if closed.code == reply::ACCESS_REFUSED => {
                PieceState::Unknown(closed.reason.to_string())
            }
            Err(closed) => PieceState::Differs(closed.reason.to_string()),
        })
    }

    /// Services take a queue of another type as it is if it differs in nothing else.
    async fn look_at_type(
        &mut self,
        part: &Part,
        closed: Closed,
    ) -> Result<PieceState, TransportError> {
        let Part::Queue(queue) = part else {
            return Ok(PieceState::There);
        };
        for kind in Kind::likely(&closed) {
            if self.ask(&kind.of(queue)).await?.is_ok() {
                return Ok(PieceState::There);
            }
        }
        Ok(PieceState::Differs(closed.reason.to_string()))
    }

    async fn declared(&mut self, part: &Part) -> Result<Result<Method, Closed>, TransportError> {
        match part {
            Part::Exchange(it) => self.ask(it).await,
            Part::Queue(it) | Part::Letters(it) => self.ask(it).await,
            Part::Binding(it) => self.ask(it).await,
            Part::Link(it) => self.ask(it).await,
            Part::Unbinding(it) => self.ask(it).await,
        }
    }

    async fn declare(&mut self, part: &Part, done: PieceMade) -> Result<PieceMade, TransportError> {
        Ok(match self.declared(part).await? {
            Ok(_) => done,
            Err(closed) => PieceMade::Refused(closed.reason.to_string()),
        })
    }

    /// The exchanges of commands that cannot be made, with why: their commands have queues of their own.
    async fn commands_in_the_way(
        &mut self,
        topology: &Topology,
    ) -> Result<HashMap<String, String>, TransportError> {
        let declared = Declared::of(topology).map_err(DeclareError::into_transport)?;
        let mut found = HashMap::new();
        for command in declared.commands() {
            if let Err(error) = no_queue_of_a_command(&self.session, command).await {
                let error = error.into_transport();
                if error.is_temporary() {
                    return Err(error);
                }
                found.insert(command_exchange(command), error.to_string());
            }
        }
        Ok(found)
    }
}

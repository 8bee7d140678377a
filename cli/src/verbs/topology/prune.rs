//! `tidings topology prune`: what is left of handlers that are gone.
//!
//! A place is what a handler received from: its queue with its dead letters, or its ordered group. Nothing of a
//! place is deleted while one of its queues has messages or receivers: without the dead-letter queue, what the
//! other gives up would be lost. Nor while an operator holds its dead letters, which do not count as being in their
//! queue meanwhile.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use serde::Serialize;
use tidings::{Topology, handlers};
use tidings_amqp::{Amqp, Deleted, Piece, PieceKind, QueueDepth};

use super::{Written, kind_of, note};
use crate::{
    code::Code,
    frame::{Ended, Frame, toolkit},
    out::{Cell, Page, Report, counted, from_now, one_line},
    places::Access,
};

#[derive(Debug, clap::Args)]
pub(super) struct Prune {
    /// Delete what is empty and unused; without it, everything is only listed
    #[arg(long)]
    yes: bool,
    /// Delete queues with their messages, too, for good; it says how many that were
    #[arg(long, requires = "yes")]
    with_messages: bool,
}

#[derive(Debug, Serialize)]
struct Pruned {
    items: Vec<Item>,
    /// The handlers whose records were removed.
    forgotten: Vec<String>,
    #[serde(skip)]
    lost: u64,
}

#[derive(Debug, Serialize)]
struct Item {
    service: String,
    consumer: String,
    /// Since when nobody needs it.
    since: Timestamp,
    kind: &'static str,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receivers: Option<u32>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

impl Report for Pruned {
    fn tell(&self, page: &mut Page) {
        if self.items.is_empty() && self.forgotten.is_empty() {
            return page.line("nothing is left of handlers that are gone");
        }
        let number = |number: Option<u32>| number.map_or("-".to_owned(), |it| it.to_string());
        let row = |it: &Item| -> Vec<Cell> {
            vec![
                (&it.service).into(),
                it.kind.into(),
                (&it.name).into(),
                from_now(it.since).into(),
                number(it.messages).into(),
                number(it.receivers).into(),
                match it.outcome {
                    "refused" | "would-keep" => Cell::warning(it.outcome),
                    _ => it.outcome.into(),
                },
                it.why.as_deref().map_or("-".to_owned(), one_line).into(),
            ]
        };
        let headings = [
            "SERVICE", "WHAT", "NAME", "GONE", "MESSAGES", "RECEIVERS", "OUTCOME", "WHY",
        ];
        page.table(&headings, &self.items.iter().map(row).collect::<Vec<_>>());
        if self.lost > 0 {
            page.line(counted(
                self.lost,
                "message was deleted with its queue",
                "messages were deleted with their queues",
            ));
        }
        for consumer in &self.forgotten {
            page.line(format!("{consumer}: its record is removed"));
        }
    }
}

/// What is known while it goes.
struct Pruning<'a> {
    broker: &'a Amqp,
    how: &'a Prune,
    /// What is still needed, and is not touched.
    needed: HashSet<Piece>,
    /// What has been looked at, and whether it is gone.
    gone: HashMap<Piece, bool>,
    pruned: Pruned,
}

impl Prune {
    pub(super) async fn run(
        self,
        frame: &Frame,
        broker: &Amqp,
        written: &Written,
    ) -> anyhow::Result<Ended> {
        let mut pruning = Pruning {
            broker,
            how: &self,
            needed: Amqp::own_pieces(&written.topology())?.into_iter().collect(),
            gone: HashMap::new(),
            pruned: Pruned {
                items: Vec::new(),
                forgotten: Vec::new(),
                lost: 0,
            },
        };
        for (database, handler) in &written.handlers {
            let places = handlers::abandoned(handler);
            if places.is_empty() {
                continue;
            }
            let mut is_gone = true;
            for (place, since) in &places {
                let whose = (&*handler.service, &*handler.consumer, *since);
                is_gone &= pruning.place(frame, whose, place).await?;
            }
            if self.yes && is_gone {
                let database = frame.one(database, Access::Change).await?;
                let forgotten = handlers::forget(&*database.store, handler).await;
                match forgotten.map_err(toolkit)? {
                    true => pruning.pruned.forgotten.push(handler.consumer.clone()),
                    false => frame.out.note(&format!(
                        "the record of `{}` is kept: its service wrote it anew meanwhile",
                        handler.consumer
                    )),
                }
            }
        }
        let Pruning { pruned, .. } = pruning;
        let refused = pruned.items.iter().filter(|it| it.outcome == "refused").count();
        frame.out.show(&pruned)?;
        if !self.yes && !pruned.items.is_empty() {
            frame.out.note("nothing was deleted: `--yes` does it");
        }
        note(frame, Code::NotPruned, refused, "is not deleted", "are not deleted");
        match refused {
            0 => Ok(Ended::Done),
            _ => Ok(Ended::Problem),
        }
    }
}

impl Pruning<'_> {
    /// Deletes one place, or says why not. True: nothing of it is there.
    async fn place(
        &mut self,
        frame: &Frame,
        (service, consumer, since): (&str, &str, Timestamp),
        place: &Topology,
    ) -> anyhow::Result<bool> {
        let pieces = Amqp::own_pieces(place)?;
        let pieces: Vec<Piece> = pieces.into_iter().filter(|it| !self.needed.contains(it)).collect();
        let queues = pieces.iter().filter(|it| it.kind == PieceKind::Queue);
        let queues: Vec<&str> = queues.map(|it| &*it.name).collect();
        let depths = frame.depths(self.broker, &queues).await?;
        let mut depths: HashMap<&str, QueueDepth> = queues
            .iter()
            .zip(depths)
            .filter_map(|(queue, depth)| Some((*queue, depth?)))
            .collect();
        let mut stands = depths.iter().find_map(|(queue, depth)| self.stands(queue, *depth));
        if stands.is_none() {
            stands = self.held(depths.keys().copied()).await?;
        }
        for piece in &pieces {
            if self.gone.contains_key(piece) {
                continue; // Another handler of the group was here.
            }
            let depth = depths.remove(&*piece.name);
            let depth = depth.filter(|_| piece.kind == PieceKind::Queue);
            let (outcome, why) = match (&stands, self.how.yes) {
                (Some(why), true) => ("refused", Some(why.clone())),
                (Some(why), false) => ("would-keep", Some(why.clone())),
                (None, false) => ("would-delete", None),
                (None, true) => match self.delete(piece).await? {
                    Deleted::NotThere => ("not-there", None),
                    Deleted::Done(messages) => {
                        self.pruned.lost += u64::from(messages);
                        ("deleted", None)
                    }
                    Deleted::Refused(why) => {
                        let why = format!("it stays, since it is in use or no longer empty: {why}");
                        stands = Some(why.clone());
                        ("refused", Some(why))
                    }
                },
            };
            let is_gone = matches!(outcome, "deleted" | "not-there");
            self.gone.insert(piece.clone(), is_gone);
            self.pruned.items.push(Item {
                service: service.to_owned(),
                consumer: consumer.to_owned(),
                since,
                kind: kind_of(piece),
                name: piece.name.clone(),
                messages: depth.map(|it| it.ready),
                receivers: depth.and_then(|it| it.receivers),
                outcome,
                why,
            });
        }
        Ok(pieces.iter().all(|piece| self.gone.get(piece) == Some(&true)))
    }

    /// Why a queue, and what is around it, stays.
    fn stands(&self, queue: &str, depth: QueueDepth) -> Option<String> {
        let QueueDepth {
            ready, receivers, ..
        } = depth;
        let Some(receivers) = receivers else {
            return Some(format!(
                "whether anybody receives from `{queue}` the broker does not say, and a queue that is in use is not \
                 deleted; see that no instance of a version with this handler runs, and delete it by the broker's own \
                 means"
            ));
        };
        if receivers > 0 {
            return Some(format!(
                "{} from `{queue}`: stop the instances of the version that has this handler; if it \
                 is not gone, start the newest version again, which writes that down",
                counted(receivers.into(), "receives", "receive")
            ));
        }
        if ready == 0 || self.how.with_messages {
            return None;
        }
        Some(match queue.strip_suffix(".dead") {
            Some(consumer) => format!(
                "{} in it: `tidings dead-letters list {consumer}` shows what is there; send all of it where it \
                 belongs or discard it; `--with-messages` deletes all {ready} for good",
                counted(ready.into(), "dead letter is", "dead letters are")
            ),
            None => format!(
                "{} in `{queue}`: let a version that has the handler work off what is there \
                 (`Router::unsubscribed` takes nothing new), or move it; `--with-messages` deletes \
                 all {ready} for good",
                counted(ready.into(), "message is", "messages are")
            ),
        })
    }

    /// Why the place stays, if an operator holds dead letters of it. (One who begins after this look is seen by
    /// the deletion itself.)
    async fn held(&self, queues: impl Iterator<Item = &str>) -> anyhow::Result<Option<String>> {
        for queue in queues.filter(|queue| queue.ends_with(".dead")) {
            let is_held = self.broker.is_held(queue).await;
            if is_held.map_err(|error| Code::Broker.of(error))? {
                return Ok(Some(format!(
                    "an operator holds the dead letters of `{queue}` at the moment: run this again when that \
                     has ended"
                )));
            }
        }
        Ok(None)
    }

    async fn delete(&self, piece: &Piece) -> anyhow::Result<Deleted> {
        let deleted = match piece.kind {
            PieceKind::Queue => {
                let with_messages = self.how.with_messages;
                self.broker.delete_queue(&piece.name, with_messages).await
            }
            _ => self.broker.delete_exchange(&piece.name).await,
        };
        deleted.map_err(|error| Code::Broker.of(error))
    }
}

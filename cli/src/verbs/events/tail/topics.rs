//! Which topics are watched. Watching a topic makes a receiver for it, so one from which no service receives is
//! watched only if it is named, and never while events to it are held.

use std::collections::BTreeSet;

use anyhow::bail;
use tidings::{Destination, OutboxState, handlers};
use tidings_amqp::{Amqp, Tailing};
use tokio::time::timeout;

use super::filter::matches;
use crate::{
    code::Code,
    frame::{BROKER_WAIT_MAX, Frame, Usage, toolkit},
    out::one_line,
    places::Access,
};

/// How many held messages of a service are looked at for topics to which nobody listens.
const HELD_MAX: usize = 1000;

/// What the services' databases say of topics.
#[derive(Debug, Default)]
struct Known {
    /// Those from which a service receives.
    heard: BTreeSet<String>,
    /// Those to which a service publishes.
    published: BTreeSet<String>,
    /// Those to which events are held, and why.
    held: Vec<(String, String)>,
}

/// Begins to watch topics.
pub(in crate::verbs) async fn watch(amqp: &Amqp, topics: &[String]) -> anyhow::Result<Tailing> {
    match timeout(BROKER_WAIT_MAX, amqp.tail(topics)).await {
        Ok(tailing) => Ok(tailing.map_err(|error| Code::Tail.of(error))?),
        Err(_) => bail!(Code::Broker.of("the broker does not answer any more")),
    }
}

/// The topics to watch: those that are named, those that match a name with `*`, or all that are known when
/// none is named.
pub(in crate::verbs) async fn chosen(
    frame: &Frame,
    named: &[String],
) -> anyhow::Result<Vec<String>> {
    let (patterns, mut chosen): (Vec<String>, Vec<String>) =
        named.iter().cloned().partition(|it| it.contains('*'));
    if !frame.has_database() {
        if chosen.is_empty() || !patterns.is_empty() {
            bail!(Usage::new(
                "say which topics to watch with `--topic NAME`; or where the services' databases are \
                 (`--database`), which know their topics"
            ));
        }
        return Ok(chosen);
    }
    let known = Known::of(frame).await?;
    for topic in chosen.iter().filter(|it| !known.heard.contains(*it)) {
        frame.out.note(&format!(
            "no service that is known here receives from `{topic}`: while it is watched, events to it count \
             as delivered"
        ));
    }
    if named.is_empty() || !patterns.is_empty() {
        let is_meant = |topic: &&String| {
            named.is_empty() || patterns.iter().any(|pattern| matches(pattern, topic))
        };
        for topic in known.published.difference(&known.heard).filter(is_meant) {
            frame.out.note(&format!(
                "`{topic}` is not watched, because no service receives from it and its events would count as \
                 delivered; name it with `--topic` to watch it nevertheless"
            ));
        }
        chosen.extend(known.heard.iter().filter(is_meant).cloned());
        chosen.sort();
        chosen.dedup();
    }
    if chosen.is_empty() {
        return Err(Code::Tail.of(
            "the databases know of no such topic from which a service receives; services write that down \
             when they start: name a topic with `--topic`",
        ));
    }
    match known.held.iter().find(|(topic, _)| chosen.contains(topic)) {
        None => Ok(chosen),
        Some((topic, reason)) => Err(Code::Tail.of(format!(
            "events to `{topic}` are held, which watching would release to nobody ({}); look at them with \
             `tidings outbox list`",
            one_line(reason)
        ))),
    }
}

impl Known {
    async fn of(frame: &Frame) -> anyhow::Result<Self> {
        let mut known = Self::default();
        let all = frame.each(Access::Look, async |database| {
            let store = &*database.store;
            let handlers = handlers::list(store).await.map_err(toolkit)?;
            let receive = handlers
                .into_iter()
                .filter(|it| !it.is_gone() && !it.unsubscribed);
            known
                .heard
                .extend(receive.flat_map(|handler| handler.topics));
            let services = handlers::services(store).await.map_err(toolkit)?;
            known
                .published
                .extend(services.into_iter().flat_map(|it| it.publishes));
            let held = store
                .outbox()
                .list(OutboxState::Held, None, HELD_MAX)
                .await?;
            known
                .held
                .extend(held.into_iter().filter_map(|row| match row.destination {
                    Destination::Topic(topic) => Some((topic.into_owned(), row.reason)),
                    Destination::Queue(_) => None,
                }));
            Ok(())
        });
        all.await?;
        Ok(known)
    }
}

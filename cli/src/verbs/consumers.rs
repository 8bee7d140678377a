//! `tidings consumers`: who handles messages, and pausing them.

use anyhow::bail;
use clap::Subcommand;
use jiff::Timestamp;
use serde::Serialize;
use tidings::{
    Group, Paused,
    handlers::{self, OrderedGroup},
    pause, paused, resume,
};
use tidings_amqp::QueueDepth;

use super::deferred::{CONSUMERS_MAX, counts};
use crate::{
    frame::{Ended, Frame, toolkit},
    out::{Cell, Page, Report, from_now, one_line, should_be_zero},
    places::Access,
};

/// How many pauses of a service are looked at.
pub(crate) const PAUSES_MAX: usize = 1000;

/// The consumers of services: their backlog, and whether they are paused.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

const EXAMPLES: &str = "\
Examples:
  tidings consumers list
  tidings consumers pause --service payment payment --why 'the bank is being moved'
  tidings consumers pause --service payment payment.order-placed.v1 --why 'see ticket 12'
  tidings consumers resume --service payment payment

A handler is listed from the first start of its service on, also if it has had no message; one of a service
without a store is not known. With `--broker` the list says what waits in each handler's queue and how many
instances receive from it (of a handler that keeps order: in the queues of its group), and which queues are
missing.

As JSON:
  list           {consumers: [{service, consumer, paused?: {since, reason, name}, waiting, dead, ordered?, goneSince?, queueMissing?, backlog?, receivers?}]}
  pause, resume  {service, consumer, paused}";

#[derive(Debug, Subcommand)]
enum What {
    /// Lists handlers: paused or not, what waits, what is dead
    List,
    /// Pauses a consumer (`payment`) or one of its handlers (`payment.order-placed.v1`): all instances
    Pause {
        /// The consumer or the handler
        name: String,
        /// What for; it is shown in lists
        #[arg(long, value_name = "TEXT")]
        why: String,
    },
    /// Lets a consumer or a handler go on
    Resume {
        /// What was paused
        name: String,
    },
}

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        match self.what {
            What::List => list(frame).await,
            What::Pause { name, why } => pause_one(frame, name, &why).await,
            What::Resume { name } => resume_one(frame, name).await,
        }
    }
}

#[derive(Debug, Serialize)]
struct Consumers {
    consumers: Vec<Consumer>,
    #[serde(skip)]
    has_broker: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Consumer {
    service: String,
    consumer: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused: Option<Pause>,
    waiting: u64,
    dead: u64,
    /// The ordered group that it is in.
    #[serde(skip_serializing_if = "Option::is_none")]
    ordered: Option<String>,
    /// Since when its service does not have it any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    gone_since: Option<Timestamp>,
    /// Where it receives.
    #[serde(skip)]
    queues: Vec<String>,
    /// Whether a queue that it receives from is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_missing: Option<bool>,
    /// What waits in its queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    backlog: Option<u32>,
    /// How many receive from its queue; nothing in it if the broker does not know.
    #[serde(skip_serializing_if = "Option::is_none")]
    receivers: Option<Option<u32>>,
}

#[derive(Debug, Clone, Serialize)]
struct Pause {
    since: Timestamp,
    reason: String,
    /// What was paused: the handler, or the whole consumer.
    name: String,
}

impl Report for Consumers {
    fn tell(&self, page: &mut Page) {
        if self.consumers.is_empty() {
            return page.line("no handler is known, and nothing is paused");
        }
        let row = |it: &Consumer| -> Vec<Cell> {
            let number = |number: Option<u32>| number.map_or("-".to_owned(), |it| it.to_string());
            let mut row = vec![
                (&it.service).into(),
                (&it.consumer).into(),
                should_be_zero(it.waiting),
                should_be_zero(it.dead),
            ];
            if self.has_broker {
                row.push(number(it.backlog).into());
                row.push(match it.receivers {
                    Some(Some(0)) => Cell::warning("0"),
                    Some(None) => "unknown".into(),
                    receivers => number(receivers.flatten()).into(),
                });
            }
            row.push(match &it.paused {
                _ if it.gone_since.is_some() => {
                    let since = it.gone_since.map(from_now).unwrap_or_default();
                    Cell::warning(format!("gone {since}"))
                }
                _ if it.queue_missing == Some(true) => Cell::bad("queue missing"),
                Some(Pause { since, reason, .. }) => {
                    let reason = one_line(reason);
                    Cell::warning(format!("paused {}: {reason}", from_now(*since)))
                }
                None => Cell::good("goes on"),
            });
            row
        };
        let mut headings = vec!["SERVICE", "CONSUMER", "WAITING", "DEAD"];
        if self.has_broker {
            headings.extend(["BACKLOG", "RECEIVERS"]);
        }
        headings.push("STATE");
        page.table(&headings, &self.consumers.iter().map(row).collect::<Vec<_>>());
    }
}

async fn list(frame: &Frame) -> anyhow::Result<Ended> {
    let mut consumers = Vec::new();
    let all = frame.each(Access::Look, async |database| {
        let store = &*database.store;
        let pauses = paused(store, PAUSES_MAX).await.map_err(toolkit)?;
        let mut names = store.deferred().consumers(CONSUMERS_MAX).await?;
        for Paused { consumer, .. } in &pauses {
            if !names.iter().any(|name| **name == **consumer) {
                names.push(consumer.as_str().into());
            }
        }
        let written = handlers::list(store).await.map_err(toolkit)?;
        let written = written.iter();
        for handler in written.clone() {
            if !names.iter().any(|name| **name == *handler.consumer) {
                names.push(handler.consumer.as_str().into());
            }
        }
        names.sort();
        for name in names {
            let (waiting, dead) = counts(store, &name).await?;
            let handler = written.clone().find(|it| *it.consumer == *name);
            let ordered = handler.and_then(|it| it.ordered.as_ref());
            consumers.push(Consumer {
                service: database.service.clone(),
                paused: pause_of(&pauses, &name),
                ordered: ordered.map(|it| it.group.clone()),
                gone_since: handler.and_then(|it| it.gone_since),
                queues: receives_from(&name, ordered),
                queue_missing: None,
                consumer: name.into(),
                waiting,
                dead,
                backlog: None,
                receivers: None,
            });
        }
        Ok(())
    });
    all.await?;
    let has_broker = frame.has_broker();
    if has_broker {
        let queues = consumers.iter().flat_map(|it| &it.queues);
        let queues: Vec<&str> = queues.map(|it| &**it).collect();
        let depths = frame.depths(&frame.broker().await?, &queues).await?;
        let mut depths = depths.into_iter();
        for consumer in &mut consumers {
            let own: Vec<Option<QueueDepth>> = depths.by_ref().take(consumer.queues.len()).collect();
            let there = own.iter().flatten();
            let is_there = there.clone().next().is_some();
            consumer.backlog = is_there.then(|| there.clone().map(|it| it.ready).sum());
            consumer.receivers = is_there.then(|| there.map(|it| it.receivers).sum());
            consumer.queue_missing = Some(own.iter().any(Option::is_none));
        }
    }
    frame.out.show(&Consumers {
        consumers,
        has_broker,
    })?;
    Ok(Ended::Done)
}

/// The queues that a handler receives from: its own, or those of its ordered group.
pub(crate) fn receives_from(consumer: &str, ordered: Option<&OrderedGroup>) -> Vec<String> {
    let Some(ordered) = ordered else {
        return vec![consumer.to_owned()];
    };
    let group = Group::new(ordered.group.clone(), ordered.partitions);
    let partitions = (0..ordered.partitions.get()).map(|it| group.partition(it));
    partitions.chain([group.any()]).collect()
}

/// The pause that holds a handler up: its own, or that of its consumer.
fn pause_of(pauses: &[Paused], name: &str) -> Option<Pause> {
    let holds = |it: &&Paused| {
        let rest = name.strip_prefix(&*it.consumer);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    pauses.iter().find(holds).map(|it| Pause {
        since: it.since,
        reason: it.reason.clone(),
        name: it.consumer.clone(),
    })
}

#[derive(Debug, Serialize)]
struct Changed {
    service: String,
    consumer: String,
    paused: bool,
}

impl Report for Changed {
    fn tell(&self, page: &mut Page) {
        let (consumer, service) = (&self.consumer, &self.service);
        page.line(match self.paused {
            true => format!("{consumer} of {service} is paused"),
            false => format!("{consumer} of {service} goes on"),
        });
    }
}

async fn pause_one(frame: &Frame, name: String, why: &str) -> anyhow::Result<Ended> {
    let database = frame.only(Access::Change).await?;
    pause(&*database.store, &name, why).await.map_err(toolkit)?;
    let mut known = database.store.deferred().consumers(CONSUMERS_MAX).await?;
    let written = handlers::list(&*database.store).await.map_err(toolkit)?;
    known.extend(written.into_iter().map(|it| it.consumer.into()));
    let is_of = |handler: &str| {
        let rest = handler.strip_prefix(&*name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    if !known.iter().any(|handler| is_of(handler)) {
        frame.out.note(&format!(
            "no handler of `{name}` is known in this database yet: is that its name? the pause \
             holds for one that comes"
        ));
    }
    frame
        .out
        .note("instances that run stop receiving within a second, and finish what they have");
    frame.out.show(&Changed {
        service: database.service,
        consumer: name,
        paused: true,
    })?;
    Ok(Ended::Done)
}

async fn resume_one(frame: &Frame, name: String) -> anyhow::Result<Ended> {
    let database = frame.only(Access::Change).await?;
    let pauses = paused(&*database.store, PAUSES_MAX).await.map_err(toolkit)?;
    if !pauses.iter().any(|it| it.consumer == name) {
        let what = pause_of(&pauses, &name).map_or_else(String::new, |it| {
            format!("; `{}` is: resume that", it.name)
        });
        bail!("`{name}` of `{}` is not paused{what}", database.service);
    }
    resume(&*database.store, &name).await.map_err(toolkit)?;
    frame.out.show(&Changed {
        service: database.service,
        consumer: name,
        paused: false,
    })?;
    Ok(Ended::Done)
}

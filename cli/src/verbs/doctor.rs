//! `tidings doctor`: what is wrong, and what to do about it.

#[cfg(feature = "contracts")]
mod documented;

use std::{path::PathBuf, time::Duration};

use jiff::Timestamp;
use serde::Serialize;
use tidings::{
    dead_letter_queue,
    handlers::{self, HandlerRecord, OrderedGroup},
    ordered_groups, paused,
};
use tidings_amqp::QueueDepth;

use super::{
    consumers::{PAUSES_MAX, receives_from},
    deferred::{CONSUMERS_MAX, COUNT_MAX},
    sagas,
};
use crate::{
    code::Code,
    frame::{Database, Ended, Frame, Usage, time, toolkit},
    out::{Cell, Page, Report, brief, counted, from_now, one_line},
    places::Access,
};

/// How many stuck sagas of a service are named.
const STUCK_MAX: usize = 20;

/// How many ordered groups of a service are looked at.
const GROUPS_MAX: usize = 1000;

/// Half of the number of waiting messages at which a consumer pauses by itself, unless it was set up
/// otherwise.
const WAITING_MANY: u64 = COUNT_MAX / 2;

/// Looks for what is wrong with services, and says what to do about it.
///
/// It reaches each database and, with `--broker`, the broker; looks for messages that are not sent, held or
/// set aside, for stuck sagas, paused consumers, many waiting messages, dead letters, queues that are missing,
/// consumers that nobody runs, and messages for handlers that are gone. With `--contracts` it looks at services that are known by
/// their documents only. It changes nothing. The exit code is 1 if something is wrong.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The age from which an unsent message counts as not being sent
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "30s")]
    unsent: Duration,

    /// AsyncAPI 3 documents of services in any language: files, folders, or URLs. The four mistakes are looked for in them,
    /// and on the broker the queues and dead letters that they name (in a build with `--features contracts`)
    #[arg(long, value_name = "PATH", num_args = 1..)]
    contracts: Vec<PathBuf>,
}

const EXAMPLES: &str = "\
Examples:
  tidings doctor --database sqlite://data/db --broker amqp://guest:guest@127.0.0.1:5672
  tidings doctor --broker amqp://guest:guest@127.0.0.1:5672 --contracts asyncapi/
  tidings doctor --json | jq '.findings[].what'

Each finding has a code: `tidings explain CODE` says more.

As JSON: {healthy, checked: [{kind, name, version?}], findings: [{code, service?, what, todo}]}";

/// What was found.
#[derive(Debug, Serialize)]
struct Diagnosis {
    healthy: bool,
    checked: Vec<Checked>,
    findings: Vec<Finding>,
}

/// What was reached.
#[derive(Debug, Serialize)]
struct Checked {
    /// `database` or `broker`.
    kind: &'static str,
    /// The service, or the broker's address.
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
}

/// Something that is wrong.
#[derive(Debug, Serialize)]
struct Finding {
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<String>,
    what: String,
    /// What to do about it.
    todo: String,
}

impl Finding {
    fn new(code: Code, service: &str, what: String, todo: String) -> Self {
        Self {
            code: code.as_str(),
            service: Some(service.to_owned()),
            what,
            todo,
        }
    }
}

impl Report for Diagnosis {
    fn tell(&self, page: &mut Page) {
        let checked = |it: &Checked| -> Vec<Cell> {
            let version = it.version.as_deref().unwrap_or("-");
            vec![
                it.kind.into(),
                (&it.name).into(),
                version.into(),
                Cell::good("reached"),
            ]
        };
        let checked: Vec<Vec<Cell>> = self.checked.iter().map(checked).collect();
        if !checked.is_empty() {
            page.table(&["WHAT", "NAME", "VERSION", ""], &checked);
            page.line("");
        }
        if self.findings.is_empty() {
            return page.line("nothing is wrong");
        }
        for finding in &self.findings {
            let service = finding.service.as_deref();
            let service = service.map(|it| format!("{it}: ")).unwrap_or_default();
            page.title(format!(
                "{} {service}{}",
                finding.code,
                one_line(&finding.what)
            ));
            page.line(format!("  {}", one_line(&finding.todo)));
        }
    }
}

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        if !frame.has_broker() && !frame.has_database() && self.contracts.is_empty() {
            anyhow::bail!(Usage::new(
                "say what to look at: `--database sqlite://folder`, `--database postgres://…`, \
                 `--broker amqp://…`, or set TIDINGS_DATABASE and TIDINGS_BROKER"
            ));
        }
        let mut looked = Looked::default();
        if frame.has_database() {
            looked.at_databases(frame, self.unsent).await?;
        }
        if !self.contracts.is_empty() {
            looked.at_documents(&self.contracts).await?;
        }
        match frame.has_broker() {
            true => looked.at_broker(frame).await?,
            false => frame.out.note(
                "the broker was not looked at: `--broker amqp://…` shows dead letters and who receives",
            ),
        }
        let Looked {
            checked, findings, ..
        } = looked;
        let healthy = findings.is_empty();
        frame.out.show(&Diagnosis {
            healthy,
            checked,
            findings,
        })?;
        match healthy {
            true => Ok(Ended::Done),
            false => Ok(Ended::Problem),
        }
    }
}

/// What was seen so far.
#[derive(Debug, Default)]
struct Looked {
    checked: Vec<Checked>,
    findings: Vec<Finding>,
    /// The queues of each service, by the names of its handlers and ordered groups.
    queues: Vec<Queue>,
    /// What is paused, with its service.
    paused: Vec<(String, String)>,
    /// The queues of services that have documents.
    #[cfg(feature = "contracts")]
    documented: Vec<documented::Documented>,
}

#[derive(Debug)]
struct Queue {
    service: String,
    name: String,
    /// What it is.
    role: Role,
}

/// What a name stands for on the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// A queue that a service has written down: it should be there.
    Declared,
    /// A queue of a handler that has had messages, of a service that has written down nothing.
    Seen,
    /// An ordered group: only its dead letters are under its name.
    Group,
    /// A queue of a handler that is gone.
    Gone,
}

impl Queue {
    /// What is wrong with it, when it is so full.
    fn at(&self, own: Option<QueueDepth>, is_paused: bool) -> Option<Finding> {
        let Self {
            service,
            name,
            role,
        } = self;
        let found = |code, what, todo| Some(Finding::new(code, service, what, todo));
        match (role, own) {
            (Role::Declared, None) => found(
                Code::MissingOnBroker,
                format!("the queue `{name}` is not there: what is sent to it waits at its senders, or never comes"),
                format!("start `{service}`, which makes it, or run `tidings topology apply`"),
            ),
            (Role::Declared | Role::Seen, Some(own)) if own.receivers == Some(0) && !is_paused => found(
                Code::NobodyReceives,
                format!(
                    "nobody receives from `{name}`, where {}",
                    counted(own.ready.into(), "message waits", "messages wait")
                ),
                format!("start `{service}`; its messages are kept"),
            ),
            // Somebody receives: an instance of another version.
            (Role::Gone, Some(own)) if own.receivers.unwrap_or(0) == 0 && own.ready > 0 => found(
                Code::HandlerGone,
                format!(
                    "{} in `{name}`, which no handler of `{service}` receives from any more{}",
                    counted(own.ready.into(), "message is", "messages are"),
                    match own.receivers {
                        Some(_) => "",
                        None => " (whether an instance of another version still does, the broker does not say)",
                    }
                ),
                "`tidings topology prune` says what to do about it; until then it may go on to fill".to_owned(),
            ),
            _ => None,
        }
    }

    /// The same of its dead letters.
    fn dead(&self, dead: Option<QueueDepth>) -> Option<Finding> {
        let dead = dead.filter(|dead| dead.ready > 0)?;
        let dead_letters = dead_letter_queue(&self.name);
        Some(Finding::new(
            Code::DeadLetters,
            &self.service,
            format!(
                "{} in `{dead_letters}`",
                counted(dead.ready.into(), "dead letter is", "dead letters are")
            ),
            "`tidings dead-letters groups` shows their reasons; mend the cause, then `tidings dead-letters redrive`".to_owned(),
        ))
    }
}

impl Looked {
    async fn at_databases(&mut self, frame: &Frame, unsent: Duration) -> anyhow::Result<()> {
        let todo =
            || "see that it runs, and that `--database` names what the service uses".to_owned();
        let located = match frame.located().await {
            Ok(located) => located,
            Err(error) if error.is::<Usage>() => return Err(error),
            Err(error) => {
                self.findings.push(Finding {
                    code: Code::Database.as_str(),
                    service: None,
                    what: error.to_string(),
                    todo: todo(),
                });
                return Ok(());
            }
        };
        let bar = frame.progress(located.len() as u64, "looking at databases");
        for located in located {
            let service = located.service.clone();
            let looked = match located.open(Access::Look).await {
                Ok(database) => self.at_database(&database, unsent).await,
                Err(error) => Err(error),
            };
            if let Err(error) = looked {
                let what = format!("{error:#}");
                self.findings
                    .push(Finding::new(Code::Database, &service, what, todo()));
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(())
    }

    async fn at_database(&mut self, database: &Database, unsent: Duration) -> anyhow::Result<()> {
        let service = &*database.service;
        self.at_outbox(database, unsent).await?;
        self.at_sagas(database).await?;
        let store = &*database.store;
        for pause in paused(store, PAUSES_MAX).await.map_err(toolkit)? {
            let name = &pause.consumer;
            let since = from_now(pause.since);
            let what = format!("`{name}` was paused {since}: {}", pause.reason);
            let todo = format!(
                "when the reason is gone: `tidings consumers resume {name} --service {service}`"
            );
            self.findings
                .push(Finding::new(Code::Paused, service, what, todo));
            self.paused.push((service.to_owned(), pause.consumer));
        }
        for consumer in store.deferred().consumers(CONSUMERS_MAX).await? {
            let waiting = store.deferred().waiting(&consumer, COUNT_MAX).await?;
            if waiting >= WAITING_MANY {
                let what = format!("{waiting} messages wait at `{consumer}`");
                let todo = format!(
                    "see why with `tidings deferred list {consumer} --service {service}`; at 100000 it \
                     pauses, unless it was set up otherwise"
                );
                self.findings
                    .push(Finding::new(Code::Deferred, service, what, todo));
            }
            self.queue(service, consumer.into(), Role::Seen);
        }
        for group in ordered_groups(store, GROUPS_MAX).await? {
            self.queue(service, group.into(), Role::Group);
        }
        for handler in handlers::list(store).await.map_err(toolkit)? {
            self.handler(service, &handler);
        }
        self.checked.push(Checked {
            kind: "database",
            name: service.to_owned(),
            version: Some(database.engine.clone()),
        });
        Ok(())
    }

    async fn at_outbox(&mut self, database: &Database, unsent: Duration) -> anyhow::Result<()> {
        let service = &*database.service;
        let stats = database.store.outbox().stats().await?;
        if stats.ready > 0 && stats.oldest_ready_age >= unsent {
            let age = brief(stats.oldest_ready_age);
            let messages = counted(stats.ready, "message is", "messages are");
            self.findings.push(Finding::new(
                Code::OutboxOld,
                service,
                format!("{messages} not sent, the oldest for {age}"),
                format!("see that `{service}` runs and reaches the broker"),
            ));
        }
        if stats.held > 0 {
            let age = brief(stats.oldest_held_age);
            let messages = counted(stats.held, "message", "messages");
            self.findings.push(Finding::new(
                Code::Held,
                service,
                format!("the broker does not take {messages}, the oldest for {age}"),
                format!("see why with `tidings outbox list --state held --service {service}`"),
            ));
        }
        if stats.set_aside > 0 {
            self.findings.push(Finding::new(
                Code::SetAside,
                service,
                counted(
                    stats.set_aside,
                    "message cannot be sent as it is",
                    "messages cannot be sent as they are",
                ),
                format!(
                    "look at what is set aside with `tidings outbox list --state set-aside --service {service}`, then \
                     restore or discard it"
                ),
            ));
        }
        Ok(())
    }

    async fn at_sagas(&mut self, database: &Database) -> anyhow::Result<()> {
        let service = &*database.service;
        let stuck = sagas::stuck(database, STUCK_MAX + 1).await?;
        for line in stuck.iter().take(STUCK_MAX) {
            let (saga, key) = (&line.saga, &line.key);
            let since = line.stuck_since.unwrap_or_else(Timestamp::now);
            let reason = line.reason.as_deref().unwrap_or("?");
            self.findings.push(Finding::new(
                Code::Stuck,
                service,
                format!("the saga `{saga}/{key}` is stuck, {}: {reason}", from_now(since)),
                format!("see what happened with `tidings sagas show {saga} {key}`, then `tidings sagas retry`"),
            ));
        }
        if stuck.len() > STUCK_MAX {
            self.findings.push(Finding::new(
                Code::Stuck,
                service,
                format!("more than {STUCK_MAX} sagas are stuck"),
                "list them with `tidings sagas list --stuck --limit 1000`".to_owned(),
            ));
        }
        Ok(())
    }

    /// A pause is a finding of its own, and explains that nobody receives.
    fn is_paused(&self, queue: &Queue) -> bool {
        self.paused.iter().any(|(service, consumer)| {
            let rest = queue.name.strip_prefix(&**consumer);
            *service == queue.service
                && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    }

    /// The places of a handler that its service has written down.
    fn handler(&mut self, service: &str, handler: &HandlerRecord) {
        let role = match handler.is_gone() {
            true => Role::Gone,
            false => Role::Declared,
        };
        self.place(service, &handler.consumer, handler.ordered.as_ref(), role);
        for left in &handler.left {
            self.place(
                service,
                &handler.consumer,
                left.ordered.as_ref(),
                Role::Gone,
            );
        }
    }

    fn place(&mut self, service: &str, consumer: &str, ordered: Option<&OrderedGroup>, role: Role) {
        for queue in receives_from(consumer, ordered) {
            self.queue(service, queue, role);
        }
        if let Some(ordered) = ordered {
            self.queue(service, ordered.group.clone(), Role::Group);
        }
    }

    /// What is written down says more than that there were messages, and a handler that is there more than
    /// one of the same queue that is gone.
    fn queue(&mut self, service: &str, name: String, role: Role) {
        let known = self.queues.iter_mut();
        let mut known = known.filter(|it| it.service == service && it.name == name);
        match known.next() {
            Some(known) => {
                known.role = match (known.role, role) {
                    (Role::Declared, _) | (_, Role::Declared) => Role::Declared,
                    (Role::Seen, role) => role,
                    (role, _) => role,
                }
            }
            None => self.queues.push(Queue {
                service: service.to_owned(),
                name,
                role,
            }),
        }
    }

    async fn at_broker(&mut self, frame: &Frame) -> anyhow::Result<()> {
        let broker = match frame.broker().await {
            Ok(broker) => broker,
            Err(error) if error.is::<Usage>() => return Err(error),
            Err(error) => {
                self.findings.push(Finding {
                    code: Code::Broker.as_str(),
                    service: None,
                    what: error.to_string(),
                    todo: "see that it runs, and that `--broker` names its address".to_owned(),
                });
                return Ok(());
            }
        };
        let names = self.queues.iter();
        let names: Vec<String> = names
            .flat_map(|it| [it.name.clone(), dead_letter_queue(&it.name)])
            .collect();
        let depths = frame.depths(&broker, &names).await?;
        if depths
            .iter()
            .flatten()
            .any(|depth| depth.receivers.is_none())
        {
            frame.out.note(
                "the broker does not say who receives, so queues from which nobody does were not looked for",
            );
        }
        for (queue, depths) in self.queues.iter().zip(depths.chunks(2)) {
            let (own, dead) = (depths.first(), depths.get(1));
            let is_paused = self.is_paused(queue);
            let found = [
                queue.at(own.copied().flatten(), is_paused),
                queue.dead(dead.copied().flatten()),
            ];
            self.findings.extend(found.into_iter().flatten());
        }
        #[cfg(feature = "contracts")]
        self.at_documented(frame, &broker).await?;
        self.checked.push(Checked {
            kind: "broker",
            name: frame.broker_address(),
            version: None,
        });
        Ok(())
    }

    #[cfg(not(feature = "contracts"))]
    async fn at_documents(&mut self, _: &[PathBuf]) -> anyhow::Result<()> {
        anyhow::bail!(Usage::new(
            "this build of `tidings` cannot read documents; build it with `--features contracts`"
        ))
    }
}

//! `tidings doctor`: what is wrong, and what to do about it.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tidings::{dead_letter_queue, ordered_groups, paused};

use super::{
    consumers::PAUSES_MAX,
    deferred::{CONSUMERS_MAX, COUNT_MAX},
    sagas,
};
use crate::{
    code::Code,
    frame::{Database, Ended, Frame, Usage, time, toolkit},
    out::{Cell, Page, Report, brief, from_now, one_line},
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
/// set aside, for stuck sagas, paused consumers, many waiting messages, dead letters, and consumers that
/// nobody runs. It changes nothing. The exit code is 1 if something is wrong.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The age from which an unsent message counts as not being sent
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "30s")]
    unsent: Duration,
}

const EXAMPLES: &str = "\
Examples:
  tidings doctor --database sqlite://data/db --broker amqp://guest:guest@127.0.0.1:5672
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
            vec![it.kind.into(), (&it.name).into(), version.into(), Cell::good("reached")]
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
            page.title(format!("{} {service}{}", finding.code, one_line(&finding.what)));
            page.line(format!("  {}", one_line(&finding.todo)));
        }
    }
}

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        if !frame.has_broker() && !frame.has_database() {
            anyhow::bail!(Usage::new(
                "say what to look at: `--database sqlite://folder`, `--database postgres://…`, \
                 `--broker amqp://…`, or set TIDINGS_DATABASE and TIDINGS_BROKER"
            ));
        }
        let mut looked = Looked::default();
        if frame.has_database() {
            looked.at_databases(frame, self.unsent).await?;
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
}

#[derive(Debug)]
struct Queue {
    service: String,
    name: String,
    /// It holds messages itself; an ordered group has only dead letters under its own name.
    receives: bool,
}

impl Looked {
    async fn at_databases(&mut self, frame: &Frame, unsent: Duration) -> anyhow::Result<()> {
        let todo = || "see that it runs, and that `--database` names what the service uses".to_owned();
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

    async fn at_database(
        &mut self,
        database: &Database,
        unsent: Duration,
    ) -> anyhow::Result<()> {
        let service = &*database.service;
        self.at_outbox(database, unsent).await?;
        self.at_sagas(database).await?;
        let store = &*database.store;
        for pause in paused(store, PAUSES_MAX).await.map_err(toolkit)? {
            let name = &pause.consumer;
            let since = from_now(pause.since);
            let what = format!("`{name}` was paused {since}: {}", pause.reason);
            let todo = format!("when the reason is gone: `tidings consumers resume {name} --service {service}`");
            self.findings
                .push(Finding::new(Code::Paused, service, what, todo));
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
            self.queue(service, consumer.into(), true);
        }
        for group in ordered_groups(store, GROUPS_MAX).await? {
            self.queue(service, group.into(), false);
        }
        self.checked.push(Checked {
            kind: "database",
            name: service.to_owned(),
            version: Some(database.engine.clone()),
        });
        Ok(())
    }

    async fn at_outbox(
        &mut self,
        database: &Database,
        unsent: Duration,
    ) -> anyhow::Result<()> {
        let service = &*database.service;
        let stats = database.store.outbox().stats().await?;
        if stats.ready > 0 && stats.oldest_ready_age >= unsent {
            let (count, age) = (stats.ready, brief(stats.oldest_ready_age));
            self.findings.push(Finding::new(
                Code::OutboxOld,
                service,
                format!("{count} messages are not sent, the oldest for {age}"),
                format!("see that `{service}` runs and reaches the broker"),
            ));
        }
        if stats.held > 0 {
            let (count, age) = (stats.held, brief(stats.oldest_held_age));
            self.findings.push(Finding::new(
                Code::Held,
                service,
                format!("the broker does not take {count} messages, the oldest for {age}"),
                format!("see why with `tidings outbox list --state held --service {service}`"),
            ));
        }
        if stats.set_aside > 0 {
            self.findings.push(Finding::new(
                Code::SetAside,
                service,
                format!("{} messages cannot be sent as they are", stats.set_aside),
                format!(
                    "look at them with `tidings outbox list --state set-aside --service {service}`, then \
                     restore or discard them"
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

    fn queue(&mut self, service: &str, name: String, receives: bool) {
        self.queues.push(Queue {
            service: service.to_owned(),
            name,
            receives,
        });
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
        for (queue, depths) in self.queues.iter().zip(depths.chunks(2)) {
            let Queue {
                service,
                name,
                receives,
            } = queue;
            if let Some(Some(own)) = depths.first()
                && *receives
                && own.receivers == 0
            {
                self.findings.push(Finding::new(
                    Code::NobodyReceives,
                    service,
                    format!("nobody receives from `{name}`, where {} messages wait", own.ready),
                    format!("start `{service}`; its messages are kept"),
                ));
            }
            if let Some(Some(dead)) = depths.get(1)
                && dead.ready > 0
            {
                let dead_letters = dead_letter_queue(name);
                self.findings.push(Finding::new(
                    Code::DeadLetters,
                    service,
                    format!("{} dead letters are in `{dead_letters}`", dead.ready),
                    "`tidings dead-letters groups` shows their reasons; mend the cause, then `tidings dead-letters redrive`".to_owned(),
                ));
            }
        }
        self.checked.push(Checked {
            kind: "broker",
            name: frame.broker_address(),
            version: None,
        });
        Ok(())
    }
}

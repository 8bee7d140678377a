//! `tidings schedules`: messages that are sent later.

use anyhow::bail;
use clap::Subcommand;
use jiff::Timestamp;
use serde::Serialize;
use tidings::{
    ScheduleId,
    schedules::{self, Planned, Query},
};

use crate::{
    frame::{Ended, Frame, toolkit},
    message::ShownMessage,
    out::{Cell, Page, Report, from_now, one_line},
    places::Access,
};

/// How many of a service are looked at for those that are due soonest.
const SCHEDULES_MAX: usize = 100_000;

/// How many are read at once.
const PER_READ: usize = 500;

/// Messages that services send later.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

const EXAMPLES: &str = "\
Examples:
  tidings schedules list
  tidings schedules show --service orders order-deadline/o-1
  tidings schedules cancel --service orders order-deadline/o-1
  tidings schedules pause --service books books/nightly --why 'the month is closed by hand'
  tidings schedules resume --service books books/nightly

As JSON:
  list    {schedules: [{service, name, scheduled, due?, recurs?, paused?, message?, destination?, key?, problem?}], more}
  show    {service, name, scheduled, due?, recurs?, paused?, destination?, message?, problem?}
  cancel  {service, name, cancelled}
  pause   {service, name, paused: true}
  resume  {service, name, paused: false}";

#[derive(Debug, Subcommand)]
enum What {
    /// Lists what is sent later, soonest first
    List {
        /// How many at most
        #[arg(long, value_name = "COUNT", default_value_t = 50)]
        limit: usize,
    },
    /// Shows what is sent later under a name
    Show {
        /// The name, as listed
        name: String,
    },
    /// Takes back what is sent later under a name
    Cancel {
        /// The name, as listed
        name: String,
    },
    /// Sends a recurring message no more until it is resumed
    Pause {
        /// The name, as listed
        name: String,
        /// Why, for whoever looks at it
        #[arg(long, value_name = "REASON")]
        why: String,
    },
    /// Sends a recurring message again
    Resume {
        /// The name, as listed
        name: String,
    },
}

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        match self.what {
            What::List { limit } => list(frame, limit).await,
            What::Show { name } => show(frame, &name).await,
            What::Cancel { name } => cancel(frame, name).await,
            What::Pause { name, why } => pause(frame, name, Some(&why)).await,
            What::Resume { name } => pause(frame, name, None).await,
        }
    }
}

#[derive(Debug, Serialize)]
struct Schedules {
    schedules: Vec<Entry>,
    /// There are more than were asked for.
    more: bool,
}

#[derive(Debug, Serialize)]
struct Entry {
    service: String,
    name: String,
    scheduled: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    due: Option<Timestamp>,
    /// How it recurs.
    #[serde(skip_serializing_if = "Option::is_none")]
    recurs: Option<String>,
    /// Why it is paused.
    #[serde(skip_serializing_if = "Option::is_none")]
    paused: Option<String>,
    /// The message's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// Why it cannot be read, and so is not sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl Entry {
    fn new(service: &str, planned: Planned) -> Self {
        let (recurs, paused) = (recurs(&planned), paused(&planned));
        let (message, problem) = match planned.message {
            Ok(message) => (Some(message), None),
            Err(why) => (None, Some(why)),
        };
        let envelope = message.as_ref().map(|it| &it.envelope);
        Self {
            service: service.to_owned(),
            name: planned.id.into(),
            scheduled: planned.written,
            due: planned.due,
            recurs,
            paused,
            message: envelope.map(|it| it.name.clone().into_owned()),
            key: envelope.and_then(|it| it.key.clone()).map(Into::into),
            destination: message.map(|it| it.destination.to_text()),
            problem,
        }
    }
}

/// How a message recurs: `0 3 * * * Europe/Berlin`.
fn recurs(planned: &Planned) -> Option<String> {
    let recurs = planned.recurs.as_ref()?;
    Some(format!("{} {}", recurs.expression, recurs.zone))
}

/// Why a recurring message is not sent.
fn paused(planned: &Planned) -> Option<String> {
    let recurs = planned.recurs.as_ref()?;
    let why = recurs.paused.as_ref().or(recurs.ended.as_ref())?;
    Some(why.as_ref().into())
}

impl Report for Schedules {
    fn tell(&self, page: &mut Page) {
        if self.schedules.is_empty() {
            return page.line("nothing is scheduled");
        }
        let row = |it: &Entry| -> Vec<Cell> {
            let what = match (&it.message, &it.problem) {
                (Some(message), _) => message.into(),
                (None, why) => Cell::bad(one_line(why.as_deref().unwrap_or("?"))),
            };
            vec![
                (&it.service).into(),
                (&it.name).into(),
                match &it.paused {
                    Some(why) => Cell::bad(one_line(why)),
                    None => it.due.map_or("-".to_owned(), from_now).into(),
                },
                it.recurs.as_deref().unwrap_or("once").into(),
                it.destination.as_deref().unwrap_or("-").into(),
                what,
            ]
        };
        let headings = ["SERVICE", "NAME", "DUE", "RECURS", "TO", "MESSAGE"];
        page.table(&headings, &self.schedules.iter().map(row).collect::<Vec<_>>());
        if self.more {
            page.line("there are more: `--limit`");
        }
    }
}

async fn list(frame: &Frame, limit: usize) -> anyhow::Result<Ended> {
    let mut found: Vec<Entry> = Vec::new();
    let mut more = false;
    let bar = frame.progress(0, "reading schedules");
    let all = frame.each(Access::Look, async |database| {
        let (mut after, mut seen) = (None, 0);
        loop {
            let query = Query {
                after,
                limit: PER_READ,
                ..Query::default()
            };
            let page = schedules::list(&*database.store, &query).await.map_err(toolkit)?;
            let is_last = page.len() < PER_READ;
            seen += page.len();
            bar.inc_length(page.len() as u64);
            bar.inc(page.len() as u64);
            after = page.last().map(|it| (it.written, it.id.clone()));
            found.extend(page.into_iter().map(|it| Entry::new(&database.service, it)));
            // Only the soonest are kept while all are read.
            found.sort_by_key(|it| (it.due.unwrap_or(Timestamp::MAX), it.scheduled));
            more |= found.len() > limit;
            found.truncate(limit);
            if is_last {
                return Ok(());
            }
            if seen >= SCHEDULES_MAX {
                more = true;
                frame.out.note(&format!(
                    "`{}` has more than {SCHEDULES_MAX} schedules; those that were scheduled last are \
                     not looked at",
                    database.service
                ));
                return Ok(());
            }
        }
    });
    all.await?;
    bar.finish_and_clear();
    frame.out.show(&Schedules {
        schedules: found,
        more,
    })?;
    Ok(Ended::Done)
}

#[derive(Debug, Serialize)]
struct Shown {
    service: String,
    name: String,
    scheduled: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    due: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recurs: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<ShownMessage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

impl Report for Shown {
    fn tell(&self, page: &mut Page) {
        page.line(format!("schedule       {} of {}", self.name, self.service));
        page.line(format!("scheduled      {} ({})", self.scheduled, from_now(self.scheduled)));
        if let Some(due) = self.due {
            page.line(format!("due            {due} ({})", from_now(due)));
        }
        if let Some(recurs) = &self.recurs {
            page.line(format!("recurs         {recurs}"));
        }
        if let Some(why) = &self.paused {
            page.line(format!("not sent       {}", one_line(why)));
        }
        if let Some(destination) = &self.destination {
            page.line(format!("to             {destination}"));
        }
        if let Some(problem) = &self.problem {
            page.line(format!("cannot be read {}", one_line(problem)));
        }
        if let Some(message) = &self.message {
            message.tell(page);
        }
    }
}

async fn show(frame: &Frame, name: &str) -> anyhow::Result<Ended> {
    let database = frame.only(Access::Look).await?;
    let Some(listed) = schedules::get(&*database.store, &ScheduleId::new(name)).await.map_err(toolkit)? else {
        return none(&database.service, name);
    };
    let (recurs, paused) = (recurs(&listed), paused(&listed));
    let (message, problem) = match listed.message {
        Ok(message) => (Some(message), None),
        Err(why) => (None, Some(why)),
    };
    let shown = message.as_ref();
    let mask = frame.mask().await;
    frame.out.show(&Shown {
        service: database.service,
        name: listed.id.into(),
        scheduled: listed.written,
        due: listed.due,
        recurs,
        paused,
        destination: shown.map(|it| it.destination.to_text()),
        message: shown.map(|it| ShownMessage::new(&it.envelope, mask)),
        problem,
    })?;
    Ok(Ended::Done)
}

fn none(service: &str, name: &str) -> anyhow::Result<Ended> {
    bail!(
        "`{service}` sends nothing later under the name `{name}` (any more); `tidings schedules list` \
         shows what it does"
    )
}

#[derive(Debug, Serialize)]
struct Cancelled {
    service: String,
    name: String,
    cancelled: bool,
}

impl Report for Cancelled {
    fn tell(&self, page: &mut Page) {
        page.line(format!("cancelled {} of {}", self.name, self.service));
    }
}

async fn cancel(frame: &Frame, name: String) -> anyhow::Result<Ended> {
    let database = frame.only(Access::Change).await?;
    let cancelled = schedules::cancel(&*database.store, &ScheduleId::new(&*name)).await.map_err(toolkit)?;
    if !cancelled {
        return none(&database.service, &name);
    }
    let service = database.service;
    frame.out.show(&Cancelled {
        service,
        name,
        cancelled,
    })?;
    Ok(Ended::Done)
}

#[derive(Debug, Serialize)]
struct Paused {
    service: String,
    name: String,
    paused: bool,
}

impl Report for Paused {
    fn tell(&self, page: &mut Page) {
        let word = if self.paused { "paused" } else { "resumed" };
        page.line(format!("{word} {} of {}", self.name, self.service));
    }
}

/// Pauses it for this reason; resumes it without one.
async fn pause(frame: &Frame, name: String, why: Option<&str>) -> anyhow::Result<Ended> {
    let database = frame.only(Access::Change).await?;
    let id = ScheduleId::new(&*name);
    match why {
        Some(why) => schedules::pause(&*database.store, &id, why).await.map_err(toolkit)?,
        None => schedules::resume(&*database.store, &id).await.map_err(toolkit)?,
    }
    frame.out.show(&Paused {
        service: database.service,
        name,
        paused: why.is_some(),
    })?;
    Ok(Ended::Done)
}

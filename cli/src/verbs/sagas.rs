//! `tidings sagas`: what sagas do, why one is stuck, and setting it going again.

mod check;
mod journal;
mod operate;

use std::time::Duration;

use anyhow::bail;
use clap::{Subcommand, ValueEnum};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use tidings::{
    Store,
    sagas::{self, Journal, Query, SagaState, Summary, What},
};

use crate::{
    frame::{Database, Ended, Frame, Usage, time, toolkit},
    out::{Cell, Page, Report, from_now, one_line},
    places::Access,
};

/// How many kinds of sagas of a service are looked at.
pub(crate) const NAMES_MAX: usize = 1000;

/// How many sagas are read at once.
const PER_READ: usize = 500;

/// Sagas: how far they are, why one is stuck, and what to do about it.
///
/// An operation is a record in the service's database. The service carries it out within a second, if it
/// runs, and it stands in the saga's journal, with who and why.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

const EXAMPLES: &str = "\
Examples:
  tidings sagas list                                        those that are not ended
  tidings sagas list --stuck                                those that wait for you, and why
  tidings sagas show checkout o-1                           everything that has happened to one
  tidings sagas retry checkout o-1 --why 'the bank is back'
  tidings sagas answer checkout o-1 charge-card --done '{\"chargeId\":\"c-1\"}' --why 'seen at the bank'
  tidings sagas skip checkout o-1 charge-card --why 'refunded by hand'
  tidings sagas compensate checkout o-1 --why 'the customer has gone'
  tidings sagas give-up checkout o-1 --why 'settled on the phone'
  tidings sagas check                                       after a deployment: exit code 1 if a journal does not fit

`check` is a record in the service's database, too: an instance that runs replays the journals of all running sagas
with its functions, writes what it found into the record, and sends and changes nothing. A service does the same at
its start; `check` finds what came after that, and what a forced start has passed over (TDG-3001).

As JSON:
  list    {sagas: [{service, saga, key, state, changed, due?, reason?, stuckSince?}], more}
  show    {service, saga, key, journal}   the journal as it is stored, without sensitive values
  check   {good, sagas: [{service, saga, by?, checked, whole, mismatchCount, mismatches: [{key, why}],
           foreignCount, foreign: [{key, why}]}]}   foreign: there is no function of its version
  others  {service, saga, key, action, carriedOut, state, reason?}";

#[derive(Debug, Subcommand)]
enum Verb {
    /// Lists sagas, those to which nothing has happened for the longest time first
    List(List),
    /// Shows everything that has happened to a saga
    Show {
        #[command(flatten)]
        which: Which,
    },
    /// Tries again what failed: the function, a command that is a dead letter, an undo
    Retry {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        reason: operate::Reason,
    },
    /// Gives the answer of a step by hand
    Answer(operate::Answer),
    /// Says that a step needs no undoing any more: it was undone by hand
    Skip {
        #[command(flatten)]
        which: Which,
        /// The step
        step: String,
        #[command(flatten)]
        reason: operate::Reason,
    },
    /// Undoes everything now, without the saga's function
    Compensate {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        reason: operate::Reason,
    },
    /// Leaves a saga as it is, for good: what was done stays done
    GiveUp {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        reason: operate::Reason,
    },
    /// Has services replay the journals of running sagas dry: do their functions still go that way?
    Check(check::Check),
}

#[derive(Debug, clap::Args)]
struct List {
    /// Only sagas of this name, `checkout`
    saga: Option<String>,
    /// Only those that an operator has to look at
    #[arg(long, conflicts_with_all = ["state", "all"])]
    stuck: bool,
    /// Only those in this state
    #[arg(long, value_enum, conflicts_with = "all")]
    state: Option<State>,
    /// Those that have ended, too
    #[arg(long)]
    all: bool,
    /// Only those to which nothing has happened for so long, `15m`, `2h`
    #[arg(long, value_name = "TIME", value_parser = time)]
    older_than: Option<Duration>,
    /// How many at most
    #[arg(long, value_name = "COUNT", default_value_t = 50)]
    limit: usize,
}

/// Which saga.
#[derive(Debug, clap::Args)]
pub(crate) struct Which {
    /// The saga's name, `checkout`
    saga: String,
    /// Which of them: the order's id, for example
    key: String,
}

/// How far a saga is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    /// Its function has not ended
    Running,
    /// Its function failed, and what was done is being undone
    Compensating,
    /// An operator has to look
    Stuck,
    /// Its function succeeded
    Completed,
    /// Its function failed, and everything is undone
    Compensated,
    /// An operator gave it up
    Abandoned,
}

impl State {
    const OPEN: [Self; 3] = [Self::Stuck, Self::Compensating, Self::Running];

    const fn label(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Compensating => "compensating",
            Self::Stuck => "stuck",
            Self::Completed => "completed",
            Self::Compensated => "compensated",
            Self::Abandoned => "abandoned",
        }
    }
}

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        use sagas::Action;
        match self.verb {
            Verb::List(args) => list(frame, &args).await,
            Verb::Show { which } => show(frame, &which).await,
            Verb::Retry { which, reason } => {
                operate::run(frame, &which, reason, Action::Retry).await
            }
            Verb::Answer(answer) => answer.run(frame).await,
            Verb::Skip {
                which,
                step,
                reason,
            } => operate::run(frame, &which, reason, Action::Skip(step.into())).await,
            Verb::Compensate { which, reason } => {
                operate::run(frame, &which, reason, Action::Compensate).await
            }
            Verb::GiveUp { which, reason } => {
                operate::run(frame, &which, reason, Action::GiveUp).await
            }
            Verb::Check(check) => check.run(frame).await,
        }
    }
}

#[derive(Debug, Serialize)]
struct Listed {
    sagas: Vec<Line>,
    /// There are more than were asked for.
    more: bool,
}

/// A saga in a list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Line {
    pub(crate) service: String,
    pub(crate) saga: String,
    pub(crate) key: String,
    /// `unreadable` if its journal cannot be read by this program.
    state: &'static str,
    changed: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    due: Option<Timestamp>,
    /// Why it is stuck.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stuck_since: Option<Timestamp>,
}

impl Report for Listed {
    fn tell(&self, page: &mut Page) {
        if self.sagas.is_empty() {
            return page.line("there is none");
        }
        let row = |it: &Line| -> Vec<Cell> {
            let state = match it.state {
                "stuck" | "unreadable" => Cell::bad(it.state),
                "compensating" => Cell::warning(it.state),
                state => state.into(),
            };
            let why = match (&it.reason, it.due) {
                (Some(reason), _) => one_line(reason),
                (None, Some(due)) if it.state == "running" || it.state == "compensating" => {
                    format!("does something by itself {}", from_now(due))
                }
                _ => "-".to_owned(),
            };
            vec![
                (&it.service).into(),
                (&it.saga).into(),
                (&it.key).into(),
                state,
                from_now(it.stuck_since.unwrap_or(it.changed)).into(),
                why.into(),
            ]
        };
        let headings = ["SERVICE", "SAGA", "KEY", "STATE", "SINCE", "WHY"];
        page.table(&headings, &self.sagas.iter().map(row).collect::<Vec<_>>());
        if self.more {
            page.line("there are more: `--limit`");
        }
    }
}

async fn list(frame: &Frame, args: &List) -> anyhow::Result<Ended> {
    let states: Vec<Option<State>> = match (args.stuck, args.state, args.all) {
        (true, _, _) => vec![Some(State::Stuck)],
        (_, Some(state), _) => vec![Some(state)],
        (_, None, true) => vec![None],
        (_, None, false) => State::OPEN.into_iter().map(Some).collect(),
    };
    let mut lines = Vec::new();
    let all = frame.each(Access::Look, async |database| {
        let store = &*database.store;
        let names = sagas::names(store, NAMES_MAX).await.map_err(toolkit)?;
        let is_wanted = |name: &&str| args.saga.as_deref().is_none_or(|it| it == *name);
        for saga in names.iter().map(|it| &**it).filter(is_wanted) {
            for state in &states {
                let query = Query {
                    state: state.map(|it| it.label().into()),
                    older_than: args.older_than,
                    ..Query::default()
                };
                let found = read(store, saga, query, args.limit.saturating_add(1)).await?;
                for summary in found {
                    lines.push(line(database, saga, summary).await?);
                }
            }
        }
        Ok(())
    });
    all.await?;
    lines.sort_by_key(|it| it.changed);
    let more = lines.len() > args.limit;
    lines.truncate(args.limit);
    frame.out.show(&Listed { sagas: lines, more })?;
    Ok(Ended::Done)
}

/// Sagas, in pages.
async fn read(
    store: &dyn Store,
    saga: &str,
    mut query: Query,
    limit: usize,
) -> anyhow::Result<Vec<Summary>> {
    let mut found: Vec<Summary> = Vec::new();
    loop {
        query.after = found.last().map(|it| (it.changed, it.key.clone()));
        query.limit = PER_READ.min(limit - found.len());
        let page = sagas::list(store, saga, &query).await.map_err(toolkit)?;
        let is_last = page.len() < query.limit;
        found.extend(page);
        if is_last || found.len() >= limit {
            return Ok(found);
        }
    }
}

/// The sagas of a service that are stuck, at most `limit`, with why and since when.
pub(crate) async fn stuck(database: &Database, limit: usize) -> anyhow::Result<Vec<Line>> {
    let store = &*database.store;
    let mut lines = Vec::new();
    for saga in sagas::names(store, NAMES_MAX).await.map_err(toolkit)? {
        let query = Query {
            state: Some(State::Stuck.label().into()),
            ..Query::default()
        };
        for summary in read(store, &saga, query, limit - lines.len()).await? {
            lines.push(line(database, &saga, summary).await?);
        }
        if lines.len() >= limit {
            break;
        }
    }
    Ok(lines)
}

async fn line(database: &Database, saga: &str, summary: Summary) -> anyhow::Result<Line> {
    let mut line = Line {
        service: database.service.clone(),
        saga: saga.to_owned(),
        key: summary.key.into(),
        state: summary.state.as_ref().map_or("unreadable", SagaState::label),
        changed: summary.changed,
        due: summary.due,
        reason: None,
        stuck_since: None,
    };
    if let Some(SagaState::Stuck { reason, .. }) = summary.state {
        line.reason = Some(reason.into());
        let journal = sagas::journal(&*database.store, saga, &line.key).await;
        line.stuck_since = journal.map_err(toolkit)?.as_ref().and_then(stuck_since);
    }
    Ok(line)
}

/// When a saga became stuck the last time.
fn stuck_since(journal: &Journal) -> Option<Timestamp> {
    let stuck = |entry: &&sagas::Entry| matches!(entry.what, What::Stuck { .. });
    journal.entries.iter().rev().find(stuck).map(|entry| entry.at)
}

#[derive(Debug, Serialize)]
struct Shown {
    service: String,
    saga: String,
    key: String,
    journal: Box<RawValue>,
    #[serde(skip)]
    pages: Vec<String>,
}

impl Report for Shown {
    fn tell(&self, page: &mut Page) {
        page.title(format!("{}/{} of {}", self.saga, self.key, self.service));
        for line in &self.pages {
            page.line(line);
        }
    }
}

async fn show(frame: &Frame, which: &Which) -> anyhow::Result<Ended> {
    let (service, journal) = find(frame, which).await?;
    let stored = RawValue::from_string(String::from_utf8(journal.write())?)?;
    let mask = frame.mask().await;
    frame.out.show(&Shown {
        service,
        saga: which.saga.clone(),
        key: which.key.clone(),
        journal: mask.json(&stored),
        pages: journal::told(&journal, mask),
    })?;
    Ok(Ended::Done)
}

/// The service that runs a saga, and its journal.
async fn find(frame: &Frame, which: &Which) -> anyhow::Result<(String, Journal)> {
    let Which { saga, key } = which;
    let found = frame.each(Access::Look, async |database| {
        let journal = sagas::journal(&*database.store, saga, key).await;
        let journal = journal.map_err(toolkit)?;
        Ok(journal.map(|journal| (database.service.clone(), journal)))
    });
    let mut found: Vec<(String, Journal)> = found.await?.into_iter().flatten().collect();
    match (found.pop(), found.len()) {
        (Some(one), 0) => Ok(one),
        (Some((last, _)), _) => {
            let names = found.into_iter().map(|(service, _)| service);
            let names: Vec<String> = names.chain([last]).collect();
            bail!(Usage::new(format!(
                "several services have a saga `{saga}/{key}`: `{}`; choose one with `--service`",
                names.join("`, `")
            )))
        }
        (None, _) => bail!(
            "there is no saga `{saga}/{key}`; `tidings sagas list --all` shows those that are there"
        ),
    }
}

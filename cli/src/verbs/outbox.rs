//! `tidings outbox`: what services have committed and the broker has not confirmed.

use anyhow::bail;
use clap::{Subcommand, ValueEnum};
use jiff::Timestamp;
use serde::Serialize;
use tidings::{ListedRow, OutboxState, OutboxStats, Store};

use crate::{
    frame::{Ended, Frame, pages},
    message::ShownMessage,
    out::{Cell, Page, Report, brief, counted, from_now, one_line, should_be_zero},
    places::Access,
};

/// How many rows are read at once.
const ROWS_PER_READ: usize = 500;

/// What waits in the outboxes: messages that services have committed and the broker has not confirmed.
///
/// Without a command: how many there are in each service's. A held row was offered to the broker and
/// not taken (nobody listens, or a queue refuses); its relay offers it again by itself. A row that is
/// set aside cannot be sent as it is, and waits for you.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: Option<What>,
}

const EXAMPLES: &str = "\
Examples:
  tidings outbox                                      counts and ages, service by service
  tidings outbox list --state held                    what the broker does not take, and why
  tidings outbox show --service orders 1234           a row with its body
  tidings outbox restore --service orders 1234 1235   send what was set aside after all
  tidings outbox discard --service orders 1234        delete it for good

As JSON:
  outbox            {services: [{service, ready, oldestReadySeconds, held, oldestHeldSeconds, setAside}]}
  list              {rows: [{service, position, state, written, destination, reason, name?, id?, key?}], more}
  show              {service, position, state, written, destination, reason, message?}
  restore, discard  {service, count}
Counts stop at 100000.";

#[derive(Debug, Subcommand)]
enum What {
    /// Lists the rows that are held or set aside, oldest first, with where they go and why they wait
    List {
        /// Only rows in this state
        #[arg(long, value_enum)]
        state: Option<State>,
        /// How many rows at most
        #[arg(long, value_name = "COUNT", default_value_t = 50)]
        limit: usize,
    },
    /// Shows a row that is held or set aside, with its message
    Show {
        /// The row, as listed
        position: i64,
    },
    /// Makes rows that were set aside ready to be sent again
    Restore {
        /// The rows, as listed
        #[arg(required = true)]
        positions: Vec<i64>,
    },
    /// Deletes rows that were set aside, for good: their messages are never sent
    Discard {
        /// The rows, as listed
        #[arg(required = true)]
        positions: Vec<i64>,
    },
}

/// Why a row waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// The broker did not take it
    Held,
    /// It cannot be sent as it is
    SetAside,
}

impl State {
    const BOTH: [Self; 2] = [Self::Held, Self::SetAside];

    const fn of_store(self) -> OutboxState {
        match self {
            Self::Held => OutboxState::Held,
            Self::SetAside => OutboxState::SetAside,
        }
    }
}

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        match self.what {
            None => count(frame).await,
            Some(What::List { state, limit }) => list(frame, state, limit).await,
            Some(What::Show { position }) => show(frame, position).await,
            Some(What::Restore { positions }) => {
                let database = frame.only(Access::Change).await?;
                let count = database.store.outbox().restore(&positions).await?;
                changed(frame, database.service, count, positions.len(), "restored")
            }
            Some(What::Discard { positions }) => {
                let database = frame.only(Access::Change).await?;
                let count = database.store.outbox().discard(&positions).await?;
                changed(frame, database.service, count, positions.len(), "discarded")
            }
        }
    }
}

#[derive(Debug, Serialize)]
struct Counts {
    services: Vec<Count>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Count {
    service: String,
    ready: u64,
    oldest_ready_seconds: u64,
    held: u64,
    oldest_held_seconds: u64,
    set_aside: u64,
    #[serde(skip)]
    stats: OutboxStats,
}

impl Report for Counts {
    fn tell(&self, page: &mut Page) {
        let row = |it: &Count| -> Vec<Cell> {
            let age = |count, age| match count {
                0 => "-".to_owned(),
                _ => brief(age),
            };
            vec![
                (&it.service).into(),
                it.ready.to_string().into(),
                age(it.ready, it.stats.oldest_ready_age).into(),
                should_be_zero(it.held),
                age(it.held, it.stats.oldest_held_age).into(),
                should_be_zero(it.set_aside),
            ]
        };
        let headings = ["SERVICE", "READY", "OLDEST", "HELD", "OLDEST", "SET ASIDE"];
        page.table(&headings, &self.services.iter().map(row).collect::<Vec<_>>());
    }
}

async fn count(frame: &Frame) -> anyhow::Result<Ended> {
    let services = frame.each(Access::Look, async |database| {
        let stats = database.store.outbox().stats().await?;
        Ok(Count {
            service: database.service.clone(),
            ready: stats.ready,
            oldest_ready_seconds: stats.oldest_ready_age.as_secs(),
            held: stats.held,
            oldest_held_seconds: stats.oldest_held_age.as_secs(),
            set_aside: stats.set_aside,
            stats,
        })
    });
    let services = services.await?;
    frame.out.show(&Counts { services })?;
    Ok(Ended::Done)
}

#[derive(Debug, Serialize)]
struct Rows {
    rows: Vec<Row>,
    /// There are more than were asked for.
    more: bool,
}

#[derive(Debug, Serialize)]
struct Row {
    service: String,
    position: i64,
    state: State,
    written: Timestamp,
    destination: String,
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

impl Row {
    fn new(service: &str, state: State, row: ListedRow) -> Self {
        let envelope = row.message.map(|message| message.envelope);
        Self {
            service: service.to_owned(),
            position: row.position,
            state,
            written: row.written,
            destination: row.destination.to_text(),
            reason: row.reason,
            name: envelope.as_ref().map(|it| it.name.clone().into_owned()),
            id: envelope.as_ref().and_then(|it| Some(it.id.as_ref()?.to_string())),
            key: envelope.and_then(|it| it.key).map(Into::into),
        }
    }
}

impl Report for Rows {
    fn tell(&self, page: &mut Page) {
        if self.rows.is_empty() {
            return page.line("nothing is held or set aside");
        }
        let row = |it: &Row| -> Vec<Cell> {
            vec![
                (&it.service).into(),
                it.position.to_string().into(),
                match it.state {
                    State::Held => Cell::warning("held"),
                    State::SetAside => Cell::bad("set aside"),
                },
                from_now(it.written).into(),
                it.name.as_deref().unwrap_or("?").into(),
                (&it.destination).into(),
                one_line(&it.reason).into(),
            ]
        };
        let headings = ["SERVICE", "POSITION", "STATE", "WRITTEN", "MESSAGE", "TO", "REASON"];
        page.table(&headings, &self.rows.iter().map(row).collect::<Vec<_>>());
        if self.more {
            page.line("there are more: `--limit`");
        }
    }
}

async fn list(frame: &Frame, state: Option<State>, limit: usize) -> anyhow::Result<Ended> {
    let mut rows = Vec::new();
    let states = State::BOTH.into_iter().filter(|it| state.is_none_or(|state| state == *it));
    let states: Vec<State> = states.collect();
    let all = frame.each(Access::Look, async |database| {
        for &state in &states {
            rows.extend(read(&*database.store, state, limit.saturating_add(1)).await?.into_iter().map(
                |row| Row::new(&database.service, state, row),
            ));
        }
        Ok(())
    });
    all.await?;
    rows.sort_by_key(|row| row.written);
    let more = rows.len() > limit;
    rows.truncate(limit);
    frame.out.show(&Rows { rows, more })?;
    Ok(Ended::Done)
}

/// The oldest rows of a state.
async fn read(store: &dyn Store, state: State, limit: usize) -> anyhow::Result<Vec<ListedRow>> {
    pages(limit, ROWS_PER_READ, async |last: Option<&ListedRow>, count| {
        let after = last.map(|row| row.position);
        Ok(store.outbox().list(state.of_store(), after, count).await?)
    })
    .await
}

#[derive(Debug, Serialize)]
struct ShownRow {
    service: String,
    position: i64,
    state: State,
    written: Timestamp,
    destination: String,
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<ShownMessage>,
}

impl Report for ShownRow {
    fn tell(&self, page: &mut Page) {
        let state = match self.state {
            State::Held => "held",
            State::SetAside => "set aside",
        };
        page.line(format!("row            {} of {}, {state}", self.position, self.service));
        page.line(format!("written        {} ({})", self.written, from_now(self.written)));
        page.line(format!("to             {}", self.destination));
        page.line(format!("reason         {}", one_line(&self.reason)));
        match &self.message {
            Some(message) => message.tell(page),
            None => page.line("its message cannot be read"),
        }
    }
}

async fn show(frame: &Frame, position: i64) -> anyhow::Result<Ended> {
    let database = frame.only(Access::Look).await?;
    for state in State::BOTH {
        let after = position.checked_sub(1);
        let rows = database.store.outbox().list(state.of_store(), after, 1);
        let Some(row) = rows.await?.into_iter().find(|row| row.position == position) else {
            continue;
        };
        let message = row.message.as_ref();
        let mask = frame.mask().await;
        frame.out.show(&ShownRow {
            service: database.service,
            position,
            state,
            written: row.written,
            destination: row.destination.to_text(),
            reason: row.reason,
            message: message.map(|it| ShownMessage::new(&it.envelope, mask)),
        })?;
        return Ok(Ended::Done);
    }
    bail!(
        "no row {position} of `{}` is held or set aside; `tidings outbox list` shows those that are",
        database.service
    )
}

#[derive(Debug, Serialize)]
struct Changed {
    service: String,
    count: u64,
    #[serde(skip)]
    what: &'static str,
}

impl Report for Changed {
    fn tell(&self, page: &mut Page) {
        let Self { service, count, what } = self;
        page.line(format!("{what} {} of {service}", counted(*count, "row", "rows")));
    }
}

fn changed(
    frame: &Frame,
    service: String,
    count: u64,
    asked: usize,
    what: &'static str,
) -> anyhow::Result<Ended> {
    frame.out.show(&Changed { service, count, what })?;
    if count < asked as u64 {
        let left = asked as u64 - count;
        let left = counted(
            left,
            "of the rows is not set aside, and was left alone",
            "of the rows are not set aside, and were left alone",
        );
        frame.out.note(&left);
        return Ok(Ended::Problem);
    }
    Ok(Ended::Done)
}

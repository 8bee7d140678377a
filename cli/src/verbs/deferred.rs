//! `tidings deferred`: messages that wait in the consumers' own databases.

use std::time::Duration;

use anyhow::bail;
use clap::{Subcommand, ValueEnum};
use jiff::Timestamp;
use serde::Serialize;
use tidings::{Ask, Attempt, Claim, InboxQuery, InboxRow, InboxState, MessageId, Store};

use crate::{
    frame::{Database, Ended, Frame, pages},
    message::{ShownMessage, tell_attempts},
    out::{Cell, Page, Report, counted, from_now, one_line, should_be_zero},
    places::Access,
};

/// How many rows are read, or changed, at once.
const ROWS_PER_STEP: usize = 500;

/// How many consumers of a service are looked at.
pub(crate) const CONSUMERS_MAX: usize = 10_000;

/// Where counting stops.
pub(crate) const COUNT_MAX: u64 = 100_000;

/// Messages that wait in the consumers' databases: to be tried again, or behind another of their key.
///
/// Without a command: how many there are of each consumer.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: Option<What>,
}

const EXAMPLES: &str = "\
Examples:
  tidings deferred                                          counts, consumer by consumer
  tidings deferred list --service payment                   what waits, and why
  tidings deferred show --service payment payment.order-placed.v1 ID
  tidings deferred release --service payment payment.order-placed.v1      all of it, now
  tidings deferred cancel --service payment payment.order-placed.v1 ID    never

As JSON:
  deferred         {consumers: [{service, consumer, waiting, dead}]}
  list             {messages: [{service, consumer, id, state, leased, due?, failures, name?, key?, reason?}], more}
  show             {service, consumer, id, state, leased, due?, failures, history: [{at, reason, by?}], message?}
  release, cancel  {service, consumer, count}
Counts stop at 100000.";

#[derive(Debug, Subcommand)]
enum What {
    /// Lists messages that wait, oldest first, with the reason of the last attempt
    List {
        /// Only of this consumer, `payment.order-placed.v1`
        consumer: Option<String>,
        /// Only in this state; those that wait when not given
        #[arg(long, value_enum)]
        state: Option<State>,
        /// How many at most
        #[arg(long, value_name = "COUNT", default_value_t = 50)]
        limit: usize,
    },
    /// Shows a message that waits or is dead, with all its attempts
    Show {
        /// The consumer
        consumer: String,
        /// The message's id
        id: String,
    },
    /// Has messages tried now instead of later
    Release {
        /// The consumer
        consumer: String,
        /// The messages' ids; all that are deferred when not given
        ids: Vec<String>,
    },
    /// Ends messages that wait without handling them: they count as handled
    Cancel {
        /// The consumer
        consumer: String,
        /// The messages' ids
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

/// What a message waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// Tried again when it is due
    Deferred,
    /// Behind an earlier message of its key
    Parked,
    /// Given up; the dead letter is in the broker
    Dead,
}

impl State {
    const fn of_store(self) -> InboxState {
        match self {
            Self::Deferred => InboxState::Deferred,
            Self::Parked => InboxState::Parked,
            Self::Dead => InboxState::Dead,
        }
    }

    const fn from_store(state: InboxState) -> Option<Self> {
        match state {
            InboxState::Handled => None,
            InboxState::Deferred => Some(Self::Deferred),
            InboxState::Parked => Some(Self::Parked),
            InboxState::Dead => Some(Self::Dead),
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Self::Deferred => "deferred",
            Self::Parked => "parked",
            Self::Dead => "dead",
        }
    }
}

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        match self.what {
            None => count(frame).await,
            Some(What::List {
                consumer,
                state,
                limit,
            }) => list(frame, consumer, state, limit).await,
            Some(What::Show { consumer, id }) => show(frame, &consumer, &id).await,
            Some(What::Release { consumer, ids }) => release(frame, consumer, ids).await,
            Some(What::Cancel { consumer, ids }) => cancel(frame, consumer, ids).await,
        }
    }
}

#[derive(Debug, Serialize)]
struct Counts {
    consumers: Vec<Count>,
}

#[derive(Debug, Serialize)]
struct Count {
    service: String,
    consumer: String,
    waiting: u64,
    dead: u64,
}

impl Report for Counts {
    fn tell(&self, page: &mut Page) {
        if self.consumers.is_empty() {
            return page.line("nothing waits, and nothing is dead");
        }
        let row = |it: &Count| -> Vec<Cell> {
            vec![
                (&it.service).into(),
                (&it.consumer).into(),
                should_be_zero(it.waiting),
                should_be_zero(it.dead),
            ]
        };
        let headings = ["SERVICE", "CONSUMER", "WAITING", "DEAD"];
        page.table(&headings, &self.consumers.iter().map(row).collect::<Vec<_>>());
    }
}

async fn count(frame: &Frame) -> anyhow::Result<Ended> {
    let mut consumers = Vec::new();
    let all = frame.each(Access::Look, async |database| {
        for consumer in database.store.deferred().consumers(CONSUMERS_MAX).await? {
            let (waiting, dead) = counts(&*database.store, &consumer).await?;
            if waiting + dead > 0 {
                consumers.push(Count {
                    service: database.service.clone(),
                    consumer: consumer.into(),
                    waiting,
                    dead,
                });
            }
        }
        Ok(())
    });
    all.await?;
    frame.out.show(&Counts { consumers })?;
    Ok(Ended::Done)
}

/// How many messages of a consumer wait, and how many are dead.
pub(crate) async fn counts(store: &dyn Store, consumer: &str) -> anyhow::Result<(u64, u64)> {
    let waiting = store.deferred().waiting(consumer, COUNT_MAX).await?;
    let mut dead = 0;
    let mut query = InboxQuery {
        consumer: Some(consumer.into()),
        state: Some(InboxState::Dead),
        limit: ROWS_PER_STEP,
        ..InboxQuery::default()
    };
    while dead < COUNT_MAX {
        let rows = store.deferred().list(&query).await?;
        dead += rows.len() as u64;
        query.after = rows.last().map(|row| row.number);
        if rows.len() < ROWS_PER_STEP {
            break;
        }
    }
    Ok((waiting, dead.min(COUNT_MAX)))
}

#[derive(Debug, Serialize)]
struct Messages {
    messages: Vec<Listed>,
    /// There are more than were asked for.
    more: bool,
}

#[derive(Debug, Serialize)]
struct Listed {
    service: String,
    consumer: String,
    id: String,
    state: State,
    /// A worker has it now.
    leased: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    due: Option<Timestamp>,
    failures: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// Of the last attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Listed {
    fn new(service: &str, state: State, row: InboxRow) -> Self {
        let envelope = row.envelope.as_deref();
        let key = envelope.and_then(|it| it.key.clone());
        Self {
            service: service.to_owned(),
            consumer: row.claim.consumer.into(),
            id: row.claim.message.to_string(),
            state,
            leased: row.is_leased,
            due: row.due,
            failures: row.failures,
            name: envelope.map(|it| it.name.clone().into_owned()),
            key: key.or(row.order.map(|it| it.key)).map(Into::into),
            reason: row.history.last().map(|it| it.reason.clone()),
        }
    }
}

impl Report for Messages {
    fn tell(&self, page: &mut Page) {
        if self.messages.is_empty() {
            return page.line("nothing waits");
        }
        let row = |it: &Listed| -> Vec<Cell> {
            let when = match (it.leased, it.due) {
                (true, _) => "now".to_owned(),
                (false, Some(due)) => from_now(due),
                (false, None) => "-".to_owned(),
            };
            vec![
                (&it.service).into(),
                (&it.consumer).into(),
                (&it.id).into(),
                match it.state {
                    State::Dead => Cell::bad("dead"),
                    state => state.word().into(),
                },
                when.into(),
                it.failures.to_string().into(),
                it.key.as_deref().unwrap_or("-").into(),
                one_line(it.reason.as_deref().unwrap_or("-")).into(),
            ]
        };
        let headings = [
            "SERVICE", "CONSUMER", "MESSAGE", "STATE", "DUE", "FAILED", "KEY", "REASON",
        ];
        page.table(&headings, &self.messages.iter().map(row).collect::<Vec<_>>());
        if self.more {
            page.line("there are more: `--limit`");
        }
    }
}

async fn list(
    frame: &Frame,
    consumer: Option<String>,
    state: Option<State>,
    limit: usize,
) -> anyhow::Result<Ended> {
    let states = match state {
        Some(state) => vec![state],
        None => vec![State::Deferred, State::Parked],
    };
    let mut found = Vec::new();
    let all = frame.each(Access::Look, async |database| {
        for &state in &states {
            let query = InboxQuery {
                consumer: consumer.as_deref().map(Into::into),
                state: Some(state.of_store()),
                ..InboxQuery::default()
            };
            for row in read(&*database.store, query, limit.saturating_add(1)).await? {
                let number = row.number;
                found.push((number, Listed::new(&database.service, state, row)));
            }
        }
        Ok(())
    });
    all.await?;
    // Numbers of one service ascend with time; services come one after the other.
    found.sort_by(|(a, left), (b, right)| (&left.service, a).cmp(&(&right.service, b)));
    let more = found.len() > limit;
    let messages = found.into_iter().take(limit).map(|(_, it)| it).collect();
    frame.out.show(&Messages { messages, more })?;
    Ok(Ended::Done)
}

/// The oldest rows, in pages.
async fn read(
    store: &dyn Store,
    mut query: InboxQuery,
    limit: usize,
) -> anyhow::Result<Vec<InboxRow>> {
    pages(limit, ROWS_PER_STEP, async |last: Option<&InboxRow>, count| {
        query.after = last.map(|row| row.number);
        query.limit = count;
        Ok(store.deferred().list(&query).await?)
    })
    .await
}

#[derive(Debug, Serialize)]
struct Shown {
    service: String,
    consumer: String,
    id: String,
    state: State,
    leased: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    due: Option<Timestamp>,
    failures: u32,
    history: Vec<Attempt>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<ShownMessage>,
}

impl Report for Shown {
    fn tell(&self, page: &mut Page) {
        let (consumer, service) = (&self.consumer, &self.service);
        page.line(format!("consumer       {consumer}, of {service}"));
        let due = match (self.leased, self.due) {
            (true, _) => ", tried now".to_owned(),
            (false, Some(due)) => format!(", due {} ({})", due, from_now(due)),
            (false, None) => String::new(),
        };
        page.line(format!("state          {}{due}", self.state.word()));
        page.line(format!("failed         {}", counted(self.failures.into(), "time", "times")));
        tell_attempts(&self.history, self.failures, page);
        match &self.message {
            Some(message) => message.tell(page),
            None => page.line(format!("id             {}", self.id)),
        }
    }
}

async fn show(frame: &Frame, consumer: &str, id: &str) -> anyhow::Result<Ended> {
    let database = frame.only(Access::Look).await?;
    let mut query = InboxQuery {
        consumer: Some(consumer.into()),
        limit: ROWS_PER_STEP,
        ..InboxQuery::default()
    };
    loop {
        let rows = database.store.deferred().list(&query).await?;
        let is_last = rows.len() < ROWS_PER_STEP;
        query.after = rows.last().map(|row| row.number);
        let mut rows = rows.into_iter();
        if let Some(row) = rows.find(|row| row.claim.message.as_str() == id)
            && let Some(state) = State::from_store(row.state)
        {
            let envelope = row.envelope.as_deref();
            let mask = frame.mask().await;
            frame.out.show(&Shown {
                service: database.service,
                consumer: row.claim.consumer.into(),
                id: row.claim.message.to_string(),
                state,
                leased: row.is_leased,
                due: row.due,
                failures: row.failures,
                history: row.history,
                message: envelope.map(|it| ShownMessage::new(it, mask)),
            })?;
            return Ok(Ended::Done);
        }
        if is_last {
            bail!(
                "no message `{id}` of `{consumer}` waits or is dead; `tidings deferred list` shows \
                 those that do"
            );
        }
    }
}

#[derive(Debug, Serialize)]
struct Changed {
    service: String,
    consumer: String,
    count: u64,
    #[serde(skip)]
    what: &'static str,
}

impl Report for Changed {
    fn tell(&self, page: &mut Page) {
        let Self {
            consumer,
            count,
            what,
            ..
        } = self;
        page.line(format!("{what} {} of {consumer}", counted(*count, "message", "messages")));
    }
}

async fn release(frame: &Frame, consumer: String, ids: Vec<String>) -> anyhow::Result<Ended> {
    let database = frame.only(Access::Change).await?;
    let claims = match ids.is_empty() {
        true => deferred_of(&database, &consumer).await?,
        false => claims(&consumer, ids.iter()),
    };
    let bar = frame.progress(claims.len() as u64, "releasing");
    let mut count = 0;
    for claims in claims.chunks(ROWS_PER_STEP) {
        let deferred = database.store.deferred();
        count += deferred.reschedule(claims, Duration::ZERO).await?;
        bar.inc(claims.len() as u64);
    }
    bar.finish_and_clear();
    changed(frame, database, (consumer, count, "released"), ids.len())
}

/// All messages of a consumer that are deferred.
async fn deferred_of(database: &Database, consumer: &str) -> anyhow::Result<Vec<Claim>> {
    let query = InboxQuery {
        consumer: Some(consumer.into()),
        state: Some(InboxState::Deferred),
        ..InboxQuery::default()
    };
    let rows = read(&*database.store, query, COUNT_MAX as usize).await?;
    Ok(rows.into_iter().map(|row| row.claim).collect())
}

async fn cancel(frame: &Frame, consumer: String, ids: Vec<String>) -> anyhow::Result<Ended> {
    let database = frame.only(Access::Change).await?;
    let claims = claims(&consumer, ids.iter());
    // A dead one is discarded with its dead letter, which is in the broker.
    let ask = |claim: &Claim| Ask {
        claim: claim.clone(),
        order: None,
    };
    let asked: Vec<Ask> = claims.iter().map(ask).collect();
    let seen = database.store.look(&asked).await?;
    let dead = seen.iter().position(|it| it.state == Some(InboxState::Dead));
    if let Some(id) = dead.map(|at| &ids[at]) {
        bail!("`{id}` is dead and does not wait; its dead letter is in the queue `{consumer}.dead`");
    }
    let count = database.store.deferred().discard(&claims).await?;
    changed(frame, database, (consumer, count, "cancelled"), ids.len())
}

fn claims<'a>(consumer: &str, ids: impl Iterator<Item = &'a String>) -> Vec<Claim> {
    let claim = |id: &String| Claim {
        consumer: consumer.into(),
        message: MessageId::new(&**id),
    };
    ids.map(claim).collect()
}

fn changed(
    frame: &Frame,
    database: Database,
    (consumer, count, what): (String, u64, &'static str),
    asked: usize,
) -> anyhow::Result<Ended> {
    let service = database.service;
    frame.out.show(&Changed {
        service,
        consumer,
        count,
        what,
    })?;
    if count < asked as u64 {
        let left = asked as u64 - count;
        let left = counted(
            left,
            "of the messages was left alone: it does not wait (any more), is parked, or is being tried now",
            "of the messages were left alone: they do not wait (any more), are parked, or are being tried now",
        );
        frame.out.note(&left);
        return Ok(Ended::Problem);
    }
    Ok(Ended::Done)
}

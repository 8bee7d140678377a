//! `groups`, `list` and `show`.

use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use tidings::Transport;
use tidings::{
    Attempt,
    dead_letters::{self, Audit, Letter, Recorded},
};

use super::{letters_of, select::Select};
use crate::{
    frame::{Ended, Frame},
    message::{ShownMessage, tell_attempts},
    out::{Cell, Page, Report, counted, from_now, one_line},
};

/// How many letters are read at a time.
const PAGE: usize = 100;

#[derive(Debug, clap::Args)]
pub(super) struct Groups {
    /// Of which consumers; of all that the databases know when not given
    consumer: Vec<String>,
    /// Of the record of discarded and edited letters instead
    #[arg(long)]
    recorded: bool,
    #[command(flatten)]
    select: Select,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FoundGroups {
    groups: Vec<FoundGroup>,
    count: u64,
    left_out: u64,
}

#[derive(Debug, Serialize)]
struct FoundGroup {
    consumer: String,
    name: String,
    fingerprint: String,
    pattern: String,
    count: u64,
    /// How many of them.
    edited: u64,
    redriven: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<Timestamp>,
    example: Example,
}

#[derive(Debug, Serialize)]
struct Example {
    id: String,
    reason: String,
}

impl FoundGroup {
    fn new(group: dead_letters::Group) -> Self {
        Self {
            consumer: group.consumer.into(),
            name: group.name.into(),
            fingerprint: group.fingerprint.id.into(),
            pattern: group.fingerprint.pattern.into(),
            count: group.count,
            edited: group.edited,
            redriven: group.redriven,
            first: group.first,
            last: group.last,
            example: Example {
                id: group.example_id.into(),
                reason: group.example_reason.into(),
            },
        }
    }
}

impl Report for FoundGroups {
    fn tell(&self, page: &mut Page) {
        if self.groups.is_empty() {
            return page.line("no dead letters");
        }
        let when = |time: Option<Timestamp>| time.map_or("-".to_owned(), from_now);
        let row = |it: &FoundGroup| -> Vec<Cell> {
            vec![
                Cell::bad(it.count.to_string()),
                it.edited.to_string().into(),
                it.redriven.to_string().into(),
                (&it.consumer).into(),
                or_dash(&it.name).into(),
                (&it.fingerprint).into(),
                when(it.first).into(),
                when(it.last).into(),
                or_dash(&it.pattern).into(),
            ]
        };
        let headings = [
            "LETTERS", "EDITED", "REDRIVEN", "CONSUMER", "MESSAGE", "FINGERPRINT", "FIRST", "LAST", "REASON",
        ];
        page.table(&headings, &self.groups.iter().map(row).collect::<Vec<_>>());
        if self.left_out > 0 {
            let letters = counted(self.left_out, "letter", "letters");
            page.line(format!("and {letters} of further groups"));
        }
    }
}

impl Groups {
    pub(super) async fn run(self, frame: &Frame, broker: &Arc<dyn Transport>) -> anyhow::Result<Ended> {
        let mut found = FoundGroups {
            groups: Vec::new(),
            count: 0,
            left_out: 0,
        };
        for letters in letters_of(frame, broker, &self.consumer, self.recorded).await? {
            let all = letters.groups(&self.select.selection()).await?;
            found.count += all.count;
            found.left_out += all.left_out;
            found.groups.extend(all.groups.into_iter().map(FoundGroup::new));
        }
        found.groups.sort_by_key(|group| std::cmp::Reverse(group.count));
        frame.out.show(&found)?;
        Ok(Ended::Done)
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Of which consumers; of all that the databases know when not given
    consumer: Vec<String>,
    /// Of the record of discarded and edited letters instead
    #[arg(long)]
    recorded: bool,
    #[command(flatten)]
    select: Select,
    /// How many at most
    #[arg(long, value_name = "COUNT", default_value_t = 50)]
    limit: usize,
}

#[derive(Debug, Serialize)]
struct Letters {
    letters: Vec<Listed>,
    /// There are more than were asked for.
    more: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Listed {
    consumer: String,
    id: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    died_at: Option<Timestamp>,
    failures: u32,
    redrives: u32,
    edit_count: u32,
    fingerprint: String,
    reason: String,
}

impl Listed {
    fn new(letter: Letter) -> Self {
        Self {
            consumer: letter.consumer.into(),
            id: letter.id.into(),
            name: letter.envelope.name.into_owned(),
            key: letter.envelope.key.map(Into::into),
            died_at: letter.died_at,
            failures: letter.failures,
            redrives: letter.redrives,
            edit_count: letter.edit_count,
            fingerprint: letter.fingerprint.id.into(),
            reason: letter.reason.into(),
        }
    }
}

impl Report for Letters {
    fn tell(&self, page: &mut Page) {
        if self.letters.is_empty() {
            return page.line("no dead letters");
        }
        let row = |it: &Listed| -> Vec<Cell> {
            vec![
                (&it.consumer).into(),
                (&it.id).into(),
                or_dash(&it.name).into(),
                it.died_at.map_or("-".to_owned(), from_now).into(),
                it.failures.to_string().into(),
                it.redrives.to_string().into(),
                it.edit_count.to_string().into(),
                it.key.as_deref().unwrap_or("-").into(),
                one_line(or_dash(&it.reason)).into(),
            ]
        };
        let headings = [
            "CONSUMER", "ID", "MESSAGE", "DIED", "FAILED", "REDRIVEN", "EDITED", "KEY", "REASON",
        ];
        page.table(&headings, &self.letters.iter().map(row).collect::<Vec<_>>());
        if self.more {
            page.line("there are more: `--limit`");
        }
    }
}

impl List {
    pub(super) async fn run(self, frame: &Frame, broker: &Arc<dyn Transport>) -> anyhow::Result<Ended> {
        let mut letters = Vec::new();
        let selection = self.select.selection();
        for of in letters_of(frame, broker, &self.consumer, self.recorded).await? {
            if letters.len() > self.limit {
                break;
            }
            let mut listing = of.list(&selection).await?;
            loop {
                let room = (self.limit + 1).saturating_sub(letters.len());
                let page = match room {
                    0 => Vec::new(),
                    _ => listing.next_page(room.min(PAGE)).await?,
                };
                if page.is_empty() {
                    break;
                }
                letters.extend(page.into_iter().map(Listed::new));
            }
            listing.end().await?;
        }
        let more = letters.len() > self.limit;
        letters.truncate(self.limit);
        frame.out.show(&Letters { letters, more })?;
        Ok(Ended::Done)
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Show {
    /// The consumer; `tidings.discarded` for the record
    consumer: String,
    /// The letter's id
    id: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    consumer: String,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    died_at: Option<Timestamp>,
    failures: u32,
    redrives: u32,
    edit_count: u32,
    fingerprint: String,
    /// The error and its causes.
    errors: Vec<String>,
    history: Vec<Attempt>,
    edits: Vec<Audit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recorded: Option<Recorded>,
    message: ShownMessage,
}

impl Report for Shown {
    fn tell(&self, page: &mut Page) {
        page.line(format!("consumer       {}", self.consumer));
        if let Some(at) = self.died_at {
            page.line(format!("died           {at} ({})", from_now(at)));
        }
        let times = |count: u32| counted(count.into(), "time", "times");
        let (failed, redriven) = (times(self.failures), times(self.redrives));
        let edited = times(self.edit_count);
        page.line(format!("failed         {failed}, redriven {redriven}, edited {edited}"));
        page.line(format!("fingerprint    {}", self.fingerprint));
        for (at, error) in self.errors.iter().enumerate() {
            let what = if at == 0 { "error" } else { "because" };
            page.line(format!("{what:<15}{}", one_line(error)));
        }
        tell_attempts(&self.history, self.failures, page);
        let edits = self.edits.iter().map(|edit| ("edited", edit));
        let recorded = self.recorded.iter().map(|it| (&*it.what, &it.audit));
        for (what, it) in edits.chain(recorded) {
            let line = format!("{what:<15}{} by {}: {}", it.at, it.by, it.why);
            page.line(one_line(&line));
        }
        self.message.tell(page);
    }
}

impl Show {
    pub(super) async fn run(self, frame: &Frame, broker: &Arc<dyn Transport>) -> anyhow::Result<Ended> {
        let recorded = self.consumer == tidings::RECORD_QUEUE;
        let consumer = match recorded {
            true => Vec::new(),
            false => vec![self.consumer],
        };
        for letters in letters_of(frame, broker, &consumer, recorded).await? {
            let letter = letters.show(&self.id).await?;
            let errors = letter.errors().into_iter().map(str::to_owned);
            let mask = frame.mask().await;
            frame.out.show(&Shown {
                errors: errors.collect(),
                edits: letter.edits(),
                recorded: letter.recorded(),
                message: ShownMessage::new(&letter.envelope, mask),
                consumer: letter.consumer.into(),
                id: letter.id.into(),
                died_at: letter.died_at,
                failures: letter.failures,
                redrives: letter.redrives,
                edit_count: letter.edit_count,
                fingerprint: letter.fingerprint.id.into(),
                history: letter.history,
            })?;
        }
        Ok(Ended::Done)
    }
}

fn or_dash(text: &str) -> &str {
    match text {
        "" => "-",
        text => text,
    }
}

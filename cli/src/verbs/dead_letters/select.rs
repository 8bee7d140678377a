//! Which letters are meant, on the command line.

use anyhow::bail;
use jiff::{SignedDuration, Timestamp};
use tidings::dead_letters::Selection;

use crate::frame::Usage;

/// Which letters; all that is said must hold.
#[derive(Debug, clap::Args)]
pub(super) struct Select {
    /// Only this letter (repeatable)
    #[arg(long, value_name = "ID", help_heading = "Which letters")]
    id: Vec<String>,
    /// Only messages of this name, `order-placed.v1`
    #[arg(long, help_heading = "Which letters")]
    name: Option<String>,
    /// Only letters whose reason has this fingerprint, as `groups` shows it
    #[arg(long, value_name = "FINGERPRINT", help_heading = "Which letters")]
    fingerprint: Option<String>,
    /// Only letters that died then or later: `2026-11-28T03:00:00Z`, or `2h` (ago)
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = "Which letters")]
    since: Option<Timestamp>,
    /// Only letters that died before then
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = "Which letters")]
    before: Option<Timestamp>,
}

impl Select {
    pub(super) fn selection(&self) -> Selection {
        let mut selection = self.id.iter().fold(Selection::all(), |all, id| all.id(id));
        if let Some(name) = &self.name {
            selection = selection.name(name);
        }
        if let Some(fingerprint) = &self.fingerprint {
            selection = selection.fingerprint(fingerprint);
        }
        if let Some(since) = self.since {
            selection = selection.since(since);
        }
        match self.before {
            Some(before) => selection.before(before),
            None => selection,
        }
    }

    /// The same for something that is not to be done to all letters by mistake.
    pub(super) fn selection_or_all(&self, all: bool) -> anyhow::Result<Selection> {
        let selection = self.selection();
        match (selection == Selection::all(), all) {
            (true, false) => bail!(Usage::new(
                "say which letters: `--id`, `--name`, `--fingerprint`, `--since`, `--before`, or \
                 `--all`"
            )),
            (false, true) => bail!(Usage::new(
                "say `--all` or which letters, not both"
            )),
            _ => Ok(selection),
        }
    }
}

/// A time, or how long ago it was.
fn time(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let ago: SignedDuration = text.parse().map_err(|_| {
        "neither a time (`2026-11-28T03:00:00Z`) nor how long ago (`2h`)".to_owned()
    })?;
    Timestamp::now().checked_sub(ago.abs()).map_err(|error| error.to_string())
}

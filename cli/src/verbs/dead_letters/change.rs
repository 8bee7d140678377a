//! `edit` and `discard`.

use std::{io::Read as _, path::PathBuf, sync::Arc};

use anyhow::Context as _;
use serde::Serialize;
use tidings::Transport;
use tidings::dead_letters::{BODY_BYTES_MAX, DeadLetters};

use super::{Who, select::Select, store_of};
use crate::{
    frame::{Ended, Frame},
    out::{Page, Report, counted},
    places::Access,
};

#[derive(Debug, clap::Args)]
pub(super) struct Edit {
    /// The consumer
    consumer: String,
    /// The letter's id
    id: String,
    /// The file with the new body; `-` for stdin
    #[arg(long, value_name = "FILE")]
    body: PathBuf,
    #[command(flatten)]
    who: Who,
}

#[derive(Debug, Serialize)]
struct Edited {
    consumer: String,
    /// As it was.
    was: String,
    /// As it is now.
    id: String,
    followers: usize,
}

impl Report for Edited {
    fn tell(&self, page: &mut Page) {
        let Self {
            was, id, consumer, ..
        } = self;
        page.line(format!("edited {was} of {consumer}; it is behind the others now"));
        if was != id {
            page.line(format!("the message has no id of its own: from now on the letter is {id}"));
        }
        if self.followers > 0 {
            let followers = counted(
                self.followers as u64,
                "later letter of its key is",
                "later letters of its key are",
            );
            page.line(format!("{followers} behind it again"));
        }
    }
}

impl Edit {
    pub(super) async fn run(self, frame: &Frame, broker: &Arc<dyn Transport>) -> anyhow::Result<Ended> {
        let body = self.read_body()?;
        let letters = DeadLetters::new(Arc::clone(broker), &self.consumer);
        let edited = letters.edit(&self.id, body, &self.who.audit()).await?;
        frame.out.show(&Edited {
            consumer: self.consumer,
            was: self.id,
            id: edited.id.into(),
            followers: edited.followers,
        })?;
        Ok(Ended::Done)
    }

    fn read_body(&self) -> anyhow::Result<Vec<u8>> {
        // One byte more than is possible, so that a larger one is refused and not cut.
        let bytes_max = BODY_BYTES_MAX as u64 + 1;
        let mut body = Vec::new();
        let read = match self.body.as_os_str() == "-" {
            true => std::io::stdin().take(bytes_max).read_to_end(&mut body),
            false => std::fs::File::open(&self.body)
                .and_then(|file| file.take(bytes_max).read_to_end(&mut body)),
        };
        read.with_context(|| format!("the new body cannot be read from {}", self.body.display()))?;
        Ok(body)
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Discard {
    /// The consumer
    consumer: String,
    #[command(flatten)]
    select: Select,
    /// All its letters
    #[arg(long, help_heading = "Which letters")]
    all: bool,
    #[command(flatten)]
    who: Who,
}

#[derive(Debug, Serialize)]
struct Discarded {
    consumer: String,
    count: u64,
    released: u64,
}

impl Report for Discarded {
    fn tell(&self, page: &mut Page) {
        let Self {
            consumer,
            count,
            released,
        } = self;
        let letters = match count {
            1 => format!("1 letter of {consumer}; it is in the record"),
            0 => format!("no letter of {consumer}"),
            _ => format!("{count} letters of {consumer}; they are in the record"),
        };
        page.line(format!("discarded {letters}"));
        if *released > 0 {
            page.line(format!("behind {released} of them, messages of their keys go on"));
        }
    }
}

impl Discard {
    pub(super) async fn run(self, frame: &Frame, broker: &Arc<dyn Transport>) -> anyhow::Result<Ended> {
        let selection = self.select.selection_or_all(self.all)?;
        let mut letters = DeadLetters::new(Arc::clone(broker), &self.consumer);
        let is_ordered = self.consumer.ends_with(".ordered");
        match store_of(frame, &self.consumer, Access::Change).await? {
            Some(store) => letters = letters.store(store),
            None if is_ordered => frame.out.note(
                "without the consumer's database (`--database`), messages that are parked behind \
                 these letters stay parked",
            ),
            None => {}
        }
        let bar = frame.progress(letters.count().await?, "discarding");
        let audit = self.who.audit();
        let discarded = letters.discard(&selection, &audit, |_| bar.inc(1)).await;
        bar.finish_and_clear();
        let discarded = discarded?;
        frame.out.show(&Discarded {
            consumer: self.consumer,
            count: discarded.count,
            released: discarded.released,
        })?;
        Ok(match discarded.count {
            0 => Ended::Problem,
            _ => Ended::Done,
        })
    }
}

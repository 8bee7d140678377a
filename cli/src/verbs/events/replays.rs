//! `tidings events replays`: how far replays are.

use serde::Serialize;
use tidings::replay::{self, Progress};

use crate::{
    frame::{Ended, Frame},
    out::{Cell, Page, Report, from_now},
    places::Access,
};

/// How many replays of a service are listed.
const LISTED_MAX: usize = 1000;

/// Lists the replays that were ever begun, and how far they are.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {}

const EXAMPLES: &str = "\
As JSON:
  {replays: [{service, to, id, start, position, until, sent, passedOver, notSent, isDone, began, trouble?}]}
A replay that is not done runs, or was stopped: it goes on when it is started again.";

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        let listed = frame.each(Access::Look, async |database| {
            let progress = replay::list(&*database.store, LISTED_MAX).await?;
            let of_service = progress.into_iter().map(|progress| Line {
                service: database.service.clone(),
                progress,
            });
            Ok(of_service.collect::<Vec<_>>())
        });
        let replays = listed.await?.into_iter().flatten().collect();
        frame.out.show(&Replays { replays })?;
        Ok(Ended::Done)
    }
}

#[derive(Debug, Serialize)]
struct Replays {
    replays: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Line {
    service: String,
    #[serde(flatten)]
    progress: Progress,
}

impl Report for Replays {
    fn tell(&self, page: &mut Page) {
        if self.replays.is_empty() {
            return page.line("no replay was ever begun");
        }
        let row = |line: &Line| -> Vec<Cell> {
            let it = &line.progress;
            let state = match (it.is_done, &it.trouble) {
                (true, _) => Cell::good("done"),
                (false, None) => Cell::warning("not done"),
                (false, Some(trouble)) => Cell::warning(format!("waits: {trouble}")),
            };
            vec![
                (&line.service).into(),
                (&it.to).into(),
                from_now(it.began).into(),
                it.sent.to_string().into(),
                format!("{} of {}", it.position, it.until).into(),
                state,
            ]
        };
        let headings = ["SERVICE", "TO", "BEGAN", "SENT", "POSITION", "STATE"];
        let rows: Vec<_> = self.replays.iter().map(row).collect();
        page.table(&headings, &rows);
    }
}

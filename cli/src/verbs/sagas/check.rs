//! `tidings sagas check`: asks services whether their functions go the way of the open journals.

use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Serialize;
use tidings::{
    Store,
    sagas::{self, CheckId, CheckReport, CheckState, Mismatch, Query},
};
use tokio::time::{Instant, sleep};

use super::{NAMES_MAX, State};
use crate::{
    code::Code,
    frame::{Ended, Frame, time, toolkit},
    out::{Page, Report, counted, one_line},
    places::Access,
};

/// Between two looks how far a check is.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long a check that was begun may take: an instance stops after a minute.
const RUNNING_MAX: Duration = Duration::from_secs(100);
/// Of a function that goes another way than a journal.
const MISMATCH: &str = "TDG-3001";

#[derive(Debug, clap::Args)]
pub(super) struct Check {
    /// Only sagas of this name, `checkout`
    saga: Option<String>,
    /// How long to wait until an instance of the service begins
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "10s")]
    wait: Duration,
}

#[derive(Debug, Serialize)]
struct Checks {
    good: bool,
    sagas: Vec<Line>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    service: String,
    saga: String,
    /// The instance that did it; `None` if there was nothing to check.
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<String>,
    /// How many journals were replayed.
    checked: usize,
    /// Whether all were.
    whole: bool,
    mismatch_count: usize,
    mismatches: Vec<Mismatch>,
    foreign_count: usize,
    foreign: Vec<Mismatch>,
}

impl Line {
    fn new(service: &str, saga: &str, report: Option<CheckReport>) -> Self {
        let (by, whole, checked) = match report {
            Some(report) => (Some(report.by.into()), report.is_whole, report.checked),
            None => (None, true, sagas::Checked::default()),
        };
        Self {
            service: service.to_owned(),
            saga: saga.to_owned(),
            by,
            checked: checked.count,
            whole,
            mismatch_count: checked.mismatch_count,
            mismatches: checked.mismatches,
            foreign_count: checked.foreign_count,
            foreign: checked.foreign,
        }
    }

    fn is_good(&self) -> bool {
        self.whole && self.mismatch_count + self.foreign_count == 0
    }
}

impl Report for Checks {
    fn tell(&self, page: &mut Page) {
        if self.sagas.is_empty() {
            return page.line("there is no saga");
        }
        for line in &self.sagas {
            let (saga, service) = (&line.saga, &line.service);
            for (found, what) in [
                (&line.mismatches, "goes another way"),
                (&line.foreign, "has no function"),
            ] {
                for Mismatch { key, why } in found {
                    page.title(format!("{MISMATCH} {service}: {saga}/{key} {what}"));
                    page.line(format!("  {}", one_line(why)));
                }
            }
            page.line(format!(
                "{saga} of {service}: {} replayed, {} another way, for {} there is no \
                 function{}",
                counted(line.checked as u64, "open journal was", "open journals were"),
                counted(line.mismatch_count as u64, "goes", "go"),
                line.foreign_count,
                match line.whole {
                    true => "",
                    false => "; not all were replayed within a minute",
                }
            ));
        }
    }
}

impl Check {
    pub(super) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        let mut found = Vec::new();
        let all = frame.each(Access::Look, async |database| {
            let store = &*database.store;
            for saga in sagas::names(store, NAMES_MAX).await.map_err(toolkit)? {
                if self.saga.as_deref().is_some_and(|wanted| wanted != &*saga) {
                    continue;
                }
                let query = Query {
                    state: Some(State::Running.label().into()),
                    limit: 1,
                    ..Query::default()
                };
                let open = sagas::list(store, &saga, &query).await.map_err(toolkit)?;
                found.push((database.service.clone(), saga, !open.is_empty()));
            }
            Ok(())
        });
        all.await?;
        if let (Some(saga), true) = (&self.saga, found.is_empty()) {
            bail!("there are no sagas `{saga}` in these databases");
        }
        let mut lines = Vec::with_capacity(found.len());
        for (service, saga, is_open) in found {
            let report = match is_open {
                true => Some(self.ask(frame, &service, &saga).await?),
                false => None,
            };
            lines.push(Line::new(&service, &saga, report));
        }
        let good = lines.iter().all(Line::is_good);
        frame.out.show(&Checks { good, sagas: lines })?;
        match good {
            true => Ok(Ended::Done),
            false => Ok(Ended::Problem),
        }
    }

    /// Has the service check the journals of one saga.
    async fn ask(&self, frame: &Frame, service: &str, saga: &str) -> anyhow::Result<CheckReport> {
        let database = frame.one(service, Access::Change).await?;
        let store = &*database.store;
        let check = sagas::ask_check(store, saga).await.map_err(toolkit)?;
        let waited = self.wait_for(store, &check).await;
        sagas::end_check(store, check).await.map_err(toolkit)?;
        waited?.ok_or_else(|| {
            Code::NobodyOperates.of(format!(
                "`{service}` has not checked the open journals of `{saga}`: does it run, with this saga? only it has \
                 the functions"
            ))
        })
    }

    async fn wait_for(
        &self,
        store: &dyn Store,
        check: &CheckId,
    ) -> anyhow::Result<Option<CheckReport>> {
        let since = Instant::now();
        loop {
            let state = sagas::check_state(store, check).await.map_err(toolkit)?;
            let wait = match state.context("somebody removed the check")? {
                CheckState::Done(report) => return Ok(Some(report)),
                CheckState::Asked => self.wait,
                CheckState::Running => self.wait + RUNNING_MAX,
            };
            if since.elapsed() >= wait {
                return Ok(None);
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

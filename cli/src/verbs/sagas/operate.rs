//! Doing something to a saga: asking its service, and waiting until that has carried it out.

use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::value::RawValue;
use tidings::{
    Store,
    sagas::{self, Action, Journal, Operation, OperationId, What},
};
use tokio::time::{Instant, sleep};

use super::{Which, find};
use crate::{
    code::Code,
    frame::{Ended, Frame, Usage, time, toolkit},
    out::{Page, Report, one_line},
    places::Access,
};

/// Between two looks whether an operation was carried out.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Who does it, and why; for the journal.
#[derive(Debug, clap::Args)]
pub(crate) struct Reason {
    /// Who does it; your user name when not given
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
    /// What for
    #[arg(long, value_name = "TEXT")]
    why: String,
    /// How long to wait until the service has carried it out
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "10s")]
    wait: Duration,
}

/// The answer of a step, by hand.
#[derive(Debug, clap::Args)]
#[group(id = "answer", required = true, args = ["done", "refused"])]
pub(crate) struct Answer {
    #[command(flatten)]
    which: Which,
    /// The step
    step: String,
    /// It is done, with this reply: JSON as its target would answer
    #[arg(long, value_name = "JSON")]
    done: Option<String>,
    /// It is not done, for this reason
    #[arg(long, value_name = "REASON")]
    refused: Option<String>,
    #[command(flatten)]
    reason: Reason,
}

impl Answer {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        let answer = match (self.done, self.refused) {
            (Some(reply), _) => {
                let reply = RawValue::from_string(reply);
                let not_json = |error| Usage::new(format!("`--done` is not JSON: {error}"));
                sagas::Answer::Done(reply.map_err(not_json)?)
            }
            (None, reason) => sagas::Answer::Refused {
                reason: reason.unwrap_or_default().into(),
                for_now: false,
            },
        };
        let action = Action::Answer(self.step.into(), answer);
        run(frame, &self.which, self.reason, action).await
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Operated {
    service: String,
    saga: String,
    key: String,
    action: &'static str,
    carried_out: bool,
    state: &'static str,
    /// Why it is stuck.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

impl Report for Operated {
    fn tell(&self, page: &mut Page) {
        let Self {
            saga,
            key,
            action,
            state,
            ..
        } = self;
        let reason = self.reason.as_deref().map(one_line);
        let reason = reason.map_or_else(String::new, |reason| format!(": {reason}"));
        match self.carried_out {
            true => page.line(format!("{action}: {saga}/{key} is {state} now{reason}")),
            false => page.line(format!("{action} is asked for: {saga}/{key} is {state}{reason}")),
        }
    }
}

/// Asks for `action`, waits for it, and tells what became of the saga.
pub(super) async fn run(
    frame: &Frame,
    which: &Which,
    reason: Reason,
    action: Action,
) -> anyhow::Result<Ended> {
    let word = match &action {
        Action::Retry => "retry",
        Action::Answer(..) => "answer",
        Action::Skip(_) => "skip",
        Action::Compensate => "compensate",
        Action::GiveUp => "give-up",
    };
    let (service, before) = find(frame, which).await?;
    let operation = Operation {
        who: reason.who.unwrap_or_else(user).into(),
        why: reason.why.into(),
        action,
    };
    let database = frame.one(&service, Access::Change).await?;
    let store = &*database.store;
    let Which { saga, key } = which;
    let asked = sagas::operate(store, saga, key, &operation).await;
    let wait = reason.wait;
    let carried_out = wait_for(store, &asked.map_err(toolkit)?, wait).await?;
    let after = sagas::journal(store, saga, key).await.map_err(toolkit)?;
    let after = after.context("the saga is not there any more")?;
    let is_in_journal = carried_out && count(&after, &operation) > count(&before, &operation);
    let reason = match &after.state {
        sagas::SagaState::Stuck { reason, .. } => Some(reason.to_string()),
        _ => None,
    };
    frame.out.show(&Operated {
        service: service.clone(),
        saga: saga.clone(),
        key: key.clone(),
        action: word,
        carried_out: is_in_journal,
        state: after.state.label(),
        reason,
    })?;
    if !carried_out {
        return Err(Code::NobodyOperates.of(format!(
            "`{service}` has not carried it out in {wait:?}: does it run? it stays asked for, and is \
             carried out when the service runs"
        )));
    }
    if !is_in_journal {
        frame.out.note(&format!(
            "nothing was done: `{saga}/{key}` has ended, and nothing of it is open"
        ));
        return Ok(Ended::Problem);
    }
    Ok(Ended::Done)
}

/// Whether an operation was carried out in time.
async fn wait_for(
    store: &dyn Store,
    asked: &OperationId,
    wait: Duration,
) -> anyhow::Result<bool> {
    let since = Instant::now();
    loop {
        if !sagas::is_pending(store, asked).await.map_err(toolkit)? {
            return Ok(true);
        }
        if since.elapsed() >= wait {
            return Ok(false);
        }
        sleep(LOOK_EVERY).await;
    }
}

/// How often an operation by the same person for the same reason stands in a journal.
fn count(journal: &Journal, operation: &Operation) -> usize {
    let is_it = |entry: &&sagas::Entry| match &entry.what {
        What::Operator { who, why, .. } => *who == operation.who && *why == operation.why,
        _ => false,
    };
    journal.entries.iter().filter(is_it).count()
}

/// The name of whoever runs this.
fn user() -> String {
    let named = ["USER", "LOGNAME"].into_iter().find_map(|variable| {
        let name = std::env::var(variable).ok()?;
        (!name.is_empty()).then_some(name)
    });
    named.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}

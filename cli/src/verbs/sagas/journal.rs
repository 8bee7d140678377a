//! A journal for people: a line for each thing that has happened.

use serde_json::value::RawValue;
use tidings::sagas::{Journal, Undo, What};

use crate::{mask::Mask, message::json_line, out::from_now};

/// The journal in lines; sensitive values of bodies are hidden.
pub(super) fn told(journal: &Journal, mask: &Mask) -> Vec<String> {
    let start = &journal.start;
    let mut lines = vec![
        format!("state     {}", journal.state),
        format!("started   {} ({})", journal.started, from_now(journal.started)),
        format!("version   {} of its function, run {}", journal.version, journal.run),
        format!("by        {} {}", start.name, start.id),
        format!("          {}", json_line(&mask.json_of(&start.name, &start.body))),
    ];
    lines.extend(journal.entries.iter().map(|entry| {
        let what = what(&entry.what, mask);
        format!("{:.3}  {what}", entry.at)
    }));
    lines
}

fn what(what: &What, mask: &Mask) -> String {
    let body = |json: &RawValue| json_line(&mask.json(json));
    match what {
        What::Sent {
            step,
            command,
            undo,
            deadline,
            send,
            ..
        } => {
            let undo = match undo {
                Undo::ByCommand => "",
                Undo::Never => ", needs no undoing",
                Undo::Pivot => ", cannot be undone",
            };
            let deadline = deadline.map(|it| format!(", until {it:.3}"));
            let said = send.as_ref().and_then(|send| send.message().ok());
            let said = said.and_then(|it| {
                let said: Box<RawValue> = serde_json::from_slice(&it.envelope.body).ok()?;
                let said = mask.json_of(&it.envelope.name, &said);
                Some(format!(": {}", json_line(&said)))
            });
            format!(
                "sent           {step}: {command}{undo}{}{}",
                deadline.unwrap_or_default(),
                said.unwrap_or_default()
            )
        }
        What::Done {
            step,
            reply,
            is_late,
            ..
        } => {
            let late = if *is_late { " (late)" } else { "" };
            format!("done           {step}{late}: {}", body(reply))
        }
        What::Refused { step, reason } => format!("refused        {step}: {reason}"),
        What::PutOff {
            step,
            reason,
            until,
        } => format!("put off        {step}: {reason}; again at {until:.3}"),
        What::SentAgain { step } => format!("sent again     {step}"),
        What::TimedOut { step } => format!("no answer      {step}"),
        What::CancelSent { step } => format!("cancel sent    {step}"),
        What::Cancelled { step } => format!("cancelled      {step}"),
        What::UndoSent { step } => format!("undo sent      {step}"),
        What::Undone { step } => format!("undone         {step}"),
        What::UndoRefused { step, reason } => format!("undo refused   {step}: {reason}"),
        What::TimerSet { timer, until } => format!("timer set      {timer}, until {until:.3}"),
        What::Fired { timer } => format!("timer fired    {timer}"),
        What::Signal { signal, body: said } => {
            format!("signal         {signal}: {}", body(said))
        }
        What::BeginsAnew => "begins anew".to_owned(),
        What::CalledOff => "called off by the saga whose step it is".to_owned(),
        What::Patched { patch } => format!("patched        {patch}"),
        What::Failed { messages } => {
            let names = messages.iter().filter_map(|it| it.message().ok());
            let names: Vec<String> = names.map(|it| it.envelope.name.into_owned()).collect();
            format!("failed         {}", names.join(", "))
        }
        What::Stuck { reason } => format!("stuck          {reason}"),
        What::Operator { who, why, action } => {
            format!("operator       {action}, by {who}: {why}")
        }
        What::Ended => "ended".to_owned(),
    }
}

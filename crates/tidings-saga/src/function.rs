//! A saga's function, and one pass over it.

use std::{
    any::Any,
    collections::BTreeMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use serde_json::value::RawValue;
use tidings_core::{IntoMessages, Message, Messages, Outgoing};

use crate::{
    journal::Journal,
    run::{Asked, Run},
    saga::{Saga, Step},
    turn::Answer,
};

/// A function of any types: from the message that starts a saga to what is sent when it ends.
pub(crate) type Function = Arc<dyn Fn(&RawValue, Saga) -> Result<Running, String> + Send + Sync>;

/// A function under way. It never leaves the call that polls it.
pub(crate) type Running = Pin<Box<dyn Future<Output = Result<Ended, String>>>>;

/// How a function ended: well or not.
pub(crate) type Ended = Result<End, End>;

/// What is to be sent when a function has ended.
pub(crate) struct End {
    pub(crate) messages: Vec<Outgoing>,
    /// What its parent is told, if it is a step of another saga.
    pub(crate) answer: Option<Answer>,
}

/// Erases the types of a function.
pub(crate) fn erase<M, F, Fut, Done, Undone>(function: F) -> Function
where
    M: Message,
    F: Fn(M, Saga) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Done, Undone>> + 'static,
    Done: IntoMessages,
    Undone: IntoMessages,
{
    Arc::new(move |body, saga| {
        let running = function(read(body)?, saga);
        Ok(Box::pin(async move {
            Ok(match running.await {
                Ok(messages) => Ok(encode(messages)?),
                Err(messages) => Err(encode(messages)?),
            })
        }))
    })
}

/// The same for a saga that is a step of another one.
pub(crate) fn erase_child<C, F, Fut, E>(function: F) -> Function
where
    C: Step,
    F: Fn(C, Saga) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<C::Reply, E>> + 'static,
    E: fmt::Display,
{
    Arc::new(move |body, saga| {
        let running = function(read(body)?, saga);
        Ok(Box::pin(async move {
            Ok(match running.await {
                Ok(reply) => {
                    let reply = serde_json::value::to_raw_value(&reply);
                    let reply = reply
                        .map_err(|error| format!("its reply cannot be written as JSON: {error}"))?;
                    Ok(End::answer(Answer::Done(reply)))
                }
                Err(error) => Err(End::answer(Answer::Refused {
                    reason: error.to_string().into(),
                    for_now: false,
                })),
            })
        }))
    })
}

impl End {
    fn answer(answer: Answer) -> Self {
        Self {
            messages: Vec::new(),
            answer: Some(answer),
        }
    }
}

fn read<M: Message>(body: &RawValue) -> Result<M, String> {
    serde_json::from_str(body.get())
        .map_err(|error| format!("the message that started it cannot be read: {error}"))
}

fn encode(messages: impl IntoMessages) -> Result<End, String> {
    let mut all = Messages::default();
    let encoded = messages.into_messages(&mut all);
    encoded.map_err(|error| error.to_string())?;
    match all.later.is_empty() && all.cancelled.is_empty() && all.replies.is_empty() {
        true => Ok(End {
            messages: all.now,
            answer: None,
        }),
        false => Err(
            "a saga's function returns messages that are sent at once; for what comes later \
                      use `Saga::timer` before it returns"
                .into(),
        ),
    }
}

/// What a pass found out.
pub(crate) struct Pass {
    /// `None`: the function waits.
    pub(crate) ended: Option<Ended>,
    pub(crate) run: Run,
    /// Steps that nobody waits for any more.
    pub(crate) dropped: Vec<Box<str>>,
}

/// Runs `function` over the first `count` entries of a journal.
///
/// # Errors
///
/// Why it cannot go on: it panicked, awaits something else than a saga offers, or cannot read what is
/// stored.
pub(crate) fn pass(
    function: &Function,
    id: &str,
    journal: &Journal,
    count: usize,
) -> Result<Pass, String> {
    let passed = AssertUnwindSafe(|| pass_or_panic(function, id, journal, count));
    catch_unwind(passed).unwrap_or_else(|panic| Err(panicked(&*panic)))
}

fn pass_or_panic(
    function: &Function,
    id: &str,
    journal: &Journal,
    count: usize,
) -> Result<Pass, String> {
    let shared = Arc::new(Mutex::new(Run::new(id.into(), journal)));
    shared.lock().is_at_end = count == 0;
    let mut running = function(&journal.start.body, Saga(Arc::clone(&shared)))?;
    let mut task = Context::from_waker(Waker::noop());
    let mut polled = running.as_mut().poll(&mut task);
    for place in 0..count {
        if polled.is_ready() || shared.lock().anew.is_some() {
            break;
        }
        let wakers = {
            let mut run = shared.lock();
            run.is_at_end = place + 1 == count;
            run.reveal(journal, place)
        };
        // Not under the lock: what is woken may look at once.
        wakers.into_iter().for_each(Waker::wake);
        polled = running.as_mut().poll(&mut task);
    }
    // Before the function is dropped, and everything in it.
    let (dropped, is_waiting, broken) = {
        let mut run = shared.lock();
        let dropped = std::mem::take(&mut run.dropped);
        (dropped, run.is_waiting(), run.broken.take())
    };
    drop(running);
    if let Some(why) = broken {
        return Err(why);
    }
    let ended = match polled {
        Poll::Ready(ended) => Some(ended?),
        Poll::Pending if is_waiting => None,
        Poll::Pending => {
            return Err(
                "it awaits something that is no step, timer or signal of the saga: a saga's \
                        function only computes, what it needs to know comes in replies and signals"
                    .into(),
            );
        }
    };
    let run = std::mem::replace(&mut *shared.lock(), Run::new("".into(), journal));
    Ok(Pass {
        ended,
        run,
        dropped,
    })
}

/// What was asked for differs from what the journal says: the code was changed.
pub(crate) fn mismatch(journal: &Journal, pass: &Pass) -> Option<String> {
    let asked: BTreeMap<&str, &Asked> = pass.run.asked.iter().map(|it| (&*it.name, it)).collect();
    for step in journal.steps() {
        let name = step.step;
        let Some(asked) = asked.get(name) else {
            return Some(format!(
                "the journal says that the step `{name}` was sent, but the function does not ask for \
                 it (any more); give the changed function a new version, or guard the change with \
                 `Saga::patched`"
            ));
        };
        if let Ok(command) = &asked.command
            && command.envelope.name != step.command
        {
            return Some(format!(
                "the journal says that the step `{name}` sent `{}`, but the function sends `{}`; give \
                 the changed function a new version, or guard the change with `Saga::patched`",
                step.command, command.envelope.name
            ));
        }
    }
    let timers: Vec<&str> = pass.run.timers.iter().map(|(name, _)| &**name).collect();
    let set = journal.timers();
    let missing = set.iter().find(|(name, _)| !timers.contains(name))?;
    Some(format!(
        "the journal says that the timer `{}` was set, but the function does not ask for it (any \
         more); give the changed function a new version, or guard the change with `Saga::patched`",
        missing.0
    ))
}

/// Steps whose commands say something else now than what was sent.
pub(crate) fn changed(journal: &Journal, pass: &Pass) -> Vec<Box<str>> {
    let is_changed = |asked: &&Asked| {
        let (Ok(command), Some(sent)) = (&asked.command, journal.step(&asked.name)) else {
            return false;
        };
        sent.fingerprint != Asked::fingerprint(command)
    };
    let changed = pass.run.asked.iter().filter(is_changed);
    changed.map(|asked| asked.name.clone()).collect()
}

fn panicked(panic: &(dyn Any + Send)) -> String {
    let said = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!(
        "its function panicked: {}",
        said.unwrap_or("something that is not text")
    )
}

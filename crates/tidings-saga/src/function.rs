//! A saga's function, and one pass over it.

use std::{
    any::Any,
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
    progress::Progress,
    run::{Asked, Run, Shared},
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

/// A function that runs over a journal, and has seen its first entries. It can be shown more: after an
/// answer it need not run from its start once for what undoes the step, and once more to go on.
pub(crate) struct Passing {
    shared: Shared,
    /// Until it is dropped; that runs code of the function's author.
    running: Option<Running>,
    polled: Poll<Result<Ended, String>>,
    /// How many entries it has seen.
    seen: usize,
}

/// What a pass found out.
pub(crate) struct Pass {
    /// `None`: the function waits.
    pub(crate) ended: Option<Ended>,
    pub(crate) run: Run,
    /// Steps that nobody waits for any more.
    pub(crate) dropped: Vec<Box<str>>,
}

impl Passing {
    /// Polls `function` before it has seen an entry of the journal; if `is_at_end`, it is to see none.
    ///
    /// # Errors
    ///
    /// Why it cannot go on: it panicked, or cannot read the message that started it.
    pub(crate) fn begin(
        function: &Function,
        id: &str,
        journal: &Journal,
        is_at_end: bool,
    ) -> Result<Self, String> {
        guard(|| {
            let shared = Arc::new(Mutex::new(Run::new(id.into(), journal)));
            shared.lock().is_at_end = is_at_end;
            let running = function(&journal.start.body, Saga(Arc::clone(&shared)))?;
            let mut passing = Self {
                shared,
                running: Some(running),
                polled: Poll::Pending,
                seen: 0,
            };
            passing.poll();
            Ok(passing)
        })
    }

    fn poll(&mut self) {
        if let Some(running) = &mut self.running {
            let mut task = Context::from_waker(Waker::noop());
            self.polled = running.as_mut().poll(&mut task);
        }
    }

    /// Reveals the entries up to the first `count` of the same journal, which may have become longer. If
    /// `is_end`, nothing comes after them.
    ///
    /// # Errors
    ///
    /// Why it cannot go on: it panicked, or awaits something else than a saga offers.
    pub(crate) fn go_on(
        &mut self,
        journal: &Journal,
        count: usize,
        is_end: bool,
    ) -> Result<(), String> {
        guard(|| {
            for place in self.seen..count {
                if self.polled.is_ready() || self.begins_anew() {
                    break;
                }
                let wakers = {
                    let mut run = self.shared.lock();
                    run.is_at_end = is_end && place + 1 == count;
                    run.reveal(journal, place)
                };
                // Not under the lock: what is woken may look at once.
                wakers.into_iter().for_each(Waker::wake);
                self.poll();
            }
            self.seen = self.seen.max(count);
            let (is_waiting, broken) = {
                let mut run = self.shared.lock();
                (run.is_waiting(), run.broken.take())
            };
            match broken {
                Some(why) => Err(why),
                None if self.polled.is_ready() || is_waiting => Ok(()),
                None => Err(
                    "it awaits something that is no step, timer or signal of the saga: a saga's \
                     function only computes, what it needs to know comes in replies and signals"
                        .into(),
                ),
            }
        })
    }

    /// The function asked to begin anew.
    pub(crate) fn begins_anew(&self) -> bool {
        self.shared.lock().anew.is_some()
    }

    /// Nobody waits for this step any more.
    pub(crate) fn is_dropped(&self, step: &str) -> bool {
        let run = self.shared.lock();
        run.dropped.iter().any(|dropped| **dropped == *step)
    }

    /// The function asked for this step.
    pub(crate) fn asks_for(&self, step: &str) -> bool {
        self.with_asked(step, |_| ()).is_some()
    }

    fn with_asked<T>(&self, step: &str, with: impl FnOnce(&mut Asked) -> T) -> Option<T> {
        let mut run = self.shared.lock();
        let mut asked = run.asked.iter_mut();
        asked.find(|asked| *asked.name == *step).map(with)
    }

    /// The command that undoes a step with this reply, if it is undone at all.
    ///
    /// # Errors
    ///
    /// Why it cannot be made.
    pub(crate) fn undo_of(&self, step: &str, reply: &RawValue) -> Result<Option<Outgoing>, String> {
        let make = self.with_asked(step, |asked| asked.make_undo.take());
        let make =
            make.ok_or_else(|| format!("the function does not ask for `{step}` (any more)"))?;
        let Some(make) = make else {
            return Ok(None);
        };
        // Not under the lock: it may ask the saga for its id.
        let made = catch_unwind(AssertUnwindSafe(|| make(reply)));
        self.with_asked(step, |asked| asked.make_undo = Some(make));
        made.unwrap_or_else(|_| Err("it panicked".into())).map(Some)
    }

    /// Ends it, and says what it found out.
    ///
    /// # Errors
    ///
    /// Why its function cannot go on.
    pub(crate) fn end(mut self) -> Result<Pass, String> {
        let ended = match std::mem::replace(&mut self.polled, Poll::Pending) {
            Poll::Ready(ended) => Some(ended?),
            Poll::Pending => None,
        };
        // Before the function is dropped, and everything in it.
        let dropped = std::mem::take(&mut self.shared.lock().dropped);
        let running = self.running.take();
        guard(|| {
            drop(running);
            Ok(())
        })?;
        let run = std::mem::take(&mut *self.shared.lock());
        Ok(Pass {
            ended,
            run,
            dropped,
        })
    }
}

impl Drop for Passing {
    fn drop(&mut self) {
        let running = self.running.take();
        // Whoever needs to know whether it panics calls `end`.
        let _ = guard(|| {
            drop(running);
            Ok(())
        });
    }
}

/// Runs code of a function's author. A panic is an error.
fn guard<T>(run: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(panicked(&*panic)))
}

/// What was asked for differs from what the journal says: the code was changed.
pub(crate) fn mismatch(journal: &Journal, steps: &[Progress<'_>], pass: &Pass) -> Option<String> {
    for step in steps {
        let name = step.step;
        let Some(asked) = pass.run.asked.iter().find(|it| *it.name == *name) else {
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
pub(crate) fn changed(steps: &[Progress<'_>], pass: &Pass) -> Vec<Box<str>> {
    let is_changed = |asked: &&Asked| {
        let sent = steps.iter().find(|step| *step.step == *asked.name);
        let (Ok(command), Some(sent)) = (&asked.command, sent) else {
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

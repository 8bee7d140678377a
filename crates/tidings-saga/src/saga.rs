//! What a saga's function is given: steps, timers, signals, and waiting for several of them.

mod waiting;

use std::{
    fmt,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use jiff::SignedDuration;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;
use tidings_core::{Command, Message, Outgoing};

use crate::{
    child::CallOff,
    journal::Undo,
    run::{Anew, Asked, MakeUndo, Settled, Shared},
};

pub use waiting::{First, WaitAll, WaitFirst};

/// A command whose target answers: a step of a saga. `#[derive(Command)]` with `reply = …` implements it.
pub trait Step: Command {
    /// What the target answers when it has done it.
    type Reply: Serialize + DeserializeOwned + Send + Sync + 'static;
}

/// A saga, as its function sees it.
///
/// The function is run again from its start for each message, over what the journal holds. So it does
/// nothing but compute and await what this offers; whatever it needs to know comes in replies and
/// signals.
#[derive(Clone)]
pub struct Saga(pub(crate) Shared);

impl Saga {
    /// Names the saga, for people and as a part of ids: `checkout/o-1`.
    pub fn id(&self) -> Box<str> {
        self.0.lock().id.clone()
    }

    /// A step: `command` is sent, and its target answers. Say what becomes of it if the saga fails:
    /// [`undo`](Draft::undo), [`no_undo`](Draft::no_undo), [`pivot`](Draft::pivot) or
    /// [`child`](Draft::child). The command is sent then, whether the step is awaited or not.
    ///
    /// `name` is a key in the journal: each step has its own, and it stays the same as long as journals
    /// exist.
    pub fn step<C: Step>(&self, name: impl Into<Box<str>>, command: C) -> Draft<C> {
        Draft {
            saga: self.clone(),
            asked: Asked {
                name: name.into(),
                command: Outgoing::new(&command).map_err(|error| error.to_string()),
                undo: Undo::Never,
                make_undo: None,
                cancel: None,
                deadline: None,
                retries: 0,
            },
            of: PhantomData,
        }
    }

    /// Resolves so long after it was first asked for.
    pub fn timer(&self, name: impl Into<Box<str>>, after: Duration) -> Timer {
        let name = name.into();
        let mut run = self.0.lock();
        run.check_name("a timer", &name);
        let after = SignedDuration::try_from(after).unwrap_or(SignedDuration::MAX);
        run.timers.push((name.clone(), after));
        drop(run);
        Timer {
            saga: self.clone(),
            name,
        }
    }

    /// The next signal of this name: signals are taken in the order of their arrival, each once.
    pub fn signal<T: DeserializeOwned>(&self, name: impl Into<Box<str>>) -> Signal<T> {
        Signal {
            saga: self.clone(),
            name: name.into(),
            of: PhantomData,
        }
    }

    /// Begins anew under the same key, as if `start` had started it: for sagas that live long, whose
    /// journal would become full. Awaiting it never ends.
    ///
    /// Signals that were not taken are carried over, and the newest version of the function goes on. Steps
    /// that are still out are settled before; so are those whose answers nobody waits for. What could still
    /// be undone would be forgotten: a saga with such a step is stuck instead.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tidings_core::{Destination, Message};
    /// # use tidings_saga::Saga;
    /// # #[derive(serde::Serialize, serde::Deserialize)]
    /// struct MonthBegun { customer: String, month: u32 }
    /// # impl Message for MonthBegun {
    /// #     const NAME: &'static str = "month-begun.v1";
    /// #     const DESTINATION: Destination = Destination::topic("months");
    /// # }
    ///
    /// async fn subscription(this: MonthBegun, saga: Saga) -> Result<(), ()> {
    ///     saga.timer("month", Duration::from_secs(30 * 24 * 3600)).await;
    ///     saga.restart_with(MonthBegun { month: this.month + 1, ..this }).await
    /// }
    /// ```
    pub fn restart_with<M: Message, T>(&self, start: M) -> Restart<T> {
        let body = serde_json::value::to_raw_value(&start);
        Restart {
            saga: self.clone(),
            start: body.map(|body| (M::NAME, body)),
            of: PhantomData,
        }
    }

    /// Whether this saga runs the changed code: true for one that had not come as far when the program
    /// was replaced, and for all that start later. Sagas that were already past this place go on
    /// without the change.
    pub fn patched(&self, patch: &str) -> bool {
        self.0.lock().is_patched(patch)
    }

    /// Waits for all of them. The first refusal ends the waiting; what is still out is settled before
    /// the saga is undone.
    pub fn all<T: All>(&self, of: T) -> WaitAll<T> {
        WaitAll::new(of)
    }

    /// Waits for the one that comes first.
    pub fn first<A: Awaited, B: Awaited>(&self, of: (A, B)) -> WaitFirst<A, B> {
        WaitFirst::new(of)
    }
}

impl fmt::Debug for Saga {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Saga").field(&self.id()).finish()
    }
}

/// A step of which it is not said yet what becomes of it if the saga fails.
#[must_use = "say what becomes of the step if the saga fails: `.undo(…)`, `.no_undo()`, `.pivot()` or \
              `.child()`"]
pub struct Draft<C> {
    saga: Saga,
    asked: Asked,
    of: PhantomData<fn() -> C>,
}

impl<C: Step> Draft<C> {
    /// If the saga fails, the command that `undo` makes from the step's reply undoes it.
    pub fn undo<U: Step>(mut self, undo: impl Fn(C::Reply) -> U + Send + 'static) -> Planned<C> {
        let make: MakeUndo = Box::new(move |reply: &RawValue| {
            let reply = serde_json::from_str(reply.get()).map_err(|error| error.to_string())?;
            Outgoing::new(&undo(reply)).map_err(|error| error.to_string())
        });
        self.asked.make_undo = Some(make);
        self.ask(Undo::ByCommand)
    }

    /// Nothing is undone if the saga fails: the step changes nothing, or nothing that matters.
    pub fn no_undo(self) -> Planned<C> {
        self.ask(Undo::Never)
    }

    /// The step cannot be undone. Once it is done the saga does not fail any more: an error after it
    /// is for an operator.
    pub fn pivot(self) -> Planned<C> {
        self.ask(Undo::Pivot)
    }

    /// The step is a saga of its own, which the target runs with `Router::child_saga`: its result is the
    /// reply. If this saga fails, the other one is called off, or undoes all that it did; once it has
    /// passed its pivot it refuses that, and this saga is stuck.
    pub fn child(mut self) -> Planned<C> {
        if self.asked.cancel.is_some() {
            let mut run = self.saga.0.lock();
            run.break_off(format!(
                "the step `{}` is a saga of its own and is called off as such; take its `.cancel(…)` \
                 away",
                self.asked.name
            ));
        }
        let call_off = || CallOff::to(C::TARGET, C::NAME);
        self.asked.cancel = Some(call_off());
        self.asked.make_undo = Some(Box::new(move |_| call_off()));
        self.ask(Undo::ByCommand)
    }

    /// As long as nobody knows whether the step was done, this cancels it: its target must then never
    /// do it, or say that it has. Without it, a saga that fails waits for the step's reply.
    pub fn cancel<U: Step>(mut self, cancel: U) -> Self {
        let cancel = Outgoing::new(&cancel).map_err(|error| error.to_string());
        self.asked.cancel = Some(cancel);
        self
    }

    /// How long the target has for its reply. After it the step fails with
    /// [`StepError::TimedOut`]; a reply that comes later is undone.
    pub fn deadline(mut self, after: Duration) -> Self {
        let after = SignedDuration::try_from(after).unwrap_or(SignedDuration::MAX);
        self.asked.deadline = Some(after);
        self
    }

    /// How often the step is sent again when it is refused for the moment.
    pub fn retry(mut self, times: u32) -> Self {
        self.asked.retries = times;
        self
    }

    fn ask(mut self, undo: Undo) -> Planned<C> {
        self.asked.undo = undo;
        let name = self.asked.name.clone();
        let mut run = self.saga.0.lock();
        run.check_name("a step", &name);
        run.asked.push(self.asked);
        drop(run);
        Planned {
            saga: self.saga,
            name,
            is_taken: false,
            of: PhantomData,
        }
    }
}

/// A step that was asked for. Awaiting it gives the reply of its target.
#[must_use = "await it, or give it to `Saga::all` or `Saga::first`"]
pub struct Planned<C> {
    saga: Saga,
    name: Box<str>,
    is_taken: bool,
    of: PhantomData<fn() -> C>,
}

impl<C> Drop for Planned<C> {
    fn drop(&mut self) {
        if !self.is_taken {
            self.saga.0.lock().dropped.push(self.name.clone());
        }
    }
}

/// A time that is waited for.
#[must_use = "await it, or give it to `Saga::first`"]
pub struct Timer {
    saga: Saga,
    name: Box<str>,
}

/// A signal that is waited for.
#[must_use = "await it, or give it to `Saga::first`"]
pub struct Signal<T> {
    saga: Saga,
    name: Box<str>,
    of: PhantomData<fn() -> T>,
}

/// A new beginning; made by [`Saga::restart_with`].
#[must_use = "await it"]
pub struct Restart<T> {
    saga: Saga,
    start: Result<(&'static str, Box<RawValue>), serde_json::Error>,
    of: PhantomData<fn() -> T>,
}

impl<T> Future for Restart<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<T> {
        let mut run = self.saga.0.lock();
        match &self.start {
            Ok((name, body)) => {
                let body = body.clone();
                run.anew.get_or_insert(Anew { name, body });
            }
            Err(error) => run.break_off(format!(
                "the message that it is to begin anew with cannot be written as JSON: {error}"
            )),
        }
        run.wait(task.waker());
        Poll::Pending
    }
}

/// Why a step was not done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StepError {
    /// Its target refused it, for this reason.
    Refused {
        /// The step.
        step: Box<str>,
        /// What the target said.
        reason: Box<str>,
    },
    /// No reply came before its deadline.
    TimedOut {
        /// The step.
        step: Box<str>,
    },
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { reason, .. } => f.write_str(reason),
            Self::TimedOut { step } => write!(f, "`{step}` was not answered in time"),
        }
    }
}

impl std::error::Error for StepError {}

/// What a saga can await: [`Planned`] steps, [`Timer`]s and [`Signal`]s.
pub trait Awaited: Unpin + sealed::Awaited {}

impl<T: Unpin + sealed::Awaited> Awaited for T {}

/// Several steps, for [`Saga::all`].
pub trait All: Unpin + sealed::All {}

impl<T: Unpin + sealed::All> All for T {}

mod sealed {
    use super::{Saga, StepError};

    pub trait Awaited {
        type Output;

        fn saga(&self) -> &Saga;

        /// Its outcome if it is there, with the place of the entry that brought it.
        fn look(&mut self) -> Option<(usize, Self::Output)>;

        /// The outcome was used.
        fn taken(&mut self) {}
    }

    pub trait All {
        type Replies;

        fn saga(&self) -> &Saga;

        /// All replies, or the error that came first; `None` while that is not known.
        fn look(&mut self) -> Option<Result<Self::Replies, StepError>>;
    }
}

impl<C: Step> sealed::Awaited for Planned<C> {
    type Output = Result<C::Reply, StepError>;

    fn saga(&self) -> &Saga {
        &self.saga
    }

    fn look(&mut self) -> Option<(usize, Self::Output)> {
        let mut run = self.saga.0.lock();
        let step = self.name.clone();
        match run.settled(&step)?.clone() {
            Settled::Done(place, reply) => match serde_json::from_str(reply.get()) {
                Ok(reply) => Some((place, Ok(reply))),
                Err(error) => {
                    run.break_off(format!(
                        "the reply of the step `{step}` cannot be read: {error}"
                    ));
                    None
                }
            },
            Settled::Refused(place, reason) => {
                Some((place, Err(StepError::Refused { step, reason })))
            }
            Settled::TimedOut(place) => Some((place, Err(StepError::TimedOut { step }))),
        }
    }

    fn taken(&mut self) {
        self.is_taken = true;
    }
}

impl sealed::Awaited for Timer {
    type Output = ();

    fn saga(&self) -> &Saga {
        &self.saga
    }

    fn look(&mut self) -> Option<(usize, ())> {
        let place = self.saga.0.lock().fired(&self.name)?;
        Some((place, ()))
    }
}

impl<T: DeserializeOwned> sealed::Awaited for Signal<T> {
    type Output = T;

    fn saga(&self) -> &Saga {
        &self.saga
    }

    fn look(&mut self) -> Option<(usize, T)> {
        let mut run = self.saga.0.lock();
        let (place, body) = run.signal(&self.name)?.clone();
        match serde_json::from_str(body.get()) {
            Ok(signal) => Some((place, signal)),
            Err(error) => {
                let name = &self.name;
                run.break_off(format!("the signal `{name}` cannot be read: {error}"));
                None
            }
        }
    }

    fn taken(&mut self) {
        let mut run = self.saga.0.lock();
        *run.taken.entry(self.name.clone()).or_default() += 1;
    }
}

macro_rules! awaited_are_futures {
    ($([$($generics:tt)*] $of:ty;)+) => {$(
        impl<$($generics)*> Future for $of {
            type Output = <Self as sealed::Awaited>::Output;

            fn poll(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Self::Output> {
                use sealed::Awaited as _;
                match self.look() {
                    Some((_, output)) => {
                        self.taken();
                        Poll::Ready(output)
                    }
                    None => {
                        self.saga().0.lock().wait(task.waker());
                        Poll::Pending
                    }
                }
            }
        }
    )+};
}

awaited_are_futures! {
    [C: Step] Planned<C>;
    [] Timer;
    [T: DeserializeOwned] Signal<T>;
}

impl<C> fmt::Debug for Planned<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Planned").field(&self.name).finish()
    }
}

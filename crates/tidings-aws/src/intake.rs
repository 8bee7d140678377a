//! What a transport receives of one queue: messages that wait to be handed out, and those that are out.
//!
//! All plain subscriptions of a transport to one queue share an intake; an ordered one has an intake of its own.
//! Tasks ([`work`](crate::work)) put in what they received, renew how long it is hidden from others, and delete what
//! was acknowledged. A settlement finds its message by a tag that is used once, and only while the message is still
//! hidden: later somebody else may have it, and the delivery is stale.
//!
//! What is given back is handed out again from here, in its old place, while somebody receives; else it goes back
//! to the queue. Nothing of that is written down: after a crash it comes again from SQS.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tidings_core::{Attempt, Envelope, Received, TransportError};
use tokio::{sync::Notify, task::JoinHandle};

/// A message that this transport has.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    /// What SQS knows this receive of it by.
    pub(crate) receipt: Arc<str>,
    /// What SQS knows the message by.
    pub(crate) sqs_id: Arc<str>,
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) history: Vec<Attempt>,
    pub(crate) failures: u32,
    pub(crate) redelivered: bool,
    /// How often it was handed out before, by whomever.
    pub(crate) delivered_before: u32,
    received_at: Instant,
    /// Others may get it from then on.
    hidden_until: Instant,
    /// What it is ordered by among those that wait.
    turn: u64,
}

/// What came in one receive.
pub(crate) struct Arrival {
    pub(crate) receipt: String,
    pub(crate) sqs_id: String,
    /// How often SQS has handed it out, this time included.
    pub(crate) receives: u32,
    pub(crate) received: Received,
}

/// A message by its number here, and what SQS knows this receive of it by.
pub(crate) type Numbered = (u64, Arc<str>);

/// How an out message is ended.
pub(crate) enum End {
    /// For good.
    Settled,
    /// Back to its place.
    GivenBack,
    /// Behind what waits, maybe with one failure more.
    Later(Option<Attempt>),
}

#[derive(Default)]
struct State {
    /// Everything that is here, also what is to be deleted.
    held: HashMap<u64, Held>,
    /// May be handed out.
    ready: BTreeMap<u64, u64>,
    /// Handed out: the message, and the stream that has it.
    out: HashMap<u64, (u64, u64)>,
    /// Acknowledged, and to be deleted.
    deleting: VecDeque<u64>,
    /// To become visible again, in their order.
    returning: VecDeque<Arc<str>>,
    streams: HashMap<u64, Stream>,
    last_number: u64,
    /// Since when there is no stream.
    alone_since: Option<Instant>,
    /// Takes no more streams; everything that is out is stale.
    is_over: bool,
    failure: Option<String>,
}

struct Stream {
    prefetch: usize,
    out: usize,
}

/// What is received of one queue.
pub(crate) struct Intake {
    pub(crate) queue: Arc<str>,
    /// From which queue it is received: the same, or that of the group of which it is a partition.
    pub(crate) source: Arc<str>,
    /// Whether it ends with its stream, at once.
    pub(crate) is_ordered: bool,
    state: Mutex<State>,
    /// Something has changed.
    changed: Notify,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

/// What a stream gets.
pub(crate) enum Next {
    Message(u64, Box<Held>),
    Nothing,
    /// It ends, maybe with an error.
    Over(Option<TransportError>),
}

impl Intake {
    pub(crate) fn new(queue: Arc<str>, source: Arc<str>, is_ordered: bool) -> Arc<Self> {
        Arc::new(Self {
            queue,
            source,
            is_ordered,
            state: Mutex::new(State {
                alone_since: Some(Instant::now()),
                ..State::default()
            }),
            changed: Notify::new(),
            tasks: Mutex::default(),
        })
    }

    pub(crate) fn add_task(&self, task: JoinHandle<()>) {
        self.tasks.lock().push(task);
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.tasks.lock().iter().all(JoinHandle::is_finished)
    }

    pub(crate) fn take_tasks(&self) -> Vec<JoinHandle<()>> {
        std::mem::take(&mut *self.tasks.lock())
    }

    /// Waits until `look` finds something, looking again after each change, and at `until` at the latest if it says
    /// so.
    pub(crate) async fn wait<T>(&self, mut look: impl FnMut(&Self) -> Look<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Before looking, so that no change in between is missed.
            changed.as_mut().enable();
            match look(self) {
                Look::Found(found) => return found,
                Look::Not => changed.await,
                Look::NotUntil(until) => {
                    let _ = tokio::time::timeout_at(until.into(), changed).await;
                }
            }
        }
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let done = change(&mut self.state.lock());
        self.changed.notify_waiters();
        done
    }

    // For streams.

    /// A new stream; `None` if it is too late for one.
    pub(crate) fn add_stream(&self, prefetch: usize) -> Option<u64> {
        self.change(|state| {
            if state.is_over {
                return None;
            }
            let stream = state.number();
            state.streams.insert(stream, Stream { prefetch, out: 0 });
            state.alone_since = None;
            Some(stream)
        })
    }

    pub(crate) fn remove_stream(&self, stream: u64) {
        self.change(|state| {
            state.streams.remove(&stream);
            if state.streams.is_empty() {
                state.alone_since = Some(Instant::now());
                if self.is_ordered {
                    state.over();
                }
            }
        });
    }

    /// The next message for a stream.
    pub(crate) async fn next(&self, stream: u64) -> Next {
        self.wait(|intake| match intake.state.lock().hand_out(stream) {
            Next::Nothing => Look::Not,
            next => Look::Found(next),
        })
        .await
    }

    // For settlements.

    pub(crate) fn is_out(&self, tag: u64) -> bool {
        self.state.lock().out_of(tag).is_some()
    }

    /// What SQS knows an out message by.
    pub(crate) fn sqs_id(&self, tag: u64) -> Option<Arc<str>> {
        let state = self.state.lock();
        state.out_of(tag).map(|held| Arc::clone(&held.sqs_id))
    }

    /// Ends an out message; false if it is stale.
    pub(crate) fn end(&self, tag: u64, end: End) -> bool {
        self.change(|state| state.end(tag, end))
    }

    // For the tasks.

    /// How many are to be received now; none if it is over.
    pub(crate) fn room(&self) -> Look<Option<usize>> {
        let state = self.state.lock();
        if state.is_over {
            return Look::Found(None);
        }
        let free = state.streams.values();
        let free: usize = free.map(|it| it.prefetch.saturating_sub(it.out)).sum();
        match free > state.ready.len() {
            true => Look::Found(Some(free)),
            false => Look::Not,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.state.lock().is_over
    }

    /// Messages came, hidden for so long from now on.
    pub(crate) fn put(&self, arrivals: Vec<Arrival>, hidden: Duration) {
        self.change(|state| {
            let now = Instant::now();
            for arrival in arrivals {
                if state.is_over {
                    state.returning.push_back(arrival.receipt.into());
                    continue;
                }
                let turn = state.number();
                let held = Held {
                    receipt: arrival.receipt.into(),
                    sqs_id: arrival.sqs_id.into(),
                    envelope: Arc::new(arrival.received.envelope),
                    history: arrival.received.history,
                    failures: arrival.received.failures,
                    redelivered: arrival.receives > 1,
                    delivered_before: arrival.receives.saturating_sub(1),
                    received_at: now,
                    hidden_until: now + hidden,
                    turn,
                };
                state.held.insert(turn, held);
                state.ready.insert(turn, turn);
            }
        });
    }

    /// Everything that is to stay hidden from others, oldest first; what has been here for `longest` is not renewed
    /// any more.
    pub(crate) fn to_renew(&self, longest: Duration) -> Vec<Numbered> {
        let state = self.state.lock();
        let fresh = state
            .held
            .iter()
            .filter(|(_, held)| held.received_at.elapsed() < longest);
        let mut all: Vec<_> = fresh
            .map(|(number, held)| (*number, Arc::clone(&held.receipt)))
            .collect();
        all.sort_unstable_by_key(|(number, _)| *number);
        all
    }

    /// These are hidden until then.
    pub(crate) fn renewed(&self, numbers: &[u64], until: Instant) {
        let mut state = self.state.lock();
        for number in numbers {
            if let Some(held) = state.held.get_mut(number) {
                held.hidden_until = until;
            }
        }
    }

    /// This is somebody else's, or will be.
    pub(crate) fn lose(&self, number: u64) {
        self.change(|state| state.forget(number));
    }

    /// Lets go of what is not hidden any more; how many that were which somebody was handling.
    pub(crate) fn lose_what_is_visible(&self) -> usize {
        self.change(|state| {
            let now = Instant::now();
            let visible = state
                .held
                .iter()
                .filter(|(_, held)| held.hidden_until <= now);
            let visible: Vec<u64> = visible.map(|(number, _)| *number).collect();
            let out = state.out.values();
            let out = out.filter(|(number, _)| visible.contains(number)).count();
            for number in visible {
                state.forget(number);
            }
            out
        })
    }

    /// What is to be deleted next, `count` at most; none if nothing will be any more.
    pub(crate) fn deletions(&self, count: usize) -> Look<Option<Vec<Numbered>>> {
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.deleting.is_empty() {
            return match state.is_over {
                true => Look::Found(None),
                false => Look::Not,
            };
        }
        let count = count.min(state.deleting.len());
        let next = state.deleting.drain(..count);
        let held = &state.held;
        let next =
            next.filter_map(|number| Some((number, Arc::clone(&held.get(&number)?.receipt))));
        Look::Found(Some(next.collect()))
    }

    /// These could not be deleted yet.
    pub(crate) fn delete_again(&self, numbers: Vec<u64>) {
        self.change(|state| {
            for number in numbers.into_iter().rev() {
                if state.held.contains_key(&number) {
                    state.deleting.push_front(number);
                }
            }
        });
    }

    /// What is to become visible again, in its order.
    pub(crate) fn take_returning(&self) -> Vec<Arc<str>> {
        self.state.lock().returning.drain(..).collect()
    }

    /// When the task that keeps it has something to do: now, or then.
    pub(crate) fn to_keep(&self, handover: Duration, renewal: Instant) -> Look<()> {
        let mut state = self.state.lock();
        if state.is_over || !state.returning.is_empty() {
            return Look::Found(());
        }
        let mut until = renewal;
        if let Some(since) = state.alone_since {
            let end = since + handover;
            if state.out.is_empty() || end <= Instant::now() {
                state.over();
                drop(state);
                self.changed.notify_waiters();
                return Look::Found(());
            }
            until = until.min(end);
        }
        match until <= Instant::now() {
            true => Look::Found(()),
            false => Look::NotUntil(until),
        }
    }

    /// Ends it: what is out is stale and goes back, streams end.
    pub(crate) fn over(&self) {
        self.change(State::over);
    }

    /// Ends it with an error for its streams.
    pub(crate) fn fail(&self, why: String) {
        self.change(|state| {
            state.failure = Some(why);
            state.over();
        });
    }
}

/// What somebody who waits found.
pub(crate) enum Look<T> {
    Found(T),
    Not,
    NotUntil(Instant),
}

impl State {
    /// Never the same one again.
    fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    fn hand_out(&mut self, stream: u64) -> Next {
        if self.is_over {
            let failure = self.failure.clone().map(TransportError::fatal);
            return Next::Over(failure);
        }
        let Some(Stream { prefetch, out }) = self.streams.get(&stream) else {
            return Next::Over(None);
        };
        if out >= prefetch {
            return Next::Nothing;
        }
        while let Some((_, number)) = self.ready.pop_first() {
            let tag = self.number();
            let Some(held) = self.held.get_mut(&number) else {
                continue;
            };
            if held.hidden_until <= Instant::now() {
                self.held.remove(&number);
                continue;
            }
            let handed = Box::new(held.clone());
            held.delivered_before = held.delivered_before.saturating_add(1);
            self.out.insert(tag, (number, stream));
            if let Some(stream) = self.streams.get_mut(&stream) {
                stream.out += 1;
            }
            return Next::Message(tag, handed);
        }
        Next::Nothing
    }

    /// The message that is out with a tag, while it is hidden from others.
    fn out_of(&self, tag: u64) -> Option<&Held> {
        let (number, _) = self.out.get(&tag)?;
        let held = self.held.get(number)?;
        (held.hidden_until > Instant::now()).then_some(held)
    }

    fn end(&mut self, tag: u64, end: End) -> bool {
        let is_there = self.out_of(tag).is_some();
        let Some((number, stream)) = self.out.remove(&tag) else {
            return false;
        };
        if let Some(stream) = self.streams.get_mut(&stream) {
            stream.out -= 1;
        }
        if !is_there {
            self.held.remove(&number);
            return false;
        }
        let turn = self.number();
        let Some(held) = self.held.get_mut(&number) else {
            return false;
        };
        match end {
            End::Settled => {
                self.deleting.push_back(number);
                return true;
            }
            End::GivenBack => held.redelivered = true,
            End::Later(attempt) => {
                held.redelivered = false;
                held.turn = turn;
                if let Some(attempt) = attempt {
                    attempt.add_to(&mut held.history);
                    held.failures = held.failures.saturating_add(1);
                }
            }
        }
        self.ready.insert(held.turn, number);
        true
    }

    fn over(&mut self) {
        if self.is_over {
            return;
        }
        self.is_over = true;
        let ready = std::mem::take(&mut self.ready);
        let mut back: BTreeMap<u64, u64> = ready;
        for (number, _) in std::mem::take(&mut self.out).into_values() {
            if let Some(held) = self.held.get(&number) {
                back.insert(held.turn, number);
            }
        }
        for number in back.into_values() {
            if let Some(held) = self.held.remove(&number) {
                self.returning.push_back(held.receipt);
            }
        }
        self.streams.clear();
    }

    fn forget(&mut self, number: u64) {
        let Some(held) = self.held.remove(&number) else {
            return;
        };
        self.ready.remove(&held.turn);
        let tags = self.out.iter().filter(|(_, (it, _))| *it == number);
        let tags: Vec<u64> = tags.map(|(tag, _)| *tag).collect();
        for tag in tags {
            if let Some((_, stream)) = self.out.remove(&tag)
                && let Some(stream) = self.streams.get_mut(&stream)
            {
                stream.out -= 1;
            }
        }
    }
}

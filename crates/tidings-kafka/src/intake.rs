//! What a transport receives of one queue: messages that wait to be handed out, and those that are out.
//!
//! All subscriptions of a transport to one queue share an intake, and with it one member of the queue's consumer
//! group. A thread ([`polling`](crate::polling)) puts in what it fetched; streams take out; a settlement finds
//! its message by a tag that is used once. When a partition goes elsewhere, its messages and tags go from here:
//! whoever holds one of them has a stale delivery, and settling it is an error, never the settlement of a later
//! delivery of the same message.
//!
//! What is given back is handed out again from here, in its old place, while the partition stays. Nothing of
//! that is written down: after a crash it comes again from Kafka.

mod partition;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use tidings_core::{Attempt, Envelope, REPLAY_HEADER, Received, TransportError};
use tokio::sync::{Notify, watch};

use crate::{
    bindings::Wanted,
    window::{Admitted, Progress},
};

pub(crate) use partition::Commit;
use partition::{LEASE_WAIT_MAX, Partition};

/// How many messages of a partition may stand behind one that is not settled.
const WINDOW_MAX: usize = 20_000;
/// How many bodies may wait in memory, in bytes, before fetching pauses.
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How many more messages than the prefetch may wait in memory before fetching pauses: enough for the time that the
/// commit of a lease takes.
const WAITING_MORE: usize = 2048;
/// A partition of a topic.
pub(crate) type Place = (Arc<str>, i32);
/// A partition while it is assigned, and the number of that assignment.
pub(crate) type Assigned = (Place, u64);

/// A message as it waits or is out.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) place: Place,
    pub(crate) offset: i64,
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) history: Vec<Attempt>,
    pub(crate) failures: u32,
    pub(crate) redelivered: bool,
    /// What it is ordered by among those that wait.
    turn: u64,
}

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
    partitions: HashMap<Place, Partition>,
    /// May be handed out.
    ready: BTreeMap<u64, Held>,
    /// Handed out: the message, and the stream that has it.
    out: HashMap<u64, (Held, u64)>,
    streams: HashMap<u64, Stream>,
    last_number: u64,
    waiting_bytes: usize,
    /// The thread waits for room.
    wants_room: bool,
    /// Since when there is no stream.
    alone_since: Option<Instant>,
    /// Takes no more streams; everything that is out is stale.
    is_over: bool,
    has_left: bool,
    failure: Option<String>,
}

struct Stream {
    prefetch: usize,
    out: usize,
}

/// What is received of one queue.
pub(crate) struct Intake {
    pub(crate) queue: Arc<str>,
    /// Whether it ends with its stream, and leaves at once.
    pub(crate) is_ordered: bool,
    state: Mutex<State>,
    /// For streams: something may be there.
    changed: Notify,
    /// For the thread: something was settled.
    settled: Condvar,
    /// For the thread: there is much room again.
    room: Condvar,
    /// The thread has joined the group, or has ended.
    joined: watch::Sender<bool>,
    /// For whoever closes: the thread has ended.
    ended: Notify,
}

/// What a stream gets.
pub(crate) enum Next {
    Message(u64, Box<Held>),
    Nothing,
    /// It ends, maybe with an error.
    Over(Option<TransportError>),
}

impl Intake {
    pub(crate) fn new(queue: Arc<str>, is_ordered: bool) -> Arc<Self> {
        Arc::new(Self {
            queue,
            is_ordered,
            state: Mutex::new(State {
                alone_since: Some(Instant::now()),
                ..State::default()
            }),
            changed: Notify::new(),
            settled: Condvar::new(),
            room: Condvar::new(),
            joined: watch::Sender::new(false),
            ended: Notify::new(),
        })
    }

    // For streams.

    /// A new stream; `None` if it is too late for one.
    pub(crate) fn add_stream(&self, prefetch: usize) -> Option<u64> {
        let mut state = self.state.lock();
        if state.is_over {
            return None;
        }
        let stream = state.number();
        state.streams.insert(stream, Stream { prefetch, out: 0 });
        state.alone_since = None;
        Some(stream)
    }

    pub(crate) fn remove_stream(&self, stream: u64) {
        let mut state = self.state.lock();
        state.streams.remove(&stream);
        if state.streams.is_empty() {
            state.alone_since = Some(Instant::now());
            if self.is_ordered {
                state.over();
            }
        }
        drop(state);
        self.changed.notify_waiters();
        self.settled.notify_all();
    }

    /// The next message for a stream.
    pub(crate) async fn next(&self, stream: u64) -> Next {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Before looking, so that no change in between is missed.
            changed.as_mut().enable();
            match self.hand_out(stream) {
                Next::Nothing => {}
                next => return next,
            }
            changed.await;
        }
    }

    fn hand_out(&self, stream: u64) -> Next {
        let mut state = self.state.lock();
        let next = state.hand_out(stream);
        if state.wants_room && !state.is_full(2) {
            state.wants_room = false;
            self.room.notify_one();
        }
        next
    }

    // For settlements.

    pub(crate) fn is_out(&self, tag: u64) -> bool {
        self.state.lock().out.contains_key(&tag)
    }

    /// Ends an out message; false if it is stale.
    pub(crate) fn end(&self, tag: u64, end: End) -> bool {
        let mut state = self.state.lock();
        let Some((held, stream)) = state.out.remove(&tag) else {
            return false;
        };
        if let Some(stream) = state.streams.get_mut(&stream) {
            stream.out -= 1;
        }
        state.end(held, end);
        drop(state);
        self.changed.notify_waiters();
        self.settled.notify_all();
        true
    }

    // For the thread.

    /// Partitions were assigned: where each begins, and what the consumer before left.
    pub(crate) fn assign(&self, partitions: Vec<(Place, i64, Progress, Wanted)>) {
        let mut state = self.state.lock();
        for (place, position, before, wanted) in partitions {
            let partition = Partition::new(state.number(), position, before, wanted);
            state.partitions.insert(place, partition);
        }
    }

    pub(crate) fn assigned(&self) -> Vec<Place> {
        self.state.lock().partitions.keys().cloned().collect()
    }

    /// What is wanted of the topics has changed.
    pub(crate) fn want(&self, of_topics: impl Fn(&str) -> Wanted) {
        for (place, partition) in &mut self.state.lock().partitions {
            partition.wanted = of_topics(&place.0);
        }
    }

    /// Nothing more of these is handed out; waits until what is out of them is settled, at most until
    /// `deadline`.
    pub(crate) fn drain(&self, places: &HashSet<Place>, deadline: Instant) {
        let mut state = self.state.lock();
        for place in places {
            if let Some(partition) = state.partitions.get_mut(place) {
                partition.is_leaving = true;
            }
        }
        let is_out = |state: &State| {
            let mut out = state.out.values();
            out.any(|(held, _)| places.contains(&held.place))
        };
        while is_out(&state) && !self.settled.wait_until(&mut state, deadline).timed_out() {}
    }

    /// These went elsewhere. What is out of them is stale from now on.
    pub(crate) fn unassign(&self, places: &HashSet<Place>) {
        let mut state = self.state.lock();
        state.partitions.retain(|place, _| !places.contains(place));
        let bytes: usize = state
            .ready
            .values()
            .filter(|held| places.contains(&held.place))
            .map(Held::bytes)
            .sum();
        state.waiting_bytes = state.waiting_bytes.saturating_sub(bytes);
        state.ready.retain(|_, held| !places.contains(&held.place));
        let stale: Vec<u64> = state
            .out
            .iter()
            .filter(|(_, (held, _))| places.contains(&held.place))
            .map(|(tag, _)| *tag)
            .collect();
        for tag in stale {
            state.forget_out(tag);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// True if nothing of this would be passed over as not wanted.
    pub(crate) fn wants_all(&self, fetched: &[(Place, i64, Received)]) -> bool {
        let state = self.state.lock();
        fetched.iter().all(|(place, offset, _)| {
            let partition = state.partitions.get(place);
            partition.is_none_or(|it| it.wanted.contains(place.1, *offset))
        })
    }

    /// Messages were fetched.
    pub(crate) fn put(&self, fetched: Vec<(Place, i64, Received)>) {
        let mut state = self.state.lock();
        for (place, offset, received) in fetched {
            let turn = state.number();
            let Some(partition) = state.partitions.get_mut(&place) else {
                continue;
            };
            let is_wanted = partition.wanted.contains(place.1, offset);
            let redelivered = match partition.window.admit(offset, is_wanted) {
                Admitted::Not => continue,
                Admitted::New => false,
                Admitted::Again => true,
            };
            let mut envelope = received.envelope;
            if let Some(replay) = partition.wanted.replay_of(place.1, offset)
                && envelope.header(REPLAY_HEADER).is_none()
            {
                let header = (REPLAY_HEADER.into(), replay.into());
                envelope.headers.push(header);
            }
            let held = Held {
                place,
                offset,
                envelope: Arc::new(envelope),
                history: received.history,
                failures: received.failures,
                redelivered,
                turn,
            };
            let bytes = held.bytes();
            if offset < partition.lease {
                state.ready.insert(turn, held);
            } else {
                partition.unleased.insert(offset, held);
                partition.unleased_since.get_or_insert_with(Instant::now);
            }
            state.waiting_bytes += bytes;
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// True if fetched messages wait for a lease.
    pub(crate) fn waits_for_a_lease(&self) -> bool {
        let state = self.state.lock();
        let mut partitions = state.partitions.values();
        partitions.any(|partition| !partition.unleased.is_empty())
    }

    /// What is to be committed of all partitions, with leases of what is handed out next.
    pub(crate) fn commits_due(&self) -> Vec<Commit> {
        let mut state = self.state.lock();
        let partitions = state.partitions.iter_mut();
        let due = partitions.filter_map(|(place, partition)| partition.due_with_lease(place));
        due.collect()
    }

    /// What is to be committed of `places` (of all, if `None`) when they go elsewhere: exactly what was handed out
    /// stands in it instead of the lease.
    pub(crate) fn last_commits_due(&self, places: Option<&HashSet<Place>>) -> Vec<Commit> {
        let state = self.state.lock();
        let partitions = state.partitions.iter();
        let wanted =
            partitions.filter(|(place, _)| places.is_none_or(|places| places.contains(*place)));
        let due = wanted.filter_map(|(place, partition)| partition.due(place, 0));
        due.collect()
    }

    /// This was committed: what it leases may be handed out.
    pub(crate) fn committed(&self, commits: Vec<Commit>) {
        let mut state = self.state.lock();
        for Commit {
            assignment,
            place,
            watermark,
            text,
        } in commits
        {
            let partition = state.partitions.get_mut(&place);
            let Some(partition) = partition.filter(|it| it.assignment == assignment) else {
                continue;
            };
            let leased = Progress::parse(watermark, &text).handed_out;
            if leased > partition.lease {
                partition.lease = leased;
                partition.leased_at = Some(Instant::now());
            }
            partition.committed = Some((watermark, text));
            for held in partition.take_leased() {
                state.ready.insert(held.turn, held);
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Hands out without a lease what has waited too long for one: while members come and go, nothing is
    /// committed, and handlers are not to wait for that.
    pub(crate) fn stop_waiting(&self) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let mut is_new = false;
        for partition in state.partitions.values_mut() {
            let since = partition.unleased_since;
            if since.is_some_and(|since| since.elapsed() >= LEASE_WAIT_MAX) {
                partition.lease = partition.lease.max(partition.window.next());
                for held in partition.take_leased() {
                    state.ready.insert(held.turn, held);
                    is_new = true;
                }
            }
        }
        if is_new {
            self.changed.notify_waiters();
        }
    }

    /// True if so much waits that nothing more is to be fetched.
    pub(crate) fn is_full(&self) -> bool {
        self.state.lock().is_full(1)
    }

    /// Waits until there is much room again, at most for `time`.
    pub(crate) fn wait_for_room(&self, time: Duration) {
        let mut state = self.state.lock();
        if !state.is_over && state.is_full(2) {
            state.wants_room = true;
            self.room.wait_for(&mut state, time);
            state.wants_room = false;
        }
    }

    /// Which partitions are to rest now. `resting` are those that do: they rest until there is much room again,
    /// because a partition that is paused loses what was fetched ahead.
    pub(crate) fn to_rest(&self, resting: &HashSet<Assigned>) -> HashSet<Assigned> {
        let state = self.state.lock();
        let partitions = state.partitions.iter();
        let partitions = partitions.map(|(place, it)| ((place.clone(), it.assignment), it));
        // One that rests goes on when half of what stopped it is gone.
        let is_full = [1, 2].map(|factor| state.is_full(factor));
        let to_rest = partitions.filter(|(assigned, partition)| {
            let factor = if resting.contains(assigned) { 2 } else { 1 };
            is_full[factor - 1] || partition.window.len() * factor > WINDOW_MAX
        });
        to_rest.map(|(assigned, _)| assigned).collect()
    }

    /// True if nobody needs this any more: it is over, or has had no stream for so long that what is out is not
    /// waited for. Takes no more streams then.
    pub(crate) fn is_done(&self, handover_timeout: Duration) -> bool {
        let mut state = self.state.lock();
        let is_left = state
            .alone_since
            .is_some_and(|since| state.out.is_empty() || since.elapsed() >= handover_timeout);
        if is_left {
            state.is_over = true;
        }
        state.is_over
    }

    /// Ends it: what is out is stale, streams end.
    pub(crate) fn over(&self) {
        self.state.lock().over();
        self.changed.notify_waiters();
        self.settled.notify_all();
    }

    /// Ends it with an error for its streams.
    pub(crate) fn fail(&self, why: String) {
        self.state.lock().failure = Some(why);
        self.over();
    }

    /// For the thread: it has left the group.
    pub(crate) fn left(&self) {
        self.state.lock().has_left = true;
        self.joined();
        self.ended.notify_one();
    }

    /// For the thread: it was told of an assignment, maybe an empty one.
    pub(crate) fn joined(&self) {
        self.joined.send_replace(true);
    }

    pub(crate) fn has_joined(&self) -> bool {
        *self.joined.borrow()
    }

    /// Waits until the thread has joined the group.
    pub(crate) async fn wait_until_joined(&self) {
        let _ = self.joined.subscribe().wait_for(|joined| *joined).await;
    }

    pub(crate) fn has_left(&self) -> bool {
        self.state.lock().has_left
    }

    /// Waits until the thread has left the group.
    pub(crate) async fn wait_until_left(&self) {
        self.ended.notified().await;
        // For others who wait.
        self.ended.notify_one();
    }

    /// The offset after the last one that was fetched of a partition.
    pub(crate) fn position(&self, place: &Place) -> Option<i64> {
        let state = self.state.lock();
        state.partitions.get(place).map(|it| it.window.next())
    }
}

impl State {
    /// Whether more waits than the `factor`th part of what may.
    fn is_full(&self, factor: usize) -> bool {
        let prefetch: usize = self.streams.values().map(|stream| stream.prefetch).sum();
        let unleased = self.partitions.values().map(|it| it.unleased.len());
        let waiting = self.ready.len() + unleased.sum::<usize>();
        waiting * factor > prefetch + WAITING_MORE
            || self.waiting_bytes * factor > WAITING_BYTES_MAX
    }

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
        let Some(Stream { prefetch, out }) = self.streams.get_mut(&stream) else {
            return Next::Over(None);
        };
        if out >= prefetch {
            return Next::Nothing;
        }
        let partitions = &self.partitions;
        let may_go = |held: &Held| partitions.get(&held.place).is_some_and(|it| !it.is_leaving);
        let first = self.ready.iter().find(|(_, held)| may_go(held));
        let Some(turn) = first.map(|(turn, _)| *turn) else {
            return Next::Nothing;
        };
        *out += 1;
        let Some(held) = self.ready.remove(&turn) else {
            return Next::Nothing;
        };
        self.waiting_bytes = self.waiting_bytes.saturating_sub(held.bytes());
        if let Some(partition) = self.partitions.get_mut(&held.place) {
            partition.window.hand_out(held.offset);
        }
        let tag = self.number();
        self.out.insert(tag, (held.clone(), stream));
        Next::Message(tag, Box::new(held))
    }

    fn end(&mut self, mut held: Held, end: End) {
        match end {
            End::Settled => {
                if let Some(partition) = self.partitions.get_mut(&held.place) {
                    partition.window.settle(held.offset);
                }
                return;
            }
            End::GivenBack => held.redelivered = true,
            End::Later(attempt) => {
                held.redelivered = false;
                held.turn = self.number();
                if let Some(attempt) = attempt {
                    attempt.add_to(&mut held.history);
                    held.failures = held.failures.saturating_add(1);
                }
            }
        }
        self.waiting_bytes += held.bytes();
        self.ready.insert(held.turn, held);
    }

    fn over(&mut self) {
        self.is_over = true;
        self.ready.clear();
        self.waiting_bytes = 0;
        self.out.clear();
    }

    fn forget_out(&mut self, tag: u64) {
        if let Some((_, stream)) = self.out.remove(&tag)
            && let Some(stream) = self.streams.get_mut(&stream)
        {
            stream.out -= 1;
        }
    }
}

impl Held {
    /// About as much memory as it takes.
    fn bytes(&self) -> usize {
        self.envelope.body.len() + 512
    }
}

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

mod out;
mod partition;
mod state;

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};
use tidings_core::{Attempt, Envelope, REPLAY_HEADER, TransportError};
use tokio::sync::{Notify, watch};

use crate::{
    bindings::Wanted,
    window::{Admitted, Progress},
};

pub(crate) use partition::Commit;
use partition::{LEASE_WAIT_MAX, Partition};
pub(crate) use state::Held;
use state::{State, Stream};

/// How many messages of a partition may stand behind one that is not settled.
const WINDOW_MAX: usize = 20_000;
/// A partition of a topic.
pub(crate) type Place = (Arc<str>, i32);
/// A partition while it is assigned, and the number of that assignment.
pub(crate) type Assigned = (Place, u64);

/// A message that was fetched.
pub(crate) struct Fetched {
    pub(crate) place: Place,
    pub(crate) offset: i64,
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) history: Vec<Attempt>,
    pub(crate) failures: u32,
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
    Message(u64, Held),
    Nothing,
    /// It ends, maybe with an error.
    Over(Option<TransportError>),
}

impl Intake {
    pub(crate) fn new(queue: Arc<str>, is_ordered: bool) -> Arc<Self> {
        Arc::new(Self {
            queue,
            is_ordered,
            state: Mutex::new(State::new()),
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
            match self.hand_out(stream) {
                Next::Nothing => {}
                next => return next,
            }
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // Before looking again, so that no change in between is missed.
            changed.as_mut().enable();
            match self.hand_out(stream) {
                Next::Nothing => changed.await,
                next => return next,
            }
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
        self.state.lock().out.contains(tag)
    }

    /// Ends an out message; false if it is stale.
    pub(crate) fn end(&self, tag: u64, end: End) -> bool {
        let mut state = self.state.lock();
        let is_ended = state.end(tag, end);
        self.tell_streams(state);
        self.settled.notify_all();
        is_ended
    }

    /// Lets the state go, and wakes streams that wait for something to change in it.
    fn tell_streams(&self, mut state: MutexGuard<'_, State>) {
        let is_hungry = state.take_hungry();
        drop(state);
        if is_hungry {
            self.changed.notify_waiters();
        }
    }

    // For the thread.

    /// Partitions were assigned: where each begins, and what the consumer before left.
    pub(crate) fn assign(&self, partitions: Vec<(Place, i64, Progress, Wanted)>) {
        let mut state = self.state.lock();
        for (place, position, before, wanted) in partitions {
            state.remove(&HashSet::from([place.clone()]));
            let number = state.number();
            let partition = Partition::new(place.clone(), number, position, before, wanted);
            state.partitions.insert(number, partition);
            state.assignments.insert(place, number);
        }
    }

    pub(crate) fn assigned(&self) -> Vec<Place> {
        self.state.lock().assignments.keys().cloned().collect()
    }

    /// What is wanted of the topics has changed.
    pub(crate) fn want(&self, of_topics: impl Fn(&str) -> Wanted) {
        for partition in self.state.lock().partitions.values_mut() {
            partition.wanted = of_topics(&partition.place.0);
        }
    }

    /// Nothing more of these is handed out; waits until what is out of them is settled, at most until
    /// `deadline`.
    pub(crate) fn drain(&self, places: &HashSet<Place>, deadline: Instant) {
        let mut state = self.state.lock();
        let leaving = state.leave(places);
        let is_out = |state: &State| {
            let mut out = state.out.iter();
            out.any(|(held, _)| leaving.contains(&held.assignment))
        };
        while is_out(&state) && !self.settled.wait_until(&mut state, deadline).timed_out() {}
    }

    /// These went elsewhere. What is out of them is stale from now on.
    pub(crate) fn unassign(&self, places: &HashSet<Place>) {
        let mut state = self.state.lock();
        state.remove(places);
        self.tell_streams(state);
    }

    /// True if nothing of this would be passed over as not wanted.
    pub(crate) fn wants_all(&self, fetched: &[Fetched]) -> bool {
        let state = self.state.lock();
        let mut runs = fetched.chunk_by(|one, next| one.place == next.place);
        runs.all(|run| {
            let assignment = state.assignments.get(&run[0].place);
            let partition = assignment.and_then(|it| state.partitions.get(it));
            partition.is_none_or(|partition| {
                let number = partition.place.1;
                run.iter()
                    .all(|it| partition.wanted.contains(number, it.offset))
            })
        })
    }

    /// Messages were fetched.
    pub(crate) fn put(&self, fetched: Vec<Fetched>) {
        let mut state = self.state.lock();
        let mut last: Option<(Place, u64)> = None;
        for mut message in fetched {
            let known = last.take().filter(|(place, _)| *place == message.place);
            let found = || state.assignments.get(&message.place).copied();
            let Some(assignment) = known.map(|known| known.1).or_else(found) else {
                continue;
            };
            let turn = state.number();
            let Some(partition) = state.partitions.get_mut(&assignment) else {
                continue;
            };
            let offset = message.offset;
            let is_wanted = partition.wanted.contains(message.place.1, offset);
            let redelivered = match partition.window.admit(offset, is_wanted) {
                Admitted::Not => continue,
                Admitted::New => false,
                Admitted::Again => true,
            };
            if let Some(replay) = partition.wanted.replay_of(message.place.1, offset)
                && message.envelope.header(REPLAY_HEADER).is_none()
            {
                let header = (REPLAY_HEADER.into(), replay.into());
                Arc::make_mut(&mut message.envelope).headers.push(header);
            }
            let is_sent = *message.place.0 == *self.queue;
            last = Some((message.place, assignment));
            state.put(Held {
                assignment,
                offset,
                envelope: message.envelope,
                history: message.history,
                failures: message.failures,
                redelivered,
                is_sent,
                turn,
            });
        }
        self.tell_streams(state);
    }

    /// True if messages wait for a lease, or soon will.
    pub(crate) fn wants_lease(&self) -> bool {
        let state = self.state.lock();
        state.partitions.values().any(Partition::wants_lease)
    }

    /// What is to be committed of all partitions, with leases of what is handed out next.
    pub(crate) fn commits_due(&self) -> Vec<Commit> {
        let mut state = self.state.lock();
        let partitions = state.partitions.values_mut();
        partitions.filter_map(Partition::due_with_lease).collect()
    }

    /// What is to be committed of `places` (of all, if `None`) when they go elsewhere: exactly what was handed out
    /// stands in it instead of the lease.
    pub(crate) fn last_commits_due(&self, places: Option<&HashSet<Place>>) -> Vec<Commit> {
        let state = self.state.lock();
        let partitions = state.partitions.values();
        let is_asked = |it: &&Partition| places.is_none_or(|places| places.contains(&it.place));
        let asked = partitions.filter(is_asked);
        asked.filter_map(|partition| partition.due(0)).collect()
    }

    /// This was committed: what it leases may be handed out.
    pub(crate) fn committed(&self, commits: Vec<Commit>) {
        let mut state = self.state.lock();
        let mut ready = Vec::new();
        for Commit {
            assignment,
            watermark,
            text,
            ..
        } in commits
        {
            let Some(partition) = state.partitions.get_mut(&assignment) else {
                continue;
            };
            let leased = Progress::parse(watermark, &text).handed_out;
            if leased > partition.lease {
                partition.lease = leased;
                partition.leased_at = Some(Instant::now());
            }
            partition.committed = Some((watermark, text));
            ready.extend(partition.take_leased());
        }
        state.leased(ready);
        self.tell_streams(state);
    }

    /// Hands out without a lease what has waited too long for one: while members come and go, nothing is
    /// committed, and handlers are not to wait for that.
    pub(crate) fn stop_waiting(&self) {
        let mut state = self.state.lock();
        let mut ready = Vec::new();
        for partition in state.partitions.values_mut() {
            let since = partition.unleased_since;
            if since.is_some_and(|since| since.elapsed() >= LEASE_WAIT_MAX) {
                partition.lease = partition.lease.max(partition.window.next());
                ready.extend(partition.take_leased());
            }
        }
        if !ready.is_empty() {
            state.leased(ready);
            self.tell_streams(state);
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
        let partitions = state.partitions.values();
        let partitions = partitions.map(|it| ((it.place.clone(), it.assignment), it));
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
        let partition = state.partitions.get(state.assignments.get(place)?)?;
        Some(partition.window.next())
    }
}

#[cfg(test)]
mod tests;

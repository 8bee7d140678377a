//! Who may hold the letters of a queue: one at a time, since two that look at the same time would see half of
//! them each.
//!
//! An exclusive queue, whose name says which one is held, is the lock; the broker deletes it with the connection
//! it belongs to. Two holds of one process share a connection, so that a list in memory keeps those apart.
//! Whoever deletes a queue of dead letters takes the lock as well: what is held is not counted as being in the
//! queue, and would be deleted with it.

use std::sync::Arc;

use tidings_core::{AccessError, AccessErrorKind, hash_of_key};
use tidings_wire::{Method, QueueDeclare, QueueDelete, ShortStr, Table, reply};
use tokio::time::{Instant, sleep};

use super::{BACK_TIME_MAX, LOOK_EVERY, refused};
use crate::{
    Shared,
    session::{Channel, Quiet, Session},
};

/// The right to hold the letters of a queue.
pub(crate) struct Lock {
    /// For questions about the queue.
    pub(super) control: Channel,
    name: ShortStr,
    mine: Mine,
}

impl Lock {
    /// Takes it, and waits until what was held before is back in the queue.
    pub(crate) async fn take(
        shared: &Arc<Shared>,
        session: &Arc<Session>,
        queue: &str,
    ) -> Result<Self, AccessError> {
        let mine = Mine::take(shared, queue)?;
        let control = Channel::open(session, |_| Box::new(Quiet)).await;
        let control = control.map_err(|closed| refused(queue, &closed))?;
        count(&control, queue).await?;
        let name = lock_of(queue);
        let exclusive = QueueDeclare {
            queue: name.clone(),
            exclusive: true,
            arguments: Table::default(),
            ..QueueDeclare::default()
        };
        let locked = control.call(&exclusive).await;
        locked.map_err(|closed| refused(queue, &closed))?;
        all_back(&control, queue).await?;
        Ok(Self {
            control,
            name,
            mine,
        })
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.mine.shared
    }

    /// Lets the next one hold them.
    pub(crate) async fn release(self) -> Result<(), AccessError> {
        let Self {
            control,
            name,
            mine,
        } = self;
        let unlock = QueueDelete {
            queue: name,
            ..QueueDelete::default()
        };
        let unlocked = control.call(&unlock).await;
        unlocked.map_err(|closed| refused(&mine.queue, &closed))?;
        Ok(())
    }
}

/// Whether somebody holds letters of `queue`. It changes nothing.
pub(crate) async fn is_held(
    shared: &Shared,
    session: &Arc<Session>,
    queue: &str,
) -> Result<bool, AccessError> {
    if shared.held.lock().contains(queue) {
        return Ok(true);
    }
    let control = Channel::open(session, |_| Box::new(Quiet)).await;
    let control = control.map_err(|closed| refused(queue, &closed))?;
    let passive = QueueDeclare {
        passive: true,
        queue: lock_of(queue),
        ..QueueDeclare::default()
    };
    match control.call(&passive).await {
        Ok(_) => Ok(true),
        Err(closed) if closed.code == reply::RESOURCE_LOCKED => Ok(true),
        Err(closed) if closed.code == reply::NOT_FOUND && !closed.passes() => Ok(false),
        Err(closed) => Err(refused(queue, &closed)),
    }
}

/// Keeps the holds of this process apart.
struct Mine {
    shared: Arc<Shared>,
    queue: String,
}

impl Mine {
    fn take(shared: &Arc<Shared>, queue: &str) -> Result<Self, AccessError> {
        if !shared.held.lock().insert(queue.to_owned()) {
            let message = format!("somebody else in this process holds the letters of `{queue}`");
            return Err(AccessError::new(AccessErrorKind::Busy, message));
        }
        Ok(Self {
            shared: Arc::clone(shared),
            queue: queue.to_owned(),
        })
    }
}

impl Drop for Mine {
    fn drop(&mut self) {
        self.shared.held.lock().remove(&self.queue);
    }
}

pub(super) fn short(name: &str) -> Result<ShortStr, AccessError> {
    ShortStr::try_from(name).map_err(|error| {
        let message = format!("the queue `{name}` cannot be: {error}");
        AccessError::new(AccessErrorKind::Missing, message)
    })
}

/// How many messages are ready in `queue`, after all that was said on the channel before.
pub(super) async fn count(channel: &Channel, queue: &str) -> Result<u64, AccessError> {
    let passive = QueueDeclare {
        passive: true,
        queue: short(queue)?,
        ..QueueDeclare::default()
    };
    match channel.call(&passive).await {
        Ok(Method::QueueDeclareOk(ok)) => Ok(ok.message_count.into()),
        Ok(_) => Ok(0),
        Err(closed) => Err(refused(queue, &closed)),
    }
}

/// Waits until what somebody held whose connection was lost is back: the broker may free the lock a
/// moment before, and then the count still grows.
async fn all_back(control: &Channel, queue: &str) -> Result<(), AccessError> {
    let deadline = Instant::now() + BACK_TIME_MAX;
    let mut before = count(control, queue).await?;
    loop {
        sleep(LOOK_EVERY).await;
        let now = count(control, queue).await?;
        if now <= before || Instant::now() > deadline {
            return Ok(());
        }
        before = now;
    }
}

/// A name that says what is held, and fits whatever that is called.
fn lock_of(queue: &str) -> ShortStr {
    let hash = hash_of_key(queue);
    ShortStr::truncated(&format!("tidings.held.{hash:016x}.{queue}"))
}

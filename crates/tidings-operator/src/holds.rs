//! Dead letters that are held for clients. A hold that its client forgot, or died with, goes back by itself.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tidings_core::HeldLetters;
use tokio::{
    sync::{OwnedMappedMutexGuard, OwnedMutexGuard},
    time::Instant,
};

use crate::{
    limits::{HOLD_IDLE_MAX, HOLDS_MAX},
    wire::Failure,
};

type Slot = Option<Box<dyn HeldLetters>>;

/// Held letters, while one works with them.
pub(crate) type Letters = OwnedMappedMutexGuard<Slot, Box<dyn HeldLetters>>;

/// The holds of all clients, by names that nobody can guess.
#[derive(Default)]
pub(crate) struct Holds {
    held: Mutex<HashMap<String, Held>>,
}

#[derive(Clone)]
struct Held {
    /// `None` once it was released.
    letters: Arc<tokio::sync::Mutex<Slot>>,
    used: Instant,
}

impl Holds {
    /// Whether there is room for one more.
    pub(crate) fn room(&self) -> Result<(), Failure> {
        match self.held.lock().len() < HOLDS_MAX {
            true => Ok(()),
            false => Err(Failure::new(
                "busy",
                format!(
                    "{HOLDS_MAX} queues of dead letters are held through this endpoint already"
                ),
            )),
        }
    }

    /// Keeps a hold, and names it.
    pub(crate) fn keep(&self, letters: Box<dyn HeldLetters>) -> String {
        let name = uuid::Uuid::new_v4().simple().to_string();
        let held = Held {
            letters: Arc::new(tokio::sync::Mutex::new(Some(letters))),
            used: Instant::now(),
        };
        self.held.lock().insert(name.clone(), held);
        name
    }

    /// Its client is still there.
    pub(crate) fn touch(&self, name: &str) -> Result<(), Failure> {
        match self.held.lock().get_mut(name) {
            Some(held) => held.used = Instant::now(),
            None => return Err(gone()),
        }
        Ok(())
    }

    /// The letters of a hold, to work with.
    pub(crate) async fn letters(&self, name: &str) -> Result<Letters, Failure> {
        self.touch(name)?;
        let letters = self
            .held
            .lock()
            .get(name)
            .map(|held| Arc::clone(&held.letters));
        let letters = letters.ok_or_else(gone)?.lock_owned().await;
        OwnedMutexGuard::try_map(letters, Option::as_mut).map_err(|_| gone())
    }

    /// Takes a hold out, to release it.
    pub(crate) async fn take(&self, name: &str) -> Option<Box<dyn HeldLetters>> {
        let held = self.held.lock().remove(name)?;
        held.letters.lock().await.take()
    }

    /// Gives back what nobody has asked for lately. Those that are being worked with are not idle.
    pub(crate) fn give_back_idle(&self) {
        let now = Instant::now();
        self.held.lock().retain(|_, held| {
            let is_idle = now.duration_since(held.used) > HOLD_IDLE_MAX;
            !is_idle || held.letters.try_lock().is_err()
        });
    }

    /// Takes all out, to release them.
    pub(crate) async fn take_all(&self) -> Vec<Box<dyn HeldLetters>> {
        let all = std::mem::take(&mut *self.held.lock());
        let mut letters = Vec::with_capacity(all.len());
        for held in all.into_values() {
            letters.extend(held.letters.lock().await.take());
        }
        letters
    }
}

fn gone() -> Failure {
    Failure::new(
        "unavailable",
        "the letters are not held any more: the service was restarted, or nothing was asked for a while",
    )
}

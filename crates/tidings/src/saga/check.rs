//! Whether the functions of a program still go the way of the journals that are open.
//!
//! Each open journal is replayed dry: nothing is sent and nothing written. A service does it at its start,
//! and refuses to start if one does not fit; a program may do it before a deployment.

use std::{fmt, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tidings_saga::{Definition, Journal, SagaState};
use tokio::time::{Instant, sleep};
use tracing::{debug, error, info, warn};

use super::{Kind, kind_of};
use crate::{BoxError, Error, RecordQuery, Router, Store, StoreError};

/// How many journals are read at once.
const PAGE_COUNT_MAX: usize = 200;
/// How many journals that do not fit are named.
const NAMED_COUNT_MAX: usize = 100;
/// How long to leave a database alone that does not answer.
const STORE_PAUSE: Duration = Duration::from_millis(500);

/// What a check of open journals found out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct Checked {
    /// How many journals were replayed.
    pub count: usize,
    /// How many of them the function does not go the way of.
    pub mismatch_count: usize,
    /// The first of these, at most 100.
    pub mismatches: Vec<Mismatch>,
    /// How many journals this program has no function for: of a version that it does not have, or written
    /// by a newer program. Their sagas wait for one that has it.
    pub foreign_count: usize,
    /// The first of these, at most 100.
    pub foreign: Vec<Mismatch>,
}

/// A journal that a function does not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mismatch {
    /// Which saga of its kind.
    pub key: Box<str>,
    /// Why.
    pub why: Box<str>,
}

impl Checked {
    /// Every open saga can go on with this program.
    pub fn is_good(&self) -> bool {
        self.mismatch_count + self.foreign_count == 0
    }
}

impl fmt::Display for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            count,
            mismatch_count,
            foreign_count,
            ..
        } = self;
        write!(
            f,
            "{count} open journals were replayed: {mismatch_count} go another way, for \
             {foreign_count} there is no function"
        )?;
        if let Some(Mismatch { key, why }) = self.mismatches.first().or(self.foreign.first()) {
            write!(f, "; the first is `{key}`: {why}")?;
        }
        Ok(())
    }
}

/// Replays every open journal of a kind dry, and tells which of them the functions do not go the way of.
///
/// ```no_run
/// # use tidings::{Sagas, Store, prelude::*};
/// # #[derive(Serialize, Deserialize, Event)]
/// # struct OrderPlaced { order_id: String }
/// # async fn check(store: &dyn Store, sagas: Sagas<OrderPlaced>) -> Result<()> {
/// let checked = tidings::sagas::check(store, &sagas.define("checkout")).await?;
/// assert!(checked.is_good(), "{checked}");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// When the database does not answer.
pub async fn check(store: &dyn Store, definition: &Definition) -> Result<Checked, Error> {
    let mut checking = Checking::new(definition);
    while !checking.is_over {
        checking.page(store).await?;
    }
    Ok(checking.checked)
}

/// A check under way.
pub(super) struct Checking<'a> {
    definition: &'a Definition,
    after: Option<(Timestamp, Box<str>)>,
    pub(super) checked: Checked,
    pub(super) is_over: bool,
}

impl<'a> Checking<'a> {
    pub(super) fn new(definition: &'a Definition) -> Self {
        Self {
            definition,
            after: None,
            checked: Checked::default(),
            is_over: false,
        }
    }

    /// Replays the next journals.
    pub(super) async fn page(&mut self, store: &dyn Store) -> Result<(), StoreError> {
        let query = RecordQuery {
            kind: kind_of(self.definition.name()).into(),
            // Undoing runs no code, and what is stuck needs an operator in any case.
            label: Some(SagaState::Running.label().into()),
            after: self.after.take(),
            limit: PAGE_COUNT_MAX,
            ..RecordQuery::default()
        };
        let records = store.records().list(&query).await?;
        self.is_over = records.len() < PAGE_COUNT_MAX;
        if let Some(last) = records.last() {
            self.after = Some((last.written, last.id.id.clone()));
        }
        for record in records {
            let key = record.id.id;
            let journal = match Journal::read(&record.value.body) {
                Ok(journal) => journal,
                Err(why) => {
                    self.foreign(key, why);
                    continue;
                }
            };
            if !self.definition.has_version(journal.version) {
                self.foreign(
                    key,
                    format!("there is no function of the version {}", journal.version),
                );
                continue;
            }
            self.checked.count += 1;
            if let Err(why) = self.definition.check(&key, &journal) {
                self.checked.mismatch_count += 1;
                add(&mut self.checked.mismatches, key, why);
            }
        }
        // Others want to run as well.
        tokio::task::yield_now().await;
        Ok(())
    }

    fn foreign(&mut self, key: Box<str>, why: String) {
        self.checked.foreign_count += 1;
        add(&mut self.checked.foreign, key, why);
    }
}

fn add(to: &mut Vec<Mismatch>, key: Box<str>, why: String) {
    if to.len() < NAMED_COUNT_MAX {
        let why = why.into();
        to.push(Mismatch { key, why });
    }
}

/// Checks the open journals of all sagas of a router, before it receives anything.
///
/// # Errors
///
/// When a function goes another way than a journal, and the start is not forced.
pub(crate) async fn at_start(router: &Router) -> Result<(), BoxError> {
    let Some(store) = &router.store else {
        return Ok(());
    };
    let kinds: Vec<Kind> = router.sagas.0.read().values().cloned().collect();
    for kind in kinds {
        let definition = &*kind.definition;
        let saga = definition.name();
        let start_check = definition.start_check();
        let until = Instant::now() + start_check.time_max;
        let mut checking = Checking::new(definition);
        while !checking.is_over && Instant::now() < until {
            // A service waits for its database as for its broker.
            if let Err(error) = checking.page(&**store).await {
                debug!(saga, "open journals are not checked yet: {error}");
                sleep(STORE_PAUSE).await;
            }
        }
        let Checking {
            checked, is_over, ..
        } = checking;
        if !is_over && !start_check.time_max.is_zero() {
            warn!(
                saga,
                "not all open journals were checked within the {:?} of `start_check_max`: {checked}",
                start_check.time_max
            );
        }
        match (checked.mismatch_count, start_check.is_forced) {
            (0, _) if checked.foreign_count > 0 => warn!(saga, "{checked}"),
            (0, _) if checked.count > 0 => info!(saga, "{checked}"),
            (0, _) => {}
            (_, true) => error!(saga, "the start is forced (TDG-3001): {checked}"),
            (_, false) => {
                return Err(format!(
                    "the saga `{saga}` cannot go on with this program: {checked} (TDG-3001)"
                )
                .into());
            }
        }
    }
    Ok(())
}

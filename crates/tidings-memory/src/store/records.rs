//! The records.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use tidings_core::{Expected, Lease, Record, RecordChange, RecordId, RecordQuery, StoreError};

use super::clock::{earlier, later, until};

#[derive(Default)]
pub(super) struct Records {
    rows: BTreeMap<RecordId, Row>,
    takings: u64,
}

struct Row {
    record: Record,
    /// Who has taken it, and until when it is left alone.
    lease: Option<(Lease, Timestamp)>,
}

impl Records {
    pub(super) fn read(&self, ids: &[RecordId]) -> Vec<Option<Record>> {
        let rows = ids.iter().map(|id| self.rows.get(id));
        rows.map(|row| row.map(|row| row.record.clone())).collect()
    }

    /// Fails if a record is not as one of `changes` expects.
    pub(super) fn check(&self, changes: &[RecordChange]) -> Result<(), StoreError> {
        for change in changes {
            let row = self.rows.get(&change.id);
            let is_met = match &change.expected {
                Expected::Anything => true,
                Expected::Nothing => row.is_none(),
                Expected::Version(version) => row.is_some_and(|row| row.record.version == *version),
                Expected::Lease(lease) => {
                    let held = row.and_then(|row| row.lease.as_ref());
                    held.is_some_and(|(held, _)| held == lease)
                }
            };
            if !is_met {
                return Err(StoreError::conflict(format!(
                    "the record `{}` of kind `{}` is not as expected: another transaction wrote \
                     it; read it again",
                    change.id.id, change.id.kind
                )));
            }
        }
        Ok(())
    }

    pub(super) fn write(&mut self, change: RecordChange, now: Timestamp) {
        let Some(value) = change.value else {
            self.rows.remove(&change.id);
            return;
        };
        let version = self
            .rows
            .get(&change.id)
            .map_or(0, |row| row.record.version);
        let record = Record {
            id: change.id.clone(),
            version: version + 1,
            value,
            written: now,
        };
        let row = Row {
            record,
            lease: None,
        };
        self.rows.insert(change.id, row);
    }

    pub(super) fn take_due(
        &mut self,
        kind: &str,
        worker: &str,
        lease: Duration,
        limit: usize,
        now: Timestamp,
    ) -> Vec<(Lease, Record)> {
        let mut due: Vec<(Timestamp, &mut Row)> = self
            .rows
            .values_mut()
            .filter(|row| *row.record.id.kind == *kind)
            .filter_map(|row| Some((row.due()?, row)))
            .filter(|(due, _)| *due <= now)
            .collect();
        due.sort_by_key(|(due, _)| *due);
        let mut taken = Vec::new();
        for (_, row) in due.into_iter().take(limit) {
            self.takings += 1;
            let new = Lease(format!("{worker}-{}", self.takings).into());
            row.lease = Some((new.clone(), later(now, lease)));
            taken.push((new, row.record.clone()));
        }
        taken
    }

    pub(super) fn next_due(&self, kind: &str, now: Timestamp) -> Option<Duration> {
        let rows = self
            .rows
            .values()
            .filter(|row| *row.record.id.kind == *kind);
        let next = rows.filter_map(Row::due).min()?;
        Some(until(now, next))
    }

    pub(super) fn kinds(&self, limit: usize) -> Vec<Box<str>> {
        let kinds = self.rows.values().map(|row| &row.record.id.kind);
        let kinds: BTreeSet<&Box<str>> = kinds.collect();
        kinds.into_iter().take(limit).cloned().collect()
    }

    pub(super) fn list(&self, query: &RecordQuery, now: Timestamp) -> Vec<Record> {
        let written_before = query.older_than.map(|age| earlier(now, age));
        let is_wanted = |record: &&Record| {
            record.id.kind == query.kind
                && query
                    .label
                    .as_ref()
                    .is_none_or(|label| *label == record.value.label)
                && written_before.is_none_or(|time| record.written <= time)
                && query
                    .after
                    .as_ref()
                    .is_none_or(|(time, id)| (record.written, &record.id.id) > (*time, id))
        };
        let records = self.rows.values().map(|row| &row.record);
        let mut wanted: Vec<&Record> = records.filter(is_wanted).collect();
        wanted.sort_by_key(|record| (record.written, &record.id));
        wanted.into_iter().take(query.limit).cloned().collect()
    }
}

impl Row {
    /// When a worker may take it.
    fn due(&self) -> Option<Timestamp> {
        let due = self.record.value.due?;
        Some(match self.lease {
            Some((_, ends)) => ends.max(due),
            None => due,
        })
    }
}

//! Deleting what is old from a folder, and nothing else.
//!
//! A body is old when both clocks say so: that of the program that put it (in its name) and that of
//! the file system (when it was last written). So one wrong clock deletes nothing too early, and a
//! folder that was restored from a backup starts anew.

use std::{
    fs::{self, DirEntry},
    io,
    path::Path,
};

use jiff::{Timestamp, civil::Date};

use super::UNFINISHED;
use crate::{
    BodyId,
    store::{Before, Pruned},
};

pub(super) fn prune(root: &Path, before: Before, count_max: usize) -> io::Result<Pruned> {
    let mut left = count_max;
    let unfinished = delete(&root.join(UNFINISHED), &mut left, |entry| {
        Ok(body_id(entry).is_some() && is_file_before(entry, before.unfinished)?)
    })?;
    let mut bodies = 0;
    for day in days(root, before.put)? {
        let folder = root.join(&day);
        bodies += delete(&folder, &mut left, |entry| {
            let old = body_id(entry).is_some_and(|id| id.day() == day && id.put_at() < before.put);
            Ok(old && is_file_before(entry, before.put)?)
        })?;
        if left == 0 {
            break;
        }
        // Fails while there is anything in it: bodies, or files of somebody else.
        let _ = fs::remove_dir(&folder);
    }
    Ok(Pruned {
        bodies,
        unfinished,
        more: left == 0,
    })
}

/// The folders of the days that may have something from before `put`, the oldest first. The day of
/// `put` itself is one: it stays as a folder if a part of it is younger.
fn days(root: &Path, put: Timestamp) -> io::Result<Vec<String>> {
    let last = put.strftime("%Y-%m-%d").to_string();
    let mut days = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let is_day = name.len() == last.len() && name.parse::<Date>().is_ok();
        // Not through a link: what is behind it is not in this folder.
        if is_day && name <= last && entry.file_type()?.is_dir() {
            days.push(name);
        }
    }
    days.sort();
    Ok(days)
}

/// Deletes what is `old` in a folder, at most `left` files.
fn delete(
    folder: &Path,
    left: &mut usize,
    old: impl Fn(&DirEntry) -> io::Result<bool>,
) -> io::Result<u64> {
    let mut deleted = 0;
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) => return not_found(error).map(|()| 0),
    };
    for entry in entries {
        if *left == 0 {
            break;
        }
        let entry = entry?;
        match old(&entry) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(error) => {
                not_found(error)?;
                continue;
            }
        }
        match fs::remove_file(entry.path()) {
            Ok(()) => (deleted, *left) = (deleted + 1, *left - 1),
            Err(error) => not_found(error)?,
        }
    }
    Ok(deleted)
}

/// Another program may prune the same folder at the same time.
fn not_found(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}

fn body_id(entry: &DirEntry) -> Option<BodyId> {
    entry.file_name().to_str()?.parse().ok()
}

fn is_file_before(entry: &DirEntry, before: Timestamp) -> io::Result<bool> {
    let metadata = entry.metadata()?;
    if !metadata.is_file() {
        return Ok(false);
    }
    // A time that jiff cannot hold is no reason to delete.
    let written = Timestamp::try_from(metadata.modified()?);
    Ok(written.is_ok_and(|written| written < before))
}

//! Killing the writer while its disk is full and segments are freed under it loses nothing that was not
//! taken out, and brings back nothing whose removal was durable.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use common::*;
use tidings_broker_core::Record;
use tidings_broker_log::{AppendError, Log, Options};

const FOLDER: &str = "TIDINGS_FULL_KILL_FOLDER";

fn options() -> Options {
    Options {
        segment_bytes_max: 64 << 10,
        ..Options::default()
    }
}

fn present(records: &[Record]) -> Vec<u64> {
    let ids = records.iter().filter_map(|record| match record {
        Record::Enqueued { id, .. } => Some(id.0),
        _ => None,
    });
    ids.collect()
}

/// The program that is killed. It says what it is about to append, at which position it was taken, and
/// how far the log is durable.
#[test]
#[ignore = "run by the other test, as a process of its own"]
fn the_writer() {
    let Some(dir) = std::env::var_os(FOLDER) else {
        return;
    };
    let (log, recovered) = open_with(Path::new(&dir), options()).expect("opened");
    let mut there = present(&recovered.records);
    let mut next = there.last().map_or(1, |last| last + 1).max(
        recovered
            .records
            .iter()
            .find_map(|record| match record {
                Record::Ids { next_message, .. } => Some(next_message.0),
                _ => None,
            })
            .unwrap_or(1),
    );
    let mut random = Random(next.wrapping_mul(0x9e37_79b9) | 1);
    let mut out = std::io::stdout();
    let mut append = |log: &Log, text: String, records: &[Record]| {
        writeln!(out, "{text}").expect("somebody listens");
        let durable = log.durable().0;
        match log.append_all(records) {
            Ok(lsn) => writeln!(out, "taken {} {durable}", lsn.0).expect("somebody listens"),
            Err(AppendError::DiskFull) => return false,
            Err(error) => panic!("{error}: {:?}", log.failure()),
        }
        true
    };
    loop {
        while append(&log, format!("add {next}"), &[message(next, &[1], 60)]) {
            there.push(next);
            next += 1;
        }
        next += 1;
        // Nearly everything goes, quickly; what stays has to be moved. Now and then something changes
        // its queue, which is a new message and a removal.
        for id in std::mem::take(&mut there) {
            if id % 500 == 0 {
                there.push(id);
            } else if random.below(20) == 0 {
                let records = [message(next, &[1], 60), removed(1, id)];
                let moved = append(&log, format!("move {id} {next}"), &records);
                there.push(if moved { next } else { id });
                next += 1;
            } else {
                append(&log, format!("remove {id}"), &[removed(1, id)]);
            }
        }
    }
}

/// What the writer said of one message.
#[derive(Debug, Default, Clone, Copy)]
struct Said {
    added_at: Option<u64>,
    removed: bool,
    removed_at: Option<u64>,
    moved_to: Option<u64>,
}

#[test]
fn a_kill_while_a_full_disk_heals_loses_nothing_and_brings_nothing_back() {
    let Some(disk) = SmallDisk::mount("1m") else {
        eprintln!("skipped: this user may not mount a file system");
        return;
    };
    let dir = disk.path().join("log");
    let (log, _) = open_with(&dir, options()).expect("opened");
    log.append(&queue(1)).expect("taken");
    log.close().expect("closed");
    let mut random = Random(7);
    for life in 0..10 {
        one_life(&dir, 3_000 + random.below(60_000) as usize, life);
    }
}

fn one_life(dir: &Path, lines_max: usize, life: usize) {
    let (log, recovered) = open_with(dir, options()).expect("opened");
    drop(log);
    let mut said: BTreeMap<u64, Said> = BTreeMap::new();
    for id in present(&recovered.records) {
        said.entry(id).or_default().added_at = Some(0);
    }
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .args(["--ignored", "--exact", "the_writer", "--nocapture"])
        .env(FOLDER, dir)
        .stdout(Stdio::piped())
        .spawn()
        .expect("started");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut durable = 0;
    let mut last: Vec<String> = Vec::new();
    let mut killed = false;
    for (count, line) in lines.map_while(Result::ok).enumerate() {
        if count == lines_max {
            child.kill().expect("killed");
            killed = true;
        }
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let id = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
        match (words[0].as_str(), id(1), id(2)) {
            ("add", Some(new), _) => drop(said.entry(new).or_default()),
            ("remove", Some(old), _) => said.entry(old).or_default().removed = true,
            ("move", Some(old), Some(new)) => {
                said.entry(new).or_default();
                said.entry(old).or_default().moved_to = Some(new);
            }
            ("taken", Some(lsn), Some(synced)) => {
                durable = durable.max(synced);
                let of = |at: usize| last[at].parse::<u64>().expect("an id");
                match last[0].as_str() {
                    "add" => said.entry(of(1)).or_default().added_at = Some(lsn),
                    "remove" => said.entry(of(1)).or_default().removed_at = Some(lsn),
                    _ => {
                        said.entry(of(1)).or_default().removed_at = Some(lsn);
                        said.entry(of(2)).or_default().added_at = Some(lsn);
                    }
                }
            }
            // What the test harness writes.
            _ => continue,
        }
        last = words;
    }
    let _ = child.kill();
    child.wait().expect("gone");
    assert!(killed, "life {life}: the writer ended by itself");

    let (_log, recovered) = open_with(dir, options()).expect("it opens");
    let found: std::collections::BTreeSet<u64> = present(&recovered.records).into_iter().collect();
    for id in &found {
        assert!(said.contains_key(id), "life {life}: {id} was invented");
    }
    for (id, what) in &said {
        let is = |at: Option<u64>| at.is_some_and(|at| at <= durable);
        let there = found.contains(id);
        // Whatever became of it later, a durable removal is for good.
        assert!(!(there && is(what.removed_at)), "life {life}: {id} is back");
        if is(what.added_at) && !what.removed && !there {
            let to = what
                .moved_to
                .unwrap_or_else(|| panic!("life {life}: {id} is lost"));
            let moved = said[&to];
            let went_on = moved.removed || moved.moved_to.is_some();
            assert!(
                found.contains(&to) || went_on,
                "life {life}: {id} is lost on its way to {to}: {what:?} {moved:?}"
            );
        }
    }
}

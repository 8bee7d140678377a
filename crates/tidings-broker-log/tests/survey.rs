//! Looking at a log that may be damaged: a survey says what a start says, changes nothing, and brings
//! out all that is before and behind the damage.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use common::*;
use tidings_broker_core::{MessageId, QueueId, Record};
use tidings_broker_log::{Loss, Lost, Survey};

fn survey(dir: &Path) -> Survey {
    Survey::open(dir, |_| {}).unwrap_or_else(|e| panic!("cannot look at the log: {e}"))
}

/// A log of several segments with `messages` messages in queue 1, in many batches.
fn write_log(dir: &Path, messages: u64) {
    let (log, _) = open(dir);
    log.append(&queue(1)).expect("taken");
    for id in 1..=messages {
        let lsn = log.append(&message(id, &[1], 200)).expect("taken");
        if id % 10 == 0 {
            wait_durable(&log, lsn);
        }
    }
    log.close().expect("closed");
}

/// All files of a folder, by name.
fn image(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(dir).expect("the folder is there");
    let paths = entries.map(|entry| entry.expect("readable").path());
    paths
        .map(|path| (path.clone(), fs::read(&path).expect("readable")))
        .collect()
}

fn copy_of(origin: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for (path, bytes) in image(origin) {
        fs::write(dir.path().join(path.file_name().expect("a name")), bytes).expect("written");
    }
    dir
}

fn segment_files(dir: &Path) -> Vec<PathBuf> {
    let files = image(dir).into_keys();
    files
        .filter(|path| path.extension().is_some_and(|it| it == "seg"))
        .collect()
}

/// Writes a log in which each record is a batch of its own.
fn write_each(dir: &Path, history: &[Record]) {
    let (log, _) = open(dir);
    for record in history {
        let lsn = log.append(record).expect("taken");
        wait_durable(&log, lsn);
    }
    log.close().expect("closed");
}

/// The ids of the messages that a broker would find there.
fn ids(dir: &Path) -> BTreeSet<u64> {
    let (log, recovered) = open(dir);
    log.close().expect("closed");
    let id = |record: &Record| match record {
        Record::Enqueued { id, .. } => Some(id.0),
        _ => None,
    };
    recovered.records.iter().filter_map(id).collect()
}

/// Salvages into a new folder; gives it.
fn salvaged(survey: &Survey) -> tempfile::TempDir {
    let into = tempfile::tempdir().expect("a folder");
    survey.salvage(into.path()).expect("salvaged");
    into
}

#[test]
fn of_every_damage_a_survey_says_what_a_start_says_and_all_else_is_brought_out() {
    let origin = tempfile::tempdir().expect("a folder");
    write_log(origin.path(), 700);
    let segments = segment_files(origin.path());
    assert!(segments.len() >= 3, "the log has several segments");
    let mut random = Random(11);
    let (mut refused, mut taken) = (0, 0);
    for round in 0..60 {
        let dir = copy_of(origin.path());
        // Now and then the witness at the very end, of which a start does without.
        let is_witness = round % 6 == 0;
        let segment = match is_witness {
            true => segments.len() - 1,
            false => random.below(segments.len() as u64) as usize,
        };
        let path = dir
            .path()
            .join(segments[segment].file_name().expect("a name"));
        let mut bytes = fs::read(&path).expect("readable");
        let used = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .expect("not empty") as u64;
        let at = match round % 6 {
            0 => used - random.below(16),
            // The header of the segment.
            1 => random.below(32),
            _ => random.below(used),
        } as usize;
        bytes[at] ^= 1 << random.below(8);
        fs::write(&path, &bytes).expect("written");
        let before = image(dir.path());
        let survey = survey(dir.path());
        let into = salvaged(&survey);
        assert_eq!(image(dir.path()), before, "nothing is changed");
        let refusal = survey.refusal().map(|error| error.what().to_owned());
        let losses: Vec<Loss> = survey.losses().to_vec();
        drop(survey);
        let start = open_with(dir.path(), small()).map(drop);
        match (&start, &refusal) {
            (Err(error), Some(refusal)) => {
                refused += 1;
                assert_eq!(error.what(), refusal);
                let is_hit = |loss: &Loss| loss.bytes.contains(&(at as u64));
                assert!(losses.iter().any(is_hit), "byte {at} in {losses:?}");
            }
            (Ok(()), None) => {
                taken += 1;
                assert!(losses.is_empty(), "byte {at} of {used}: {losses:?}");
            }
            other => panic!("{other:?}"),
        }
        // One batch is lost at most; those behind it are there.
        let all: BTreeSet<u64> = (1..=700).collect();
        let lost: Vec<u64> = all.difference(&ids(into.path())).copied().collect();
        if let (Some(first), Some(last)) = (lost.first(), lost.last()) {
            assert_eq!(last - first + 1, lost.len() as u64, "one batch: {lost:?}");
            assert!(lost.len() <= 10, "{lost:?}");
            let all_headers = losses.iter().all(|loss| loss.lost == Lost::Header);
            assert!(!all_headers, "a header alone loses nothing");
        }
        if refusal.is_none() {
            assert_eq!(ids(dir.path()), ids(into.path()));
        }
    }
    assert!(
        refused > 40 && taken > 0,
        "{refused} refused, {taken} taken"
    );
}

#[test]
fn what_is_salvaged_is_the_same_as_what_was_there() {
    let history = [
        exchange("orders"),
        queue(1),
        queue(2),
        Record::Bound(binding("orders", 1)),
        message(1, &[1], 10),
        message(2, &[1, 2], 1000),
        message(3, &[2], 300 << 10),
        removed(1, 1),
        removed(1, 2),
        message(9, &[1, 2], 100),
        Record::Ids {
            next_message: MessageId(100),
            next_queue: QueueId(50),
        },
    ];
    let dir = tempfile::tempdir().expect("a folder");
    let (log, _) = open(dir.path());
    log.append_all(&history).expect("taken");
    log.close().expect("closed");
    let survey = survey(dir.path());
    let contents: Vec<_> = survey
        .queues()
        .iter()
        .map(|queue| (queue.id.0, queue.messages, queue.is_declared))
        .collect();
    assert_eq!(contents, [(1, 1, true), (2, 3, true)]);
    assert_eq!(survey.messages(), 3);
    let into = salvaged(&survey);
    let again = tempfile::tempdir().expect("a folder");
    survey
        .salvage(&again.path().join("new"))
        .expect("another one");
    drop(survey);
    let (_log, expected) = open(dir.path());
    for into in [into.path().to_owned(), again.path().join("new")] {
        let (_log, found) = open(&into);
        assert_eq!(found.records, expected.records);
    }
}

#[test]
fn a_missing_segment_takes_only_its_own_messages_with_it() {
    let dir = tempfile::tempdir().expect("a folder");
    write_log(dir.path(), 1500);
    let segments = segment_files(dir.path());
    assert!(segments.len() >= 5, "the log has several segments");
    for missing in [&segments[1], &segments[2]] {
        fs::remove_file(missing).expect("removed");
    }
    let survey = survey(dir.path());
    let lost = [Loss {
        segment: 2,
        bytes: 0..0,
        lost: Lost::Segments { last: 3 },
    }];
    assert_eq!(survey.losses(), lost);
    assert!(survey.refusal().is_some());
    let found = ids(salvaged(&survey).path());
    let gaps = found.iter().zip(found.iter().skip(1));
    let gaps: Vec<_> = gaps.filter(|(one, next)| *one + 1 != **next).collect();
    assert_eq!(gaps.len(), 1, "one gap: {gaps:?}");
    assert!(found.contains(&1) && found.contains(&1500));
}

#[test]
fn messages_of_a_queue_whose_declaration_is_lost_are_kept_for_another_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let history = [
        exchange("orders"),
        queue(1),
        queue(2),
        Record::Bound(binding("orders", 1)),
        queue(3),
        message(1, &[1, 2], 50),
        message(2, &[3], 50),
        Record::QueueDeleted { queue: QueueId(3) },
        message(3, &[1], 50),
    ];
    write_each(dir.path(), &history);
    let path = segment_files(dir.path()).remove(0);
    let mut bytes = fs::read(&path).expect("readable");
    let name = b"queue-1";
    let at = bytes.windows(name.len()).position(|it| it == name);
    bytes[at.expect("it was declared")] ^= 1;
    fs::write(&path, bytes).expect("written");
    let survey = survey(dir.path());
    let queues = survey.queues();
    assert_eq!(queues.len(), 2, "not the one that was deleted: {queues:?}");
    assert_eq!(&queues[0].name[..], b"salvaged-queue-1");
    assert!(!queues[0].is_declared && queues[0].messages == 2);
    assert!(queues[1].is_declared && queues[1].messages == 1);
    assert_eq!(survey.orphans(), [binding("orders", 1)]);
    let into = salvaged(&survey);
    let (_log, found) = open(into.path());
    let stand_in = Record::QueueDeclared {
        queue: QueueId(1),
        name: "salvaged-queue-1".into(),
        auto_delete: false,
        arguments: Default::default(),
    };
    let expected = [
        exchange("orders"),
        stand_in,
        queue(2),
        message(1, &[1, 2], 50),
        message(3, &[1], 50),
    ];
    assert_eq!(Model::of(&found.records), Model::of(&expected));
}

#[test]
fn a_queue_that_was_declared_anew_is_not_hidden_by_the_one_before() {
    let dir = tempfile::tempdir().expect("a folder");
    let work = |id| Record::QueueDeclared {
        queue: QueueId(id),
        name: "work".into(),
        auto_delete: false,
        arguments: Default::default(),
    };
    let history = [
        work(1),
        message(1, &[1], 50),
        Record::QueueDeleted { queue: QueueId(1) },
        work(2),
        message(2, &[2], 50),
    ];
    write_each(dir.path(), &history);
    // That it was deleted cannot be read any more.
    let path = segment_files(dir.path()).remove(0);
    let mut bytes = fs::read(&path).expect("readable");
    let deletion = [9, 0, 0, 0, 4, 1, 0, 0, 0, 0, 0, 0, 0];
    let at = bytes.windows(deletion.len()).position(|it| it == deletion);
    bytes[at.expect("it was deleted") + 5] ^= 8;
    fs::write(&path, bytes).expect("written");
    let into = salvaged(&survey(dir.path()));
    let (_log, found) = open(into.path());
    let expected = [work(2), message(2, &[2], 50)];
    assert_eq!(Model::of(&found.records), Model::of(&expected));
}

#[test]
fn who_looks_keeps_a_broker_away_and_not_who_looks_as_well() {
    let dir = tempfile::tempdir().expect("a folder");
    write_log(dir.path(), 10);
    let looking = survey(dir.path());
    let as_well = survey(dir.path());
    let error = open_with(dir.path(), small()).expect_err("it is being read");
    assert!(error.is_in_use(), "{error}");
    assert!(error.to_string().contains("is being read by"), "{error}");
    drop((looking, as_well));
    let (log, _) = open(dir.path());
    let error = Survey::open(dir.path(), |_| {}).expect_err("it is open");
    assert!(error.is_in_use(), "{error}");
    let holder = format!("process {}", std::process::id());
    assert!(error.to_string().contains(&holder), "{error}");
    drop(log);
    // A copy without a lock file gets none.
    fs::remove_file(dir.path().join("LOCK")).expect("removed");
    let before = image(dir.path());
    drop(survey(dir.path()));
    assert_eq!(image(dir.path()), before);
}

#[test]
fn nothing_is_salvaged_into_a_folder_with_something_in_it_or_within_the_one_that_is_read() {
    let dir = tempfile::tempdir().expect("a folder");
    write_log(dir.path(), 10);
    let survey = survey(dir.path());
    let before = image(dir.path());
    let other = tempfile::tempdir().expect("a folder");
    fs::write(other.path().join("notes"), "mine").expect("written");
    let into_itself = dir.path().join("new");
    for (into, why) in [
        (other.path(), "is not empty"),
        (dir.path(), "within the folder that is read"),
        (into_itself.as_path(), "within the folder that is read"),
    ] {
        let error = survey.salvage(into).expect_err("it is refused");
        assert!(error.to_string().contains(why), "{error}");
    }
    assert_eq!(image(dir.path()), before);
    assert_eq!(image(other.path()).len(), 1);
}

#[test]
fn a_log_with_nothing_alive_in_it_is_not_salvaged() {
    let dir = tempfile::tempdir().expect("a folder");
    drop(open(dir.path()));
    let survey = survey(dir.path());
    assert!(survey.refusal().is_none());
    let parent = tempfile::tempdir().expect("a folder");
    let into = parent.path().join("new");
    let error = survey.salvage(&into).expect_err("there is nothing");
    assert!(
        error.to_string().contains("nothing that is alive"),
        "{error}"
    );
    assert!(!into.exists());
}

#[test]
fn a_salvage_that_was_killed_is_not_taken_for_a_log() {
    let dir = tempfile::tempdir().expect("a folder");
    write_log(dir.path(), 10);
    let into = salvaged(&survey(dir.path()));
    // What it looks like until the last step.
    let format = into.path().join("FORMAT");
    fs::rename(&format, into.path().join("FORMAT.new")).expect("renamed");
    let error = open_with(into.path(), small()).expect_err("it is not complete");
    assert!(error.is_damaged(), "{error}");
    assert!(error.to_string().contains("salvage again"), "{error}");
}

#[test]
fn on_a_full_disk_nothing_is_left_of_what_could_not_be_salvaged() {
    let Some(disk) = SmallDisk::mount("1500k") else {
        eprintln!("skipped: this user may not mount a file system");
        return;
    };
    let dir = tempfile::tempdir().expect("a folder");
    write_log(dir.path(), 10);
    let (log, _) = open(dir.path());
    for id in 11..=30 {
        log.append(&message(id, &[1], 100 << 10)).expect("taken");
    }
    log.close().expect("closed");
    let survey = survey(dir.path());
    let into = disk.path().join("new");
    // The second time as the first: nothing is in the way.
    for _ in 0..2 {
        let error = survey.salvage(&into).expect_err("it does not fit");
        assert!(error.is_disk_full(), "{error}");
        assert!(image(&into).is_empty(), "{:?}", image(&into).keys());
    }
}

#[test]
fn what_is_no_log_is_told_apart_from_what_is_empty() {
    let dir = tempfile::tempdir().expect("a folder");
    let look = |path: &Path| Survey::open(path, |_| {}).expect_err("there is no log");
    assert!(look(dir.path()).is_empty_folder());
    // A start that was killed at once.
    fs::write(dir.path().join("LOCK"), "process 1\n").expect("written");
    assert!(look(dir.path()).is_empty_folder());
    fs::write(dir.path().join("photo.jpg"), "").expect("written");
    let error = look(dir.path());
    assert!(!error.is_empty_folder());
    assert!(
        error.to_string().contains("is not one of a broker"),
        "{error}"
    );
    let error = look(&dir.path().join("nowhere"));
    assert!(
        error.to_string().contains("cannot read the folder"),
        "{error}"
    );
    let left: Vec<PathBuf> = image(dir.path()).into_keys().collect();
    assert_eq!(left.len(), 2, "nothing is made: {left:?}");
}

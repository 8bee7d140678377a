//! What a log gives back when it is opened again, whatever happened to it meanwhile.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::*;
use tidings_broker_core::{BindingRecord, MessageId, QueueId, Record, Table, Value};
use tidings_broker_log::{AppendError, Options};

fn write(dir: &Path, records: &[Record]) {
    let (log, _) = open(dir);
    for record in records {
        log.append(record).expect("it takes the record");
    }
    log.close().expect("it closes");
}

#[test]
fn what_was_written_is_given_back_whoever_closes_it() {
    let history = [
        exchange("orders"),
        queue(1),
        queue(2),
        Record::Bound(binding("orders", 1)),
        Record::Bound(binding("orders", 2)),
        message(1, &[1], 10),
        message(2, &[1, 2], 1000),
        message(3, &[2], 0),
        removed(1, 1),
        removed(1, 2),
        Record::Unbound(binding("orders", 1)),
        exchange("gone"),
        Record::ExchangeDeleted {
            name: "gone".into(),
        },
        message(4, &[1, 2], 100),
        Record::RemovedMany {
            queue: QueueId(2),
            ids: vec![MessageId(3), MessageId(4)],
        },
    ];
    for upto in 0..=history.len() {
        let dir = tempfile::tempdir().expect("a folder");
        write(dir.path(), &history[..upto]);
        let (_log, recovered) = open(dir.path());
        assert_eq!(recovered.torn, None);
        assert_eq!(
            Model::of(&recovered.records),
            Model::of(&history[..upto]),
            "of {upto} records"
        );
    }
}

/// A value within `depth` tables, arrays, or both in turn.
fn nested(depth: usize, is_table: fn(usize) -> bool) -> Table {
    let mut inner = Value::Int(1);
    for level in 0..depth {
        inner = if is_table(level) {
            Value::Table(Table::new().with("n", inner))
        } else {
            Value::Array(vec![inner])
        };
    }
    Table::new().with("n", inner)
}

/// The records that have arguments, with these.
fn with_arguments(id: u64, table: &Table) -> [Record; 3] {
    let (mut exchange, mut queue) = (exchange(&format!("x-{id}")), queue(id));
    if let Record::ExchangeDeclared { arguments, .. } | Record::QueueDeclared { arguments, .. } =
        &mut exchange
    {
        arguments.clone_from(table);
    }
    if let Record::QueueDeclared { arguments, .. } = &mut queue {
        arguments.clone_from(table);
    }
    let bound = Record::Bound(BindingRecord {
        arguments: table.clone(),
        ..binding(&format!("x-{id}"), id)
    });
    [exchange, queue, bound]
}

const CONTAINERS: [fn(usize) -> bool; 3] = [|_| true, |_| false, |level| level % 2 == 0];

#[test]
fn arguments_nested_up_to_the_limit_come_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut history = Vec::new();
    for depth in 0..=Table::DEPTH_MAX {
        for is_table in CONTAINERS {
            let table = nested(depth, is_table);
            history.extend(with_arguments(1 + history.len() as u64, &table));
        }
    }
    write(dir.path(), &history);
    let (_log, recovered) = open(dir.path());
    for record in &history {
        assert!(recovered.records.contains(record), "{record:?}");
    }
}

#[test]
fn what_could_not_be_read_back_is_refused_with_all_that_comes_with_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let (log, _) = open(dir.path());
    log.append(&queue(1)).expect("it takes the record");
    for is_table in CONTAINERS {
        let table = nested(Table::DEPTH_MAX + 1, is_table);
        for deep in with_arguments(2, &table) {
            let refused = log.append_all(&[queue(3), deep]);
            assert!(
                matches!(refused, Err(AppendError::Unreadable)),
                "{refused:?}"
            );
        }
    }
    log.append(&queue(4)).expect("it takes the record");
    log.close().expect("it closes");
    let (_log, recovered) = open(dir.path());
    assert_eq!(
        Model::of(&recovered.records),
        Model::of(&[queue(1), queue(4)])
    );
}

#[test]
fn messages_come_back_in_the_order_of_their_ids_after_the_topology() {
    let dir = tempfile::tempdir().expect("a folder");
    write(
        dir.path(),
        &[
            message(7, &[1], 1),
            Record::Bound(binding("x", 1)),
            queue(1),
            exchange("x"),
            message(9, &[1], 1),
        ],
    );
    let (_log, recovered) = open(dir.path());
    let kind = |record: &Record| match record {
        Record::Ids { .. } => 0,
        Record::ExchangeDeclared { .. } => 1,
        Record::QueueDeclared { .. } => 2,
        Record::Bound(_) => 3,
        Record::Enqueued { id, .. } => id.0,
        other => panic!("{other:?} is not something that is alive"),
    };
    let kinds: Vec<u64> = recovered.records.iter().map(kind).collect();
    assert_eq!(kinds, [0, 1, 2, 3, 7, 9]);
}

#[test]
fn ids_are_remembered_when_all_that_had_them_is_gone() {
    let dir = tempfile::tempdir().expect("a folder");
    let (log, _) = open(dir.path());
    log.append(&queue(5)).expect("taken");
    for id in 1..3000 {
        log.append(&message(id, &[5], 200)).expect("taken");
        let lsn = log.append(&removed(5, id)).expect("taken");
        if id % 100 == 0 {
            wait_durable(&log, lsn);
        }
    }
    log.append(&Record::QueueDeleted { queue: QueueId(5) })
        .expect("taken");
    log.close().expect("closed");
    let (_log, recovered) = open(dir.path());
    let ids = Record::Ids {
        next_message: MessageId(3000),
        next_queue: QueueId(6),
    };
    assert_eq!(recovered.records, [ids]);
}

#[test]
fn messages_of_a_deleted_queue_are_not_given_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let history = [
        queue(1),
        queue(2),
        message(1, &[1], 1),
        message(2, &[1, 2], 1),
        Record::QueueDeleted { queue: QueueId(1) },
    ];
    write(dir.path(), &history);
    let (_log, recovered) = open(dir.path());
    assert_eq!(
        Model::of(&recovered.records),
        Model::of(&[queue(2), message(2, &[2], 1)])
    );
}

/// The one segment file of a small log.
fn only_segment(dir: &Path) -> PathBuf {
    let mut segments = segment_files(dir);
    assert_eq!(segments.len(), 1, "the log is small");
    segments.remove(0)
}

fn segment_files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).expect("the folder is there");
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("readable").path())
        .collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    paths.sort();
    paths
}

/// Writes each record on its own, so that each is a batch; gives the bytes of the segment after each.
fn write_one_by_one(dir: &Path, records: &[Record]) -> Vec<Vec<u8>> {
    let (log, _) = open(dir);
    let segment = only_segment(dir);
    let mut images = vec![fs::read(&segment).expect("readable")];
    for record in records {
        let lsn = log.append(record).expect("taken");
        wait_durable(&log, lsn);
        images.push(fs::read(&segment).expect("readable"));
    }
    images
}

/// Where two images of a segment first and last differ.
fn difference(before: &[u8], after: &[u8]) -> (usize, usize) {
    let differs = |at: &usize| before[*at] != after[*at];
    let first = (0..before.len())
        .find(differs)
        .expect("something was written");
    let last = (0..before.len())
        .rev()
        .find(differs)
        .expect("something was written");
    (first, last + 1)
}

#[test]
fn a_write_torn_at_any_byte_is_cut_off_and_everything_before_it_is_there() {
    let history = [queue(1), message(1, &[1], 20), message(2, &[1], 50)];
    let origin = tempfile::tempdir().expect("a folder");
    let images = write_one_by_one(origin.path(), &history);
    let (before, after) = (&images[2], &images[3]);
    let (start, end) = difference(before, after);
    let start = start - start % 8;
    assert!(
        end - start > 100,
        "the last write is that of the last message"
    );
    let (mut before_cut, mut without) = (0, 0);
    for cut in start..=end {
        let dir = copy_of(origin.path());
        let mut torn = before.clone();
        torn[start..cut].copy_from_slice(&after[start..cut]);
        fs::write(only_segment(dir.path()), &torn).expect("written");
        let (log, recovered) = open(dir.path());
        let found = Model::of(&recovered.records);
        let expected = if found == Model::of(&history) {
            &history[..]
        } else {
            &history[..2]
        };
        assert_eq!(found, Model::of(expected), "cut at {cut} of {start}..{end}");
        assert!(expected.len() >= before_cut, "a longer piece holds no less");
        before_cut = expected.len();
        without += usize::from(expected.len() == 2);
        // And it goes on from there.
        log.append(&message(3, &[1], 30)).expect("taken");
        log.close().expect("closed");
        let (_log, again) = open(dir.path());
        let expected = [expected, &[message(3, &[1], 30)]].concat();
        assert_eq!(Model::of(&again.records), Model::of(&expected));
        assert_eq!(again.torn, None);
    }
    assert_eq!(
        before_cut,
        history.len(),
        "the whole write is there in the end"
    );
    assert!(without > 100, "a torn one is not");
}

fn copy_of(origin: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for entry in fs::read_dir(origin).expect("the folder is there") {
        let path = entry.expect("readable").path();
        fs::copy(&path, dir.path().join(path.file_name().expect("a name"))).expect("copied");
    }
    dir
}

#[test]
fn a_flipped_bit_anywhere_is_an_error_that_names_the_place_or_does_no_harm() {
    let origin = tempfile::tempdir().expect("a folder");
    let history: Vec<Record> = [queue(1)]
        .into_iter()
        .chain((1..40).map(|id| message(id, &[1], 60)))
        .collect();
    let (log, _) = open(origin.path());
    for record in &history {
        let lsn = log.append(record).expect("taken");
        wait_durable(&log, lsn);
    }
    log.close().expect("closed");
    let segment = only_segment(origin.path())
        .file_name()
        .expect("a name")
        .to_owned();
    let image = fs::read(origin.path().join(&segment)).expect("readable");
    let used = image
        .iter()
        .rposition(|byte| *byte != 0)
        .expect("not empty")
        + 1;
    let dir = copy_of(origin.path());
    let path = dir.path().join(&segment);
    let (mut detected, mut harmless) = (0, 0);
    for bit in (0..used * 8).step_by(41) {
        let mut flipped = image.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &flipped).expect("written");
        match open_with(dir.path(), small()) {
            Err(error) => {
                assert!(error.is_damaged(), "{error}");
                assert!(
                    error.to_string().contains(segment.to_str().expect("text")),
                    "{error}"
                );
                detected += 1;
            }
            Ok((log, recovered)) => {
                assert_eq!(
                    Model::of(&recovered.records),
                    Model::of(&history),
                    "bit {bit}"
                );
                drop(log);
                harmless += 1;
            }
        }
    }
    assert!(
        detected > 20 * harmless,
        "{detected} detected, {harmless} harmless"
    );
}

#[test]
fn a_flipped_bit_in_a_full_segment_or_a_missing_segment_is_an_error() {
    let origin = tempfile::tempdir().expect("a folder");
    let records: Vec<Record> = (1..2000).map(|id| message(id, &[1], 200)).collect();
    write(origin.path(), &[&[queue(1)], &records[..]].concat());
    let segments = segment_files(origin.path());
    assert!(segments.len() > 3, "the log has several segments");
    let mut random = Random(7);
    for damaged in &segments[..segments.len() - 1] {
        for _ in 0..20 {
            let dir = copy_of(origin.path());
            let path = dir.path().join(damaged.file_name().expect("a name"));
            let mut image = fs::read(&path).expect("readable");
            // Not in the zeros behind the end.
            let used = image
                .iter()
                .rposition(|byte| *byte != 0)
                .expect("not empty") as u64;
            let at = random.below(used - 16) as usize;
            image[at] ^= 1 << random.below(8);
            fs::write(&path, image).expect("written");
            let error = open_with(dir.path(), small()).expect_err("it is damaged");
            assert!(error.is_damaged(), "{error}");
            assert!(
                error.to_string().contains(path.to_str().expect("text")),
                "{error}"
            );
        }
    }
    let dir = copy_of(origin.path());
    fs::remove_file(dir.path().join(segments[1].file_name().expect("a name"))).expect("removed");
    assert!(
        open_with(dir.path(), small())
            .expect_err("one is missing")
            .is_damaged()
    );
}

#[test]
fn a_batch_in_a_message_body_is_never_taken_for_a_batch_of_the_log() {
    let dir = tempfile::tempdir().expect("a folder");
    let images = write_one_by_one(dir.path(), &[queue(1), message(1, &[1], 40)]);
    let (start, end) = difference(&images[1], &images[2]);
    let planted = images[2][start - start % 8..end].to_vec();
    // In another log it is just bytes: its salt differs.
    let other = tempfile::tempdir().expect("a folder");
    let images = write_one_by_one(
        other.path(),
        &[queue(1), message(1, &[1], 2 * planted.len())],
    );
    let (start, _) = difference(&images[1], &images[2]);
    let mut torn = images[1].clone();
    let at = start.next_multiple_of(8) + 64;
    torn[at..at + planted.len()].copy_from_slice(&planted);
    fs::write(only_segment(other.path()), torn).expect("written");
    let (_log, recovered) = open(other.path());
    assert_eq!(Model::of(&recovered.records), Model::of(&[queue(1)]));
}

#[test]
fn a_second_opener_is_refused_while_the_first_has_it() {
    let dir = tempfile::tempdir().expect("a folder");
    let first = open(dir.path());
    let error = open_with(dir.path(), small()).expect_err("it is open");
    assert!(error.is_in_use());
    let text = error.to_string();
    assert!(
        text.contains("in use by another process (process "),
        "{text}"
    );
    drop(first);
    open(dir.path());
}

#[test]
fn a_log_of_a_newer_version_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().expect("a folder");
    write(dir.path(), &[queue(1)]);
    let format = dir.path().join("FORMAT");
    let text = fs::read_to_string(&format).expect("readable");
    fs::write(&format, text.replace("format 1", "format 2")).expect("written");
    let error = open_with(dir.path(), small()).expect_err("it is newer");
    assert!(error.is_newer_version());
    assert!(
        error
            .to_string()
            .contains("made by a newer version (format 2"),
        "{error}"
    );
    fs::write(&format, text).expect("written");
    let (_log, recovered) = open(dir.path());
    assert_eq!(Model::of(&recovered.records), Model::of(&[queue(1)]));
}

#[test]
fn a_folder_that_cannot_be_written_is_a_clear_error() {
    for dir in ["/proc/tidings", "/dev/null/tidings"] {
        let error = open_with(Path::new(dir), small()).expect_err("nobody can write there");
        assert!(
            error.to_string().contains("cannot create the folder `"),
            "{error}"
        );
        assert!(std::error::Error::source(&error).is_some());
    }
}

#[test]
fn a_record_larger_than_a_segment_is_kept() {
    let dir = tempfile::tempdir().expect("a folder");
    let history = [
        queue(1),
        message(1, &[1], 300 << 10),
        message(2, &[1], 5),
        message(3, &[1], 200 << 10),
    ];
    write(dir.path(), &history);
    let (_log, recovered) = open(dir.path());
    assert_eq!(Model::of(&recovered.records), Model::of(&history));
}

#[test]
#[ignore = "measures; run it in release, on a quiet machine"]
fn how_long_a_million_messages_take_to_come_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let (log, _) = open_with(dir.path(), Options::default()).expect("opened");
    log.append(&queue(1)).expect("taken");
    let started = std::time::Instant::now();
    for id in 1..=1_000_000 {
        log.append(&message(id, &[1], 256)).expect("taken");
    }
    log.close().expect("closed");
    println!("written in {:?}", started.elapsed());
    let started = std::time::Instant::now();
    let (_log, recovered) = open_with(dir.path(), Options::default()).expect("opened");
    println!("back in {:?}", started.elapsed());
    assert_eq!(recovered.records.len(), 1_000_002);
}

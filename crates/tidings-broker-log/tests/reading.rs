//! Messages are read back while the log is open, wherever their records are: not yet written, in the
//! segment that is written to, in an old one, moved by compaction; and on a full disk.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use common::*;
use tidings_broker_core::{Message, MessageId, Record};
use tidings_broker_log::{AppendError, Log};

fn content(record: &Record) -> (MessageId, Arc<Message>) {
    match record {
        Record::Enqueued { id, message, .. } => (*id, message.clone()),
        other => panic!("no message: {other:?}"),
    }
}

#[test]
fn what_waits_is_read_back_wherever_it_is() {
    for seed in 1..4 {
        let dir = tempfile::tempdir().expect("a folder");
        let (log, _) = open(dir.path());
        let reader = log.reader();
        let mut random = Random(seed * 7919);
        let mut alive: BTreeMap<MessageId, Arc<Message>> = BTreeMap::new();
        log.append(&queue(1)).expect("taken");
        log.append(&queue(2)).expect("taken");
        for id in 1..2_000 {
            let bytes = match random.below(200) {
                // Some are larger than a batch, and some than a segment.
                0 => 300_000,
                1 => 2_000_000,
                _ => random.below(600) as usize,
            };
            let queues: &[u64] = if random.below(3) == 0 { &[1, 2] } else { &[1] };
            let record = message(id, queues, bytes);
            let (id, message) = content(&record);
            log.append(&record).expect("taken");
            alive.insert(id, message);
            if random.below(3) > 0 {
                // The oldest go, and some that are not: those behind them are moved.
                let at = random.below(alive.len().min(300) as u64) as usize;
                let id = *alive.keys().nth(at).expect("one of them");
                log.append(&removed(1, id.0)).expect("taken");
                log.append(&removed(2, id.0)).expect("taken");
                alive.remove(&id);
            }
            if random.below(40) == 0 {
                let from = random.below(alive.len() as u64 + 1) as usize;
                let asked: Vec<MessageId> = alive.keys().skip(from).take(100).copied().collect();
                let read = reader.read(asked.clone()).expect("read");
                let expected = asked.iter().map(|id| (*id, alive[id].clone()));
                assert_eq!(read, expected.collect::<Vec<_>>());
            }
        }
        let gone = (1..2_000)
            .map(MessageId)
            .filter(|id| !alive.contains_key(id));
        assert_eq!(reader.read(gone.take(500).collect()).expect("read"), []);
        // Also after a start.
        drop(log);
        let closed = reader.read(vec![MessageId(1)]).expect_err("it is closed");
        assert!(closed.to_string().contains("closed"), "{closed}");
        let (log, _) = open(dir.path());
        let asked: Vec<MessageId> = alive.keys().copied().collect();
        let read = log.reader().read(asked).expect("read");
        assert_eq!(read, alive.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn a_message_that_is_damaged_is_told_and_never_given() {
    let dir = tempfile::tempdir().expect("a folder");
    let (log, _) = open(dir.path());
    log.append(&queue(1)).expect("taken");
    for id in 1..200 {
        let lsn = log.append(&message(id, &[1], 500)).expect("taken");
        wait_durable(&log, lsn);
    }
    let reader = log.reader();
    assert_eq!(reader.read(vec![MessageId(7)]).expect("read").len(), 1);
    let segments = std::fs::read_dir(dir.path()).expect("a folder");
    let segments = segments.map(|entry| entry.expect("an entry").path());
    for path in segments.filter(|path| path.is_file()) {
        let mut bytes = std::fs::read(&path).expect("a file");
        let body: Vec<u8> = (0..500).map(|at| (7 * 31 + at) as u8).collect();
        let found = bytes.windows(500).position(|window| window == body);
        if let Some(at) = found {
            bytes[at + 250] ^= 1;
            std::fs::write(&path, bytes).expect("written");
        }
    }
    let error = reader.read(vec![MessageId(7)]).expect_err("it is damaged");
    assert!(error.to_string().contains("damaged at"), "{error}");
    assert_eq!(reader.read(vec![MessageId(8)]).expect("read").len(), 1);
}

/// Who consumes on a full disk frees it, and has to read before.
#[test]
fn a_full_disk_is_read() {
    let Some(disk) = SmallDisk::mount("6M") else {
        return;
    };
    let (log, _) = open(disk.path());
    log.append(&queue(1)).expect("taken");
    let mut taken = 0;
    loop {
        match log.append(&message(taken + 1, &[1], 1_000)) {
            Ok(_) => taken += 1,
            Err(AppendError::DiskFull) => break,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(taken > 500, "{taken}");
    let (done, finished) = std::sync::mpsc::sync_channel(1);
    let reader = log.reader();
    std::thread::spawn(move || {
        for id in 1..=taken {
            let read = reader.read(vec![MessageId(id)]).expect("read");
            assert_eq!(read.len(), 1);
        }
        done.send(()).expect("somebody waits");
    });
    let read = finished.recv_timeout(Duration::from_secs(60));
    read.expect("it is read while the disk is full");
    drop::<Log>(log);
}

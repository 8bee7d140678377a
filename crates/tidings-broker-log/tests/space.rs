//! How much disk a log takes, and what happens when there is no more.

mod common;

use std::time::{Duration, Instant};

use common::*;
use tidings_broker_core::{MessageId, QueueId, Record};
use tidings_broker_log::{AppendError, Event, Log, Options};

#[test]
fn a_queue_that_fills_and_empties_takes_bounded_space() {
    let dir = tempfile::tempdir().expect("a folder");
    let (log, _) = open(dir.path());
    log.append(&queue(1)).expect("taken");
    for id in 1..20_000 {
        log.append(&message(id, &[1], 500)).expect("taken");
        if id > 50 {
            let lsn = log.append(&removed(1, id - 50)).expect("taken");
            if id % 50 == 0 {
                wait_durable(&log, lsn);
            }
        }
    }
    log.close().expect("closed");
    let bytes = disk_bytes(dir.path());
    assert!(bytes < 1 << 20, "10 MB went through, {bytes} bytes stay");
    let (_log, recovered) = open(dir.path());
    assert_eq!(recovered.records.len(), 1 + 1 + 50);
}

#[test]
fn old_messages_that_stay_do_not_keep_the_space_of_those_that_went() {
    let dir = tempfile::tempdir().expect("a folder");
    let (log, _) = open(dir.path());
    let mut model = Model::default();
    let append = |log: &Log, model: &mut Model, record: Record| {
        model.apply(&record);
        log.append(&record).expect("taken")
    };
    for id in [1, 2, 3] {
        append(&log, &mut model, queue(id));
    }
    append(&log, &mut model, exchange("stays"));
    append(&log, &mut model, Record::Bound(binding("stays", 2)));
    for id in 1..30_000 {
        append(&log, &mut model, message(id, &[1, 2, 3], 300));
        // One in a hundred stays, in one queue of three.
        let mut lsn = append(&log, &mut model, removed(1, id));
        lsn = append(&log, &mut model, removed(3, id)).max(lsn);
        if id % 100 != 0 {
            let ids = vec![MessageId(id)];
            lsn = append(
                &log,
                &mut model,
                Record::RemovedMany {
                    queue: QueueId(2),
                    ids,
                },
            );
        }
        if id % 100 == 0 {
            wait_durable(&log, lsn);
        }
    }
    wait_for(|| disk_bytes(dir.path()) < 2 << 20);
    log.close().expect("closed");
    let (_log, recovered) = open(dir.path());
    let found = Model::of(&recovered.records);
    assert_eq!(found.topology, model.topology);
    assert_eq!(found.messages.len(), 299);
    assert_eq!(found, model);
}

#[test]
fn events_say_how_far_the_log_is_durable_in_order() {
    let dir = tempfile::tempdir().expect("a folder");
    let (on_event, events) = events();
    let (log, _) = Log::open(dir.path(), small(), on_event).expect("opened");
    let mut last = Default::default();
    for id in 1..=500 {
        last = log.append(&message(id, &[1], 10)).expect("taken");
    }
    let mut seen = Default::default();
    while seen < last {
        match events.recv_timeout(std::time::Duration::from_secs(30)) {
            Ok(Event::Durable(lsn)) => {
                assert!(lsn > seen);
                assert!(log.durable() >= lsn);
                seen = lsn;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, last);
}

#[test]
fn a_full_buffer_makes_the_appender_wait_and_not_the_memory_grow() {
    let dir = tempfile::tempdir().expect("a folder");
    let options = Options {
        buffer_bytes_max: 4 << 10,
        ..small()
    };
    let (log, _) = open_with(dir.path(), options).expect("opened");
    log.append(&queue(1)).expect("taken");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let log = &log;
            scope.spawn(move || {
                for id in 1..200 {
                    log.append(&message(id * 4 + thread, &[1], 1000))
                        .expect("taken");
                }
            });
        }
    });
    log.close().expect("closed");
    let (_log, recovered) = open(dir.path());
    assert_eq!(recovered.records.len(), 2 + 4 * 199);
}

#[test]
fn a_full_disk_refuses_messages_takes_removals_and_recovers_by_itself() {
    // How full the segments are when removals free the first one depends on the size.
    for bytes in (1000..1054).step_by(9) {
        let Some(disk) = SmallDisk::mount("2m") else {
            eprintln!("skipped: this user may not mount a file system");
            return;
        };
        fill_and_drain(&disk, bytes);
    }
}

fn fill_and_drain(disk: &SmallDisk, bytes: usize) {
    let dir = disk.path().join("log");
    let (on_event, events) = events();
    let options = Options {
        segment_bytes_max: 256 << 10,
        ..Options::default()
    };
    let (log, _) = Log::open(&dir, options.clone(), on_event).expect("opened");
    let mut model = Model::default();
    log.append(&queue(1)).expect("taken");
    model.apply(&queue(1));
    let mut id = 0;
    let mut fill = |model: &mut Model| loop {
        id += 1;
        let record = message(id, &[1], bytes);
        match log.append(&record) {
            Ok(lsn) => {
                model.apply(&record);
                if id % 50 == 0 {
                    wait_durable(&log, lsn);
                }
            }
            Err(AppendError::DiskFull) => return,
            Err(error) => panic!("{error}: {:?}", log.failure()),
        }
    };
    fill(&mut model);
    assert!(log.is_full());
    let kept: Vec<u64> = model.messages.keys().copied().collect();
    // A move to another queue needs space: it is refused as a whole, so the message stays.
    let moved = [message(1_000_000, &[1], bytes), removed(1, kept[0])];
    assert!(matches!(log.append_all(&moved), Err(AppendError::DiskFull)));
    assert!(kept.len() > 1000, "{} messages fit on 2 MB", kept.len());
    // Consumers take everything but the very first; that frees space without anybody's help.
    for id in &kept[1..] {
        let lsn = log.append(&removed(1, *id)).expect("a removal is taken");
        model.apply(&removed(1, *id));
        wait_durable(&log, lsn);
    }
    wait_for(|| !log.is_full());
    fill(&mut model);
    assert!(
        model.messages.len() > 1000,
        "{} messages fit again",
        model.messages.len()
    );
    assert!(log.failure().is_none());
    log.close().expect("closed");
    let seen: Vec<Event> = events
        .try_iter()
        .filter(|e| !matches!(e, Event::Durable(_)))
        .collect();
    assert!(
        matches!(seen[..2], [Event::DiskFull, Event::DiskRoomy]),
        "{seen:?}"
    );
    // It opens on the full disk too, with all that was confirmed.
    let (log, recovered) = open_with(&dir, options).expect("opened");
    assert_eq!(Model::of(&recovered.records), model);
    drop(log);
}

#[test]
fn a_disk_without_room_for_a_log_is_a_clear_error_and_leaves_nothing_half_made() {
    let Some(disk) = SmallDisk::mount("64k") else {
        eprintln!("skipped: this user may not mount a file system");
        return;
    };
    let error = open_with(disk.path(), Options::default()).expect_err("1 MB does not fit");
    assert!(error.is_disk_full());
    assert!(
        error.to_string().contains("free some disk space"),
        "{error}"
    );
    assert!(!disk.path().join("spare").exists());
}

/// Fills a disk with messages, takes most of them out as fast as that can be said, and fills it anew.
fn fill_and_heal(
    disk_bytes: &str,
    options: Options,
    body_bytes: usize,
    stays: impl Fn(u64) -> bool,
) {
    let Some(disk) = SmallDisk::mount(disk_bytes) else {
        eprintln!("skipped: this user may not mount a file system");
        return;
    };
    let dir = disk.path().join("log");
    let (log, _) = open_with(&dir, options.clone()).expect("opened");
    log.append(&queue(1)).expect("taken");
    let mut ids = 0..;
    let mut fill = || {
        let mut filled = Vec::new();
        loop {
            let id = ids.next().expect("many");
            match log.append(&message(id, &[1], body_bytes)) {
                Ok(_) => filled.push(id),
                Err(AppendError::DiskFull) => return filled,
                Err(error) => panic!("{error}: {:?}", log.failure()),
            }
        }
    };
    let (mut kept, gone): (Vec<u64>, Vec<u64>) = fill().into_iter().partition(|id| stays(*id));
    assert!(gone.len() > 100, "{} messages fit", gone.len());
    let mut last = Default::default();
    for id in gone {
        last = log.append(&removed(1, id)).expect("a removal is taken");
    }
    wait_durable(&log, last);
    // Segments go one after the other: soon many fit again.
    let deadline = Instant::now() + Duration::from_secs(60);
    let before = kept.len();
    while kept.len() < before + 100 {
        assert!(Instant::now() < deadline, "it does not heal");
        wait_for(|| !log.is_full());
        kept.extend(fill());
    }
    log.close().expect("closed");
    let (_log, recovered) = open_with(&dir, options).expect("opened");
    let found = recovered.records.iter().filter_map(|record| match record {
        Record::Enqueued { id, .. } => Some(id.0),
        _ => None,
    });
    assert!(found.eq(kept.iter().copied()), "what was kept is there");
}

#[test]
fn a_full_disk_heals_whatever_the_sizes_of_segments_and_messages_are() {
    let segments = |segment_bytes_max| Options {
        segment_bytes_max,
        ..Options::default()
    };
    // A removal takes a third of a message without a body.
    for body_bytes in [0, 300] {
        for (disk, options) in [
            ("2m", segments(64 << 10)),
            ("3m", segments(256 << 10)),
            ("8m", Options::default()),
        ] {
            println!("{body_bytes} bytes on {disk} with {options:?}");
            fill_and_heal(disk, options.clone(), body_bytes, |id| id == 0);
            fill_and_heal(disk, options, body_bytes, |id| id % 1000 == 0);
        }
    }
}

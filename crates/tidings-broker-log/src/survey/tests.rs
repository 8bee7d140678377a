//! A record that nobody understands, in a batch whose checksum is right: what a mistake of an earlier
//! version could leave.

use std::fs;

use tidings_broker_core::{Message, MessageId, QueueId, Queues, Record, Table};

use super::*;
use crate::{Log, Options, codec};

/// Writes a batch with this record behind the last one, as a broker would have.
fn plant(dir: &Path, encoded: &[u8]) {
    let (path, end, sequence, salt) = {
        let survey = Survey::open(dir, |_| {}).expect("a log");
        let segment = survey.segments.last().expect("a segment");
        (
            segment.path.clone(),
            segment.end as usize,
            segment.batches + 1,
            survey.dir.salt,
        )
    };
    let mut planted = Vec::new();
    batch::begin(&mut planted);
    batch::add(&mut planted, |out| out.extend_from_slice(encoded));
    batch::seal(&mut planted, sequence, sequence - 1, salt);
    let mut bytes = fs::read(&path).expect("readable");
    bytes[end..end + planted.len()].copy_from_slice(&planted);
    fs::write(&path, bytes).expect("written");
}

fn records() -> [Record; 2] {
    [
        Record::QueueDeclared {
            queue: QueueId(1),
            name: "q".into(),
            auto_delete: false,
            arguments: Table::new(),
        },
        Record::Enqueued {
            id: MessageId(1),
            at: 5,
            queues: Queues::One(QueueId(1)),
            message: std::sync::Arc::new(Message::new("", "q", "body")),
        },
    ]
}

#[test]
fn a_record_that_nobody_understands_is_listed_and_all_else_is_salvaged() {
    let unknown = vec![99, 1, 2, 3];
    let mut cut_short = Vec::new();
    let second = Record::Enqueued {
        id: MessageId(2),
        at: 5,
        queues: Queues::One(QueueId(1)),
        message: std::sync::Arc::new(Message::new("", "q", "body")),
    };
    codec::encode(&second, &mut cut_short);
    cut_short.truncate(cut_short.len() - 3);
    for planted in [unknown, cut_short] {
        let folder = tempfile::tempdir().expect("a folder");
        let (log, _) = Log::open(folder.path(), Options::default(), |_| {}).expect("opened");
        log.append_all(&records()).expect("taken");
        log.close().expect("closed");
        plant(folder.path(), &planted);
        let survey = Survey::open(folder.path(), |_| {}).expect("a log");
        assert_eq!(survey.losses().len(), 1, "{:?}", survey.losses());
        assert_eq!(survey.losses()[0].lost, Lost::Record);
        let refusal = survey.refusal().expect("a start refuses it").to_string();
        assert!(refusal.contains("does not know"), "{refusal}");
        assert!(refusal.contains("tidings-broker salvage"), "{refusal}");
        assert_eq!(survey.messages(), 1);
        let into = tempfile::tempdir().expect("a folder");
        survey.salvage(into.path()).expect("salvaged");
        let (_log, found) = Log::open(into.path(), Options::default(), |_| {}).expect("opened");
        assert_eq!(found.records[1..], records());
    }
}

#[test]
fn the_name_of_a_stand_in_is_not_one_that_is_taken() {
    let names = [Bytes::from_static(b"salvaged-queue-1")].into();
    assert_eq!(&stand_in(QueueId(1), &names)[..], b"salvaged-queue-1-");
    assert_eq!(&stand_in(QueueId(2), &names)[..], b"salvaged-queue-2");
}

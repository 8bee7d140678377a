//! What the tests of the log share: records to write, and a model of what must be found again.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidings_broker_core::{
    BindingEnd, BindingRecord, Message, MessageId, QueueId, Queues, Record, Table, Value,
};
use tidings_broker_log::{Event, Log, LogError, Lsn, Options, Recovered};

/// Small segments, so that a test sees many.
pub fn small() -> Options {
    Options {
        segment_bytes_max: 64 << 10,
        ..Options::default()
    }
}

pub fn open(dir: &Path) -> (Log, Recovered) {
    open_with(dir, small()).unwrap_or_else(|e| panic!("cannot open the log: {e}"))
}

pub fn open_with(dir: &Path, options: Options) -> Result<(Log, Recovered), LogError> {
    Log::open(dir, options, |_| {})
}

pub fn exchange(name: &str) -> Record {
    Record::ExchangeDeclared {
        name: name.to_owned().into(),
        kind: "topic".into(),
        auto_delete: false,
        internal: true,
        arguments: Table::new().with("alternate-exchange", Value::str("other")),
    }
}

pub fn queue(id: u64) -> Record {
    Record::QueueDeclared {
        queue: QueueId(id),
        name: format!("queue-{id}").into(),
        auto_delete: id.is_multiple_of(2),
        arguments: Table::new().with("x-message-ttl", Value::Int(60_000)),
    }
}

pub fn binding(source: &str, id: u64) -> BindingRecord {
    BindingRecord {
        source: source.to_owned().into(),
        destination: BindingEnd::Queue(QueueId(id)),
        routing_key: format!("key.{id}").into(),
        arguments: Table::new(),
    }
}

pub fn message(id: u64, queues: &[u64], bytes: usize) -> Record {
    let ids: Vec<QueueId> = queues.iter().map(|id| QueueId(*id)).collect();
    let body: Vec<u8> = (0..bytes).map(|at| (id as usize * 31 + at) as u8).collect();
    Record::Enqueued {
        id: MessageId(id),
        at: 1_700_000_000_000 + id,
        queues: match ids[..] {
            [one] => Queues::One(one),
            _ => Queues::Many(ids.into()),
        },
        message: Arc::new(Message {
            persistent: true,
            ..Message::new("", "key", body)
        }),
    }
}

pub fn removed(queue: u64, id: u64) -> Record {
    Record::Removed {
        queue: QueueId(queue),
        id: MessageId(id),
    }
}

/// What a log must give back: plain bookkeeping, nothing of the log's own.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Model {
    pub topology: BTreeMap<String, Record>,
    pub messages: BTreeMap<u64, (Record, Vec<u64>)>,
}

impl Model {
    pub fn apply(&mut self, record: &Record) {
        match record {
            Record::Ids { .. } => {}
            Record::Enqueued { id, queues, .. } => {
                let mut queues: Vec<u64> = queues.as_slice().iter().map(|queue| queue.0).collect();
                queues.sort_unstable();
                self.messages.insert(id.0, (without_queues(record), queues));
            }
            Record::Removed { queue, id } => self.remove(*queue, *id),
            Record::RemovedMany { queue, ids } => {
                ids.iter().for_each(|id| self.remove(*queue, *id))
            }
            Record::ExchangeDeclared { name, .. } => self.put(format!("x {name:?}"), record),
            Record::ExchangeDeleted { name } => self.take(&format!("x {name:?}")),
            Record::QueueDeclared { queue, .. } => self.put(format!("q {}", queue.0), record),
            Record::QueueDeleted { queue } => {
                self.take(&format!("q {}", queue.0));
                for id in self.messages.keys().copied().collect::<Vec<_>>() {
                    self.remove(*queue, MessageId(id));
                }
            }
            Record::Bound(binding) => self.put(format!("b {binding:?}"), record),
            Record::Unbound(binding) => self.take(&format!("b {binding:?}")),
        }
    }

    fn put(&mut self, key: String, record: &Record) {
        self.topology.insert(key, record.clone());
    }

    fn take(&mut self, key: &str) {
        self.topology.remove(key);
    }

    fn remove(&mut self, queue: QueueId, id: MessageId) {
        if let Some((_, queues)) = self.messages.get_mut(&id.0) {
            queues.retain(|other| *other != queue.0);
            if queues.is_empty() {
                self.messages.remove(&id.0);
            }
        }
    }

    pub fn of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut model = Self::default();
        records.into_iter().for_each(|record| model.apply(record));
        model
    }
}

fn without_queues(record: &Record) -> Record {
    let mut record = record.clone();
    if let Record::Enqueued { queues, .. } = &mut record {
        *queues = Queues::One(QueueId(0));
    }
    record
}

/// Waits until the log is durable up to `lsn`.
pub fn wait_durable(log: &Log, lsn: Lsn) {
    wait_for(|| log.durable() >= lsn);
}

pub fn wait_for(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "waited too long");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The bytes of all files in a folder.
pub fn disk_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).expect("the folder is there");
    let sizes = entries.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()));
    sizes.sum()
}

/// A small generator: one seed, one history.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }
}

/// Reports events through a channel.
pub fn events() -> (
    impl Fn(Event) + Send + 'static,
    std::sync::mpsc::Receiver<Event>,
) {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1 << 20);
    (move |event| drop(sender.send(event)), receiver)
}

/// A file system of its own, gone with this value.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// None if this user may not mount anything.
    pub fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a folder");
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(dir.path())
            .output();
        mount
            .is_ok_and(|output| output.status.success())
            .then_some(Self(dir))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A process that another test is just starting has a copy of every open file for a moment.
        wait_for(|| {
            let unmounted = Command::new("umount").arg(self.0.path()).output();
            unmounted.is_ok_and(|output| output.status.success())
        });
    }
}

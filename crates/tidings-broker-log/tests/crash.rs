//! Killing the writer, or cutting the power, at any moment loses nothing that was confirmed and
//! invents nothing.

mod common;

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::*;
use tidings_broker_core::{MessageId, QueueId, Record};

const FOLDER: &str = "TIDINGS_CRASH_TEST_FOLDER";
const QUEUES: [u64; 3] = [1, 2, 3];

/// One step of the writer: what it appends, or how many of its appends are durable.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Line {
    Enqueue(u64),
    Remove(u64, u64),
    Durable(usize),
}

impl Line {
    fn text(self) -> String {
        match self {
            Self::Enqueue(id) => format!("E {id}"),
            Self::Remove(queue, id) => format!("R {queue} {id}"),
            Self::Durable(count) => format!("D {count}"),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let kind = words.next()?;
        let mut number = || words.next()?.parse().ok();
        match kind {
            "E" => Some(Self::Enqueue(number()?)),
            "R" => Some(Self::Remove(number()?, number()?)),
            "D" => Some(Self::Durable(number()? as usize)),
            _ => None,
        }
    }

    fn record(self) -> Option<Record> {
        match self {
            Self::Enqueue(id) => {
                let queues = &QUEUES[..1 + id as usize % 3];
                Some(message(id, queues, (id as usize * 7919) % 3000))
            }
            Self::Remove(queue, id) => Some(removed(queue, id)),
            Self::Durable(_) => None,
        }
    }
}

/// The program that is killed. It says what it will append before it does, and what is durable.
#[test]
#[ignore = "run by the other test, as a process of its own"]
fn the_writer() {
    let Some(dir) = std::env::var_os(FOLDER) else {
        return;
    };
    let (log, recovered) = open(Path::new(&dir));
    let mut present = VecDeque::new();
    let mut next = 1;
    for record in &recovered.records {
        match record {
            Record::Enqueued { id, queues, .. } => {
                present.extend(queues.as_slice().iter().map(|queue| (queue.0, id.0)));
            }
            Record::Ids { next_message, .. } => next = next_message.0.max(1),
            _ => {}
        }
    }
    let mut random = Random(next.wrapping_mul(0x9e37_79b9) | 1);
    let mut appended = 0;
    let mut out = std::io::stdout();
    let mut say = |line: Line| writeln!(out, "{}", line.text()).expect("somebody listens");
    loop {
        let line = if present.len() > 400 || (random.below(2) == 0 && !present.is_empty()) {
            // Mostly the oldest; some stay for long, so that there is something to compact.
            let at = if random.below(4) == 0 {
                random.below(present.len() as u64)
            } else {
                0
            };
            let (queue, id) = present.remove(at as usize).expect("within bounds");
            Line::Remove(queue, id)
        } else {
            next += 1;
            let line = Line::Enqueue(next - 1);
            let Some(Record::Enqueued { queues, .. }) = line.record() else {
                unreachable!()
            };
            present.extend(queues.as_slice().iter().map(|queue| (queue.0, next - 1)));
            line
        };
        say(line);
        let record = line.record().expect("a record");
        log.append(&record).expect("the log takes it");
        appended += 1;
        let durable = log.durable().0 as usize;
        if random.below(8) == 0 {
            say(Line::Durable(durable));
        }
        if appended - durable > 500 {
            std::thread::sleep(Duration::from_micros(200));
        }
    }
}

/// Several lives of one log, each ended by `end` in the middle; in between, what is there is checked.
/// Gives how many records were confirmed in all.
fn survive(dir: &Path, lives: usize, end: impl Fn(&mut Child)) -> usize {
    let mut state = Model::default();
    {
        let (log, _) = open(dir);
        for queue_id in QUEUES {
            log.append(&queue(queue_id)).expect("taken");
            state.apply(&queue(queue_id));
        }
        let (next_message, next_queue) = (MessageId(1), QueueId(4));
        log.append(&Record::Ids {
            next_message,
            next_queue,
        })
        .expect("taken");
        log.close().expect("closed");
    }
    let mut random = Random(20_261_123);
    let mut confirmed_in_all = 0;
    for life in 0..lives {
        let said = run_and_end(dir, Duration::from_millis(5 + random.below(120)), &end);
        let confirmed = said.iter().rev().find_map(|line| match line {
            Line::Durable(count) => Some(*count),
            _ => None,
        });
        let confirmed = confirmed.unwrap_or(0);
        let appended: Vec<Record> = said.iter().filter_map(|line| line.record()).collect();
        let (log, recovered) = open(dir);
        drop(log);
        let found = Model::of(&recovered.records);
        let mut candidate = state.clone();
        appended[..confirmed]
            .iter()
            .for_each(|record| candidate.apply(record));
        let mut rest = appended[confirmed..].iter();
        while candidate != found {
            let Some(record) = rest.next() else {
                panic!("life {life}: no prefix with all that was confirmed gives what was found");
            };
            candidate.apply(record);
        }
        confirmed_in_all += confirmed;
        state = found;
    }
    confirmed_in_all
}

#[test]
fn killing_the_writer_leaves_a_prefix_with_everything_that_was_confirmed() {
    let dir = tempfile::tempdir().expect("a folder");
    let confirmed = survive(dir.path(), 20, |writer| {
        writer.kill().expect("it is killed")
    });
    assert!(
        confirmed > 1000,
        "the writer got something done: {confirmed}"
    );
    assert!(
        disk_bytes(dir.path()) < 40 << 20,
        "{} bytes",
        disk_bytes(dir.path())
    );
}

#[test]
fn cutting_the_power_leaves_a_prefix_with_everything_that_was_confirmed() {
    let Some(disk) = Disk::create() else {
        let ci = std::env::var("CI").is_ok_and(|value| value == "true");
        assert!(
            !ci,
            "this test needs root, loop devices, mkfs.ext4 and python3 in CI"
        );
        eprintln!("skipped: this user may not mount a file system in a file");
        return;
    };
    let confirmed = survive(&disk.mounted(), 8, |writer| disk.cut_power(writer));
    assert!(
        confirmed > 200,
        "the writer got something done: {confirmed}"
    );
}

/// A file system in a file, whose power can be cut: everything that was not synced is gone.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    fn create() -> Option<Self> {
        let disk = Self {
            dir: tempfile::tempdir().expect("a folder"),
        };
        let image = disk.dir.path().join("image");
        std::fs::create_dir(disk.mounted()).expect("created");
        let file = std::fs::File::create(&image).expect("created");
        file.set_len(64 << 20).expect("it is sparse");
        let made = run("mkfs.ext4", &["-q", image.to_str()?]) && disk.mount();
        (made && run("python3", &["-c", ""])).then_some(disk)
    }

    fn mounted(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    fn mount(&self) -> bool {
        let (image, mounted) = (self.dir.path().join("image"), self.mounted());
        let paths = [&image, &mounted].map(|path| path.to_str().expect("text"));
        run("mount", &["-o", "loop", paths[0], paths[1]])
    }

    fn unmount(&self) -> bool {
        run("umount", &[self.mounted().to_str().expect("text")])
    }

    /// Stops the file system without writing anything back (`FS_IOC_SHUTDOWN`, no log flush), ends
    /// the writer and mounts what is on the disk.
    fn cut_power(&self, writer: &mut Child) {
        const CUT: &str = "import fcntl, os, struct, sys\n\
            fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";
        assert!(
            run(
                "python3",
                &["-c", CUT, self.mounted().to_str().expect("text")]
            ),
            "it is cut"
        );
        writer.kill().expect("it is killed");
        writer.wait().expect("it is gone");
        assert!(self.unmount() && self.mount(), "it comes back");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.unmount();
    }
}

fn run(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn run_and_end(dir: &Path, after: Duration, end: impl Fn(&mut Child)) -> Vec<Line> {
    let mut writer = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "the_writer", "--ignored", "--nocapture"])
        .env(FOLDER, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(writer.stdout.take().expect("piped")).lines();
    let mut said = Vec::new();
    // From the first durable record on, a random time passes; then it is killed.
    let mut deadline = None;
    while let Some(Ok(text)) = lines.next() {
        let Some(line) = Line::parse(&text) else {
            continue;
        };
        said.push(line);
        if matches!(line, Line::Durable(1..)) {
            deadline.get_or_insert_with(|| Instant::now() + after);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            break;
        }
    }
    end(&mut writer);
    writer.wait().expect("it is gone");
    said.extend(lines.map_while(|text| Line::parse(&text.ok()?)));
    said
}

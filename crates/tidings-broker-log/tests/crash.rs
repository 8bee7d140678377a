//! Killing the writer at any moment loses nothing that was confirmed and invents nothing.

mod common;

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
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

#[test]
fn killing_the_writer_leaves_a_prefix_with_everything_that_was_confirmed() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut state = Model::default();
    {
        let (log, _) = open(dir.path());
        for queue_id in QUEUES {
            log.append(&queue(queue_id)).expect("taken");
            state.apply(&queue(queue_id));
        }
        log.append(&Record::Ids {
            next_message: MessageId(1),
            next_queue: QueueId(4),
        })
        .expect("taken");
        log.close().expect("closed");
    }
    let mut random = Random(20_261_123);
    let (mut confirmed_in_all, mut unconfirmed_kept) = (0, 0);
    for round in 0..25 {
        let said = run_and_kill(dir.path(), Duration::from_millis(5 + random.below(120)));
        let confirmed = said.iter().rev().find_map(|line| match line {
            Line::Durable(count) => Some(*count),
            _ => None,
        });
        let confirmed = confirmed.unwrap_or(0);
        let appended: Vec<Record> = said.iter().filter_map(|line| line.record()).collect();
        let (log, recovered) = open(dir.path());
        drop(log);
        let found = Model::of(&recovered.records);
        let mut candidate = state.clone();
        appended[..confirmed]
            .iter()
            .for_each(|record| candidate.apply(record));
        let mut prefix = confirmed;
        while candidate != found {
            assert!(
                prefix < appended.len(),
                "round {round}: no prefix gives what was found"
            );
            candidate.apply(&appended[prefix]);
            prefix += 1;
        }
        confirmed_in_all += confirmed;
        unconfirmed_kept += prefix - confirmed;
        state = found;
    }
    println!("{confirmed_in_all} confirmed, {unconfirmed_kept} more found");
    assert!(
        confirmed_in_all > 1000,
        "the writer got something done: {confirmed_in_all}"
    );
    assert!(
        disk_bytes(dir.path()) < 40 << 20,
        "{} bytes",
        disk_bytes(dir.path())
    );
}

fn run_and_kill(dir: &Path, after: Duration) -> Vec<Line> {
    let mut writer = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "the_writer", "--ignored", "--nocapture"])
        .env(FOLDER, dir)
        .stdout(Stdio::piped())
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
    writer.kill().expect("it is killed");
    writer.wait().expect("it is gone");
    said.extend(lines.map_while(|text| Line::parse(&text.ok()?)));
    said
}

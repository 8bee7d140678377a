//! What is said about a folder: by `check` and by `salvage`, for people and for programs.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;

use serde::Serialize;
use tidings_broker_core::{BindingEnd, BindingRecord};
use tidings_broker_log::{Loss, Lost, QueueContents, Step, Survey, Torn};

/// Looks at a folder, and says on a terminal how far that is.
pub(super) fn survey(dir: &Path) -> Result<Survey, tidings_broker_log::LogError> {
    let is_terminal = std::io::stderr().is_terminal();
    let survey = Survey::open(dir, |step| {
        if is_terminal {
            let doing = match step {
                Step::Reading { done, of } => format!("reading segment {} of {of}", done + 1),
                Step::Decoding => "reading what is alive".to_owned(),
                Step::Rehearsing => "trying what a start would do".to_owned(),
            };
            // Who does not see it misses nothing.
            let _ = write!(std::io::stderr(), "\r\x1b[K{doing}");
        }
    });
    if is_terminal {
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    survey
}

/// A stranger's text: control characters are shown, never sent to the terminal.
pub(super) fn shown(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() {
            true => shown.extend(c.escape_default()),
            false => shown.push(c),
        }
    }
    shown
}

/// `1 message`, `2 messages`.
pub(super) fn count(number: u64, what: &str) -> String {
    let plural = match (number, what.strip_suffix("ch")) {
        (1, _) => what.to_owned(),
        (_, Some(_)) => format!("{what}es"),
        (_, None) => format!("{what}s"),
    };
    format!("{number} {plural}")
}

/// `512 B`, `3.2 MiB`.
pub(super) fn size(bytes: u64) -> String {
    let (mut size, mut unit) = (bytes as f64, "B");
    for larger in ["KiB", "MiB", "GiB", "TiB"] {
        if size < 1024.0 {
            break;
        }
        (size, unit) = (size / 1024.0, larger);
    }
    match unit {
        "B" => format!("{bytes} B"),
        _ => format!("{size:.1} {unit}"),
    }
}

/// Something that cannot be read.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Hole {
    segment: u64,
    /// The last segment that is missing, if segments are.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_segment: Option<u64>,
    lost: &'static str,
    from: u64,
    to: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    batches: Option<u64>,
    #[serde(skip)]
    words: String,
}

impl Hole {
    pub(super) fn all(survey: &Survey) -> Vec<Hole> {
        survey.losses().iter().map(Hole::new).collect()
    }

    fn new(loss: &Loss) -> Hole {
        let (from, to) = (loss.bytes.start, loss.bytes.end);
        let bytes = format!("segment {}, bytes {from} to {to}", loss.segment);
        let (lost, words) = match loss.lost {
            Lost::Segments { last } if last == loss.segment => {
                ("segments", format!("segment {last}: the file is missing"))
            }
            Lost::Segments { last } => {
                let words = format!("segments {} to {last}: the files are missing", loss.segment);
                ("segments", words)
            }
            Lost::Header => (
                "header",
                format!("{bytes}: the header is damaged, or that of another segment"),
            ),
            Lost::Batches(number) => {
                let words = format!("{bytes}: {} cannot be read", count(number, "batch"));
                ("batches", words)
            }
            Lost::Record => (
                "record",
                format!("{bytes}: a record that this version does not understand"),
            ),
            Lost::Unproven => (
                "unproven",
                format!(
                    "{bytes}: nothing there can be read, or be told from what an earlier use of the \
                     file left behind"
                ),
            ),
        };
        Hole {
            segment: loss.segment,
            last_segment: match loss.lost {
                Lost::Segments { last } => Some(last),
                _ => None,
            },
            lost,
            from,
            to,
            batches: match loss.lost {
                Lost::Batches(number) => Some(number),
                _ => None,
            },
            words,
        }
    }
}

/// A binding that cannot be made, since an end of it is lost.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Bound {
    exchange: String,
    destination: String,
    key: String,
}

impl Bound {
    pub(super) fn new(binding: &BindingRecord, survey: &Survey) -> Bound {
        let destination = match &binding.destination {
            BindingEnd::Exchange(name) => format!("exchange {}", shown(name)),
            BindingEnd::Queue(id) => {
                let queue = survey.queues().iter().find(|queue| queue.id == *id);
                match queue.filter(|queue| queue.is_declared) {
                    Some(queue) => format!("queue {}", shown(&queue.name)),
                    None => format!("queue number {}", id.0),
                }
            }
        };
        Bound {
            exchange: shown(&binding.source),
            destination,
            key: shown(&binding.routing_key),
        }
    }

    pub(super) fn words(&self) -> String {
        format!(
            "{} -> {}, key `{}`",
            self.exchange, self.destination, self.key
        )
    }
}

/// A queue and what is in it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Queue {
    name: String,
    id: u64,
    /// False if its declaration is lost: then the name is that of a queue that stands in for it.
    declared: bool,
    /// The name it had, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    lost_name: Option<String>,
    messages: u64,
    bytes: u64,
}

impl Queue {
    pub(super) fn new(queue: &QueueContents) -> Queue {
        Queue {
            name: shown(&queue.name),
            id: queue.id.0,
            declared: queue.is_declared,
            lost_name: queue.lost_name.as_deref().map(shown),
            messages: queue.messages,
            bytes: queue.bytes,
        }
    }

    pub(super) fn words(&self) -> String {
        let stands_in = match (&self.lost_name, self.declared) {
            (_, true) => String::new(),
            (Some(name), false) => format!(", stands in for `{name}`, whose declaration is lost"),
            (None, false) => format!(
                ", stands in for queue number {}, whose declaration is lost",
                self.id
            ),
        };
        format!(
            "{}: {}, {}{stands_in}",
            self.name,
            count(self.messages, "message"),
            size(self.bytes)
        )
    }
}

/// The unfinished write at the end.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Unfinished {
    segment: u64,
    at: u64,
    /// The file ends within it, and did not when it was written.
    file_shortened: bool,
}

impl Unfinished {
    pub(super) fn new(torn: &Torn) -> Unfinished {
        Unfinished {
            segment: torn.segment,
            at: torn.at,
            file_shortened: torn.is_shortened,
        }
    }

    pub(super) fn words(&self) -> String {
        let place = format!("segment {}, from byte {}", self.segment, self.at);
        match self.file_shortened {
            false => format!(
                "{place}: an unfinished write, as a crash leaves it; it was never confirmed, and a start \
                 cuts it off"
            ),
            true => format!(
                "{place}: the file ends within a write, which no crash does: somebody shortened it. A start \
                 cuts this write off; what may have been behind it is gone, confirmed or not"
            ),
        }
    }
}

/// What cannot be read, and what follows from that, each in a line.
pub(super) fn tell_holes(page: &mut String, holes: &[Hole], orphans: &[Bound]) {
    if holes.is_empty() {
        return;
    }
    page.push_str("\nwhat cannot be read:\n");
    for hole in holes {
        page.push_str(&format!("  {}\n", hole.words));
    }
    for orphan in orphans {
        let words = orphan.words();
        page.push_str(&format!(
            "  a binding whose exchange or queue is lost: {words}\n"
        ));
    }
    if holes.iter().all(|hole| hole.lost == "header") {
        return;
    }
    page.push_str(
        "what follows: messages, queues, exchanges and bindings whose records are lost are not there; \
         where what is lost says that a message was acknowledged, or that something was deleted, it comes \
         again\n",
    );
}

/// Prints a report: as a page, or as one JSON document. That nobody reads it is no failure.
pub(super) fn print(report: &impl Serialize, page: &str, json: bool) -> anyhow::Result<()> {
    let text = match json {
        true => serde_json::to_string_pretty(report)? + "\n",
        false => page.to_owned(),
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

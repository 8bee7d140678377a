//! Who did what to a letter, and why: in its headers, so that it travels with it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Envelope, hash_of_key};

/// The header that lists what was edited, as JSON: the first and the latest nine [`Audit`]s.
pub const EDITS_HEADER: &str = "tidings-edits";

/// The header that says how often a letter was edited.
pub(super) const EDIT_COUNT_HEADER: &str = "tidings-edit-count";

/// The header of a letter in the record that says why it is there, as JSON: a [`Recorded`].
pub const RECORDED_HEADER: &str = "tidings-recorded";

/// How many edits are remembered of a letter.
const EDITS_MAX: usize = 10;
/// The longest name of an operator, in bytes.
const BY_BYTES_MAX: usize = 100;
/// The longest reason of an operator, in bytes; a longer one is cut.
pub const WHY_BYTES_MAX: usize = 500;

/// Who did something, when, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Audit {
    /// When, by the operator's clock.
    pub at: Timestamp,
    /// Who.
    pub by: String,
    /// Why.
    pub why: String,
    /// What the body was before an edit: its length and a hash. The body itself is in the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was: Option<String>,
}

impl Audit {
    /// `by` does something now, because of `why`. Long texts are cut.
    pub fn now(by: &str, why: &str) -> Self {
        Self {
            at: Timestamp::now(),
            by: cut(by, BY_BYTES_MAX),
            why: cut(why, WHY_BYTES_MAX),
            was: None,
        }
    }

    pub(super) fn of_edit(&self, body: &[u8]) -> Self {
        let hash = body_hash(body);
        Self {
            was: Some(format!("{} bytes, {hash}", body.len())),
            ..self.clone()
        }
    }
}

/// Why a letter is in the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Recorded {
    /// `discarded`, or `edited`: then this is what it was before.
    pub what: String,
    /// Who did it, and why.
    #[serde(flatten)]
    pub audit: Audit,
}

impl Recorded {
    pub(super) fn new(what: &str, audit: &Audit) -> Self {
        Self {
            what: what.into(),
            audit: audit.clone(),
        }
    }
}

/// Stands for a body.
pub(super) fn body_hash(body: &[u8]) -> String {
    // FNV-1a, as for keys, over bytes that need not be text.
    let text = body.iter().map(|byte| char::from(*byte));
    format!("{:016x}", hash_of_key(&text.collect::<String>()))
}

/// The edits of a letter, oldest first.
pub(super) fn edits_of(envelope: &Envelope) -> Vec<Audit> {
    let edits = envelope.header(EDITS_HEADER);
    edits
        .and_then(|edits| serde_json::from_str(edits).ok())
        .unwrap_or_default()
}

/// How often a letter was edited. The list forgets middle ones, and one of an earlier version has no count.
pub(super) fn edit_count(envelope: &Envelope) -> u32 {
    let count = envelope.header(EDIT_COUNT_HEADER);
    let count = count.and_then(|count| count.parse().ok()).unwrap_or(0);
    u32::try_from(edits_of(envelope).len()).map_or(count, |known| count.max(known))
}

/// Adds an edit, and forgets middle ones when there are too many.
pub(super) fn add_edit(envelope: &mut Envelope, edit: Audit) {
    let count = edit_count(envelope).saturating_add(1);
    set_header(envelope, EDIT_COUNT_HEADER, count.to_string());
    let mut edits = edits_of(envelope);
    edits.push(edit);
    while edits.len() > EDITS_MAX {
        edits.remove(1);
    }
    set_header(envelope, EDITS_HEADER, as_json(&edits));
}

pub(super) fn as_json(value: &impl Serialize) -> String {
    // Times and texts and nothing else: this cannot fail.
    serde_json::to_string(value).unwrap_or_default()
}

pub(super) fn set_header(envelope: &mut Envelope, name: &str, value: impl Into<Box<str>>) {
    envelope.headers.retain(|(it, _)| **it != *name);
    envelope.headers.push((name.into(), value.into()));
}

fn cut(text: &str, bytes_max: usize) -> String {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

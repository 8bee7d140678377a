//! What each consumer reads of a message, field by field, by the schema that its own document has.

use super::fields::{Field, Fields, Step};
use crate::{
    check::Finding,
    document::{Contract, Document},
    formats::Side,
};

/// A consumer of a message.
pub(super) struct Reader<'a> {
    pub(super) service: &'a str,
    /// What it reads; nothing if its document does not say, or not in JSON Schema.
    pub(super) fields: Option<Fields>,
    uses: &'a [String],
    findings: Vec<&'a Finding>,
}

/// What a consumer does with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reading {
    /// It cannot read what is sent, because of this field.
    Breaks,
    /// It cannot do without.
    Needed,
    /// It makes use of it when it is there, and says so.
    Used,
    /// It reads it if it is there.
    IfThere,
    /// It takes whatever stands there.
    Whole,
    /// It passes over it.
    Not,
    /// Its document does not say.
    Unsaid,
}

impl Reading {
    /// All that can be told, as the legend has them.
    pub(super) const ALL: [Self; 7] = [
        Self::Needed,
        Self::Used,
        Self::IfThere,
        Self::Whole,
        Self::Not,
        Self::Breaks,
        Self::Unsaid,
    ];

    /// The word in a cell, the class of its badge, and what it means.
    pub(super) const fn told(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Breaks => (
                "does not fit",
                "bad",
                "it cannot read all that is sent here",
            ),
            Self::Needed => ("needed", "needed", "it cannot read the message without it"),
            Self::Used => (
                "used",
                "needed",
                "it makes use of it when it is there: to leave it out for good breaks it",
            ),
            Self::IfThere => ("if there", "there", "it reads it, and can do without"),
            Self::Whole => (
                "any value",
                "there",
                "it takes whatever stands there, without looking into it",
            ),
            Self::Not => (
                "–",
                "not",
                "it does not read it: a change there does not touch it",
            ),
            Self::Unsaid => ("?", "not", "its document does not say"),
        }
    }
}

impl<'a> Reader<'a> {
    /// The consumer, and what does not fit between it and these senders.
    pub(super) fn of(
        (document, contract): (&'a Document, &'a Contract),
        senders: &[&str],
        findings: &'a [Finding],
    ) -> Self {
        let fields = contract.body.fields(Side::Reader);
        let fields = fields.map(|schema| Fields::of(&schema));
        let of_it = |it: &&Finding| {
            it.consumer.as_ref() == Some(&document.service) && senders.contains(&&*it.service)
        };
        Self {
            service: &document.service,
            fields,
            uses: &contract.uses,
            findings: findings.iter().filter(of_it).collect(),
        }
    }

    pub(super) fn reading(&self, field: &Field) -> Reading {
        let path = field.dotted();
        // What does not fit about items is told at their list.
        let is_here = |it: &str| it.trim_end_matches("[]") == path;
        if self
            .findings
            .iter()
            .any(|it| it.field.as_deref().is_some_and(is_here))
        {
            return Reading::Breaks;
        }
        let Some(fields) = &self.fields else {
            return Reading::Unsaid;
        };
        if let Some(own) = fields.find(&field.path) {
            let is_needed = own.required && matches!(field.path.last(), Some(Step::Property(_)));
            return match () {
                () if is_needed => Reading::Needed,
                () if self.uses.contains(&path) => Reading::Used,
                () => Reading::IfThere,
            };
        }
        // What it is part of is taken as it is.
        let mut above = (0..field.path.len()).rev();
        let above = above.find_map(|end| fields.find(&field.path[..end]));
        match above {
            Some(above) if above.is_anything => Reading::Whole,
            _ => Reading::Not,
        }
    }

    /// Which of these fields it needs, and how many it reads beside: `needs 3 of 7 fields, reads 1 if it is there`.
    pub(super) fn summary(&self, fields: &[&Field]) -> String {
        let count = |reading: Reading| {
            fields
                .iter()
                .filter(|it| self.reading(it) == reading)
                .count()
        };
        if self.fields.is_none() {
            return "its document does not say which fields it reads".to_owned();
        }
        let needed = count(Reading::Needed);
        let used = count(Reading::Used);
        let read = count(Reading::IfThere) + count(Reading::Whole);
        let broken = count(Reading::Breaks);
        let mut text = format!(
            "needs {needed} of {}",
            super::html::counted(fields.len(), "field")
        );
        if used > 0 {
            text.push_str(&format!(", uses {used}"));
        }
        if read > 0 {
            text.push_str(&format!(", reads {read} more"));
        }
        if broken > 0 {
            text.push_str(&format!(", does not fit at {broken}"));
        }
        text
    }
}

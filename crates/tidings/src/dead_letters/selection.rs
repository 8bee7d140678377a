//! Which letters are meant.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::letter::Letter;

/// Which letters an operation is about: those for which everything holds that is said here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selection {
    ids: BTreeSet<Box<str>>,
    name: Option<Box<str>>,
    consumer: Option<Box<str>>,
    fingerprint: Option<Box<str>>,
    since: Option<Timestamp>,
    before: Option<Timestamp>,
}

impl Selection {
    /// Every letter.
    pub fn all() -> Self {
        Self::default()
    }

    /// Letters with this [id](Letter::id), or with another one that was given.
    pub fn id(mut self, id: &str) -> Self {
        self.ids.insert(id.into());
        self
    }

    /// Letters whose message has this name.
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Letters that came from this queue or ordered group: for the record, where those of all
    /// consumers are.
    pub fn consumer(mut self, consumer: &str) -> Self {
        self.consumer = Some(consumer.into());
        self
    }

    /// Letters whose reason has the fingerprint with this id.
    pub fn fingerprint(mut self, id: &str) -> Self {
        self.fingerprint = Some(id.into());
        self
    }

    /// Letters that died then or later. One whose time is not known is not among them.
    pub fn since(mut self, time: Timestamp) -> Self {
        self.since = Some(time);
        self
    }

    /// Letters that died before then. One whose time is not known is not among them.
    pub fn before(mut self, time: Timestamp) -> Self {
        self.before = Some(time);
        self
    }

    /// True if the letter is meant.
    pub fn contains(&self, letter: &Letter) -> bool {
        let is = |wanted: &Option<Box<str>>, it: &str| {
            wanted.as_deref().is_none_or(|wanted| wanted == it)
        };
        let at = letter.died_at;
        (self.ids.is_empty() || self.ids.contains(&letter.id))
            && is(&self.name, &letter.envelope.name)
            && is(&self.consumer, &letter.consumer)
            && is(&self.fingerprint, &letter.fingerprint.id)
            && self
                .since
                .is_none_or(|since| at.is_some_and(|at| at >= since))
            && self
                .before
                .is_none_or(|before| at.is_some_and(|at| at < before))
    }
}

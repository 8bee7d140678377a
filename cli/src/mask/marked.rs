//! The fields that services have marked as sensitive in the types of their messages, as they have written
//! them down in their databases (`tidings.handler`).
//!
//! A path is `customer.email`: names with a `.` between them. `*` is every name, lists have none, and a `\\`
//! takes the meaning from what follows it ([`tidings::SensitivePaths`] writes them).

use std::collections::BTreeMap;

use tidings::{Error, Store, handlers};

/// What is marked, by message.
#[derive(Debug, Default)]
pub(crate) struct Marked {
    /// By the message's name without its version: an older one may have the field as well.
    messages: BTreeMap<String, Paths>,
    /// The last name of each path.
    anywhere: Paths,
}

/// Paths of fields, from a value on.
#[derive(Debug, Default)]
pub(crate) struct Paths {
    ends: bool,
    named: BTreeMap<String, Paths>,
    all: Option<Box<Paths>>,
    /// The names that are hidden at any depth.
    at_any_depth: bool,
}

enum Segment {
    Name(String),
    All,
}

impl Marked {
    /// Learns what the handlers of a database have marked.
    pub(crate) async fn learn_from(&mut self, store: &dyn Store) -> Result<(), Error> {
        for (message, paths) in handlers::sensitive(store).await? {
            for path in paths {
                self.learn(&message, &path);
            }
        }
        Ok(())
    }

    /// Learns a path in messages of this name.
    pub(crate) fn learn(&mut self, message: &str, path: &str) {
        let segments = segments(path);
        self.anywhere.at_any_depth = true;
        let last = segments.iter().rev().find_map(|it| match it {
            Segment::Name(name) => Some(name.clone()),
            Segment::All => None,
        });
        if let Some(last) = last {
            self.anywhere.named.entry(last).or_default().ends = true;
        }
        let of_message = self.messages.entry(without_version(message).to_owned());
        let end =
            segments
                .into_iter()
                .fold(of_message.or_default(), |paths, segment| match segment {
                    Segment::Name(name) => paths.named.entry(name).or_default(),
                    Segment::All => &mut **paths.all.get_or_insert_default(),
                });
        end.ends = true;
    }

    /// What is marked in messages of this name.
    pub(super) fn of(&self, message: &str) -> Vec<&Paths> {
        let found = self.messages.get(without_version(message));
        found.into_iter().collect()
    }

    /// What is marked in any message, by its last name, at any depth.
    pub(super) fn anywhere(&self) -> &Paths {
        &self.anywhere
    }
}

impl Paths {
    /// The value here is hidden.
    pub(super) fn end_here(&self) -> bool {
        self.ends
    }

    /// The paths that go on under a name.
    pub(super) fn under<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Self> {
        let named = self.named.get(name);
        let all = self.all.as_deref();
        let same = self.at_any_depth.then_some(self);
        named.into_iter().chain(all).chain(same)
    }
}

fn without_version(message: &str) -> &str {
    match message.rsplit_once(".v") {
        Some((name, version)) if version.bytes().all(|it| it.is_ascii_digit()) => name,
        _ => message,
    }
}

fn segments(path: &str) -> Vec<Segment> {
    let (mut segments, mut name, mut is_plain) = (Vec::new(), String::new(), true);
    let mut characters = path.chars();
    let mut end = |name: &mut String, is_plain: bool| {
        let name = std::mem::take(name);
        segments.push(match is_plain && name == "*" {
            true => Segment::All,
            false => Segment::Name(name),
        });
    };
    while let Some(character) = characters.next() {
        match character {
            '.' => {
                end(&mut name, is_plain);
                is_plain = true;
            }
            '\\' => {
                is_plain = false;
                name.extend(characters.next());
            }
            other => name.push(other),
        }
    }
    if !path.is_empty() {
        end(&mut name, is_plain);
    }
    segments
}

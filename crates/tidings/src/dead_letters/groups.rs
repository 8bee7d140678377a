//! Letters that failed alike.

use std::collections::HashMap;

use jiff::Timestamp;

use super::{error::Error, fingerprint::Fingerprint, letter::Letter, listing::Listing};

/// How many groups are told apart; letters of further ones are only counted.
pub const GROUPS_MAX: usize = 10_000;

/// How many letters are read at a time.
const PAGE: usize = 256;

/// Letters by what failed.
#[derive(Debug, Clone, Default, PartialEq)]
#[non_exhaustive]
pub struct Groups {
    /// Those with most letters first.
    pub groups: Vec<Group>,
    /// How many letters there are in all.
    pub count: u64,
    /// How many of them are in none of the groups, because there are more than [`GROUPS_MAX`].
    pub left_out: u64,
}

/// Letters of one consumer and message name whose reasons have one fingerprint.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Group {
    /// The queue or ordered group that they came from.
    pub consumer: Box<str>,
    /// The message's name.
    pub name: Box<str>,
    /// What their reasons have in common.
    pub fingerprint: Fingerprint,
    /// How many there are.
    pub count: u64,
    /// How many of them were edited.
    pub edited: u64,
    /// How many of them were redriven.
    pub redriven: u64,
    /// When the first of them died.
    pub first: Option<Timestamp>,
    /// When the last of them died.
    pub last: Option<Timestamp>,
    /// The id of the first in the queue.
    pub example_id: Box<str>,
    /// The reason of that one.
    pub example_reason: Box<str>,
}

impl Group {
    fn new(letter: &Letter) -> Self {
        Self {
            consumer: letter.consumer.clone(),
            name: (*letter.envelope.name).into(),
            fingerprint: letter.fingerprint.clone(),
            count: 0,
            edited: 0,
            redriven: 0,
            first: letter.died_at,
            last: letter.died_at,
            example_id: letter.id.clone(),
            example_reason: letter.reason.clone(),
        }
    }

    fn add(&mut self, letter: &Letter) {
        self.count += 1;
        self.edited += u64::from(letter.edit_count > 0);
        self.redriven += u64::from(letter.redrives > 0);
        if let Some(at) = letter.died_at {
            self.first = Some(self.first.map_or(at, |first| first.min(at)));
            self.last = Some(self.last.map_or(at, |last| last.max(at)));
        }
    }
}

pub(super) async fn collect(mut listing: Listing) -> Result<Groups, Error> {
    let mut found: HashMap<[Box<str>; 3], Group> = HashMap::new();
    let mut all = Groups::default();
    loop {
        let page = listing.next_page(PAGE).await?;
        if page.is_empty() {
            break;
        }
        for letter in &page {
            all.count += 1;
            let key = [
                letter.consumer.clone(),
                (*letter.envelope.name).into(),
                letter.fingerprint.id.clone(),
            ];
            if found.len() >= GROUPS_MAX && !found.contains_key(&key) {
                all.left_out += 1;
                continue;
            }
            let group = found.entry(key).or_insert_with(|| Group::new(letter));
            group.add(letter);
        }
    }
    listing.end().await?;
    all.groups = found.into_values().collect();
    all.groups.sort_by(|one, other| {
        other
            .count
            .cmp(&one.count)
            .then(one.first.cmp(&other.first))
    });
    Ok(all)
}

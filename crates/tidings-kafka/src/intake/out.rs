//! What is out, by tags of which each is used once.
//!
//! A tag names a place in a list and how often that place was used, so that finding a message is a look at its place, and the
//! tag of a message that is gone finds nothing.

/// How many bits of a tag name the place; the others count its uses, and do not come to an end.
const PLACE_BITS: u32 = 24;
const PLACE_MASK: u64 = (1 << PLACE_BITS) - 1;

/// Things with a tag each.
#[derive(Debug)]
pub(super) struct Tagged<T> {
    places: Vec<Place<T>>,
    free: Vec<usize>,
    len: usize,
}

#[derive(Debug)]
struct Place<T> {
    uses: u64,
    thing: Option<T>,
}

impl<T> Default for Tagged<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            len: 0,
        }
    }
}

impl<T> Tagged<T> {
    /// Keeps a thing until its tag is removed.
    pub(super) fn insert(&mut self, thing: T) -> u64 {
        self.len += 1;
        let at = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place {
                uses: 0,
                thing: None,
            });
            self.places.len() - 1
        });
        let place = &mut self.places[at];
        place.uses += 1;
        place.thing = Some(thing);
        place.uses << PLACE_BITS | at as u64
    }

    pub(super) fn remove(&mut self, tag: u64) -> Option<T> {
        let place = self.place(tag)?;
        let place = &mut self.places[place];
        let thing = place.thing.take()?;
        self.free.push((tag & PLACE_MASK) as usize);
        self.len -= 1;
        Some(thing)
    }

    pub(super) fn contains(&self, tag: u64) -> bool {
        let place = self.place(tag);
        place.is_some_and(|at| self.places[at].thing.is_some())
    }

    /// Where the tag is, if its place was not used again.
    fn place(&self, tag: u64) -> Option<usize> {
        let at = (tag & PLACE_MASK) as usize;
        let place = self.places.get(at)?;
        (place.uses == tag >> PLACE_BITS).then_some(at)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.places.iter().filter_map(|place| place.thing.as_ref())
    }

    /// Removes those of which `is_gone` is true.
    pub(super) fn take_if(&mut self, mut is_gone: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut taken = Vec::new();
        for (at, place) in self.places.iter_mut().enumerate() {
            if place.thing.as_ref().is_some_and(&mut is_gone) {
                taken.extend(place.thing.take());
                self.free.push(at);
            }
        }
        self.len -= taken.len();
        taken
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_finds_its_thing_once_and_never_another() {
        let mut out = Tagged::default();
        let tags: Vec<u64> = (0..4).map(|thing| out.insert(thing)).collect();
        assert_eq!((out.remove(tags[2]), out.remove(tags[2])), (Some(2), None));
        let again = out.insert(7);
        assert!(!tags.contains(&again), "a tag came twice");
        assert!(!out.contains(tags[2]) && out.contains(again));
        assert_eq!(out.take_if(|thing| thing % 2 == 1), [1, 7, 3]);
        assert_eq!(out.iter().collect::<Vec<_>>(), [&0]);
        assert!(!out.contains(again) && !out.is_empty());
        let later: Vec<u64> = (8..12).map(|thing| out.insert(thing)).collect();
        assert!(later.iter().all(|tag| !tags.contains(tag) && *tag != again));
        assert_eq!((out.remove(tags[0]), out.remove(u64::MAX)), (Some(0), None));
        assert_eq!(out.remove(tags[1]), None);
    }
}

//! The deliveries of one channel that the broker waits for, and what it is told about them.
//!
//! However a delivery ends, it takes the same way: it is marked here, and the broker is told when
//! the connection is written to next. An acknowledgement of many at once names everything up to its
//! tag, so it must never overtake the refusal of a lower one; with one list for both it cannot. The
//! end of the subscription goes before what is settled after it, so that no settlement makes room
//! for another delivery to a consumer that is gone.

use std::collections::VecDeque;

use bytes::BytesMut;
use tidings_wire::{BasicCancel, BasicNack, Properties, ShortStr, encode_ack, encode_method};

/// There is one consumer on each channel.
pub(crate) const CONSUMER_TAG: ShortStr = ShortStr::from_static("tidings");

/// How a delivery ends for the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// It is forgotten.
    Ack,
    /// Back into its queue, for whoever is there.
    Requeue,
    /// The broker moves it to the dead letters by itself.
    Reject,
}

/// Deliveries that the broker was told of, while an earlier one is still out, are kept until they are so
/// many and more than half of all.
const TOLD_MAX: usize = 64;

/// When the broker is to be told of a settlement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tell {
    /// A [`write`](Unsettled::write) has to be asked for; true if it cannot wait for others.
    Ask(bool),
    /// The one that was asked for cannot wait any longer.
    Hurry,
    /// One was asked for.
    Asked,
}

/// The deliveries that the broker waits for, in the order of their tags. No more than the prefetch count,
/// and those of which the broker was told out of order.
#[derive(Debug)]
pub(crate) struct Unsettled {
    /// From how many settled ones on the broker is told at once.
    tell_at: usize,
    /// Tags count up one by one, so that a delivery is nearly always found at its distance from the
    /// first. The first is never one that was told.
    entries: VecDeque<(u64, Entry)>,
    /// How many of them were told.
    told: usize,
    /// Settled ones that the broker has not been told of, in the order in which they were settled.
    to_tell: Vec<u64>,
    /// The broker is to be told that the consumer is gone.
    to_cancel: bool,
    /// Somebody has asked for a [`write`](Self::write) already.
    is_asked: bool,
    /// Nothing may be written any more.
    is_closed: bool,
}

#[derive(Debug)]
enum Entry {
    /// The properties are kept for a copy.
    Out(Properties),
    /// Settled; the broker will be told soon.
    Settled(Ending),
    /// The broker has been told.
    Told,
}

impl Unsettled {
    /// Those of a consumer that may have so many out. It tells the broker of an eighth of these at once, and of fewer within
    /// a moment (`session/writing.rs`).
    pub(crate) fn new(prefetch: u16) -> Self {
        Self {
            tell_at: usize::from(prefetch / 8).max(1),
            entries: VecDeque::new(),
            told: 0,
            to_tell: Vec::new(),
            to_cancel: false,
            is_asked: false,
            is_closed: false,
        }
    }

    /// Takes a delivery in.
    pub(crate) fn insert(&mut self, tag: u64, properties: Properties) {
        let entry = Entry::Out(properties);
        if self.entries.back().is_none_or(|(last, _)| *last < tag) {
            return self.entries.push_back((tag, entry));
        }
        // A broker that does not count up.
        match self.entries.binary_search_by_key(&tag, |(it, _)| *it) {
            Ok(at) => self.entries[at] = (tag, entry),
            Err(at) => self.entries.insert(at, (tag, entry)),
        }
    }

    fn place(&self, tag: u64) -> Option<usize> {
        let (first, _) = self.entries.front()?;
        let at = usize::try_from(tag.checked_sub(*first)?).ok()?;
        match self.entries.get(at) {
            Some((found, _)) if *found == tag => Some(at),
            _ => self.entries.binary_search_by_key(&tag, |(it, _)| *it).ok(),
        }
    }

    /// The properties of a delivery that is not settled yet.
    pub(crate) fn properties(&self, tag: u64) -> Option<&Properties> {
        match &self.entries[self.place(tag)?] {
            (_, Entry::Out(properties)) => Some(properties),
            _ => None,
        }
    }

    /// Marks a delivery as settled. `None` if it is not out (any more).
    pub(crate) fn settle(&mut self, tag: u64, ending: Ending) -> Option<Tell> {
        let at = self.place(tag)?;
        match &mut self.entries[at] {
            (_, entry @ Entry::Out(_)) => *entry = Entry::Settled(ending),
            _ => return None,
        }
        self.to_tell.push(tag);
        let is_enough = self.to_tell.len() == self.tell_at;
        Some(
            match (std::mem::replace(&mut self.is_asked, true), is_enough) {
                (false, is_enough) => Tell::Ask(is_enough),
                (true, true) => Tell::Hurry,
                (true, false) => Tell::Asked,
            },
        )
    }

    /// Ends the subscription. True if a [`write`](Self::write) has to be asked for.
    pub(crate) fn cancel(&mut self) -> bool {
        self.to_cancel = true;
        !std::mem::replace(&mut self.is_asked, true)
    }

    /// The channel is gone: nothing is written any more.
    pub(crate) fn close(&mut self) {
        self.is_closed = true;
    }

    /// True if the broker waits for nothing and has been told everything.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Writes what the broker has not been told: the end of the subscription; in the order of the tags
    /// up to the lowest that is out, with one acknowledgement for each run of them, and then one by one.
    pub(crate) fn write(&mut self, channel: u16, out: &mut BytesMut) {
        self.is_asked = false;
        if self.is_closed {
            return;
        }
        if std::mem::take(&mut self.to_cancel) {
            let cancel = BasicCancel {
                consumer_tag: CONSUMER_TAG,
                no_wait: true,
            };
            encode_method(out, channel, &cancel);
        }
        let mut run = Run {
            channel,
            count: 0,
            last: 0,
        };
        while let Some((_, Entry::Settled(_) | Entry::Told)) = self.entries.front()
            && let Some((tag, entry)) = self.entries.pop_front()
        {
            match entry {
                Entry::Settled(Ending::Ack) => {
                    run.count += 1;
                    run.last = tag;
                }
                Entry::Settled(ending) => {
                    run.write(out);
                    write_one(channel, tag, ending, out);
                }
                Entry::Told => self.told -= 1,
                Entry::Out(_) => {}
            }
        }
        run.write(out);
        let mut to_tell = std::mem::take(&mut self.to_tell);
        for tag in to_tell.drain(..) {
            let Some(at) = self.place(tag) else {
                continue; // It was told above.
            };
            if let (_, entry @ Entry::Settled(_)) = &mut self.entries[at]
                && let Entry::Settled(ending) = std::mem::replace(entry, Entry::Told)
            {
                write_one(channel, tag, ending, out);
                self.told += 1;
            }
        }
        self.to_tell = to_tell;
        if self.told > TOLD_MAX.max(self.entries.len() / 2) {
            self.entries
                .retain(|(_, entry)| !matches!(entry, Entry::Told));
            self.told = 0;
        }
    }
}

/// Acknowledged ones without anything unsettled before or between them.
struct Run {
    channel: u16,
    count: u32,
    last: u64,
}

impl Run {
    fn write(&mut self, out: &mut BytesMut) {
        if self.count > 0 {
            encode_ack(out, self.channel, self.last, self.count > 1);
            self.count = 0;
        }
    }
}

fn write_one(channel: u16, tag: u64, ending: Ending, out: &mut BytesMut) {
    if ending == Ending::Ack {
        return encode_ack(out, channel, tag, false);
    }
    let nack = BasicNack {
        delivery_tag: tag,
        multiple: false,
        requeue: ending == Ending::Requeue,
    };
    encode_method(out, channel, &nack);
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        hash::{BuildHasher, RandomState},
    };

    use tidings_wire::{Frame, Method, Payload, decode_frame};

    use super::*;

    const CHANNEL: u16 = 3;

    /// What a broker makes of it: an ending for each tag, once, and only for tags it has given out.
    #[derive(Default)]
    struct Broker {
        out: BTreeMap<u64, ()>,
        ended: BTreeMap<u64, Ending>,
    }

    impl Broker {
        fn read(&mut self, mut bytes: BytesMut) {
            while let Some(Frame { channel, payload }) =
                decode_frame(&mut bytes, 4096).expect("AMQP")
            {
                assert_eq!(channel, CHANNEL);
                let (tag, multiple, ending) = match payload {
                    Payload::Method(Method::BasicAck(it)) => {
                        (it.delivery_tag, it.multiple, Ending::Ack)
                    }
                    Payload::Method(Method::BasicNack(it)) if it.requeue => {
                        (it.delivery_tag, it.multiple, Ending::Requeue)
                    }
                    Payload::Method(Method::BasicNack(it)) => {
                        (it.delivery_tag, it.multiple, Ending::Reject)
                    }
                    other => panic!("unasked for: {other:?}"),
                };
                assert!(self.out.contains_key(&tag), "406 for the tag {tag}");
                let first = if multiple { 0 } else { tag };
                let named: Vec<u64> = self.out.range(first..=tag).map(|(tag, ())| *tag).collect();
                for tag in named {
                    self.out.remove(&tag);
                    self.ended.insert(tag, ending);
                }
            }
        }
    }

    /// A different sequence for each seed.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (self.0 >> 33) % limit
        }
    }

    #[test]
    fn each_delivery_ends_at_the_broker_as_it_was_settled() {
        let seed = std::env::var("TIDINGS_TEST_SEED").ok();
        let seed = seed.and_then(|seed| seed.parse().ok());
        let seed: u64 = seed.unwrap_or_else(|| RandomState::new().hash_one(()));
        println!("TIDINGS_TEST_SEED={seed}");
        let mut dice = Dice(seed);
        for _ in 0..200 {
            let (mut ours, mut broker) = (Unsettled::new(1), Broker::default());
            let mut expected = BTreeMap::new();
            let (mut next, mut out) = (1, Vec::new());
            for _ in 0..200 {
                match dice.below(5) {
                    0 | 1 => {
                        ours.insert(next, Properties::default());
                        broker.out.insert(next, ());
                        out.push(next);
                        next += 1;
                    }
                    2 | 3 if !out.is_empty() => {
                        let at = dice.below(out.len() as u64) as usize;
                        let tag = out.swap_remove(at);
                        let ending = [Ending::Ack, Ending::Ack, Ending::Requeue, Ending::Reject]
                            [dice.below(4) as usize];
                        assert!(ours.settle(tag, ending).is_some());
                        assert!(ours.settle(tag, Ending::Ack).is_none(), "only once");
                        expected.insert(tag, ending);
                    }
                    _ => {
                        let mut bytes = BytesMut::new();
                        ours.write(CHANNEL, &mut bytes);
                        broker.read(bytes);
                        assert_eq!(broker.ended, expected);
                    }
                }
            }
        }
    }

    #[test]
    fn the_end_of_the_subscription_goes_before_what_is_settled() {
        let mut ours = Unsettled::new(1);
        ours.insert(1, Properties::default());
        assert_eq!(ours.settle(1, Ending::Ack), Some(Tell::Ask(true)));
        assert!(!ours.cancel(), "asked for already");
        let mut bytes = BytesMut::new();
        ours.write(CHANNEL, &mut bytes);
        let mut names = Vec::new();
        while let Some(frame) = decode_frame(&mut bytes, 4096).expect("AMQP") {
            if let Payload::Method(method) = frame.payload {
                names.push(method.name());
            }
        }
        assert_eq!(names, ["basic.cancel", "basic.ack"]);
        ours.insert(2, Properties::default());
        assert_eq!(
            ours.settle(2, Ending::Ack),
            Some(Tell::Ask(true)),
            "to be asked for again"
        );
    }

    #[test]
    fn one_that_is_out_for_long_does_not_keep_all_later_ones() {
        let mut ours = Unsettled::new(1);
        ours.insert(1, Properties::default());
        for tag in 2..10_000 {
            ours.insert(tag, Properties::default());
            assert!(ours.settle(tag, Ending::Ack).is_some());
            ours.write(CHANNEL, &mut BytesMut::new());
            assert!(ours.properties(tag).is_none());
            assert!(ours.entries.len() <= TOLD_MAX + 2);
        }
        // The tags that are left do not count up one by one.
        ours.insert(10_000, Properties::default());
        for tag in [10_000, 1] {
            assert!(ours.properties(tag).is_some());
            assert!(ours.settle(tag, Ending::Ack).is_some());
        }
        ours.write(CHANNEL, &mut BytesMut::new());
        assert!(ours.is_empty());
    }

    #[test]
    fn a_few_are_told_in_a_moment_and_many_at_once() {
        let mut ours = Unsettled::new(24);
        for tag in 1..=10 {
            ours.insert(tag, Properties::default());
        }
        for first in [1, 5] {
            let tells = [Tell::Ask(false), Tell::Asked, Tell::Hurry, Tell::Asked];
            for (tag, tell) in (first..).zip(tells) {
                assert_eq!(ours.settle(tag, Ending::Ack), Some(tell));
            }
            ours.write(CHANNEL, &mut BytesMut::new());
        }
    }

    #[test]
    fn a_run_of_acknowledgements_is_one() {
        let mut ours = Unsettled::new(1);
        for tag in 1..=5 {
            ours.insert(tag, Properties::default());
        }
        for tag in [3, 1, 2] {
            let tell = match tag {
                3 => Tell::Ask(true),
                _ => Tell::Asked,
            };
            assert_eq!(ours.settle(tag, Ending::Ack), Some(tell));
        }
        let (mut bytes, mut one) = (BytesMut::new(), BytesMut::new());
        ours.write(CHANNEL, &mut bytes);
        encode_ack(&mut one, CHANNEL, 3, true);
        assert_eq!(bytes, one);
    }
}

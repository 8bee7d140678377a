//! The trips: what the saga of the rig and the services that it leads say to each other, and what is
//! wrong with some of it.
//!
//! A trip takes a seat and a room at the same time, and then a ticket, which cannot be undone. As with
//! events, the seed and the trip's number decide what becomes of its steps.

use std::fmt;

use tidings::prelude::*;

use crate::random::mix;

/// The service that leads, and its saga.
pub(crate) const LEADER: &str = "rig-trips";

/// A trip begins.
#[derive(Debug, Clone, Serialize, Deserialize, Event)]
#[event(
    name = "trip-asked.v1",
    topic = "rig-trip",
    key = "number",
    id = "number"
)]
pub(crate) struct TripAsked {
    pub(crate) number: String,
}

/// How it ended: `booked` or `cancelled`. Its id is whatever the outbox gives it, so that a second one is
/// no duplicate.
#[derive(Debug, Clone, Serialize, Deserialize, Event)]
#[event(name = "trip-ended.v1", topic = "rig-trip-ended", key = "number")]
pub(crate) struct TripEnded {
    pub(crate) number: String,
    pub(crate) outcome: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, Command)]
#[command(target = "rig-seats", reply = String)]
pub(crate) struct TakeSeat {
    pub(crate) number: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, Command)]
#[command(target = "rig-seats", reply = ())]
pub(crate) struct GiveSeat {
    pub(crate) number: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, Command)]
#[command(target = "rig-rooms", reply = String)]
pub(crate) struct TakeRoom {
    pub(crate) number: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, Command)]
#[command(target = "rig-rooms", reply = ())]
pub(crate) struct GiveRoom {
    pub(crate) number: String,
}

/// The room may not be taken any more, if it was not before.
#[derive(Debug, Clone, Serialize, Deserialize, Command)]
#[command(target = "rig-rooms", reply = ())]
pub(crate) struct VoidRoom {
    pub(crate) number: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, Command)]
#[command(target = "rig-tickets", reply = String)]
pub(crate) struct IssueTicket {
    pub(crate) number: String,
}

/// What is wrong with a trip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trip {
    /// Nothing.
    Plain,
    /// There is no seat.
    SeatRefused,
    /// There is no room.
    RoomRefused,
    /// There is no room for now, so often.
    RoomBusy(i64),
    /// The room is taken about when the saga's patience ends.
    RoomSlow,
    /// Whoever takes the room aborts its process, each time.
    RoomAborts,
    /// There is no room, and giving the seat back fails a few times.
    UndoFails(u32),
    /// The command to issue the ticket can never be handled.
    TicketPoison,
}

impl Trip {
    /// What is wrong with the trip of this number.
    pub(crate) fn of(seed: u64, number: &str) -> Self {
        let hash = number
            .bytes()
            .fold(mix(seed ^ 6), |hash, byte| mix(hash ^ u64::from(byte)));
        let count = hash >> 32;
        match hash % 1000 {
            0..=59 => Self::SeatRefused,
            60..=119 => Self::RoomRefused,
            120..=159 => Self::RoomBusy(1 + (count % 3) as i64),
            160..=199 => Self::RoomSlow,
            200..=200 => Self::RoomAborts,
            201..=240 => Self::UndoFails(1 + count as u32 % 3),
            241..=245 => Self::TicketPoison,
            _ => Self::Plain,
        }
    }

    /// A step of it is refused for good, or can never be done.
    pub(crate) fn cannot_be_booked(self) -> bool {
        !matches!(self, Self::Plain | Self::RoomBusy(_) | Self::RoomSlow)
    }

    /// A command of it ends in the dead letters, so that the saga may be stuck.
    pub(crate) fn may_be_stuck(self) -> bool {
        matches!(self, Self::RoomAborts | Self::TicketPoison)
    }
}

impl fmt::Display for Trip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => f.write_str("has nothing wrong"),
            Self::SeatRefused => f.write_str("gets no seat"),
            Self::RoomRefused => f.write_str("gets no room"),
            Self::RoomBusy(times) => write!(f, "gets a room at the {}th time", times + 1),
            Self::RoomSlow => f.write_str("gets a room late"),
            Self::RoomAborts => f.write_str("aborts the process that takes its room"),
            Self::UndoFails(times) => {
                write!(
                    f,
                    "gets no room, and fails {times} times to give its seat back"
                )
            }
            Self::TicketPoison => f.write_str("has a ticket that can never be issued"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_trip_is_the_same_each_time_and_everything_occurs() {
        let natures = |seed| -> Vec<Trip> {
            (0..5000)
                .map(|number: u32| Trip::of(seed, &number.to_string()))
                .collect()
        };
        let of_one = natures(1);
        assert_eq!(of_one, natures(1));
        assert_ne!(of_one, natures(2));
        for wanted in [
            Trip::Plain,
            Trip::SeatRefused,
            Trip::RoomRefused,
            Trip::RoomBusy(1),
            Trip::RoomSlow,
            Trip::RoomAborts,
            Trip::UndoFails(1),
            Trip::TicketPoison,
        ] {
            assert!(of_one.contains(&wanted), "{wanted:?}");
        }
    }
}

//! The saga and the services that it leads, which run beside the consumers and so suffer what they
//! suffer.
//!
//! What each step did is a row. Nothing in the table is unique, and no handler asks whether a row is
//! there: so a step that takes effect twice, or is undone twice, shows.

use std::time::Duration;

use tidings::{
    Metadata, PermanentExt, Retry, Router, Saga, Sagas, State, StepError, StepReply,
    TransactionHandle,
};
use tokio::time::sleep;

use crate::{
    database::Database,
    random::Random,
    trips::{
        GiveRoom, GiveSeat, IssueTicket, LEADER, TakeRoom, TakeSeat, Trip, TripAsked, TripEnded,
        VoidRoom,
    },
};

/// How long a saga waits for a room: longer than most faults last.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long it waits for one that is slow.
const SHORT_PATIENCE: Duration = Duration::from_secs(3);

async fn trip(asked: TripAsked, saga: Saga, seed: u64) -> Result<TripEnded, TripEnded> {
    let number = asked.number;
    let patience = match Trip::of(seed, &number) {
        Trip::RoomSlow => SHORT_PATIENCE,
        _ => PATIENCE,
    };
    let ended = |outcome: &str| TripEnded {
        number: number.clone(),
        outcome: outcome.into(),
    };
    let cancelled = |_: StepError| ended("cancelled");
    let give_seat = |number| GiveSeat { number };
    let give_room = |number| GiveRoom { number };
    let take_seat = TakeSeat {
        number: number.clone(),
    };
    let take_room = TakeRoom {
        number: number.clone(),
    };
    let void_room = VoidRoom {
        number: number.clone(),
    };
    let seat = saga.step("seat", take_seat).undo(give_seat);
    let room = saga
        .step("room", take_room)
        .cancel(void_room)
        .deadline(patience)
        .retry(3)
        .undo(give_room);
    saga.all((seat, room)).await.map_err(cancelled)?;
    let issue = IssueTicket {
        number: number.clone(),
    };
    let ticket = saga.step("ticket", issue).pivot();
    ticket.await.map_err(cancelled)?;
    Ok(ended("booked"))
}

/// All of them, over one database.
pub(super) fn routers(database: &Database, seed: u64, lease: Duration) -> Vec<Router> {
    let router = |name: &'static str| {
        let retry = Retry::exponential(Duration::from_millis(200))
            .attempts(12)
            .fast_attempts(2)
            .delay_max(Duration::from_secs(2));
        let book = Book {
            database: database.clone(),
            seed,
        };
        Router::new(name)
            .with_state(book)
            .retry(retry)
            .lease(lease)
            .transactional(database.store())
    };
    let sagas = Sagas::new(LEADER, |asked: &TripAsked| asked.number.clone());
    vec![
        router(LEADER).saga(sagas.version(1, move |asked, saga| trip(asked, saga, seed))),
        router("rig-seats").on(take_seat).on(give_seat),
        router("rig-rooms")
            .on(take_room)
            .on(give_room)
            .on(void_room),
        router("rig-tickets").on(issue_ticket),
    ]
}

#[derive(Clone)]
struct Book {
    database: Database,
    seed: u64,
}

impl Book {
    fn trip(&self, number: &str) -> Trip {
        Trip::of(self.seed, number)
    }

    async fn enter(
        &self,
        handle: &mut TransactionHandle,
        number: &str,
        step: &str,
        what: &str,
    ) -> tidings::Result<()> {
        let sql = "insert into step (number, step, what) values ($1, $2, $3)";
        let values = vec![number.into(), step.into(), what.into()];
        self.database.execute(handle, sql, values).await?;
        Ok(())
    }

    /// How often a room was refused for now, this time among them.
    async fn busy(&self, handle: &mut TransactionHandle, number: &str) -> tidings::Result<i64> {
        self.enter(handle, number, "room", "busy").await?;
        let sql = "select count(*) from step where number = $1 and what = 'busy'";
        let count = self.database.execute(handle, sql, vec![number.into()]);
        Ok(count.await?.unwrap_or_default())
    }
}

async fn take_seat(
    command: TakeSeat,
    State(book): State<Book>,
    mut handle: TransactionHandle,
) -> tidings::Result<StepReply<String>> {
    let number = command.number;
    if book.trip(&number) == Trip::SeatRefused {
        return Ok(StepReply::refused("there is no seat"));
    }
    book.enter(&mut handle, &number, "seat", "done").await?;
    Ok(StepReply::Done(number))
}

async fn give_seat(
    command: GiveSeat,
    State(book): State<Book>,
    metadata: Metadata,
    mut handle: TransactionHandle,
) -> tidings::Result<()> {
    let number = command.number;
    book.enter(&mut handle, &number, "seat", "undone").await?;
    match book.trip(&number) {
        Trip::UndoFails(times) if metadata.failures() < times => {
            Err(tidings::Error::msg("it fails for now"))
        }
        _ => Ok(()),
    }
}

async fn take_room(
    command: TakeRoom,
    State(book): State<Book>,
    mut handle: TransactionHandle,
) -> tidings::Result<StepReply<String>> {
    let number = command.number;
    let nature = book.trip(&number);
    if nature == Trip::RoomSlow {
        let seed = number.bytes().map(u64::from).sum();
        let late = Random::new(seed).between(SHORT_PATIENCE / 2, SHORT_PATIENCE * 3 / 2);
        sleep(late).await;
    }
    match nature {
        Trip::RoomRefused | Trip::UndoFails(_) => {
            return Ok(StepReply::refused("there is no room"));
        }
        Trip::RoomBusy(times) if book.busy(&mut handle, &number).await? <= times => {
            return Ok(StepReply::refused_for_now("there is no room for now"));
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "to flush nothing is what it is for"
        )]
        Trip::RoomAborts => std::process::abort(),
        _ => {}
    }
    book.enter(&mut handle, &number, "room", "done").await?;
    Ok(StepReply::Done(number))
}

async fn give_room(
    command: GiveRoom,
    State(book): State<Book>,
    mut handle: TransactionHandle,
) -> tidings::Result<()> {
    book.enter(&mut handle, &command.number, "room", "undone")
        .await
}

async fn void_room(
    command: VoidRoom,
    State(book): State<Book>,
    mut handle: TransactionHandle,
) -> tidings::Result<()> {
    book.enter(&mut handle, &command.number, "room", "voided")
        .await
}

async fn issue_ticket(
    command: IssueTicket,
    State(book): State<Book>,
    mut handle: TransactionHandle,
) -> tidings::Result<StepReply<String>> {
    let number = command.number;
    book.enter(&mut handle, &number, "ticket", "done").await?;
    if book.trip(&number) == Trip::TicketPoison {
        Err(std::io::Error::other("it is poison")).permanent()?;
    }
    Ok(StepReply::Done(number))
}

//! An order and its cancellation, in every order of things, with payment killed and answers lost
//! in between: in the end nothing is charged twice, and what was charged for a cancelled order has
//! gone back.

mod world;

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use shop_contracts::CheckoutStyle;
use shop_kit::Database;
use shop_testing::SOON;
use tidings_testing::servers::Postgres;

use world::{
    World,
    gate::{
        Call::{self, Charge, Refund},
        Held, Rule,
    },
    until,
};

use Step::*;

const NOTHING: &str = r#"{"status":"NOTHING_TO_REFUND"}"#;

/// A step of a story. Held requests are named by a letter.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// `OrderPlaced` is published.
    Place,
    /// The same, with a card that the bank declines.
    PlaceDeclined,
    /// `OrderCancelled` is published.
    Cancel,
    /// The next request of this kind is held before it reaches the bank.
    HoldRequest(Call, char),
    /// The next request of this kind is carried out, and its answer held.
    HoldAnswer(Call, char),
    /// The next request of this kind is held, and then it fails.
    HoldFailure(Call, char),
    /// The answer of the next request of this kind is lost.
    LoseAnswer(Call),
    /// The next refund finds nothing, at a bank that does not remember that it was asked.
    Forget,
    /// The next charge is refused as one that cannot be carried out, so that the order becomes a dead
    /// letter.
    Refuse,
    /// Waits until a held request is there.
    Arrived(char),
    Release(char),
    /// Waits until this many requests of a kind were made.
    Asked(Call, usize),
    /// Waits until the bank has charged the order.
    Charged,
    /// Waits until the payment has a status.
    Until(&'static str),
    /// Waits until everything is handled.
    Quiet,
    /// Payment no longer knows which messages it has handled: they are older than its inbox.
    ForgetInbox,
    Kill,
    Start,
}

/// What is true in the end.
#[derive(Debug, PartialEq)]
struct End {
    status: &'static str,
    ledger: &'static [&'static str],
    said: &'static [&'static str],
}

const NEVER_CHARGED: End = End {
    status: "CANCELLED",
    ledger: &[],
    said: &[],
};
const DECLINED: End = End {
    status: "DECLINED",
    ledger: &[],
    said: &["payment-declined"],
};
const PAID: End = End {
    status: "AUTHORIZED",
    ledger: &["charge"],
    said: &["payment-authorized"],
};
/// Charged, but never said to be paid.
const GIVEN_BACK: End = End {
    status: "REFUNDED",
    ledger: &["charge", "refund"],
    said: &["payment-refunded"],
};
const PAID_AND_GIVEN_BACK: End = End {
    said: &["payment-authorized", "payment-refunded"],
    ..GIVEN_BACK
};

/// How many stories are told at the same time.
const AT_ONCE: usize = 6;

/// A name, what happens, and the ends that it may have (two, where both messages wait for payment
/// to start).
type Story = (&'static str, &'static [Step], &'static [End]);

#[rustfmt::skip]
const STORIES: &[Story] = &[
    ("an order is placed", &[Place], &[PAID]),
    ("the order, then its cancellation",
        &[Place, Until("AUTHORIZED"), Cancel],
        &[PAID_AND_GIVEN_BACK]),
    ("the cancellation, then the order",
        &[Cancel, Until("CANCELLED"), Quiet, Place],
        &[NEVER_CHARGED]),
    ("the same at a bank that forgets refunds of nothing",
        &[Forget, Cancel, Until("CANCELLED"), Quiet, Place],
        &[NEVER_CHARGED]),
    ("a declined order is cancelled",
        &[PlaceDeclined, Until("DECLINED"), Cancel],
        &[DECLINED]),
    ("both come again",
        &[Place, Until("AUTHORIZED"), Cancel, Quiet, Place, Cancel],
        &[PAID_AND_GIVEN_BACK]),
    ("both come again when the inbox has forgotten them",
        &[Place, Until("AUTHORIZED"), Cancel, Quiet, ForgetInbox, Place, Cancel],
        &[PAID_AND_GIVEN_BACK]),
    ("the order comes again when the inbox has forgotten it",
        &[Place, Until("AUTHORIZED"), Quiet, ForgetInbox, Place],
        &[PAID]),
    ("the refund overtakes the charge on its way to the bank",
        &[HoldRequest(Charge, 'a'), HoldAnswer(Refund, 'b'), Place, Arrived('a'),
          Cancel, Arrived('b'), Release('a'), Release('b')],
        &[NEVER_CHARGED]),
    ("the same at a bank that forgets refunds of nothing",
        &[HoldRequest(Charge, 'a'), Forget, Place, Arrived('a'),
          Cancel, Asked(Refund, 1), Release('a')],
        &[GIVEN_BACK]),
    ("cancelled while the answer of the charge is on its way back",
        &[HoldAnswer(Charge, 'a'), Place, Arrived('a'),
          Cancel, Until("REFUNDED"), Release('a')],
        &[GIVEN_BACK]),
    ("the charge is to be recorded between the fence and the refund",
        &[HoldAnswer(Charge, 'a'), HoldRequest(Refund, 'b'), Place, Arrived('a'),
          Cancel, Arrived('b'), Release('a'), Until("REFUNDED"), Release('b')],
        &[GIVEN_BACK]),
    ("the charge's answer is lost, and the order is cancelled while it is asked again",
        &[LoseAnswer(Charge), HoldRequest(Charge, 'a'), Place, Arrived('a'), Until("PENDING"),
          Cancel, Until("REFUNDED"), Release('a')],
        &[GIVEN_BACK]),
    ("the charge's answer is lost, and the order becomes a dead letter before it is cancelled",
        &[LoseAnswer(Charge), Refuse, Place, Until("PENDING"), Quiet, Cancel],
        &[GIVEN_BACK]),
    ("the charge fails, and the order is cancelled before it is tried again",
        &[HoldFailure(Charge, 'a'), Place, Arrived('a'),
          Cancel, Until("CANCELLED"), Asked(Refund, 1), Release('a')],
        &[NEVER_CHARGED]),
    ("a charge that payment no longer waits for arrives after the refund, at the same bank",
        &[HoldRequest(Charge, 'a'), HoldFailure(Charge, 'c'), Forget, Place, Arrived('a'),
          Arrived('c'), Cancel, Asked(Refund, 1), Release('a'), Charged, Release('c')],
        &[GIVEN_BACK]),
    ("the refund's answer is lost",
        &[Place, Until("AUTHORIZED"), LoseAnswer(Refund), Cancel],
        &[PAID_AND_GIVEN_BACK]),
    ("killed after the charge, cancelled before the next start",
        &[HoldAnswer(Charge, 'a'), Place, Arrived('a'), Kill, Cancel, Start],
        &[GIVEN_BACK, PAID_AND_GIVEN_BACK]),
    ("killed while the charge is on its way, which arrives after the refund",
        &[HoldRequest(Charge, 'a'), Place, Arrived('a'), Kill,
          HoldRequest(Charge, 'c'), HoldAnswer(Refund, 'b'), Cancel, Start,
          Arrived('b'), Release('a'), Release('c'), Release('b')],
        &[NEVER_CHARGED]),
    ("killed between the fence and the refund",
        &[Place, Until("AUTHORIZED"), HoldRequest(Refund, 'b'), Cancel, Arrived('b'),
          Kill, Start, Quiet, Release('b')],
        &[PAID_AND_GIVEN_BACK]),
    ("killed after the refund, before it is noted",
        &[Place, Until("AUTHORIZED"), HoldAnswer(Refund, 'b'), Cancel, Arrived('b'),
          Kill, Start, Release('b')],
        &[PAID_AND_GIVEN_BACK]),
    ("killed when the fence is written and the charge's answer not yet seen",
        &[HoldAnswer(Charge, 'a'), HoldRequest(Refund, 'b'), Place, Arrived('a'),
          Cancel, Arrived('b'), Kill, Start, Release('b')],
        &[GIVEN_BACK]),
    ("killed while payment gives back a charge that it found fenced",
        &[HoldAnswer(Charge, 'a'), HoldRequest(Refund, 'b'), HoldRequest(Refund, 'c'),
          Place, Arrived('a'), Cancel, Arrived('b'), Release('a'), Arrived('c'),
          Kill, Start, Release('b'), Release('c')],
        &[GIVEN_BACK]),
];

/// A saga begins with the order, and an order of which nobody knows what became of it makes it stuck: these
/// stories are not told of orders that are led.
fn can_be_led(steps: &[Step]) -> bool {
    let first = steps
        .iter()
        .find(|step| matches!(step, Place | PlaceDeclined | Cancel));
    let is_refused = steps.iter().any(|step| matches!(step, Refuse));
    !matches!(first, Some(Cancel)) && !is_refused
}

async fn run(number: usize, story: &Story, database: &Database, style: CheckoutStyle) {
    let (name, steps, ends) = story;
    if style == CheckoutStyle::Orchestration && !can_be_led(steps) {
        return;
    }
    let order = format!("o-{number}");
    let mut world = World::in_style(database.clone(), style).await;
    let mut held = HashMap::<char, Held>::new();
    for step in *steps {
        let mut hold = |letter: char| held.entry(letter).or_default().clone();
        match *step {
            Place => world.place(&order, "tok_ok").await,
            PlaceDeclined => world.place(&order, "tok_declined").await,
            Cancel => world.cancel(&order).await,
            HoldRequest(call, letter) => world.gate.rule(call, Rule::HoldRequest(hold(letter))),
            HoldAnswer(call, letter) => world.gate.rule(call, Rule::HoldAnswer(hold(letter))),
            HoldFailure(call, letter) => world.gate.rule(call, Rule::HoldFailure(hold(letter))),
            LoseAnswer(call) => world.gate.rule(call, Rule::LoseAnswer),
            Forget => world.gate.rule(Refund, Rule::Answer(200, NOTHING)),
            Refuse => world
                .gate
                .rule(Charge, Rule::Answer(422, "no such account")),
            Arrived(letter) => hold(letter).arrived(name).await,
            Release(letter) => hold(letter).release(),
            Asked(call, count) => {
                until(name, async || world.gate.count(call) >= count).await;
            }
            Charged => until(name, async || !world.ledger(&order).await.is_empty()).await,
            Until(status) => world.until_status(&order, status).await,
            Quiet => world.service.until_quiet().await,
            ForgetInbox => world.service.forget_inbox().await,
            Kill => world.service.kill().await,
            Start => world.service.start().await,
        }
    }
    world.service.until_quiet().await;
    let refused = steps.iter().filter(|step| matches!(step, Refuse)).count();
    assert_eq!(world.service.dead_letters().len(), refused, "{name}");
    let start = Instant::now();
    loop {
        let (status, amount) = world.payment(&order).await.unwrap_or_default();
        let (ledger, said) = (world.ledger(&order).await, world.service.said_of(&order));
        let is_end = |end: &End| status == end.status && ledger == end.ledger && said == end.said;
        if ends.iter().any(is_end) && amount == "99.99" {
            break;
        }
        // What is led goes on when the saga has its answers; and the money of a charge that was
        // cancelled in the middle is asked back once more after a while.
        assert!(
            style == CheckoutStyle::Orchestration && start.elapsed() < SOON,
            "{name}: {status} {amount} {ledger:?} {said:?}, not one of {ends:#?}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_the_order_of_things_no_money_stays_with_a_cancelled_order() {
    told(CheckoutStyle::Choreography).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_money_stays_with_an_order_that_a_saga_gave_up() {
    told(CheckoutStyle::Orchestration).await;
}

async fn told(style: CheckoutStyle) {
    let stories = STORIES.iter().enumerate().map(async |(number, story)| {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::Sqlite(folder.path().into());
        run(number, story, &database, style).await;
    });
    // Not all at once: on a busy machine a story must not take longer than payment waits for the
    // bank, which is five seconds.
    stream::iter(stories)
        .for_each_concurrent(AT_ONCE, |story| story)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs PostgreSQL"]
async fn the_same_on_postgresql() {
    let server = Postgres::start().unwrap();
    let database = Database::Postgres(server.url());
    for (number, story) in STORIES.iter().enumerate() {
        run(number, story, &database, CheckoutStyle::Choreography).await;
    }
}

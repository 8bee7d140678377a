//! Sagas that are steps of others: what a parent asks, and what it is told.

use tidings_saga::{
    Action, Answer, Arrival, CALL_OFF_NAME, ChildSagas, Explorer, Parent, Part, Saga, SagaState,
    Sagas, Start, StepError, StepId, Told,
};
use world::{
    BookParcel, ChargeCard, OrderCancelled, OrderConfirmed, OrderPlaced, RefundCard, ReleaseStock,
    ReserveStock, World, cancelled, raw,
};

mod world;

/// Carries out `ReserveStock` by two steps of its own.
async fn gather(command: ReserveStock, saga: Saga) -> Result<String, StepError> {
    let stock = saga.step(
        "shelf",
        ReserveStock {
            of: command.of.clone(),
        },
    );
    let shelf = stock.undo(|shelf| ReleaseStock { of: shelf }).await?;
    let charge = saga.step("pay", ChargeCard { of: command.of });
    let paid = charge.undo(|paid| RefundCard { of: paid }).await?;
    Ok(format!("{shelf} for {paid}"))
}

/// The same with a step that cannot be undone.
async fn final_gather(command: ReserveStock, saga: Saga) -> Result<String, StepError> {
    let stock = saga.step(
        "shelf",
        ReserveStock {
            of: command.of.clone(),
        },
    );
    stock.undo(|shelf| ReleaseStock { of: shelf }).await?;
    saga.step(
        "book",
        BookParcel {
            of: command.of.clone(),
        },
    )
    .pivot()
    .await?;
    saga.step("pay", ChargeCard { of: command.of })
        .no_undo()
        .await
}

fn step(part: Part) -> StepId {
    StepId {
        saga: "checkout".into(),
        key: "o-1".into(),
        run: 0,
        step: "gather".into(),
        part,
    }
}

/// One that has begun as the step `gather` of `checkout/o-1`.
struct Child {
    world: World,
    told: Vec<Told>,
}

impl Child {
    fn begin(sagas: ChildSagas<ReserveStock>, part: Part) -> Self {
        let mut world = World::start(
            Sagas::new("checkout", |order: &OrderPlaced| order.of.clone()).version(1, nothing),
        );
        world.definition = sagas.define("inventory");
        world.sent();
        let start = Start::of(&ReserveStock { of: "o-1".into() }).expect("a message");
        let parent = Parent::new(&step(part), "checkout.answers");
        assert_eq!(parent.key(), "checkout/0/gather/o-1");
        let turn = world.definition.start_child(start, parent, world.now);
        let mut child = Self {
            told: turn.told.clone(),
            world,
        };
        child.world.take(turn);
        child
    }

    fn arrive(&mut self, arrival: Arrival) {
        let turn = self.world.definition.advance(
            "checkout/0/gather/o-1",
            self.world.journal.clone(),
            [arrival],
            self.world.now,
        );
        self.told.extend(turn.told.clone());
        self.world.take(turn);
    }

    fn asks(&mut self, part: Part) {
        self.arrive(Arrival::Parent { part });
    }

    fn done(&mut self, step: &str, part: Part) {
        self.arrive(world::done(step, part, "x"));
    }

    /// What its parent was told since this was last asked.
    fn told(&mut self) -> Vec<String> {
        let told = std::mem::take(&mut self.told);
        let in_words = |told: Told| {
            assert_eq!(&*told.reply_to, "checkout.answers");
            assert_eq!(told.step.with(Part::Do), step(Part::Do));
            let what = match told.answer {
                Ok(Answer::Done(reply)) => format!("done {reply}"),
                Ok(Answer::Refused { reason, .. }) => format!("refused {reason}"),
                Err(reason) => format!("never {reason}"),
            };
            format!("{:?}: {what}", told.step.part).to_lowercase()
        };
        told.into_iter().map(in_words).collect()
    }

    fn sent(&mut self) -> Vec<String> {
        let sent = std::mem::take(&mut self.world.sent);
        let name = |message: tidings_core::Outgoing| {
            let id: StepId = message
                .envelope
                .header(tidings_saga::STEP_HEADER)
                .expect("a step")
                .parse()
                .expect("a step");
            assert_eq!(&*id.key, "checkout/0/gather/o-1");
            format!("{} {:?}", id.step, id.part).to_lowercase()
        };
        sent.into_iter().map(name).collect()
    }
}

async fn nothing(order: OrderPlaced, _: Saga) -> Result<OrderConfirmed, OrderCancelled> {
    Ok(OrderConfirmed { of: order.of })
}

fn sagas() -> ChildSagas<ReserveStock> {
    ChildSagas::new("gather").version(1, gather)
}

fn with_pivot() -> ChildSagas<ReserveStock> {
    ChildSagas::new("gather").version(1, final_gather)
}

fn completed() -> Child {
    let mut child = Child::begin(sagas(), Part::Do);
    child.done("shelf", Part::Do);
    child.done("pay", Part::Do);
    assert_eq!(child.told(), ["do: done \"x for x\""]);
    child.sent();
    child
}

#[test]
fn its_result_is_the_reply() {
    let mut child = completed();
    // The command comes again: it is answered again, and nothing is done twice.
    child.asks(Part::Do);
    assert_eq!(child.told(), ["do: done \"x for x\""]);
    assert!(child.sent().is_empty());
}

#[test]
fn its_error_is_a_refusal_when_everything_is_undone() {
    let mut child = Child::begin(sagas(), Part::Do);
    child.done("shelf", Part::Do);
    child.arrive(world::refused("pay", Part::Do, "no money"));
    child.asks(Part::Do);
    assert!(child.told().is_empty(), "not before it is undone");
    child.done("shelf", Part::Undo);
    assert_eq!(child.told(), ["do: refused no money"]);
    child.asks(Part::Cancel);
    assert_eq!(child.told(), ["cancel: refused no money"]);
}

#[test]
fn one_that_is_called_off_under_way_is_undone() {
    let mut child = Child::begin(sagas(), Part::Do);
    child.done("shelf", Part::Do);
    child.sent();
    child.asks(Part::Cancel);
    // Nobody knows whether it is paid.
    assert!(child.sent().is_empty() && child.told().is_empty());
    child.done("pay", Part::Do);
    child.done("pay", Part::Undo);
    child.done("shelf", Part::Undo);
    assert_eq!(child.sent(), ["pay undo", "shelf undo"]);
    assert_eq!(child.told(), ["cancel: refused it was called off"]);
    assert_eq!(child.world.journal.state, SagaState::Compensated);
}

#[test]
fn one_that_is_called_off_before_it_came_never_begins() {
    let mut child = Child::begin(sagas(), Part::Cancel);
    assert_eq!(child.told(), ["cancel: refused it was called off"]);
    child.asks(Part::Do);
    assert_eq!(child.told(), ["do: refused it was called off"]);
    assert!(child.sent().is_empty());
}

#[test]
fn one_that_was_done_is_undone_by_its_own_steps() {
    let mut child = completed();
    child.asks(Part::Undo);
    assert_eq!(child.sent(), ["pay undo"]);
    child.done("pay", Part::Undo);
    assert!(child.told().is_empty());
    child.done("shelf", Part::Undo);
    assert_eq!(child.told(), ["undo: done null"]);
    assert_eq!(child.world.journal.state, SagaState::Compensated);
    child.asks(Part::Undo);
    assert_eq!(child.told(), ["undo: done null"]);
    assert_eq!(child.sent(), ["shelf undo"]);
}

#[test]
fn past_its_pivot_it_refuses_to_be_undone() {
    let mut child = Child::begin(with_pivot(), Part::Do);
    child.done("shelf", Part::Do);
    child.done("book", Part::Do);
    child.sent();
    child.asks(Part::Cancel);
    assert!(child.told().is_empty(), "it goes on");
    child.done("pay", Part::Do);
    assert_eq!(child.told(), ["cancel: done \"x\""]);
    child.asks(Part::Undo);
    assert_eq!(
        child.told(),
        ["undo: refused `book` was done, which cannot be undone"]
    );
    assert_eq!(child.world.journal.state, SagaState::Completed);
    assert!(child.sent().is_empty());
}

#[test]
fn one_that_is_stuck_is_undone_without_its_function() {
    async fn buggy(command: ReserveStock, saga: Saga) -> Result<String, StepError> {
        let stock = saga.step("shelf", ReserveStock { of: command.of });
        stock.undo(|shelf| ReleaseStock { of: shelf }).await?;
        panic!("a bug");
    }
    let mut child = Child::begin(ChildSagas::new("gather").version(1, buggy), Part::Do);
    child.done("shelf", Part::Do);
    assert!(child.world.is_stuck().is_some());
    assert!(child.told().is_empty(), "its parent waits");
    child.asks(Part::Cancel);
    child.done("shelf", Part::Undo);
    assert_eq!(child.told(), ["cancel: refused it was called off"]);
}

#[test]
fn a_parent_hears_that_an_operator_gave_it_up() {
    let mut child = Child::begin(sagas(), Part::Do);
    child.arrive(Arrival::Operator {
        who: "ann".into(),
        why: "a test".into(),
        action: Action::GiveUp,
    });
    assert_eq!(child.told(), ["do: never an operator gave it up"]);
}

#[test]
fn every_outcome_of_a_child_is_legal() {
    let start = || Start::of(&ReserveStock { of: "o-1".into() }).expect("a message");
    for (sagas, with_pivot) in [(sagas(), false), (with_pivot(), true)] {
        let explored = Explorer::child(sagas.define("inventory"), start());
        let explored = explored.replies(|step, _| raw(&step.step));
        let explored = explored
            .never_refused(if with_pivot { &["pay"] } else { &[] })
            .run();
        println!("{explored:?}");
        assert!(explored.endings["completed"] > 0 && explored.endings["compensated"] > 0);
    }
}

/// Its stock is a saga of the inventory.
async fn parent(order: OrderPlaced, saga: Saga) -> Result<OrderConfirmed, OrderCancelled> {
    let stock = saga.step(
        "gather",
        ReserveStock {
            of: order.of.clone(),
        },
    );
    let place = stock.child().await.map_err(cancelled)?;
    let charge = saga.step("charge-card", ChargeCard { of: order.of });
    charge.no_undo().await.map_err(cancelled)?;
    Ok(OrderConfirmed { of: place })
}

fn parents() -> Sagas<OrderPlaced> {
    Sagas::new("checkout", |order: &OrderPlaced| order.of.clone()).version(1, parent)
}

#[test]
fn a_parent_calls_off_what_is_not_wanted() {
    let mut world = World::start(parents());
    assert_eq!(world.sent(), ["gather do"]);
    world.done("gather", "shelf 7");
    assert_eq!(world.sent(), ["charge-card do"]);
    world.refused("charge-card", "declined");
    let undo = world.sent.last().expect("an undo").clone();
    assert_eq!(world.sent(), ["gather undo"]);
    assert_eq!(undo.envelope.name, CALL_OFF_NAME);
    assert_eq!(&*undo.envelope.body, br#"{"command":"reserve-stock.v1"}"#);
    assert_eq!(
        undo.destination.to_string(),
        tidings_core::Destination::queue("inventory.tidings.call-off.v1").to_string()
    );
    world.undone("gather");
    assert_eq!(world.journal.state, SagaState::Compensated);
    // While it is not known whether it was done.
    let mut world = World::start(parents());
    world.sent();
    world.operate(Action::Compensate);
    assert_eq!(world.sent(), ["gather cancel"]);
    world.arrive([world::refused("gather", Part::Cancel, "it was called off")]);
    assert_eq!(world.journal.state, SagaState::Compensated);
}

#[test]
fn every_outcome_of_a_parent_is_legal() {
    let start = Start::of(&OrderPlaced { of: "o-1".into() }).expect("a message");
    let explored = Explorer::new(parents().define("checkout"), "o-1", start)
        .replies(|step, _| raw(&step.step))
        .run();
    println!("{explored:?}");
    assert!(explored.endings["completed"] > 0 && explored.endings["compensated"] > 0);
}

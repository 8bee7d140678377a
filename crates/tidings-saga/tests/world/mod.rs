//! A saga without anything around it: what it sends is looked at, what arrives is said.

#![allow(dead_code)]

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tidings_core::{Command, Destination, Message, Outgoing};
use tidings_saga::{
    Action, Answer, Arrival, Definition, Journal, Part, STEP_HEADER, Saga, SagaState, Sagas, Start,
    Step, StepError, StepId, Turn,
};

macro_rules! messages {
    ($($of:ident: $name:literal, $to:expr;)+) => {$(
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        pub(crate) struct $of {
            pub(crate) of: String,
        }

        impl Message for $of {
            const NAME: &'static str = $name;
            const DESTINATION: Destination = $to;
        }
    )+};
}

messages! {
    OrderPlaced: "order-placed.v1", Destination::topic("orders");
    OrderConfirmed: "order-confirmed.v1", Destination::topic("orders");
    OrderCancelled: "order-cancelled.v1", Destination::topic("orders");
    ReserveStock: "reserve-stock.v1", Destination::queue("inventory.reserve-stock.v1");
    ReleaseStock: "release-stock.v1", Destination::queue("inventory.release-stock.v1");
    ChargeCard: "charge-card.v1", Destination::queue("payment.charge-card.v1");
    RefundCard: "refund-card.v1", Destination::queue("payment.refund-card.v1");
    CancelCharge: "cancel-charge.v1", Destination::queue("payment.cancel-charge.v1");
    BookParcel: "book-parcel.v1", Destination::queue("shipping.book-parcel.v1");
}

macro_rules! steps {
    ($($of:ident: $target:literal, $reply:ty;)+) => {$(
        impl Command for $of {
            const TARGET: &'static str = $target;
        }

        impl Step for $of {
            type Reply = $reply;
        }
    )+};
}

steps! {
    ReserveStock: "inventory", String;
    ReleaseStock: "inventory", ();
    ChargeCard: "payment", String;
    RefundCard: "payment", ();
    CancelCharge: "payment", ();
    BookParcel: "shipping", String;
}

pub(crate) fn of(text: impl Into<String>) -> String {
    text.into()
}

pub(crate) fn cancelled(error: StepError) -> OrderCancelled {
    OrderCancelled {
        of: error.to_string(),
    }
}

/// Stock and money at the same time, then the parcel.
pub(crate) async fn checkout(
    order: OrderPlaced,
    saga: Saga,
) -> Result<OrderConfirmed, OrderCancelled> {
    let id = order.of;
    let stock = saga
        .step("reserve-stock", ReserveStock { of: id.clone() })
        .undo(|place| ReleaseStock { of: place });
    let charge = saga
        .step("charge-card", ChargeCard { of: id.clone() })
        .cancel(CancelCharge { of: id.clone() })
        .deadline(std::time::Duration::from_secs(600))
        .retry(2)
        .undo(|charge| RefundCard { of: charge });
    saga.all((stock, charge)).await.map_err(cancelled)?;
    let parcel = saga.step("book-parcel", BookParcel { of: id }).pivot();
    let tracking = parcel.await.map_err(cancelled)?;
    Ok(OrderConfirmed { of: tracking })
}

/// One saga under the key `o-1`.
pub(crate) struct World {
    pub(crate) definition: Definition,
    pub(crate) journal: Journal,
    pub(crate) now: Timestamp,
    /// What was sent and not looked at.
    pub(crate) sent: Vec<Outgoing>,
    pub(crate) due: Option<Timestamp>,
    pub(crate) ignored: Vec<String>,
}

impl World {
    pub(crate) fn start(sagas: Sagas<OrderPlaced>) -> Self {
        let definition = sagas.define("checkout");
        let start = start("o-1");
        let now = Timestamp::from_second(1_700_000_000).expect("a time");
        let turn = definition.start("o-1", start, now);
        let mut world = Self {
            definition,
            journal: turn.journal.clone(),
            now,
            sent: Vec::new(),
            due: None,
            ignored: Vec::new(),
        };
        world.take(turn);
        world
    }

    pub(crate) fn take(&mut self, turn: Turn) {
        // What is stored comes back.
        let written = turn.body;
        assert_eq!(turn.journal.write(), written);
        self.journal = Journal::read(&written).expect("it can be read");
        assert_eq!(self.journal.write(), written);
        self.due = turn.due;
        self.ignored.extend(turn.ignored);
        self.sent.extend(turn.outgoing);
        if self.journal.state == SagaState::Running {
            let checked = self.definition.check("o-1", &self.journal);
            checked.expect("it replays");
        }
    }

    pub(crate) fn arrive(&mut self, arrivals: impl IntoIterator<Item = Arrival>) {
        let journal = self.journal.clone();
        let turn = self.definition.advance("o-1", journal, arrivals, self.now);
        self.take(turn);
    }

    pub(crate) fn done(&mut self, step: &str, reply: &str) {
        self.arrive([done(step, Part::Do, reply)]);
    }

    pub(crate) fn refused(&mut self, step: &str, reason: &str) {
        self.arrive([refused(step, Part::Do, reason)]);
    }

    pub(crate) fn undone(&mut self, step: &str) {
        self.arrive([done(step, Part::Undo, "")]);
    }

    pub(crate) fn operate(&mut self, action: Action) {
        self.arrive([Arrival::Operator {
            who: "ann".into(),
            why: "a test".into(),
            action,
        }]);
    }

    /// The time passes, and what is due is told.
    pub(crate) fn wait(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
        if self.due.is_some_and(|due| due <= self.now) {
            self.arrive([Arrival::Due]);
        }
    }

    /// What was sent since this was last asked: names of events, and steps with what is asked of them.
    pub(crate) fn sent(&mut self) -> Vec<String> {
        let sent = std::mem::take(&mut self.sent);
        let name = |message: &Outgoing| match message.envelope.header(STEP_HEADER) {
            None => message.envelope.name.clone().into_owned(),
            Some(id) => {
                let id: StepId = id.parse().expect("a step");
                assert_eq!((&*id.saga, &*id.key), ("checkout", "o-1"));
                format!("{} {:?}", id.step, id.part).to_lowercase()
            }
        };
        sent.iter().map(name).collect()
    }

    pub(crate) fn is_stuck(&self) -> Option<&str> {
        match &self.journal.state {
            SagaState::Stuck { reason, .. } => Some(reason),
            _ => None,
        }
    }
}

pub(crate) fn start(key: &str) -> Start {
    let body = serde_json::value::to_raw_value(&OrderPlaced { of: key.into() });
    Start {
        name: OrderPlaced::NAME.into(),
        id: format!("order-placed.v1/{key}").into(),
        correlation_id: Some(key.into()),
        body: body.expect("JSON"),
    }
}

pub(crate) fn raw(text: &str) -> Box<RawValue> {
    serde_json::value::to_raw_value(text).expect("JSON")
}

pub(crate) fn done(step: &str, part: Part, reply: &str) -> Arrival {
    Arrival::Answer {
        run: 0,
        step: step.into(),
        part,
        answer: Answer::Done(raw(reply)),
    }
}

pub(crate) fn refused(step: &str, part: Part, reason: &str) -> Arrival {
    let answer = Answer::Refused {
        reason: reason.into(),
        for_now: false,
    };
    Arrival::Answer {
        run: 0,
        step: step.into(),
        part,
        answer,
    }
}

pub(crate) fn refused_for_now(step: &str) -> Arrival {
    let answer = Answer::Refused {
        reason: "later".into(),
        for_now: true,
    };
    Arrival::Answer {
        run: 0,
        step: step.into(),
        part: Part::Do,
        answer,
    }
}

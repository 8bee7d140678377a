//! Journals that earlier versions wrote are gone on with, and what is sent from them is what it was.

use tidings_core::{Outgoing, REPLY_TO_HEADER};
use tidings_saga::{Action, Journal, STEP_HEADER, Sagas};
use world::{OrderPlaced, World, checkout};

mod world;

/// As the first version of journals wrote it: messages in it say where their answers go.
const ADDRESSED: &str = r##"{"format":1,"version":1,"run":0,"state":"running","started":"2023-11-14T22:13:20Z","start":{"name":"order-placed.v1","id":"order-placed.v1/o-1","correlation_id":"o-1","body":{"of":"o-1"}},"entries":[{"at":"2023-11-14T22:13:20Z","what":{"sent":{"step":"reserve-stock","command":"reserve-stock.v1","fingerprint":15141872634824342449,"undo":"by-command"}}},{"at":"2023-11-14T22:13:20Z","what":{"sent":{"step":"charge-card","command":"charge-card.v1","fingerprint":6980216538314677587,"undo":"by-command","deadline":"2023-11-14T22:23:20Z","retries":2,"send":{"metadata":{"queue":"payment.charge-card.v1","id":"checkout/0/charge-card/o-1","name":"charge-card.v1","correlationId":"o-1","contentType":"application/json","headers":[["tidings-reply-to","checkout.tidings.step-answer.v1"],["tidings-step","checkout/0/charge-card/o-1"]]},"body":{"of":"o-1"}},"cancel":{"metadata":{"queue":"payment.cancel-charge.v1","id":"checkout/0/charge-card#cancel/o-1","name":"cancel-charge.v1","correlationId":"o-1","contentType":"application/json","headers":[["tidings-reply-to","checkout.tidings.step-answer.v1"],["tidings-step","checkout/0/charge-card#cancel/o-1"]]},"body":{"of":"o-1"}}}}},{"at":"2023-11-14T22:13:20Z","what":{"done":{"step":"reserve-stock","reply":"r-1","undo":{"metadata":{"queue":"inventory.release-stock.v1","id":"checkout/0/reserve-stock#undo/o-1","name":"release-stock.v1","correlationId":"o-1","contentType":"application/json","headers":[["tidings-reply-to","checkout.tidings.step-answer.v1"],["tidings-step","checkout/0/reserve-stock#undo/o-1"]]},"body":{"of":"r-1"}}}}}]}"##;

/// The same as it is written now: without what is said anew whenever it is sent.
const BARE: &str = r##"{"format":1,"version":1,"run":0,"state":"running","started":"2023-11-14T22:13:20Z","start":{"name":"order-placed.v1","id":"order-placed.v1/o-1","correlation_id":"o-1","body":{"of":"o-1"}},"entries":[{"at":"2023-11-14T22:13:20Z","what":{"sent":{"step":"reserve-stock","command":"reserve-stock.v1","fingerprint":15141872634824342449,"undo":"by-command"}}},{"at":"2023-11-14T22:13:20Z","what":{"sent":{"step":"charge-card","command":"charge-card.v1","fingerprint":6980216538314677587,"undo":"by-command","deadline":"2023-11-14T22:23:20Z","retries":2,"send":{"metadata":{"queue":"payment.charge-card.v1","name":"charge-card.v1","contentType":"application/json"},"body":{"of":"o-1"}},"cancel":{"metadata":{"queue":"payment.cancel-charge.v1","id":"checkout/0/charge-card#cancel/o-1","name":"cancel-charge.v1","correlationId":"o-1","contentType":"application/json","headers":[["tidings-reply-to","checkout.tidings.step-answer.v1"],["tidings-step","checkout/0/charge-card#cancel/o-1"]]},"body":{"of":"o-1"}}}}},{"at":"2023-11-14T22:13:20Z","what":{"done":{"step":"reserve-stock","reply":"r-1","undo":{"metadata":{"queue":"inventory.release-stock.v1","name":"release-stock.v1","contentType":"application/json"},"body":{"of":"r-1"}}}}}]}"##;

fn sagas() -> Sagas<OrderPlaced> {
    Sagas::new("checkout", |order: &OrderPlaced| order.of.clone()).version(1, checkout)
}

fn with(stored: &str) -> World {
    let mut world = World::start(sagas());
    world.sent();
    world.journal = Journal::read(stored.as_bytes()).expect("it can be read");
    world
}

#[test]
fn the_form_of_a_journal_is_a_promise() {
    let mut world = World::start(sagas());
    world.done("reserve-stock", "r-1");
    let written = String::from_utf8(world.journal.write()).expect("JSON");
    assert_eq!(written, BARE);
}

/// A message of a saga: its id, its step, and the body.
fn check(message: &Outgoing, queue: &str, id: &str, step: &str, body: &str) {
    let envelope = &message.envelope;
    assert_eq!(message.destination.name(), queue);
    assert_eq!(envelope.id.as_ref().map(|id| id.as_str()), Some(id));
    assert_eq!(envelope.correlation_id.as_deref(), Some("o-1"));
    let headers: Vec<(&str, &str)> = envelope
        .headers
        .iter()
        .map(|(name, value)| (&**name, &**value))
        .collect();
    let reply_to = (REPLY_TO_HEADER, "checkout.tidings.step-answer.v1");
    assert_eq!(headers, [reply_to, (STEP_HEADER, step)]);
    assert_eq!(&*envelope.body, body.as_bytes());
}

#[test]
fn what_undoes_a_step_is_sent_from_journals_of_both_forms() {
    for stored in [ADDRESSED, BARE] {
        let mut world = with(stored);
        world.refused("charge-card", "declined");
        let [undo] = &*std::mem::take(&mut world.sent) else {
            panic!("one message is sent");
        };
        let id = "checkout/0/reserve-stock#undo/o-1";
        check(
            undo,
            "inventory.release-stock.v1",
            id,
            id,
            r#"{"of":"r-1"}"#,
        );
        world.undone("reserve-stock");
        assert_eq!(world.sent(), ["order-cancelled.v1"]);
    }
}

#[test]
fn a_command_is_sent_again_from_journals_of_both_forms() {
    for stored in [ADDRESSED, BARE] {
        let mut world = with(stored);
        world.operate(Action::Retry);
        let [again] = &*std::mem::take(&mut world.sent) else {
            panic!("one message is sent");
        };
        let step = "checkout/0/charge-card/o-1";
        let id = format!("{step}/2");
        check(
            again,
            "payment.charge-card.v1",
            &id,
            step,
            r#"{"of":"o-1"}"#,
        );
    }
}

#[test]
fn a_step_is_cancelled_from_journals_of_both_forms() {
    for stored in [ADDRESSED, BARE] {
        let mut world = with(stored);
        world.operate(Action::Compensate);
        let [cancel] = &*std::mem::take(&mut world.sent) else {
            panic!("one message is sent");
        };
        let id = "checkout/0/charge-card#cancel/o-1";
        check(
            cancel,
            "payment.cancel-charge.v1",
            id,
            id,
            r#"{"of":"o-1"}"#,
        );
    }
}

//! Whom a change breaks: a pair of tests for each rule.

use serde_json::{Value, json};
use tidings_contracts::{
    Body, Contract, Deprecation, Document, Example, MessageKind,
    check::{Finding, Rule, Severity, changes, lints, system},
};

fn contract(name: &str, schema: Value) -> Contract {
    let mut contract = Contract::new(name, MessageKind::Event, name);
    contract.body = Body::Json(schema);
    contract.acknowledges = Some(true);
    contract.dead_letters = Some("dead".to_owned());
    contract
}

fn sender(contracts: Vec<Contract>) -> Document {
    let mut document = Document::new("orders", "1.0.0");
    document.sends = contracts;
    document
}

fn reader(name: &str, contracts: Vec<Contract>) -> Document {
    let mut document = Document::new(name, "2.0.0");
    document.receives = contracts;
    document
}

/// An order with these fields, all of which are there.
fn order(fields: &[&str]) -> Value {
    let properties = fields
        .iter()
        .map(|name| ((*name).to_owned(), json!({"type": "string"})));
    let properties: serde_json::Map<String, Value> = properties.collect();
    json!({"type": "object", "properties": properties, "required": fields})
}

const NAME: &str = "order-confirmed.v1";

/// What was found, in short: who is to act, the rule, the consumer, and the field.
fn short(found: &[Finding]) -> Vec<String> {
    let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    let found = found.iter().map(|it| {
        let severity = if it.severity == Severity::Error {
            "error"
        } else {
            "warning"
        };
        format!(
            "{severity} {} {} {} {}",
            it.rule,
            it.service,
            or(&it.consumer),
            or(&it.field)
        )
    });
    found.collect()
}

#[track_caller]
fn check(before: &[Document], now: &[Document], rule: Rule, expected: &[&str]) {
    assert_eq!(short(&changes(before, now, rule)), expected);
}

#[test]
fn services_understand_each_other_or_are_named() {
    let orders = sender(vec![contract(NAME, order(&["id", "amount"]))]);
    let fine = reader("loyalty", vec![contract(NAME, order(&["id"]))]);
    assert_eq!(system(&[orders.clone(), fine]), []);
    let asks = reader("loyalty", vec![contract(NAME, order(&["id", "customer"]))]);
    let found = system(&[orders.clone(), asks]);
    assert_eq!(short(&found), ["error mismatch orders loyalty customer"]);
    let mut elsewhere = contract(NAME, order(&["id"]));
    elsewhere.address = "other".to_owned();
    let found = system(&[orders.clone(), reader("loyalty", vec![elsewhere])]);
    assert_eq!(short(&found), ["error mismatch orders loyalty -"]);
    assert!(
        found[0]
            .what
            .contains("sends `order-confirmed.v1` to `order-confirmed.v1`")
    );
    // Of other formats only the format is known.
    let mut avro = contract(NAME, json!({}));
    avro.body = Body::Other("application/vnd.apache.avro".to_owned());
    let found = system(&[orders, reader("loyalty", vec![avro])]);
    assert_eq!(short(&found), ["error mismatch orders loyalty -"]);
}

#[test]
fn a_command_needs_somebody_who_carries_it_out() {
    let mut command = contract("charge-card.v1", order(&["id"]));
    command.kind = MessageKind::Command;
    let orders = sender(vec![command.clone()]);
    assert_eq!(
        short(&system(std::slice::from_ref(&orders))),
        ["warning unheard orders - -"]
    );
    assert_eq!(system(&[orders, reader("payment", vec![command])]), []);
}

#[test]
fn a_sender_that_changes_is_checked_against_who_is_deployed() {
    let loyalty = reader("loyalty", vec![contract(NAME, order(&["id"]))]);
    let orders = |fields: &[&str]| sender(vec![contract(NAME, order(fields))]);
    let before = [orders(&["id", "note"]), loyalty];
    check(&before, &before, Rule::Full, &[]);
    check(&before, &[orders(&["id", "note", "more"])], Rule::Full, &[]);
    check(
        &before,
        &[orders(&["note"])],
        Rule::Full,
        &["error sender-changed orders loyalty id"],
    );
    // Nobody known reads the note; others may.
    check(
        &before,
        &[orders(&["id"])],
        Rule::Forward,
        &["error shape-changed orders - note"],
    );
    // It is no change of a consumer.
    check(&before, &[orders(&["note"])], Rule::Backward, &[]);
    // What was broken before is not the change's fault.
    let broken = [orders(&["note"]), before[1].clone()];
    check(&broken, &[orders(&["note"])], Rule::Full, &[]);
}

#[test]
fn a_field_that_may_be_left_out_is_missed_by_who_uses_it() {
    let mut schema = order(&["id", "email"]);
    schema["required"] = json!(["id"]);
    let before = sender(vec![contract(NAME, schema.clone())]);
    let now = [sender(vec![contract(NAME, order(&["id"]))])];
    let mut read = contract(NAME, schema);
    let deployed = [before.clone(), reader("mails", vec![read.clone()])];
    check(
        &deployed,
        &now,
        Rule::Full,
        &["warning shape-changed orders - email"],
    );
    read.uses = vec!["email".to_owned()];
    let deployed = [before, reader("mails", vec![read])];
    check(
        &deployed,
        &now,
        Rule::Full,
        &["error sender-changed orders mails email"],
    );
}

#[test]
fn a_message_that_ends_is_missed_by_who_does_not_read_the_next() {
    let newer = "order-confirmed.v2";
    let one = |name: &str| contract(name, order(&["id"]));
    let before = |read: &[&str]| {
        let read = read.iter().map(|name| one(name)).collect();
        [sender(vec![one(NAME)]), reader("loyalty", read)]
    };
    let both = [sender(vec![one(NAME), one(newer)])];
    let only_newer = [sender(vec![one(newer)])];
    check(&before(&[NAME]), &both, Rule::Full, &[]);
    check(
        &before(&[NAME]),
        &only_newer,
        Rule::Full,
        &["error sender-changed orders loyalty -"],
    );
    check(&before(&[NAME, newer]), &only_newer, Rule::Full, &[]);
    // Nobody read it.
    check(&before(&[]), &only_newer, Rule::Full, &[]);
    // Another service says it from now on.
    let mut billing = Document::new("billing", "1.0.0");
    billing.sends = vec![one(NAME)];
    check(
        &before(&[NAME]),
        &[sender(Vec::new()), billing],
        Rule::Full,
        &[],
    );
}

#[test]
fn a_consumer_that_changes_must_read_what_waits() {
    let orders = sender(vec![contract(NAME, order(&["id", "amount"]))]);
    let loyalty = |fields: &[&str]| reader("loyalty", vec![contract(NAME, order(fields))]);
    let before = [orders, loyalty(&["id"])];
    check(&before, &[loyalty(&["id", "amount"])], Rule::Full, &[]);
    let asks = [loyalty(&["id", "customer"])];
    let expected = ["error consumer-changed loyalty loyalty customer"];
    check(&before, &asks, Rule::Full, &expected);
    check(&before, &asks, Rule::Backward, &expected);
    check(&before, &asks, Rule::Forward, &[]);
    // A service that is new reads from the first day what is sent.
    let mut new = asks[0].clone();
    new.service = "points".to_owned();
    check(
        &before,
        &[new],
        Rule::Full,
        &["error consumer-changed points points customer"],
    );
}

#[test]
fn what_ends_and_who_still_reads_it_is_told() {
    let mut old = contract(NAME, order(&["id"]));
    old.deprecated = Some(Deprecation {
        since: "2026-12-01".to_owned(),
        until: Some("2027-06-01".to_owned()),
        instead: Some("order-confirmed.v2".to_owned()),
    });
    let orders = sender(vec![old]);
    assert_eq!(lints(std::slice::from_ref(&orders)), []);
    let found = lints(&[
        orders,
        reader("loyalty", vec![contract(NAME, order(&["id"]))]),
    ]);
    assert_eq!(short(&found), ["warning deprecated orders - -"]);
    assert_eq!(
        found[0].what,
        "`order-confirmed.v1` is deprecated since 2026-12-01 and sent until 2027-06-01; loyalty still read it"
    );
    assert_eq!(found[0].todo, "Read `order-confirmed.v2` instead");
}

#[test]
fn a_body_is_held_against_its_budget() {
    let with = |bytes: usize, budget: u64| {
        let mut contract = contract(NAME, order(&["id"]));
        contract.body_bytes_max = Some(budget);
        let body = json!({"id": "x".repeat(bytes), "note": "short"});
        contract.examples = vec![Example { name: None, body }];
        lints(&[sender(vec![contract])])
    };
    assert_eq!(with(100, 1000), []);
    assert_eq!(
        short(&with(800, 1000)),
        ["warning large-payload orders - -"]
    );
    let over = with(1000, 1000);
    assert_eq!(short(&over), ["error large-payload orders - -"]);
    assert!(
        over[0]
            .what
            .contains("the most is in `id` (1002), `note` (7)"),
        "{}",
        over[0].what
    );
}

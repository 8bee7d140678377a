//! What really flows is compared with what documents say.

use serde_json::{Value, json};
use tidings_contracts::{
    Document,
    check::{self, Severity},
    observed::{Heard, Observed},
};

/// Orders sends, loyalty reads more than that says.
fn documents() -> Vec<Document> {
    let document = |service: &str, action: &str, payload: Value| {
        let document = json!({
            "asyncapi": "3.0.0",
            "info": {"title": service, "version": "1.0.0"},
            "channels": {"orders": {"address": "order_events", "messages": {
                "placed": {"name": "order-placed.v1", "payload": payload, "x-tidings": {"bodyBytesMax": 200}},
            }}},
            "operations": {"it": {"action": action, "channel": {"$ref": "#/channels/orders"}}},
        });
        Document::parse(&document.to_string()).unwrap()
    };
    let items = json!({"type": "array", "items": {"type": "object", "properties": {"quantity": {"type": "integer"}}}});
    let orders = json!({
        "type": "object", "required": ["orderId"],
        "properties": {"orderId": {"type": "string"}, "items": items},
    });
    let loyalty = json!({"type": "object", "required": ["orderId", "customerId"]});
    vec![
        document("orders", "send", orders),
        document("loyalty", "receive", loyalty),
    ]
}

fn heard<'a>(name: &'a str, body: &'a str) -> Heard<'a> {
    let mut heard = Heard::event("order_events", name, body.as_bytes());
    (heard.has_id, heard.has_key) = (true, true);
    heard
}

fn with<'a>(mut heard: Heard<'a>, change: impl FnOnce(&mut Heard<'a>)) -> Heard<'a> {
    change(&mut heard);
    heard
}

/// The findings of these messages, in short: severity, rule, field, consumer.
#[track_caller]
fn check(documents: &[Document], all: &[Heard<'_>], expected: &[(Severity, &str, &str, &str)]) {
    let mut observed = Observed::new(documents);
    all.iter().for_each(|it| observed.add(it));
    let findings = observed.findings();
    let short: Vec<(Severity, &str, &str, &str)> = findings
        .iter()
        .map(|it| {
            let text = |it: &'_ Option<String>| it.clone().unwrap_or_default().leak() as &str;
            (it.severity, it.rule, text(&it.field), text(&it.consumer))
        })
        .collect();
    assert_eq!(short, expected, "{findings:#?}");
}

use Severity::{Error, Warning};

#[test]
fn bodies_are_compared_with_the_schemas_of_who_sends_and_of_who_reads_them() {
    let fine = heard(
        "order-placed.v1",
        r#"{"orderId": "o-1", "customerId": "c-1"}"#,
    );
    check(&documents(), &[fine], &[]);
    // A message without a name is the one that is sent to the topic.
    let bare = with(fine, |it| it.name = "");
    check(&documents(), &[bare], &[(Warning, "no-name", "", "")]);
    let retyped = heard(
        "order-placed.v1",
        r#"{"orderId": "o-1", "customerId": "c-1", "items": [{"quantity": 1}, {"quantity": "two"}]}"#,
    );
    check(
        &documents(),
        &[fine, retyped],
        &[(Error, "body-differs", "items[].quantity", "")],
    );
    let without = heard("order-placed.v1", r#"{"orderId": "o-1"}"#);
    let of_consumer = (Error, "body-differs", "", "loyalty");
    check(&documents(), &[without], &[of_consumer]);
    let broken = heard("order-placed.v1", r#"{"orderId":"#);
    check(&documents(), &[broken], &[(Error, "not-json", "", "")]);
    let strange = heard("order-lost.v1", "{}");
    check(
        &documents(),
        &[strange],
        &[(Warning, "undocumented", "", "")],
    );
}

#[test]
fn the_mistakes_are_found_without_documents() {
    let fine = heard("order-placed.v1", "{}");
    check(&[], &[fine], &[]);
    let command = heard("process-payment.v1", "{}");
    check(&[], &[command], &[(Warning, "command-like-event", "", "")]);
    let to_one = with(command, |it| it.is_event = false);
    check(&[], &[to_one], &[]);
    let no_id = with(fine, |it| it.has_id = false);
    check(&[], &[no_id], &[(Warning, "no-id", "", "")]);
    // One that has never a key needs none; one that has it sometimes lost it.
    let no_key = with(fine, |it| it.has_key = false);
    check(&[], &[no_key, no_key], &[]);
    check(&[], &[no_key, fine], &[(Warning, "no-key", "", "")]);
    let large = format!(r#"{{"photo": "{}"}}"#, "x".repeat(70_000));
    let large = heard("order-placed.v1", &large);
    check(&[], &[large], &[(Error, "large-payload", "", "")]);
    // The document has a budget of its own.
    let body = format!(r#"{{"orderId": "{}", "customerId": "c"}}"#, "x".repeat(200));
    let large = heard("order-placed.v1", &body);
    check(&documents(), &[large], &[(Error, "large-payload", "", "")]);
    check(&[], &[large], &[]);
    let no_json = heard("order-placed.v1", "placed o-1");
    check(&[], &[no_json], &[(Warning, "not-json", "", "")]);
}

/// What is heard may be somebody's: it is in no finding, and in no document.
#[test]
fn no_value_of_a_body_is_told() {
    let secret = "mira@example.org";
    let body = format!(r#"{{"orderId": 7, "customerId": "{secret}", "items": "{secret}"}}"#);
    let mut observed = Observed::new(&documents());
    observed.add(&heard("order-placed.v1", &body));
    observed.add(&heard("order-placed.v1", &format!(r#""{secret}""#)));
    let findings = observed.findings();
    assert!(findings.len() >= 3, "{findings:#?}");
    let told = format!("{findings:?} {}", observed.document("shop").to_json());
    assert!(told.contains("/items") && !told.contains(secret), "{told}");
}

/// A team without documents gets one that is read again, and that all it has heard keeps.
#[test]
fn a_first_document_is_learned_from_what_is_heard() {
    let bodies = [
        json!({"orderId": "o-1", "amount": 1, "placedAt": "2026-11-29T10:00:00Z"}),
        json!({"orderId": "o-2", "amount": 2.5, "placedAt": "2026-11-29T10:00:01Z", "note": null}),
    ];
    let texts: Vec<String> = bodies.iter().map(Value::to_string).collect();
    let mut observed = Observed::new(&[]);
    for text in &texts {
        observed.add(&heard("order-placed.v1", text));
        observed.add(&Heard::event("stock_events", "", text.as_bytes()));
    }
    observed.add(&heard("order-noted.v1", "no JSON"));
    let document = Document::parse(&observed.document("legacy").to_json()).unwrap();
    assert_eq!(document.service, "legacy");
    let names: Vec<&str> = document.sends.iter().map(|it| &*it.name).collect();
    assert_eq!(names, ["order-noted.v1", "order-placed.v1", "stock_events"]);
    assert_eq!(document.sends[2].address, "stock_events");
    // It says what was heard, and another body is found by it.
    let documents = std::slice::from_ref(&document);
    let all: Vec<Heard<'_>> = texts
        .iter()
        .map(|it| heard("order-placed.v1", it))
        .collect();
    self::check(documents, &all, &[]);
    let other = heard(
        "order-placed.v1",
        r#"{"orderId": "o-3", "amount": "2", "placedAt": "soon"}"#,
    );
    let found = [
        (Error, "body-differs", "amount", ""),
        (Error, "body-differs", "placedAt", ""),
    ];
    self::check(documents, &[other], &found);
    assert_eq!(check::system(documents), []);
    // A body that is no JSON has no schema, and nothing is said of its bodies.
    self::check(documents, &[heard("order-noted.v1", "no JSON")], &[]);
}

/// Names that a broken sender makes up do not fill the memory.
#[test]
fn there_is_an_end_to_how_many_names_are_kept() {
    let mut observed = Observed::new(&[]);
    for number in 0..2_000 {
        observed.add(&heard(&format!("order-placed-{number}.v1"), "{}"));
    }
    let counts: Vec<u64> = observed.seen().map(|it| it.count).collect();
    assert_eq!(counts.iter().sum::<u64>(), 2_000);
    assert_eq!(counts.len(), 1_001);
    assert!(
        observed
            .seen()
            .any(|it| it.name == "(others)" && it.count == 1_000)
    );
}

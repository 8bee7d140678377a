//! `tidings contracts register` and `check --registry`, on a real schema registry.

use serde_json::{Value, json};
use tidings_testing::servers::{SchemaRegistry, registry_url};

use crate::run::{Ran, tidings};

/// The document of a service that sends these events to a topic of this test.
struct Sender {
    folder: tempfile::TempDir,
    topic: String,
}

impl Sender {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            topic: format!("orders-{}", uuid::Uuid::new_v4().simple()),
        }
    }

    /// Writes the document: the messages' names with their payloads.
    fn sends(&self, messages: &[(&str, Value)]) -> String {
        let by_name = |value: &dyn Fn(&str, &Value) -> Value| -> Value {
            let all = messages
                .iter()
                .map(|(name, payload)| ((*name).to_owned(), value(name, payload)));
            Value::Object(all.collect())
        };
        let document = json!({
            "asyncapi": "3.0.0",
            "info": { "title": "orders", "version": "1.0.0" },
            "channels": { "orders": {
                "address": self.topic,
                "messages": by_name(&|name, payload| json!({ "name": name, "payload": payload })),
            } },
            "operations": { "say": { "action": "send", "channel": { "$ref": "#/channels/orders" } } },
        });
        let file = self.folder.path().join("orders.asyncapi.json");
        std::fs::write(&file, document.to_string()).unwrap();
        file.to_str().unwrap().to_owned()
    }

    fn subject(&self, message: &str) -> String {
        format!("{}-{message}", self.topic)
    }
}

fn placed(fields: Value) -> Value {
    let required: Vec<&String> = fields.as_object().unwrap().keys().collect();
    json!({ "type": "object", "properties": fields, "required": required })
}

fn avro(fields: &Value) -> Value {
    json!({
        "schemaFormat": "application/vnd.apache.avro+json;version=1.9.0",
        "schema": { "type": "record", "name": "OrderPaid", "fields": fields },
    })
}

fn protobuf(fields: &str) -> Value {
    json!({
        "schemaFormat": "application/vnd.google.protobuf;version=3",
        "schema": format!("syntax = \"proto3\";\nmessage OrderSent {{ {fields} }}\n"),
    })
}

const BY: [&str; 2] = ["--subject", "topic-message"];

#[track_caller]
fn register(file: &str, url: &str) -> Ran {
    tidings([&["contracts", "register", file, "--to", url][..], &BY].concat())
}

#[track_caller]
fn check(file: &str, url: &str, more: &[&str]) -> Ran {
    let args = ["contracts", "check", file, "--registry", url];
    tidings([&args[..], &BY, more].concat())
}

#[test]
#[ignore = "needs Apicurio: run `cargo xtask test`"]
fn what_is_sent_is_registered_and_a_change_is_compared_with_what_is_there() {
    let (sender, url) = (Sender::new(), registry_url());
    let cents = |kind: &str| placed(json!({ "cents": { "type": kind } }));
    let paid = |kind: &str| avro(&json!([{ "name": "cents", "type": kind }]));
    let sent = |field: &str| protobuf(&format!("int64 {field} = 1;"));
    let file = sender.sends(&[
        ("order-placed.v1", cents("integer")),
        ("order-paid.v1", paid("long")),
        ("order-sent.v1", sent("cents")),
    ]);

    // Nothing is there: a service that sends it would hold it.
    let found = check(&file, &url, &[]);
    found.ends(1).says("TDG-9071");
    for message in ["order-placed.v1", "order-paid.v1", "order-sent.v1"] {
        let subject = sender.subject(message);
        found.tells(&format!("the registry has nothing under `{subject}`"));
    }
    let registered = register(&file, &url);
    registered.ends(0).tells("registered: `order-placed.v1`");
    let again = tidings(
        [
            &["contracts", "register", &file, "--to", &url, "--json"][..],
            &BY,
        ]
        .concat(),
    );
    let again = again.ends(0).json();
    let rows = again["schemas"].as_array().unwrap();
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|it| it["wasThere"] == true), "{again}");
    let clean = check(&file, &url, &["--strict"]);
    clean.ends(0).tells("1 service: nothing is wrong");

    // What breaks nobody is told, and only an error where warnings are; what breaks somebody names the field.
    let file = sender.sends(&[
        (
            "order-placed.v1",
            placed(json!({ "cents": { "type": "integer" }, "note": { "type": "string" } })),
        ),
        ("order-paid.v1", paid("long")),
        ("order-sent.v1", sent("total")),
    ]);
    let more = check(&file, &url, &["--rule", "forward"]);
    more.ends(0)
        .tells("warning: `orders` 1.0.0 writes `order-placed.v1` otherwise than version 1");
    more.tells("warning: `orders` 1.0.0 writes `order-sent.v1` otherwise than version 1");
    check(&file, &url, &["--rule", "forward", "--strict"]).ends(1);
    // A field more that must be there is not in what was written before.
    let backward = check(&file, &url, &[]);
    backward.ends(1).tells("such messages still wait: `note`");

    let file = sender.sends(&[
        ("order-placed.v1", cents("string")),
        ("order-paid.v1", paid("string")),
        ("order-sent.v1", protobuf("int64 cents = 2;")),
    ]);
    let broken = check(&file, &url, &[]);
    broken.ends(1).says("TDG-9071");
    for (message, why) in [
        (
            "order-placed.v1",
            "`cents` is written as a text and read as",
        ),
        (
            "order-paid.v1",
            "`cents` is written as `string` and read as `long`",
        ),
        ("order-sent.v1", "`cents` is never written"),
    ] {
        let subject = sender.subject(message);
        broken.tells(&format!(
            "who reads by version 1 of `{subject}` cannot read `{message}` as `orders` 1.0.0 writes it: {why}"
        ));
    }
}

#[test]
#[ignore = "needs Apicurio: run `cargo xtask test`"]
fn what_a_registry_cannot_take_is_told_with_what_was_done() {
    let (sender, url) = (Sender::new(), registry_url());
    // Two messages of a topic have one subject by the topic.
    let any = || placed(json!({}));
    let file = sender.sends(&[("order-placed.v1", any()), ("order-sent.v1", any())]);
    let args = ["contracts", "register", &file, "--to", &url];
    tidings(args).ends(2).says("say `--subject message`");
    // A message without a schema is left out, and said.
    let json = avro(&json!([]));
    let file = sender.sends(&[("order-paid.v1", json), ("order-seen.v1", Value::Null)]);
    let done = register(&file, &url);
    done.ends(0).tells("left out: `order-seen.v1`");

    let registry = SchemaRegistry::prepare().unwrap();
    let nobody = register(&file, &registry.url());
    nobody.ends(1).says("TDG-9074");
    nobody.says("1 schema not registered");
    check(&file, &registry.url(), &[]).ends(1).says("TDG-9074");
    let secret = registry.url().replace("http://", "http://ada:s3cret@");
    let nobody = register(&file, &secret);
    nobody.ends(1);
    assert!(!format!("{nobody:?}").contains("s3cret"), "{nobody:#?}");
    let elsewhere = url.replace("/apis/ccompat/v7", "/elsewhere");
    register(&file, &elsewhere).ends(1).says("TDG-9074");
}

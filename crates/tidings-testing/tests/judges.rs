//! What judges contracts and pages lets good ones pass, and names what is wrong in others.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;
use tidings_testing::foreign::{PactLibrary, asyncapi, axe, json_schema, pact_verify, pact_write};

#[test]
#[ignore = "needs Node"]
fn asyncapis_parser_takes_a_good_document_and_names_what_is_wrong_in_another() {
    let folder = tempfile::tempdir().unwrap();
    let good = write(&folder, "good.json", &document("send"));
    let bad = write(&folder, "bad.json", &document("shout"));

    let found = run(asyncapi([&good]));
    assert_eq!(found.code, 0, "{found:?}");
    // What is merely advised is said all the same.
    let codes = found.all("code");
    assert_eq!(codes, ["asyncapi-latest-version"], "{found:?}");

    let found = run(asyncapi([&good, &bad]));
    assert_eq!(found.code, 1, "{found:?}");
    let errors = found.lines.iter().filter(|it| it["severity"] == "error");
    let errors: Vec<&Value> = errors.collect();
    let [error] = errors[..] else {
        panic!("{found:?}");
    };
    assert_eq!(error["file"], json!(bad));
    assert_eq!(error["path"], "operations/sendOrderConfirmed/action");
    assert!(error["line"].as_u64() > Some(1), "{error}");

    let found = run(asyncapi([folder.path().join("missing.json")]));
    assert!(
        found.code == 2 && found.stderr.contains("missing.json"),
        "{found:?}"
    );
}

#[test]
#[ignore = "needs Node"]
fn a_schema_and_values_are_checked_by_the_draft_2020_12() {
    let folder = tempfile::tempdir().unwrap();
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "required": ["id", "pair"],
        "properties": {
            "id": { "type": "string", "format": "uuid" },
            // Only this draft knows the word.
            "pair": { "type": "array", "prefixItems": [{ "type": "string" }, { "type": "integer" }] },
        },
    });
    let schema = write(&folder, "schema.json", &schema);
    let id = "0198c5a2-93b0-7e57-a54a-2f7b8f3c9d10";
    let good = write(
        &folder,
        "good.json",
        &json!({ "id": id, "pair": ["TEA-SENCHA", 2] }),
    );
    let found = run(json_schema(&schema, [&good]));
    assert_eq!((found.code, found.lines.len()), (0, 0), "{found:?}");

    let bad = write(
        &folder,
        "bad.json",
        &json!({ "id": "7", "pair": ["TEA-SENCHA", "2"] }),
    );
    let found = run(json_schema(&schema, [&good, &bad]));
    assert_eq!(found.code, 1, "{found:?}");
    assert_eq!(found.all("path"), ["/id", "/pair/1"]);

    let misspelt = json!({ "type": "object", "propertys": {} });
    let misspelt = write(&folder, "misspelt.json", &misspelt);
    let found = run(json_schema(&misspelt, [&good]));
    assert_eq!(found.code, 1, "{found:?}");
    let says = found.all("message").concat();
    assert!(says.contains("propertys"), "{says}");
}

/// An AsyncAPI document whose one operation does `action`.
fn document(action: &str) -> Value {
    let channel = "order-confirmed.v1";
    json!({
        "asyncapi": "3.0.0",
        "info": { "title": "orders", "version": "1.0.0" },
        "defaultContentType": "application/json",
        "channels": {
            channel: {
                "address": channel,
                "messages": { channel: { "$ref": format!("#/components/messages/{channel}") } },
            },
        },
        "operations": {
            "sendOrderConfirmed": {
                "action": action,
                "channel": { "$ref": format!("#/channels/{channel}") },
                "messages": [{ "$ref": format!("#/channels/{channel}/messages/{channel}") }],
            },
        },
        "components": {
            "messages": {
                channel: {
                    "payload": {
                        "type": "object",
                        "required": ["orderId"],
                        "properties": { "orderId": { "type": "string" } },
                    },
                },
            },
        },
    })
}

#[test]
#[ignore = "needs Node and Python"]
fn pacts_library_for_python_verifies_what_that_for_javascript_writes() {
    writes_and_verifies(PactLibrary::JavaScript, PactLibrary::Python);
}

#[test]
#[ignore = "needs Node and Python"]
fn pacts_library_for_javascript_verifies_what_that_for_python_writes() {
    writes_and_verifies(PactLibrary::Python, PactLibrary::JavaScript);
}

/// A pact that one library writes is kept or broken in the eyes of the other by what the provider sends.
fn writes_and_verifies(writer: PactLibrary, verifier: PactLibrary) {
    let folder = tempfile::tempdir().unwrap();
    let found = run(pact_write(writer, folder.path()));
    assert_eq!(found.code, 0, "{found:?}");
    let pact = folder.path().join("newsletter-orders.json");
    assert_eq!(found.all("file"), [pact.to_str().unwrap()]);
    let written: Value = serde_json::from_slice(&std::fs::read(&pact).unwrap()).unwrap();
    assert_eq!(written["metadata"]["pactSpecification"]["version"], "4.0");
    let interactions = written["interactions"].as_array().unwrap();
    let described = interactions.iter().map(|it| &it["description"]);
    let described: Vec<&Value> = described.collect();
    assert_eq!(described, ["order-confirmed.v1", "order-placed.v1"]);

    let mut sent = messages();
    let verify = |sent: &Value| {
        let messages = write(&folder, "messages.json", sent);
        let found = run(pact_verify(verifier, &pact, messages));
        let said = format!("{}{}", found.stdout, found.stderr);
        assert!(!said.contains("tracking"), "Pact reports its use: {said}");
        found
    };
    let found = verify(&sent);
    assert_eq!((found.code, found.lines.len()), (0, 0), "{found:?}");
    assert!(found.stdout.contains("order-placed.v1"), "{found:?}");

    sent["order-placed.v1"]["body"]["items"][1]["quantity"] = json!("3");
    sent["order-placed.v1"]["body"]["currency"] = json!("euro");
    sent["order-confirmed.v1"]["metadata"]["type"] = json!("order-cancelled.v1");
    let found = verify(&sent);
    assert_eq!(found.code, 1, "{found:?}");
    let named = found.lines.iter().map(|line| match line["path"].as_str() {
        Some(path) => path,
        None => line["key"].as_str().unwrap(),
    });
    let named: BTreeSet<&str> = named.collect();
    let expected = ["$.currency", "$.items[1].quantity", "type"];
    assert_eq!(named, expected.into(), "{found:?}");

    sent.as_object_mut().unwrap().remove("order-placed.v1");
    let found = verify(&sent);
    let lacks = "there is no message for `order-placed.v1`";
    assert!(found.code == 2 && found.stderr.contains(lacks), "{found:?}");
}

/// What a provider may send by the pact that the libraries write.
fn messages() -> Value {
    let metadata =
        |name: &str| json!({ "type": name, "messageId": "0198c5a2-93b0-7e57-a54a-2f7b8f3c9d12" });
    json!({
        "order-confirmed.v1": {
            "body": { "orderId": "o-1", "amount": 12.25, "customerId": "c-1", "status": "CONFIRMED", "more": true },
            "metadata": metadata("order-confirmed.v1"),
        },
        "order-placed.v1": {
            "body": {
                "orderId": "o-1",
                "currency": "USD",
                "items": [{ "sku": "TEA-SENCHA", "quantity": 1 }, { "sku": "MUG-ENAMEL", "quantity": 3 }],
            },
            "metadata": metadata("order-placed.v1"),
        },
    })
}

#[test]
#[ignore = "needs Chromium and Node"]
fn axe_sees_a_page_on_phone_and_desk_by_day_and_by_night() {
    let folder = tempfile::tempdir().unwrap();
    let pictures = folder.path().join("pictures");
    let good = page(&folder, "good.html", "", "main");
    let fair = page(&folder, "fair.html", "", "div");
    let found = run(axe([&good, &fair], Some(&pictures)));
    // What is less than serious is told, and is no reason to refuse.
    assert_eq!(found.code, 0, "{found:?}");
    let pages = found.all("page").into_iter().collect::<BTreeSet<_>>();
    assert_eq!(pages, [fair.to_str().unwrap()].into(), "{found:?}");
    assert!(found.all("impact").contains(&"moderate"), "{found:?}");
    for (view, width) in [
        ("phone-light", 390),
        ("phone-dark", 390),
        ("desktop-light", 1280),
        ("desktop-dark", 1280),
    ] {
        for page in ["1-good", "2-fair"] {
            let picture = std::fs::read(pictures.join(format!("{page}-{view}.png"))).unwrap();
            // Where a PNG has its width.
            assert_eq!(picture[16..20], u32::to_be_bytes(width), "{view}");
        }
    }

    let check = |style: &str, expected: [(&str, &str, &str); 2]| {
        let bad = page(&folder, "bad.html", style, "main");
        let found = run(axe([bad], None));
        assert_eq!(found.code, 1, "{found:?}");
        let seen = found.all("view").into_iter().zip(found.all("rule"));
        let seen = seen.zip(found.all("impact"));
        let seen: Vec<_> = seen.map(|((view, rule), it)| (view, rule, it)).collect();
        assert_eq!(seen, expected, "{found:?}");
    };
    check(
        "@media (prefers-color-scheme: dark) { p { color: #222; background: #000 } }",
        [
            ("phone dark", "color-contrast", "serious"),
            ("desktop dark", "color-contrast", "serious"),
        ],
    );
    check(
        "@media (max-width: 600px) { img { display: block } }",
        [
            ("phone light", "image-alt", "critical"),
            ("phone dark", "image-alt", "critical"),
        ],
    );

    let found = run(axe([folder.path().join("missing.html")], None));
    assert!(
        found.code == 2 && found.stderr.contains("missing.html"),
        "{found:?}"
    );
}

/// A page with a picture that nobody described and nobody sees.
fn page(folder: &TempDir, name: &str, style: &str, element: &str) -> PathBuf {
    let pixel = "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=";
    let text = format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>Events</title>
        <meta name=viewport content='width=device-width'>
        <style>:root {{ color-scheme: light dark }} img {{ display: none; width: 9px }} {style}</style>
        <{element}><h1>Events</h1><p>orders sends order-confirmed.v1</p><img src='{pixel}'></{element}></html>"
    );
    let path = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// What a judge said.
#[derive(Debug)]
struct Found {
    code: i32,
    lines: Vec<Value>,
    stdout: String,
    stderr: String,
}

impl Found {
    /// A word of each finding.
    fn all(&self, name: &str) -> Vec<&str> {
        let words = self.lines.iter().map(|line| line[name].as_str());
        words.map(Option::unwrap_or_default).collect()
    }
}

fn run(mut command: Command) -> Found {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let found = stdout.lines().filter(|line| line.starts_with('{'));
    let lines = found.map(|line| {
        let read = serde_json::from_str(line);
        read.unwrap_or_else(|error| panic!("{error} in {line:?}; stderr: {stderr}"))
    });
    let lines = lines.collect();
    Found {
        code: output.status.code().unwrap_or(i32::MAX),
        lines,
        stdout,
        stderr,
    }
}

fn write(folder: &TempDir, name: &str, content: &Value) -> PathBuf {
    let path: PathBuf = Path::new(folder.path()).join(name);
    std::fs::write(&path, serde_json::to_string_pretty(content).unwrap()).unwrap();
    path
}

//! `tidings events map`: maps of several programs, put together and checked.

use std::fs;

use crate::run::tidings;

const SHOP: &str = r#"{"format": 1, "services": [
    {"name": "orders", "emits": [{"message": "order-placed.v1", "kind": "event", "to": "orders"}]},
    {"name": "payment", "handlers": [{
        "message": "order-placed.v1", "kind": "event", "queue": "payment.order-placed.v1",
        "emits": [{"message": "charge-card.v1", "kind": "command", "to": "bank"}]
    }]}
]}"#;

const BANK: &str = r#"{"format": 1, "services": [
    {"name": "bank", "outside": true, "handlers": [
        {"message": "charge-card.v1", "kind": "command", "queue": "bank.charge-card.v1"}
    ]}
]}"#;

#[test]
fn maps_are_put_together_and_checked() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (shop, bank) = (file("shop.json", SHOP), file("bank.json", BANK));

    let alone = tidings(["events", "map", &shop]);
    alone.ends(1).says("TDG-9041");
    alone.tells("error: no service handles the command `charge-card.v1`");
    let json = tidings(["events", "map", &shop, "--json"]);
    json.ends(1);
    let json = json.json();
    assert_eq!(json["findings"][0]["severity"], "error");
    assert_eq!(json["findings"][0]["about"], "charge-card.v1");

    let both = tidings(["events", "map", &shop, &bank]);
    both.ends(0);
    let line = both.out.lines().find(|line| line.starts_with("payment"));
    let fields: Vec<&str> = line.unwrap().split_whitespace().collect();
    assert_eq!(fields, ["payment", "order-placed.v1", "charge-card.v1"]);

    // What it prints as JSON is a map again.
    let merged = tidings(["events", "map", &shop, &bank, "--format", "json"]);
    let merged = file("merged.json", &merged.ends(0).out);
    let again = tidings(["events", "map", &merged, "--format", "mermaid"]);
    again.ends(0).tells("{{\"charge-card.v1\"}}");
    let drawn = tidings(["events", "map", &shop, "--format", "svg"]);
    drawn.ends(1).says("no service handles the command");
    assert!(drawn.out.starts_with("<svg "), "{drawn:?}");
}

#[test]
fn what_is_no_map_is_refused_with_a_code() {
    let folder = tempfile::tempdir().unwrap();
    let check = |text: &[u8], part: &str| {
        let path = folder.path().join("odd.json");
        fs::write(&path, text).unwrap();
        let ran = tidings(["events", "map", path.to_str().unwrap()]);
        ran.ends(1).says("TDG-9040").says(part);
        assert_eq!(ran.out, "");
    };
    check(b"", "this is not an event map");
    check(b"{\"services\": []}", "missing field `format`");
    check(b"{\"format\": 7}", "has the format 7");
    check(b"\xff\xfe", "cannot read");
    check(
        &vec![b' '; 16 * 1024 * 1024 + 1],
        "more than the 16777216 bytes",
    );
    let missing = folder.path().join("missing.json");
    let ran = tidings(["events", "map", missing.to_str().unwrap()]);
    ran.ends(1).says("TDG-9040");
    tidings(["events", "map"]).ends(2);
}

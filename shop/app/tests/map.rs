//! `shop map`: the picture in the docs is what the types say, and nothing is wrong with the shop.

use std::{path::Path, process::Command};

/// The map, and whether it was found to be right.
fn map(arguments: &[&str]) -> (String, bool, String) {
    let mut shop = Command::new(env!("CARGO_BIN_EXE_shop"));
    let output = shop.arg("map").args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        text(output.stdout),
        output.status.success(),
        text(output.stderr),
    )
}

/// Compares a drawing with the one in the docs; with `TIDINGS_DRAW=1` draws that anew.
fn check(file: &str, arguments: &[&str]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs")
        .join(file);
    let (drawn, is_right, findings) = map(arguments);
    assert!(is_right, "{findings}");
    if std::env::var_os("TIDINGS_DRAW").is_some() {
        std::fs::write(&path, &drawn).unwrap();
    }
    let in_docs = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        in_docs == drawn,
        "`docs/{file}` is not what the types say any more; draw it anew with \
         `TIDINGS_DRAW=1 cargo test -p shop --test map`, and look at it"
    );
}

#[test]
fn the_picture_in_the_docs_is_what_the_types_say() {
    check("shop-events.svg", &["--format", "svg", "--check"]);
    let orchestration = ["--checkout", "orchestration"];
    let arguments = [&["--format", "svg", "--check"][..], &orchestration].concat();
    check("shop-orchestration.svg", &arguments);
}

#[test]
fn what_is_left_out_is_not_on_the_map_and_is_missed() {
    let (whole, ..) = map(&["--format", "json"]);
    assert!(whole.contains("\"name\": \"loyalty\""), "{whole}");
    let (rest, is_right, findings) = map(&["--format", "json", "--check", "--without", "loyalty"]);
    assert!(!rest.contains("\"name\": \"loyalty\""), "{rest}");
    assert!(
        !is_right && findings.contains("nobody sends `points-awarded.v1`"),
        "{findings}"
    );
    let (_, is_right, _) = map(&["--without", "loyalty"]);
    assert!(is_right, "only `--check` makes a finding an error");
}

#[test]
fn every_format_has_every_service() {
    for format in ["mermaid", "dot", "json", "svg"] {
        let (drawn, ..) = map(&["--format", format]);
        for service in [
            "orders",
            "payment",
            "inventory",
            "shipping",
            "notification",
            "loyalty",
        ] {
            assert!(drawn.contains(service), "{format}: {service}");
        }
    }
}

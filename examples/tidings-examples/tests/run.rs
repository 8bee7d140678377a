//! Each example is run, and says what it is about.

use std::process::Command;

#[track_caller]
fn check(program: &str, expected: &[&str]) {
    let output = Command::new(program).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}\n{err}");
    for line in expected {
        assert!(
            out.lines().any(|it| it == *line),
            "`{line}` is missing in\n{out}"
        );
    }
}

#[test]
fn saga_by_choreography() {
    check(
        env!("CARGO_BIN_EXE_06-saga-by-choreography"),
        &[
            "payment   o-2: took 7",
            "payment   o-2: gave the money back",
            "listener  o-1 is sent",
            "listener  o-2 is undone",
        ],
    );
}

#[test]
fn saga_by_orchestration() {
    check(
        env!("CARGO_BIN_EXE_07-saga-by-orchestration"),
        &[
            "payment   o-2: gave the money back",
            "listener  o-1 is confirmed",
            "listener  o-2 is cancelled: sold out",
        ],
    );
}

#[test]
fn saga_without_undo() {
    check(
        env!("CARGO_BIN_EXE_08-saga-without-undo"),
        &[
            "    compensated with [take-payment]   <- paid for nothing",
            "    compensated with []",
            "    completed with [reserve-stock, take-payment]",
        ],
    );
}

#[test]
fn dead_letters() {
    check(
        env!("CARGO_BIN_EXE_09-dead-letters"),
        &[
            "charged o-2: 8",
            "2 dead letters: invalid digit found in string",
            "2 sent again, 0 came back",
            "charged o-1: 7",
            "charged o-3: 9",
        ],
    );
}

#[test]
fn schedules() {
    check(
        env!("CARGO_BIN_EXE_10-schedules"),
        &[
            "orders/close-books: 0 3 * * * Europe/Berlin",
            "reminder/o-1: once",
            "o-2 is reminded",
            "0 more reminders",
        ],
    );
}

#[test]
fn replay() {
    check(
        env!("CARGO_BIN_EXE_11-replay"),
        &[
            "replayed once: 3 events",
            "replayed twice: 3 events",
            "{\"ann\": 6}, and nobody got a second mail",
        ],
    );
}

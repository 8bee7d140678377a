//! A short attack on each stack: every kind of fault once, with a seed that is always the same unless
//! `TIDINGS_TEST_SEED` gives another.

use std::process::Command;

/// Enough for every kind of fault of a stack.
const FAULTS: u64 = 15;

const MESSAGES: u64 = 500;

/// Sagas, about.
const SAGAS: u64 = 200;

/// Events that nobody listens to until the end.
const SHELF: u64 = 1500;

#[test]
fn the_promises_hold_on_sqlite_and_the_broker_in_the_box() {
    attack("sqlite+embedded");
}

#[test]
#[ignore = "needs PostgreSQL"]
fn the_promises_hold_on_postgresql_and_the_broker_in_the_box() {
    attack("postgres+embedded");
}

#[test]
#[ignore = "needs RabbitMQ"]
fn the_promises_hold_on_sqlite_and_rabbitmq() {
    attack("sqlite+rabbitmq");
}

#[test]
#[ignore = "needs RabbitMQ and PostgreSQL"]
fn the_promises_hold_on_postgresql_and_rabbitmq() {
    attack("postgres+rabbitmq");
}

#[test]
#[ignore = "needs RabbitMQ"]
fn the_promises_hold_on_sqlite_and_a_cluster_of_rabbitmq() {
    attack("sqlite+rabbitmq-cluster");
}

#[test]
#[cfg(feature = "kafka")]
#[ignore = "needs Kafka"]
fn the_promises_hold_on_sqlite_and_kafka() {
    attack("sqlite+kafka");
}

#[test]
#[cfg(feature = "aws")]
#[ignore = "needs SQS"]
fn the_promises_hold_on_sqlite_and_aws() {
    attack("sqlite+aws");
}

#[track_caller]
fn attack(stack: &str) {
    let seed = std::env::var("TIDINGS_TEST_SEED").unwrap_or_else(|_| "1".into());
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let output = Command::new(env!("CARGO_BIN_EXE_rig"))
        .args(["--stack", stack, "--seed", &seed])
        .args(["--messages", &MESSAGES.to_string()])
        .args(["--sagas", &SAGAS.to_string()])
        .args(["--faults", &FAULTS.to_string()])
        .args(["--shelf", &SHELF.to_string(), "--folder"])
        .arg(&run)
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    print!("{out}");
    if !output.status.success() {
        let kept = folder.keep();
        panic!("{err}\nkept in {}", kept.display());
    }
}

#[test]
fn a_run_is_not_begun_where_there_is_one_and_not_resumed_where_there_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_rig"))
            .args(args)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let path = folder.path().to_str().unwrap();
    let error = refused(&["--resume", path]);
    assert!(
        error.contains("cannot resume: there is no run in"),
        "{error}"
    );
    std::fs::write(folder.path().join("plan.json"), "{").unwrap();
    let error = refused(&["--folder", path]);
    assert!(error.contains("go on with `--resume`"), "{error}");
    let error = refused(&["--resume", path]);
    assert!(error.contains("cannot read"), "{error}");
}

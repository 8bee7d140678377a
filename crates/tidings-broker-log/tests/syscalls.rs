//! Every system call that changes the disk can be the last, and every sync can fail.
//!
//! A writer runs under `strace`, which kills it at its n-th call of each kind, or lets that call
//! fail, for one n after the other until the writer gets through. Where there is no `strace`, the
//! tests say so; under `CI=true` they fail then.

mod common;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use common::*;
use tidings_broker_core::Record;
use tidings_broker_log::{Log, Options};

const FOLDER: &str = "TIDINGS_SYSCALL_TEST_FOLDER";
const ROUNDS: u64 = 24;
/// Run every n-th case only: all of them take minutes.
const STRIDE: usize = 3;

fn options() -> Options {
    Options {
        segment_bytes_max: 8 << 10,
        ..Options::default()
    }
}

/// What the writer appends in each round, before it waits until that is durable: messages that come
/// and go, and some that stay, so that segments are started, reused, compacted and removed.
fn round(at: u64) -> Vec<Record> {
    let first = 3 * at + 1;
    let mut records = vec![message(first, &[1], 900), message(first + 1, &[1, 2], 900)];
    if at == 0 {
        records.splice(
            0..0,
            [
                exchange("x"),
                queue(1),
                queue(2),
                Record::Bound(binding("x", 1)),
            ],
        );
    }
    records.push(removed(1, first));
    records.push(removed(1, first + 1));
    if !at.is_multiple_of(4) {
        records.push(removed(2, first + 1));
    }
    records
}

/// The program under `strace`.
#[test]
#[ignore = "run by the other tests, as a process of its own"]
fn the_writer() {
    let Some(dir) = std::env::var_os(FOLDER) else {
        return;
    };
    let log = match Log::open(Path::new(&dir), options(), |_| {}) {
        Ok((log, _)) => log,
        Err(error) => {
            println!("refused: {error}");
            return;
        }
    };
    for at in 0..ROUNDS {
        let Ok(lsn) = log.append_all(&round(at)) else {
            break;
        };
        wait_for(|| log.durable() >= lsn || log.failure().is_some());
        if log.durable() < lsn {
            break;
        }
        println!("durable {at}");
    }
    match log.close() {
        Ok(()) => println!("closed"),
        Err(error) => println!("failed: {error}"),
    }
}

fn has_strace() -> bool {
    let there = Command::new("strace")
        .arg("-V")
        .output()
        .is_ok_and(|out| out.status.success());
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(
        there || !ci,
        "install strace: this test is not to be skipped in CI"
    );
    if !there {
        eprintln!("skipped: strace is not installed");
    }
    there
}

fn run_with(dir: &Path, injection: &str) -> Output {
    Command::new("strace")
        .args([
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=%desc,%file",
            "-e",
            injection,
        ])
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", "the_writer", "--ignored", "--nocapture"])
        .env(FOLDER, dir)
        .stderr(Stdio::null())
        .output()
        .expect("strace runs")
}

/// The rounds that the writer said were durable, and what else it said.
fn said(output: &Output) -> (u64, String) {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let durable = text
        .lines()
        .filter(|line| line.starts_with("durable "))
        .count();
    (durable as u64, text)
}

/// What is there afterwards is what a number of records from the start give, and at least those of
/// the rounds that were durable.
fn check_prefix(dir: &Path, durable: u64, what: &str) {
    let opened = Log::open(dir, options(), |_| {});
    let (log, recovered) = opened.unwrap_or_else(|e| panic!("{what}: cannot open again: {e}"));
    drop(log);
    let found = Model::of(&recovered.records);
    let confirmed: Vec<Record> = (0..durable).flat_map(round).collect();
    let mut candidate = Model::of(&confirmed);
    let mut rest = (durable..ROUNDS).flat_map(round);
    while candidate != found {
        let Some(record) = rest.next() else {
            panic!("{what}: {durable} rounds were durable, but found {found:#?}");
        };
        candidate.apply(&record);
    }
}

#[test]
fn killed_at_any_system_call_the_log_opens_again_with_all_that_was_confirmed() {
    if !has_strace() {
        return;
    }
    let mut killed = 0;
    for call in ["pwrite64", "fdatasync", "fsync", "/^rename", "/^unlink"] {
        for n in (1..).step_by(STRIDE) {
            let dir = tempfile::tempdir().expect("a folder");
            let dir = dir.path().join("log");
            let output = run_with(&dir, &format!("inject={call}:signal=KILL:when={n}"));
            let (durable, text) = said(&output);
            let through = text.contains("closed");
            assert!(through || !output.status.success(), "{call} {n}: {text}");
            check_prefix(&dir, durable, &format!("killed at {call} {n}"));
            if through {
                assert_eq!(durable, ROUNDS);
                break;
            }
            killed += 1;
        }
    }
    assert!(killed > 20, "it was killed {killed} times");
}

#[test]
fn after_a_failed_sync_or_write_nothing_more_is_confirmed_and_nothing_confirmed_is_lost() {
    if !has_strace() {
        return;
    }
    let mut failed = 0;
    for (call, error) in [
        ("fdatasync", "EIO"),
        ("pwrite64", "ENOSPC"),
        ("pwrite64", "EIO"),
    ] {
        for n in (2..).step_by(2 * STRIDE) {
            let dir = tempfile::tempdir().expect("a folder");
            let dir = dir.path().join("log");
            // Once, and then the kernel pretends that all is well.
            let output = run_with(&dir, &format!("inject={call}:error={error}:when={n}"));
            let (durable, text) = said(&output);
            check_prefix(&dir, durable, &format!("{call} {n} gave {error}"));
            if text.contains("closed") {
                assert_eq!(durable, ROUNDS);
                break;
            }
            assert!(
                text.contains("failed: cannot ") || text.contains("refused: "),
                "{text}"
            );
            failed += 1;
        }
    }
    assert!(failed > 5, "it failed {failed} times");
}

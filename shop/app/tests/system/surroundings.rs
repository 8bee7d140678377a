//! Bad surroundings: one clear error that says what to do, a bad exit code, nothing damaged. What
//! is not there *yet* is waited for.

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use tidings_testing::servers::{Process, free_port};

/// A program that cannot go on should say so at once; this is for machines that are busy.
const SOON: Duration = Duration::from_secs(60);

/// Starts the shop in `folder` with these flags, and with ports of its own unless they say which.
fn shop(folder: &Path, flags: &[&str]) -> Process {
    let mut command = Process::command(env!("CARGO_BIN_EXE_shop"));
    for (flag, value) in [
        ("--listen", "127.0.0.1:0"),
        ("--amqp-listen", "127.0.0.1:0"),
    ] {
        if !flags.contains(&flag) {
            command.args([flag, value]);
        }
    }
    if !flags.contains(&"--data") {
        command.arg("--data").arg(folder.join("data"));
    }
    command.args(flags);
    Process::start(command).unwrap()
}

/// Asserts that the shop refuses to run like this, with an error that has all these words.
#[track_caller]
fn refuses(folder: &Path, flags: &[&str], words: &[&str]) {
    let mut process = shop(folder, flags);
    let status = process.wait(SOON).unwrap();
    let error = process.stderr().join("\n");
    assert!(!status.success(), "{flags:?} ran and ended well:\n{error}");
    for word in words {
        assert!(error.contains(word), "{flags:?}: no `{word}` in\n{error}");
    }
    assert!(!error.contains("panicked"), "{flags:?}:\n{error}");
}

#[test]
fn a_port_that_is_taken_is_named_with_the_flag_that_changes_it() {
    let folder = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in ["--listen", "--amqp-listen"] {
        refuses(folder.path(), &[flag, &address], &[&address, flag]);
    }
}

#[test]
fn a_wrong_flag_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let check = |flags: &[&str], words: &[&str]| refuses(folder.path(), flags, words);
    check(&["--broker", "http://localhost"], &["--broker", "amqp://"]);
    check(
        &["--database", "mysql://localhost/shop"],
        &["mysql", "postgres://"],
    );
    check(&["--services", "orders,billing"], &["billing", "payment"]);
    check(&["--listen", "nowhere"], &["nowhere", "--listen"]);
}

#[test]
fn a_data_folder_that_is_none_or_is_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "not a folder").unwrap();
    let file = file.to_str().unwrap();
    refuses(folder.path(), &["--data", file], &[file]);

    let mut first = shop(folder.path(), &[]);
    first.wait_for_line(SOON, |line| line == "ready").unwrap();
    let data = folder.path().join("data");
    refuses(
        folder.path(),
        &[],
        &[data.to_str().unwrap(), "another process"],
    );
    assert!(first.interrupt(SOON).unwrap().success());
}

#[test]
fn a_broker_that_is_not_there_yet_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port().unwrap();
    let url = format!("amqp://guest:guest@127.0.0.1:{port}");
    let mut service = shop(
        &folder.path().join("orders"),
        &["--services", "orders", "--broker", &url],
    );
    let says = |process: &Process| {
        process
            .stderr()
            .iter()
            .any(|l| l.contains(&port.to_string()))
    };
    tidings_testing::servers::wait_until("it to say so", SOON, || says(&service)).unwrap();
    assert!(service.is_running());

    let listen = format!("127.0.0.1:{port}");
    let flags = ["--services", "storefront", "--amqp-listen", &listen];
    let _broker = shop(&folder.path().join("broker"), &flags);
    service.wait_for_line(SOON, |line| line == "ready").unwrap();
}

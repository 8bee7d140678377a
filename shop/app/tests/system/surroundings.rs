//! Bad surroundings: one clear error that says what to do, a bad exit code, nothing damaged. What
//! is not there *yet* is waited for.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tidings_testing::servers::{Process, free_port};

use crate::http::{self, Answer};
use crate::world::good_order;

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
fn a_database_of_a_newer_version_is_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut shop_of_today = shop(folder.path(), &[]);
    shop_of_today
        .wait_for_line(SOON, |line| line == "ready")
        .unwrap();
    assert!(shop_of_today.interrupt(SOON).unwrap().success());

    let file = find(&folder.path().join("data"), "orders.db");
    let database = rusqlite::Connection::open(&file).unwrap();
    let count = || -> i64 {
        let rows = database.query_row("select count(*) from tidings_migration", [], |r| r.get(0));
        rows.unwrap()
    };
    let migrate =
        "insert into tidings_migration select distinct owner, '9999', 0 from tidings_migration";
    assert!(database.execute(migrate, []).unwrap() > 0);
    let before = count();
    refuses(folder.path(), &[], &["orders.db", "newer"]);
    assert_eq!(count(), before);
}

fn find(folder: &Path, name: &str) -> PathBuf {
    let mut entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let found = entries.find_map(|path| match path.is_dir() {
        true => Some(find(&path, name)).filter(|path| path.exists()),
        false => Some(path).filter(|path| path.ends_with(name)),
    });
    found.unwrap_or_default()
}

#[test]
#[ignore = "needs root"]
fn a_full_disk_loses_nothing_and_is_got_over() {
    let disk = Disk::of_megabytes(160);
    let mut shop = shop(disk.path(), &[]);
    let line = shop
        .wait_for_line(SOON, |line| line.starts_with("listening http "))
        .unwrap();
    let port = line.rsplit_once(':').unwrap().1.parse().unwrap();
    shop.wait_for_line(SOON, |line| line == "ready").unwrap();
    let place = |key: &str| {
        let key = format!("idempotency-key: {key}\r\n");
        let answer = http::json(port, "POST /orders", &key, &good_order("full")).unwrap();
        (answer.status, answer)
    };
    let confirmed = |answer: &Answer| {
        let id = answer.json()["orderId"].as_str().unwrap().to_owned();
        tidings_testing::servers::wait_until(&format!("{id} to be confirmed"), SOON, || {
            let order = http::get(port, &format!("/orders/{id}")).map(|order| order.json());
            order.is_ok_and(|order| order["status"] == "CONFIRMED")
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", shop.stderr().join("\n")));
    };
    let (status, before) = place("before");
    assert_eq!(status, 202);
    confirmed(&before);

    disk.fill();
    // Some fit into what files have reserved; then there is no room, and that is what it says.
    let taken: Vec<Answer> = (0..20_000)
        .map(|n| place(&n.to_string()))
        .map_while(|(s, a)| (s == 202).then_some(a))
        .collect();
    let (status, refused) = place("no room");
    assert!(status >= 500, "{refused}");

    disk.make_room();
    let room = || place("room again").0 == 202;
    tidings_testing::servers::wait_until("orders to be taken again", SOON, room).unwrap();
    taken.iter().for_each(confirmed);
    confirmed(&place("room again").1);
}

/// A disk that can be filled without harm to anybody else.
struct Disk(TempDir);

impl Disk {
    fn of_megabytes(megabytes: u32) -> Disk {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={megabytes}m");
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &size, "tidings-test"])
            .arg(folder.path());
        assert!(
            mount.status().unwrap().success(),
            "cannot mount a small disk"
        );
        Disk(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn fill(&self) {
        let mut ballast = std::fs::File::create(self.path().join("ballast")).unwrap();
        for size in [1 << 20, 4096] {
            while ballast.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.path().join("ballast")).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, since whoever still has files open there is about to be killed.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.path())
            .status();
    }
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

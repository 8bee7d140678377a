//! Bad surroundings that pass: a disk that is full for a while, a broker and a database server that
//! are not there *yet*. Those that do not pass are in `tests/surroundings.rs`.

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tidings_testing::servers::{Postgres, Process, free_port, wait_until};

use crate::http::{self, Answer};
use crate::world::{good_order, program};

/// Generous, for machines that are busy.
const SOON: Duration = Duration::from_secs(60);

/// Starts the shop in `folder` with these flags, and with ports of its own unless they say which.
fn shop(folder: &Path, flags: &[&str]) -> Process {
    let mut command = program();
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
        wait_until(&format!("{id} to be confirmed"), SOON, || {
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
    wait_until("orders to be taken again", SOON, room).unwrap();
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
    let mut orders = shop(
        &folder.path().join("orders"),
        &["--services", "orders", "--broker", &url],
    );
    waits_for(&mut orders, &port.to_string());

    let listen = format!("127.0.0.1:{port}");
    let flags = ["--services", "storefront", "--amqp-listen", &listen];
    let _broker = shop(&folder.path().join("broker"), &flags);
    orders.wait_for_line(SOON, |line| line == "ready").unwrap();
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_database_server_that_is_not_there_yet_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut postgres = Postgres::start().unwrap();
    postgres.stop().unwrap();
    let mut shop = shop(folder.path(), &["--database", &postgres.url()]);
    waits_for(&mut shop, &postgres.port().to_string());

    postgres.restart().unwrap();
    shop.wait_for_line(SOON, |line| line == "ready").unwrap();
}

/// Waits until the shop says that it waits for what is at this port, and does.
#[track_caller]
fn waits_for(shop: &mut Process, port: &str) {
    wait_until("it to say what it waits for", SOON, || {
        shop.stderr().iter().any(|line| line.contains(port))
    })
    .unwrap();
    assert!(shop.is_running() && !shop.stdout().iter().any(|line| line == "ready"));
}

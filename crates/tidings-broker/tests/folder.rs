//! `check` and `salvage` on folders of a real broker that was killed: whole ones, damaged ones, and ones
//! that are none.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use support::lasting::{bind, confirmed, done, durable, exchange, persistent};
use support::program::{Program, command};
use support::*;
use tidings_wire::*;

/// How many messages were published to the exchange.
const MESSAGES: u8 = 40;
/// How many of them were acknowledged in `work`, the first ones.
const ACKNOWLEDGED: u8 = 6;
/// So large that the log has three segments.
const BODY_BYTES: usize = 100_000;
/// What is written for each acknowledgement: the length of the record, its kind, and the queue's id.
const REMOVAL: [u8; 6] = [17, 0, 0, 0, 8, 1];

fn body(number: u8) -> Vec<u8> {
    vec![number; BODY_BYTES]
}

/// All files of a folder.
fn image(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(dir).expect("the folder is there");
    let paths = entries.map(|entry| entry.expect("readable").path());
    paths
        .map(|path| (path.clone(), fs::read(&path).expect("readable")))
        .collect()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let files = image(dir).into_keys();
    files
        .filter(|path| path.extension().is_some_and(|it| it == "seg"))
        .collect()
}

fn copy_of(origin: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for (path, bytes) in image(origin) {
        fs::write(dir.path().join(path.file_name().expect("a name")), bytes).expect("written");
    }
    dir
}

/// Where these bytes stand, in a part of a file.
fn find(bytes: &[u8], wanted: &[u8]) -> Vec<usize> {
    let found = bytes.windows(wanted.len()).enumerate();
    let found = found.filter(|(_, here)| *here == wanted);
    found.map(|(at, _)| at).collect()
}

/// The last segment, and where acknowledgements are written in it.
fn removals(dir: &Path) -> (PathBuf, Vec<usize>) {
    let path = segments(dir).pop().expect("a segment");
    let bytes = fs::read(&path).expect("readable");
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
    let start = end.saturating_sub(4096);
    let found = find(&bytes[start..end], &REMOVAL);
    (path, found.iter().map(|at| start + at).collect())
}

/// Somewhere in the body of this message.
fn place_of(dir: &Path, number: u8) -> (PathBuf, usize) {
    for path in segments(dir) {
        let bytes = fs::read(&path).expect("readable");
        let mut pieces = bytes.chunks(PIECE_BYTES);
        if let Some(at) = pieces.position(|piece| piece == [number; PIECE_BYTES]) {
            return (path, at * PIECE_BYTES);
        }
    }
    panic!("message {number} is not there");
}

/// Of each body there are several that are aligned.
const PIECE_BYTES: usize = 5000;

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("readable");
    bytes[at] ^= 1;
    fs::write(path, bytes).expect("written");
}

/// The numbers of the messages whose bodies are in this segment.
fn numbers_in(segment: &Path) -> BTreeSet<u8> {
    let bytes = fs::read(segment).expect("readable");
    let is_there = |number: &u8| {
        let wanted = [*number; PIECE_BYTES];
        bytes.chunks(PIECE_BYTES).any(|here| here == wanted)
    };
    (1..=MESSAGES).filter(is_there).collect()
}

/// The folder of a broker that was killed: `orders` fans out to `work` and `audit`; of 40 messages six
/// were acknowledged in `work`; one more went straight there. Each is a batch of its own.
async fn folder() -> tempfile::TempDir {
    let data = tempfile::tempdir().expect("a folder");
    let program = Program::start(data.path());
    let mut client = Client::connect(program.addr).await;
    done(&mut client, ConfirmSelect::default()).await;
    done(&mut client, exchange("orders", "fanout", Table::default())).await;
    for name in ["work", "audit"] {
        done(&mut client, durable(queue(name))).await;
        done(&mut client, bind(name, "orders", "", Table::default())).await;
    }
    for number in 1..=MESSAGES {
        let properties = persistent(None);
        confirmed(&mut client, "orders", "", &properties, &body(number)).await;
    }
    confirmed(&mut client, "", "work", &persistent(None), b"straight").await;
    for number in 1..=ACKNOWLEDGED {
        let (got, content) = client.get("work", false).await.expect("a message");
        assert_eq!(content.body[0], number);
        let ack = BasicAck {
            delivery_tag: got.delivery_tag,
            multiple: false,
        };
        client.send(1, &ack).await;
        // Nobody is told when that is written.
        let deadline = std::time::Instant::now() + PATIENCE;
        while removals(data.path()).1.len() < usize::from(number) {
            assert!(std::time::Instant::now() < deadline, "it is not written");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
    program.kill();
    assert_eq!(segments(data.path()).len(), 3, "several segments");
    data
}

fn run(arguments: &[&str]) -> Output {
    command(arguments).output().expect("ran")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

fn name(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// What `check --json` says, and its exit code.
fn check(dir: &Path) -> (serde_json::Value, i32) {
    let output = run(&["check", name(dir), "--json"]);
    let code = output.status.code().expect("it ended");
    let json = serde_json::from_slice(&output.stdout);
    let json = json.unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (json, code)
}

/// Salvages into a new folder; gives it with what was said.
fn salvage(dir: &Path) -> (tempfile::TempDir, serde_json::Value) {
    let into = tempfile::tempdir().expect("a folder");
    let new = into.path().join("new");
    let output = run(&["salvage", name(dir), "--into", name(&new), "--json"]);
    assert!(output.status.success(), "{output:?}");
    let json = serde_json::from_slice(&output.stdout).expect("one document");
    (into, json)
}

/// The first bytes of the bodies that a broker on this folder delivers from a queue, in order; none if
/// there is no such queue.
async fn drain(client: &mut Client, queue: &str) -> Option<Vec<u8>> {
    let passive = QueueDeclare {
        queue: short(queue),
        passive: true,
        ..Default::default()
    };
    if !matches!(client.call(1, passive).await, Method::QueueDeclareOk(_)) {
        client.send(1, &ChannelCloseOk {}).await;
        client.open(1).await;
        return None;
    }
    let mut numbers = Vec::new();
    while let Some((_, content)) = client.get(queue, true).await {
        numbers.push(content.body[0]);
    }
    Some(numbers)
}

/// What a message that went straight to `work` begins with.
const STRAIGHT: u8 = b's';

fn work(lost: &BTreeSet<u8>) -> Vec<u8> {
    let numbers = (ACKNOWLEDGED + 1..=MESSAGES).filter(|number| !lost.contains(number));
    numbers.chain([STRAIGHT]).collect()
}

fn audit(lost: &BTreeSet<u8>) -> Vec<u8> {
    (1..=MESSAGES)
        .filter(|number| !lost.contains(number))
        .collect()
}

/// Checks and salvages a damaged folder, and starts a broker on what was salvaged.
async fn comes_back_without(dir: &Path, lost: &BTreeSet<u8>) -> serde_json::Value {
    let before = image(dir);
    let (found, code) = check(dir);
    assert_eq!(code, 1, "{found}");
    assert_eq!(found["startable"], false);
    let page = stdout(&run(&["check", name(dir)]));
    for says in ["a start refuses this folder", "what to do", "salvage"] {
        assert!(page.contains(says), "{page}");
    }
    assert_eq!(image(dir), before, "nothing is changed");
    let start = run(&["--listen", "127.0.0.1:0", "--data", name(dir)]);
    assert!(!start.status.success());
    let says = stderr(&start);
    let refusal = found["refusal"].as_str().expect("a text");
    for says_it in [refusal, "tidings-broker check", "tidings-broker salvage"] {
        assert!(says.contains(says_it), "{says}");
    }
    // The start has written to the lock file.
    let before = image(dir);
    let (into, _) = salvage(dir);
    assert_eq!(image(dir), before, "the damaged folder stays as it was");
    let new = into.path().join("new");
    let (clean, code) = check(&new);
    assert_eq!(code, 0, "{clean}");
    assert_eq!(clean["losses"], serde_json::json!([]));
    let program = Program::start(&new);
    let mut client = Client::connect(program.addr).await;
    assert_eq!(drain(&mut client, "work").await, Some(work(lost)));
    assert_eq!(drain(&mut client, "audit").await, Some(audit(lost)));
    // The exchange is there and bound as before.
    done(&mut client, ConfirmSelect::default()).await;
    confirmed(&mut client, "orders", "", &persistent(None), &[99]).await;
    assert_eq!(drain(&mut client, "work").await, Some(vec![99]));
    found
}

#[tokio::test]
async fn a_whole_folder_is_taken_and_says_what_it_holds() {
    let data = folder().await;
    let before = image(data.path());
    let (found, code) = check(data.path());
    assert_eq!(code, 0, "{found}");
    assert_eq!(found["startable"], true);
    assert_eq!(found["format"], 1);
    assert_eq!(found["messages"], u64::from(MESSAGES) + 1);
    let queues: Vec<_> = found["queues"].as_array().expect("queues").iter().collect();
    let counts: Vec<_> = queues
        .iter()
        .map(|it| (&it["name"], &it["messages"]))
        .collect();
    let (in_work, in_audit) = (MESSAGES - ACKNOWLEDGED + 1, MESSAGES);
    assert_eq!(
        serde_json::json!(counts),
        serde_json::json!([["work", in_work], ["audit", in_audit]])
    );
    assert_eq!(found["bindings"].as_array().expect("bindings").len(), 2);
    assert_eq!(found["exchanges"][0]["name"], "orders");
    assert_eq!(found["segments"].as_array().expect("segments").len(), 3);
    assert_eq!(found["losses"], serde_json::json!([]));
    let page = stdout(&run(&["check", name(data.path())]));
    for says in [
        "3 segments, 41 messages",
        "audit: 40 messages, 3.8 MiB",
        "orders: fanout",
        "orders -> queue work",
        "a start takes this folder",
    ] {
        assert!(page.contains(says), "{says} in {page}");
    }
    assert_eq!(image(data.path()), before, "nothing is changed");

    // What is whole is salvaged as a whole, as often as somebody likes.
    let none = BTreeSet::new();
    for _ in 0..2 {
        let (into, _) = salvage(data.path());
        let program = Program::start(&into.path().join("new"));
        let mut client = Client::connect(program.addr).await;
        assert_eq!(drain(&mut client, "work").await, Some(work(&none)));
        assert_eq!(drain(&mut client, "audit").await, Some(audit(&none)));
    }
    // And the folder itself still starts.
    let program = Program::start(data.path());
    let mut client = Client::connect(program.addr).await;
    assert_eq!(drain(&mut client, "work").await, Some(work(&none)));

    // It is let alone while a broker has it.
    let into = tempfile::tempdir().expect("a folder");
    let holder = format!("process {}", program.child.id());
    for arguments in [
        &["check", name(data.path())][..],
        &["salvage", name(data.path()), "--into", name(into.path())],
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stdout.is_empty());
        let says = stderr(&output);
        assert!(says.contains("in use") && says.contains(&holder), "{says}");
    }
    assert!(image(into.path()).is_empty());
}

#[tokio::test]
async fn what_is_before_and_behind_damage_is_delivered_in_order() {
    let data = folder().await;
    let none = BTreeSet::new();

    // A byte in the middle of a segment: one message is lost.
    let dir = copy_of(data.path());
    let (path, at) = place_of(dir.path(), 20);
    flip(&path, at);
    let found = comes_back_without(dir.path(), &[20].into()).await;
    let loss = &found["losses"][0];
    assert_eq!(loss["batches"], 1);
    let hit = loss["from"].as_u64() < Some(at as u64) && loss["to"].as_u64() > Some(at as u64);
    assert!(hit, "byte {at} in {found}");
    let stem = format!("{:020}", loss["segment"].as_u64().expect("a number"));
    assert_eq!(path.file_stem().and_then(|it| it.to_str()), Some(&*stem));

    // The header of a segment: nothing is lost.
    for segment in 0..3 {
        let dir = copy_of(data.path());
        flip(&segments(dir.path())[segment], 20);
        let found = comes_back_without(dir.path(), &none).await;
        assert_eq!(found["losses"][0]["lost"], "header");
    }

    // A segment in the middle is missing, with all its messages and nothing else.
    let dir = copy_of(data.path());
    let middle = &segments(dir.path())[1];
    let gone = numbers_in(middle);
    assert!(gone.len() > 10, "{gone:?}");
    fs::remove_file(middle).expect("removed");
    let found = comes_back_without(dir.path(), &gone).await;
    assert_eq!(found["losses"][0]["lost"], "segments");
    assert_eq!(found["losses"][0]["segment"], 2);

    // The first segment without its first page: header, topology and first messages in one.
    let dir = copy_of(data.path());
    let first = &segments(dir.path())[0];
    let mut bytes = fs::read(first).expect("readable");
    bytes[..4096].fill(0);
    fs::write(first, bytes).expect("written");
    let (into, said) = salvage(dir.path());
    assert!(
        said["messages"].as_u64() >= Some(u64::from(MESSAGES) - 1),
        "{said}"
    );
    let program = Program::start(&into.path().join("new"));
    let mut client = Client::connect(program.addr).await;
    for queue in said["queues"].as_array().expect("queues") {
        assert_eq!(queue["declared"], false);
        let name = queue["name"].as_str().expect("a name");
        let numbers = drain(&mut client, name).await.expect("it stands in");
        assert_eq!(
            numbers.len() as u64,
            queue["messages"].as_u64().expect("a number")
        );
    }
}

#[tokio::test]
async fn only_what_was_acknowledged_in_the_damaged_part_comes_again() {
    let data = folder().await;
    let (path, places) = removals(data.path());
    flip(&path, *places.last().expect("six") + 5);
    let (_, code) = check(data.path());
    assert_eq!(code, 1);
    let (into, said) = salvage(data.path());
    assert_eq!(
        said["losses"].as_array().expect("losses").len(),
        1,
        "{said}"
    );
    let program = Program::start(&into.path().join("new"));
    let mut client = Client::connect(program.addr).await;
    // The acknowledgement of the last one is lost, those of the others are not.
    let again: Vec<u8> = [ACKNOWLEDGED]
        .into_iter()
        .chain(work(&BTreeSet::new()))
        .collect();
    assert_eq!(drain(&mut client, "work").await, Some(again));
    let page = stdout(&run(&["check", name(data.path())]));
    assert!(page.contains("it comes again"), "{page}");
}

#[tokio::test]
async fn a_queue_whose_declaration_is_lost_is_stood_in_for() {
    let data = folder().await;
    let first = segments(data.path()).remove(0);
    let bytes = fs::read(&first).expect("readable");
    flip(&first, find(&bytes[..4096], b"work")[0]);
    let (into, said) = salvage(data.path());
    let queue = &said["queues"][0];
    assert_eq!(queue["declared"], false, "{said}");
    assert_eq!(queue["lostName"], "work", "one message was sent there");
    assert_eq!(said["orphans"][0]["exchange"], "orders");
    let program = Program::start(&into.path().join("new"));
    let mut client = Client::connect(program.addr).await;
    let none = BTreeSet::new();
    let stand_in = queue["name"].as_str().expect("a name");
    assert_eq!(drain(&mut client, "work").await, None);
    assert_eq!(drain(&mut client, stand_in).await, Some(work(&none)));
    assert_eq!(drain(&mut client, "audit").await, Some(audit(&none)));
}

#[tokio::test]
async fn a_last_segment_that_was_shortened_is_told_though_a_start_takes_it() {
    let data = folder().await;
    let (path, at) = place_of(data.path(), MESSAGES);
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .expect("there");
    file.set_len(at as u64 + 100).expect("shortened");
    let before = image(data.path());
    let (found, code) = check(data.path());
    assert_eq!(code, 0, "{found}");
    assert_eq!(found["torn"]["fileShortened"], true, "{found}");
    let page = stdout(&run(&["check", name(data.path())]));
    assert!(page.contains("somebody shortened it"), "{page}");
    assert_eq!(image(data.path()), before);
    let (into, _) = salvage(data.path());
    // The acknowledgements were behind it.
    let numbers: Vec<u8> = (1..MESSAGES).collect();
    for dir in [into.path().join("new"), data.path().to_owned()] {
        let program = Program::start(&dir);
        let mut client = Client::connect(program.addr).await;
        assert_eq!(drain(&mut client, "work").await, Some(numbers.clone()));
        assert_eq!(drain(&mut client, "audit").await, Some(numbers.clone()));
    }
}

#[test]
fn a_folder_that_is_none_of_a_broker_is_told_and_left_alone() {
    let parent = tempfile::tempdir().expect("a folder");
    let (empty, foreign) = (parent.path().join("empty"), parent.path().join("foreign"));
    for dir in [&empty, &foreign] {
        fs::create_dir(dir).expect("made");
    }
    fs::write(foreign.join("photo.jpg"), "").expect("written");
    let nowhere = parent.path().join("nowhere");
    let new = parent.path().join("new");
    let (found, code) = check(&empty);
    assert_eq!((code, &found["startable"]), (0, &true.into()), "{found}");
    for (dir, says) in [
        (&empty, "is empty"),
        (&foreign, "is not one of a broker"),
        (&nowhere, "cannot read the folder"),
    ] {
        let salvaged = run(&["salvage", name(dir), "--into", name(&new)]);
        assert_eq!(salvaged.status.code(), Some(1));
        assert!(stderr(&salvaged).contains(says), "{salvaged:?}");
        if *dir != empty {
            let checked = run(&["check", name(dir), "--json"]);
            assert_eq!(checked.status.code(), Some(1));
            assert!(stderr(&checked).contains(says), "{checked:?}");
        }
    }
    assert!(!new.exists() && !nowhere.exists());
    assert!(image(&empty).is_empty());
    assert_eq!(image(&foreign).len(), 1);
}

#[tokio::test]
async fn what_is_used_wrongly_is_refused() {
    let data = tempfile::tempdir().expect("a folder");
    let program = Program::start(data.path());
    let mut client = Client::connect(program.addr).await;
    done(&mut client, durable(queue("q\u{1b}[31m"))).await;
    drop(client);
    program.kill();
    let dir = name(data.path());
    let full = tempfile::tempdir().expect("a folder");
    fs::write(full.path().join("notes"), "mine").expect("written");
    let within = data.path().join("new");
    for (into, says) in [
        (full.path(), "is not empty"),
        (within.as_path(), "within the folder that is read"),
    ] {
        let output = run(&["salvage", dir, "--into", name(into)]);
        assert_eq!(output.status.code(), Some(1));
        let error = stderr(&output);
        assert!(
            error.contains(says) && error.contains("nothing was salvaged"),
            "{error}"
        );
    }
    assert_eq!(image(full.path()).len(), 1);
    assert!(!within.exists());
    for arguments in [
        &["check"][..],
        &["salvage", dir],
        &["--ephemeral", "check", dir],
    ] {
        assert_eq!(run(arguments).status.code(), Some(2), "{arguments:?}");
    }
    // A stranger's name does not reach the terminal as it is.
    let page = stdout(&run(&["check", dir]));
    assert!(page.contains("q\\u{1b}[31m: 0 messages"), "{page}");
    for verb in ["check", "salvage"] {
        let help = stdout(&run(&[verb, "--help"]));
        let example = format!("Examples:\n  tidings-broker {verb} ");
        assert!(help.contains(&example), "{help}");
    }
}

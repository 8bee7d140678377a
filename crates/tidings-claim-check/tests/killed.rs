//! A program is killed in the middle of a put: what it was promised is there, and nothing else that
//! could be taken for a body.

mod support;

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    sync::LazyLock,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use support::DAY;
use tidings_claim_check::{Attachment, Bodies};

const FOLDER: &str = "TIDINGS_TEST_CLAIM_CHECK_FOLDER";

/// How long the attack goes on, if a put is not caught in the middle earlier.
const LIMIT: Duration = Duration::from_secs(180);

/// A body that says how long it is and from which number it was made.
fn body(number: u32) -> Vec<u8> {
    let bytes = 1_000_000 + (number as usize * 777_777) % 3_000_000;
    // Made once: the program that is killed should spend its time with putting.
    static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| support::content(4_000_000));
    [&number.to_le_bytes(), &CONTENT[..bytes]].concat()
}

fn is_whole(file: &[u8]) -> bool {
    let number = file.first_chunk().map(|bytes| u32::from_le_bytes(*bytes));
    number.is_some_and(|number| file == body(number))
}

/// The program that is killed: prints each reference when it has it.
#[tokio::test]
#[ignore = "run by the test below, in a process of its own"]
async fn put_until_killed() {
    let Ok(folder) = std::env::var(FOLDER) else {
        return;
    };
    let bodies = Bodies::folder(folder).await.unwrap();
    for number in 0.. {
        let attachment = bodies.put(body(number)).await.unwrap();
        println!("\nput {}", serde_json::to_string(&attachment).unwrap());
    }
}

fn start(folder: &Path, said: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "put_until_killed", "--ignored", "--nocapture"]);
    command.env(FOLDER, folder);
    let said = fs::File::create(said).unwrap();
    command.stdout(said).stderr(Stdio::null()).spawn().unwrap()
}

/// The references that the program had when it was killed; a half line was never had.
fn promised(said: &Path) -> Vec<Attachment> {
    let said = fs::read_to_string(said).unwrap();
    let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = whole.lines().filter_map(|line| line.strip_prefix("put "));
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn unfinished(folder: &Path) -> usize {
    fs::read_dir(folder.join("unfinished")).map_or(0, Iterator::count)
}

#[tokio::test]
async fn what_was_promised_before_a_kill_is_there_and_nothing_is_half_there() {
    let folder = tempfile::tempdir().unwrap();
    let said = folder.path().join("said");
    let path = folder.path().join("bodies");
    let until = Instant::now() + LIMIT;
    let mut all = Vec::new();
    let (mut rounds, mut caught) = (0, 0);
    while rounds < 8 || caught < 3 {
        assert!(
            Instant::now() < until,
            "{caught} puts were caught in {rounds} rounds"
        );
        let left = unfinished(&path);
        let mut child = start(&path, &said);
        while promised(&said).is_empty() {
            assert!(Instant::now() < until, "nothing was put");
            assert!(child.try_wait().unwrap().is_none(), "the program ended");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // Each round ends at another point of a put.
        tokio::time::sleep(Duration::from_millis(rounds * 7 % 23)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        all.extend(promised(&said));
        rounds += 1;
        caught += unfinished(&path) - left;
    }

    let bodies = Bodies::folder(&path).await.unwrap();
    for attachment in &all {
        assert!(is_whole(&bodies.get(attachment).await.unwrap()));
    }
    let mut files = 0;
    for day in fs::read_dir(&path).unwrap().map(|day| day.unwrap().path()) {
        if day.is_dir() && !day.ends_with("unfinished") {
            for file in fs::read_dir(day).unwrap() {
                assert!(
                    is_whole(&fs::read(file.unwrap().path()).unwrap()),
                    "half a body"
                );
                files += 1;
            }
        }
    }
    assert!(files >= all.len());

    // What killed programs left goes with the next pruning after a day.
    assert_eq!(bodies.prune(Timestamp::now()).await.unwrap().unfinished, 0);
    let pruned = bodies.prune(Timestamp::now() + 2 * DAY).await.unwrap();
    assert_eq!((pruned.unfinished, pruned.bodies), (caught as u64, 0));
    assert_eq!(unfinished(&path), 0);
}

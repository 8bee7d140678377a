//! What was reported as committed survives `kill -9`, whole; what was not is there whole or not at
//! all.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use tidings_core::{
    Ask, Claim, Commit, Committed, Destination, Envelope, InboxEntry, InboxState, Lane, Outgoing,
    Store, TransactionSlot, Unrouted,
};
use tidings_sqlite::{SqliteStore, Tx};

/// Where the process that will be killed writes; set only for it.
const FILE: &str = "TIDINGS_TEST_KILL_FILE";
const TABLES: &[(&str, &str)] = &[("0001", "create table note (number text primary key)")];
const ROUNDS: usize = 3;
const REPORTS_PER_ROUND: usize = 300;

fn claim(number: &str) -> Claim {
    Claim {
        consumer: "c".into(),
        message: number.to_owned().into(),
    }
}

/// The process that will be killed: many writers, each of which reports what is committed.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "run by the test below, which kills it"]
async fn writer() {
    let Some(file) = std::env::var_os(FILE) else {
        return;
    };
    let store = SqliteStore::open(file).await.expect("the database");
    store.migrate(TABLES).await.expect("a table");
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..16 {
        let store = store.clone();
        writers.spawn(async move {
            for number in 0.. {
                let number = format!("{}-{writer}-{number}", std::process::id());
                let slot = std::sync::Arc::new(TransactionSlot::new(store.clone().into()));
                let mut tx = Tx::from(slot.handle());
                let insert = "insert into note values (?1)";
                let written = tx.execute(insert, (number.clone(),)).await;
                written.expect("a write");
                drop(tx);
                let message = Outgoing {
                    destination: Destination::topic("notes"),
                    unrouted: Unrouted::Hold,
                    envelope: Envelope::new("noted.v1", number.clone()),
                };
                let commit = Commit {
                    inbox: vec![InboxEntry::handled(claim(&number))],
                    outbox: vec![message],
                    ..Commit::default()
                };
                let transaction = slot.take().expect("handed back").expect("begun");
                let committed = transaction.commit(commit).await.expect("it commits");
                assert_eq!(committed, Committed::Done);
                println!("committed {number}");
            }
        });
    }
    writers.join_all().await;
}

fn start(file: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "writer", "--ignored", "--nocapture"])
        .env(FILE, file)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process")
}

#[tokio::test]
async fn what_was_reported_as_committed_survives_kill_nine() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("test.db");
    let mut reported = Vec::new();
    for _ in 0..ROUNDS {
        let mut child = start(&file);
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut reports = lines.map_while(Result::ok).filter_map(|line| {
            let number = line.strip_prefix("committed ")?;
            Some(number.to_owned())
        });
        reported.extend(reports.by_ref().take(REPORTS_PER_ROUND));
        child.kill().expect("it is killed");
        child.wait().expect("it ends");
        // Reports that were on their way count too.
        reported.extend(reports);
    }
    assert!(reported.len() >= ROUNDS * REPORTS_PER_ROUND);

    let store = SqliteStore::open(&file)
        .await
        .expect("the database is intact");
    let notes: Vec<String> = store
        .read(|connection| {
            let mut notes = connection.prepare("select number from note order by number")?;
            notes.query_map((), |row| row.get(0))?.collect()
        })
        .await
        .expect("notes");
    for number in &reported {
        assert!(notes.binary_search(number).is_ok(), "`{number}` was lost");
    }
    let lanes: Vec<Lane> = (0..Lane::COUNT).map(Lane).collect();
    let rows = store.outbox().next(&lanes, &[], &[], usize::MAX).await;
    let mut sent: Vec<String> = rows
        .expect("the outbox")
        .into_iter()
        .map(|row| row.message.expect("a row that can be read").envelope.body)
        .map(|body| String::from_utf8_lossy(&body).into_owned())
        .collect();
    sent.sort();
    assert_eq!(sent, notes, "writes and messages stand and fall together");
    let asked: Vec<Ask> = notes
        .iter()
        .map(|number| Ask {
            claim: claim(number),
            order: None,
        })
        .collect();
    let seen = store.look(&asked).await.expect("an answer");
    for (number, seen) in notes.iter().zip(seen) {
        assert_eq!(
            seen.state,
            Some(InboxState::Handled),
            "`{number}` has no row"
        );
    }
}

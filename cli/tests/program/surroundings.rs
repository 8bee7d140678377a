//! How the program is used, and what it leaves alone.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    path::Path,
    process::Stdio,
};

use crate::{
    run::{command, tidings},
    world::{Stack, World, open_file},
};

#[test]
fn wrong_use_ends_with_2_and_says_what_is_right() {
    tidings(["outbox"]).ends(2).says("TIDINGS_DATABASE");
    tidings(["consumers", "list", "--database", "mysql://me:s3cret@host"])
        .ends(2)
        .says("use `sqlite://folder`");
    let secret = tidings(["outbox", "--database", "mysql://me:s3cret@host"]);
    assert!(!secret.err.contains("s3cret"), "{secret:#?}");
    tidings(["doctor"]).ends(2).says("say what to look at");
    tidings(["nonsense"]).ends(2);
    tidings(Vec::<&str>::new()).ends(2);
    tidings(["doctor", "--broker", "embedded"])
        .ends(2)
        .says("the address at which that listens");
    tidings(["doctor", "--broker", "http://x"]).ends(2);
}

#[test]
#[cfg(not(any(feature = "kafka", feature = "aws")))]
fn a_build_without_an_engine_says_how_to_get_it() {
    let list = ["dead-letters", "list", "pay.order-placed.v1"];
    for (feature, broker) in [
        ("kafka", "kafka://localhost:9092"),
        ("aws", "aws://eu-central-1/shop-"),
    ] {
        tidings([&list[..], &["--broker", broker]].concat())
            .ends(2)
            .says(&format!("build it with `--features {feature}`"));
    }
}

#[test]
#[cfg(not(feature = "contracts"))]
fn a_build_without_contracts_says_how_to_get_them() {
    let refused = tidings([
        "contracts",
        "check",
        "asyncapi/",
        "--baseline",
        "published/",
    ]);
    refused.ends(2).says("build it with `--features contracts`");
    tidings(["doctor", "--contracts", "asyncapi/"])
        .ends(2)
        .says("build it with `--features contracts`");
}

#[test]
fn each_verb_has_help_with_examples() {
    let mut seen = 0;
    let mut left = vec![Vec::<String>::new()];
    while let Some(path) = left.pop() {
        let args = path.iter().map(String::as_str).chain(["--help"]);
        let help = tidings(args);
        help.ends(0).tells("Examples:");
        let example = format!("  tidings {}", path.join(" "));
        let after = help.out.split("Examples:").nth(1).unwrap();
        assert!(after.contains(example.trim_end()), "{path:?}: {help:#?}");
        let verbs = help
            .out
            .lines()
            .skip_while(|line| *line != "Commands:")
            .skip(1);
        let verbs = verbs.take_while(|line| !line.is_empty());
        for verb in verbs.filter_map(|line| line.split_whitespace().next()) {
            if verb != "help" {
                left.push([&path[..], &[verb.to_owned()]].concat());
            }
        }
        seen += 1;
    }
    assert!(seen >= 40, "{seen} verbs at all depths");
}

#[test]
fn completions_are_printed_for_each_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        tidings(["completions", shell]).ends(0).tells("schedules");
    }
    tidings(["completions", "tcsh"]).ends(2);
}

#[test]
fn a_database_that_is_not_there_is_an_error_and_stays_away() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| format!("sqlite://{}", folder.path().join(name).display());
    for verb in [
        &["outbox"][..],
        &["sagas", "list"],
        &["schedules", "cancel", "x"],
    ] {
        let missing = tidings([verb, &["--database", &place("payment.db")]].concat());
        missing
            .ends(1)
            .says("there is no folder or file")
            .says("TDG-9001");
        let empty = tidings([verb, &["--database", &place("")]].concat());
        empty.ends(1).says("there is no service's database");
    }
    std::fs::write(folder.path().join("empty.db"), "").unwrap();
    let foreign = tidings(["outbox", "--database", &place("empty.db")]);
    foreign.ends(1).says("none of the toolkit's tables");
    assert_eq!(std::fs::read(folder.path().join("empty.db")).unwrap(), b"");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_looks_leaves_databases_as_they_are() {
    let world = World::new(Stack::Sqlite).await;
    world.place("o-1", "fine").await;
    world.schedule("o-1", "expire/o-1").await;
    let World {
        folder,
        checkout,
        payment,
        ..
    } = world;
    drop((checkout, payment));
    let url = format!("sqlite://{}", folder.path().display());
    let content = || -> BTreeMap<String, Vec<u8>> {
        let files = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|it| it.unwrap());
        let databases = files.filter(|it| it.path().extension().is_some_and(|it| it == "db"));
        databases
            .map(|it| {
                let name = it.file_name().into_string().unwrap();
                (name, std::fs::read(it.path()).unwrap())
            })
            .collect()
    };
    wait_until_closed(folder.path(), &["checkout", "payment"]).await;
    let before = content();
    assert_eq!(before.len(), 2);
    for verb in [
        &["outbox"][..],
        &["outbox", "list"],
        &["deferred"],
        &["deferred", "list"],
        &["schedules", "list"],
        &["schedules", "show", "expire/o-1", "--service", "checkout"],
        &["consumers", "list"],
        &["sagas", "list", "--all"],
        &["doctor", "--unsent", "1h"],
    ] {
        let verb: Vec<String> = [verb, &["--database", &url]]
            .concat()
            .iter()
            .map(|it| (*it).to_owned())
            .collect();
        tokio::task::spawn_blocking(|| tidings(verb))
            .await
            .unwrap()
            .ends(0);
    }
    assert!(content() == before, "a database was changed");
    // It was not for want of being able to.
    let store = open_file(folder.path(), "checkout").await;
    tidings::pause(&store, "x", "y").await.unwrap();
    drop(store);
    wait_until_closed(folder.path(), &["checkout"]).await;
    assert!(content() != before);
}

/// SQLite puts everything into the file when the last connection that writes closes, on other threads.
/// (What only reads leaves the empty files beside it that SQLite needs to read.)
async fn wait_until_closed(folder: &Path, services: &[&str]) {
    let is_open = || {
        let mut logs = services
            .iter()
            .map(|it| folder.join(format!("{it}.db-wal")));
        logs.any(|log| log.exists())
    };
    let since = std::time::Instant::now();
    while is_open() {
        assert!(since.elapsed().as_secs() < 10, "it stays open");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_chosen_by_name() {
    let world = World::new(Stack::Sqlite).await;
    let both = world.tidings(&["outbox", "--json"]).await.json();
    assert_eq!(both["services"].as_array().unwrap().len(), 2);
    let one = world
        .tidings(&["outbox", "--json", "--service", "payment"])
        .await
        .json();
    assert_eq!(one["services"][0]["service"], "payment");
    assert_eq!(one["services"].as_array().unwrap().len(), 1);
    let none = world.tidings(&["outbox", "--service", "payments"]).await;
    none.ends(1)
        .says("`payments`; there are those of `checkout`, `payment`");
    let file = format!(
        "sqlite://{}",
        world.folder.path().join("payment.db").display()
    );
    let one =
        tokio::task::spawn_blocking(move || tidings(["outbox", "--json", "--database", &file]));
    let one = one.await.unwrap();
    assert_eq!(one.json()["services"][0]["service"], "payment");
}

#[test]
fn the_broker_runs_until_it_is_told_to_stop() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let mut broker = command(["broker", "--listen", "127.0.0.1:0", "--data", data]);
    let mut broker = broker
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(broker.stdout.take().unwrap()).lines();
    let listening = lines.next().unwrap().unwrap();
    let address = listening
        .strip_prefix("listening amqp ")
        .unwrap()
        .to_owned();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let url = format!("amqp://guest:guest@{address}");
    tidings(["doctor", "--broker", &url])
        .ends(0)
        .tells(&format!("amqp://{address}"));
    let pid = rustix::process::Pid::from_child(&broker);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(broker.wait().unwrap().code(), Some(0));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let mut child = command(["completions", "bash"]);
    let mut child = child
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
}

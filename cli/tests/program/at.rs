//! `tidings --at`: all verbs through the operator endpoint of a running service, without its database and its
//! broker.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use serde_json::Value;
use tidings_amqp::Amqp;
use tidings_operator::{Endpoint, Operator, Token};
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};

use crate::{
    run::{Ran, command, tidings},
    world::{Stack, World},
};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const SOON: Duration = Duration::from_secs(20);
const CHARGES: &str = "payment.charge-card.v1";

/// An endpoint that serves until it is stopped.
struct Serving {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Serving {
    fn start(endpoint: Endpoint) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        Self {
            address: endpoint.address(),
            stop,
            task: tokio::spawn(endpoint.serve(async move { stopped.await.unwrap_or_default() })),
        }
    }

    /// The endpoint of the world's services.
    async fn of(world: &World, with: impl FnOnce(Operator) -> Operator) -> Self {
        let amqp = Arc::new(Amqp::connect(&world.broker()).await.unwrap());
        let operator = with(Operator::new(amqp))
            .service("checkout", Arc::clone(&world.checkout))
            .service("payment", Arc::clone(&world.payment));
        Self::start(operator.listen(([127, 0, 0, 1], 0).into()).await.unwrap())
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        tokio::time::timeout(SOON, self.task)
            .await
            .unwrap()
            .unwrap();
    }

    /// Runs the program on the endpoint.
    async fn tidings(&self, args: &[&str]) -> Ran {
        let at = format!("http://{}", self.address);
        let args = [args, &["--at", &at]].concat();
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        tokio::task::spawn_blocking(|| tidings(args)).await.unwrap()
    }

    /// Runs it until its JSON is as it should be.
    async fn until(&self, args: &[&str], is_so: impl Fn(&Value) -> bool) -> Value {
        let since = Instant::now();
        loop {
            let ran = self.tidings(args).await;
            let json = ran.json();
            if is_so(&json) {
                return json;
            }
            assert!(since.elapsed() < SOON, "in vain: {args:?}: {ran:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn count(json: &Value, list: &str) -> usize {
    json[list].as_array().map_or(0, Vec::len)
}

/// The same without how long ago something was (`"oldestHeldSeconds": 4`, or `for 4s` in a text): one looks after
/// the other.
fn ageless(json: Value) -> Value {
    let is_age = |word: &&str| {
        let number = word.trim_end_matches(',').strip_suffix('s');
        number.is_some_and(|it| !it.is_empty() && it.bytes().all(|byte| byte.is_ascii_digit()))
    };
    match json {
        Value::String(text) => {
            let words: Vec<&str> = text.split(' ').filter(|it| !is_age(it)).collect();
            words.join(" ").into()
        }
        Value::Array(items) => items.into_iter().map(ageless).collect(),
        Value::Object(fields) => {
            let fields = fields.into_iter();
            let fields = fields.filter(|(name, _)| !name.ends_with("Seconds"));
            fields.map(|(name, it)| (name, ageless(it))).collect()
        }
        other => other,
    }
}

/// What is seen through the endpoint is what is seen in the database and on the broker.
async fn looks_the_same(stack: Stack) {
    let world = World::new(stack).await;
    let services = world.start().await;
    let endpoint = Serving::of(&world, |operator| operator).await;
    for (order, card) in [("o-1", "broken"), ("o-2", "later"), ("o-3", "fine")] {
        world.place(order, card).await;
    }
    world.schedule("o-1", "expire/o-1").await;
    let stuck = ["sagas", "list", "--stuck", "--json"];
    world.until(&stuck, |it| count(it, "sagas") == 1).await;
    let waiting = ["deferred", "list", "--json"];
    world.until(&waiting, |it| count(it, "messages") == 1).await;
    let all = ["sagas", "list", "--all", "--json"];
    let have_ended = |it: &Value| {
        it["sagas"]
            .as_array()
            .unwrap()
            .iter()
            .any(|it| it["key"] == "o-3" && it["state"] == "completed")
    };
    world.until(&all, have_ended).await;

    for (verb, list) in [
        (&["outbox"][..], "services"),
        (&["outbox", "list"], ""),
        (&["deferred"], "consumers"),
        (&["deferred", "list"], "messages"),
        (&["consumers", "list"], "consumers"),
        (&["sagas", "list", "--all"], "sagas"),
        (&["sagas", "show", "checkout", "o-1"], ""),
        (&["schedules", "list"], "schedules"),
        (
            &["schedules", "show", "expire/o-1", "--service", "checkout"],
            "",
        ),
        (&["dead-letters", "list"], "letters"),
        (&["dead-letters", "groups"], "groups"),
        (&["events", "replays"], ""),
    ] {
        let verb = [verb, &["--json"]].concat();
        let (direct, through) = (
            world.tidings_and_broker(&verb).await,
            endpoint.tidings(&verb).await,
        );
        through.ends(0);
        assert_eq!(ageless(through.json()), ageless(direct.json()), "{verb:?}");
        if !list.is_empty() {
            assert_ne!(
                count(&through.json(), list),
                0,
                "nothing was compared: {verb:?}"
            );
        }
    }
    let doctor = endpoint.tidings(&["doctor", "--json"]).await;
    let directly = world.tidings_and_broker(&["doctor", "--json"]).await;
    let findings = |ran: &Ran| ageless(ran.json()["findings"].clone());
    assert_eq!(findings(doctor.ends(1)), findings(&directly));
    assert_eq!(count(&doctor.json(), "checked"), 3, "{doctor:#?}");

    endpoint.stop().await;
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_seen_through_an_endpoint_is_what_there_is() {
    looks_the_same(Stack::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: run `cargo xtask test`"]
async fn on_postgresql_what_is_seen_through_an_endpoint_is_what_there_is() {
    looks_the_same(Stack::Postgres).await;
}

/// Each verb that changes something does, through the endpoint alone.
async fn operates(stack: Stack) {
    let world = World::new(stack).await;
    let services = world.start().await;
    let at = Serving::of(&world, |operator| {
        operator.token(Token::new(TOKEN).unwrap())
    })
    .await;
    // The token comes from a file.
    let file = world.folder.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let file = file.to_str().unwrap().to_owned();
    let token = ["--operator-token-file", &file, "--json"];
    let run = async |args: &[&str]| at.tidings(&[args, &token].concat()).await;
    let until = async |args: &[&str], is_so: fn(&Value) -> bool| {
        at.until(&[args, &token].concat(), is_so).await
    };
    for (order, card) in [("o-1", "broken"), ("o-2", "broken"), ("o-3", "later")] {
        world.place(order, card).await;
    }
    world.schedule("o-1", "expire/o-1").await;
    until(&["sagas", "list", "--stuck"], |it| count(it, "sagas") == 2).await;
    until(&["deferred", "list"], |it| count(it, "messages") == 1).await;

    // Dead letters: one is thrown away, one is mended and sent on.
    let groups = run(&["dead-letters", "groups", CHARGES]).await;
    assert_eq!(groups.ends(0).json()["groups"][0]["count"], 2);
    let listed = run(&["dead-letters", "list", CHARGES]).await.json();
    let letter = |order: &str| -> String {
        let letters = listed["letters"].as_array().unwrap();
        let found = letters
            .iter()
            .find(|it| it["id"].as_str().unwrap().contains(order));
        found.unwrap_or_else(|| panic!("{listed}"))["id"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let (first, second) = (letter("o-1"), letter("o-2"));
    let shown = run(&["dead-letters", "show", CHARGES, &first]).await;
    assert_eq!(shown.ends(0).json()["message"]["body"]["card"], "***");
    let discard = [
        "dead-letters",
        "discard",
        CHARGES,
        "--id",
        &first,
        "--why",
        "gone",
    ];
    assert_eq!(run(&discard).await.ends(0).json()["count"], 1);
    let body = world.folder.path().join("body.json");
    std::fs::write(
        &body,
        r#"{"order_id":"o-2","card":"fine","statement":["a","b"]}"#,
    )
    .unwrap();
    let body = body.to_str().unwrap();
    let edit = [
        "dead-letters",
        "edit",
        CHARGES,
        &second,
        "--body",
        body,
        "--why",
        "a typo",
    ];
    run(&edit).await.ends(0);
    let dry = run(&["dead-letters", "redrive", CHARGES, "--all", "--dry-run"]).await;
    assert_eq!(dry.ends(0).json()["sent"], 1);
    let redrive = [
        "dead-letters",
        "redrive",
        CHARGES,
        "--all",
        "--unlimited",
        "--settle",
        "100ms",
    ];
    assert_eq!(run(&redrive).await.ends(0).json()["sent"], 1);
    until(&["sagas", "list", "--stuck"], |it| count(it, "sagas") == 1).await;
    let recorded = run(&["dead-letters", "list", "--recorded"]).await.json();
    assert_eq!(count(&recorded, "letters"), 2);

    // Sagas: the service carries out what is asked.
    let done = ["--done", "\"c-1\"", "--why", "seen at the bank"];
    let answer = ["sagas", "answer", "checkout", "o-1", "charge-card"];
    let answered = run(&[&answer[..], &done].concat()).await;
    assert_eq!(answered.ends(0).json()["carriedOut"], true);

    // What waits, what is scheduled, who is paused.
    let id = until(&["deferred", "list"], |it| count(it, "messages") == 1).await;
    let id = id["messages"][0]["id"].as_str().unwrap().to_owned();
    let of_payment = ["--service", "payment"];
    let release = run(&[&["deferred", "release", CHARGES], &of_payment[..]].concat()).await;
    assert_eq!(release.ends(0).json()["count"], 1);
    until(&["deferred", "list"], |it| {
        it["messages"][0]["failures"] == 2
    })
    .await;
    let cancel = run(&[&["deferred", "cancel", CHARGES, &id], &of_payment[..]].concat()).await;
    assert_eq!(cancel.ends(0).json()["count"], 1);
    let cancel = ["schedules", "cancel", "expire/o-1", "--service", "checkout"];
    run(&cancel).await.ends(0);
    assert_eq!(
        count(&run(&["schedules", "list"]).await.json(), "schedules"),
        0
    );
    let pause = [
        "consumers",
        "pause",
        "payment",
        "--why",
        "the bank moves",
        "--service",
        "payment",
    ];
    run(&pause).await.ends(0);
    run(&["doctor"]).await.ends(1).tells("the bank moves");
    run(&["consumers", "resume", "payment", "--service", "payment"])
        .await
        .ends(0);

    at.stop().await;
    services.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_with_nothing_but_the_endpoint_operates() {
    operates(Stack::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL: run `cargo xtask test`"]
async fn on_postgresql_an_operator_with_nothing_but_the_endpoint_operates() {
    operates(Stack::Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_token_nobody_is_let_in_and_nobody_is_told_it() {
    let world = World::new(Stack::Sqlite).await;
    let token = Token::new(TOKEN).unwrap();
    let at = Serving::of(&world, |operator| operator.token(token)).await;
    let url = format!("http://{}", at.address);
    let run = async |token: Option<&'static str>, args: &[&str]| {
        let mut command = command([args, &["--at", &url]].concat());
        if let Some(token) = token {
            command.env("TIDINGS_OPERATOR_TOKEN", token);
        }
        let output = tokio::task::spawn_blocking(move || command.output().unwrap());
        let output = output.await.unwrap();
        let ran = Ran {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        };
        if let Some(token) = token {
            assert!(
                !ran.out.contains(token) && !ran.err.contains(token),
                "{ran:#?}"
            );
        }
        ran
    };
    const WRONG: &str = "fedcba9876543210fedcba9876543210";
    run(None, &["outbox"])
        .await
        .ends(1)
        .says("TDG-8005")
        .says("token");
    run(Some(WRONG), &["outbox"]).await.ends(1).says("TDG-8005");
    run(Some(WRONG), &["dead-letters", "list", CHARGES])
        .await
        .ends(1)
        .says("TDG-8005");
    run(Some("short"), &["outbox"])
        .await
        .ends(1)
        .says("TDG-8002");
    run(Some(TOKEN), &["outbox"])
        .await
        .ends(0)
        .tells("checkout");
    run(Some(TOKEN), &["--help"]).await.ends(0);
    at.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_only_lets_look_changes_nothing() {
    let world = World::new(Stack::Sqlite).await;
    let at = Serving::of(&world, Operator::look_only).await;
    let pause = [
        "consumers",
        "pause",
        "payment",
        "--why",
        "x",
        "--service",
        "payment",
    ];
    at.tidings(&pause)
        .await
        .ends(1)
        .says("only lets look")
        .says("TDG-8005");
    let consumers = at.tidings(&["consumers", "list", "--json"]).await;
    assert_eq!(count(&consumers.ends(0).json(), "consumers"), 0);
    at.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_endpoint_cannot_do_is_told_with_what_to_use() {
    let world = World::new(Stack::Sqlite).await;
    let at = Serving::of(&world, |operator| operator).await;
    let tail = at
        .tidings(&["events", "tail", "--topic", "order_events"])
        .await;
    tail.ends(1).says("TDG-8006").says("--broker");
    let replay = at
        .tidings(&[
            "events",
            "replay",
            "--to",
            "a.b.v1",
            "--service",
            "checkout",
        ])
        .await;
    replay.ends(1).says("TDG-8006").says("--database");
    at.tidings(&["outbox", "--service", "paymnt"])
        .await
        .ends(1)
        .says("`checkout`, `payment`");
    let url = format!("http://{}", at.address);
    at.stop().await;
    let check = |args: &[&str], code: i32, says: &str| {
        tidings(args).ends(code).says(says);
    };
    check(&["outbox", "--at", &url], 1, "TDG-8004");
    check(
        &["dead-letters", "list", CHARGES, "--at", &url],
        1,
        "TDG-8004",
    );
    check(&["outbox", "--at", "https://x"], 2, "tunnel");
    check(
        &["outbox", "--at", "http://me:s3cret@x"],
        2,
        "no user or password",
    );
    check(
        &["outbox", "--at", "localhost:1"],
        2,
        "must begin with `http://`",
    );
    tidings(["doctor", "--at", &url]).ends(1).tells("TDG-8004");
}

/// The program is killed while it holds dead letters through the endpoint: the service goes on, and the letters
/// are there again.
#[tokio::test(flavor = "multi_thread")]
async fn letters_that_a_killed_program_held_go_back() {
    let world = World::new(Stack::Sqlite).await;
    let services = world.start().await;
    let at = Serving::of(&world, |operator| operator).await;
    for order in 0..20 {
        world.place(&format!("o-{order}"), "broken").await;
    }
    let list = ["dead-letters", "list", CHARGES, "--json"];
    at.until(&["sagas", "list", "--stuck", "--json"], |it| {
        count(it, "sagas") == 20
    })
    .await;
    let before = at.tidings(&list).await.json();
    assert_eq!(count(&before, "letters"), 20);
    // It waits between its letters, so that it is killed in the middle.
    let url = format!("http://{}", at.address);
    let rate = [
        "--rate", "1", "--batch", "1", "--ramp", "10s", "--all", "--at", &url,
    ];
    let mut child = command([&["dead-letters", "redrive", CHARGES][..], &rate].concat())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let since = Instant::now();
    while letters_ready(&world).await == 20 {
        assert!(since.elapsed() < SOON, "it holds none");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    at.stop().await;
    let since = Instant::now();
    while letters_ready(&world).await < 20 {
        assert!(since.elapsed() < SOON, "they do not come back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    services.stop().await;
}

/// How many letters nobody holds.
async fn letters_ready(world: &World) -> u32 {
    let amqp = Amqp::connect(&world.broker()).await.unwrap();
    let depths = amqp.depths(&[tidings::dead_letter_queue(CHARGES)]).await;
    depths.unwrap()[0].unwrap().ready
}

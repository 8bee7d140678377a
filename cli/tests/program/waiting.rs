//! `outbox`, `deferred`, `schedules` and `consumers`: what waits, and letting it go on.

use std::time::Duration;

use serde_json::{Value, json};
use tidings::{Lane, OutboxRow};

use crate::world::{Stack, World};

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_counted_listed_and_let_go_on_sqlite() {
    what_waits_is_counted_listed_and_let_go(Stack::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn what_waits_is_counted_listed_and_let_go_on_postgresql() {
    what_waits_is_counted_listed_and_let_go(Stack::Postgres).await;
}

async fn what_waits_is_counted_listed_and_let_go(stack: Stack) {
    let world = World::new(stack).await;
    outbox(&world).await;
    schedules(&world).await;
    let running = world.start().await;
    deferred(&world).await;
    consumers(&world).await;
    running.stop().await;
}

/// Rows that no relay offers: the services do not run.
async fn outbox(world: &World) {
    for order in ["o-1", "o-2", "o-3"] {
        world.place(order, "tok_secret").await;
    }
    let store = world.checkout.outbox();
    let lanes: Vec<Lane> = (0..Lane::COUNT).map(Lane).collect();
    store.lease("relay", Duration::from_secs(60)).await.unwrap();
    let rows: Vec<OutboxRow> = store.next(&lanes, &[], &[], 10).await.unwrap();
    let mut positions: Vec<i64> = rows.iter().map(|row| row.position).collect();
    positions.sort_unstable();
    store
        .hold("relay", &positions[..1], "nobody\u{1b}[31m listens")
        .await
        .unwrap();
    store
        .set_aside("relay", &positions[1..2], "too large")
        .await
        .unwrap();
    store.release("relay", None).await.unwrap();

    let counted = world.tidings(&["outbox", "--json"]).await.ends(0).json();
    let of_checkout = &counted["services"][0];
    assert_eq!(of_checkout["service"], "checkout");
    assert_eq!(
        keys(of_checkout),
        [
            "held",
            "oldestHeldSeconds",
            "oldestReadySeconds",
            "ready",
            "service",
            "setAside"
        ]
    );
    let numbers = ["ready", "held", "setAside"].map(|name| of_checkout[name].as_u64().unwrap());
    assert_eq!(numbers, [1, 1, 1]);
    assert_eq!(counted["services"][1]["service"], "payment");
    world
        .tidings(&["outbox"])
        .await
        .tells("SET ASIDE")
        .tells("checkout");

    let listed = world
        .tidings(&["outbox", "list", "--json"])
        .await
        .ends(0)
        .json();
    let [held, aside] = &listed["rows"].as_array().unwrap()[..] else {
        panic!("{listed}");
    };
    assert_eq!(
        (&held["state"], &aside["state"]),
        (&json!("held"), &json!("set-aside"))
    );
    assert_eq!(held["destination"], "topic:order-placed.v1");
    assert_eq!(
        (&aside["reason"], &aside["name"]),
        (&json!("too large"), &json!("order-placed.v1"))
    );
    let table = world.tidings(&["outbox", "list"]).await;
    // What a stranger wrote does not command the terminal.
    table
        .ends(0)
        .tells("nobody\\u{1b}[31m listens")
        .tells("set aside");
    let held_only = world.tidings(&[
        "outbox", "list", "--state", "held", "--limit", "1", "--json",
    ]);
    assert_eq!(held_only.await.json()["rows"].as_array().unwrap().len(), 1);

    let of_checkout = ["--service", "checkout"];
    let aside = positions[1].to_string();
    let shown = world
        .tidings(&[&["outbox", "show", &aside][..], &of_checkout].concat())
        .await;
    shown.ends(0).tells(r#""card":"***""#).tells("too large");
    let revealed = [
        &["outbox", "show", &aside, "--reveal", "--json"][..],
        &of_checkout,
    ]
    .concat();
    let revealed = world.tidings(&revealed).await.json();
    assert_eq!(revealed["message"]["body"]["card"], "tok_secret");
    let key = revealed["message"]["key"].as_str().unwrap();
    assert!(key.starts_with("o-"), "{revealed}");
    let ready = positions[2].to_string();
    let shown = world
        .tidings(&[&["outbox", "show", &ready][..], &of_checkout].concat())
        .await;
    shown.ends(1).says("is held or set aside");

    let restore = [&["outbox", "restore", &aside, &ready][..], &of_checkout].concat();
    let restored = world.tidings(&restore).await;
    restored
        .ends(1)
        .tells("restored 1 row of checkout")
        .says("left alone");
    let discard = [&["outbox", "discard", &aside][..], &of_checkout].concat();
    world.tidings(&discard).await.ends(1).tells("discarded 0");
    let stats = store.stats().await.unwrap();
    assert_eq!((stats.ready, stats.held, stats.set_aside), (2, 1, 0));
    world
        .tidings(&["outbox", "restore", "1"])
        .await
        .ends(2)
        .says("`checkout`, `payment`");
}

async fn schedules(world: &World) {
    world.schedule("o-1", "expire/o-1").await;
    let listed = world
        .tidings(&["schedules", "list", "--json"])
        .await
        .ends(0)
        .json();
    let schedule = &listed["schedules"][0];
    let expected = [
        "destination",
        "due",
        "key",
        "message",
        "name",
        "scheduled",
        "service",
    ];
    assert_eq!(keys(schedule), expected);
    assert_eq!(schedule["name"], "expire/o-1");
    assert_eq!(schedule["message"], "order-expired.v1");
    assert_eq!(schedule["destination"], "topic:order-expired.v1");
    assert!(
        schedule["due"].is_string() && schedule["key"] == "o-1",
        "{schedule}"
    );
    world
        .tidings(&["schedules", "list"])
        .await
        .tells("in 59m")
        .tells("expire/o-1");
    let show = ["schedules", "show", "expire/o-1", "--service", "checkout"];
    let shown = world.tidings(&show).await;
    shown.ends(0).tells(r#""email":"***""#);
    assert!(!shown.out.contains("ann@example.org"), "{shown:#?}");
    let cancel = ["schedules", "cancel", "expire/o-1", "--service", "checkout"];
    world
        .tidings(&cancel)
        .await
        .ends(0)
        .tells("cancelled expire/o-1");
    world.tidings(&cancel).await.ends(1).says("(any more)");
    world
        .tidings(&["schedules", "list"])
        .await
        .tells("nothing is scheduled");
}

async fn deferred(world: &World) {
    world.place("o-4", "later").await;
    let consumer = "payment.charge-card.v1";
    let listed = world
        .until(&["deferred", "list", "--json"], |json| {
            json["messages"][0]["failures"] == 1
        })
        .await;
    let message = &listed["messages"][0];
    assert_eq!(message["consumer"], consumer);
    assert_eq!(
        (&message["service"], &message["state"]),
        (&json!("payment"), &json!("deferred"))
    );
    let reason = message["reason"].as_str().unwrap();
    assert!(reason.contains("the bank does not answer"), "{reason}");
    let counted = world.tidings(&["deferred", "--json"]).await.json();
    assert_eq!(
        counted["consumers"],
        json!([{"service": "payment", "consumer": consumer, "waiting": 1, "dead": 0}])
    );
    let expected = [
        "consumer", "due", "failures", "id", "leased", "name", "reason", "service", "state",
    ];
    assert_eq!(keys(message), expected);
    let id = message["id"].as_str().unwrap();
    let of_payment = ["--service", "payment"];
    let show = [&["deferred", "show", consumer, id][..], &of_payment].concat();
    let shown = world.tidings(&show).await;
    shown
        .ends(0)
        .tells("the bank does not answer")
        .tells(r#""card":"***""#);
    let shown = world
        .tidings(&[&show[..], &["--json"]].concat())
        .await
        .json();
    assert_eq!(shown["history"].as_array().unwrap().len(), 1);

    // Due in an hour, and tried now.
    let release = [&["deferred", "release", consumer][..], &of_payment].concat();
    world
        .tidings(&release)
        .await
        .ends(0)
        .tells("released 1 message of");
    world
        .until(&["deferred", "list", "--json"], |json| {
            json["messages"][0]["failures"] == 2
        })
        .await;
    let cancel = [&["deferred", "cancel", consumer, id][..], &of_payment].concat();
    world
        .tidings(&cancel)
        .await
        .ends(0)
        .tells("cancelled 1 message of");
    world.tidings(&cancel).await.ends(1).says("left alone");
    world.tidings(&show).await.ends(1);
    world
        .tidings(&["deferred", "list"])
        .await
        .ends(0)
        .tells("nothing waits");

    // What is dead does not wait; its dead letter is elsewhere.
    world.place("o-7", "broken").await;
    let is_dead = |json: &Value| json["messages"][0]["state"] == "dead";
    let dead = ["deferred", "list", "--state", "dead", "--json"];
    let dead = world.until(&dead, is_dead).await;
    let id = dead["messages"][0]["id"].as_str().unwrap();
    let cancel = [&["deferred", "cancel", consumer, id][..], &of_payment].concat();
    let refused = world.tidings(&cancel).await;
    refused
        .ends(1)
        .says("is dead")
        .says("payment.charge-card.v1.dead");
    let release = [&["deferred", "release", consumer, id][..], &of_payment].concat();
    world
        .tidings(&release)
        .await
        .ends(1)
        .tells("released 0")
        .says("left alone");
}

async fn consumers(world: &World) {
    let consumer = "payment.charge-card.v1";
    let list = ["consumers", "list", "--json"];
    let find = |listed: &Value, name: &str| -> Value {
        let consumers = listed["consumers"].as_array().unwrap();
        let found = consumers.iter().find(|it| it["consumer"] == name);
        found
            .cloned()
            .unwrap_or_else(|| panic!("no `{name}`: {listed}"))
    };
    let listed = world.tidings_and_broker(&list).await.ends(0).json();
    let charge = find(&listed, consumer);
    let expected = [
        "backlog",
        "consumer",
        "dead",
        "queueMissing",
        "receivers",
        "service",
        "waiting",
    ];
    assert_eq!(keys(&charge), expected);
    assert_eq!(
        (&charge["receivers"], &charge["backlog"]),
        (&json!(1), &json!(0))
    );
    assert!(charge.get("paused").is_none(), "{charge}");
    let without = find(&world.tidings(&list).await.json(), consumer);
    assert!(without.get("receivers").is_none(), "{without}");

    let of_payment = ["--service", "payment"];
    let pause = [
        &["consumers", "pause", "payment", "--why", "maintenance"][..],
        &of_payment,
    ];
    world
        .tidings(&pause.concat())
        .await
        .ends(0)
        .tells("payment of payment is paused");
    let paused = find(&world.tidings(&list).await.json(), consumer);
    assert_eq!(paused["paused"]["reason"], "maintenance");
    assert_eq!(paused["paused"]["name"], "payment");
    // It stops receiving, and what comes stays in the broker.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    world.place("o-5", "later").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let waiting = world.tidings(&["deferred", "list", "--json"]).await.json();
    assert_eq!(waiting["messages"], json!([]));
    let resume_part = [&["consumers", "resume", consumer][..], &of_payment].concat();
    world
        .tidings(&resume_part)
        .await
        .ends(1)
        .says("`payment` is: resume that");
    let resume = [&["consumers", "resume", "payment"][..], &of_payment].concat();
    world.tidings(&resume).await.ends(0).tells("goes on");
    world.tidings(&resume).await.ends(1).says("is not paused");
    world
        .until(&["deferred", "list", "--json"], |json| {
            json["messages"][0]["failures"] == 1
        })
        .await;
    let typo = [
        &["consumers", "pause", "paymnet", "--why", "x"][..],
        &of_payment,
    ]
    .concat();
    world.tidings(&typo).await.ends(0).says("is that its name?");
    let no_reason = [&["consumers", "pause", "payment"][..], &of_payment].concat();
    world.tidings(&no_reason).await.ends(2).says("--why");
}

fn keys(object: &Value) -> Vec<&str> {
    let mut keys: Vec<&str> = object.as_object().unwrap().keys().map(|it| &**it).collect();
    keys.sort_unstable();
    keys
}

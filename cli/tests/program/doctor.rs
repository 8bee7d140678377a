//! `tidings doctor`: each thing that is wrong is found, with its code.

use std::time::Duration;

use serde_json::Value;
use tidings::pause;

use crate::{
    run::tidings,
    world::{Stack, World},
};

fn codes(diagnosis: &Value) -> Vec<&str> {
    let findings = diagnosis["findings"].as_array().unwrap().iter();
    let mut codes: Vec<&str> = findings.map(|it| it["code"].as_str().unwrap()).collect();
    codes.sort_unstable();
    codes.dedup();
    codes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_system_and_a_sick_one_on_sqlite() {
    a_healthy_system_and_a_sick_one(Stack::Sqlite, "SQLite 3.").await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_healthy_system_and_a_sick_one_on_postgresql() {
    a_healthy_system_and_a_sick_one(Stack::Postgres, "PostgreSQL 1").await;
}

async fn a_healthy_system_and_a_sick_one(stack: Stack, version: &str) {
    let world = World::new(stack).await;
    let healthy = world.tidings_and_broker(&["doctor"]).await;
    healthy
        .ends(0)
        .tells("nothing is wrong")
        .tells(version)
        .tells("broker");
    let password = healthy.out.contains("guest");
    assert!(!password, "{healthy:#?}");

    let running = world.start().await;
    world.place("o-1", "broken").await;
    // Nobody listens to how it ended.
    world.place("o-2", "fine").await;
    let stuck = ["sagas", "list", "--stuck", "--json"];
    world
        .until(&stuck, |json| json["sagas"][0]["key"] == "o-1")
        .await;
    let held = ["outbox", "list", "--json"];
    world
        .until(&held, |json| json["rows"][0]["state"] == "held")
        .await;
    pause(&*world.payment, "payment", "maintenance")
        .await
        .unwrap();
    let doctor = ["doctor", "--unsent", "0s", "--json"];
    let sick = world.tidings_and_broker(&doctor).await.ends(1).json();
    assert_eq!(sick["healthy"], false);
    assert_eq!(
        codes(&sick),
        ["TDG-9004", "TDG-9006", "TDG-9007", "TDG-9008"],
        "{sick:#}"
    );
    let findings = sick["findings"].as_array().unwrap();
    let find = |code: &str| findings.iter().find(|it| it["code"] == code).unwrap();
    let saga = find("TDG-9006");
    let members = ["code", "service", "todo", "what"];
    assert!(members.iter().all(|it| saga[it].is_string()), "{saga}");
    assert_eq!(saga["service"], "checkout");
    assert!(
        saga["what"]
            .as_str()
            .unwrap()
            .contains("the bank cannot be understood"),
        "{saga}"
    );
    let dead = find("TDG-9008")["what"].as_str().unwrap();
    assert_eq!(dead, "1 dead letter is in `payment.charge-card.v1.dead`");
    running.stop().await;

    world.place("o-3", "fine").await;
    let down = world.tidings_and_broker(&doctor).await.ends(1).json();
    let codes = codes(&down);
    assert!(
        codes.contains(&"TDG-9003") && codes.contains(&"TDG-9011"),
        "{down:#}"
    );
    // For people it says the same, with what to do.
    let told = world.tidings_and_broker(&["doctor"]).await;
    told.ends(1).tells("TDG-9007 payment: `payment` was paused");
    told.tells("tidings consumers resume payment --service payment");
    let without = world.tidings(&["doctor"]).await;
    without.ends(1).says("the broker was not looked at");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_reached_is_a_finding() {
    let world = World::new(Stack::Sqlite).await;
    std::fs::write(
        world.folder.path().join("odd.db"),
        "this is no database, it is a text",
    )
    .unwrap();
    let port = tidings_testing::servers::free_port().unwrap();
    let broker = format!("amqp://guest:guest@127.0.0.1:{port}");
    let doctor = ["doctor", "--json", "--broker", &broker];
    let since = std::time::Instant::now();
    let diagnosis = world.tidings(&doctor).await.ends(1).json();
    assert!(since.elapsed() < Duration::from_secs(30));
    assert_eq!(codes(&diagnosis), ["TDG-9001", "TDG-9002"], "{diagnosis:#}");
    let checked = diagnosis["checked"].as_array().unwrap();
    assert_eq!(checked.len(), 2, "the others are looked at: {diagnosis:#}");
    let gone = ["doctor", "--database", "sqlite://nowhere", "--json"];
    let gone = tokio::task::spawn_blocking(move || tidings(gone))
        .await
        .unwrap();
    assert_eq!(codes(&gone.ends(1).json()), ["TDG-9001"]);
}

/// Services in other languages are known by their documents only, and by what is on the broker.
#[cfg(feature = "contracts")]
#[tokio::test(flavor = "multi_thread")]
async fn services_that_have_documents_are_looked_at_by_these() {
    use crate::contracts::{Folder, LOYALTY};
    use tidings::{Destination, Envelope, Outgoing, Queue, Topology, Transport, Unrouted};

    let world = World::new(Stack::Sqlite).await;
    let folder = Folder::new();
    let queue = "loyalty.confirmed";
    let named = format!("{{queue: {queue}, ");
    let loyalty = LOYALTY.replace("x-tidings: {", &format!("x-tidings: {named}"));
    folder.write("asyncapi/loyalty.yaml", &loyalty);
    let documents = folder.path("asyncapi");
    let doctor = ["doctor", "--json", "--contracts", &documents];
    let found = async || {
        let diagnosis = world.tidings_and_broker(&doctor).await.json();
        let loyalty = diagnosis["findings"].as_array().unwrap().iter();
        let loyalty = loyalty.filter(|it| it["service"] == "loyalty");
        let said = loyalty.map(|it| format!("{} {}", it["code"], it["what"]).replace('"', ""));
        said.collect::<Vec<_>>()
    };
    let missing = "TDG-9030 the queue `loyalty.confirmed` is not there";
    let said = found().await;
    assert!(said.len() == 1 && said[0].starts_with(missing), "{said:?}");

    let amqp = tidings_amqp::Amqp::connect(&world.broker()).await.unwrap();
    let declare = async |name: &str| {
        let topology = Topology::new().queue(Queue::new(name.to_owned()));
        amqp.declare(&topology).await.unwrap();
    };
    declare(queue).await;
    let said = found().await;
    let nowhere = "TDG-9030 `loyalty.dead` is not there";
    assert!(said.len() == 1 && said[0].starts_with(nowhere), "{said:?}");

    declare("loyalty.dead").await;
    assert_eq!(found().await, [""; 0]);
    let letter = Outgoing {
        destination: Destination::queue("loyalty.dead"),
        unrouted: Unrouted::Hold,
        envelope: Envelope::new("order-confirmed.v1", "{}"),
    };
    amqp.publish(vec![letter]).await.remove(0).unwrap();
    let dead = "TDG-9008 1 dead letter is in `loyalty.dead`";
    assert_eq!(found().await, [dead]);

    // The four mistakes of its document.
    let loyalty = LOYALTY
        .replace("ack: true", "ack: false")
        .replace("deadLetters: loyalty.dead, ", "");
    folder.write("asyncapi/loyalty.yaml", &loyalty);
    let found = world.tidings_and_broker(&doctor[..1]).await;
    found.ends(0);
    let found = tokio::task::spawn_blocking(move || tidings(["doctor", "--contracts", &documents]));
    let found = found.await.unwrap();
    found
        .ends(1)
        .tells("TDG-9071 loyalty: `loyalty` receives `order-confirmed.v1` without acknowledging")
        .tells("nothing says where a message goes that it cannot handle")
        .says("the broker was not looked at");
}

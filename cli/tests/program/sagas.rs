//! `tidings sagas`: from a saga that is stuck to its end, beside the services that run it.

use crate::world::{Stack, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_saga_is_found_explained_and_ended_on_sqlite() {
    a_stuck_saga_is_found_explained_and_ended(Stack::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_stuck_saga_is_found_explained_and_ended_on_postgresql() {
    a_stuck_saga_is_found_explained_and_ended(Stack::Postgres).await;
}

async fn a_stuck_saga_is_found_explained_and_ended(stack: Stack) {
    let world = World::new(stack).await;
    let running = world.start().await;
    world.place("o-1", "broken").await;
    world.place("o-2", "fine").await;
    let stuck = ["sagas", "list", "--stuck", "--json"];
    let listed = world
        .until(&stuck, |json| json["sagas"].as_array().unwrap().len() == 1)
        .await;
    let saga = &listed["sagas"][0];
    let mut keys: Vec<&String> = saga.as_object().unwrap().keys().collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "changed",
            "key",
            "reason",
            "saga",
            "service",
            "state",
            "stuckSince"
        ]
    );
    assert_eq!(saga["service"], "checkout");
    assert_eq!(
        (&saga["saga"], &saga["key"]),
        (&"checkout".into(), &"o-1".into())
    );
    assert_eq!(saga["state"], "stuck");
    let reason = saga["reason"].as_str().unwrap();
    assert!(reason.contains("the bank cannot be understood"), "{reason}");
    assert!(saga["stuckSince"].is_string(), "{saga}");
    let all = ["sagas", "list", "--all", "--json"];
    let is_two = |json: &serde_json::Value| json["sagas"].as_array().unwrap().len() == 2;
    world.until(&all, is_two).await;
    world
        .until(
            &["sagas", "list", "--state", "completed", "--json"],
            |json| json["sagas"][0]["key"] == "o-2",
        )
        .await;

    let shown = world.tidings(&["sagas", "show", "checkout", "o-1"]).await;
    shown
        .ends(0)
        .tells("charge-card: charge-card.v1")
        .tells("stuck");
    // The order's body and the command's have a card.
    assert!(
        shown.out.contains(r#""card":"***""#) && !shown.out.contains("broken"),
        "{shown:#?}"
    );
    let shown = world
        .tidings(&["sagas", "show", "checkout", "o-1", "--reveal"])
        .await;
    shown.tells(r#""card":"broken""#);
    let shown = world
        .tidings(&["sagas", "show", "checkout", "o-1", "--json"])
        .await;
    assert!(!shown.out.contains("broken"), "{shown:#?}");
    assert_eq!(shown.json()["journal"]["start"]["body"]["card"], "***");

    // It fails again, and says so.
    let retry = [
        "sagas", "retry", "checkout", "o-1", "--why", "try it", "--json",
    ];
    let retried = world.tidings(&retry).await.ends(0).json();
    assert_eq!(retried["carriedOut"], true, "{retried}");
    world
        .until(&stuck, |json| json["sagas"][0]["key"] == "o-1")
        .await;
    let answer = [
        "sagas",
        "answer",
        "checkout",
        "o-1",
        "charge-card",
        "--done",
        r#""c-1""#,
        "--who",
        "ann",
        "--why",
        "seen at the bank",
    ];
    let answered = world.tidings(&answer).await;
    answered
        .ends(0)
        .tells("answer: checkout/o-1 is completed now");
    let shown = world.tidings(&["sagas", "show", "checkout", "o-1"]).await;
    shown
        .tells("by ann: seen at the bank")
        .tells("by alice: try it");
    // There is nothing left to do.
    let again = world.tidings(&retry).await;
    again
        .ends(1)
        .says("nothing was done: `checkout/o-1` has ended");
    assert_eq!(again.json()["carriedOut"], false);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sagas_are_given_up_and_compensated() {
    let world = World::new(Stack::Sqlite).await;
    let running = world.start().await;
    for order in ["o-1", "o-2"] {
        world.place(order, "broken").await;
    }
    let stuck = ["sagas", "list", "--stuck", "--json"];
    world
        .until(&stuck, |json| json["sagas"].as_array().unwrap().len() == 2)
        .await;
    let limited = world
        .tidings(&["sagas", "list", "--limit", "1", "--json"])
        .await
        .json();
    assert_eq!(limited["sagas"].as_array().unwrap().len(), 1);
    assert_eq!(limited["more"], true);
    let give_up = [
        "sagas",
        "give-up",
        "checkout",
        "o-1",
        "--why",
        "a test order",
    ];
    let gave_up = world.tidings(&give_up).await;
    gave_up
        .ends(0)
        .tells("give-up: checkout/o-1 is abandoned now");
    // Whether the card was charged is not known: only an answer lets it end.
    let refused = [
        "sagas",
        "answer",
        "checkout",
        "o-2",
        "charge-card",
        "--refused",
        "not charged",
        "--why",
        "asked the bank",
    ];
    world
        .tidings(&refused)
        .await
        .ends(0)
        .tells("checkout/o-2 is compensated now");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operation_waits_for_a_service_that_does_not_run() {
    let world = World::new(Stack::Sqlite).await;
    let running = world.start().await;
    world.place("o-1", "broken").await;
    let stuck = ["sagas", "list", "--stuck", "--json"];
    world
        .until(&stuck, |json| json["sagas"][0]["key"] == "o-1")
        .await;
    running.stop().await;
    let give_up = [
        "sagas",
        "give-up",
        "checkout",
        "o-1",
        "--why",
        "a test order",
        "--wait",
        "300ms",
        "--json",
    ];
    let asked = world.tidings(&give_up).await;
    asked
        .ends(1)
        .says("`checkout` has not carried it out")
        .says("TDG-9010");
    assert_eq!(asked.json()["carriedOut"], false);
    let running = world.start().await;
    let given_up = ["sagas", "list", "--state", "abandoned", "--json"];
    world
        .until(&given_up, |json| json["sagas"][0]["key"] == "o-1")
        .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_use_of_sagas_is_told() {
    let world = World::new(Stack::Sqlite).await;
    let nobody = world.tidings(&["sagas", "show", "checkout", "o-9"]).await;
    nobody.ends(1).says("there is no saga `checkout/o-9`");
    let nobody = ["sagas", "retry", "checkout", "o-9", "--why", "x"];
    world
        .tidings(&nobody)
        .await
        .ends(1)
        .says("there is no saga");
    let no_reason = world.tidings(&["sagas", "retry", "checkout", "o-1"]).await;
    no_reason.ends(2).says("--why");
    let no_answer = [
        "sagas",
        "answer",
        "checkout",
        "o-1",
        "charge-card",
        "--why",
        "x",
    ];
    world.tidings(&no_answer).await.ends(2).says("--done");
    let not_json = [
        "sagas",
        "answer",
        "checkout",
        "o-1",
        "charge-card",
        "--done",
        "{",
        "--why",
        "x",
    ];
    world.tidings(&not_json).await.ends(2).says("is not JSON");
    world
        .tidings(&["sagas", "list", "--stuck", "--all"])
        .await
        .ends(2);
    world
        .tidings(&["sagas", "list"])
        .await
        .ends(0)
        .tells("there is none");
}

#[tokio::test(flavor = "multi_thread")]
async fn open_journals_are_checked_by_the_service_on_sqlite() {
    open_journals_are_checked_by_the_service(Stack::Sqlite).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn open_journals_are_checked_by_the_service_on_postgresql() {
    open_journals_are_checked_by_the_service(Stack::Postgres).await;
}

async fn open_journals_are_checked_by_the_service(stack: Stack) {
    let world = World::new(stack).await;
    let check = ["sagas", "check", "--json"];
    // Nothing is open: nobody has to run.
    let empty = world.tidings(&check).await.ends(0).json();
    assert_eq!(empty["good"], true);
    let running = world.start().await;
    world.place("o-1", "later").await;
    let open = ["sagas", "list", "--state", "running", "--json"];
    world
        .until(&open, |json| json["sagas"][0]["key"] == "o-1")
        .await;
    let good = world.tidings(&check).await.ends(0).json();
    let of_checkout = &good["sagas"][0];
    assert_eq!(
        (
            &of_checkout["checked"],
            &of_checkout["mismatchCount"],
            &of_checkout["whole"]
        ),
        (&1.into(), &0.into(), &true.into()),
        "{good:#}"
    );
    assert!(
        of_checkout["by"].as_str().unwrap().starts_with("checkout/"),
        "{good:#}"
    );
    running.stop().await;

    let nobody = ["sagas", "check", "--wait", "300ms"];
    let nobody = world.tidings(&nobody).await;
    nobody.ends(1).says("TDG-9010").says("has not checked");
    let running = world.start_changed().await;
    let bad = world.tidings(&check).await.ends(1).json();
    assert_eq!(bad["sagas"][0]["mismatches"][0]["key"], "o-1", "{bad:#}");
    let told = world.tidings(&["sagas", "check", "checkout"]).await;
    told.ends(1)
        .tells("TDG-3001 checkout: checkout/o-1 goes another way");
    let unknown = world.tidings(&["sagas", "check", "refunds"]).await;
    unknown.ends(1).says("there are no sagas `refunds`");
    // Checks leave nothing behind, and change nothing.
    world
        .until(&open, |json| json["sagas"][0]["key"] == "o-1")
        .await;
    let kinds = world.checkout.records().kinds(100).await.unwrap();
    assert!(
        !kinds.iter().any(|kind| kind.starts_with("saga-check:")),
        "{kinds:?}"
    );
    running.stop().await;
}

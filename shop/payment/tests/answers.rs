//! What payment makes of the answers of a bank, over real HTTP.

mod world;

use shop_kit::Database;

use world::{
    World,
    gate::{
        Call::{Charge, Refund},
        Rule,
    },
    until,
};

/// A new world on SQLite, and the folder it lives in.
async fn world() -> (World, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::Sqlite(folder.path().into());
    (World::new(database).await, folder)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_bank_refuses_for_good_is_a_dead_letter_at_once() {
    let (world, _folder) = world().await;
    for (number, status) in [400, 401, 403, 404, 409, 415, 422].into_iter().enumerate() {
        world
            .gate
            .rule(Charge, Rule::Answer(status, "no\u{0} such\naccount"));
        world.place(&format!("o-{status}"), "tok_ok").await;
        until("a dead letter", async || {
            world.service.dead_letters().len() > number
        })
        .await;
        let reason = world.service.dead_letters().pop().unwrap();
        let expected = format!("it answered {status}");
        assert!(
            reason.contains(&expected) && reason.contains("no  such account"),
            "{reason}"
        );
        assert_eq!(
            world.gate.count(Charge),
            number + 1,
            "{status} is not tried again"
        );
        assert!(world.ledger(&format!("o-{status}")).await.is_empty());
    }
    world.service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_pass_is_tried_again() {
    let (world, _folder) = world().await;
    for status in [408, 425, 429, 500, 502, 503, 504, 302] {
        let order = format!("o-{status}");
        let before = world.gate.count(Charge);
        world.gate.rule(Charge, Rule::Answer(status, "later"));
        world.place(&order, "tok_ok").await;
        world.until_status(&order, "AUTHORIZED").await;
        assert_eq!(world.gate.count(Charge), before + 2, "{status}");
        assert_eq!(world.ledger(&order).await, ["charge"]);
    }
    world
        .gate
        .rule(Charge, Rule::Answer(200, "<html>welcome</html>"));
    world.place("o-unclear", "tok_ok").await;
    world.until_status("o-unclear", "AUTHORIZED").await;
    world.service.until_quiet().await;
    assert_eq!(world.service.dead_letters(), Vec::<String>::new());
    world.service.stop().await;
}

/// The longest answer that payment reads is 16 KiB, and as JSON a control character takes six
/// bytes: more than an event may have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_reason_the_bank_gives_it_is_passed_on_in_short() {
    let (world, _folder) = world().await;
    let reason = "\\u0001".repeat(2_000) + &"\\u0000 no money, ü".repeat(100);
    let answer = format!(r#"{{"status": "DECLINED", "reason": "{reason}"}}"#);
    world.gate.rule(Charge, Rule::Answer(200, answer.leak()));
    world.place("o-1", "tok_ok").await;
    world.until_status("o-1", "DECLINED").await;
    world.service.until_quiet().await;
    let said = world.said_reasons();
    assert_eq!(said.len(), 1);
    assert!(
        said[0].len() <= 500 && !said[0].contains(char::is_control),
        "{said:?}"
    );
    world.service.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_whose_ids_differ_in_spaces_only_are_charged_each() {
    let (world, _folder) = world().await;
    let ids = ["a", " a", "a ", " a ", "%20a", "a b", "a  b"];
    for id in ids {
        world.place(id, "tok_ok").await;
    }
    for id in ids {
        world.until_status(id, "AUTHORIZED").await;
        assert_eq!(world.ledger(id).await, ["charge"], "`{id}`");
    }
    world.cancel(" a").await;
    world.until_status(" a", "REFUNDED").await;
    assert_eq!(world.ledger(" a").await, ["charge", "refund"]);
    for id in ids.into_iter().filter(|id| *id != " a") {
        assert_eq!(world.ledger(id).await, ["charge"], "`{id}`");
    }
    world.service.stop().await;
}

/// Its records and ours contradict each other: that is for a person to look at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bank_that_denies_what_it_charged_is_not_believed() {
    let (world, _folder) = world().await;
    world.place("o-1", "tok_ok").await;
    world.until_status("o-1", "AUTHORIZED").await;
    world.gate.rule(
        Refund,
        Rule::Answer(200, r#"{"status":"NOTHING_TO_REFUND"}"#),
    );
    world.cancel("o-1").await;
    until("a dead letter", async || {
        !world.service.dead_letters().is_empty()
    })
    .await;
    let reason = world.service.dead_letters().pop().unwrap();
    assert!(reason.contains("compare its ledger"), "{reason}");
    assert_eq!(world.payment("o-1").await.unwrap().0, "AUTHORIZED");
    world.service.stop().await;
}

/// The amount is not known before the order has come, and a bank need not say it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refund_of_an_unknown_amount_waits_for_the_order() {
    let (world, _folder) = world().await;
    world
        .gate
        .rule(Refund, Rule::Answer(200, r#"{"status":"REFUNDED"}"#));
    world
        .gate
        .rule(Refund, Rule::Answer(200, r#"{"status":"REFUNDED"}"#));
    world
        .gate
        .rule(Refund, Rule::Answer(200, r#"{"status":"REFUNDED"}"#));
    world.cancel("o-1").await;
    until("three attempts", async || world.gate.count(Refund) == 3).await;
    assert_eq!(
        world.payment("o-1").await,
        Some(("CANCELLED".into(), "0.00".into()))
    );
    world
        .gate
        .rule(Refund, Rule::Answer(200, r#"{"status":"REFUNDED"}"#));
    world
        .gate
        .rule(Refund, Rule::Answer(200, r#"{"status":"REFUNDED"}"#));
    world.place("o-1", "tok_ok").await;
    world.service.until_quiet().await;
    assert_eq!(
        world.payment("o-1").await,
        Some(("REFUNDED".into(), "99.99".into()))
    );
    assert_eq!(world.service.said_of("o-1"), ["payment-refunded"]);
    world.service.stop().await;
}

//! The shop on Amazon SNS and SQS, which an emulator stands for: the same services, the same promises. Built with
//! `--features aws`, as `cargo xtask test` does.

#![cfg(feature = "aws")]

mod common;

use std::process::Command;

use common::{SOON, Shop};
use tidings_testing::{
    foreign::{examples, node},
    servers::{AwsEmulator, Process},
};

/// Killed while orders run, and started again: each is charged and shipped once. Then the emulator is killed, too.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs SQS: run `cargo xtask test`"]
async fn a_kill_in_the_middle_loses_nothing_on_aws() {
    let data = tempfile::tempdir().unwrap();
    let mut aws = AwsEmulator::start().unwrap();
    let broker = format!("{}&visibility=3&wait=2", aws.url());
    let arguments = ["--broker", &broker];
    let mut shop = Shop::start(data.path(), &arguments);
    let mut orders = Vec::new();
    for round in 0..2 {
        for _ in 0..10 {
            orders.push(shop.order("tok_flaky", &[("MUG-ENAMEL", 1)]).await);
        }
        shop.ended(&orders[round * 10 + round * 3]).await;
        match round {
            0 => {
                shop.process.kill9();
                shop = Shop::start(data.path(), &arguments);
            }
            _ => {
                aws.kill9();
                // Orders are taken without a broker.
                orders.push(shop.order("tok_flaky", &[("MUG-ENAMEL", 1)]).await);
                aws.restart().unwrap();
            }
        }
    }
    for order in &orders {
        assert_eq!(shop.ended(order).await["status"], "CONFIRMED");
        assert_eq!(shop.ledger(order).await, ["charge 12.90"]);
    }
    let shipped = orders.len() as i64;
    shop.until("/stock/MUG-ENAMEL", |stock| stock["shipped"] == shipped)
        .await;
    let stock = shop.stock("MUG-ENAMEL").await;
    assert_eq!(stock, [100_000 - shipped, 0, shipped]);
    shop.stop();
}

/// Somebody deletes everything at Amazon, in the worst case. What was sent is lost, but nobody has to be started again: queues
/// are made anew, and what is said meanwhile waits until they are there.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs SQS: run `cargo xtask test`"]
async fn what_was_deleted_at_amazon_is_made_again() {
    let data = tempfile::tempdir().unwrap();
    let mut aws = AwsEmulator::start().unwrap();
    let broker = format!("{}&visibility=3&wait=2", aws.url());
    let shop = Shop::start(data.path(), &["--broker", &broker]);
    let before = shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await;
    assert_eq!(shop.ended(&before).await["status"], "CONFIRMED");
    shop.until("/stock/MUG-ENAMEL", |stock| stock["shipped"] == 1)
        .await;

    aws.kill9();
    let mut orders = vec![shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await];
    aws.restart_empty().unwrap();
    orders.push(shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await);
    for order in &orders {
        assert_eq!(shop.ended(order).await["status"], "CONFIRMED");
        assert_eq!(shop.ledger(order).await, ["charge 12.90"]);
    }
    shop.until("/stock/MUG-ENAMEL", |stock| stock["shipped"] == 3)
        .await;
    shop.stop();
}

/// The article's two programs with Amazon's own SDK for Node: what they publish the shop works off, and what the shop
/// publishes they get.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs SQS and Node: run `cargo xtask test`"]
async fn foreign_programs_take_part_on_aws() {
    let data = tempfile::tempdir().unwrap();
    let aws = AwsEmulator::start().unwrap();
    let broker = format!("{}&wait=2", aws.url());
    let shop = Shop::start(data.path(), &["--broker", &broker]);
    let script = |name: &str| -> Command {
        let mut command = node(examples().join("13-article-sqs").join(name));
        command
            .env("AWS_ENDPOINT_URL", aws.endpoint())
            .env("AWS_REGION", "eu-central-1")
            .env("AWS_ACCESS_KEY_ID", "emulated")
            .env("AWS_SECRET_ACCESS_KEY", "emulated");
        command
    };
    let order = |arguments: [&str; 3]| {
        let mut command = script("order-service.js");
        command.args(arguments);
        let mut process = Process::start(command).unwrap();
        let status = process.wait(SOON).unwrap();
        let printed = [process.stdout(), process.stderr()].concat();
        assert!(status.success(), "{status}: {printed:#?}");
    };
    order(["FOREIGN-1", "99.99", "5"]);
    order(["FOREIGN-2", "10.00", "1"]);
    for id in ["FOREIGN-1", "FOREIGN-2"] {
        let is_paid = |payment: &serde_json::Value| payment["status"] == "AUTHORIZED";
        shop.until(&format!("/payments/{id}"), is_paid).await;
        // All that came before it in its group was handled before it.
        assert_eq!(shop.ledger(id).await.len(), 1, "{id}");
    }

    let mut listener = Process::start(script("payment-service.js")).unwrap();
    let waits = |line: &str| line.starts_with("[Payment Service] Waiting");
    listener.wait_for_line(SOON, waits).unwrap();
    let id = shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await;
    let wanted = format!("[Payment Service] Received order {id}: charging $12.9");
    listener
        .wait_for_line(SOON, |line| line.starts_with(&wanted))
        .unwrap();
    assert_eq!(shop.ended(&id).await["status"], "CONFIRMED");
    order(["FOREIGN-1", "99.99", "1"]);
    listener
        .wait_for_line(SOON, |line| line.contains("Received order FOREIGN-1:"))
        .unwrap();
    shop.stop();
}

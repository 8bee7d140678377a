//! The shop on Amazon SNS and SQS, which an emulator stands for: the same services, the same promises. Built with
//! `--features aws`, as `cargo xtask test` does.

#![cfg(feature = "aws")]

mod common;

use common::Shop;
use tidings_testing::servers::AwsEmulator;

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

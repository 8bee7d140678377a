//! A user of the broker's who may not configure it.

use std::sync::atomic::Ordering;

use tidings::{Destination, dead_letter_queue};
use tidings_testing::servers::RabbitMq;

use super::Shop;

/// A user of RabbitMQ's who may write and read, and not configure.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs RabbitMQ: run `cargo xtask test`"]
async fn a_user_who_may_not_configure_is_told_what_to_do() {
    let server = RabbitMq::start().unwrap();
    server.ctl(&["add_user", "clerk", "secret"]).unwrap();
    server
        .ctl(&["set_permissions", "clerk", "", ".*", ".*"])
        .unwrap();
    let clerk = format!("amqp://clerk:secret@127.0.0.1:{}", server.port());
    let mut shop = Shop::new(clerk.clone()).await;
    let refused = async |options: &str| {
        let refused = shop.start(shop.router(), options).await;
        refused.err().expect("it does not start").to_string()
    };
    let said = refused("").await;
    let (code, how) = ("(TDG-4001)", "tidings topology apply");
    assert!(
        said.contains(code) && said.contains(how) && said.contains("declare=false"),
        "{said}"
    );
    let said = refused("?declare=false").await;
    assert!(said.contains("(TDG-4002)") && said.contains(how), "{said}");

    shop.run(&["topology", "apply"]).await.ends(1);
    shop.url = server.url();
    shop.run(&["topology", "apply"]).await.ends(0);
    shop.url = clerk;
    let running = shop.start(shop.router(), "?declare=false").await;
    let running = running.expect("everything is there");
    let topic = || Destination::Topic("order-placed.v1".into());
    for body in ["{", r#"{"order_id":"o-1"}"#] {
        shop.publish(topic(), "order-placed.v1", body).await;
    }
    let dead = dead_letter_queue(&shop.queue("order-placed"));
    shop.until("one is handled, one is a dead letter", async || {
        shop.count.load(Ordering::SeqCst) == 1 && shop.depth(&dead).await == Some(1)
    })
    .await;
    running.stop().await;
}

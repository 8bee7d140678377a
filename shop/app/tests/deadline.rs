//! An order has a deadline: what is not decided by then is cancelled and undone. Until then, what
//! is stuck can be seen.

#[macro_use]
mod common;

use std::time::Duration;

use common::{SOON, Shop, Style, eventually, timeline};
use serde_json::json;
use shop_contracts::CheckoutStyle;
use shop_kit::{Database, sql};
use tidings_testing::servers::Postgres;

in_both_styles! {
    an_order_without_answers_is_cancelled_and_undone_when_its_time_is_over
    a_deadline_that_passes_while_the_shop_is_down_is_kept_at_the_next_start
    the_deadline_is_kept_while_the_broker_is_away
    orders_that_are_stuck_are_listed_oldest_first_in_pages_and_counted
    the_first_refusal_cancels_an_order
}

async fn an_order_without_answers_is_cancelled_and_undone_when_its_time_is_over(style: Style) {
    let data = tempfile::tempdir().unwrap();
    let services = "orders,inventory,notification,checkout,bank";
    let flags = style.flags(&["--services", services, "--order-deadline", "1s"]);
    let shop = Shop::start(data.path(), &flags);
    let order = shop.order("tok_ok", &[("MUG-ENAMEL", 2)]).await;
    shop.happened(&order, &["StockReserved"]).await;
    let ended = shop.happened(&order, &["StockReleased", "EmailSent"]).await;
    assert_eq!(ended["status"], "CANCELLED");
    assert_eq!(ended["reason"], "payment did not answer within 1s");
    assert_eq!(shop.stock("MUG-ENAMEL").await, [100_000, 0, 0]);
    let mails = shop.get(&format!("/emails?orderId={order}")).await;
    assert!(mails.text.contains("is cancelled"), "{}", mails.text);

    // Payment has never run. It finds the order, and that it was cancelled.
    let (broker, bank) = (shop.amqp_url(), shop.url());
    let flags = style.flags(&[
        "--services",
        "payment",
        "--broker",
        &broker,
        "--bank",
        &bank,
    ]);
    let payment = Shop::start(data.path(), &flags);
    let answered = eventually(SOON, async || {
        let order = shop.get(&format!("/orders/{order}")).await.json;
        let said = |event: &&str| event.starts_with("Payment");
        let silent = timeline(&order).iter().filter(|event| said(event)).count() == 0;
        let known = payment
            .get(&format!("/payments/{}", order["orderId"].as_str()?))
            .await;
        (!silent || known.status == 200).then_some(order)
    });
    let answered = answered.await.expect("payment did not handle the order");
    assert_eq!(answered["status"], "CANCELLED");
    assert_eq!(answered["reason"], "payment did not answer within 1s");
    shop.pays_nothing(&order).await;
    payment.stop();
    shop.stop();
}

async fn a_deadline_that_passes_while_the_shop_is_down_is_kept_at_the_next_start(style: Style) {
    let data = tempfile::tempdir().unwrap();
    let flags = |deadline| {
        style.flags(&[
            "--services",
            "orders,inventory,checkout,bank",
            "--order-deadline",
            deadline,
        ])
    };
    let shop = Shop::start(data.path(), &flags("1h"));
    let order = shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await;
    let before = shop.happened(&order, &["StockReserved"]).await;
    assert_eq!(before["status"], "CREATED");
    shop.stop();
    let shop = Shop::start(data.path(), &flags("1s"));
    let ended = shop.happened(&order, &["StockReleased"]).await;
    assert_eq!(ended["status"], "CANCELLED");
    shop.stop();
}

async fn the_deadline_is_kept_while_the_broker_is_away(style: Style) {
    let data = tempfile::tempdir().unwrap();
    let port = tidings_testing::servers::free_port().unwrap();
    let broker = format!("amqp://guest:guest@127.0.0.1:{port}/");
    let flags = style.flags(&[
        "--services",
        "orders",
        "--broker",
        &broker,
        "--order-deadline",
        "1s",
    ]);
    let shop = Shop::launch(data.path(), &flags);
    let order = shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await;
    let ended = shop.ended(&order).await;
    let reason = "payment and inventory did not answer within 1s";
    assert_eq!(ended["reason"], reason, "{ended}");
    shop.stop();
}

async fn orders_that_are_stuck_are_listed_oldest_first_in_pages_and_counted(style: Style) {
    let data = tempfile::tempdir().unwrap();
    let flags = style.flags(&[
        "--services",
        "orders,inventory,checkout,bank",
        "--order-deadline",
        "1h",
    ]);
    let shop = Shop::start(data.path(), &flags);
    let mut orders = Vec::new();
    for _ in 0..5 {
        orders.push(shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await);
    }
    for order in &orders {
        shop.happened(order, &["StockReserved"]).await;
    }
    let none = shop.get("/orders?status=stuck").await;
    assert_eq!((none.status, none.text.as_str()), (200, "[]"));
    shop.stop();

    // Half an hour later, for the database.
    let folder = format!("sqlite://{}", data.path().join("db").display());
    let database: Database = folder.parse().unwrap();
    let db = database
        .open("orders", shop_orders::MIGRATIONS)
        .await
        .unwrap();
    let earlier = sql("update orders set placed_at = placed_at - $1").bind(1_800_000_000_i64);
    db.execute(earlier).await.unwrap();
    drop(db);
    let shop = Shop::start(data.path(), &flags);
    let mut path = "/orders?status=stuck&limit=2".to_owned();
    let mut listed = Vec::new();
    loop {
        let page = shop.get(&path).await;
        assert_eq!(page.status, 200, "{}", page.text);
        for order in page.json.as_array().unwrap() {
            assert_eq!(order["waitsFor"], "payment", "{order}");
            assert!(order["placedAt"].is_string(), "{order}");
            let reason = order["reason"].as_str().unwrap();
            let queue = style.pick("`payment.order-placed.v1`", "`payment.charge-card.v1`");
            assert!(reason.contains(queue), "{reason}");
            listed.push(order["orderId"].as_str().unwrap().to_owned());
        }
        match page.header("link").split_once(">; rel=\"next\"") {
            Some((next, "")) => path = next[1..].to_owned(),
            _ => break,
        }
    }
    assert_eq!(listed, orders);
    let counted = eventually(SOON, async || {
        let metrics = shop.get("/metrics").await.text;
        metrics.contains("\nshop_orders_stuck 5\n").then_some(())
    });
    assert!(
        counted.await.is_some(),
        "{}",
        shop.get("/metrics").await.text
    );
    let warned = |line: &String| line.contains("5") && line.contains("orders are stuck");
    let warnings = shop.process.stderr().into_iter().filter(warned).count();
    assert_eq!(warnings, 1, "{:#?}", shop.process.stderr());

    for wrong in [
        "/orders?status=open",
        "/orders?status=stuck&customerId=c-1",
        "/orders?status=stuck&before=x",
        "/orders?customerId=c-1&after=x",
        "/orders?status=stuck&limit=0",
    ] {
        assert_eq!(shop.get(wrong).await.status, 422, "{wrong}");
    }
    shop.stop();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn copies_on_postgresql_cancel_each_order_once() {
    let postgres = Postgres::start().unwrap();
    let database: Database = postgres.url().parse().unwrap();
    let deadline = "1s".parse().unwrap();
    let mut copies = Vec::new();
    for _ in 0..3 {
        copies.push(
            shop_orders::service(&database, deadline, CheckoutStyle::default())
                .await
                .unwrap(),
        );
    }
    let db = copies[0].0.db.clone().unwrap();
    let orders: i64 = 300;
    let insert = |number: i64| {
        sql("insert into orders (order_id, status, amount, placed_at) values ($1, 'CREATED', 1, $2)")
            .bind(format!("o-{number}"))
            .bind(number)
    };
    let write = db.write(|mut tx| async move {
        for number in 0..orders {
            tx.execute(insert(number)).await?;
        }
        Ok(())
    });
    write.await.unwrap();
    let tasks: Vec<_> = copies
        .into_iter()
        .map(|(_, task)| tokio::spawn(task.run()))
        .collect();
    let open = sql("select order_id from orders where status = 'CREATED' limit 1");
    let all = eventually(SOON, async || {
        db.read(open.clone())
            .await
            .unwrap()
            .is_empty()
            .then_some(())
    });
    assert!(all.await.is_some());
    let unsent = db.store().outbox().stats().await.unwrap().ready;
    assert_eq!(unsent, orders as u64, "an order was cancelled twice");
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL"]
async fn a_database_that_is_away_at_the_deadline_is_waited_for() {
    let mut postgres = Postgres::start().unwrap();
    let data = tempfile::tempdir().unwrap();
    let url = postgres.url();
    let flags = ["--database", &url, "--services", "orders,inventory,bank"];
    let flags = [&flags[..], &["--order-deadline", "2s"]].concat();
    let shop = Shop::start(data.path(), &flags);
    let order = shop.order("tok_ok", &[("MUG-ENAMEL", 1)]).await;
    postgres.kill9();
    let noticed = eventually(SOON, async || {
        let lines = shop.process.stderr();
        lines
            .iter()
            .any(|line| line.contains("cannot look for overdue orders"))
            .then_some(())
    });
    assert!(noticed.await.is_some(), "{:#?}", shop.process.stderr());
    postgres.restart().unwrap();
    let ended = shop.happened(&order, &["StockReleased"]).await;
    assert_eq!(ended["status"], "CANCELLED");
    shop.stop();
}

async fn the_first_refusal_cancels_an_order(style: Style) {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &style.flags(&[]));
    shop.put("/bank/behaviour", &json!({"mode": "down"})).await;
    // The bank never answers, and need not.
    let order = shop.order("tok_ok", &[("GLOBE-ANTIQUE", 1)]).await;
    let ended = shop.ended(&order).await;
    assert_eq!(ended["status"], "CANCELLED");
    assert_eq!(ended["reason"], "not enough Antique globe in stock");
    shop.put("/bank/behaviour", &json!({"mode": "ok"})).await;
    shop.pays_nothing(&order).await;
    assert_eq!(shop.stock("GLOBE-ANTIQUE").await, [0, 0, 0]);
    shop.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn inventory_keeps_nothing_for_an_order_that_was_cancelled_before_it_came() {
    let data = tempfile::tempdir().unwrap();
    let services = "orders,payment,bank";
    let shop = Shop::start(data.path(), &["--services", services]);
    let order = shop.order("tok_declined", &[("MUG-ENAMEL", 1)]).await;
    let ended = shop.ended(&order).await;
    assert_eq!(ended["reason"], "the card was declined");
    // Inventory was away. It finds the order and its end, and keeps nothing for it.
    let broker = shop.amqp_url();
    let inventory = Shop::start(
        data.path(),
        &["--services", "inventory", "--broker", &broker],
    );
    let undone = |stock: &serde_json::Value| stock["available"] == 100_000;
    let later = shop.order("tok_ok", &[("LAMP-BRASS", 1)]).await;
    assert_eq!(shop.ended(&later).await["status"], "CONFIRMED");
    inventory.until("/stock/MUG-ENAMEL", undone).await;
    inventory.stop();
    shop.stop();
}

#[test]
fn a_deadline_that_makes_no_sense_is_refused() {
    let data = tempfile::tempdir().unwrap();
    for (deadline, part) in [("0s", "at once"), ("soon", "`90s`"), ("4000d", "too long")] {
        let command = common::command(data.path(), &["--order-deadline", deadline]);
        let mut process = tidings_testing::servers::Process::start(command).unwrap();
        let status = process.wait(Duration::from_secs(20)).unwrap();
        let stderr = process.stderr().join("\n");
        assert!(
            !status.success() && stderr.contains(part),
            "{deadline}: {stderr}"
        );
        assert!(stderr.contains("--order-deadline"), "{stderr}");
    }
}

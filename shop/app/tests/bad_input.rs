//! Whatever is wrong with a request: problem details with the right status, and nothing stored.

mod common;

use axum::http::Method;
use common::Shop;
use serde_json::json;

const JSON: &str = "application/json";

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_order_is_refused_and_nothing_is_stored() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &[]);
    let with = |field: &str, value: serde_json::Value| {
        let mut order = common::order("c-1", "tok_ok", &[("MUG-ENAMEL", 1)]);
        order[field] = value;
        order.to_string()
    };
    let good = common::order("c-1", "tok_ok", &[("MUG-ENAMEL", 1)]).to_string();
    let line = |sku: &str, quantity: serde_json::Value| {
        with("items", json!([{"sku": sku, "quantity": quantity}]))
    };
    let check = async |status: u16, content_type: &str, body: String| {
        let start: String = body.chars().take(200).collect();
        let headers = [("content-type", content_type)];
        let answer = shop.call(Method::POST, "/orders", &headers, body).await;
        assert_eq!(answer.status, status, "{start}: {}", answer.text);
        assert_eq!(
            answer.header("content-type"),
            "application/problem+json",
            "{start}"
        );
        assert_eq!(answer.json["status"], status, "{start}");
        assert!(answer.json["detail"].is_string(), "{start}");
    };
    check(400, JSON, String::new()).await;
    check(400, JSON, good[..good.len() - 1].to_owned()).await;
    check(400, JSON, "not json".to_owned()).await;
    check(400, JSON, "[".repeat(50_000)).await;
    check(415, "text/plain", good.clone()).await;
    check(415, "application/x-www-form-urlencoded", good.clone()).await;
    check(413, JSON, with("customerId", json!("x".repeat(2_000_000)))).await;
    check(413, JSON, " ".repeat(65 * 1024)).await;
    check(422, JSON, "[]".to_owned()).await;
    check(422, JSON, "{}".to_owned()).await;
    check(422, JSON, with("colour", json!("red"))).await;
    check(422, JSON, with("customerId", json!(""))).await;
    check(422, JSON, with("customerId", json!(7))).await;
    check(422, JSON, with("customerId", json!("x".repeat(129)))).await;
    check(422, JSON, with("customerId", json!("a\u{0}b"))).await;
    check(422, JSON, with("email", json!("nobody"))).await;
    check(422, JSON, with("email", json!("a@b\r\nBcc: c@d"))).await;
    check(422, JSON, with("card", json!(""))).await;
    check(422, JSON, with("items", json!([]))).await;
    let lines = vec![json!({"sku": "MUG-ENAMEL", "quantity": 1}); 101];
    check(422, JSON, with("items", json!(lines))).await;
    check(422, JSON, line("NO-SUCH", json!(1))).await;
    check(422, JSON, line("MUG-ENAMEL", json!(0))).await;
    check(422, JSON, line("MUG-ENAMEL", json!(-1))).await;
    check(422, JSON, line("MUG-ENAMEL", json!(1.5))).await;
    check(422, JSON, line("MUG-ENAMEL", json!("1"))).await;
    check(422, JSON, line("MUG-ENAMEL", json!(1_000_001))).await;
    check(422, JSON, line("MUG-ENAMEL", json!(u64::MAX))).await;
    check(
        422,
        JSON,
        good.replace("\"quantity\":1", "\"quantity\":1e300"),
    )
    .await;
    let twice = good.replace("\"card\":", "\"card\":\"tok_ok\",\"card\":");
    check(422, JSON, twice).await;

    let long = "k".repeat(256);
    for key in ["", &long] {
        let headers = [("content-type", JSON), ("idempotency-key", key)];
        let answer = shop
            .call(Method::POST, "/orders", &headers, good.clone())
            .await;
        assert_eq!(answer.status, 400, "{}", answer.text);
    }
    assert_eq!(shop.get("/orders?customerId=c-1").await.text, "[]");
    assert_eq!(shop.stock("MUG-ENAMEL").await, [100_000, 0, 0]);
    shop.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_other_call_says_what_is_wrong_too() {
    let data = tempfile::tempdir().unwrap();
    let shop = Shop::start(data.path(), &[]);
    for (path, status) in [
        ("/orders/no-such-order", 404),
        ("/orders/no-such-order/events", 404),
        ("/orders", 400),
        ("/orders?customerId=c-1&limit=0", 422),
        ("/orders?customerId=c-1&limit=101", 422),
        ("/orders?customerId=c-1&limit=x", 400),
        ("/payments/no-such-order", 404),
        ("/stock/NO-SUCH", 404),
        ("/shipments/no-such-order", 404),
        ("/emails", 400),
        ("/bank/ledger", 400),
        ("/nothing/here", 404),
        ("/orders/a%00b", 400),
        ("/orders?customerId=a%00b", 400),
        ("/orders?status=stuck&after=a%00b", 400),
        ("/payments/a%00b", 400),
        ("/bank/ledger?orderId=a%00b", 400),
    ] {
        let answer = shop.get(path).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text);
        assert_eq!(
            answer.header("content-type"),
            "application/problem+json",
            "{path}"
        );
    }
    let restock = "/stock/MUG-ENAMEL/restock";
    for quantity in [json!(0), json!(-1), json!(1_000_001), json!("many")] {
        let answer = shop.post(restock, &json!({"quantity": quantity})).await;
        assert_eq!(answer.status, 422, "{}", answer.text);
    }
    for behaviour in [
        json!({"mode": "odd"}),
        json!({"mode": "flaky", "failureRate": 2}),
        json!({"mode": "slow", "latencyMs": 1_000_000}),
    ] {
        let answer = shop.put("/bank/behaviour", &behaviour).await;
        assert_eq!(answer.status, 422, "{}", answer.text);
    }
    let without_key = shop
        .post("/bank/charges", &json!({"orderId": "x", "amount": 1}))
        .await;
    assert_eq!(without_key.status, 400, "{}", without_key.text);
    assert_eq!(shop.stock("MUG-ENAMEL").await, [100_000, 0, 0]);
    shop.stop();
}

//! What a type really reads, whatever its derive or its hand-written code does; and the contracts and pacts made of it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tidings::{Error, event_map::EventMap, prelude::*};
use tidings_contracts::{
    Contracts,
    pact::{Bodies, Outcome, Pact},
    probe::{Kind, Step, Texts, fields},
};

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
struct Item {
    sku: String,
    #[serde(default)]
    quantity: u32,
}

/// An order is confirmed.
#[derive(Debug, Clone, Serialize, Deserialize, Event, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[event(id = "order_id")]
struct OrderConfirmed {
    order_id: String,
    amount: f64,
    placed_at: jiff::Timestamp,
    #[serde(default)]
    email: Option<String>,
    items: Vec<Item>,
}

fn example() -> OrderConfirmed {
    OrderConfirmed {
        order_id: "o-1".to_owned(),
        amount: 99.5,
        placed_at: "2026-11-28T20:15:00Z".parse().unwrap(),
        email: Some("mira@example.org".to_owned()),
        items: vec![Item {
            sku: "LAMP".to_owned(),
            quantity: 2,
        }],
    }
}

fn reads(body: &Value) -> Result<(), String> {
    let read = serde_json::from_value::<OrderConfirmed>(body.clone());
    read.map(drop).map_err(|error| error.to_string())
}

#[test]
fn what_a_type_reads_is_found_by_asking_it() {
    let mut body = serde_json::to_value(example()).unwrap();
    body["currency"] = "EUR".into();
    let found = fields(&body, &reads).unwrap();
    let of = |path: &[&str]| {
        let found = found.iter().find(|it| {
            let path = path.iter().map(|step| match *step {
                "[]" => Step::Items,
                name => Step::Property(name.to_owned()),
            });
            path.eq(it.path.iter().cloned())
        });
        found.map(|it| {
            (
                it.required,
                it.kinds.iter().copied().collect::<Vec<_>>(),
                it.texts,
            )
        })
    };
    assert_eq!(of(&["orderId"]), Some((true, vec![Kind::Text], Texts::Any)));
    assert_eq!(
        of(&["amount"]),
        Some((true, vec![Kind::Integer, Kind::Fraction], Texts::Any))
    );
    assert_eq!(
        of(&["placedAt"]),
        Some((true, vec![Kind::Text], Texts::Times))
    );
    assert_eq!(
        of(&["email"]),
        Some((false, vec![Kind::Null, Kind::Text], Texts::Any))
    );
    assert_eq!(of(&["items"]), Some((true, vec![Kind::List], Texts::Any)));
    assert_eq!(
        of(&["items", "[]", "sku"]),
        Some((true, vec![Kind::Text], Texts::Any))
    );
    assert_eq!(
        of(&["items", "[]", "quantity"]),
        Some((false, vec![Kind::Integer], Texts::Any))
    );
    // It does not look at what it does not know.
    assert_eq!(of(&["currency"]), None);
    assert!(fields(&json!({}), &reads).unwrap_err().contains("orderId"));
}

fn consumer() -> Contracts {
    async fn award(_: OrderConfirmed) -> Result<(), Error> {
        Ok(())
    }
    Contracts::of(EventMap::of([&Router::new("loyalty").on(award)]))
        .message::<OrderConfirmed>()
        .example(&example())
}

/// A pact has what the consumer cannot do without, and nothing else.
#[tokio::test]
async fn a_pact_is_kept_by_who_writes_what_is_needed() {
    let verified = async |contracts: Contracts, body: &Value| {
        let pact = contracts.pact("orders", &["order-confirmed.v1"]).unwrap();
        let pact = Pact::parse(&pact.to_pact(), "the pact").unwrap();
        let bodies = Bodies::new().with("order-confirmed.v1", None, body);
        pact.verify(&bodies).await.remove(0).outcome
    };
    let usual = json!({
        "orderId": "o-9", "amount": 5, "placedAt": "2026-01-01T00:00:00+01:00", "more": true,
        "items": [{"sku": "A"}, {"sku": "B", "quantity": 3}],
    });
    assert_eq!(verified(consumer(), &usual).await, Outcome::Kept);
    let without = |change: &dyn Fn(&mut Value)| {
        let mut body = usual.clone();
        change(&mut body);
        body
    };
    for (field, body) in [
        ("orderId", without(&|body| body["orderId"] = 9.into())),
        ("amount", without(&|body| body["amount"] = "5".into())),
        (
            "placedAt",
            without(&|body| body["placedAt"] = "yesterday".into()),
        ),
        ("sku", without(&|body| body["items"][1]["sku"] = 7.into())),
        (
            "items",
            without(&|body| {
                body.as_object_mut().unwrap().remove("items");
            }),
        ),
    ] {
        let outcome = verified(consumer(), &body).await;
        let Outcome::Broken(problems) = outcome else {
            panic!("{field}: {outcome:?}");
        };
        assert!(
            problems.iter().any(|it| it.contains(field)),
            "{field}: {problems:?}"
        );
    }
    // What may be left out is expected of who says that it is used.
    let uses = consumer().uses::<OrderConfirmed>("email");
    let outcome = verified(uses.clone(), &usual).await;
    assert!(
        matches!(&outcome, Outcome::Broken(it) if it[0].contains("email")),
        "{outcome:?}"
    );
    let with = without(&|body| body["email"] = "a@example.org".into());
    assert_eq!(verified(uses, &with).await, Outcome::Kept);
}

#[test]
fn contracts_have_a_type_for_each_message_and_say_what_is_wrong() {
    let check = |contracts: Contracts, part: &str| {
        let error = contracts.document().expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    };
    let map = || EventMap::of([&Router::new("orders").publishes::<OrderConfirmed>()]);
    check(
        Contracts::of(map()),
        "sends `order-confirmed.v1`, and its contracts do not have the type",
    );
    check(
        Contracts::of(map()).example(&example()),
        "was given before its type: call `message::<T>()` first",
    );
    check(
        Contracts::of(map())
            .message::<OrderConfirmed>()
            .uses::<OrderConfirmed>("emial"),
        "is said to use `emial`, and has no such field",
    );
    check(
        Contracts::of(EventMap::of([&Router::new("orders")])).message::<OrderConfirmed>(),
        "neither sends nor handles `order-confirmed.v1`",
    );
    check(Contracts::of(EventMap::default()), "the map has 0");
    let document = Contracts::of(map())
        .message::<OrderConfirmed>()
        .document()
        .unwrap();
    let error = consumer().pact("orders", &["order-placed.v1"]).unwrap_err();
    assert!(
        error.to_string().contains("is not handled by `loyalty`"),
        "{error}"
    );
    assert!(document.sends[0].examples.is_empty());
}

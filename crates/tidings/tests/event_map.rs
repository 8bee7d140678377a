//! The event map: what it knows from the types, how it is written, and what it finds wrong.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tidings::{
    Batch, Error, HandlerOptions, Reply, Saga, Sagas, StepReply,
    event_map::{EventMap, MessageKind, ServiceMap, Severity},
    prelude::*,
};

macro_rules! events {
    ($($name:ident)+) => {$(
        #[derive(Debug, Clone, Serialize, Deserialize, Event)]
        #[event(key = "order_id")]
        struct $name {
            order_id: String,
        }
    )+};
}

events! { OrderPlaced OldOrderPlaced OrderConfirmed OrderCancelled StockCounted MailSent Woken Slept }

#[derive(Debug, Clone, Serialize, Deserialize, Command)]
#[command(target = "payment", reply = String)]
struct ChargeCard {
    order_id: String,
}

#[derive(Debug, Clone, Serialize, Deserialize, Command)]
#[command(target = "payment", reply = ())]
struct RefundCard {
    order_id: String,
}

impl From<OldOrderPlaced> for OrderPlaced {
    fn from(old: OldOrderPlaced) -> Self {
        let order_id = old.order_id;
        Self { order_id }
    }
}

type Ends = std::result::Result<OrderConfirmed, OrderCancelled>;

async fn checkout(order: OrderPlaced, saga: Saga) -> Ends {
    let order_id = order.order_id;
    let charged = saga.step("charge-card", charge(&order_id)).no_undo().await;
    match charged {
        Ok(_) => Ok(OrderConfirmed { order_id }),
        Err(_) => Err(OrderCancelled { order_id }),
    }
}

fn charge(order_id: &str) -> ChargeCard {
    let order_id = order_id.to_owned();
    ChargeCard { order_id }
}

async fn take_money(_: ChargeCard) -> Result<StepReply<String>> {
    Ok(StepReply::Done("c-1".into()))
}

async fn give_back(_: RefundCard) -> Result<StepReply<()>> {
    Ok(StepReply::Done(()))
}

fn payment() -> Router {
    Router::new("payment").on(take_money).on(give_back)
}

fn orders() -> Router {
    let sagas = Sagas::new("checkout", |order: &OrderPlaced| order.order_id.clone());
    let sagas = sagas
        .version(1, checkout)
        .sends::<ChargeCard>()
        .sends::<RefundCard>();
    Router::new("orders").publishes::<OrderPlaced>().saga(sagas)
}

fn mails() -> Router {
    let confirmed = |_: Batch<OrderConfirmed>| async { Ok::<_, Error>(()) };
    let cancelled = |order: OrderCancelled| async {
        let order_id = order.order_id;
        Ok::<_, Error>((MailSent { order_id }, None::<StockCounted>))
    };
    let options = HandlerOptions::new().emits::<MailSent>();
    Router::new("mails")
        .on_with(confirmed, options)
        .on(cancelled)
}

fn findings(map: &EventMap) -> Vec<(Severity, String)> {
    let found = map.check().into_iter();
    found.map(|it| (it.severity, it.about)).collect()
}

#[test]
fn the_types_say_what_each_service_handles_and_sends() {
    let map = EventMap::of([&orders(), &payment(), &mails()]);
    let services = map.services();
    let names: Vec<&str> = services.iter().map(|it| &*it.name).collect();
    assert_eq!(names, ["mails", "orders", "payment"]);

    let [cancelled, confirmed] = &*services[0].handlers else {
        panic!("{:?}", services[0]);
    };
    assert_eq!(cancelled.message, "order-cancelled.v1");
    assert_eq!(cancelled.queue, "mails.order-cancelled.v1");
    assert_eq!(cancelled.topic.as_deref(), Some("order-cancelled.v1"));
    let sent: Vec<_> = cancelled
        .emits
        .iter()
        .map(|it| (&*it.message, it.always))
        .collect();
    assert_eq!(sent, [("mail-sent.v1", true), ("stock-counted.v1", false)]);
    assert!(confirmed.batch && !cancelled.batch);
    assert_eq!(confirmed.emits.len(), 1, "what was declared");
    assert!(!confirmed.emits[0].always);

    let saga = &services[1].sagas[0];
    assert_eq!(saga.name, "checkout");
    let sent: Vec<_> = saga
        .sends
        .iter()
        .map(|it| (&*it.message, it.to.as_deref()))
        .collect();
    assert_eq!(
        sent,
        [
            ("charge-card.v1", Some("payment")),
            ("refund-card.v1", Some("payment"))
        ]
    );
    let ends: Vec<_> = saga
        .ends
        .iter()
        .map(|it| (&*it.message, it.always))
        .collect();
    assert_eq!(
        ends,
        [("order-cancelled.v1", false), ("order-confirmed.v1", false)]
    );
    let started = &services[1].handlers[..];
    assert_eq!(
        started.len(),
        1,
        "the answers to steps are the toolkit's: {started:?}"
    );
    assert_eq!(started[0].saga.as_deref(), Some("checkout"));

    assert_eq!(services[2].handlers[0].kind, MessageKind::Command);
    let warned = |name: &str| (Severity::Warning, name.to_owned());
    assert_eq!(
        findings(&map),
        [warned("mail-sent.v1"), warned("stock-counted.v1")]
    );
}

/// Otherwise its end is published to a topic that nobody has declared.
#[test]
fn the_topics_of_what_a_saga_says_at_its_end_are_declared() {
    let topics = orders().topology().topics;
    for topic in ["order-confirmed.v1", "order-cancelled.v1"] {
        assert!(topics.iter().any(|it| it == topic), "{topic}: {topics:?}");
    }
}

#[test]
fn a_command_has_one_target() {
    let error = |name: &str| (Severity::Error, name.to_owned());
    let only_refunds = Router::new("payment").on(give_back);
    let of_saga = EventMap::of([&orders(), &only_refunds, &mails()]);
    assert!(findings(&of_saga).contains(&error("charge-card.v1")));
    let found = of_saga.check();
    assert!(
        found[0]
            .message
            .contains("which `orders` sends to `payment`"),
        "{}",
        found[0]
    );

    let also = ServiceMap::outside("the bank").handling::<ChargeCard>();
    let twice = EventMap::of([&orders(), &payment(), &mails()]).with(also);
    assert!(findings(&twice).contains(&error("charge-card.v1")));
    let found = twice.check();
    assert!(
        found[0]
            .message
            .contains("handled by `payment` and `the bank`"),
        "{}",
        found[0]
    );
}

#[test]
fn a_program_outside_listens_and_sends_too() {
    let all = EventMap::of([&payment(), &mails()]);
    let unsent = all.check();
    let of_confirmed = unsent.iter().find(|it| it.about == "order-confirmed.v1");
    assert!(of_confirmed.is_some_and(|it| it.message.starts_with("nobody sends")));
    let outside = ServiceMap::outside("an old program")
        .handling::<MailSent>()
        .handling::<StockCounted>()
        .sending::<OrderConfirmed>()
        .sending::<OrderCancelled>()
        .sending::<ChargeCard>()
        .sending::<RefundCard>();
    assert_eq!(findings(&all.with(outside)), []);
}

#[test]
fn an_older_message_needs_no_sender_and_is_not_unheard() {
    let settle = |_: OrderPlaced| async { Ok::<_, Error>(()) };
    let router = Router::new("settling")
        .on(settle)
        .upcast::<OldOrderPlaced, OrderPlaced>()
        .publishes::<OrderPlaced>();
    let map = EventMap::of([&router]);
    assert_eq!(map.services()[0].handlers[0].older, ["old-order-placed.v1"]);
    assert_eq!(findings(&map), []);
}

#[test]
fn a_cycle_ends_if_a_type_on_it_may() {
    let order_id = String::new;
    let sleep = move |_: Woken| async move {
        Ok::<_, Error>(Slept {
            order_id: order_id(),
        })
    };
    let wake = move |_: Slept| async move {
        Ok::<_, Error>(Woken {
            order_id: order_id(),
        })
    };
    let later = move |_: Slept| async move {
        let woken = Woken {
            order_id: order_id(),
        };
        Ok::<_, Error>(woken.after(Duration::from_secs(1)))
    };
    let maybe = move |_: Slept| async move { Ok::<_, Error>(None::<Woken>) };
    let sleeping = || Router::new("sleeping").on(sleep);
    let check = |other: Router, is_endless: bool| {
        let map = EventMap::of([&sleeping(), &other]);
        let found = map.check();
        assert_eq!(!found.is_empty(), is_endless, "{found:?}");
        if let Some(found) = found.first() {
            let way = "`slept.v1` → `woken.v1` → `slept.v1` is a cycle without an end";
            assert!(found.message.starts_with(way), "{found}");
        }
    };
    check(Router::new("waking").on(wake), true);
    check(Router::new("waking").on(later), true);
    check(Router::new("waking").on(maybe), false);
    // An answer goes back, and leads to nothing.
    let answer = move |_: Slept| async move {
        Ok::<_, Error>(Reply(Woken {
            order_id: order_id(),
        }))
    };
    let answering = Router::new("waking").on(answer).publishes::<Woken>();
    check(answering, false);
}

#[test]
fn json_is_the_same_whatever_the_order_and_comes_back() {
    let one = EventMap::of([&orders(), &payment(), &mails()]);
    let other = EventMap::of([&mails()]).merge(EventMap::of([&payment(), &orders()]));
    assert_eq!(one.to_json(), other.to_json());
    assert_eq!(EventMap::from_json(&one.to_json()).unwrap(), one);
    // The same service twice, as two processes print it, is one.
    assert_eq!(one.clone().merge(other), one);

    let refused = |json: &str, part: &str| {
        let error = EventMap::from_json(json).unwrap_err().to_string();
        assert!(error.contains(part), "{json}: {error}");
    };
    refused("{}", "missing field `format`");
    refused("[1]", "this is not an event map");
    refused(
        r#"{"format": 2, "news": []}"#,
        "has the format 2, and this program reads 1",
    );
}

#[test]
fn names_of_strangers_stay_names_in_every_drawing() {
    let name = r#"a"b<c>&d\e]#f"#;
    let map = EventMap::default().with(ServiceMap::outside(name).sending::<OrderPlaced>());
    let mermaid = map.to_mermaid();
    let escaped = r#"n0[/"a#34;b#60;c#62;#38;d#92;e]#35;f"/]"#;
    assert!(mermaid.contains(escaped), "{mermaid}");
    let dot = map.to_dot();
    assert!(dot.contains(r#"[label="a\"b<c>&d\\e]#f", "#), "{dot}");
    let svg = map.to_svg("<script>");
    assert!(
        svg.contains("a&quot;b&lt;c&gt;&amp;d\\e]#f</text>"),
        "{svg}"
    );
    assert!(
        svg.contains("<title id=\"t\">&lt;script&gt;</title>"),
        "{svg}"
    );
}

#[test]
fn drawings_have_every_service_message_and_arrow() {
    let map = EventMap::of([&orders(), &payment(), &mails()]);
    let mermaid = map.to_mermaid();
    for line in [
        "[[\"orders<br/>saga checkout\"]]",
        "{{\"charge-card.v1\"}}",
        "([\"order-placed.v1\"])",
        "[\"payment\"]",
    ] {
        assert!(mermaid.contains(line), "{line}: {mermaid}");
    }
    // Placed by orders; the saga and its 2 commands, which payment handles, and 2 ends; mails handles
    // both, and sends 2 of its 3.
    let arrows = mermaid.matches(" --> ").count();
    assert_eq!(arrows, 1 + 1 + 2 + 2 + 2 + 2 + 3, "{mermaid}");
    assert_eq!(map.to_dot().matches(" -> ").count(), arrows);
    assert_eq!(map.to_svg("map").matches("class=\"l\"").count(), arrows);
}

#[test]
fn a_saga_that_says_what_it_sends_says_all_of_it() {
    use tidings::sagas::{Explorer, Start};
    let explore = |sagas: Sagas<OrderPlaced>| {
        let placed = OrderPlaced {
            order_id: "o-1".into(),
        };
        let start = Start::of(&placed).unwrap();
        Explorer::new(sagas.define("orders"), "o-1", start)
            .replies(|_, _| serde_json::value::to_raw_value("c-1").unwrap())
            .run()
    };
    let sagas = || {
        Sagas::new("checkout", |order: &OrderPlaced| order.order_id.clone()).version(1, checkout)
    };
    let explored = explore(sagas().sends::<ChargeCard>());
    assert_eq!(
        explored.commands.iter().map(|it| &**it).collect::<Vec<_>>(),
        ["charge-card.v1"]
    );
    explore(sagas());
    let undeclared = std::panic::catch_unwind(|| explore(sagas().sends::<RefundCard>()));
    let said = undeclared.unwrap_err();
    let said = said.downcast_ref::<String>().unwrap();
    assert!(
        said.contains("it sends `charge-card.v1`, but is not said to"),
        "{said}"
    );
}

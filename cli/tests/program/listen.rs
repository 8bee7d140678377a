//! `tidings contracts listen`: what flows is compared with documents, and nobody has less for it. The programs of
//! `examples/` in Node and Python are heard, too: what they publish is as their documents and the shop's say.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::Path,
    process::Command,
    time::Duration,
};

use serde_json::{Value, json};
use tidings::{Queue, Topology, Transport as _};
use tidings_testing::{
    foreign::{self, examples, workspace},
    servers::Process,
};

use crate::{
    run::{Ran, tidings},
    tail::{Tail, Topic, event},
};

/// Starting Node on a busy machine takes a while.
const SOON: Duration = Duration::from_secs(60);

/// What orders sends to a topic; a field of its bodies is a customer's.
fn document(folder: &Path, topic: &str) -> String {
    let document = json!({
        "asyncapi": "3.0.0",
        "info": {"title": "orders", "version": "1.0.0"},
        "channels": {"orders": {"address": topic, "messages": {"placed": {
            "name": "order-placed.v1",
            "payload": {
                "type": "object", "required": ["orderId"],
                "properties": {"orderId": {"type": "string"}, "email": {"type": "string"}},
            },
        }}}},
        "operations": {"place": {"action": "send", "channel": {"$ref": "#/channels/orders"}}},
    });
    let file = folder.join("orders.json");
    fs::write(&file, document.to_string()).unwrap();
    file.to_str().unwrap().to_owned()
}

fn listen(topic: &str, url: &str, more: &[&str]) -> Tail {
    let args = ["contracts", "listen", topic, "--broker", url];
    Tail::start(&[&args[..], more].concat(), "listening to ")
}

/// What is said about each message: its rule and, if it is about one, its field.
fn rules(ran: &Ran) -> Vec<String> {
    let json = ran.json();
    let findings = json["findings"].as_array().unwrap().iter();
    findings
        .map(|it| match it["field"].as_str() {
            Some(field) => format!("{} {field}", it["rule"].as_str().unwrap()),
            None => it["rule"].as_str().unwrap().to_owned(),
        })
        .collect()
}

fn compares_and_takes_nothing(topic: &Topic) {
    let folder = tempfile::tempdir().unwrap();
    let document = document(folder.path(), &topic.name);
    let four = ["--document", &document, "--count", "4"];
    let (json, page) = (
        listen(&topic.name, &topic.url, &[&four[..], &["--json"]].concat()),
        listen(&topic.name, &topic.url, &four),
    );
    let secret = "mira@example.org";
    topic.publish("order-placed.v1", "o-1", r#"{"orderId": "o-1"}"#);
    topic.publish(
        "order-placed.v1",
        "o-2",
        format!(r#"{{"orderId": "o-2", "email": ["{secret}"]}}"#),
    );
    topic.publish("process-payment.v1", "o-3", "{}");
    let mut bare = event("order-placed.v1", "o-4", r#"{"orderId": "o-4"}"#.to_owned());
    bare.id = None;
    topic.publish_all(vec![bare]);
    let ran = json.end();
    ran.ends(1).says("TDG-9071");
    assert_eq!(
        rules(&ran),
        [
            "body-differs email",
            "no-id",
            "command-like-event",
            "undocumented"
        ]
    );
    let report = ran.json();
    let placed = &report["messages"][0];
    assert_eq!(
        (&placed["name"], &placed["count"]),
        (&json!("order-placed.v1"), &json!(3))
    );
    assert_eq!(placed["checkedBy"], json!(["orders"]));
    assert_eq!(placed["sources"], json!(["orders"]));
    assert_eq!(placed["bytesMax"], json!(49));
    let shown = page.end();
    shown
        .ends(1)
        .tells("order-placed.v1")
        .tells("1 of 3: `/email`: value is not of type \"string\"")
        .tells("the event `process-payment.v1` tells somebody what to do");
    assert!(
        !shown.out.contains(secret) && !ran.out.contains(secret),
        "{shown:#?}"
    );
    assert_eq!(topic.in_queue(), 4, "the consumer has lost some");
}

#[test]
fn it_compares_what_flows_and_takes_nothing() {
    compares_and_takes_nothing(&Topic::in_the_box());
}

#[test]
#[ignore = "needs RabbitMQ: run `cargo xtask test`"]
fn on_rabbitmq_it_compares_what_flows_and_takes_nothing() {
    compares_and_takes_nothing(&Topic::on_rabbitmq());
}

/// A team that has no documents gets one; what it was made of is as it says, and other bodies are not.
#[test]
fn a_first_document_is_written_from_what_is_heard() {
    let topic = Topic::in_the_box();
    let folder = tempfile::tempdir().unwrap();
    let file = folder
        .path()
        .join("heard.json")
        .to_str()
        .unwrap()
        .to_owned();
    let write = ["--count", "2", "--write", &file, "--title", "legacy"];
    let heard = listen(&topic.name, &topic.url, &write);
    topic.publish(
        "order-placed.v1",
        "o-1",
        r#"{"orderId": "o-1", "amount": 1}"#,
    );
    topic.publish(
        "order-placed.v1",
        "o-2",
        r#"{"orderId": "o-2", "amount": 2.5}"#,
    );
    heard.end().ends(0).tells("nothing is wrong").tells(&file);
    tidings(["contracts", "check", &file])
        .ends(0)
        .tells("1 service");
    assert!(fs::read_to_string(&file).unwrap().contains("\"legacy\""));
    for (body, code) in [
        (r#"{"orderId": "o-3", "amount": 3}"#, 0),
        (r#"{"orderId": "o-3", "amount": "3"}"#, 1),
    ] {
        let again = listen(
            &topic.name,
            &topic.url,
            &["--count", "1", "--document", &file],
        );
        topic.publish("order-placed.v1", "o-3", body);
        again.end().ends(code);
    }
    // Warnings are errors if somebody says so.
    for (strict, code) in [(&[][..], 0), (&["--strict"], 1)] {
        let listening = listen(
            &topic.name,
            &topic.url,
            &[&["--count", "1"], strict].concat(),
        );
        topic.publish("process-payment.v1", "o-4", "{}");
        listening.end().ends(code);
    }
}

/// Nothing was checked then, which is no success; and what was heard until Ctrl-C is told.
#[test]
fn it_says_when_nothing_came() {
    let topic = Topic::in_the_box();
    let nothing = listen(&topic.name, &topic.url, &["--for", "100ms"]);
    nothing.end().ends(1).says("no message came");
    let interrupted = listen(&topic.name, &topic.url, &["--count", "1000"]);
    interrupted.interrupt();
    interrupted.end().ends(1).says("no message came");
    let missing = [
        "contracts",
        "listen",
        "no_such_topic",
        "--broker",
        &topic.url,
    ];
    tidings(missing)
        .ends(1)
        .says("there is no topic")
        .says("TDG-9050");
}

fn looks_at_what_waits(topic: &Topic) {
    let folder = tempfile::tempdir().unwrap();
    let document = document(folder.path(), &topic.name);
    for number in 0..3 {
        topic.publish(
            "order-placed.v1",
            "o-1",
            format!(r#"{{"orderId": {number}}}"#),
        );
    }
    let queue = [
        "contracts",
        "listen",
        "--broker",
        &topic.url,
        "--queue",
        &topic.queue,
    ];
    let waits = ["--document", &document, "--json"];
    let ran = tidings([&queue[..], &waits].concat());
    ran.ends(1);
    assert_eq!(rules(&ran), ["body-differs orderId"]);
    assert_eq!(ran.json()["messages"][0]["count"], 3);
    assert_eq!(topic.in_queue(), 3, "it took some");
    let one = tidings([&queue[..], &["--count", "1", "--json"]].concat());
    assert_eq!(one.ends(0).json()["messages"][0]["count"], 1);
    // Who receives would wait for it.
    let subscribed = topic
        .amqp
        .subscribe(tidings::Subscription::new(topic.queue.clone()));
    let subscription = topic.runtime.block_on(subscribed).unwrap();
    tidings(queue).ends(2).says("1 consumer receives from");
    drop(subscription);
    let both = tidings([&queue[..], &[&topic.name]].concat());
    both.ends(2);
}

#[test]
fn what_waits_in_a_queue_is_looked_at_and_stays() {
    looks_at_what_waits(&Topic::in_the_box());
}

#[test]
#[ignore = "needs RabbitMQ: run `cargo xtask test`"]
fn on_rabbitmq_what_waits_in_a_queue_is_looked_at_and_stays() {
    looks_at_what_waits(&Topic::on_rabbitmq());
}

/// Runs a program of `examples/` to its end.
fn run(mut command: Command, topic: &Topic) -> Process {
    command.env("AMQP_URL", &topic.url);
    let mut process = Process::start(command).unwrap();
    process.wait(SOON).unwrap();
    process
}

fn example(file: &str) -> String {
    examples().join(file).to_str().unwrap().to_owned()
}

fn published() -> String {
    workspace()
        .join("shop/contracts/published")
        .to_str()
        .unwrap()
        .to_owned()
}

/// What the programs in Node and Python publish is as their own documents and those of the shop's services say.
#[test]
#[ignore = "needs Node and Python"]
fn what_the_examples_publish_is_as_their_documents_and_the_shops_say() {
    let topic = Topic::in_the_box();
    let topology = Topology::new().topic("order_events");
    let declared = topic.amqp.declare(&topology);
    topic.runtime.block_on(declared).unwrap();
    let own = example("01-article-node/order-service.asyncapi.yaml");
    let (article, python, shop) = (
        example("01-article-node/payment-service.asyncapi.yaml"),
        example("03-listen-python/asyncapi.yaml"),
        published(),
    );
    let documents = [
        "--document",
        &own,
        "--document",
        &shop,
        "--document",
        &article,
        "--document",
        &python,
    ];
    let args = ["--count", "3", "--json"];
    let listening = listen(
        "order_events",
        &topic.url,
        &[&documents[..], &args].concat(),
    );
    run(
        foreign::node(examples().join("01-article-node/order-service.js")),
        &topic,
    );
    let mut place = foreign::node(examples().join("02-order-node/place-order.js"));
    place.args(["ORD-7", "12.90", "2"]);
    run(place, &topic);
    let ran = listening.end();
    // The article's programs say neither what it is nor which one.
    ran.ends(0);
    assert_eq!(rules(&ran), ["no-name", "no-id"], "{ran:#?}");
    let report = ran.json();
    assert_eq!(report["messages"][0]["count"], 3);
    let checked = report["messages"][0]["checkedBy"].as_array().unwrap();
    for service in [
        "article-orders",
        "orders",
        "payment",
        "inventory",
        "article-payment",
        "listener",
    ] {
        assert!(
            checked.iter().any(|it| it == service),
            "{service}: {checked:?}"
        );
    }
    // And the one that is wrong on purpose is found.
    let listening = listen(
        "order_events",
        &topic.url,
        &[&documents[..], &["--count", "1", "--json"]].concat(),
    );
    let broken = run(
        foreign::python(examples().join("04-poison-python/poison.py")),
        &topic,
    );
    assert!(
        broken
            .stdout()
            .iter()
            .any(|line| line.starts_with("published")),
        "{:?}",
        broken.stderr()
    );
    let ran = listening.end();
    ran.ends(1);
    assert!(rules(&ran).contains(&"not-json".to_owned()), "{ran:#?}");
}

/// What the shop sends is what they read: each of them handles each of the shop's own examples.
#[test]
#[ignore = "needs Node and Python"]
fn the_examples_read_what_the_shop_sends() {
    let topic = Topic::in_the_box();
    let mut payment = foreign::node(examples().join("01-article-node/payment-service.js"));
    payment.env("AMQP_URL", &topic.url);
    let mut payment = Process::start(payment).unwrap();
    payment
        .wait_for_line(SOON, |line| line.contains("Waiting for"))
        .unwrap();
    let mut listener = foreign::python(examples().join("03-listen-python/listen.py"));
    listener.arg("listener").env("AMQP_URL", &topic.url);
    let mut listener = Process::start(listener).unwrap();
    listener
        .wait_for_line(SOON, |line| line.starts_with("listening"))
        .unwrap();
    let orders =
        fs::read_to_string(workspace().join("shop/contracts/published/orders.asyncapi.json"));
    let orders: Value = serde_json::from_str(&orders.unwrap()).unwrap();
    let all = orders["components"]["messages"]["order-placed.v1"]["examples"]
        .as_array()
        .unwrap();
    assert!(all.len() >= 2, "the usual one and one with little in it");
    for (number, example) in all.iter().enumerate() {
        let mut body = example["payload"].clone();
        body["orderId"] = format!("ORD-{number}").into();
        let outgoing = tidings::Outgoing {
            destination: tidings::Destination::Topic("order_events".into()),
            unrouted: tidings::Unrouted::Hold,
            envelope: event("order-placed.v1", "o", body.to_string()),
        };
        for outcome in topic.runtime.block_on(topic.amqp.publish(vec![outgoing])) {
            outcome.unwrap();
        }
        let amount = body["amount"].to_string();
        let charged = format!("Received order ORD-{number}: charging ${amount}");
        payment
            .wait_for_line(SOON, |line| line.contains(&charged))
            .unwrap();
        let listed = format!("ORD-{number} {amount} ");
        listener
            .wait_for_line(SOON, |line| line.starts_with(&listed))
            .unwrap();
    }
}

/// The one that tells a newcomer of the past writes what the newcomer reads.
#[test]
#[ignore = "needs Node"]
fn what_the_replay_in_node_tells_is_what_loyalty_reads() {
    let topic = Topic::in_the_box();
    let queue = "loyalty.order-confirmed.v1";
    let topology = Topology::new().queue(Queue::new(queue));
    let declared = topic.amqp.declare(&topology);
    topic.runtime.block_on(declared).unwrap();
    // Its orders come from the shop over HTTP, of which this says as much as it asks for.
    let shop = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", shop.local_addr().unwrap());
    std::thread::spawn(move || {
        while let Ok((mut asked, _)) = shop.accept() {
            let _ = asked.read(&mut [0; 4096]);
            let orders = r#"[{"orderId": "o-1", "amount": 9.5, "status": "CONFIRMED"}, {"orderId": "o-2", "amount": 1, "status": "PLACED"}]"#;
            let length = orders.len();
            let _ = write!(
                asked,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{orders}"
            );
        }
    });
    let mut replay = foreign::node(examples().join("05-replay-node/replay.js"));
    replay.arg("c-7").env("SHOP_URL", &url);
    let replay = run(replay, &topic);
    assert_eq!(
        replay.stdout(),
        [format!("told {queue} about 1 order(s) of c-7")],
        "{:?}",
        replay.stderr()
    );
    let shop = published();
    let args = [
        "contracts",
        "listen",
        "--broker",
        &topic.url,
        "--queue",
        queue,
        "--document",
        &shop,
        "--json",
    ];
    let ran = tidings(args);
    ran.ends(0);
    assert_eq!(rules(&ran), ["no-name", "no-id"]);
    assert_eq!(ran.json()["messages"][0]["checkedBy"], json!(["loyalty"]));
}

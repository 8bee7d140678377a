//! The guide's page "changing an event safely": each command that it shows is run as it stands there, in its order, and what it
//! shows as the answer is the answer.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use tidings::{Destination, Envelope, Outgoing, Queue, Topology, Transport as _, Unrouted};
use tidings_amqp::Amqp;
use tidings_broker::{Broker, Options};
use tidings_testing::foreign::workspace;

use crate::{
    contracts::{Folder, LOYALTY, ORDERS},
    pact_broker::server::{PactBroker, Settings},
    run::Ran,
};

const SOON: Duration = Duration::from_secs(60);

const PACT: &str = r#"{"consumer": {"name": "newsletter"}, "provider": {"name": "orders"}, "interactions": [{
    "type": "Asynchronous/Messages", "description": "DESCRIPTION",
    "contents": {"content": {"orderId": "o-9"}, "contentType": "application/json", "encoded": false},
    "matchingRules": {"body": {"$.orderId": {"combine": "AND", "matchers": [{"match": "type"}]}}}
}], "metadata": {"pactSpecification": {"version": "4.0"}}}"#;

/// The blocks of the page that begin so, without their fences.
fn blocks(page: &str, fence: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if line == format!("```{fence}") {
            let block = lines.by_ref().take_while(|line| *line != "```");
            blocks.push(block.collect::<Vec<_>>().join("\n"));
        }
    }
    blocks
}

/// The commands of a block, without what is said about them.
fn commands(block: &str) -> Vec<String> {
    let block = block.replace("\\\n   ", "");
    let commands = block.lines().map(|line| match line.split_once("  #") {
        Some((command, _)) => command.trim().to_owned(),
        None => line.to_owned(),
    });
    commands.filter(|it| it.starts_with("tidings ")).collect()
}

fn start(folder: &Path, broker: &str, line: &str) -> Child {
    let program = Path::new(env!("CARGO_BIN_EXE_tidings"));
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", program.parent().unwrap().display());
    Command::new("sh")
        .args(["-c", line])
        .current_dir(folder)
        .env("PATH", path)
        .env("TIDINGS_BROKER", broker)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn end(child: Child) -> Ran {
    let output = child.wait_with_output().unwrap();
    Ran {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Until the command has heard enough.
async fn end_while_publishing(amqp: &Amqp, mut child: Child) -> Ran {
    let until = Instant::now() + SOON;
    while child.try_wait().unwrap().is_none() && Instant::now() < until {
        for topic in ["order_events", "payment_events"] {
            let body = r#"{"orderId": "o-1", "amount": 99.5}"#;
            let mut envelope = Envelope::new("order-confirmed.v1", body);
            envelope.id = Some(uuid::Uuid::new_v4().to_string().into());
            let message = Outgoing {
                destination: Destination::Topic(topic.into()),
                unrouted: Unrouted::Drop,
                envelope,
            };
            let _ = amqp.publish(vec![message]).await;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let _ = child.kill();
    end(child)
}

#[tokio::test(flavor = "multi_thread")]
async fn changing_an_event_safely_is_walked_word_by_word() {
    let page = fs::read_to_string(workspace().join("docs/guide/contracts.md")).unwrap();
    let shown: Vec<String> = blocks(&page, "sh")
        .iter()
        .flat_map(|it| commands(it))
        .collect();
    let expected = [
        (
            "tidings contracts check asyncapi/",
            "2 services: nothing is wrong",
        ),
        (
            "tidings contracts check asyncapi/ --baseline published/",
            "2 services: nothing is wrong",
        ),
        (
            "tidings contracts record asyncapi/ --into published/",
            "orders.asyncapi.json",
        ),
        (
            "tidings contracts verify pacts/ --provider asyncapi/orders.json",
            "kept: `newsletter` expects `order-confirmed.v1`",
        ),
        (
            "tidings contracts verify newsletter-orders.json --provider asyncapi/orders.json  --message 'an order is \
             confirmed=order-confirmed.v1'",
            "kept: `newsletter` expects `an order is confirmed`",
        ),
        (
            "tidings contracts publish pacts/ --to https://pacts.example.org --version 1.4.0 --branch main",
            "published: what `newsletter` 1.4.0 expects of `orders`",
        ),
        (
            "tidings contracts verify https://pacts.example.org --provider asyncapi/orders.json --branch main --publish 2.0.0",
            "kept (pending): `newsletter` expects `order-confirmed.v1`",
        ),
        (
            "tidings contracts listen order_events --document asyncapi/ --for 1m",
            "order-confirmed.v1",
        ),
        (
            "tidings contracts listen --queue audit --document asyncapi/",
            "order-confirmed.v1",
        ),
        (
            "tidings contracts listen order_events payment_events --for 10m --write heard.asyncapi.json --title legacy",
            "order-confirmed.v1",
        ),
        (
            "tidings contracts export published/ --to catalogue/ --title 'The shop'",
            "wrote 4 pages and 1 schema",
        ),
    ];
    let known: Vec<&str> = expected.iter().map(|(command, _)| *command).collect();
    assert_eq!(
        shown, known,
        "the page shows other commands than are run here"
    );

    let pacts = PactBroker::start(Settings::default());
    let broker = Broker::start(Options::ephemeral()).await.unwrap();
    let url = broker.amqp_url();
    let amqp = Amqp::connect(&url).await.unwrap();
    let audit = Queue::new("audit")
        .topic("order_events")
        .topic("payment_events");
    amqp.declare(&Topology::new().queue(audit)).await.unwrap();
    let folder = Folder::new();
    let root = Path::new(&folder.path("")).to_owned();
    let run = |line: &str| end(start(&root, &url, line));

    // Who comes to the page has documents, of orders in JSON, and what is deployed.
    let orders = ORDERS.replace("version: 1.0.0", "version: 0.1.0");
    folder.write("asyncapi/orders.yaml", &orders);
    let loyalty = LOYALTY.replace("version: 2.3.0", "version: 0.1.0");
    folder.write("asyncapi/loyalty.yaml", &loyalty);
    run("tidings contracts record asyncapi/ --into published/").ends(0);
    fs::remove_file(root.join("asyncapi/orders.yaml")).unwrap();
    let deployed = root.join("published/orders.asyncapi.json");
    fs::copy(&deployed, root.join("asyncapi/orders.json")).unwrap();
    let pact = |description: &str| PACT.replace("DESCRIPTION", description);
    folder.write("pacts/newsletter.json", &pact("order-confirmed.v1"));
    folder.write("newsletter-orders.json", &pact("an order is confirmed"));

    for (command, tells) in expected {
        let ran = match command.contains("contracts listen") {
            true => {
                let child = start(&root, &url, &format!("{command} --count 2"));
                end_while_publishing(&amqp, child).await
            }
            false => run(&command.replace("https://pacts.example.org", &pacts.url)),
        };
        ran.ends(0).tells(tells);
    }
    let heard = fs::read_to_string(root.join("heard.asyncapi.json")).unwrap();
    assert!(
        heard.contains("legacy") && heard.contains("orderId"),
        "{heard}"
    );

    // The wrong way, with the answer that the page shows.
    let renamed = ORDERS
        .replace("version: 1.0.0", "version: 0.2.0")
        .replace("amount", "total");
    fs::remove_file(root.join("asyncapi/orders.json")).unwrap();
    folder.write("asyncapi/orders.yaml", &renamed);
    let check = "tidings contracts check asyncapi/ --baseline published/";
    let wrong = run(check);
    let answer = &blocks(&page, "text")[0];
    wrong.ends(1).tells(answer);

    // The right way: the new one beside the old one, then the consumers, then the old one ends.
    let both = orders.replace(
        "      confirmed: {$ref: '#/components/messages/confirmed'}",
        "      confirmed: {$ref: '#/components/messages/confirmed'}\n      confirmed2: {$ref: '#/components/messages/confirmed2'}",
    ) + "    confirmed2:\n      name: order-confirmed.v2\n      payload:\n        type: object\n        required: [orderId, total]\n        properties: {orderId: {type: string}, total: {type: number}}\n";
    folder.write("asyncapi/orders.yaml", &both);
    run(check).ends(0).tells("nothing is wrong");
    let only = both.replace(
        "      confirmed: {$ref: '#/components/messages/confirmed'}\n",
        "",
    );
    folder.write("asyncapi/orders.yaml", &only);
    run(check).ends(1).tells("`loyalty`");
    let moved = loyalty
        .replace("order-confirmed.v1", "order-confirmed.v2")
        .replace("amount", "total")
        .replace(", uses: [customerId]", "");
    folder.write("asyncapi/loyalty.yaml", &moved);
    run("tidings contracts check asyncapi/")
        .ends(0)
        .tells("nothing is wrong");
    broker.shutdown().await.unwrap();
}

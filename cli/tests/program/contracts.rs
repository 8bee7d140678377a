//! `tidings contracts`: documents of services in any language, compared with each other and with what is deployed.

use std::{fs, path::Path};

use tidings_testing::foreign::{self, PactLibrary};

use crate::run::tidings;

/// What orders writes; somebody wrote it by hand.
pub(crate) const ORDERS: &str = r#"
asyncapi: 3.0.0
info: {title: orders, version: 1.0.0}
channels:
  orderEvents:
    address: order_events
    messages:
      confirmed: {$ref: '#/components/messages/confirmed'}
operations:
  sayConfirmed:
    action: send
    channel: {$ref: '#/channels/orderEvents'}
components:
  schemas:
    Amount: {type: number, minimum: 0}
  messages:
    confirmed:
      name: order-confirmed.v1
      payload:
        type: object
        required: [orderId, amount]
        properties:
          orderId: {type: string}
          amount: {$ref: '#/components/schemas/Amount'}
          customerId: {type: string}
      examples:
        - payload: {orderId: o-1, amount: 99.5, customerId: c-7}
"#;

/// What loyalty reads of it.
pub(crate) const LOYALTY: &str = r#"
asyncapi: 3.0.0
info: {title: loyalty, version: 2.3.0}
channels:
  orderEvents:
    address: order_events
    messages:
      confirmed:
        name: order-confirmed.v1
        payload:
          type: object
          required: [orderId, amount]
          properties:
            orderId: {type: string}
            amount: {type: number}
            customerId: {type: string}
operations:
  award:
    action: receive
    channel: {$ref: '#/channels/orderEvents'}
    bindings: {amqp: {ack: true}}
    x-tidings: {deadLetters: loyalty.dead, uses: [customerId]}
"#;

pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write("asyncapi/orders.yaml", ORDERS);
        folder.write("asyncapi/loyalty.yaml", LOYALTY);
        folder
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        self.path(name)
    }
}

#[test]
fn a_change_is_found_before_it_is_merged_and_names_who_it_breaks() {
    let folder = Folder::new();
    let (now, published) = (folder.path("asyncapi"), folder.path("published"));
    let check = ["contracts", "check", &now, "--baseline", &published];
    tidings(["contracts", "check", &now])
        .ends(0)
        .tells("2 services: nothing is wrong");
    let recorded = tidings(["contracts", "record", &now, "--into", &published]);
    recorded.ends(0).tells("loyalty.asyncapi.json");
    tidings(check).ends(0).tells("nothing is wrong");

    // A field more breaks nobody.
    folder.write(
        "asyncapi/orders.yaml",
        &ORDERS.replace(
            "customerId: {type: string}",
            "customerId: {type: string}\n          currency: {type: string}",
        ),
    );
    tidings(check).ends(0).tells("nothing is wrong");

    // Renamed: nobody can read it now, and nobody could later.
    folder.write("asyncapi/orders.yaml", &ORDERS.replace("amount", "total"));
    let found = tidings(check);
    found.ends(1).says("TDG-9071");
    found.tells("`loyalty` 2.3.0 cannot read `order-confirmed.v1` as `orders` 1.0.0 writes it: `amount` is never written");
    found.tells("send it as `order-confirmed.v2` beside `order-confirmed.v1`");
    let json = tidings([&check[..], &["--json"]].concat());
    let json = json.ends(1).json();
    let finding = json["findings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["rule"] == "sender-changed");
    assert_eq!(finding.unwrap()["consumer"], "loyalty");
    assert_eq!(finding.unwrap()["field"], "amount");
    // And it is not recorded as deployed by mistake.
    let refused = tidings(["contracts", "record", &now, "--into", &published]);
    refused.ends(1).says("TDG-9071");
    let anyway = tidings([
        "contracts",
        "record",
        &now,
        "--into",
        &published,
        "--anyway",
    ]);
    anyway.ends(0).tells("orders.asyncapi.json");

    // Of fields that may be left out only the consumer knows whether it uses them.
    let published = folder.path("published-2");
    folder.write("asyncapi/orders.yaml", ORDERS);
    tidings(["contracts", "record", &now, "--into", &published]).ends(0);
    folder.write(
        "asyncapi/orders.yaml",
        &ORDERS
            .replace("          customerId: {type: string}\n", "")
            .replace(", customerId: c-7", ""),
    );
    let found = tidings([
        "contracts",
        "check",
        &now,
        "--baseline",
        &published,
        "--rule",
        "forward",
    ]);
    found.ends(1).tells("`loyalty` 2.3.0 uses `customerId` of `order-confirmed.v1`, and `orders` 1.0.0 never writes it");
    // It is no change of a consumer.
    let backward = tidings([
        "contracts",
        "check",
        &now,
        "--baseline",
        &published,
        "--rule",
        "backward",
        "--json",
    ]);
    let backward = backward.ends(1).json();
    let rules: Vec<&str> = backward["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["rule"].as_str().unwrap())
        .collect();
    assert_eq!(rules, ["mismatch"]);

    // A consumer that asks for more than what waits has.
    folder.write("asyncapi/orders.yaml", ORDERS);
    folder.write(
        "asyncapi/loyalty.yaml",
        &LOYALTY.replace(
            "required: [orderId, amount]",
            "required: [orderId, amount, customerId]",
        ),
    );
    let found = tidings([
        "contracts",
        "check",
        &now,
        "--baseline",
        &published,
        "--rule",
        "backward",
    ]);
    found
        .ends(1)
        .tells("and such messages still wait: `customerId` may be left out");
}

#[test]
fn the_four_mistakes_are_found_in_documents() {
    let folder = Folder::new();
    let large = "x".repeat(70_000);
    let orders = ORDERS
        .replace("order-confirmed.v1", "process-payment.v1")
        .replace("c-7", &large);
    let loyalty = LOYALTY
        .replace("order-confirmed.v1", "process-payment.v1")
        .replace("ack: true", "ack: false")
        .replace("deadLetters: loyalty.dead, ", "");
    folder.write("asyncapi/orders.yaml", &orders);
    folder.write("asyncapi/loyalty.yaml", &loyalty);
    let found = tidings(["contracts", "check", &folder.path("asyncapi")]);
    found.ends(1);
    for part in [
        "the event `process-payment.v1` tells somebody what to do; an event says what happened: `PaymentProcessed`",
        "`loyalty` receives `process-payment.v1` without acknowledging",
        "nothing says where a message goes that it cannot handle",
        "its budget is 65536; the most is in `customerId`",
    ] {
        found.tells(part);
    }
}

#[test]
fn what_is_no_document_is_refused_with_what_to_do() {
    let folder = Folder::new();
    for (text, part) in [
        ("{", "this is not JSON"),
        ("- a\n- b: [", "neither JSON nor YAML"),
        ("openapi: 3.0.0", "it has no `asyncapi: 3.0.0`"),
        ("asyncapi: 2.6.0", "asyncapi convert"),
        (
            "asyncapi: 3.0.0\ninfo: {version: 1.0.0}",
            "`info.title` is missing",
        ),
        (
            &ORDERS.replace(
                "'#/components/messages/confirmed'",
                "'other.yaml#/confirmed'",
            ),
            "bundle it",
        ),
        (
            &ORDERS.replace("title: orders", "title: loyalty"),
            "two of the documents are of the service `loyalty`",
        ),
    ] {
        folder.write("asyncapi/orders.yaml", text);
        let refused = tidings(["contracts", "check", &folder.path("asyncapi")]);
        refused.ends(1).says("TDG-9070");
        refused.says(part);
    }
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("http://{closed}/asyncapi.json");
    tidings(["contracts", "check", &url])
        .ends(1)
        .says(&url)
        .says("refused");
    let nowhere = folder.path("nowhere");
    tidings(["contracts", "check", &nowhere])
        .ends(1)
        .says("TDG-9070");
    tidings(["contracts", "check"]).ends(2);
}

#[test]
fn a_catalogue_is_written_for_people_and_files_for_tools() {
    let folder = Folder::new();
    let to = folder.path("catalogue");
    let now = folder.path("asyncapi");
    let export = [
        "contracts",
        "export",
        &now,
        "--to",
        &to,
        "--title",
        "The shop",
    ];
    tidings(export)
        .ends(0)
        .tells("wrote 4 pages and 1 schema; open");
    let read = |name: &str| fs::read_to_string(Path::new(&to).join(name)).unwrap();
    assert!(read("index.html").contains("The shop"));
    let page = read("messages/order-confirmed.v1.html");
    assert!(
        page.contains("loyalty") && page.contains(">used<"),
        "{page}"
    );
    assert!(read("schemas/order-confirmed.v1.json").contains("customerId"));
    // The document of the system is one that can be read again.
    let system = folder.path("catalogue/asyncapi.json");
    tidings(["contracts", "check", &system])
        .ends(0)
        .tells("2 services: nothing is wrong");
}

/// A pact that Pact's own libraries wrote is verified, and a provider that writes something else is found.
#[test]
#[ignore = "needs Node and Python"]
fn pacts_of_other_languages_are_verified() {
    let folder = Folder::new();
    let placed = r#"
    placed:
      name: order-placed.v1
      payload: {type: object}
      examples:
        - {name: an order of customer-7, payload: EXAMPLE}"#;
    for library in PactLibrary::ALL {
        let pacts = folder.path(&format!("pacts-{library:?}"));
        fs::create_dir_all(&pacts).unwrap();
        let written = foreign::pact_write(library, &pacts).output().unwrap();
        assert!(written.status.success(), "{written:?}");
        let file = Path::new(&pacts).join("newsletter-orders.json");
        let pact: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        // Each message's own example is what a provider that keeps the pact writes.
        let example = |name: &str| {
            let all = pact["interactions"].as_array().unwrap();
            let it = all.iter().find(|it| it["description"] == name).unwrap();
            it["contents"]["content"].clone()
        };
        let confirmed = example("order-confirmed.v1");
        let orders = |confirmed: &serde_json::Value| {
            let usual = "- payload: {orderId: o-1, amount: 99.5, customerId: c-7}";
            let named = format!("- {{name: an order of customer-7, payload: {confirmed}}}");
            let text = ORDERS.replace(usual, &named);
            let text =
                text + &placed.replace("EXAMPLE", &example("order-placed.v1").to_string()) + "\n";
            let text = text.replace("      confirmed: {$ref: '#/components/messages/confirmed'}", "      confirmed: {$ref: '#/components/messages/confirmed'}\n      placed: {$ref: '#/components/messages/placed'}");
            folder.write("orders.yaml", &text)
        };
        let document = orders(&confirmed);
        let kept = tidings(["contracts", "verify", &pacts, "--provider", &document]);
        kept.ends(0).tells(
            "kept: `newsletter` expects `order-confirmed.v1` (an order of customer-7) of `orders`",
        );
        let mut other = confirmed.clone();
        other["orderId"] = 7.into();
        let document = orders(&other);
        let broken = tidings(["contracts", "verify", &pacts, "--provider", &document]);
        broken.ends(1).says("TDG-9072");
        broken.tells("orderId");
    }
}

/// What is asked for and cannot be tried is no success.
#[test]
fn an_expectation_that_is_not_tried_is_not_kept() {
    let folder = Folder::new();
    let pact = r#"{"consumer": {"name": "newsletter"}, "provider": {"name": "orders"}, "interactions": [{
        "type": "Asynchronous/Messages", "description": "an order is confirmed",
        "contents": {"content": {"orderId": "o-9"}, "contentType": "application/json", "encoded": false},
        "matchingRules": {"body": {"$.orderId": {"combine": "AND", "matchers": [{"match": "type"}]}}}
    }], "metadata": {"pactSpecification": {"version": "4.0"}}}"#;
    let pact = folder.write("pacts/newsletter-orders.json", pact);
    let orders = folder.path("asyncapi/orders.yaml");
    let untried = tidings(["contracts", "verify", &pact, "--provider", &orders]);
    untried
        .ends(1)
        .tells("say which it is with `--message 'an order is confirmed=NAME'`");
    let meant = "an order is confirmed=order-confirmed.v1";
    let kept = tidings([
        "contracts",
        "verify",
        &pact,
        "--provider",
        &orders,
        "--message",
        meant,
    ]);
    kept.ends(0)
        .tells("kept: `newsletter` expects `an order is confirmed`");
    let loyalty = folder.path("asyncapi/loyalty.yaml");
    let others = tidings(["contracts", "verify", &pact, "--provider", &loyalty]);
    others.ends(1).says("no pact expects anything of `loyalty`");
    let odd = folder.write("pacts/odd.json", "{}");
    tidings(["contracts", "verify", &odd, "--provider", &orders])
        .ends(1)
        .says("TDG-9070");
}

//! `tidings contracts publish` and `verify URL`, against a server for tests that answers as a Pact broker does, with which
//! Pact's own command and verifier speak as well.

pub(crate) mod server;

use std::{fs, path::Path, process::Command};

use serde_json::{Value, json};
use tidings_testing::foreign::{self, PactLibrary, workspace};

use self::server::{PactBroker, Settings};
use crate::run::{Ran, command, ran};

const USER: &str = "teapot";
const PASSWORD: &str = "s3cret@of/the-broker";
/// The password as it is in a URL.
const PASSWORD_IN_URL: &str = "s3cret%40of%2Fthe-broker";
/// `teapot:s3cret@of/the-broker`.
const AUTHORIZATION: &str = "Basic dGVhcG90OnMzY3JldEBvZi90aGUtYnJva2Vy";

fn shop(path: &str) -> String {
    let path = workspace().join("shop/contracts").join(path);
    path.to_str().unwrap().to_owned()
}

/// A broker that lets in who has the password.
fn guarded() -> PactBroker {
    PactBroker::start(Settings {
        authorization: Some(AUTHORIZATION.to_owned()),
        ..Settings::default()
    })
}

fn let_in(mut command: Command) -> Command {
    command.env("PACT_BROKER_USERNAME", USER);
    command.env("PACT_BROKER_PASSWORD", PASSWORD);
    command
}

/// Runs it to its end. Whatever it says, the password is not in it.
#[track_caller]
fn discreet(command: Command) -> Ran {
    let ran = ran(command);
    let told = [&*ran.out, &*ran.err].concat();
    for password in [PASSWORD, PASSWORD_IN_URL] {
        assert!(!told.contains(password), "{ran:#?}");
    }
    ran
}

/// Runs it as one who is let in.
#[track_caller]
fn tidings(args: &[&str]) -> Ran {
    discreet(let_in(command([&["contracts"], args].concat())))
}

#[track_caller]
fn publish(broker: &PactBroker, pacts: &str, version: &[&str]) -> Ran {
    tidings(&[&["publish", pacts, "--to", &broker.url], version].concat())
}

#[track_caller]
fn verify(url: &str, document: &str, options: &[&str]) -> Ran {
    tidings(&[&["verify", url, "--provider", document], options].concat())
}

/// The results of the pacts of a consumer.
fn results(broker: &PactBroker, consumer: &str) -> Vec<Value> {
    let results = broker.state.results.lock();
    let of_consumer = results.iter().filter(|(of, _)| of == consumer);
    of_consumer.map(|(_, result)| result.clone()).collect()
}

fn branches(broker: &PactBroker) -> Vec<String> {
    broker.state.branches.lock().clone()
}

/// The document of orders, in which the amount is a text.
fn other_orders(folder: &Path) -> String {
    let text = fs::read_to_string(shop("published/orders.asyncapi.json")).unwrap();
    let mut document: Value = serde_json::from_str(&text).unwrap();
    let confirmed = &mut document["components"]["messages"]["order-confirmed.v1"];
    for example in confirmed["examples"].as_array_mut().unwrap() {
        example["payload"]["amount"] = "a lot".into();
    }
    let file = folder.join("orders.json");
    fs::write(&file, document.to_string()).unwrap();
    file.to_str().unwrap().to_owned()
}

#[test]
fn pacts_go_to_a_broker_and_are_verified_from_there() {
    let broker = guarded();
    let folder = tempfile::tempdir().unwrap();
    let orders = shop("published/orders.asyncapi.json");
    let other = other_orders(folder.path());
    let pacts = shop("pacts");
    let to = ["--version", "1.0.0", "--branch", "main"];
    let published = publish(&broker, &pacts, &to);
    published
        .ends(0)
        .tells("published: what `loyalty` 1.0.0 expects of `orders`");
    let count = fs::read_dir(&pacts).unwrap().count();
    assert_eq!(broker.state.pacts.lock().len(), count);
    assert!(branches(&broker).contains(&"loyalty/main/1.0.0".to_owned()));

    // What was never kept is pending to who says on which branch it is, and no problem yet.
    let pending = verify(&broker.url, &other, &["--branch", "main"]);
    pending
        .ends(0)
        .tells("broken (pending): `loyalty` expects `order-confirmed.v1`");
    let asked = broker.state.asked.lock()[0].clone();
    assert_eq!(
        asked,
        json!({"includePendingStatus": true, "providerVersionBranch": "main"})
    );
    assert_eq!(
        results(&broker, "loyalty").len(),
        0,
        "nobody asked it to publish"
    );

    let kept = verify(
        &broker.url,
        &orders,
        &["--publish", "2.0.0", "--branch", "main"],
    );
    kept.ends(0)
        .tells("kept (pending): `loyalty` expects `order-confirmed.v1` of `orders`")
        .says("the Pact broker knows what became of 5 pacts with `orders` 2.0.0");
    assert!(branches(&broker).contains(&"orders/main/2.0.0".to_owned()));
    let [result] = results(&broker, "loyalty").try_into().unwrap();
    assert_eq!(
        (&result["success"], &result["providerApplicationVersion"]),
        (&json!(true), &json!("2.0.0"))
    );
    assert_eq!(result["testResults"][0]["interactionId"], "loyalty-0");

    // Now it was kept, and to break it is a problem.
    let again = verify(
        &broker.url,
        &other,
        &["--branch", "main", "--publish", "3.0.0"],
    );
    again
        .ends(1)
        .says("TDG-9072")
        .tells("broken: `loyalty` expects")
        .tells("$.amount");
    let results = results(&broker, "loyalty");
    assert_eq!(results[1]["success"], false);
    let said = &results[1]["testResults"][0]["mismatches"][0]["description"];
    assert!(said.as_str().unwrap().contains("amount"), "{said}");

    let chosen = ["--selector", r#"{"mainBranch": true}"#, "--json"];
    let json = verify(&broker.url, &orders, &chosen).ends(0).json();
    assert_eq!(json["provider"], "orders");
    let asked = broker.state.asked.lock().last().unwrap().clone();
    assert_eq!(
        asked,
        json!({"includePendingStatus": false, "consumerVersionSelectors": [{"mainBranch": true}]})
    );
}

/// A broker's webhook says which pact is new: only that one is verified.
#[test]
fn one_pact_of_a_broker_is_verified_by_its_url() {
    let broker = guarded();
    let orders = shop("published/orders.asyncapi.json");
    publish(&broker, &shop("pacts"), &["--version", "1.0.0"]).ends(0);
    assert_eq!(branches(&broker), [""; 0]);
    let url = broker.pact_url("loyalty");
    // What a version is called is one part of a path.
    let to = ["--publish", "2.0 of a branch/x", "--branch", "a b"];
    let kept = verify(&url, &orders, &to);
    kept.ends(0).tells("kept: `loyalty`");
    assert!(!kept.out.contains("shipping"), "{kept:#?}");
    assert_eq!(results(&broker, "loyalty").len(), 1);
    assert_eq!(
        branches(&broker),
        ["orders/a%20b/2.0%20of%20a%20branch%2Fx"]
    );

    let payment = shop("published/payment.asyncapi.json");
    verify(&url, &payment, &["--publish", "1"])
        .ends(1)
        .says("is passed over: it is about `orders`")
        .says("no pact expects anything of `payment`");
    assert_eq!(results(&broker, "loyalty").len(), 1);
    verify(&url, &orders, &["--selector", "{}"])
        .ends(2)
        .says("--selector");
    verify(&url, &orders, &["--branch", "main"])
        .ends(2)
        .says("--publish");
}

#[test]
fn what_a_broker_refuses_is_told_with_what_to_do() {
    let broker = guarded();
    let folder = tempfile::tempdir().unwrap();
    let orders = shop("published/orders.asyncapi.json");
    let pact = shop("pacts/loyalty-orders.json");
    publish(&broker, &pact, &["--version", " "])
        .ends(1)
        .says("the pacts of `loyalty`")
        .says("400 Bad Request: pacticipantVersionNumber: must be filled (TDG-9073)");
    publish(&broker, &pact, &["--version", "1"]).ends(0);
    let text = fs::read_to_string(&pact).unwrap();
    let other = folder.path().join("loyalty-orders.json");
    fs::write(&other, text.replace("\"amount\"", "\"total\"")).unwrap();
    let other = other.to_str().unwrap();
    publish(&broker, other, &["--version", "1"]).ends(1).says(
        "409 Conflict: contracts: Cannot change the content of the pact for loyalty version 1",
    );
    let twice = tidings(&[
        "publish",
        &pact,
        other,
        "--to",
        &broker.url,
        "--version",
        "2",
    ]);
    twice
        .ends(1)
        .says("this is a second pact between `loyalty` and `orders`");
    assert_eq!(broker.state.pacts.lock()[0].version, "1");

    verify(&broker.url, &orders, &["--provider-name", "nobody"])
        .ends(1)
        .says("it knows no provider `nobody`")
        .says("--provider-name")
        .says("TDG-9073");
    verify(&broker.url, &orders, &["--provider-name", "loyalty"])
        .ends(1)
        .says("no pact expects anything of `loyalty`");
    verify(&broker.url, &orders, &["--selector", "main"])
        .ends(2)
        .says("mainBranch");
    verify(&pact, &orders, &["--publish", "1"])
        .ends(2)
        .says("`--publish` is for pacts of a Pact broker");
    tidings(&["verify", &broker.url, &pact, "--provider", &orders])
        .ends(2)
        .says("give one URL");

    // What is no Pact broker: nobody there, something else, and one that has moved.
    tidings(&[
        "publish",
        &pact,
        "--to",
        "http://127.0.0.1:1",
        "--version",
        "1",
    ])
    .ends(1)
    .says("it cannot be asked")
    .says("refused")
    .says("TDG-9073");
    tidings(&["publish", &pact, "--to", "ftp://pacts", "--version", "1"])
        .ends(2)
        .says("begins with `http://`");
    let nothing = format!("{}/nothing", broker.url);
    verify(&nothing, &orders, &[]).ends(1).says("404 Not Found");
    let provider = format!("{}/pacticipants/orders", broker.url);
    verify(&provider, &orders, &[])
        .ends(1)
        .says("it has no link `pb:provider-pacts-for-verification`");
    let moved = PactBroker::start(Settings {
        moved_to: Some(broker.url.clone()),
        ..Settings::default()
    });
    publish(&moved, &pact, &["--version", "9"])
        .ends(1)
        .says(&format!(
            "it leads on to {}: give the URL there",
            broker.url
        ));
    assert_eq!(broker.state.pacts.lock()[0].version, "1");
}

#[test]
fn credentials_are_shown_to_the_broker_alone() {
    let broker = guarded();
    let pact = shop("pacts/loyalty-orders.json");
    let with = |url: &str| command(["contracts", "publish", &pact, "--version", "1", "--to", url]);
    discreet(with(&broker.url))
        .ends(1)
        .says("it asks who you are (401): set PACT_BROKER_USERNAME and PACT_BROKER_PASSWORD, or PACT_BROKER_TOKEN");
    let mut wrong = with(&broker.url);
    wrong.env("PACT_BROKER_TOKEN", "t0ken");
    let wrong = discreet(wrong);
    wrong.ends(1).says("it does not accept the token");
    assert!(!wrong.err.contains("t0ken"), "{wrong:#?}");

    // In the URL, before those of the environment.
    let in_url = |url: &str, password: &str| {
        let mut command = with(&url.replace("://", &format!("://{USER}:{password}@")));
        command.env("PACT_BROKER_TOKEN", "t0ken");
        command
    };
    discreet(in_url(&broker.url, PASSWORD_IN_URL)).ends(0);
    let other = discreet(in_url(&broker.url, "s3cond"));
    other
        .ends(1)
        .says("it does not accept the user and the password");
    assert!(!other.err.contains("s3cond"), "{other:#?}");
    discreet(in_url("http://127.0.0.1:1", PASSWORD_IN_URL))
        .ends(1)
        .says("the Pact broker at http://127.0.0.1:1/: it cannot be asked");
    discreet(in_url("http://127.0.0.1:port", PASSWORD_IN_URL))
        .ends(2)
        .says("the URL of the Pact broker: invalid port number");

    let by_token = PactBroker::start(Settings {
        authorization: Some("Bearer t0ken".to_owned()),
        ..Settings::default()
    });
    let mut right = with(&by_token.url);
    right.env("PACT_BROKER_TOKEN", "t0ken");
    discreet(right).ends(0);
    let mut both = let_in(with(&by_token.url));
    both.env("PACT_BROKER_TOKEN", "t0ken");
    discreet(both)
        .ends(2)
        .says("set either PACT_BROKER_TOKEN or PACT_BROKER_USERNAME");

    // A broker whose links lead to another, which would get the password.
    let elsewhere = PactBroker::start(Settings::default());
    let leads = PactBroker::start(Settings {
        links_to: Some(elsewhere.url.clone()),
        ..Settings::default()
    });
    let led = publish(&leads, &pact, &["--version", "1"]);
    led.ends(1)
        .says("its link `pb:publish-contracts` leads to")
        .says("credentials are for");
    assert_eq!(elsewhere.state.pacts.lock().len(), 0);
}

/// What Pact's command publishes we verify, and what we publish Pact's verifier verifies.
#[test]
#[ignore = "needs Node"]
fn pacts_own_tools_and_ours_speak_with_the_same_broker() {
    let broker = guarded();
    let folder = tempfile::tempdir().unwrap();
    let theirs = folder.path().join("theirs");
    fs::create_dir(&theirs).unwrap();
    let written = foreign::pact_write(PactLibrary::JavaScript, &theirs).output();
    let written = written.unwrap();
    assert!(written.status.success(), "{written:?}");
    let put = let_in(foreign::pact_publish(&broker.url, "7.0.0", &theirs))
        .output()
        .unwrap();
    assert!(put.status.success(), "{put:?}");
    let stored = broker.state.pacts.lock().clone();
    let [stored] = stored.as_slice() else {
        panic!("{put:?}");
    };
    assert_eq!(
        (&*stored.consumer, &*stored.provider, &*stored.version),
        ("newsletter", "orders", "7.0.0")
    );
    assert_eq!(branches(&broker), ["newsletter/main/7.0.0"]);

    // A provider whose examples are those of the pact keeps it.
    let pact = fs::read(theirs.join("newsletter-orders.json")).unwrap();
    let pact: Value = serde_json::from_slice(&pact).unwrap();
    let body = |name: &str| {
        let all = pact["interactions"].as_array().unwrap();
        let it = all.iter().find(|it| it["description"] == name).unwrap();
        it["contents"]["content"].clone()
    };
    let names = ["order-confirmed.v1", "order-placed.v1"];
    let document = |bodies: [Value; 2]| {
        let messages = names.iter().zip(bodies).map(|(name, body)| {
            let examples = json!([{"name": "an order of customer-7", "payload": body}]);
            let message =
                json!({"name": name, "payload": {"type": "object"}, "examples": examples});
            ((*name).to_owned(), message)
        });
        let messages: serde_json::Map<String, Value> = messages.collect();
        let document = json!({
            "asyncapi": "3.0.0", "info": {"title": "orders", "version": "1.0.0"},
            "channels": {"orders": {"address": "order_events", "messages": messages}},
            "operations": {"say": {"action": "send", "channel": {"$ref": "#/channels/orders"}}},
        });
        let file = folder.path().join("orders.json");
        fs::write(&file, document.to_string()).unwrap();
        file.to_str().unwrap().to_owned()
    };
    let kept = document(names.map(&body));
    verify(&broker.url, &kept, &["--publish", "1"])
        .ends(0)
        .tells("kept: `newsletter` expects `order-confirmed.v1` (an order of customer-7)");
    let broken = document([json!({"orderId": 7}), body("order-placed.v1")]);
    verify(&broker.url, &broken, &["--publish", "2"]).ends(1);
    let all = results(&broker, "newsletter");
    let successes: Vec<&Value> = all.iter().map(|it| &it["success"]).collect();
    assert_eq!(successes, [true, false]);

    // The other way round: what loyalty expects was made of its types.
    broker.state.pacts.lock().clear();
    let pact = shop("pacts/loyalty-orders.json");
    publish(&broker, &pact, &["--version", "1.0.0"]).ends(0);
    let orders = fs::read_to_string(shop("published/orders.asyncapi.json")).unwrap();
    let orders: Value = serde_json::from_str(&orders).unwrap();
    let confirmed = &orders["components"]["messages"]["order-confirmed.v1"];
    let mut confirmed = confirmed["examples"][0]["payload"].clone();
    for (version, breaks) in [("3", false), ("4", true)] {
        if breaks {
            confirmed["amount"] = "a lot".into();
        }
        let messages = folder.path().join("messages.json");
        let sent = json!({"order-confirmed.v1": {"body": confirmed}});
        fs::write(&messages, sent.to_string()).unwrap();
        let verifier = foreign::pact_verify_from_broker(&broker.url, version, "orders", &messages);
        let verified = let_in(verifier).output().unwrap();
        let code = verified.status.code();
        assert_eq!(code, Some(i32::from(breaks)), "{verified:?}");
        let result = results(&broker, "loyalty").pop().unwrap();
        assert_eq!(
            (&result["success"], &result["providerApplicationVersion"]),
            (&json!(!breaks), &json!(version)),
            "{verified:?}"
        );
        // Pact's verifier says on which branch it is in the same way as we do.
        let branch = format!("orders/main/{version}");
        assert!(branches(&broker).contains(&branch), "{verified:?}");
    }
}

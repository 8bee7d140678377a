//! The contracts of the shop: `shop/contracts/published` has the document of each service, as it is deployed, and
//! `shop/contracts/pacts` what each expects of the others. A change that breaks a consumer fails here, and names it.
//!
//! After a change that is meant: `TIDINGS_CONTRACTS=record cargo test -p shop --test contracts`.

mod types;

use std::path::{Path, PathBuf};

use tidings_contracts::{
    Body, Contracts, Document,
    check::{self, Severity},
    pact::{Bodies, Outcome, Pact},
    published,
};
use tidings_testing::foreign::{self, PactLibrary};
use types::{contracts_of, maps, some};

/// The folder of the shop's contracts.
fn contracts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../contracts")
}

fn all() -> Vec<Contracts> {
    maps().into_iter().map(contracts_of).collect()
}

fn documents() -> Vec<Document> {
    let all = all();
    let documents = all.iter().map(|it| it.document().unwrap());
    documents.collect()
}

#[test]
fn the_contracts_are_those_that_are_published() {
    published::assert_published(&contracts().join("published"), &documents());
}

#[test]
fn the_shop_serves_the_document_of_all_services() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/asyncapi.json");
    let system = Document::system("The shop", &documents());
    if std::env::var_os(published::VARIABLE).is_some() {
        std::fs::write(&file, &system).unwrap();
    }
    assert!(
        std::fs::read_to_string(&file).unwrap() == system,
        "`{}` is not what the types say: run this with `{}=record`",
        file.display(),
        published::VARIABLE
    );
}

#[test]
fn the_services_understand_each_other_and_make_none_of_the_four_mistakes() {
    let documents = documents();
    let mut found = check::system(&documents);
    found.extend(check::lints(&documents));
    assert_eq!(found, [], "{found:#?}");
}

/// What a document says is what a reader of it gets, and each body is of its schema.
#[test]
fn documents_are_read_as_they_were_written() {
    for document in documents() {
        assert_eq!(Document::parse(&document.to_json()).unwrap(), document);
        for contract in document.sends.iter().chain(&document.receives) {
            let Body::Json(schema) = &contract.body else {
                panic!("{} has no schema", contract.name);
            };
            assert!(
                !contract.examples.is_empty(),
                "{} has no example",
                contract.name
            );
            let validator = jsonschema::draft7::new(schema).unwrap();
            for example in &contract.examples {
                let problem = validator.validate(&example.body).err();
                assert!(problem.is_none(), "{}: {problem:?}", contract.name);
            }
        }
    }
}

/// The document of the shop is taken apart again into those of its services.
#[test]
fn the_document_of_all_services_says_what_those_of_each_say() {
    let documents = documents();
    let read = Document::parse_all(&Document::system("The shop", &documents)).unwrap();
    let names = |all: &[Document]| -> Vec<String> {
        let all = all.iter();
        all.flat_map(|it| {
            it.sends
                .iter()
                .chain(&it.receives)
                .map(move |contract| (it, contract))
        })
        .map(|(it, contract)| format!("{} {}", it.service, contract.name))
        .collect()
    };
    assert_eq!(names(&read), names(&documents));
    assert_eq!(check::changes(&documents, &read, check::Rule::Full), []);
    assert_eq!(check::changes(&read, &documents, check::Rule::Full), []);
}

/// The schema of a message that orders sends.
fn sent_by_orders<'a>(documents: &'a mut [Document], name: &str) -> &'a mut serde_json::Value {
    let mut documents = documents.iter_mut();
    let orders = documents.find(|it| it.service == "orders").unwrap();
    let message = orders.sends.iter_mut().find(|it| it.name == name).unwrap();
    match &mut message.body {
        Body::Json(schema) => schema,
        other => panic!("{name} is JSON, not {other:?}"),
    }
}

/// Rename, retype, drop: each of what a consumer reads fails and names it; a field more breaks nobody.
#[test]
fn a_change_that_breaks_a_consumer_names_it() {
    let before = documents();
    let changed = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut now = before.clone();
        change(sent_by_orders(&mut now, "order-confirmed.v1"));
        let mut found = check::changes(&before, &now, check::Rule::Full);
        found.retain(|it| it.severity == Severity::Error);
        let mut broken: Vec<(Option<String>, Option<String>)> = found
            .into_iter()
            .map(|it| (it.consumer, it.field))
            .collect();
        broken.sort();
        broken.dedup();
        broken
    };
    let consumers = ["inventory", "loyalty", "notification", "shipping"];
    let all_of = |field: &str| -> Vec<(Option<String>, Option<String>)> {
        consumers.map(|it| (some(it), some(field))).to_vec()
    };
    let renamed = changed(&|schema| {
        let amount = schema["properties"]
            .as_object_mut()
            .unwrap()
            .remove("amount");
        schema["properties"]["total"] = amount.unwrap();
        let required = schema["required"].as_array_mut().unwrap();
        required.retain(|it| it != "amount");
    });
    let amount = ["inventory", "loyalty", "notification"];
    assert_eq!(renamed, amount.map(|it| (some(it), some("amount"))));
    let retyped = changed(&|schema| schema["properties"]["orderId"]["type"] = "integer".into());
    assert_eq!(retyped, all_of("orderId"));
    let dropped = changed(&|schema| {
        schema["properties"]
            .as_object_mut()
            .unwrap()
            .remove("customerId");
    });
    assert_eq!(dropped, [(some("loyalty"), some("customerId"))]);
    let more = changed(&|schema| {
        schema["properties"]["currency"] = serde_json::json!({"type": "string"});
    });
    assert_eq!(more, []);
}

/// The documents of the examples in Node and Python, which somebody wrote.
fn strangers() -> Vec<Document> {
    let files = [
        "01-article-node/order-service.asyncapi.yaml",
        "01-article-node/payment-service.asyncapi.yaml",
        "03-listen-python/asyncapi.yaml",
    ];
    let load = |file: &str| Document::load(&foreign::examples().join(file)).unwrap();
    files.into_iter().flat_map(load).collect()
}

/// Programs in other languages and the shop understand each other, and what these lack is told: dead letters.
#[test]
fn programs_in_other_languages_keep_the_contracts_of_the_shop() {
    let all = [documents(), strangers()].concat();
    assert_eq!(check::system(&all), []);
    let found = check::lints(&all);
    let mut lacks: Vec<(&str, &str)> = found.iter().map(|it| (&*it.service, it.rule)).collect();
    lacks.sort();
    let rule = "no-dead-letters";
    assert_eq!(lacks, [("article-payment", rule), ("listener", rule)]);
    // If the shop wrote the amount as a text, they are named as the shop's own services are.
    let before = all.clone();
    let mut now = all;
    let schema = sent_by_orders(&mut now, "order-placed.v1");
    schema["properties"]["amount"]["type"] = "string".into();
    let found = check::changes(&before, &now, check::Rule::Forward);
    for consumer in ["article-payment", "listener", "payment"] {
        let named = |it: &check::Finding| it.consumer.as_deref() == Some(consumer);
        assert!(found.iter().any(named), "{consumer}: {found:#?}");
    }
}

/// Who expects what of whom.
const PACTS: [(&str, &str, &[&str]); 6] = [
    ("loyalty", "orders", &["order-confirmed.v1"]),
    (
        "notification",
        "orders",
        &["order-cancelled.v1", "order-confirmed.v1"],
    ),
    (
        "payment",
        "orders",
        &["order-placed.v1", "order-cancelled.v1"],
    ),
    (
        "inventory",
        "orders",
        &[
            "order-placed.v1",
            "order-confirmed.v1",
            "order-cancelled.v1",
        ],
    ),
    ("shipping", "orders", &["order-confirmed.v1"]),
    (
        "orders",
        "payment",
        &[
            "payment-authorized.v1",
            "payment-declined.v1",
            "payment-refunded.v1",
        ],
    ),
];

#[tokio::test]
async fn providers_keep_the_pacts_of_their_consumers() {
    let all = all();
    let documents = documents();
    for (consumer, provider, messages) in PACTS {
        let of = |name: &str| documents.iter().position(|it| it.service == name).unwrap();
        let pact = all[of(consumer)].pact(provider, messages).unwrap();
        let file = contracts().join("pacts").join(pact.file_name());
        if std::env::var_os(published::VARIABLE).is_some() {
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, pact.to_pact()).unwrap();
        }
        let published = std::fs::read_to_string(&file).unwrap_or_default();
        assert!(
            published == pact.to_pact(),
            "{} is not what `{consumer}` reads: run this with `{}=record`",
            file.display(),
            published::VARIABLE
        );
        let bodies = Bodies::of(&documents[of(provider)]);
        for verified in Pact::load(&file).unwrap().verify(&bodies).await {
            assert_eq!(verified.outcome, Outcome::Kept, "{verified:?}");
        }
    }
}

#[test]
#[ignore = "needs Node"]
fn the_official_parser_of_asyncapi_accepts_every_document() {
    let mut files: Vec<PathBuf> = std::fs::read_dir(contracts().join("published"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/asyncapi.json"));
    let article = foreign::examples().join("01-article-node");
    files.push(article.join("order-service.asyncapi.yaml"));
    files.push(article.join("payment-service.asyncapi.yaml"));
    files.push(foreign::examples().join("03-listen-python/asyncapi.yaml"));
    let output = foreign::asyncapi(&files).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}");
}

#[test]
#[ignore = "needs Node and Python"]
fn pacts_own_verifiers_accept_our_pacts_and_refuse_another_body() {
    let folder = tempfile::tempdir().unwrap();
    let pact = contracts().join("pacts/loyalty-orders.json");
    let orders = documents()
        .into_iter()
        .find(|it| it.service == "orders")
        .unwrap();
    let body = orders.sent("order-confirmed.v1").unwrap().examples[0]
        .body
        .clone();
    let verify = |library: PactLibrary, body: &serde_json::Value| {
        let messages = folder.path().join("messages.json");
        let text = serde_json::json!({"order-confirmed.v1": {"body": body}}).to_string();
        std::fs::write(&messages, text).unwrap();
        let output = foreign::pact_verify(library, &pact, &messages)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    for library in PactLibrary::ALL {
        let (code, printed) = verify(library, &body);
        assert_eq!(code, Some(0), "{library:?}: {printed}");
        let mut other = body.clone();
        other["amount"] = "a lot".into();
        let (code, printed) = verify(library, &other);
        assert_eq!(code, Some(1), "{library:?}: {printed}");
        assert!(printed.contains("amount"), "{library:?}: {printed}");
    }
}

//! The catalogue of a small system: what its pages say, where their links lead, and whether people can use them.

mod system;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde_json::{Value, json};
use tidings_contracts::{
    Body, Contract, Document, Example, MessageKind,
    catalogue::{Catalogue, Page},
};
use tidings_testing::foreign::axe;

fn pages(documents: &[Document]) -> BTreeMap<String, String> {
    let pages = Catalogue::new("The shop", documents).pages();
    let count = pages.len();
    let by_path: BTreeMap<String, String> =
        pages.into_iter().map(|it| (it.path, it.html)).collect();
    assert_eq!(by_path.len(), count, "two pages have one path");
    by_path
}

/// The text of HTML, each element's on its own.
fn words(html: &str) -> Vec<String> {
    let mut words = Vec::new();
    let html = html.split_once("<body>").map_or(html, |(_, body)| body);
    for part in html.split('<').skip(1) {
        let text = part.split_once('>').map_or("", |(_, text)| text).trim();
        if !text.is_empty() {
            let plain = text
                .replace("&lt;", "<")
                .replace("&gt;", ">")
                .replace("&quot;", "\"");
            words.push(plain.replace("&#39;", "'").replace("&amp;", "&"));
        }
    }
    words
}

/// What stands between the first of `from` and the next of `to`.
#[track_caller]
fn between<'a>(html: &'a str, from: &str, to: &str) -> &'a str {
    let (_, rest) = html
        .split_once(from)
        .unwrap_or_else(|| panic!("no {from:?} in {html}"));
    rest.split_once(to)
        .unwrap_or_else(|| panic!("no {to:?} after {from:?}"))
        .0
}

fn attributes<'a>(html: &'a str, name: &str) -> Vec<&'a str> {
    let start = format!(" {name}=\"");
    let values = html.split(&start).skip(1);
    values
        .map(|it| it.split('"').next().unwrap_or_default())
        .collect()
}

/// The table of fields: its head, and for each path its type, a word for each consumer, and what it means.
fn rows(html: &str) -> (Vec<String>, BTreeMap<String, Vec<String>>) {
    let table = between(html, "<table class=\"fields\">", "</table>");
    let head = words(between(table, "<thead>", "</thead>"));
    let rows = between(table, "<tbody>", "</tbody>").split("<tr>").skip(1);
    let rows = rows.map(|row| {
        let path = attributes(row, "title")[0].to_owned();
        let kind = words(&row[row.find("<span class=\"type\"").unwrap()..]).remove(0);
        let cells = row.split("<td").skip(1);
        let cells = cells.map(|cell| words(&format!("<td{cell}")).join(" "));
        (path, std::iter::once(kind).chain(cells).collect())
    });
    (head, rows.collect())
}

#[test]
fn a_messages_page_says_which_consumer_reads_which_field() {
    let pages = pages(&system::documents());
    let page = &pages["messages/order-placed.v2.html"];
    let (head, rows) = rows(page);
    assert_eq!(head, ["Field", "payment", "newsletter", "What it means"]);
    for (field, expected) in [
        ("orderId", ["text", "needed", "–", "The order."]),
        ("customer", ["object", "–", "needed", ""]),
        // The newsletter asks for a format that orders does not promise.
        (
            "customer.email",
            ["text", "–", "does not fit", "Where to write to."],
        ),
        ("customer.name", ["text", "–", "does not fit", ""]),
        (
            "items",
            [
                "list of objects",
                "needed",
                "–",
                "What was ordered. 1 to 50 items",
            ],
        ),
        ("items[].sku", ["text", "any value", "–", "Which product."]),
        (
            "items[].quantity",
            ["integer", "any value", "–", "1 to 99; uint32"],
        ),
        (
            "total.currency",
            ["text", "needed", "–", "matches ^[A-Z]{3}$"],
        ),
        (
            "note",
            [
                "text or null",
                "if there",
                "–",
                "What the customer wrote. at most 500 characters",
            ],
        ),
        ("method.by", ["text", "–", "–", "one of card , invoice"]),
        (
            "method.days",
            ["integer, may be left out", "–", "–", "0 to 255; uint8"],
        ),
        (
            "campaigns",
            [
                "list of texts",
                "–",
                "if there",
                "From which campaigns the customer came.",
            ],
        ),
        (
            "coupon",
            [
                "text, never sent",
                "–",
                "does not fit",
                "What it sends along.",
            ],
        ),
    ] {
        assert_eq!(rows[field], expected, "{field}");
    }
    let email = between(page, "<code title=\"customer.email\">", "</th>");
    assert!(words(email).contains(&"sensitive".to_owned()), "{email}");
    assert_eq!(page.matches(">sensitive<").count(), 1);
    let summary = words(between(page, "<ul class=\"summary\">", "</ul>")).join(" ");
    let payment = "payment : needs 5 of 19 fields, reads 6 more";
    assert!(summary.contains(payment), "{summary}");
    let misfits = words(between(page, "id=\"misfits\"", "</section>")).join(" ");
    for field in ["coupon", "customer.name", "customer.email"] {
        assert!(misfits.contains(field), "{misfits}");
    }
}

#[test]
fn a_messages_page_says_what_it_is_and_who_has_to_do_with_it() {
    let pages = pages(&system::documents());
    let page = words(&pages["messages/order-placed.v2.html"]).join("\n");
    for said in [
        "OrderPlaced",
        "A customer has placed an order. Nothing is paid or packed yet.",
        "at most 8 KiB; the largest example has 274 bytes",
        "payment.order-placed.v2",
        "dead letters in\npayment.order-placed.v2.dead",
        "whether it is acknowledged is not said",
        "on invoice",
        "\"note\": \"Leave it <at the door> & ring\"",
        "\"email\": \"***\"",
        "As newsletter reads it",
    ] {
        assert!(page.contains(said), "{said:?} is not in {page}");
    }
    assert!(
        !page.contains("ada@example.org"),
        "a sensitive value is shown"
    );

    let old = &pages["messages/order-placed.v1.html"];
    let text = words(old).join(" ");
    for said in [
        "deprecated, ends 2027-01-31",
        "Deprecated since 2026-11-01: do not begin to use it. It is sent until 2027-01-31. Use order-placed.v2 instead.",
        "application/vnd.apache.avro;version=1.9.0",
        "accounting : its document does not say which fields it reads",
    ] {
        assert!(text.contains(said), "{said:?} is not in {text}");
    }
    let versions = between(old, "<dt>Versions</dt>", "</dd>");
    assert_eq!(
        attributes(versions, "href"),
        ["../messages/order-placed.v2.html"]
    );

    let index = words(&pages["index.html"]).join(" ");
    for said in [
        "4 messages between 4 services",
        "order-placed.v1 event deprecated, ends 2027-01-31 does not fit A customer has placed an order. Sent by orders Received by accounting",
        "order-placed.v2 event does not fit A customer has placed an order. Sent by orders Received by payment , newsletter",
        "send-parcel.v1 command Send the parcel of an order. Sent by orders Received by accounting",
        "payment 1.4.0 Takes the money for every order that is placed, once. sends 1, receives 1",
        "Event map",
    ] {
        assert!(index.contains(said), "{said:?} is not in {index}");
    }
    let service = words(&pages["services/payment.html"]).join(" ");
    for said in [
        "1.4.0",
        "payment-settled.v1",
        "order-placed.v2",
        "payment.order-placed.v2.dead",
    ] {
        assert!(service.contains(said), "{said:?} is not in {service}");
    }
}

#[test]
fn the_event_map_is_drawn_of_what_documents_say_or_of_what_is_given() {
    let documents = system::documents();
    let drawn = |catalogue: &Catalogue<'_>| {
        let page = catalogue.pages().remove(0);
        words(between(&page.html, "<svg xmlns", "</svg>"))
    };
    let of_documents = drawn(&Catalogue::new("The shop", &documents));
    for name in [
        "orders",
        "payment",
        "newsletter",
        "accounting",
        "order-placed.v2",
        "send-parcel.v1",
    ] {
        let count = of_documents.iter().filter(|it| *it == name).count();
        assert_eq!(count, 1, "{name} in {of_documents:?}");
    }
    let json = r#"{"format": 1, "services": [{"name": "fulfilment", "emits": [{"message": "packed.v1", "kind": "event"}]}]}"#;
    let map = tidings::event_map::EventMap::from_json(json).unwrap();
    let given = drawn(&Catalogue::new("The shop", &documents).map(map));
    assert!(
        given.contains(&"fulfilment".to_owned()) && !given.contains(&"orders".to_owned()),
        "{given:?}"
    );
}

/// Documents whose every text is meant to become something else.
fn hostile() -> Vec<Document> {
    let names = [
        "<script>alert(1)</script>",
        "x\" onmouseover=\"alert(1)",
        "../../index",
        "\"'&<b>",
        "a\u{202e}b\0c",
        "..",
        "A.v1",
        "a.v1",
        "con",
    ];
    let mut documents = Vec::new();
    for name in names {
        let mut contract = Contract::new(name, MessageKind::Event, name);
        let text = || {
            Some(format!(
                "{name} `{name}` </style></script>\n\n<img src=http://example.org onerror=alert(1)>"
            ))
        };
        contract.title = text();
        contract.description = text();
        contract.queue = text();
        contract.dead_letters = text();
        contract.older = vec![name.to_owned()];
        contract.sensitive = vec![name.to_owned()];
        contract.body = Body::Json(json!({
            "type": ["object", name],
            "required": [name],
            "properties": {
                (name): { "description": name, "pattern": name, "enum": [name], "title": name, (name): name },
                "itself": { "$ref": "#/definitions/it" },
            },
            "definitions": { "it": { "properties": { "again": { "$ref": "#/definitions/it" } } } },
        }));
        contract.examples = vec![Example {
            name: text(),
            body: json!({ (name): [name], "other": name }),
        }];
        contract.deprecated = Some(tidings_contracts::Deprecation {
            since: name.to_owned(),
            until: text(),
            instead: Some(name.to_owned()),
        });
        let mut document = Document::new(name, name);
        document.description = text();
        document.sends.push(contract.clone());
        contract.body = Body::Other(name.to_owned());
        document.receives.push(contract.clone());
        contract.body = Body::Json(
            json!({ "type": "object", "required": ["other"], "properties": { "other": { "not": name } } }),
        );
        document.receives.push(contract);
        documents.push(document);
    }
    documents
}

#[test]
fn nothing_in_a_document_becomes_markup_or_a_way_out_of_the_folder() {
    let documents = hostile();
    let title = "<script>alert(1)</script>";
    let tags = |html: &str| -> BTreeMap<String, usize> {
        let mut tags = BTreeMap::new();
        for tag in html.split('<').skip(1) {
            let end = tag.find([' ', '>', '\n']).unwrap_or(tag.len());
            *tags.entry(tag[..end].to_owned()).or_default() += 1;
        }
        tags
    };
    let pages = Catalogue::new(title, &documents).pages();
    assert_eq!(pages.len(), 1 + 2 * documents.len());
    for Page { path, html, .. } in &pages {
        let tags = tags(html);
        for tag in ["script", "img", "b", "/style"] {
            let expected = match (tag, &**path) {
                ("script", "index.html") | ("/style", _) => 1,
                _ => 0,
            };
            // The picture on the first page has a style of its own.
            let expected = expected + usize::from(tag == "/style" && path == "index.html");
            assert_eq!(
                tags.get(tag).copied().unwrap_or_default(),
                expected,
                "{tag} in {path}"
            );
        }
        assert!(!html.contains(['\0', '\u{202e}']), "{path}");
        assert_eq!(html.matches("<!doctype").count(), 1);
        // Outside of what is quoted there is only what the catalogue itself writes.
        for tag in html
            .split('<')
            .skip(1)
            .filter_map(|it| it.split('>').next())
        {
            let own: Vec<&str> = tag.split('"').step_by(2).collect();
            assert!(!own.concat().contains(" on"), "{tag} in {path}");
        }
    }
    check_links(&pages);
}

#[test]
fn a_schema_without_an_end_ends_and_says_so() {
    // Each refers to the next twice, 40 times: more places than there are atoms to store them in.
    let mut definitions = serde_json::Map::new();
    for at in 0..40 {
        let next = json!({ "$ref": format!("#/definitions/d{}", at + 1) });
        let of = json!({ "type": "object", "allOf": [next, next], "properties": { "a": next, "b": next } });
        definitions.insert(format!("d{at}"), of);
    }
    definitions.insert("d40".to_owned(), json!({ "$ref": "#/definitions/d40" }));
    let mut contract = Contract::new("grown.v1", MessageKind::Event, "grown");
    contract.body = Body::Json(json!({ "$ref": "#/definitions/d0", "definitions": definitions }));
    let mut document = Document::new("garden", "1.0.0");
    document.sends.push(contract);
    let pages = pages(&[document]);
    let page = &pages["messages/grown.v1.html"];
    assert!(
        page.contains("There is more than is shown here"),
        "{}",
        page.len()
    );
    assert!(page.len() < 2_000_000, "{}", page.len());
}

#[test]
fn links_lead_to_pages_that_are_there_and_nothing_is_loaded_from_elsewhere() {
    check_links(&Catalogue::new("The shop", &system::documents()).pages());
}

#[track_caller]
fn check_links(pages: &[Page]) {
    let paths: BTreeSet<&str> = pages.iter().map(|it| &*it.path).collect();
    let ids: BTreeMap<&str, BTreeSet<&str>> = pages
        .iter()
        .map(|it| (&*it.path, attributes(&it.html, "id").into_iter().collect()))
        .collect();
    for Page { path, html, .. } in pages {
        assert_eq!(
            attributes(html, "id").len(),
            ids[&**path].len(),
            "an id is twice in {path}"
        );
        let links = attributes(html, "href");
        assert!(links.len() > 3, "{path} has no links");
        for link in links {
            let (file, part) = link
                .split_once('#')
                .map_or((link, None), |(file, part)| (file, Some(part)));
            let target = match (file, file.strip_prefix("../")) {
                ("", _) => path,
                (_, Some(file)) if path.contains('/') => file,
                (file, _) => file,
            };
            assert!(paths.contains(target), "{link:?} in {path}");
            assert!(
                part.is_none_or(|it| ids[target].contains(it)),
                "{link:?} in {path}"
            );
        }
        assert_eq!(attributes(html, "src").len(), 0, "{path}");
        for elsewhere in [
            "@import", "url(http", "<link", "<iframe", "<object", "<base",
        ] {
            assert!(!html.contains(elsewhere), "{elsewhere} in {path}");
        }
        assert!(html.contains("content=\"default-src 'none'; "), "{path}");
    }
}

#[test]
fn a_catalogue_that_is_written_again_leaves_no_page_of_what_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let documents = system::documents();
    let shop = Catalogue::new("The shop", &documents);
    let count = shop.write(folder.path()).unwrap();
    assert_eq!(count, shop.pages().len());
    for page in shop.pages() {
        assert_eq!(
            std::fs::read_to_string(folder.path().join(&page.path)).unwrap(),
            page.html
        );
    }
    let own = folder.path().join("messages/notes.html");
    std::fs::write(&own, "<p>ours</p>").unwrap();
    let fewer = Catalogue::new("The shop", &documents[..1]);
    assert_eq!(fewer.write(folder.path()).unwrap(), fewer.pages().len());
    let files = |part: &str| -> BTreeSet<String> {
        let all = std::fs::read_dir(folder.path().join(part)).unwrap();
        all.map(|it| it.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    assert_eq!(files("services"), ["orders.html".to_owned()].into());
    assert!(files("messages").contains("notes.html"));
    let file = folder.path().join("no-folder");
    std::fs::write(&file, "").unwrap();
    let error = shop.write(&file).unwrap_err();
    assert!(error.to_string().contains("no-folder"), "{error}");
}

/// Where pictures of the pages are put, for people who change how they look.
const PICTURES: &str = "TIDINGS_TEST_PICTURES";

#[test]
#[ignore = "needs Chromium and Node"]
fn people_can_use_the_pages_on_phone_and_desk_by_day_and_by_night() {
    let folder = tempfile::tempdir().unwrap();
    let documents = system::documents();
    Catalogue::new("The shop", &documents)
        .write(folder.path())
        .unwrap();
    let strange = folder.path().join("strange");
    Catalogue::new("<Strange>", &hostile())
        .write(&strange)
        .unwrap();
    let files = [
        "index.html",
        "messages/order-placed.v2.html",
        "messages/order-placed.v1.html",
        "services/orders.html",
    ];
    let mut files: Vec<_> = files.iter().map(|it| folder.path().join(it)).collect();
    // The filter is hidden until its script runs, which the page's policy allows it alone: axe sees a field
    // without a label only then.
    let unlabelled = strange.join("index.html");
    let index = std::fs::read_to_string(&unlabelled).unwrap();
    std::fs::write(
        &unlabelled,
        index.replace("<label for=\"filter\">Filter</label>", ""),
    )
    .unwrap();
    files.push(unlabelled.clone());
    let pictures = std::env::var_os(PICTURES);
    let output = axe(&files, pictures.as_deref().map(Path::new))
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let mut labels = 0;
    for line in stdout.lines() {
        let finding: Value = serde_json::from_str(line).unwrap();
        let is_expected =
            finding["page"] == unlabelled.to_str().unwrap() && finding["rule"] == "label";
        labels += usize::from(is_expected);
        assert!(is_expected, "{finding:#}");
    }
    assert_eq!(
        labels, 4,
        "the filter's script did not run: {stdout} {stderr}"
    );
}

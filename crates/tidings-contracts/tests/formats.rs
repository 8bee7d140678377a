//! Contracts of messages in Avro and Protocol Buffers: the same documents and the same checks as for JSON.

use apache_avro::{
    AvroSchema, Schema, reader::datum::GenericDatumReader, types::Value as Datum,
    writer::datum::GenericDatumWriter,
};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tidings::{Event, Router, event_map::EventMap};
use tidings_contracts::{
    Body, Contract, Contracts, Document, MessageKind,
    check::{self, Finding, Rule, Severity},
};

fn documents(written: &Body, read: &Body) -> [Document; 2] {
    let contract = |body: &Body| {
        let mut contract = Contract::new("order-placed.v1", MessageKind::Event, "order-placed.v1");
        contract.body = body.clone();
        contract
    };
    let mut orders = Document::new("orders", "1.0.0");
    orders.sends.push(contract(written));
    let mut loyalty = Document::new("loyalty", "1.0.0");
    loyalty.receives.push(contract(read));
    [orders, loyalty]
}

/// What the check says about a writer and a reader: of each finding its consumer and what it says.
fn told(written: &Body, read: &Body) -> Vec<String> {
    let found = check::system(&documents(written, read));
    let errors = found.iter().filter(|it| it.severity == Severity::Error);
    errors.map(Finding::to_string).collect()
}

fn expect(written: &Body, read: &Body, parts: &[&str]) {
    let told = told(written, read);
    assert_eq!(told.is_empty(), parts.is_empty(), "{told:?}");
    for part in parts {
        assert!(
            told.iter().any(|it| it.contains(part)),
            "`{part}` in {told:?}"
        );
    }
    if !parts.is_empty() {
        assert!(told.iter().any(|it| it.contains("`loyalty`")), "{told:?}");
    }
}

fn record(fields: &[Value]) -> Body {
    Body::Avro(json!({"type": "record", "name": "OrderPlaced", "fields": fields}))
}

fn field(name: &str, kind: impl Into<Value>) -> Value {
    json!({"name": name, "type": kind.into()})
}

#[test]
fn avro_is_checked_by_avros_rules() {
    let id = || field("orderId", "string");
    let written = record(&[id(), field("cents", "long")]);
    // What is there is read, in any order; what is more does not disturb.
    expect(&written, &record(&[field("cents", "long"), id()]), &[]);
    expect(&written, &record(&[id()]), &[]);
    // A field that is not written needs a default.
    let more = |field: Value| record(&[id(), field]);
    let colour = json!({"name": "colour", "type": "string", "default": "white"});
    expect(&written, &more(colour), &[]);
    expect(
        &written,
        &more(field("colour", "string")),
        &["`colour` is never written"],
    );
    // Or another name by which the writer knows it.
    let total = json!({"name": "total", "type": "long", "aliases": ["amount", "cents"]});
    expect(&written, &more(total), &[]);
    expect(&written, &more(field("total", "long")), &["`total`"]);
    // Numbers are promoted, and never cut.
    expect(&written, &more(field("cents", "double")), &[]);
    expect(&written, &more(field("cents", "int")), &["`cents`"]);
    expect(
        &record(&[id(), field("cents", "double")]),
        &more(field("cents", "float")),
        &["`cents`"],
    );
    expect(
        &written,
        &more(field("cents", "string")),
        &["`cents` is written as `long` and read as `string`"],
    );
    // Every branch of a union has to be read.
    let optional = |kind: &str| field("cents", json!(["null", kind]));
    expect(&written, &more(optional("long")), &[]);
    expect(
        &more(optional("long")),
        &more(field("cents", "long")),
        &["`cents`"],
    );
    // An enumeration is read with the symbols that are known, or has a default.
    let channel = |symbols: &[&str], default: Option<&str>| {
        let mut kind = json!({"type": "enum", "name": "Channel", "symbols": symbols});
        if let Some(default) = default {
            kind["default"] = default.into();
        }
        more(field("channel", kind))
    };
    let three = channel(&["WEB", "SHOP", "APP"], None);
    expect(&channel(&["WEB"], None), &three, &[]);
    expect(
        &three,
        &channel(&["WEB", "SHOP"], None),
        &["`channel` is written as `APP`"],
    );
    expect(
        &three,
        &more(field("channel", "string")),
        &["an enumeration"],
    );
    expect(&three, &channel(&["WEB", "SHOP"], Some("WEB")), &[]);
}

#[test]
fn avro_types_have_names_and_may_contain_themselves() {
    let tree = |kind: &str, further: &[Value]| {
        let mut fields = vec![
            field("value", kind),
            field("children", json!({"type": "array", "items": "Node"})),
        ];
        fields.extend_from_slice(further);
        let node = json!({"type": "record", "name": "Node", "namespace": "shop", "fields": fields});
        record(&[field("root", node), field("other", "shop.Node")])
    };
    expect(&tree("int", &[]), &tree("long", &[]), &[]);
    expect(
        &tree("long", &[]),
        &tree("int", &[]),
        &["`root.value`", "`other.value`"],
    );
    expect(
        &tree("int", &[]),
        &tree("int", &[field("note", "string")]),
        &[
            "`root.note` is never written",
            "`other.note` is never written",
        ],
    );
}

/// Ten thousand types, each with the one before: a document is a stranger's.
#[test]
fn what_is_nested_without_measure_is_told_and_ends() {
    let avro = |innermost: &str| {
        let types = (0..10_000).map(|level| {
            let inner = match level {
                0 => innermost.to_owned(),
                _ => format!("R{}", level - 1),
            };
            let fields = json!([{"name": "r", "type": inner}]);
            let kind = json!({"type": "record", "name": format!("R{level}"), "fields": fields});
            field(&format!("f{level}"), kind)
        });
        record(&types.collect::<Vec<_>>())
    };
    expect(
        &avro("int"),
        &avro("string"),
        &["nested deeper than 64 levels"],
    );
    let mut proto = String::from("syntax = \"proto3\";\nmessage M0 { int64 value = 1; }\n");
    for level in 0..10_000 {
        proto += &format!("message M{} {{ M{level} m = 1; }}\n", level + 1);
    }
    let proto = |kind: &str| Body::Protobuf {
        file: proto.replace("int64", kind),
        message: "M10000".to_owned(),
    };
    expect(
        &proto("int64"),
        &proto("string"),
        &["nested deeper than 64 levels"],
    );
}

fn proto(fields: &str) -> Body {
    Body::Protobuf {
        file: format!(
            "syntax = \"proto3\";\npackage shop;\n\
             enum Channel {{ WEB = 0; SHOP = 1; }}\nenum Wider {{ ANY = 0; SOME = 1; APP = 2; }}\n\
             message Item {{ string sku = 1; }}\nmessage Named {{ string name = 1; string sku = 2; }}\n\
             message OrderPlaced {{ {fields} }}"
        ),
        message: "shop.OrderPlaced".to_owned(),
    }
}

#[test]
fn protobuf_is_checked_by_its_numbers() {
    let check = |written: &str, read: &str, parts: &[&str]| {
        expect(&proto(written), &proto(read), parts);
    };
    check("int64 cents = 1;", "int64 total = 1;", &[]);
    check("int64 cents = 1; string note = 2;", "int64 cents = 1;", &[]);
    check(
        "int64 cents = 1;",
        "int64 cents = 2;",
        &["`cents` is never written"],
    );
    check("int64 cents = 1;", "optional int64 total = 2;", &[]);
    check(
        "optional int64 cents = 1;",
        "int64 cents = 1;",
        &["`cents` may be left out"],
    );
    check("int32 cents = 1;", "int64 cents = 1;", &[]);
    check(
        "int64 cents = 1;",
        "int32 cents = 1;",
        &["written as `int64` and read as `int32`"],
    );
    check("int64 cents = 1;", "sint64 cents = 1;", &["`sint64`"]);
    check("int64 cents = 1;", "string cents = 1;", &["`string`"]);
    check(
        "repeated int64 cents = 1;",
        "int64 cents = 1;",
        &["a list of `int64`"],
    );
    check("repeated Item items = 1;", "repeated Item all = 1;", &[]);
    check(
        "repeated Item items = 1;",
        "repeated Named items = 1;",
        &["`items[].sku` is never written"],
    );
    check("Channel channel = 1;", "Wider channel = 1;", &[]);
    check(
        "Wider channel = 1;",
        "Channel channel = 1;",
        &["`APP` (2)", "`WEB`"],
    );
    check(
        "map<string, int64> all = 1;",
        "map<string, int32> all = 1;",
        &["`all.*`"],
    );
    check("map<string, int32> all = 1;", "Item all = 1;", &["a map"]);
    // Another format is another format.
    expect(
        &proto("int64 cents = 1;"),
        &record(&[field("cents", "long")]),
        &["written as Protocol Buffers and read as Avro"],
    );
}

/// A message that becomes Avro is read by whoever reads Avro already, and what waits in JSON by all.
#[test]
fn a_message_that_changes_its_format_breaks_who_reads_only_json() {
    let json = json!({"type": "object", "properties": {"cents": {"type": "integer"}}, "required": ["cents"]});
    let json = Body::Json(json);
    expect(&json, &record(&[field("cents", "double")]), &[]);
    expect(&json, &record(&[field("euros", "double")]), &["`euros`"]);
    expect(
        &record(&[field("cents", "long")]),
        &json,
        &["written as Avro and read as JSON"],
    );
}

/// The order was placed.
#[derive(Debug, Serialize, Deserialize, AvroSchema, Event)]
#[serde(rename_all = "camelCase")]
#[event(name = "order-placed.v1", format = "avro")]
struct OrderPlaced {
    /// Its number.
    order_id: String,
    cents: i64,
}

/// The parcel was sent.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize, Event)]
#[event(
    name = "order-sent.v1",
    format = "protobuf",
    proto_file = "proto/orders.proto",
    proto = "shop.v1.OrderPlaced"
)]
struct OrderSent {
    #[prost(string, tag = "1")]
    order_id: String,
    #[prost(int64, optional, tag = "3")]
    cents: Option<i64>,
}

/// A type that is not as its file says.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize, Event)]
#[event(
    name = "order-sent.v1",
    format = "protobuf",
    proto_file = "proto/orders.proto",
    proto = "shop.v1.OrderPlaced"
)]
struct OtherOrderSent {
    #[prost(string, tag = "7")]
    order_id: String,
}

fn contracts() -> Contracts {
    let router = Router::new("orders")
        .publishes::<OrderPlaced>()
        .publishes::<OrderSent>();
    Contracts::of(EventMap::of([&router]))
        .message_in_format::<OrderPlaced>()
        .example(&OrderPlaced {
            order_id: "o-1".to_owned(),
            cents: 5,
        })
        .message_in_format::<OrderSent>()
}

#[test]
fn a_service_says_what_its_types_say_and_its_document_is_read_again() {
    let sent = OrderSent {
        order_id: "o-1".to_owned(),
        cents: Some(5),
    };
    let contracts = contracts()
        .example(&sent)
        .uses::<OrderSent>("cents")
        .uses::<OrderPlaced>("cents");
    let document = contracts.document().expect("a document");
    let placed = document.sent("order-placed.v1").expect("it is sent");
    assert!(matches!(&placed.body, Body::Avro(_)));
    assert_eq!(placed.title.as_deref(), Some("OrderPlaced"));
    assert_eq!(placed.description.as_deref(), Some("The order was placed."));
    let text = document.to_json();
    let json: Value = serde_json::from_str(&text).expect("JSON");
    let message = &json["components"]["messages"]["order-placed.v1"];
    assert_eq!(message["contentType"], "application/avro");
    assert_eq!(
        message["payload"]["schemaFormat"],
        "application/vnd.apache.avro+json;version=1.9.0"
    );
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("orders.json");
    std::fs::write(&file, text).expect("a file");
    let read = Document::load(&file).expect("it is read");
    assert_eq!(read, [document]);
}

#[test]
#[ignore = "needs Node"]
fn the_official_parser_of_asyncapi_accepts_schemas_of_both_formats() {
    let folder = tempfile::tempdir().expect("a folder");
    let document = contracts().document().expect("a document").to_json();
    let judged = |name: &str, text: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, text).expect("a file");
        let output = tidings_testing::foreign::asyncapi([&file]).output();
        let output = output.expect("it runs");
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), printed)
    };
    let (is_accepted, printed) = judged("good.json", &document);
    assert!(is_accepted, "{printed}");
    // And it looks into them.
    for (was, is) in [
        (r#""type": "record""#, r#""type": "recorded""#),
        ("repeated Item items = 2;", "repeated Article items = 2;"),
    ] {
        let broken = document.replace(was, is);
        assert_ne!(broken, document, "{was}");
        let (is_accepted, printed) = judged("bad.json", &broken);
        assert!(!is_accepted, "{is}: {printed}");
    }
}

#[test]
fn what_a_type_says_wrongly_is_told() {
    let error = contracts()
        .uses::<OrderPlaced>("colour")
        .document()
        .expect_err("there is no colour");
    assert!(error.to_string().contains("colour"), "{error}");
    let router = Router::new("orders").publishes::<OtherOrderSent>();
    let contracts = Contracts::of(EventMap::of([&router]))
        .message_in_format::<OtherOrderSent>()
        .example(&OtherOrderSent {
            order_id: "o-1".to_owned(),
        });
    let error = contracts.document().expect_err("field 7").to_string();
    assert!(
        error.contains("a field 7") && error.contains("shop.v1.OrderPlaced"),
        "{error}"
    );
}

/// A change of a deployed service names whom it breaks.
#[test]
fn a_change_names_the_consumer_that_it_breaks() {
    let before = documents(
        &record(&[field("cents", "long")]),
        &record(&[field("cents", "long")]),
    );
    let mut now = before.clone();
    now[0] = documents(&record(&[field("total", "long")]), &before[0].sends[0].body)[0].clone();
    let found = check::changes(&before, &now, Rule::Full);
    let told: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(
        told.iter()
            .any(|it| it.contains("`loyalty`") && it.contains("`cents` is never written")),
        "{told:?}"
    );
}

/// A schema of Avro, not too deep.
fn schemas() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!("boolean")),
        Just(json!("int")),
        Just(json!("long")),
        Just(json!("double")),
        Just(json!("string")),
        proptest::sample::subsequence(vec!["A", "B", "C"], 1..=3)
            .prop_map(|symbols| json!({"type": "enum", "name": "E", "symbols": symbols})),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            inner
                .clone()
                .prop_map(|it| json!({"type": "array", "items": it})),
            inner
                .clone()
                .prop_map(|it| json!({"type": "map", "values": it})),
            inner.prop_map(|it| match it["type"] == "union" || it.is_array() {
                true => it,
                false => json!(["null", it]),
            }),
        ]
    })
}

/// A record of some of three fields, each with a default or without.
fn records() -> impl Strategy<Value = Value> {
    let fields = proptest::collection::vec((schemas(), any::<bool>(), 0..4_u8), 3);
    fields.prop_map(|fields| {
        let mut number = 0;
        let fields = fields.into_iter().zip(["a", "b", "c"]);
        let fields = fields.filter(|((_, _, dice), _)| *dice > 0);
        let fields: Vec<Value> = fields
            .map(|((mut kind, has_default, _), name)| {
                rename(&mut kind, &mut number);
                let mut field = json!({"name": name, "type": kind});
                if has_default && kind == json!("int") {
                    field["default"] = 7.into();
                }
                field
            })
            .collect();
        json!({"type": "record", "name": "R", "fields": fields})
    })
}

/// Names may be defined once.
fn rename(kind: &mut Value, number: &mut u32) {
    match kind {
        Value::Array(all) => all.iter_mut().for_each(|it| rename(it, number)),
        Value::Object(object) => {
            if object.contains_key("name") {
                *number += 1;
                object.insert("name".to_owned(), format!("E{number}").into());
            }
            for key in ["items", "values"] {
                if let Some(inner) = object.get_mut(key) {
                    rename(inner, number);
                }
            }
        }
        _ => {}
    }
}

/// Values at the limits of each place of a schema.
fn values(schema: &Schema) -> Vec<Datum> {
    match schema {
        Schema::Null => vec![Datum::Null],
        Schema::Boolean => vec![Datum::Boolean(true)],
        Schema::Int => vec![Datum::Int(i32::MIN), Datum::Int(i32::MAX)],
        Schema::Long => vec![Datum::Long(i64::MIN), Datum::Long(i64::MAX)],
        Schema::Double => vec![Datum::Double(0.5)],
        Schema::String => vec![Datum::String("x".to_owned())],
        Schema::Enum(kind) => (0..)
            .zip(&kind.symbols)
            .map(|(index, symbol)| Datum::Enum(index, symbol.clone()))
            .collect(),
        Schema::Array(array) => values(&array.items)
            .into_iter()
            .map(|it| Datum::Array(vec![it]))
            .collect(),
        Schema::Map(map) => values(&map.types)
            .into_iter()
            .map(|it| Datum::Map([("k".to_owned(), it)].into()))
            .collect(),
        Schema::Union(union) => (0..)
            .zip(union.variants())
            .flat_map(|(index, it)| {
                let all = values(it).into_iter();
                all.map(move |it| Datum::Union(index, Box::new(it)))
            })
            .collect(),
        Schema::Record(record) => {
            let each: Vec<Vec<Datum>> = record.fields.iter().map(|it| values(&it.schema)).collect();
            let most = each.iter().map(Vec::len).max().unwrap_or(1);
            (0..most.max(1))
                .map(|at| {
                    let fields = record.fields.iter().zip(&each);
                    let fields = fields
                        .map(|(field, all)| (field.name.clone(), all[at % all.len()].clone()));
                    Datum::Record(fields.collect())
                })
                .collect()
        }
        other => unreachable!("{other:?} is not made here"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// The check agrees with what Avro's own library reads.
    #[test]
    fn the_verdict_is_that_of_avros_own_library(written in records(), read in records()) {
        let verdict = told(&Body::Avro(written.clone()), &Body::Avro(read.clone()));
        let (written, read) = (Schema::parse(&written).unwrap(), Schema::parse(&read).unwrap());
        let writer = GenericDatumWriter::builder(&written).build().unwrap();
        let reader = GenericDatumReader::builder(&written).reader_schema(&read).build().unwrap();
        let mut refused = Vec::new();
        for value in values(&written) {
            let datum = writer.write_value_to_vec(value.clone()).unwrap();
            if let Err(error) = reader.read_value(&mut &datum[..]) {
                refused.push(format!("{value:?}: {error}"));
            }
        }
        prop_assert_eq!(verdict.is_empty(), refused.is_empty(), "{:?} beside {:?}", verdict, refused);
    }
}

//! Messages in Avro and Protocol Buffers: what is written is read, also by another version, in JSON, or not at all, and says why.

use std::collections::HashMap;

use apache_avro::AvroSchema;
use serde::{Deserialize, Serialize};
use tidings::{BodySchema, Event, Message, Outgoing};
use tidings_formats::{
    avro,
    container::{self, ContainerError},
    proto_files::ProtoFile,
};

/// The order was placed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema, Event)]
#[serde(rename_all = "camelCase")]
#[event(name = "order-placed.v1", id = "order_id", format = "avro")]
struct OrderPlaced {
    order_id: String,
    items: Vec<Item>,
    cents: i64,
    customer: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, AvroSchema)]
struct Item {
    sku: String,
    quantity: i32,
}

fn placed() -> OrderPlaced {
    OrderPlaced {
        order_id: "o-1".to_owned(),
        items: vec![Item {
            sku: "tea".to_owned(),
            quantity: 2,
        }],
        cents: -1,
        customer: Some("c-7".to_owned()),
    }
}

/// What another service reads of it, written with the next version of the type.
mod elsewhere {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize, AvroSchema, Event)]
    #[serde(rename_all = "camelCase")]
    #[event(name = "order-placed.v1", format = "avro")]
    pub(super) struct OrderPlaced {
        pub(super) cents: f64,
        pub(super) order_id: String,
        #[avro(default = r#""web""#)]
        pub(super) channel: String,
    }
}

/// A reader that needs what nobody writes.
mod demanding {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize, AvroSchema, Event)]
    #[serde(rename_all = "camelCase")]
    #[event(name = "order-placed.v1", format = "avro")]
    pub(super) struct OrderPlaced {
        pub(super) order_id: String,
        pub(super) colour: String,
    }
}

#[test]
fn a_message_in_avro_has_its_schema_with_it() {
    let sent = Outgoing::new(&placed()).expect("it is written");
    assert_eq!(sent.envelope.content_type, "application/avro");
    assert_eq!(
        sent.envelope.id.as_ref().map(|it| it.as_str()),
        Some("order-placed.v1/o-1")
    );
    let read = container::read(&sent.envelope.body).expect("a container");
    assert_eq!(
        OrderPlaced::body_schema(),
        Some(BodySchema::Avro(read.schema.to_owned().into()))
    );
    let body = &sent.envelope.body;
    let own = OrderPlaced::from_body(body, "application/avro").expect("it is read");
    assert_eq!(own, placed());
    // The library of Avro's own project reads it as a file, without knowing anything.
    let values: Vec<_> = apache_avro::Reader::new(&body[..])
        .expect("a file")
        .collect::<Result<_, _>>()
        .expect("values");
    assert_eq!(values.len(), 1);
    assert_eq!(
        apache_avro::from_value::<OrderPlaced>(&values[0]).expect("an order"),
        placed()
    );
}

#[test]
fn another_version_is_resolved_by_names_with_defaults() {
    let body = placed().to_body().expect("it is written");
    for _ in 0..2 {
        let read = elsewhere::OrderPlaced::from_body(&body, "application/avro");
        assert_eq!(
            read.expect("it is read"),
            elsewhere::OrderPlaced {
                cents: -1.0,
                order_id: "o-1".to_owned(),
                channel: "web".to_owned(),
            }
        );
    }
    let error = demanding::OrderPlaced::from_body(&body, "application/avro");
    let error = error.expect_err("there is no colour").to_string();
    assert!(error.contains("colour"), "{error}");
}

#[test]
fn a_message_is_read_from_json_whatever_it_is_written_in() {
    let json = serde_json::to_vec(&placed()).expect("JSON");
    let json_types = ["application/json", "", "application/json; charset=utf-8"];
    // Also where an operator mended the body and nothing else.
    for content_type in json_types.into_iter().chain(["application/avro"]) {
        let read = OrderPlaced::from_body(&json, content_type);
        assert_eq!(read.expect("it is read"), placed());
    }
    let shown = avro::as_json(&placed().to_body().expect("it is written"));
    let shown: OrderPlaced = serde_json::from_str(&shown.expect("JSON")).expect("an order");
    assert_eq!(shown, placed());
    // And an Avro body, whatever somebody calls it.
    let body = placed().to_body().expect("it is written");
    for content_type in ["", "application/octet-stream", "application/json"] {
        let read = OrderPlaced::from_body(&body, content_type);
        assert_eq!(read.expect("it is read"), placed());
    }
}

#[test]
fn files_of_other_writers_are_read_if_they_are_one_message() {
    let schema = OrderPlaced::get_schema();
    let file = |codec, count: usize| {
        let writer = apache_avro::Writer::with_codec(&schema, Vec::new(), codec);
        let mut writer = writer.expect("a writer");
        for _ in 0..count {
            writer.append_ser(placed()).expect("it is written");
        }
        writer.into_inner().expect("a file")
    };
    let read = OrderPlaced::from_body(&file(apache_avro::Codec::Null, 1), "application/avro");
    assert_eq!(read.expect("it is read"), placed());
    let compressed = file(apache_avro::Codec::Deflate(Default::default()), 1);
    assert_eq!(
        container::read(&compressed),
        Err(ContainerError::Compressed("deflate".to_owned()))
    );
    let refused = |body: &[u8], part: &str| {
        let read = OrderPlaced::from_body(body, "application/avro");
        let error = read.expect_err("it is refused").to_string();
        assert!(error.contains(part), "{error}");
        assert_eq!(avro::as_json(body), None);
    };
    refused(&compressed, "with the codec `null`");
    for count in [0, 2] {
        refused(&file(apache_avro::Codec::Null, count), "a message is one");
    }
}

/// A body brings its schema along, so it may be anybody's.
#[test]
fn a_strangers_schema_cannot_use_up_stack_or_memory() {
    let refused = |schema: &str, datum: &[u8], part: &str| {
        let body = container::write(schema, datum);
        let read = OrderPlaced::from_body(&body, "application/avro");
        let error = read.expect_err("it is refused").to_string();
        assert!(error.contains(part), "{error}");
        assert_eq!(avro::as_json(&body), None);
    };
    // Without end, in no bytes at all; and one level for each byte.
    let endless =
        r#"{"type":"record","name":"R","namespace":"x","fields":[{"name":"r","type":"R"}]}"#;
    refused(endless, b"", "contains itself, `x.R`");
    let list = r#"{"type":"record","name":"R","fields":[{"name":"r","type":["null","R"]}]}"#;
    refused(list, &[2; 1_000_000], "contains itself, `R`");
    // Ten thousand levels by names.
    let mut deep = String::from(r#"["null""#);
    for level in 0..10_000 {
        let inner = match level {
            0 => "int".to_owned(),
            _ => format!("R{}", level - 1),
        };
        deep += &format!(
            r#",{{"type":"record","name":"R{level}","fields":[{{"name":"r","type":"{inner}"}}]}}"#
        );
    }
    deep.push(']');
    refused(&deep, &[0], "levels deep");
    // Ten million items in a few bytes.
    let nothing = r#"{"type":"record","name":"R","fields":[{"name":"r","type":{"type":"array","items":"null"}}]}"#;
    refused(
        nothing,
        &[0x80, 0xda, 0xc4, 0x09, 0],
        "cannot be read by this one",
    );
}

/// A type of ours that contains itself is told, and not written.
#[test]
fn a_type_that_contains_itself_is_no_message_in_avro() {
    let tree = TreePlanted {
        children: vec![TreePlanted { children: vec![] }],
    };
    let error = tree.to_body().expect_err("it is refused").to_string();
    assert!(error.contains("contains itself, `TreePlanted`"), "{error}");
}

#[derive(Debug, Serialize, Deserialize, AvroSchema, Event)]
#[event(format = "avro")]
struct TreePlanted {
    children: Vec<TreePlanted>,
}

#[test]
fn what_is_broken_is_refused_and_never_a_panic() {
    let body = placed().to_body().expect("it is written");
    for end in 0..body.len() {
        let read = OrderPlaced::from_body(&body[..end], "application/avro");
        read.expect_err("it ends too early");
    }
    for at in 0..body.len() {
        for flipped in [0x01, 0x80, 0xff] {
            let mut broken = body.clone();
            broken[at] ^= flipped;
            // It may still be a message; it is no panic and no endless loop.
            let _ = OrderPlaced::from_body(&broken, "application/avro");
            let _ = elsewhere::OrderPlaced::from_body(&broken, "application/avro");
        }
    }
}

/// The order was placed.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize, Event)]
#[event(
    name = "order-placed.v1",
    id = "order_id",
    format = "protobuf",
    proto_file = "proto/orders.proto",
    proto = "shop.v1.OrderPlaced"
)]
struct Placed {
    #[prost(string, tag = "1")]
    order_id: String,
    #[prost(message, repeated, tag = "2")]
    items: Vec<PlacedItem>,
    #[prost(int64, optional, tag = "3")]
    cents: Option<i64>,
    #[prost(int32, tag = "4")]
    channel: i32,
    #[prost(map = "string, string", tag = "5")]
    labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize)]
struct PlacedItem {
    #[prost(string, tag = "1")]
    sku: String,
    #[prost(uint32, tag = "2")]
    quantity: u32,
}

fn placed_in_protobuf() -> Placed {
    Placed {
        order_id: "o-1".to_owned(),
        items: vec![PlacedItem {
            sku: "tea".to_owned(),
            quantity: 300,
        }],
        cents: Some(-1),
        channel: 1,
        labels: HashMap::from([("gift".to_owned(), "yes".to_owned())]),
    }
}

#[test]
fn a_message_in_protobuf_is_the_message_and_says_which_it_is() {
    let sent = Outgoing::new(&placed_in_protobuf()).expect("it is written");
    assert_eq!(
        sent.envelope.content_type,
        "application/protobuf; proto=shop.v1.OrderPlaced"
    );
    let body = &sent.envelope.body;
    let read = Placed::from_body(body, &sent.envelope.content_type);
    assert_eq!(read.expect("it is read"), placed_in_protobuf());
    let json = serde_json::to_vec(&placed_in_protobuf()).expect("JSON");
    for content_type in ["application/json", "application/protobuf"] {
        let read = Placed::from_body(&json, content_type);
        assert_eq!(read.expect("it is read"), placed_in_protobuf());
    }
    let error = Placed::from_body(&[0xff, 0xff], "application/protobuf");
    assert_eq!(
        error.expect_err("it is broken").format(),
        "Protocol Buffers"
    );

    let Some(BodySchema::Protobuf { file, message }) = Placed::body_schema() else {
        panic!("there is a schema");
    };
    let file = ProtoFile::parse(&file).expect("a file");
    file.check(&message, body).expect("it is as the file says");
    assert_eq!(
        file.message(&message).map(|it| &it.index[..]),
        Some(&[1][..])
    );
    let inner = file.message("shop.v1.OrderPlaced.Item");
    assert_eq!(inner.map(|it| &it.index[..]), Some(&[1, 0][..]));
}

#[test]
fn a_type_that_is_not_as_its_file_says_is_told() {
    let file = ProtoFile::parse(include_str!("proto/orders.proto")).expect("a file");
    let check = |body: &[u8], parts: &[&str]| {
        let error = file.check("shop.v1.OrderPlaced", body);
        let error = error.expect_err("it differs");
        for part in parts {
            assert!(error.contains(part), "{error}");
        }
    };
    // A field 9; an order's id as a number; a field 4 in an item.
    check(&[9 << 3, 1], &["a field 9", "`shop.v1.OrderPlaced`"]);
    check(&[1 << 3, 1], &["field 1", "`order_id`"]);
    check(
        &[2 << 3 | 2, 2, 4 << 3, 1],
        &["a field 4", "`shop.v1.OrderPlaced.Item`"],
    );
    check(&[1 << 3 | 2, 9], &["not in Protocol Buffers"]);
    let error = file.check("shop.v1.Other", &[]).expect_err("there is none");
    assert!(error.contains("no message `shop.v1.Other`"), "{error}");
}

#[test]
fn a_file_that_cannot_stand_alone_is_refused() {
    let check = |text: &str, part: &str| {
        let error = ProtoFile::parse(text).expect_err(part);
        assert!(error.contains(part), "{error}");
    };
    check("message {", "cannot be read");
    check(
        "syntax = \"proto3\"; import \"other.proto\"; message A { B b = 1; }",
        "imports `other.proto`",
    );
    check(
        "syntax = \"proto3\"; message A { B b = 1; }",
        "no `B`, of which `A.b` is",
    );
}

/// With Python's own library of Avro, which knows nothing of Tidings.
#[test]
#[ignore = "needs Python and its packages: run `cargo xtask test`"]
fn a_foreign_program_reads_it_and_is_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("body.avro");
    std::fs::write(&path, placed().to_body().expect("it is written")).expect("a file");
    let script = r#"
import json, sys, fastavro
path, back = sys.argv[1:]
with open(path, "rb") as file:
    reader = fastavro.reader(file)
    records, schema = list(reader), reader.writer_schema
assert len(records) == 1, records
print(json.dumps(records[0]))
records[0]["customer"] = None
with open(back, "wb") as file:
    fastavro.writer(file, schema, records)
"#;
    let back = folder.path().join("back.avro");
    let mut python = tidings_testing::foreign::confluent_python();
    let output = python.args(["-c", script]).arg(&path).arg(&back).output();
    let output = output.expect("it runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let printed: OrderPlaced = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(printed, placed());
    let theirs = std::fs::read(&back).expect("what it wrote");
    let read = OrderPlaced::from_body(&theirs, "application/avro").expect("it is read");
    assert_eq!(
        read,
        OrderPlaced {
            customer: None,
            ..placed()
        }
    );
}

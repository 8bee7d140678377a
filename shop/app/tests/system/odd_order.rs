//! One odd order: a good one in which up to three things are wrong, or not an order at all.

use lapin::BasicProperties;

use crate::odd::odd_headers;
use crate::random::Random;

/// A message to `order_events`.
pub(crate) struct Odd {
    pub(crate) body: Vec<u8>,
    pub(crate) properties: BasicProperties,
    /// The ids that somebody may read out of the body (nobody can be asked about one with a NUL).
    pub(crate) ids: Vec<String>,
}

/// The fields of an order and the values that are tried for each, as they stand in the JSON.
type Values = Vec<String>;

/// Makes the order of this number, or one with an id that is `known`.
pub(crate) fn odd_order(random: &mut Random, number: usize, known: &[&String]) -> Odd {
    let id = match known {
        [_, ..] if random.below(5) == 0 => (*random.one_of(known)).clone(),
        _ => format!("odd-{number}"),
    };
    let mut fields = good(&id);
    for _ in 0..random.below(4) {
        let (name, values) = odd_values(random, &id);
        let value = random.one_of(&values).clone();
        let place = fields.iter_mut().find(|(known, _)| *known == name);
        match (place, random.below(8)) {
            // Missing, or twice.
            (Some(_), 0) => fields.retain(|(known, _)| *known != name),
            (Some(_), 1) => fields.push((name, value)),
            (Some(field), _) => field.1 = value,
            (None, _) => fields.push((name, value)),
        }
    }
    let fields: Vec<_> = random.shuffled(fields);
    let ids = fields
        .iter()
        .filter(|(name, _)| *name == "orderId")
        .filter_map(|(_, value)| serde_json::from_str::<String>(value).ok())
        .filter(|id| !id.is_empty() && id.len() <= 300 && !id.contains('\0'))
        .collect();
    let text: Vec<_> = fields
        .iter()
        .map(|(name, value)| format!("\"{name}\": {value}"))
        .collect();
    let body = format!("{{{}}}", text.join(", ")).into_bytes();
    Odd {
        body: disturbed(random, body),
        properties: odd_properties(random, number),
        ids,
    }
}

fn good(id: &str) -> Vec<(&'static str, String)> {
    let text = |text: &str| format!("\"{text}\"");
    vec![
        ("orderId", serde_json::to_string(id).unwrap()),
        ("amount", "12.90".into()),
        ("timestamp", text("2026-11-23T12:00:00.000Z")),
        ("status", text("CREATED")),
        ("customerId", text("c-odd")),
        ("email", text("odd@example.org")),
        ("card", text("tok_ok")),
        ("items", r#"[{"sku": "MUG-ENAMEL", "quantity": 1}]"#.into()),
    ]
}

fn odd_values(random: &mut Random, id: &str) -> (&'static str, Values) {
    let raw = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
    let long = |length: usize| format!("\"{}\"", "x".repeat(length));
    let any = [
        "null",
        "true",
        "7",
        "\"\"",
        "[]",
        "{}",
        "\"a\\u0000b\"",
        "\"\\r\\nBcc: x@y\"",
    ];
    let with = |values: &[&str], lengths: &[usize]| {
        let mut all: Values = raw(&any);
        all.extend(raw(values));
        all.extend(lengths.iter().map(|length| long(*length)));
        all
    };
    match random.below(9) {
        0 => {
            let spaced = [
                format!("\" {id}\""),
                format!("\"{id} \""),
                format!("\"{id}\\u0007\""),
            ];
            let mut values = with(
                &["\"ö\\ud83d\\ude00\"", "\"\\ud800\""],
                &[64, 65, 300, 70_000],
            );
            values.extend(spaced);
            ("orderId", values)
        }
        1 => ("amount", amounts()),
        2 => (
            "timestamp",
            with(
                &[
                    "\"yesterday\"",
                    "\"2026-02-30T00:00:00Z\"",
                    "\"-009999-01-01T00:00:00Z\"",
                ],
                &[500],
            ),
        ),
        3 => (
            "status",
            with(
                &[
                    "\"CONFIRMED\"",
                    "\"CANCELLED\"",
                    "\"created\"",
                    "\"CREATED \"",
                ],
                &[500],
            ),
        ),
        4 => ("customerId", with(&["\"ü\""], &[128, 129, 3000, 100_000])),
        5 => (
            "email",
            with(
                &["\"nobody\"", "\"a@b, c@d\""],
                &[254, 255, 60_000, 100_000],
            ),
        ),
        6 => (
            "card",
            with(
                &["\"tok_declined\"", "\"tok_flaky\"", "\"tok_unknown\""],
                &[128, 129, 100_000],
            ),
        ),
        7 => ("items", items()),
        _ => (
            "somethingNew",
            with(&["1e999", &deep(100), &deep(2000)], &[200_000]),
        ),
    }
}

fn amounts() -> Values {
    let amounts = [
        "0",
        "0.00",
        "-0",
        "-1",
        "-12.90",
        "1e2",
        "1E+2",
        "1290e-2",
        "1e-2",
        "1e-3",
        "1e400",
        "1e-400",
        "0.001",
        "12.901",
        "12.9000",
        "0.01",
        "92233720368547758.07",
        "92233720368547758.08",
        "12345678901234567890",
        "1e15",
        "1e16",
        "\"12.90\"",
        "null",
        "true",
        "[12.90]",
        "{}",
        "NaN",
        "012.90",
        "+1",
        "1_000",
    ];
    amounts.map(str::to_owned).to_vec()
}

fn items() -> Values {
    let line = |sku: &str, quantity: &str| format!(r#"{{"sku": {sku}, "quantity": {quantity}}}"#);
    let list = |lines: &[String]| format!("[{}]", lines.join(", "));
    let mug = |quantity| line("\"MUG-ENAMEL\"", quantity);
    let mut values: Values = [
        "0",
        "-1",
        "1.5",
        "1e1",
        "4294967295",
        "4294967296",
        "\"1\"",
        "null",
        "1000000",
    ]
    .iter()
    .map(|quantity| list(&[mug(quantity)]))
    .collect();
    values.extend([
        "null".into(),
        "{}".into(),
        "[]".into(),
        "[[]]".into(),
        "\"all\"".into(),
        deep(2000),
        list(&[line("\"GLOBE-ANTIQUE\"", "1")]),
        list(&[line("\"TELESCOPE-BRASS\"", "1"), line("\"NO-SUCH\"", "1")]),
        list(&[line("\"a\\u0000b\"", "1")]),
        list(&[line("\"\"", "1")]),
        list(&[line(&format!("\"{}\"", "s".repeat(100_000)), "1")]),
        list(&vec![mug("4294967295"); 3]),
        list(&vec![mug("1"); 300]),
        list(
            &(0..2000)
                .map(|n| line(&format!("\"no-{n}\""), "1"))
                .collect::<Vec<_>>(),
        ),
    ]);
    values
}

fn deep(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

/// Now and then it is not even JSON.
fn disturbed(random: &mut Random, mut body: Vec<u8>) -> Vec<u8> {
    match random.below(40) {
        0 => Vec::new(),
        1 => {
            body.truncate(random.below(body.len()));
            body
        }
        2 => {
            let at = random.below(body.len());
            body[at] = 0xFF;
            body
        }
        3 => [b"\xEF\xBB\xBF", &*body].concat(),
        4 => body.iter().flat_map(|byte| [*byte, 0]).collect(),
        5 => [&*body, b" x"].concat(),
        _ => body,
    }
}

fn odd_properties(random: &mut Random, number: usize) -> BasicProperties {
    let properties = match random.below(3) {
        0 => odd_headers(random),
        _ => BasicProperties::default(),
    };
    match random.below(14) {
        0 => properties.with_app_id("orders".into()),
        1 => properties.with_type("x".into()),
        2 => properties.with_type("order-placed.v1".into()),
        3 => properties.with_message_id("a\u{0}b".into()),
        4 => properties.with_message_id(format!("other-{number}").into()),
        5 => properties.with_message_id("the-same".into()),
        6 => properties.with_expiration((*random.one_of(&["0", "1", "600000"])).into()),
        7 => properties.with_content_encoding("gzip".into()),
        8 => properties.with_content_type("text/html".into()),
        9 => properties.with_delivery_mode(1),
        10 => properties.with_priority(255),
        11 => properties.with_timestamp(u64::MAX),
        12 => properties
            .with_correlation_id("\u{0}".into())
            .with_reply_to("nobody".into()),
        _ => properties,
    }
}

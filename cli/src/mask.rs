//! Hiding what should not be seen: the values of sensitive fields in bodies and headers.
//!
//! A field is named by its words: `email` is also `customerEmail` and `email_address`, and `card` is
//! not `discard`. Beside that, services mark fields in the types of their messages, and write their paths down
//! ([`Marked`]); those are hidden in messages of that name, whatever their version. A body in Avro is shown as
//! JSON by the schema that is in it (in a build with `contracts`); what is neither has no fields here, so it is not shown at all. `--reveal` shows everything. What services write into their
//! reasons is not looked through.

mod marked;

use std::fmt;

pub(crate) use marked::Marked;
use marked::Paths;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::out::counted;

/// Fields that are hidden unless the command line names others.
pub(crate) const SENSITIVE: &str = "address,api-key,authorization,card,cookie,credential,cvc,cvv,\
                                    email,iban,pan,password,phone,pin,secret,ssn,token";

/// What stands for a value that is hidden.
const HIDDEN: &str = "\"***\"";

/// How deep a body may be nested; deeper is hidden.
const DEPTH_MAX: usize = 64;

/// What to hide.
#[derive(Debug)]
pub(crate) struct Mask {
    reveal: bool,
    /// The words of each field.
    fields: Vec<Vec<String>>,
    marked: Marked,
}

impl Mask {
    /// Hides these fields, or nothing.
    pub(crate) fn new(fields: &[String], reveal: bool, marked: Marked) -> Self {
        let fields = fields.iter().map(|field| words(field));
        Self {
            reveal,
            fields: fields.filter(|words| !words.is_empty()).collect(),
            marked,
        }
    }

    /// Whether the value of this field is hidden.
    pub(crate) fn hides(&self, field: &str) -> bool {
        if self.reveal {
            return false;
        }
        let words = words(field);
        let is_in = |field: &Vec<String>| words.windows(field.len()).any(|part| part == field);
        self.fields.iter().any(is_in)
    }

    /// The body of a message of this name as it may be shown. JSON keeps its numbers and the order of its
    /// fields.
    pub(crate) fn body(&self, name: &str, body: &[u8]) -> Box<RawValue> {
        if let Ok(json) = serde_json::from_slice::<&RawValue>(body) {
            return self.json_of(name, json);
        }
        #[cfg(feature = "contracts")]
        if let Some(json) = tidings_formats::avro::as_json(body) {
            return self.json_of(name, &raw(json));
        }
        let text = match self.reveal {
            true => String::from_utf8_lossy(body).into_owned(),
            false => counted(
                body.len() as u64,
                "byte that is not JSON; `--reveal` shows it",
                "bytes that are not JSON; `--reveal` shows them",
            ),
        };
        raw(serde_json::Value::from(text).to_string())
    }

    /// The same of a body that is known to be JSON.
    pub(crate) fn json_of(&self, name: &str, json: &RawValue) -> Box<RawValue> {
        self.shown(json, &self.marked.of(name))
    }

    /// JSON as it may be shown in which there are parts of several messages, as in the journal of a saga: what
    /// is marked in any message is hidden wherever a field of its name is.
    pub(crate) fn json(&self, json: &RawValue) -> Box<RawValue> {
        self.shown(json, &[self.marked.anywhere()])
    }

    fn shown(&self, json: &RawValue, paths: &[&Paths]) -> Box<RawValue> {
        let mut shown = String::with_capacity(json.get().len());
        match self.reveal {
            true => shown.push_str(json.get()),
            false => self.write(json, paths, 0, &mut shown),
        }
        raw(shown)
    }

    /// Writes what may be shown of a value; `paths` begin at it.
    fn write(&self, json: &RawValue, paths: &[&Paths], depth: usize, into: &mut String) {
        let text = json.get();
        if depth > DEPTH_MAX || paths.iter().any(|it| it.end_here()) && text != "null" {
            return into.push_str(HIDDEN);
        }
        match text.as_bytes().first() {
            Some(b'{') => match serde_json::from_str::<Fields<'_>>(text) {
                Ok(Fields(fields)) => self.write_fields(&fields, paths, depth, into),
                Err(_) => into.push_str(HIDDEN),
            },
            Some(b'[') => match serde_json::from_str::<Vec<&RawValue>>(text) {
                Ok(items) => {
                    into.push('[');
                    for (at, item) in items.into_iter().enumerate() {
                        into.push_str(if at == 0 { "" } else { "," });
                        self.write(item, paths, depth + 1, into);
                    }
                    into.push(']');
                }
                Err(_) => into.push_str(HIDDEN),
            },
            _ => into.push_str(text),
        }
    }

    fn write_fields(
        &self,
        fields: &[(String, &RawValue)],
        paths: &[&Paths],
        depth: usize,
        into: &mut String,
    ) {
        into.push('{');
        for (at, (name, value)) in fields.iter().enumerate() {
            into.push_str(if at == 0 { "" } else { "," });
            into.push_str(&serde_json::Value::from(&**name).to_string());
            into.push(':');
            match self.hides(name) && value.get() != "null" {
                true => into.push_str(HIDDEN),
                false => {
                    let paths: Vec<&Paths> = paths.iter().flat_map(|it| it.under(name)).collect();
                    self.write(value, &paths, depth + 1, into);
                }
            }
        }
        into.push('}');
    }
}

/// An object's fields in their order, those that come twice too.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(InOrder)
    }
}

fn raw(json: String) -> Box<RawValue> {
    // An error is impossible: it was put together from JSON.
    RawValue::from_string(json).unwrap_or_else(|error| unreachable!("JSON: {error}"))
}

/// The words of a name, in whatever way they are put together: `apiKey`, `API_KEY`, `api-key`.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let characters: Vec<char> = name.chars().collect();
    for (at, &character) in characters.iter().enumerate() {
        let before = at.checked_sub(1).map(|at| characters[at]);
        let is_hump = character.is_uppercase()
            && before.is_some_and(|before| {
                let next_is_small = characters.get(at + 1).is_some_and(|it| it.is_lowercase());
                !before.is_uppercase() || next_is_small
            });
        if is_hump || !character.is_alphanumeric() {
            words.push(String::new());
        }
        if character.is_alphanumeric()
            && let Some(word) = words.last_mut()
        {
            word.extend(character.to_lowercase());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(reveal: bool) -> Mask {
        let fields: Vec<String> = SENSITIVE.split(',').map(str::to_owned).collect();
        let marked = [
            ("order-placed.v2", "customer.mail"),
            ("order-placed.v2", "payments.by.*.number"),
            ("order-placed.v2", "a\\.b"),
            ("order-placed.v2", "\\*"),
            ("order-placed.v2", "*.deep"),
            ("noted.v1", ""),
        ];
        let mut known = Marked::default();
        for (message, path) in marked {
            known.learn(message, path);
        }
        Mask::new(&fields, reveal, known)
    }

    #[test]
    fn sensitive_fields_are_hidden_wherever_they_are() {
        let check = |body: &str, expected: &str| {
            assert_eq!(
                mask(false).body("plain.v1", body.as_bytes()).get(),
                expected
            );
            assert_eq!(mask(true).body("plain.v1", body.as_bytes()).get(), body);
        };
        check(
            r#"{"card":"tok_ok","amount":99.90}"#,
            r#"{"card":"***","amount":99.90}"#,
        );
        check(r#"{"customerEmail":"a@b"}"#, r#"{"customerEmail":"***"}"#);
        check(r#"{"EMAIL_ADDRESS":"a@b"}"#, r#"{"EMAIL_ADDRESS":"***"}"#);
        check(r#"{"APIKey":{"a":1}}"#, r#"{"APIKey":"***"}"#);
        check(r#"{"discard":true}"#, r#"{"discard":true}"#);
        check(
            r#"[{"a":[{"token":1,"token":2}]}]"#,
            r#"[{"a":[{"token":"***","token":"***"}]}]"#,
        );
        check(r#"{"\u0063ard":"tok_ok"}"#, r#"{"card":"***"}"#);
        check(r#"{"email":null}"#, r#"{"email":null}"#);
    }

    #[test]
    fn marked_fields_are_hidden_in_messages_of_their_name() {
        let check = |name: &str, body: &str, expected: &str| {
            let shown = mask(false).body(name, body.as_bytes());
            assert_eq!(shown.get(), expected, "{name} {body}");
            let revealed = mask(true).body(name, body.as_bytes());
            assert_eq!(revealed.get(), body);
        };
        let body = r#"{"customer":{"mail":"a@b","name":"Ann"},"mail":"c@d"}"#;
        let hidden = r#"{"customer":{"mail":"***","name":"Ann"},"mail":"c@d"}"#;
        for version in ["order-placed.v1", "order-placed.v2", "order-placed"] {
            check(version, body, hidden);
        }
        check("other.v2", body, body);
        check(
            "order-placed.v2",
            r#"{"customer":[{"mail":1},{"mail":{"a":2}}]}"#,
            r#"{"customer":[{"mail":"***"},{"mail":"***"}]}"#,
        );
        check(
            "order-placed.v2",
            r#"{"payments":[[{"by":{"x":{"number":1,"n":2},"y":{"number":null}}}]]}"#,
            r#"{"payments":[[{"by":{"x":{"number":"***","n":2},"y":{"number":null}}}]]}"#,
        );
        check(
            "order-placed.v2",
            r#"{"a.b":1,"a":{"b":2},"*":3,"x":{"deep":4}}"#,
            r#"{"a.b":"***","a":{"b":2},"*":"***","x":{"deep":"***"}}"#,
        );
        check("noted.v1", r#"["text"]"#, r#""***""#);
    }

    /// In a journal it is not known whose fields they are.
    #[test]
    fn what_is_marked_anywhere_is_hidden_in_a_journal() {
        let check = |json: &str, expected: &str| {
            let json = RawValue::from_string(json.into()).unwrap();
            assert_eq!(mask(false).json(&json).get(), expected);
        };
        check(
            r#"{"entries":[{"mail":"a@b","number":7,"name":"Ann"}]}"#,
            r#"{"entries":[{"mail":"***","number":"***","name":"Ann"}]}"#,
        );
    }

    #[test]
    fn what_is_not_json_is_not_shown() {
        let shown = mask(false).body("plain.v1", b"card=tok_ok");
        assert_eq!(
            shown.get(),
            "\"11 bytes that are not JSON; `--reveal` shows them\""
        );
        assert_eq!(
            mask(true).body("plain.v1", b"card=tok_ok").get(),
            "\"card=tok_ok\""
        );
    }

    #[cfg(feature = "contracts")]
    #[test]
    fn what_is_in_avro_is_shown_by_its_own_schema() {
        let schema = r#"{"type":"record","name":"Paid","fields":[{"name":"cents","type":"long"},{"name":"card","type":"string"}]}"#;
        let body = tidings_formats::container::write(schema, b"\x0e\x06tok");
        let shown = |reveal| mask(reveal).body("plain.v1", &body).get().to_owned();
        assert_eq!(shown(false), r#"{"card":"***","cents":7}"#);
        assert_eq!(shown(true), r#"{"card":"tok","cents":7}"#);
        let cut = mask(false).body("plain.v1", &body[..body.len() - 1]);
        assert!(cut.get().contains("not JSON"), "{}", cut.get());
    }

    #[test]
    fn a_body_that_is_nested_without_end_is_cut() {
        let body = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        let shown = mask(false).body("plain.v1", body.as_bytes());
        assert!(shown.get().len() < 1000, "{}", shown.get().len());
    }
}

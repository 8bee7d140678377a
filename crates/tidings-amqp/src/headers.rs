//! The values of AMQP headers as text, because that is what an envelope keeps.
//!
//! Programs in other languages send numbers, booleans and times as what they are. A message that is
//! kept in a store or dead-lettered through an outbox must not lose them, so they become text; what
//! is nested becomes JSON.

use std::borrow::Cow;

use jiff::Timestamp;
use serde_json::{Map, Value as Json};
use tidings_wire::Value;

/// How deep a nested value may be; a deeper one is left out.
const NESTED_DEPTH_MAX: usize = 8;

/// A value as text: numbers in digits, `true` or `false`, times as RFC 3339, tables and arrays as
/// JSON. `None` for what is no text in any sense: nothing, bytes that are not UTF-8, and what is
/// nested too deep or contains such.
pub(crate) fn text_of(value: &Value) -> Option<Cow<'_, str>> {
    Some(match value {
        Value::LongStr(bytes) | Value::Bytes(bytes) => Cow::Borrowed(str::from_utf8(bytes).ok()?),
        Value::Bool(value) => Cow::Owned(value.to_string()),
        // Their `Debug` is the shortest text that says they are not whole: `1.0`.
        Value::F32(value) => Cow::Owned(format!("{value:?}")),
        Value::F64(value) => Cow::Owned(format!("{value:?}")),
        Value::Decimal { scale, value } => Cow::Owned(decimal(*scale, *value)),
        Value::Timestamp(seconds) => Cow::Owned(time(*seconds)),
        Value::Array(_) | Value::Table(_) => Cow::Owned(json_of(value, 0)?.to_string()),
        Value::Void => return None,
        number => Cow::Owned(number.as_i64()?.to_string()),
    })
}

/// A nested value. Decimals and times are texts in it: JSON has no such numbers.
fn json_of(value: &Value, depth: usize) -> Option<Json> {
    if depth > NESTED_DEPTH_MAX {
        return None;
    }
    Some(match value {
        Value::Void => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::F32(value) => serde_json::Number::from_f64((*value).into())?.into(),
        Value::F64(value) => serde_json::Number::from_f64(*value)?.into(),
        Value::Array(values) => {
            let values = values.iter().map(|value| json_of(&value, depth + 1));
            Json::Array(values.collect::<Option<_>>()?)
        }
        Value::Table(entries) => {
            let mut map = Map::new();
            for (name, value) in entries.iter() {
                map.insert(name.as_str()?.to_owned(), json_of(&value, depth + 1)?);
            }
            Json::Object(map)
        }
        value => match value.as_i64() {
            Some(number) => number.into(),
            None => text_of(value)?.into(),
        },
    })
}

/// `1234` shifted by two places is `12.34`.
fn decimal(scale: u8, value: u32) -> String {
    let places = usize::from(scale);
    if places == 0 {
        return value.to_string();
    }
    let mut digits = format!("{value:0width$}", width = places + 1);
    digits.insert(digits.len() - places, '.');
    digits
}

/// As RFC 3339; a time that no calendar has stays a number.
fn time(seconds: u64) -> String {
    let time = i64::try_from(seconds).map(Timestamp::from_second);
    match time {
        Ok(Ok(time)) => time.to_string(),
        _ => seconds.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tidings_wire::{Array, ShortStr, Table};

    use super::*;

    #[test]
    fn every_value_that_can_be_a_text_is_one() {
        let check = |value: Value, expected: Option<&str>| {
            assert_eq!(text_of(&value).as_deref(), expected, "{value:?}");
        };
        check("text".into(), Some("text"));
        check(Value::Bytes(Bytes::from_static(b"bytes")), Some("bytes"));
        check(Value::LongStr(Bytes::from_static(b"\xff")), None);
        check(true.into(), Some("true"));
        check(Value::I8(-1), Some("-1"));
        check(Value::U8(255), Some("255"));
        check(Value::I16(-2), Some("-2"));
        check(Value::U16(65_535), Some("65535"));
        check(Value::I32(-3), Some("-3"));
        check(Value::U32(u32::MAX), Some("4294967295"));
        check(Value::I64(i64::MIN), Some("-9223372036854775808"));
        check(Value::F32(0.5), Some("0.5"));
        check(Value::F64(1.0), Some("1.0"));
        let decimal = |scale, value| Value::Decimal { scale, value };
        check(decimal(0, 7), Some("7"));
        check(decimal(2, 1234), Some("12.34"));
        check(decimal(3, 5), Some("0.005"));
        check(Value::Timestamp(0), Some("1970-01-01T00:00:00Z"));
        check(Value::Timestamp(u64::MAX), Some("18446744073709551615"));
        check(Value::Void, None);
    }

    #[test]
    fn what_is_nested_is_json_if_it_is_not_too_deep() {
        let entry = |name: &'static str, value| (ShortStr::from_static(name), value);
        let list: Array = [Value::I32(1), Value::Void, Value::F64(2.5), "x".into()]
            .into_iter()
            .collect();
        let table: Table = [entry("list", list.into()), entry("yes", true.into())]
            .into_iter()
            .collect();
        let table = Value::from(table);
        let expected = r#"{"list":[1,null,2.5,"x"],"yes":true}"#;
        assert_eq!(text_of(&table).as_deref(), Some(expected));

        let bytes = Value::LongStr(Bytes::from_static(b"\xff"));
        let not_text: Array = [bytes].into_iter().collect();
        assert_eq!(text_of(&not_text.into()), None);

        let mut deep = Value::I32(1);
        for _ in 0..NESTED_DEPTH_MAX {
            deep = Array::from_iter([deep]).into();
        }
        assert!(text_of(&deep).is_some());
        deep = Array::from_iter([deep]).into();
        assert_eq!(text_of(&deep), None);
    }
}

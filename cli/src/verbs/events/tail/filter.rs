//! Which events are shown; all that is said must hold.

use tidings::Envelope;

/// Which events are shown.
#[derive(Debug)]
pub(super) struct Filter {
    /// Patterns of names; any name when empty.
    names: Vec<String>,
    keys: Vec<String>,
    sources: Vec<String>,
    text: Option<String>,
}

impl Filter {
    pub(super) fn new(
        names: &[String],
        keys: &[String],
        sources: &[String],
        text: Option<&str>,
    ) -> Self {
        Self {
            names: names.to_vec(),
            keys: keys.to_vec(),
            sources: sources.to_vec(),
            text: text.map(str::to_owned),
        }
    }

    /// Whether the event is shown.
    pub(super) fn wants(&self, envelope: &Envelope) -> bool {
        let is_one = |wanted: &[String], is: Option<&str>| {
            wanted.is_empty() || is.is_some_and(|is| wanted.iter().any(|it| it == is))
        };
        let is_named = |pattern: &String| matches(pattern, &envelope.name);
        (self.names.is_empty() || self.names.iter().any(is_named))
            && is_one(&self.keys, envelope.key.as_deref())
            && is_one(&self.sources, Some(&envelope.source))
            && self.text.as_ref().is_none_or(|text| contains(&envelope.body, text.as_bytes()))
    }
}

/// Whether a text is as a pattern says, in which `*` stands for any characters. One pass over the text for
/// each part between stars, so that no pattern takes long.
pub(super) fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else {
        return rest.is_empty();
    };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

fn contains(body: &[u8], text: &[u8]) -> bool {
    text.is_empty() || body.windows(text.len()).any(|part| part == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        let check = |pattern: &str, text: &str, expected: bool| {
            assert_eq!(matches(pattern, text), expected, "`{pattern}` and `{text}`");
        };
        check("order-placed.v1", "order-placed.v1", true);
        check("order-placed", "order-placed.v1", false);
        check("order-*", "order-placed.v1", true);
        check("*.v1", "order-placed.v1", true);
        check("*.v1", "order-placed.v2", false);
        check("o*-*1", "order-placed.v1", true);
        check("*", "", true);
        check("", "", true);
        check("", "x", false);
        check("ab*ba", "aba", false);
        check("a**b", "ab", true);
        check("*a*b*", "ba", false);
    }

    #[test]
    fn all_that_is_said_must_hold() {
        let mut envelope = Envelope::new("order-placed.v1", r#"{"orderId":"o-1"}"#);
        envelope.key = Some("o-1".into());
        envelope.source = "shop".into();
        let check = |names: &[&str], keys: &[&str], from: &[&str], text, expected| {
            let own = |texts: &[&str]| texts.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
            let filter = Filter::new(&own(names), &own(keys), &own(from), text);
            assert_eq!(filter.wants(&envelope), expected, "{filter:?}");
        };
        check(&[], &[], &[], None, true);
        check(&["order-*"], &["o-1"], &["shop"], Some("o-1"), true);
        check(&["order-*", "x"], &["o-2", "o-1"], &[], None, true);
        check(&["payment-*"], &[], &[], None, false);
        check(&[], &["o-2"], &[], None, false);
        check(&[], &[], &["sho"], None, false);
        check(&[], &[], &[], Some("o-2"), false);
    }
}

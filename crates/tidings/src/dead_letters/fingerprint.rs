//! The fingerprint of a reason: what stays of it when everything is left out that differs from one
//! message to the next, so that the same failure is one group.
//!
//! ```text
//! card `tok_1` of order 4711 was refused: timeout after 30.5s
//! card `…` of order # was refused: timeout after #
//! ```
//!
//! Left out are quoted texts, and words with a digit in them (numbers, times, addresses, most ids and
//! hex numbers) or of eight or more hex digits. Codes of this toolkit (`TDG-1001`) stay.

use crate::hash_of_key;

/// The longest pattern, in bytes.
const PATTERN_BYTES_MAX: usize = 500;
/// Shorter words of hex digits alone may be words.
const HEX_CHARS_MIN: usize = 8;

/// What reasons of one kind have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint {
    /// Twelve hex digits that stand for the pattern.
    pub id: Box<str>,
    /// The reason with `#` and `…` for what differs; cut at 500 bytes.
    pub pattern: Box<str>,
}

impl Fingerprint {
    /// The fingerprint of a reason.
    pub fn of(reason: &str) -> Self {
        let pattern = pattern_of(reason);
        let id = format!("{:016x}", hash_of_key(&pattern));
        Self {
            id: id[..12].into(),
            pattern: pattern.into(),
        }
    }
}

fn pattern_of(reason: &str) -> String {
    let mut pattern = String::new();
    let mut rest = reason.trim();
    let mut before = ' ';
    while let Some(first) = rest.chars().next() {
        if pattern.len() >= PATTERN_BYTES_MAX {
            break;
        }
        let taken = if first.is_whitespace() {
            if !before.is_whitespace() {
                pattern.push(' ');
            }
            first.len_utf8()
        } else if let Some(bytes) = quoted(rest, before) {
            pattern.extend([first, '…', first]);
            bytes
        } else if first.is_alphanumeric() {
            let bytes = word(rest);
            let word = &rest[..bytes];
            match differs(word) {
                true => pattern.push('#'),
                false => pattern.push_str(word),
            }
            bytes
        } else {
            pattern.push(first);
            first.len_utf8()
        };
        before = rest[..taken].chars().next_back().unwrap_or(' ');
        rest = &rest[taken..];
    }
    let mut end = pattern.len().min(PATTERN_BYTES_MAX);
    while !pattern.is_char_boundary(end) {
        end -= 1;
    }
    pattern.truncate(end);
    pattern
}

/// How long the quoted text is that begins here, if one does. An apostrophe within a word is none.
fn quoted(text: &str, before: char) -> Option<usize> {
    let quote = text.chars().next()?;
    if !matches!(quote, '"' | '\'' | '`') || before.is_alphanumeric() {
        return None;
    }
    let mut ends = text.char_indices().skip(1).filter(|(_, it)| *it == quote);
    ends.find_map(|(at, _)| {
        let next = text[at + 1..].chars().next();
        let ends_here = quote != '\'' || !next.is_some_and(char::is_alphanumeric);
        ends_here.then_some(at + 1)
    })
}

/// How long the word is that begins here, with the punctuation inside of it.
fn word(text: &str) -> usize {
    let mut chars = text.char_indices().peekable();
    while let Some((at, it)) = chars.next() {
        let joins = matches!(it, '-' | '_' | '.' | ':' | '/' | '+' | '@')
            && chars.peek().is_some_and(|(_, next)| next.is_alphanumeric());
        if !it.is_alphanumeric() && !joins {
            return at;
        }
    }
    text.len()
}

fn differs(word: &str) -> bool {
    let is_code = word.strip_prefix("TDG-").is_some_and(|number| {
        number.len() == 4 && number.bytes().all(|byte| byte.is_ascii_digit())
    });
    let is_hex = word.len() >= HEX_CHARS_MIN && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    !is_code && (is_hex || word.contains(|it: char| it.is_numeric()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_message_to_message_is_left_out() {
        let check = |reason: &str, expected: &str| {
            assert_eq!(&*Fingerprint::of(reason).pattern, expected, "{reason}");
        };
        check("", "");
        check("the bank is closed", "the bank is closed");
        check(
            "card `tok_1` of order 4711 was refused: timeout after 30.5s",
            "card `…` of order # was refused: timeout after #",
        );
        check("order o-17f3 is gone", "order # is gone");
        check(
            "id 0190a3c4-77aa-7e0b-9b3c-1e5a2d3f4b5c, hash deadbeefcafe",
            "id #, hash #",
        );
        check("it's not the bank's day", "it's not the bank's day");
        check("no column 'name' here", "no column '…' here");
        check(
            "connect to 10.0.0.1:5432 failed at 2026-11-28T00:00:00Z.",
            "connect to # failed at #.",
        );
        check("an open \"quote of 7", "an open \"quote of #");
        check("the body is gone (TDG-1001)", "the body is gone (TDG-1001)");
        check("  many\n  lines \t here ", "many lines here");
        check("größe 12 überschritten", "größe # überschritten");
    }

    #[test]
    fn one_failure_has_one_id_and_another_has_another() {
        let id = |reason: &str| Fingerprint::of(reason).id;
        assert_eq!(id("order 1 is gone"), id("order 2345 is gone"));
        assert_ne!(id("order 1 is gone"), id("order 1 is late"));
        assert_eq!(id("").len(), 12);
    }

    #[test]
    fn a_pattern_is_short_whatever_the_reason() {
        for reason in ["ü".repeat(9000), "word ".repeat(9000), "`".repeat(9000)] {
            assert!(Fingerprint::of(&reason).pattern.len() <= PATTERN_BYTES_MAX);
        }
    }
}

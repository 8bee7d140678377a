//! How topics, queues and groups of messages are called at Amazon.
//!
//! A name there has letters, digits, `-` and `_`, and 80 of them for a queue. Dots become `--`. A name for which
//! that could not be undone, or that is too long, is cut and ends with a piece of its hash, so that two names never
//! become one.

use ring::digest::{SHA256, digest};

/// The longest name of a queue; topics keep to it too.
const NAME_BYTES_MAX: usize = 80;
/// The longest name that is taken. What is longer than [`NAME_BYTES_MAX`] is cut.
pub(crate) const NAME_BYTES_TAKEN_MAX: usize = 256;
/// What the names of what keeps an order end with.
const FIFO: &str = ".fifo";
/// How much of a hash a cut name ends with, in hexadecimal digits.
const HASH_DIGITS: usize = 12;
/// The longest name of a message group, and of what duplicates are known by.
const GROUP_BYTES_MAX: usize = 128;

/// What a topic or queue is called at Amazon.
pub(crate) fn name_at_amazon(prefix: &str, name: &str, is_fifo: bool) -> String {
    let suffix = if is_fifo { FIFO } else { "" };
    let room = NAME_BYTES_MAX - prefix.len() - suffix.len();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let can_be_undone = ["--", "-.", ".-", ".."].iter().all(|it| !name.contains(it))
        && name.bytes().all(|byte| is_plain(byte) || byte == b'.');
    let simple = name.replace('.', "--");
    if can_be_undone && simple.len() <= room {
        return format!("{prefix}{simple}{suffix}");
    }
    let plain = simple.chars().map(|char| match u8::try_from(char) {
        Ok(byte) if is_plain(byte) => char,
        _ => '-',
    });
    let head: String = plain.take(room - HASH_DIGITS - 1).collect();
    let hash = &hash_of(&[name])[..HASH_DIGITS];
    format!("{prefix}{head}_{hash}{suffix}")
}

/// The message group of a key or an id.
pub(crate) fn group_of(key: &str) -> String {
    let is_allowed = |byte: u8| byte.is_ascii_graphic();
    if (1..=GROUP_BYTES_MAX).contains(&key.len()) && key.bytes().all(is_allowed) {
        key.to_owned()
    } else {
        hash_of(&[key])
    }
}

/// SHA-256 in hexadecimal digits, of parts that cannot run into each other.
pub(crate) fn hash_of(parts: &[&str]) -> String {
    let mut all = Vec::new();
    for part in parts {
        all.extend_from_slice(&(part.len() as u64).to_be_bytes());
        all.extend_from_slice(part.as_bytes());
    }
    let hash = digest(&SHA256, &all);
    hash.as_ref()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn usual_names_can_be_read_at_amazon() {
        let check = |name: &str, expected: &str| {
            assert_eq!(name_at_amazon("shop-", name, true), expected);
        };
        check("order_events", "shop-order_events.fifo");
        check(
            "payment.order-placed.v1",
            "shop-payment--order-placed--v1.fifo",
        );
        check("payment.v1.dead", "shop-payment--v1--dead.fifo");
        assert_eq!(name_at_amazon("", "a.b", false), "a--b");
    }

    #[test]
    fn two_names_never_become_one() {
        let long = "n".repeat(200);
        let names = [
            "a.b", "a--b", "a-b", "a_b", "a..b", "a.-b", "a-.b", "a---b", "a b", "a\u{e9}b", "a/b",
            "",
        ];
        let longer = [format!("{long}1"), format!("{long}2"), long];
        let all: Vec<&str> = names
            .into_iter()
            .chain(longer.iter().map(String::as_str))
            .collect();
        for is_fifo in [true, false] {
            let mapped: BTreeSet<String> = all
                .iter()
                .map(|name| name_at_amazon("prefix", name, is_fifo))
                .collect();
            assert_eq!(mapped.len(), all.len(), "{mapped:?}");
            for name in mapped {
                let bare = name.strip_suffix(FIFO).unwrap_or(&name);
                assert!(name.len() <= NAME_BYTES_MAX, "{name}");
                assert!(
                    bare.bytes()
                        .all(|it| it.is_ascii_alphanumeric() || b"-_".contains(&it))
                );
            }
        }
    }

    #[test]
    fn groups_are_keys_where_amazon_takes_them() {
        assert_eq!(group_of("o-1/\"x\""), "o-1/\"x\"");
        for odd in ["", "a b", "\u{1F600}", &"k".repeat(129)] {
            assert_eq!(group_of(odd).len(), 64, "{odd}");
        }
        assert_ne!(hash_of(&["ab", "c"]), hash_of(&["a", "bc"]));
    }
}

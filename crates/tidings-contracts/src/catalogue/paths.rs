//! Where pages are: names of files that every file system takes, whatever a message or a service is called.

use std::collections::{BTreeMap, BTreeSet};

/// The longest name of a file, without what makes it unlike another.
const NAME_MAX: usize = 80;

/// What Windows takes for a device, whatever follows the dot.
const DEVICES: [&str; 6] = ["con", "prn", "aux", "nul", "com", "lpt"];

/// The pages of messages and services, by their names.
#[derive(Debug)]
pub(super) struct Paths {
    messages: BTreeMap<String, String>,
    services: BTreeMap<String, String>,
}

impl Paths {
    pub(super) fn of<'a>(
        messages: impl Iterator<Item = &'a str>,
        services: impl Iterator<Item = &'a str>,
    ) -> Self {
        Self {
            messages: all("messages", messages),
            services: all("services", services),
        }
    }

    pub(super) fn message(&self, name: &str) -> Option<&str> {
        self.messages.get(name).map(String::as_str)
    }

    pub(super) fn service(&self, name: &str) -> Option<&str> {
        self.services.get(name).map(String::as_str)
    }
}

fn all<'a>(folder: &str, names: impl Iterator<Item = &'a str>) -> BTreeMap<String, String> {
    let names: BTreeSet<&str> = names.collect();
    let mut taken = BTreeSet::new();
    let mut paths = BTreeMap::new();
    // Those that are files' names as they are come first, so that no other takes theirs.
    let (plain, others): (Vec<&str>, Vec<&str>) = names.into_iter().partition(|it| safe(it) == *it);
    for name in plain.into_iter().chain(others) {
        let mut file = safe(name);
        let mut tries = 0_u64;
        // File systems may not tell `A` from `a`.
        while file != name && tries == 0 || !taken.insert(file.to_lowercase()) {
            file = format!("{}-{:08x}", safe(name), hash(name, tries) >> 32);
            tries += 1;
        }
        paths.insert(name.to_owned(), format!("{folder}/{file}.html"));
    }
    paths
}

/// The name with nothing in it but letters, digits, `_`, `-`, and single dots inside.
fn safe(name: &str) -> String {
    let mut safe = String::new();
    for c in name.chars().take(NAME_MAX) {
        match c {
            c if c.is_ascii_alphanumeric() || c == '_' => safe.push(c),
            '.' if !safe.is_empty() && !safe.ends_with('.') => safe.push('.'),
            _ => safe.push('-'),
        }
    }
    let stem = safe.split('.').next().unwrap_or_default().to_lowercase();
    let stem = stem.trim_end_matches(|it: char| it.is_ascii_digit());
    match safe.is_empty() || DEVICES.contains(&stem) {
        true => format!("_{safe}"),
        false => safe,
    }
}

/// FNV-1a: the same in every version, so that links from elsewhere stay.
fn hash(name: &str, tries: u64) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325_u64 ^ tries;
    let add = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().fold(start, add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_gets_a_file_of_its_own_that_every_file_system_takes() {
        let names = [
            "order-placed.v1",
            "Order-Placed.v1",
            "../../etc/passwd",
            "..",
            ".",
            "",
            "/",
            "\\",
            "a/b",
            "a:b",
            "a b",
            "a-b",
            "nul",
            "NUL.v1",
            "com1",
            "%2e%2e",
            "наказ",
            "приказ",
            "a\0b",
            "<script>",
            "a\u{202e}b",
            ".hidden",
            "a..b",
        ];
        let long = ["x".repeat(300), "x".repeat(301)];
        let names: Vec<&str> = names
            .into_iter()
            .chain(long.iter().map(String::as_str))
            .collect();
        let paths = all("messages", names.iter().copied());
        let files: BTreeSet<String> = paths.values().map(|it| it.to_lowercase()).collect();
        assert_eq!(files.len(), names.len(), "{paths:#?}");
        for file in files {
            let name = file.strip_prefix("messages/").unwrap();
            let name = name.strip_suffix(".html").unwrap();
            let is_fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
            assert!(name.chars().all(is_fine) && name.len() < 100, "{file}");
            assert!(!name.contains("..") && !name.starts_with('.'), "{file}");
            let stem = name.split('.').next().unwrap();
            assert!(!["nul", "com1"].contains(&stem), "{file}");
        }
        // What can be a file's name is one as it is, whoever else there is.
        assert_eq!(paths["a-b"], "messages/a-b.html");
        assert_eq!(
            paths["order-placed.v1"].len(),
            paths["Order-Placed.v1"].len() + 9
        );
    }
}

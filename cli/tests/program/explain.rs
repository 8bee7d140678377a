//! `tidings explain`, and that codes and pages are paired: in the whole workspace.

use std::{collections::BTreeSet, fs, path::Path};

use tidings_testing::foreign::workspace;

use crate::run::tidings;

#[test]
fn a_code_is_explained_however_it_is_written() {
    for code in ["TDG-1001", "tdg-1001", "1001"] {
        let ran = tidings(["explain", code]);
        ran.ends(0);
        assert!(
            ran.out
                .starts_with("# TDG-1001: a large body is not in its store\n")
        );
        assert!(ran.out.contains("**What to do.**"));
    }
    let json = tidings(["explain", "1001", "--json"]).json();
    assert_eq!(json["code"], "TDG-1001");
    assert_eq!(json["title"], "a large body is not in its store");
    assert!(json["page"].as_str().unwrap().starts_with("# TDG-1001"));
}

#[test]
fn for_a_code_that_is_not_there_near_ones_are_named() {
    let ran = tidings(["explain", "1008"]);
    ran.ends(2);
    assert_eq!(ran.out, "");
    assert!(
        ran.err.contains("no code `1008`") && ran.err.contains("TDG-1007"),
        "{}",
        ran.err
    );
    tidings(["explain", "nonsense"]).ends(2);
    tidings(["explain", ""]).ends(2);
}

#[test]
fn each_code_in_the_sources_has_a_page_and_each_page_a_code() {
    let root = workspace();
    let mut in_sources = BTreeSet::new();
    for folder in ["crates", "shop", "cli/src"] {
        codes_in(&root.join(folder), &mut in_sources);
    }
    let folder = root.join("docs/errors");
    let pages = fs::read_dir(&folder).unwrap().filter_map(|page| {
        let name = page.unwrap().file_name().into_string().unwrap();
        let code = name.strip_suffix(".md")?;
        code.starts_with("TDG-").then(|| code.to_owned())
    });
    let pages: BTreeSet<String> = pages.collect();
    assert_eq!(pages, in_sources);
    let table = fs::read_to_string(folder.join("README.md")).unwrap();
    for code in &pages {
        let explained = tidings(["explain", code]);
        explained.ends(0);
        assert!(explained.out.starts_with(&format!("# {code}: ")), "{code}");
        for part in ["**What happened.**", "**What to do.**"] {
            assert!(explained.out.contains(part), "{code}: {part}");
        }
        assert!(
            table.contains(&format!("| [{code}]({code}.md) |")),
            "{code}"
        );
    }
}

/// The codes that stand in the Rust sources of a folder, without its tests.
fn codes_in(folder: &Path, codes: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let is_tests = path.file_name().is_some_and(|name| name == "tests");
        if path.is_dir() && !is_tests {
            codes_in(&path, codes);
        } else if path.extension().is_some_and(|it| it == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            for (at, _) in text.match_indices("TDG-") {
                let digits: String = text[at + 4..]
                    .chars()
                    .take_while(char::is_ascii_digit)
                    .collect();
                if digits.len() == 4 {
                    codes.insert(format!("TDG-{digits}"));
                }
            }
        }
    }
}

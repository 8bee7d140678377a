//! Each code of an operation on dead letters, and of an error about sagas, has a page in `docs/errors` and a
//! row in its table, and each such page a code.

use std::{collections::BTreeSet, fs};

use tidings::dead_letters::Code;
use tidings_testing::foreign::workspace;

/// Pages with codes of this thousand.
fn check(thousand: &str, codes: BTreeSet<String>) {
    let folder = workspace().join("docs/errors");
    let pages = fs::read_dir(&folder)
        .expect("the folder")
        .filter_map(|page| {
            let name = page.expect("a page").file_name();
            let code = name.to_str()?.strip_suffix(".md")?;
            code.starts_with(thousand).then(|| code.to_owned())
        });
    assert_eq!(pages.collect::<BTreeSet<_>>(), codes);

    let table = fs::read_to_string(folder.join("README.md")).expect("the table");
    for code in &codes {
        let page = folder.join(format!("{code}.md"));
        let page = fs::read_to_string(page).expect("the page");
        assert!(page.starts_with(&format!("# {code}: ")), "{code}");
        for part in ["**What happened.**", "**What to do.**"] {
            assert!(page.contains(part), "{code}: {part}");
        }
        let row = format!("| [{code}]({code}.md) |");
        assert!(table.contains(&row), "{code}");
    }
}

#[test]
fn each_code_of_dead_letters_has_a_page_and_each_page_a_code() {
    let codes: BTreeSet<String> = Code::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(codes.len(), Code::ALL.len(), "no code means two things");
    check("TDG-2", codes);
}

#[test]
fn each_code_of_sagas_has_a_page_and_each_page_a_code() {
    let codes = [
        ("TDG-3001", "saga/check.rs"),
        ("TDG-3010", "steps.rs"),
        ("TDG-3011", "steps.rs"),
    ];
    for (code, source) in codes {
        let source = workspace().join("crates/tidings/src").join(source);
        let source = fs::read_to_string(source).expect("the source");
        assert!(source.contains(code), "{code} is used");
    }
    check("TDG-3", codes.map(|(code, _)| code.to_owned()).into());
}

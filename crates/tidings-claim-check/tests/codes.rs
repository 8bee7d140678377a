//! Each code has a page in `docs/errors` and a row in its table, and each page about bodies a code.

use std::{collections::BTreeSet, fs};

use tidings_claim_check::Code;
use tidings_testing::foreign::workspace;

/// The codes of this crate: others have other thousands.
const OURS: &str = "TDG-1";

#[test]
fn each_code_has_a_page_and_each_page_a_code() {
    let folder = workspace().join("docs/errors");
    let codes: BTreeSet<String> = Code::ALL.iter().map(ToString::to_string).collect();
    assert_eq!(codes.len(), Code::ALL.len(), "no code means two things");
    let pages = fs::read_dir(&folder).unwrap().filter_map(|page| {
        let name = page.unwrap().file_name().into_string().unwrap();
        let code = name.strip_suffix(".md")?;
        code.starts_with(OURS).then(|| code.to_owned())
    });
    assert_eq!(pages.collect::<BTreeSet<_>>(), codes);

    let table = fs::read_to_string(folder.join("README.md")).unwrap();
    for code in &codes {
        let page = fs::read_to_string(folder.join(format!("{code}.md"))).unwrap();
        assert!(page.starts_with(&format!("# {code}: ")), "{code}");
        for part in ["**What happened.**", "**What to do.**"] {
            assert!(page.contains(part), "{code}: {part}");
        }
        assert!(
            table.contains(&format!("| [{code}]({code}.md) |")),
            "{code}"
        );
    }
}

//! Takes the pages of `docs/errors` into the program, for `tidings explain`.

use std::{env, fmt::Write as _, fs, path::Path};

fn main() -> std::io::Result<()> {
    // As this is run, not as it was compiled: a folder of build output may be shared by several clones.
    let here = env::var_os("CARGO_MANIFEST_DIR").ok_or_else(|| missing("CARGO_MANIFEST_DIR"))?;
    let folder = Path::new(&here).join("../docs/errors");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut names = Vec::new();
    for page in fs::read_dir(&folder)? {
        let name = page?.file_name().to_string_lossy().into_owned();
        if let Some(code) = name.strip_suffix(".md")
            && code.starts_with("TDG-")
        {
            names.push(code.to_owned());
        }
    }
    names.sort();
    let mut pages = String::from("&[\n");
    for code in names {
        let page = folder.join(format!("{code}.md"));
        println!("cargo::rerun-if-changed={}", page.display());
        let text = fs::read_to_string(page)?;
        writeln!(pages, "({code:?}, {text:?}),").map_err(std::io::Error::other)?;
    }
    pages.push(']');
    let out = env::var_os("OUT_DIR").ok_or_else(|| missing("OUT_DIR"))?;
    fs::write(Path::new(&out).join("pages.rs"), pages)
}

fn missing(variable: &str) -> std::io::Error {
    std::io::Error::other(format!("cargo sets no `{variable}`"))
}

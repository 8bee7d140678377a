//! `cargo xtask tidy`: the rules of this repository that no other tool knows.
//!
//! Each rule is a pure function from what was [read](Repository::read) to complaints, so that its
//! test can show it a repository that breaks it. A complaint says what to do, in one line.

mod arrows;
mod files;

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use crate::run::{cargo, metadata, program, quietly, root};

/// All that the rules look at.
#[derive(Default)]
struct Repository {
    packages: Vec<Package>,
    /// All crates that the programs are built of when nobody asks for a feature.
    default_build: Vec<String>,
    /// Every text file that git knows or would take.
    files: Vec<File>,
}

/// A crate of the workspace.
#[derive(Default)]
struct Package {
    name: String,
    /// Its folder, from the root of the repository, with `/`.
    folder: String,
    /// What it depends on when it ships: normal and build dependencies, ours and others'.
    dependencies: Vec<String>,
}

/// A text file.
#[derive(Default)]
struct File {
    /// From the root of the repository, with `/`.
    path: String,
    text: String,
}

/// Something that breaks a rule: where, and what to do about it.
#[derive(Debug, PartialEq)]
struct Complaint {
    at: String,
    says: String,
}

impl Complaint {
    fn new(at: impl fmt::Display, says: impl fmt::Display) -> Complaint {
        Complaint {
            at: at.to_string(),
            says: says.to_string(),
        }
    }
}

const RULES: &[fn(&Repository) -> Vec<Complaint>] = &[
    arrows::point_one_way,
    arrows::every_crate_has_a_row,
    arrows::cores_are_pure,
    arrows::folders_are_named_like_crates,
    arrows::the_default_build_is_light,
    files::every_crate_is_on_the_map,
    files::every_source_opens_with_its_idea,
    files::no_file_outgrows_its_length,
    files::ignored_tests_say_what_they_need,
    files::quoted_code_is_real,
    files::nothing_names_a_machine,
];

pub(crate) fn run() -> Result<()> {
    let repository = Repository::read()?;
    let mut complaints: Vec<_> = RULES.iter().flat_map(|rule| rule(&repository)).collect();
    complaints.sort_by(|a, b| a.at.cmp(&b.at));
    for Complaint { at, says } in &complaints {
        eprintln!("{at}: {says}");
    }
    match complaints.len() {
        0 => Ok(()),
        count => bail!("tidy has {count} complaints"),
    }
}

impl Repository {
    fn read() -> Result<Repository> {
        let packages = metadata()?["packages"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let packages = packages
            .iter()
            .map(Package::from_metadata)
            .collect::<Result<_>>()?;
        let mut git = program("git")?;
        git.args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ]);
        let listed = quietly(&mut git)?.stdout;
        let mut files = Vec::new();
        for path in String::from_utf8(listed)?.split_terminator('\0') {
            // What is not text has no lines to look at; what is deleted is no longer there.
            if let Ok(text) = std::fs::read_to_string(root()?.join(path)) {
                files.push(File {
                    path: path.to_owned(),
                    text,
                });
            }
        }
        let mut tree = cargo(["tree", "--quiet", "--locked", "--edges=normal,build"])?;
        tree.args(["--prefix=none", "--format={p}"]);
        for program in ["shop", "tidings-cli", "tidings-broker"] {
            tree.args(["--package", program]);
        }
        let tree = String::from_utf8(quietly(&mut tree)?.stdout)?;
        let names = tree.lines().filter_map(|line| line.split(' ').next());
        Ok(Repository {
            packages,
            default_build: names.map(str::to_owned).collect(),
            files,
        })
    }

    fn text_of(&self, path: &str) -> &str {
        self.files
            .iter()
            .find(|file| file.path == path)
            .map_or("", |file| &file.text)
    }

    fn rust_files(&self) -> impl Iterator<Item = &File> {
        self.files.iter().filter(|file| file.path.ends_with(".rs"))
    }
}

impl Package {
    fn from_metadata(package: &Value) -> Result<Package> {
        let name = package["name"]
            .as_str()
            .ok_or_else(|| anyhow!("a package without a name"))?;
        let manifest = PathBuf::from(package["manifest_path"].as_str().unwrap_or_default());
        let folder = manifest
            .parent()
            .and_then(|folder| folder.strip_prefix(root().ok()?).ok())
            .with_context(|| format!("`{name}` is not in this repository"))?
            .to_string_lossy()
            .replace('\\', "/");
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        let dependencies = dependencies
            .filter(|dependency| dependency["kind"] != "dev")
            .filter_map(|dependency| dependency["name"].as_str().map(str::to_owned))
            .collect();
        Ok(Package {
            name: name.to_owned(),
            folder,
            dependencies,
        })
    }
}

#[cfg(test)]
impl Repository {
    fn with_file(path: &str, text: &str) -> Repository {
        let file = File {
            path: path.into(),
            text: text.into(),
        };
        Repository {
            files: vec![file],
            ..Repository::default()
        }
    }

    fn with_package(name: &str, folder: &str, dependencies: &[&str]) -> Repository {
        let dependencies = dependencies.iter().map(|&name| name.to_owned()).collect();
        let package = Package {
            name: name.into(),
            folder: folder.into(),
            dependencies,
        };
        Repository {
            packages: vec![package],
            ..Repository::default()
        }
    }
}

/// Asserts that `rule` finds in `repository` exactly these places to complain about.
#[cfg(test)]
#[track_caller]
fn check(rule: fn(&Repository) -> Vec<Complaint>, repository: &Repository, expected: &[&str]) {
    let complaints = rule(repository);
    let places: Vec<&str> = complaints
        .iter()
        .map(|complaint| complaint.at.as_str())
        .collect();
    assert_eq!(places, expected, "{complaints:#?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_repository_can_be_read() {
        let repository = Repository::read().unwrap();
        assert!(
            repository
                .packages
                .iter()
                .any(|package| package.folder == "xtask")
        );
        let is_built = |name: &str| repository.default_build.iter().any(|it| it == name);
        assert!(is_built("tidings-sqlite") && is_built("tokio"));
        assert!(
            repository
                .text_of("xtask/src/tidy.rs")
                .contains("this_repository_can_be_read")
        );
    }
}

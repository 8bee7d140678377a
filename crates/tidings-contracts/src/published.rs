//! The documents of what is deployed, as files in a folder: in the repository of a system, or in one that its teams share.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use crate::{
    check::{self, Rule, Severity},
    document::{Document, DocumentError},
};

/// The variable that makes [`assert_published`] write instead of compare, if it is `record`.
pub const VARIABLE: &str = "TIDINGS_CONTRACTS";

/// The documents in the folder; none if there is no such folder.
///
/// # Errors
///
/// When a file cannot be read, with its name.
pub fn load(folder: &Path) -> Result<Vec<Document>, DocumentError> {
    let is_empty = match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(error) => return Err(named(folder, &error)),
    };
    match is_empty {
        true => Ok(Vec::new()),
        false => Document::load(folder),
    }
}

/// Writes each document to `SERVICE.asyncapi.json` in the folder, and says which files these are. Others stay.
///
/// # Errors
///
/// When a file cannot be written, or a service's name cannot be a file's.
pub fn record(folder: &Path, documents: &[Document]) -> Result<Vec<PathBuf>, DocumentError> {
    std::fs::create_dir_all(folder).map_err(|error| named(folder, &error))?;
    let mut written = Vec::new();
    for document in documents {
        let file = folder.join(file_name(&document.service)?);
        // Whole or not at all: a file that is half written would be a broken baseline.
        let half = file.with_extension("half");
        let put = std::fs::write(&half, document.to_json());
        let put = put.and_then(|()| std::fs::rename(&half, &file));
        put.map_err(|error| named(&file, &error))?;
        written.push(file);
    }
    Ok(written)
}

fn file_name(service: &str) -> Result<String, DocumentError> {
    let fits = |it: char| it.is_alphanumeric() || matches!(it, '-' | '_' | '.' | ' ');
    match !service.is_empty() && !service.starts_with('.') && service.chars().all(fits) {
        true => Ok(format!("{service}.asyncapi.json")),
        false => Err(DocumentError::new(format!(
            "the service `{service}` cannot name a file: use letters, digits, `-`, `_` and `.` in `info.title`"
        ))),
    }
}

fn named(path: &Path, error: &dyn fmt::Display) -> DocumentError {
    DocumentError::new(format!("{}: {error}", path.display()))
}

/// For a test: the documents are those in the folder. A change that breaks somebody fails and names whom; one that breaks
/// nobody fails too, until it is recorded by running the test with `TIDINGS_CONTRACTS=record`.
///
/// # Panics
///
/// When they are not, with what to do.
#[track_caller]
pub fn assert_published(folder: &Path, documents: &[Document]) {
    let before = match load(folder) {
        Ok(before) => before,
        Err(error) => panic!("the contracts that are published cannot be read: {error}"),
    };
    let mut findings = check::changes(&before, documents, Rule::Full);
    findings.retain(|it| it.severity == Severity::Error);
    let broken: Vec<String> = findings.iter().map(ToString::to_string).collect();
    let asked = std::env::var(VARIABLE).unwrap_or_default();
    assert!(
        broken.is_empty() || asked == "record-anyway",
        "the contracts changed, and somebody is broken:\n{}\nif nobody who is deployed is: run it with \
         `{VARIABLE}=record-anyway`",
        broken.join("\n")
    );
    if asked.starts_with("record") {
        if let Err(error) = record(folder, documents) {
            panic!("the contracts cannot be recorded: {error}");
        }
        return;
    }
    let differs = documents.iter().find(|it| !before.contains(it));
    if let Some(document) = differs {
        panic!(
            "the contracts of `{}` are not those in {}; nobody is broken: record them with `{VARIABLE}=record`, and \
             commit them",
            document.service,
            folder.display()
        );
    }
    let gone = before
        .iter()
        .find(|old| !documents.iter().any(|it| it.service == old.service));
    if let Some(gone) = gone {
        panic!(
            "{} has a document of `{}`, which is no service any more: delete its file",
            folder.display(),
            gone.service
        );
    }
}

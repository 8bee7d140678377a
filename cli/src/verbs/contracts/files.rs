//! The documents that the verbs of contracts are given: files, folders, and URLs.

use std::path::{Path, PathBuf};

use tidings_contracts::Document;

use super::http;
use crate::code::Code;

/// The documents that most verbs begin with.
#[derive(Debug, clap::Args)]
pub(super) struct Documents {
    /// AsyncAPI 3 documents in JSON or YAML: files, folders, or URLs, of a service each or of a whole system
    #[arg(required = true, value_name = "PATH")]
    documents: Vec<PathBuf>,
}

impl Documents {
    /// All of them, each service once.
    pub(super) async fn load(&self) -> anyhow::Result<Vec<Document>> {
        load(&self.documents).await
    }
}

/// Writes a file.
pub(super) fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(file, text)
        .map_err(|error| Code::ContractFile.of(format!("{}: {error}", file.display())))
}

/// The documents of these files, folders and URLs, each service once.
pub(crate) async fn load(sources: &[PathBuf]) -> anyhow::Result<Vec<Document>> {
    let mut all: Vec<Document> = Vec::new();
    for source in sources {
        let documents = match url(source) {
            Some(url) => fetch(url).await?,
            None => Document::load(source).map_err(|error| Code::ContractFile.of(error))?,
        };
        for document in documents {
            if all.iter().any(|it| it.service == document.service) {
                return Err(Code::ContractFile.of(format!(
                    "two of the documents are of the service `{}` (`info.title`): give each service one",
                    document.service
                )));
            }
            all.push(document);
        }
    }
    Ok(all)
}

/// The source as a URL, if it is one.
pub(super) fn url(source: &Path) -> Option<&str> {
    let text = source.to_str()?;
    let is_url = text.starts_with("http://") || text.starts_with("https://");
    is_url.then_some(text)
}

async fn fetch(url: &str) -> anyhow::Result<Vec<Document>> {
    let failed = |error: &dyn std::fmt::Display| Code::ContractFile.of(format!("{url}: {error}"));
    let text = http::fetch(url).await.map_err(|error| failed(&error))?;
    Document::parse_all(&text).map_err(|error| failed(&error))
}

/// The files, and those in the folders by name.
pub(super) fn pacts(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let wrong = |error| Code::ContractFile.of(format!("{}: {error}", path.display()));
        let mut inside = Vec::new();
        for entry in std::fs::read_dir(path).map_err(wrong)? {
            let file = entry.map_err(wrong)?.path();
            if file.extension().is_some_and(|it| it == "json") {
                inside.push(file);
            }
        }
        inside.sort();
        if inside.is_empty() {
            return Err(nothing_in(path));
        }
        files.extend(inside);
    }
    Ok(files)
}

fn nothing_in(folder: &Path) -> anyhow::Error {
    Code::ContractFile.of(format!("no pact (`.json`) is in {}", folder.display()))
}

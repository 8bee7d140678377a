//! The documents that the verbs of contracts are given: files, folders, and URLs.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tidings_contracts::Document;

use crate::code::Code;

/// How long a document may take to come.
const FETCH_MAX: Duration = Duration::from_secs(30);

/// The largest document that is fetched.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// The documents of these files, folders and URLs, each service once.
pub(super) async fn documents(sources: &[PathBuf]) -> anyhow::Result<Vec<Document>> {
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

fn url(source: &Path) -> Option<&str> {
    let text = source.to_str()?;
    let is_url = text.starts_with("http://") || text.starts_with("https://");
    is_url.then_some(text)
}

async fn fetch(url: &str) -> anyhow::Result<Vec<Document>> {
    let failed = |error: &dyn std::fmt::Display| Code::ContractFile.of(format!("{url}: {error}"));
    // There may be one already; it is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().timeout(FETCH_MAX);
    let client = client.build().map_err(|error| failed(&error))?;
    let answer = client.get(url).send().await;
    let mut answer = answer.map_err(|error| failed(&chain(&error)))?;
    if !answer.status().is_success() {
        return Err(failed(&format!("it answers with {}", answer.status())));
    }
    let mut bytes = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(|error| failed(&chain(&error)))? {
        bytes.extend_from_slice(&part);
        if bytes.len() > BYTES_MAX {
            return Err(failed(&format!("it has more than {BYTES_MAX} bytes")));
        }
    }
    let text = String::from_utf8(bytes).map_err(|error| failed(&error))?;
    Document::parse_all(&text).map_err(|error| failed(&error))
}

/// An error with what caused it, which alone says what is wrong.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

//! The documents that the verbs of contracts are given.

use std::path::PathBuf;

use tidings_contracts::Document;

use crate::code::Code;

/// The documents in these files and folders, each service once.
pub(super) fn documents(paths: &[PathBuf]) -> anyhow::Result<Vec<Document>> {
    let mut all: Vec<Document> = Vec::new();
    for path in paths {
        for document in Document::load(path).map_err(|error| Code::ContractFile.of(error))? {
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

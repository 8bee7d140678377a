//! The files in `deploy/` as data, and copies of them with a mistake.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use serde_json::Value;
use tempfile::TempDir;
use tidings_testing::foreign;

/// The documents of each file, by its path in `deploy/`.
pub(crate) struct Manifests(pub(crate) BTreeMap<String, Vec<Value>>);

impl Manifests {
    /// Those of a folder.
    pub(crate) fn read(folder: &Path) -> Self {
        let output = foreign::manifests(folder, false).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        Self(serde_json::from_slice(&output.stdout).unwrap())
    }

    /// The one document of a file.
    pub(crate) fn one(&self, path: &str) -> &Value {
        let documents = self.0.get(path).map(Vec::as_slice).unwrap_or_default();
        let [document] = documents else {
            panic!("{path} has {} documents", documents.len());
        };
        document
    }

    /// The objects of a kind of Kubernetes', each with its file.
    pub(crate) fn of_kind<'a>(
        &'a self,
        kind: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let documents = self.0.iter().flat_map(|(path, documents)| {
            documents
                .iter()
                .map(move |document| (path.as_str(), document))
        });
        documents.filter(move |(_, document)| document["kind"] == kind)
    }
}

/// What their schemas do not allow in the files of a folder.
pub(crate) fn complaints_of_schemas(folder: &Path) -> String {
    let output = foreign::manifests(folder, true).output().unwrap();
    let complaints = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        output.status.success(),
        complaints.is_empty(),
        "{complaints}"
    );
    complaints
}

/// The folder `deploy/`.
pub(crate) fn deploy() -> PathBuf {
    foreign::workspace().join("deploy")
}

/// A copy of `deploy/` in which the first `from` in a file became `to`.
pub(crate) fn mutated(file: &str, from: &str, to: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_folder(&deploy(), copy.path());
    mutate(copy, file, from, to)
}

/// The same without the other files.
pub(crate) fn mutated_alone(file: &str, from: &str, to: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(copy.path().join(file).parent().unwrap()).unwrap();
    std::fs::copy(deploy().join(file), copy.path().join(file)).unwrap();
    mutate(copy, file, from, to)
}

fn mutate(copy: TempDir, file: &str, from: &str, to: &str) -> TempDir {
    let path = copy.path().join(file);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{file} has no `{from}`");
    std::fs::write(path, text.replacen(from, to, 1)).unwrap();
    copy
}

fn copy_folder(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir(&to).unwrap();
            copy_folder(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

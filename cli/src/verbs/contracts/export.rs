//! `tidings contracts export`: pages for people, and files for other tools.

use std::path::PathBuf;

use serde::Serialize;
use tidings_contracts::{Body, Document, catalogue::Catalogue};

use crate::{
    code::Code,
    frame::{Ended, Frame},
    out::{Page, Report, counted},
    verbs::contracts::files::{Documents, write},
};

/// Writes a catalogue of all messages as HTML that opens without a server, the document of the whole system, and the
/// schema of each message that is sent.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    documents: Documents,

    /// The folder; it is made if it is not there
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,

    /// What stands above the catalogue
    #[arg(long, default_value = "Messages")]
    title: String,
}

const EXAMPLES: &str = "\
Examples:
  tidings contracts export published/ --to catalogue/ --title 'The shop'
  tidings contracts export http://127.0.0.1:8080/asyncapi.json --to catalogue/

Writes index.html, messages/NAME.html, services/NAME.html, asyncapi.json and schemas/NAME.json (NAME.avsc, NAME.proto).
As JSON: {folder, pages, schemas}.";

#[derive(Debug, Serialize)]
struct Exported {
    folder: PathBuf,
    pages: usize,
    schemas: usize,
}

impl Report for Exported {
    fn tell(&self, page: &mut Page) {
        page.line(format!(
            "wrote {} and {}; open {}",
            counted(self.pages as u64, "page", "pages"),
            counted(self.schemas as u64, "schema", "schemas"),
            self.folder.join("index.html").display()
        ));
    }
}

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        let documents = self.documents.load().await?;
        let pages = Catalogue::new(&self.title, &documents).write(&self.to);
        let pages = pages.map_err(|error| Code::ContractFile.of(error))?;
        let system = self.to.join("asyncapi.json");
        write(&system, &Document::system(&self.title, &documents))?;
        let folder = self.to.join("schemas");
        std::fs::create_dir_all(&folder)
            .map_err(|error| Code::ContractFile.of(format!("{}: {error}", folder.display())))?;
        let mut schemas = 0;
        for contract in documents.iter().flat_map(|it| &it.sends) {
            let (text, ending) = match &contract.body {
                Body::Json(schema) => (serde_json::to_string_pretty(schema)? + "\n", "json"),
                Body::Avro(schema) => (serde_json::to_string_pretty(schema)? + "\n", "avsc"),
                Body::Protobuf { file, .. } => (file.clone(), "proto"),
                Body::Other(_) | Body::Unsaid => continue,
            };
            // A stranger's name may be a path.
            if contract.name.contains(['/', '\\']) || contract.name.starts_with('.') {
                let name = crate::out::plain(&contract.name);
                frame.out.note(&format!("`{name}` cannot name a file: its schema is left out"));
                continue;
            }
            write(&folder.join(format!("{}.{ending}", contract.name)), &text)?;
            schemas += 1;
        }
        frame.out.show(&Exported {
            folder: self.to,
            pages,
            schemas,
        })?;
        Ok(Ended::Done)
    }
}

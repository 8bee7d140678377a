//! The catalogue of a system: pages about its messages and services, for people, made from its documents.
//!
//! The pages are static HTML that a browser opens from a folder: no server, nothing from the network, and one small
//! script, without which everything is still there. A message's page has its fields and, for each consumer, which of them
//! that consumer reads: who breaks if a field changes. Documents may be anybody's, so nothing in them becomes markup or the
//! name of a file.
//!
//! ```
//! use tidings_contracts::{Contract, Document, MessageKind, catalogue::Catalogue};
//!
//! let mut payment = Document::new("payment", "1.4.0");
//! let settled = Contract::new("payment-settled.v1", MessageKind::Event, "payment-settled");
//! payment.sends.push(settled);
//!
//! let documents = [payment];
//! let pages = Catalogue::new("The shop", &documents).pages();
//! let paths: Vec<&str> = pages.iter().map(|page| &*page.path).collect();
//! assert_eq!(paths, ["index.html", "messages/payment-settled.v1.html", "services/payment.html"]);
//! ```

mod examples;
mod fields;
mod html;
mod index;
mod message;
mod paths;
mod picture;
mod readers;
mod service;
mod table;
mod words;

use std::{collections::BTreeMap, fs, io, path::Path};

use tidings::event_map::EventMap;

use crate::{check, document::Document};
use message::Message;
use paths::Paths;
use service::Service;

/// The pages of a system, made from the documents of its services.
///
/// The same documents make the same pages, to the byte.
#[derive(Debug)]
pub struct Catalogue<'a> {
    title: String,
    documents: &'a [Document],
    map: EventMap,
    messages: BTreeMap<&'a str, Message<'a>>,
    services: BTreeMap<&'a str, Service<'a>>,
    paths: Paths,
}

/// A page of a catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Page {
    /// Where it is in the catalogue's folder, with `/`: `messages/order-placed.v1.html`. A name has only letters, digits,
    /// `.`, `-` and `_`, whatever the message is called.
    pub path: String,
    /// The whole page.
    pub html: String,
}

impl<'a> Catalogue<'a> {
    /// The catalogue of the services that have these documents. The title is the system's name, for people.
    pub fn new(title: impl Into<String>, documents: &'a [Document]) -> Self {
        let mut messages: BTreeMap<&str, Message<'a>> = BTreeMap::new();
        let mut services: BTreeMap<&str, Service<'a>> = BTreeMap::new();
        for document in documents {
            let service = services.entry(&document.service).or_default();
            service.documents.push(document);
            for contract in &document.sends {
                let message = messages.entry(&contract.name).or_default();
                message.sent.push((document, contract));
            }
            for contract in &document.receives {
                let message = messages.entry(&contract.name).or_default();
                message.received.push((document, contract));
            }
        }
        for finding in check::system(documents) {
            if let Some(message) = messages.get_mut(&*finding.message) {
                message.findings.push(finding);
            }
        }
        let paths = Paths::of(messages.keys().copied(), services.keys().copied());
        Self {
            title: title.into(),
            documents,
            map: picture::map_of(documents),
            messages,
            services,
            paths,
        }
    }

    /// The event map to draw, instead of what the documents say: with sagas and schedules, and what follows from what.
    pub fn map(mut self, map: EventMap) -> Self {
        self.map = map;
        self
    }

    /// All pages, `index.html` first.
    pub fn pages(&self) -> Vec<Page> {
        let index = Page {
            path: "index.html".to_owned(),
            html: index::page(self),
        };
        let messages = self.messages.iter().map(|(name, message)| Page {
            path: self.paths.message(name).unwrap_or_default().to_owned(),
            html: message::page(self, name, message),
        });
        let services = self.services.iter().map(|(name, service)| Page {
            path: self.paths.service(name).unwrap_or_default().to_owned(),
            html: service::page(self, name, service),
        });
        std::iter::once(index)
            .chain(messages)
            .chain(services)
            .collect()
    }

    /// Writes all pages into a folder, which is made if it is not there, and says how many there are. Pages that an
    /// earlier catalogue left there and that this one does not have are removed; other files stay.
    ///
    /// # Errors
    ///
    /// When a file cannot be written or removed, with its name.
    pub fn write(&self, folder: &Path) -> io::Result<usize> {
        let pages = self.pages();
        for folder in [folder, &folder.join("messages"), &folder.join("services")] {
            fs::create_dir_all(folder).map_err(|error| named(&error, folder))?;
        }
        for page in &pages {
            let file = folder.join(&page.path);
            fs::write(&file, &page.html).map_err(|error| named(&error, &file))?;
        }
        for part in ["messages", "services"] {
            for entry in fs::read_dir(folder.join(part))? {
                let file = entry?.path();
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                let path = format!("{part}/{name}");
                if pages.iter().all(|it| it.path != path) && is_ours(&file) {
                    fs::remove_file(&file).map_err(|error| named(&error, &file))?;
                }
            }
        }
        Ok(pages.len())
    }
}

/// Whether a file is a page of an earlier catalogue.
fn is_ours(file: &Path) -> bool {
    file.extension().is_some_and(|it| it == "html")
        && fs::read_to_string(file).is_ok_and(|it| it.contains(html::GENERATOR))
}

fn named(error: &io::Error, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

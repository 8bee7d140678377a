//! A service's page: what it sends and receives, and with whom it shares that.

use std::fmt::Write;

use super::{
    Catalogue,
    html::{self, Links, Text, badges, first_line, line, prose, scroll},
};
use crate::document::{Contract, Document};

/// A service, with its documents; two of one name are one service.
#[derive(Debug, Default)]
pub(super) struct Service<'a> {
    pub(super) documents: Vec<&'a Document>,
}

impl<'a> Service<'a> {
    pub(super) fn description(&self) -> Option<&'a str> {
        self.documents
            .iter()
            .find_map(|it| it.description.as_deref())
    }

    /// Its version; two documents may have two.
    pub(super) fn versions(&self) -> String {
        let mut versions: Vec<&str> = self.documents.iter().map(|it| &*it.version).collect();
        versions.dedup();
        versions.join(", ")
    }

    pub(super) fn sends(&self) -> impl Iterator<Item = &'a Contract> {
        self.documents.iter().flat_map(|it| &it.sends)
    }

    pub(super) fn receives(&self) -> impl Iterator<Item = &'a Contract> {
        self.documents.iter().flat_map(|it| &it.receives)
    }
}

pub(super) fn page(catalogue: &Catalogue<'_>, name: &str, service: &Service<'_>) -> String {
    let links = Links {
        catalogue,
        up: "../",
    };
    let mut main = format!(
        "<div class=\"title\">\n<p class=\"over\">Service</p>\n<h1>{}</h1> <span class=\"version\">{}</span>\n{}</div>\n",
        Text(name),
        Text(&service.versions()),
        service.description().map(prose).unwrap_or_default(),
    );
    let sent = service.sends().map(|it| {
        let message = catalogue.messages.get(&*it.name);
        let receivers = message.map(|it| it.receivers()).unwrap_or_default();
        row(&links, it, &receivers, &[&it.address])
    });
    let head = ["Message", "What it means", "Received by", "Goes to"];
    list(&mut main, ("sends", "Sends"), &head, sent.collect());
    let received = service.receives().map(|it| {
        let message = catalogue.messages.get(&*it.name);
        let senders = message.map(|it| it.senders()).unwrap_or_default();
        let or = |text: &'_ Option<String>| text.clone().unwrap_or_else(|| "not said".to_owned());
        row(
            &links,
            it,
            &senders,
            &[&or(&it.queue), &or(&it.dead_letters)],
        )
    });
    let head = [
        "Message",
        "What it means",
        "Sent by",
        "Queue",
        "Dead letters",
    ];
    list(
        &mut main,
        ("receives", "Receives"),
        &head,
        received.collect(),
    );
    html::page(catalogue, "../", name, &main)
}

fn row(links: &Links<'_>, contract: &Contract, others: &[&str], places: &[&str]) -> String {
    let message = links.catalogue.messages.get(&*contract.name);
    let about = contract.description.as_deref();
    let about = about.or_else(|| message?.description());
    let mut row = format!(
        "<tr><th scope=\"row\">{} {}</th><td class=\"about\">{}</td><td>{}</td>",
        links.message(&contract.name),
        message.map(badges).unwrap_or_default(),
        about.map(|it| line(first_line(it))).unwrap_or_default(),
        links.services(others, "nobody here"),
    );
    for place in places {
        let _ = write!(row, "<td><code>{}</code></td>", Text(place));
    }
    row + "</tr>\n"
}

fn list(main: &mut String, (id, title): (&str, &str), head: &[&str], rows: Vec<String>) {
    let _ = writeln!(
        main,
        "<section aria-labelledby=\"{id}\">\n<h2 id=\"{id}\">{title}</h2>"
    );
    if rows.is_empty() {
        main.push_str("<p class=\"none\">Nothing.</p>\n");
    } else {
        let head: Vec<String> = head
            .iter()
            .map(|it| format!("<th scope=\"col\">{it}</th>"))
            .collect();
        let table = format!(
            "<table>\n<thead><tr>{}</tr></thead>\n<tbody>\n{}</tbody>\n</table>\n",
            head.concat(),
            rows.concat()
        );
        main.push_str(&scroll(title, &table));
    }
    main.push_str("</section>\n");
}

//! A message's page: what it is, who sends and who receives it, its fields with who reads them, examples and schemas.

use std::{collections::BTreeSet, fmt::Write};

use super::{
    Catalogue, examples,
    html::{self, Links, Text, badges, bytes, prose, scroll},
    table,
};
use crate::{
    check::Finding,
    document::{Body, Contract, Deprecation, Document, Example, MessageKind, family, text_of},
};

/// A message, as each service says that it is.
#[derive(Debug, Default)]
pub(super) struct Message<'a> {
    pub(super) sent: Vec<(&'a Document, &'a Contract)>,
    pub(super) received: Vec<(&'a Document, &'a Contract)>,
    /// Who does not understand it.
    pub(super) findings: Vec<Finding>,
}

impl<'a> Message<'a> {
    /// What services say of it; who sends it is asked first.
    pub(super) fn contracts(&self) -> impl Iterator<Item = &'a Contract> {
        self.sent.iter().chain(&self.received).map(|(_, it)| *it)
    }

    pub(super) fn kind(&self) -> MessageKind {
        self.contracts()
            .next()
            .map_or(MessageKind::Event, |it| it.kind)
    }

    pub(super) fn description(&self) -> Option<&'a str> {
        self.contracts().find_map(|it| it.description.as_deref())
    }

    /// When it ends; senders may say different things.
    pub(super) fn deprecations(&self) -> Vec<&'a Deprecation> {
        distinct(self.contracts().filter_map(|it| it.deprecated.as_ref()))
    }

    pub(super) fn senders(&self) -> Vec<&'a str> {
        distinct(self.sent.iter().map(|(it, _)| &*it.service))
    }

    pub(super) fn receivers(&self) -> Vec<&'a str> {
        distinct(self.received.iter().map(|(it, _)| &*it.service))
    }

    /// The paths of the fields that are not to be shown, whoever says so.
    pub(super) fn sensitive(&self) -> Vec<&'a str> {
        let all = self.contracts().flat_map(|it| &it.sensitive);
        distinct(all.map(String::as_str))
    }

    /// What was really written; what consumers have as examples only if no sender has one.
    pub(super) fn examples(&self) -> Vec<&'a Example> {
        let of = |all: &[(&'a Document, &'a Contract)]| {
            distinct(all.iter().flat_map(|(_, it)| &it.examples))
        };
        let sent = of(&self.sent);
        if sent.is_empty() {
            of(&self.received)
        } else {
            sent
        }
    }
}

/// Each once, in the order in which they come.
fn distinct<T: PartialEq>(all: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut once = Vec::new();
    for it in all {
        if !once.contains(&it) {
            once.push(it);
        }
    }
    once
}

pub(super) fn page(catalogue: &Catalogue<'_>, name: &str, message: &Message<'_>) -> String {
    let links = Links {
        catalogue,
        up: "../",
    };
    let title = message.contracts().find_map(|it| it.title.as_deref());
    let title = title.filter(|it| *it != name);
    let title = title.map(|it| format!("<p class=\"lead\">{}</p>\n", Text(it)));
    let mut main = format!(
        "<div class=\"title\">\n<p class=\"over\">Message</p>\n<h1 class=\"name\">{}</h1> {}\n{}{}</div>\n",
        Text(name),
        badges(message),
        title.unwrap_or_default(),
        message.description().map(prose).unwrap_or_default(),
    );
    for it in message.deprecations() {
        let _ = writeln!(main, "<p class=\"note ends\">{}</p>", ends(&links, it));
    }
    facts(&links, name, message, &mut main);
    parties(&links, message, &mut main);
    misfits(message, &mut main);
    table::fields(&links, message, &mut main);
    shown_examples(message, &mut main);
    schemas(message, &mut main);
    html::page(catalogue, "../", name, &main)
}

fn ends(links: &Links<'_>, it: &Deprecation) -> String {
    let mut text = format!(
        "Deprecated since {}: do not begin to use it.",
        Text(&it.since)
    );
    if let Some(until) = &it.until {
        let _ = write!(text, " It is sent until {}.", Text(until));
    }
    if let Some(instead) = &it.instead {
        let _ = write!(text, " Use {} instead.", links.message(instead));
    }
    text
}

fn facts(links: &Links<'_>, name: &str, message: &Message<'_>, main: &mut String) {
    let mut facts: Vec<(&str, String)> = Vec::new();
    let addresses = distinct(message.contracts().map(|it| &*it.address));
    let addresses: Vec<String> = addresses
        .iter()
        .map(|it| format!("<code>{}</code>", Text(it)))
        .collect();
    let goes_to = match message.kind() {
        MessageKind::Event => "Topic",
        MessageKind::Command | MessageKind::Reply => "Queue",
    };
    facts.push((goes_to, addresses.join(", ")));
    let of = family(name).0;
    let mut versions: Vec<&str> = links.catalogue.messages.keys().copied().collect();
    versions.retain(|it| family(it).0 == of);
    versions.sort_by_key(|it| family(it).1);
    let versions: Vec<String> = versions
        .iter()
        .map(|it| match *it == name {
            true => format!("<span class=\"name\">{}</span> (this)", Text(it)),
            false => links.message(it),
        })
        .collect();
    facts.push(("Versions", versions.join(", ")));
    let sizes = message.examples();
    let sizes = sizes.iter().map(|it| it.body.to_string().len() as u64);
    let limit = message.contracts().find_map(|it| it.body_bytes_max);
    let size = match (limit, sizes.max()) {
        (Some(limit), Some(largest)) => format!(
            "at most {}; the largest example has {}",
            bytes(limit),
            bytes(largest)
        ),
        (Some(limit), None) => format!("at most {}", bytes(limit)),
        (None, Some(largest)) => format!(
            "no limit is said; the largest example has {}",
            bytes(largest)
        ),
        (None, None) => "no limit is said".to_owned(),
    };
    facts.push(("Size", size));
    let formats: BTreeSet<String> = message
        .contracts()
        .filter(|it| !matches!(it.body, Body::Json(_) | Body::Unsaid))
        .map(|it| it.body.format())
        .collect();
    if !formats.is_empty() {
        let formats: Vec<String> = formats.iter().map(|it| Text(it).to_string()).collect();
        facts.push(("Format", formats.join(", ")));
    }
    let sensitive: Vec<String> = message
        .sensitive()
        .iter()
        .map(|it| {
            format!(
                "<code>{}</code>",
                Text(if it.is_empty() { "the whole body" } else { it })
            )
        })
        .collect();
    if !sensitive.is_empty() {
        facts.push(("Sensitive", sensitive.join(", ")));
    }
    main.push_str("<dl class=\"facts\">\n");
    for (name, fact) in facts {
        let _ = writeln!(main, "<div><dt>{name}</dt><dd>{fact}</dd></div>");
    }
    main.push_str("</dl>\n");
}

fn parties(links: &Links<'_>, message: &Message<'_>, main: &mut String) {
    main.push_str("<div class=\"pair\">\n<section aria-labelledby=\"sent\">\n<h2 id=\"sent\">Who sends it</h2>\n");
    if message.sent.is_empty() {
        main.push_str("<p class=\"none\">No document here says who sends it.</p>\n");
    } else {
        main.push_str("<ul class=\"parties\">\n");
        for (document, _) in &message.sent {
            let service = links.service(&document.service);
            let version = Text(&document.version);
            let _ = writeln!(
                main,
                "<li>{service} <span class=\"version\">{version}</span></li>"
            );
        }
        main.push_str("</ul>\n");
    }
    main.push_str("</section>\n<section aria-labelledby=\"received\">\n<h2 id=\"received\">Who receives it</h2>\n");
    if message.received.is_empty() {
        main.push_str("<p class=\"none\">No document here says who receives it.</p>\n");
    } else {
        main.push_str("<ul class=\"parties\">\n");
        for (document, contract) in &message.received {
            let _ = writeln!(
                main,
                "<li>{} <span class=\"version\">{}</span>\n<ul>\n{}</ul>\n</li>",
                links.service(&document.service),
                Text(&document.version),
                how_received(links, contract)
            );
        }
        main.push_str("</ul>\n");
    }
    main.push_str("</section>\n</div>\n");
}

fn how_received(links: &Links<'_>, contract: &Contract) -> String {
    let code = |text: &str| format!("<code>{}</code>", Text(text));
    let mut all = Vec::new();
    if let Some(queue) = &contract.queue {
        all.push(format!("from {}", code(queue)));
    }
    all.push(match &contract.dead_letters {
        Some(queue) => format!("dead letters in {}", code(queue)),
        None => "where dead letters go is not said".to_owned(),
    });
    match contract.acknowledges {
        Some(true) => {}
        Some(false) => all.push("without acknowledgement: a crash loses it".to_owned()),
        None => all.push("whether it is acknowledged is not said".to_owned()),
    }
    if !contract.older.is_empty() {
        let older: Vec<String> = contract.older.iter().map(|it| links.message(it)).collect();
        all.push(format!("makes it of {} as well", older.join(", ")));
    }
    all.iter().map(|it| format!("<li>{it}</li>\n")).collect()
}

/// What the services of the system do not understand of each other.
fn misfits(message: &Message<'_>, main: &mut String) {
    if message.findings.is_empty() {
        return;
    }
    main.push_str("<section class=\"note bad\" aria-labelledby=\"misfits\">\n<h2 id=\"misfits\">What does not fit</h2>\n<ul>\n");
    for it in &message.findings {
        let _ = writeln!(
            main,
            "<li>{}. {}.</li>",
            html::line(&it.what),
            html::line(&it.todo)
        );
    }
    main.push_str("</ul>\n</section>\n");
}

fn shown_examples(message: &Message<'_>, main: &mut String) {
    main.push_str("<section aria-labelledby=\"examples\">\n<h2 id=\"examples\">Examples</h2>\n");
    let all = message.examples();
    if all.is_empty() {
        main.push_str("<p class=\"none\">No document has one.</p>\n");
    }
    let sensitive = message.sensitive();
    main.push_str("<div class=\"examples\">\n");
    for it in all {
        let name = it.name.as_deref().unwrap_or("The usual one");
        let body = text_of(&examples::masked(&it.body, &sensitive));
        let _ = writeln!(main, "<div>\n<h3>{}</h3>", Text(name));
        code(main, &format!("Example: {name}"), &body);
        main.push_str("</div>\n");
    }
    main.push_str("</div>\n</section>\n");
}

fn schemas(message: &Message<'_>, main: &mut String) {
    main.push_str("<section aria-labelledby=\"schemas\">\n<h2 id=\"schemas\">Schemas</h2>\n");
    let written = message.sent.iter().map(|it| (it, "writes"));
    let read = message.received.iter().map(|it| (it, "reads"));
    for ((document, contract), does) in written.chain(read) {
        let title = format!("As {} {does} it", document.service);
        match &contract.body {
            Body::Json(schema) => details(main, &format!("{title}, JSON Schema"), &text_of(schema)),
            Body::Avro(schema) => details(main, &format!("{title}, Avro"), &text_of(schema)),
            Body::Protobuf { file, message } => {
                details(main, &format!("{title}, Protocol Buffers, {message}"), file);
            }
            Body::Other(format) => {
                let format = Text(format);
                let _ = writeln!(
                    main,
                    "<p>{}: by a schema in <code>{format}</code>, which is not shown.</p>",
                    Text(&title)
                );
            }
            Body::Unsaid => {
                let _ = writeln!(
                    main,
                    "<p class=\"none\">{}: its document does not say.</p>",
                    Text(&title)
                );
            }
        }
    }
    main.push_str("</section>\n");
}

fn details(main: &mut String, title: &str, schema: &str) {
    let _ = writeln!(main, "<details>\n<summary>{}</summary>", Text(title));
    code(main, title, schema);
    main.push_str("</details>\n");
}

fn code(main: &mut String, label: &str, text: &str) {
    let inside = format!("<pre><code>{}</code></pre>\n", Text(text));
    main.push_str(&scroll(label, &inside));
}

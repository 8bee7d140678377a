//! HTML: what all pages have, and how a stranger's text becomes part of one.
//!
//! Every name, description and body is somebody else's text. It gets into a page as [`Text`], and nowhere else.

use std::fmt::{self, Write};

use super::{Catalogue, message::Message};
use crate::document::MessageKind;

const STYLE: &str = include_str!("style.css");
const FILTER: &str = include_str!("filter.js");
/// The SHA-256 of [`FILTER`], so that no other script runs; a test that shows the page sees to it.
const FILTER_HASH: &str = "l/xd3roK2JylV5k6DmUBz+gRqa1xpyCPsP3CytpHv9k=";

/// A text that means itself wherever it stands in HTML.
pub(super) struct Text<'a>(pub(super) &'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                '\n' | '\t' => f.write_char(c)?,
                // Nobody sees them, and those that turn the direction make others see something else.
                c if c.is_control() || is_turning(c) => f.write_char('\u{fffd}')?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Whether it turns the direction of what is written beside it.
pub(super) const fn is_turning(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

/// A description: paragraphs, in which what stands between backticks is code.
pub(super) fn prose(text: &str) -> String {
    let mut html = String::new();
    for paragraph in text
        .split("\n\n")
        .map(str::trim)
        .filter(|it| !it.is_empty())
    {
        let _ = writeln!(html, "<p>{}</p>", line(paragraph));
    }
    html
}

/// The same of one line.
pub(super) fn line(text: &str) -> String {
    let parts: Vec<&str> = text.split('`').collect();
    // The last backtick of an odd number opens nothing.
    let pairs = (parts.len() - 1) / 2 * 2;
    let mut html = String::new();
    for (at, part) in parts.iter().enumerate() {
        let _ = match at {
            at if at % 2 == 1 && at < pairs => write!(html, "<code>{}</code>", Text(part)),
            at if at > pairs => write!(html, "`{}", Text(part)),
            _ => write!(html, "{}", Text(part)),
        };
    }
    html
}

/// What a description begins with.
pub(super) fn first_line(text: &str) -> &str {
    let paragraph = text.trim().split("\n\n").next().unwrap_or_default();
    match paragraph.find(". ") {
        Some(end) => &paragraph[..=end],
        None => paragraph,
    }
}

pub(super) const fn kind(kind: MessageKind) -> &'static str {
    match kind {
        MessageKind::Event => "event",
        MessageKind::Command => "command",
        MessageKind::Reply => "reply",
    }
}

/// A small word beside a name.
pub(super) fn badge(class: &str, word: &str) -> String {
    format!("<span class=\"badge {class}\">{}</span>", Text(word))
}

/// A box that scrolls what is too wide, also by the keyboard.
pub(super) fn scroll(label: &str, inside: &str) -> String {
    format!(
        "<div class=\"scroll\" role=\"group\" aria-label=\"{}\" tabindex=\"0\">\n{inside}</div>\n",
        Text(label)
    )
}

/// `1 message`, `2 messages`.
pub(super) fn counted(count: usize, word: &str) -> String {
    match count {
        1 => format!("1 {word}"),
        _ => format!("{count} {word}s"),
    }
}

/// A size as people say it.
pub(super) fn bytes(count: u64) -> String {
    match count {
        1 => "1 byte".to_owned(),
        count if count >= 1 << 20 && count % (1 << 20) == 0 => format!("{} MiB", count >> 20),
        count if count >= 1 << 10 && count % (1 << 10) == 0 => format!("{} KiB", count >> 10),
        count => format!("{count} bytes"),
    }
}

/// Links between pages, from a page in the folder `up` leads out of.
pub(super) struct Links<'a> {
    pub(super) catalogue: &'a Catalogue<'a>,
    /// The way to the first page's folder: empty, or `../`.
    pub(super) up: &'static str,
}

impl Links<'_> {
    /// A message's name, as a link if it has a page.
    pub(super) fn message(&self, name: &str) -> String {
        match self.catalogue.paths.message(name) {
            Some(path) => format!(
                "<a class=\"name\" href=\"{}{path}\">{}</a>",
                self.up,
                Text(name)
            ),
            None => format!("<span class=\"name\">{}</span>", Text(name)),
        }
    }

    /// A service's name, as a link.
    pub(super) fn service(&self, name: &str) -> String {
        match self.catalogue.paths.service(name) {
            Some(path) => format!("<a href=\"{}{path}\">{}</a>", self.up, Text(name)),
            None => Text(name).to_string(),
        }
    }

    /// Services, or a word for none.
    pub(super) fn services(&self, names: &[&str], none: &str) -> String {
        match names {
            [] => format!("<span class=\"none\">{none}</span>"),
            names => {
                let links: Vec<String> = names.iter().map(|it| self.service(it)).collect();
                links.join(", ")
            }
        }
    }
}

/// Beside a message's name: what it is, and whether it ends or does not fit.
pub(super) fn badges(message: &Message<'_>) -> String {
    let kind = kind(message.kind());
    let mut all = badge(kind, kind);
    if let Some(it) = message.deprecations().first() {
        let word = match &it.until {
            Some(until) => format!("deprecated, ends {until}"),
            None => format!("deprecated since {}", it.since),
        };
        all.push_str(&badge("ends", &word));
    }
    if !message.findings.is_empty() {
        all.push_str(&badge("bad", "does not fit"));
    }
    format!("<span class=\"badges\">{all}</span>")
}

/// A whole page.
pub(super) fn page(catalogue: &Catalogue<'_>, up: &str, title: &str, main: &str) -> String {
    let is_index = up.is_empty();
    let (script, policy) = match is_index {
        true => (
            format!("<script>{FILTER}</script>\n"),
            format!("script-src 'sha256-{FILTER_HASH}'; "),
        ),
        false => (String::new(), String::new()),
    };
    let system = Text(&catalogue.title);
    let title = match is_index {
        true => system.to_string(),
        false => format!("{} · {system}", Text(title)),
    };
    let index = if is_index { "" } else { "../index.html" };
    let home = match is_index {
        true => format!("<span class=\"home\">{MARK}{system}</span>"),
        false => format!("<a class=\"home\" href=\"{index}\">{MARK}{system}</a>"),
    };
    let documents = counted(catalogue.documents.len(), "AsyncAPI document");
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n{GENERATOR}\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; {policy}style-src 'unsafe-inline'\">\n\
         <title>{title}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
         <a class=\"skip\" href=\"#main\">Skip to the content</a>\n\
         <header class=\"top\">\n{home}\n<nav aria-label=\"Catalogue\">\n\
         <a href=\"{index}#messages\">Messages</a>\n<a href=\"{index}#services\">Services</a>\n\
         <a href=\"{index}#map\">Event map</a>\n</nav>\n</header>\n\
         <main id=\"main\" tabindex=\"-1\">\n{main}</main>\n\
         <footer><p>Made by Tidings from {documents}. What no document says is not here.</p></footer>\n\
         {script}</body>\n</html>\n"
    )
}

/// By which pages of an earlier catalogue are known.
pub(super) const GENERATOR: &str = "<meta name=\"generator\" content=\"tidings-contracts\">";

const MARK: &str = "<svg class=\"mark\" viewBox=\"0 0 32 32\" aria-hidden=\"true\"><path d=\"M4 9h18v15a3 3 0 0 1-3 \
                    3H7a3 3 0 0 1-3-3zM22 14h6v10a3 3 0 0 1-6 0M8 14h10M8 18h10M8 22h6\"/></svg>";

//! The table of a message's fields, with a column for each consumer: who breaks if one changes.

use std::fmt::Write;

use super::{
    examples,
    fields::{Field, Fields},
    html::{Links, Text, badge, line, prose, scroll},
    message::Message,
    readers::{Reader, Reading},
};
use crate::{document::Body, formats::Side};

/// Senders that write the same, and what that is.
struct Written<'a> {
    senders: Vec<&'a str>,
    fields: Fields,
}

pub(super) fn fields(links: &Links<'_>, message: &Message<'_>, main: &mut String) {
    main.push_str(
        "<section aria-labelledby=\"fields\">\n<h2 id=\"fields\">Fields, and who reads them</h2>\n",
    );
    let written = written(message);
    if written.is_empty() {
        main.push_str(
            "<p class=\"none\">No document here says what is sent. These are the fields that its consumers read.</p>\n",
        );
        let senders = message.senders();
        let nothing = Fields {
            all: Vec::new(),
            is_cut: false,
        };
        one(links, message, &senders, &nothing, main);
    }
    for it in &written {
        if written.len() > 1 {
            let _ = writeln!(
                main,
                "<h3>As {} writes it</h3>",
                Text(&it.senders.join(", "))
            );
        }
        one(links, message, &it.senders, &it.fields, main);
    }
    main.push_str("</section>\n");
}

fn written<'a>(message: &Message<'a>) -> Vec<Written<'a>> {
    let mut all: Vec<(&Body, Vec<&'a str>)> = Vec::new();
    for (document, contract) in &message.sent {
        match all.iter_mut().find(|(body, _)| **body == contract.body) {
            Some((_, senders)) => senders.push(&document.service),
            None => all.push((&contract.body, vec![&document.service])),
        }
    }
    let all = all.into_iter().filter_map(|(body, senders)| {
        let schema = body.fields(Side::Sender)?;
        Some(Written {
            senders,
            fields: Fields::of(&schema),
        })
    });
    all.collect()
}

fn one(
    links: &Links<'_>,
    message: &Message<'_>,
    senders: &[&str],
    written: &Fields,
    main: &mut String,
) {
    let readers: Vec<Reader<'_>> = message
        .received
        .iter()
        .map(|it| Reader::of(*it, senders, &message.findings))
        .collect();
    let sent: Vec<&Field> = written.all.iter().filter(|it| it.is_row()).collect();
    // Fields that a consumer knows and nobody writes.
    let mut others: Vec<&Field> = Vec::new();
    for field in readers
        .iter()
        .filter_map(|it| it.fields.as_ref())
        .flat_map(|it| &it.all)
    {
        let is_known =
            written.find(&field.path).is_some() || others.iter().any(|it| it.path == field.path);
        if field.is_row() && !is_known {
            others.push(field);
        }
    }
    if sent.is_empty() && others.is_empty() {
        let kind = written.all.first().map_or("not said", |it| &it.kind);
        let _ = writeln!(main, "<p>The body is {}, without fields.</p>", Text(kind));
        return;
    }
    readings(links, &readers, &sent, main);
    let mut rows = String::new();
    let sensitive = message.sensitive();
    for (field, is_sent) in sent
        .iter()
        .map(|it| (it, true))
        .chain(others.iter().map(|it| (it, false)))
    {
        rows.push_str(&row(field, is_sent, &readers, &sensitive));
    }
    let mut head = String::from("<th scope=\"col\">Field</th>");
    for reader in &readers {
        let service = links.service(reader.service);
        let _ = write!(head, "<th scope=\"col\" class=\"reader\">{service}</th>");
    }
    head.push_str("<th scope=\"col\">What it means</th>");
    let label = match senders {
        [] => "Fields".to_owned(),
        senders => format!("Fields as {} writes them", senders.join(", ")),
    };
    let table = format!(
        "<table class=\"fields\">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n"
    );
    main.push_str(&scroll(&label, &table));
    let is_cut = written.is_cut
        || readers
            .iter()
            .any(|it| it.fields.as_ref().is_some_and(|it| it.is_cut));
    if is_cut {
        main.push_str(
            "<p class=\"note ends\">There is more than is shown here: see the schemas.</p>\n",
        );
    }
}

/// What each consumer needs, and what the words in its column mean.
fn readings(links: &Links<'_>, readers: &[Reader<'_>], sent: &[&Field], main: &mut String) {
    if readers.is_empty() {
        return;
    }
    if !sent.is_empty() {
        main.push_str("<ul class=\"summary\">\n");
        for reader in readers {
            let service = links.service(reader.service);
            let _ = writeln!(main, "<li>{service}: {}</li>", reader.summary(sent));
        }
        main.push_str("</ul>\n");
    }
    main.push_str("<details class=\"legend\">\n<summary>What the columns say</summary>\n<dl>\n");
    for reading in Reading::ALL {
        let (word, class, meaning) = reading.told();
        let _ = writeln!(
            main,
            "<div><dt>{}</dt><dd>{meaning}</dd></div>",
            badge(class, word)
        );
    }
    main.push_str("</dl>\n</details>\n");
}

fn row(field: &Field, is_sent: bool, readers: &[Reader<'_>], sensitive: &[&str]) -> String {
    let mut about = field.description.as_deref().map(prose).unwrap_or_default();
    if !field.limits.is_empty() {
        let limits: Vec<String> = field.limits.iter().map(|it| line(it)).collect();
        let _ = write!(about, "<p class=\"limits\">{}</p>", limits.join("; "));
    }
    let sensitive = match examples::is_sensitive(&field.path, sensitive) {
        true => badge("secret", "sensitive"),
        false => String::new(),
    };
    let sent = match (is_sent, field.required) {
        (true, true) => "",
        (true, false) => ", may be left out",
        (false, _) => ", never sent",
    };
    let mut row = format!(
        "<tr><th scope=\"row\" style=\"--depth:{}\"><code title=\"{}\">{}</code>{sensitive}\n\
         <span class=\"type\">{}{sent}</span></th>",
        field.depth(),
        Text(&field.dotted()),
        Text(field.name()),
        Text(&field.kind),
    );
    for reader in readers {
        let (word, class, meaning) = reader.reading(field).told();
        let _ = write!(
            row,
            "<td class=\"reader\"><span class=\"badge {class}\" title=\"{meaning}\">{word}</span></td>"
        );
    }
    format!("{row}<td class=\"about\">{about}</td></tr>\n")
}

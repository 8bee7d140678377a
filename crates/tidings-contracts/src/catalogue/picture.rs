//! The event map as documents have it: who sends what, and who receives it.

use serde_json::json;
use tidings::event_map::{EventMap, ServiceMap};

use super::html::{self, is_turning};
use crate::document::{Contract, Document, MessageKind};

/// The map of what documents say. A document does not say what follows from what, so a service is one box: whatever it
/// sends follows from all that it receives.
pub(super) fn map_of(documents: &[Document]) -> EventMap {
    documents
        .iter()
        .filter(|it| !it.sends.is_empty() || !it.receives.is_empty())
        .map(service)
        .fold(EventMap::default(), EventMap::with)
}

fn service(document: &Document) -> ServiceMap {
    let sends: Vec<_> = document
        .sends
        .iter()
        .map(|it| json!({ "message": it.name, "kind": it.kind }))
        .collect();
    let handler = |it: &Contract| {
        json!({
            "message": it.name,
            "kind": it.kind,
            "queue": it.queue.as_deref().unwrap_or(&it.address),
            "topic": (it.kind == MessageKind::Event).then_some(&it.address),
            "emits": sends,
        })
    };
    let written = match document.receives.is_empty() {
        true => json!({ "name": document.service, "emits": sends }),
        false => json!({
            "name": document.service,
            "handlers": document.receives.iter().map(handler).collect::<Vec<_>>(),
        }),
    };
    // An error is impossible: it has all that a service on the map needs, and a test draws it.
    serde_json::from_value(written)
        .unwrap_or_else(|error| unreachable!("a service on the map: {error}"))
}

/// The picture in a box that scrolls it, and colours it for the night.
pub(super) fn drawn(map: &EventMap, title: &str) -> String {
    let svg = map.to_svg(&format!("Who sends and who receives what in {title}"));
    // The picture leaves these in names.
    let svg = svg.replace(is_turning, "\u{fffd}");
    // As wide as it is drawn: letters that are made to fit a phone cannot be read.
    let width = svg
        .split_once("viewBox=\"0 0 ")
        .and_then(|(_, rest)| rest.split(' ').next())
        .unwrap_or("800");
    let inside = format!("<div class=\"picture\" style=\"width:{width}px\">\n{svg}</div>\n");
    html::scroll("Event map", &inside)
}

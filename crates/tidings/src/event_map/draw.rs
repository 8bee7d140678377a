//! The event map as text that other programs draw: Mermaid and Graphviz.

use std::fmt::Write;

use super::{
    EventMap,
    boxes::{Node, Picture, Shape},
};

impl EventMap {
    /// A flowchart in Mermaid, which GitHub and many wikis draw. Services are boxes, events are rounded,
    /// commands are hexagons.
    pub fn to_mermaid(&self) -> String {
        let picture = Picture::of(self);
        let mut text = String::from("flowchart TD\n");
        for (place, node) in picture.nodes.iter().enumerate() {
            let label = lines(node, mermaid_escaped, "<br/>");
            let (open, close) = match node.shape {
                Shape::Service => ("[", "]"),
                Shape::Saga => ("[[", "]]"),
                Shape::Outside => ("[/", "/]"),
                Shape::Clock => ("((", "))"),
                Shape::Event => ("([", "])"),
                Shape::Command => ("{{", "}}"),
            };
            let _ = writeln!(text, "  n{place}{open}\"{label}\"{close}");
        }
        for (from, to) in &picture.arrows {
            let _ = writeln!(text, "  n{from} --> n{to}");
        }
        text
    }

    /// A graph in the DOT language of Graphviz: `dot -Tsvg`.
    pub fn to_dot(&self) -> String {
        let picture = Picture::of(self);
        let mut text = String::from("digraph event_map {\n  node [fontname=\"sans-serif\"];\n");
        for (place, node) in picture.nodes.iter().enumerate() {
            let label = lines(node, dot_escaped, "\\n");
            let look = match node.shape {
                Shape::Service => "shape=box",
                Shape::Saga => "shape=box, peripheries=2",
                Shape::Outside => "shape=box, style=dashed",
                Shape::Clock => "shape=circle",
                Shape::Event => "shape=box, style=rounded",
                Shape::Command => "shape=hexagon",
            };
            let _ = writeln!(text, "  n{place} [label=\"{label}\", {look}];");
        }
        for (from, to) in &picture.arrows {
            let _ = writeln!(text, "  n{from} -> n{to};");
        }
        text.push_str("}\n");
        text
    }
}

fn lines(node: &Node, escaped: fn(&str) -> String, between: &str) -> String {
    let mut label = escaped(&node.label);
    if let Some(detail) = &node.detail {
        label.push_str(between);
        label.push_str(&escaped(detail));
    }
    label
}

/// Names in a map of a stranger may be anything.
fn mermaid_escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // What Markdown or HTML would take for its own.
            '"' | '#' | '&' | '<' | '>' | '`' | '\\' | ';' => {
                let _ = write!(escaped, "#{};", u32::from(c));
            }
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

fn dot_escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '"' | '\\' => escaped.extend(['\\', c]),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

//! The event map as a picture, for documents: drawn without any other program, the same each time.

use std::fmt::Write;

use super::{
    EventMap,
    boxes::{Node, Picture, Shape},
    layout::lay_out,
};

const MARGIN: f64 = 16.0;
const ROW_HEIGHT: f64 = 84.0;
const NODE_HEIGHT: f64 = 40.0;
/// The width of a letter, on average, and what is left free beside the text.
const LETTER: f64 = 7.0;
const DETAIL_LETTER: f64 = 6.2;
const PADDING: f64 = 30.0;

const STYLE: &str = "\
 .bg{fill:#fff} .service{fill:#eef4ff;stroke:#3b6fd4} .outside{fill:#f6f6f4;stroke:#8a8a80;stroke-dasharray:5 4}
 .saga{fill:#e4ecfb;stroke:#3b6fd4;stroke-width:3} .clock{fill:#eef7ee;stroke:#4b8b4b} .event{fill:#fff7e6;stroke:#d08a1d}
 .command{fill:#f3ecfb;stroke:#7b4fb5} rect,polygon{stroke-width:1.5} text{fill:#1d2430;text-anchor:middle}
 .d{font-size:11px;fill:#4b5563} .b{font-weight:600} .l{fill:none;stroke:#5b6472;stroke-width:1.3;marker-end:url(#a)}
";

impl EventMap {
    /// A picture in SVG. Services are blue boxes, events are rounded, commands are hexagons, programs
    /// outside are dashed; arrows lead from who sends to the message, and on to who handles it.
    pub fn to_svg(&self, title: &str) -> String {
        let picture = Picture::of(self);
        let widths: Vec<f64> = picture.nodes.iter().map(width).collect();
        let layout = lay_out(&widths, &picture.arrows);
        let size = (
            (layout.width + 2.0 * MARGIN).ceil(),
            2.0 * MARGIN + layout.rows as f64 * ROW_HEIGHT - (ROW_HEIGHT - NODE_HEIGHT),
        );
        let mut svg = String::new();
        let title = escaped(title);
        let _ = write!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" \
             font-family=\"ui-sans-serif, system-ui, Helvetica, Arial, sans-serif\" font-size=\"13\" \
             role=\"img\" aria-labelledby=\"t\">\n<title id=\"t\">{title}</title>\n\
             <style>\n{STYLE}</style>\n<defs><marker id=\"a\" viewBox=\"0 0 10 10\" refX=\"9\" refY=\"5\" \
             markerWidth=\"7\" markerHeight=\"7\" orient=\"auto-start-reverse\">\
             <path d=\"M0 0 10 5 0 10z\" fill=\"#5b6472\"/></marker></defs>\n\
             <rect class=\"bg\" width=\"{}\" height=\"{}\" rx=\"8\"/>\n",
            size.0, size.1, size.0, size.1
        );
        for way in &layout.ways {
            svg.push_str(&arrow(way));
        }
        for ((node, (x, row)), width) in picture.nodes.iter().zip(&layout.places).zip(&widths) {
            svg.push_str(&drawn(node, MARGIN + x, y_of(*row), *width));
        }
        svg.push_str("</svg>\n");
        svg
    }
}

fn width(node: &Node) -> f64 {
    let label = node.label.chars().count() as f64 * LETTER;
    let detail = node
        .detail
        .as_ref()
        .map_or(0, |detail| detail.chars().count());
    label.max(detail as f64 * DETAIL_LETTER) + PADDING
}

/// The middle of a row.
fn y_of(row: usize) -> f64 {
    MARGIN + NODE_HEIGHT / 2.0 + row as f64 * ROW_HEIGHT
}

/// A line through the points, upright at each of them.
fn arrow(way: &[(f64, usize)]) -> String {
    let points = way.iter().map(|(x, row)| (MARGIN + x, y_of(*row)));
    let mut points: Vec<(f64, f64)> = points.collect();
    let last = points.len() - 1;
    let half = NODE_HEIGHT / 2.0;
    if way[0].1 == way[last].1 {
        return format!(
            "<path class=\"l\" d=\"M{} {}h14v{half}h-14\"/>\n",
            points[0].0.round() + half,
            points[0].1 - half / 2.0
        );
    }
    let is_down = way[0].1 < way[last].1;
    let edge = if is_down { half } else { -half };
    points[0].1 += edge;
    points[last].1 -= edge;
    let mut path = format!(
        "<path class=\"l\" d=\"M{} {}",
        points[0].0.round(),
        points[0].1
    );
    for (at, pair) in points.windows(2).enumerate() {
        let ((from_x, mut from_y), (x, mut y)) = (pair[0], pair[1]);
        // Straight past the nodes of a row that it only passes.
        if at > 0 {
            from_y += edge;
            let _ = write!(path, "V{from_y}");
        }
        if at + 2 < points.len() {
            y -= edge;
        }
        let middle = f64::midpoint(from_y, y);
        let _ = write!(
            path,
            "C{} {middle} {} {middle} {} {y}",
            from_x.round(),
            x.round(),
            x.round()
        );
    }
    path.push_str("\"/>\n");
    path
}

fn drawn(node: &Node, x: f64, y: f64, width: f64) -> String {
    let (x, left) = (x.round(), (x - width / 2.0).round());
    let top = y - NODE_HEIGHT / 2.0;
    let width = width.round();
    let rect = |class: &str, radius: u32| {
        format!(
            "<rect class=\"{class}\" x=\"{left}\" y=\"{top}\" width=\"{width}\" \
             height=\"{NODE_HEIGHT}\" rx=\"{radius}\"/>"
        )
    };
    let shape = match node.shape {
        Shape::Service => rect("service", 6),
        Shape::Outside => rect("outside", 6),
        Shape::Saga => rect("saga", 6),
        Shape::Clock => rect("clock", 6),
        Shape::Event => rect("event", 20),
        Shape::Command => {
            let (right, bottom) = (left + width, top + NODE_HEIGHT);
            format!(
                "<polygon class=\"command\" points=\"{left},{y} {},{top} {},{top} {right},{y} \
                 {},{bottom} {},{bottom}\"/>",
                left + 12.0,
                right - 12.0,
                right - 12.0,
                left + 12.0
            )
        }
    };
    let bold = match node.shape {
        Shape::Event | Shape::Command => "",
        _ => " class=\"b\"",
    };
    let label = escaped(&node.label);
    let text = match &node.detail {
        None => format!("<text{bold} x=\"{x}\" y=\"{}\">{label}</text>", y + 4.0),
        Some(detail) => format!(
            "<text{bold} x=\"{x}\" y=\"{}\">{label}</text><text class=\"d\" x=\"{x}\" \
             y=\"{}\">{}</text>",
            y - 2.0,
            y + 13.0,
            escaped(detail)
        ),
    };
    format!("{shape}{text}\n")
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

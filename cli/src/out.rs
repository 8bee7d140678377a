//! What the command prints: one [`Report`] per verb, as a page for people or as one JSON document.
//!
//! Whatever comes from messages and databases is a stranger's text: on a page its control characters
//! are shown, never sent to the terminal. Colours and cut columns are for terminals only.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use console::{Style, Term, measure_text_width, truncate_str};
use jiff::Timestamp;
use serde::Serialize;

/// What a verb found or did. As JSON it is what [`Serialize`] says: an object whose members are in
/// camelCase, and whose shape is documented with the verb.
pub(crate) trait Report: Serialize {
    /// Writes it down for people.
    fn tell(&self, page: &mut Page);
}

/// Where reports go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Out {
    is_json: bool,
}

impl Out {
    pub(crate) fn new(is_json: bool) -> Self {
        Self { is_json }
    }

    /// Prints a report.
    ///
    /// # Errors
    ///
    /// When stdout cannot be written. That its reader has gone away is none.
    pub(crate) fn show(&self, report: &impl Report) -> anyhow::Result<()> {
        let text = match self.is_json {
            true => {
                let mut text = serde_json::to_string_pretty(report)?;
                text.push('\n');
                text
            }
            false => {
                let mut page = Page::new();
                report.tell(&mut page);
                page.text
            }
        };
        self.bytes(text.as_bytes())
    }

    /// Prints bytes as they are.
    ///
    /// # Errors
    ///
    /// As [`show`](Self::show).
    pub(crate) fn bytes(&self, bytes: &[u8]) -> anyhow::Result<()> {
        self.stream(bytes).map(drop)
    }

    /// One report of many: a document in one line, or a page.
    ///
    /// # Errors
    ///
    /// When it cannot be written as JSON.
    pub(crate) fn one_of_many(&self, report: &impl Report) -> anyhow::Result<Vec<u8>> {
        if self.is_json {
            let mut line = serde_json::to_vec(report)?;
            // A body keeps its white space; in texts line breaks are escaped.
            line.retain(|byte| !matches!(byte, b'\n' | b'\r'));
            line.push(b'\n');
            return Ok(line);
        }
        let mut page = Page::new();
        report.tell(&mut page);
        Ok(page.text.into_bytes())
    }

    /// Prints a part of something that goes on. False if nobody reads it any more.
    ///
    /// # Errors
    ///
    /// When stdout cannot be written.
    #[expect(clippy::unused_self, reason = "as the other ways to print")]
    pub(crate) fn stream(&self, bytes: &[u8]) -> anyhow::Result<bool> {
        let mut out = io::stdout().lock();
        match out.write_all(bytes).and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            done => Ok(done.map(|()| true)?),
        }
    }

    /// Says something that is no data: on stderr.
    #[expect(
        clippy::unused_self,
        reason = "what is said may depend on the options one day"
    )]
    pub(crate) fn note(&self, text: &str) {
        let _ = writeln!(io::stderr(), "{}", plain(text));
    }
}

/// A text for people under way.
#[derive(Debug)]
pub(crate) struct Page {
    text: String,
    /// The columns of the terminal, if it is one.
    width: Option<usize>,
}

impl Page {
    fn new() -> Self {
        let columns = || Some(usize::from(Term::stdout().size_checked()?.1));
        let is_terminal = io::stdout().is_terminal();
        Self {
            text: String::new(),
            width: is_terminal.then(columns).flatten(),
        }
    }

    /// A line of ours, with what strangers wrote in it.
    pub(crate) fn line(&mut self, text: impl AsRef<str>) {
        self.text.push_str(&plain(text.as_ref()));
        self.text.push('\n');
    }

    /// A line of ours that ends where the terminal does.
    pub(crate) fn fitted(&mut self, text: &str) {
        let text = plain(&one_line(text));
        match self.width {
            Some(columns) => self.text.push_str(&truncate_str(&text, columns, "…")),
            None => self.text.push_str(&text),
        }
        self.text.push('\n');
    }

    /// A line that stands out.
    pub(crate) fn title(&mut self, text: impl AsRef<str>) {
        let title = Style::new().bold().apply_to(plain(text.as_ref()));
        let _ = writeln!(self.text, "{title}");
    }

    /// A text of ours, with its line breaks.
    pub(crate) fn text(&mut self, text: &str) {
        self.text.push_str(text);
    }

    /// Rows under headings, each column as wide as it must be. On a terminal the last column ends
    /// where the terminal does.
    pub(crate) fn table(&mut self, headings: &[&str], rows: &[Vec<Cell>]) {
        let wide = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            let widest = cells.map(|cell| measure_text_width(&cell.text)).max();
            widest.unwrap_or(0).max(headings[column].len())
        };
        let widths: Vec<usize> = (0..headings.len()).map(wide).collect();
        let headings = headings.iter().map(|text| Cell {
            text: (*text).to_owned(),
            style: Style::new().bold(),
        });
        self.row(&widths, &headings.collect::<Vec<_>>());
        for row in rows {
            self.row(&widths, row);
        }
    }

    fn row(&mut self, widths: &[usize], row: &[Cell]) {
        let mut at = 0;
        for (column, (cell, width)) in row.iter().zip(widths).enumerate() {
            let is_last = column + 1 == row.len();
            let mut text = cell.text.clone();
            if is_last && let Some(columns) = self.width {
                let room = columns.saturating_sub(at).max(12);
                text = truncate_str(&text, room, "…").into_owned();
            }
            let _ = write!(self.text, "{}", cell.style.apply_to(&text));
            if !is_last {
                let gap = width + 2 - measure_text_width(&text);
                self.text.extend(std::iter::repeat_n(' ', gap));
                at += width + 2;
            }
        }
        self.text.push('\n');
    }
}

/// A field of a table.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// Something that is wrong.
    pub(crate) fn bad(text: impl AsRef<str>) -> Self {
        Self::styled(text.as_ref(), Style::new().red())
    }

    /// Something to look at.
    pub(crate) fn warning(text: impl AsRef<str>) -> Self {
        Self::styled(text.as_ref(), Style::new().yellow())
    }

    /// Something that is as it should be.
    pub(crate) fn good(text: impl AsRef<str>) -> Self {
        Self::styled(text.as_ref(), Style::new().green())
    }

    fn styled(text: &str, style: Style) -> Self {
        Self {
            text: plain(text),
            style,
        }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(text.as_ref(), Style::new())
    }
}

/// A number that should be zero.
pub(crate) fn should_be_zero(count: u64) -> Cell {
    match count {
        0 => "0".into(),
        _ => Cell::warning(count.to_string()),
    }
}

/// A count with its words: `1 letter is`, `2 letters are`.
pub(crate) fn counted(count: u64, one: &str, many: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {many}"),
    }
}

/// A text in which nothing commands a terminal: control characters, and those that change the
/// direction of the text, are shown as Rust writes them.
pub(crate) fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => plain.push('\n'),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                plain.extend(character.escape_unicode());
            }
            _ if character.is_control() => plain.extend(character.escape_default()),
            _ => plain.push(character),
        }
    }
    plain
}

/// The same in one line.
pub(crate) fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}

/// How long ago something was, or how long it is until then.
pub(crate) fn from_now(time: Timestamp) -> String {
    let span = time.duration_since(Timestamp::now());
    let length = brief(span.unsigned_abs());
    match span.is_negative() {
        true => format!("{length} ago"),
        false => format!("in {length}"),
    }
}

/// A duration in its two largest units.
pub(crate) fn brief(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {}m", minutes % 60),
        _ => format!("{days}d {}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strangers_text_does_not_command_the_terminal() {
        let check = |text: &str, expected: &str| assert_eq!(plain(text), expected);
        check("ünïcode 🦀", "ünïcode 🦀");
        check("\u{1b}[31mred", "\\u{1b}[31mred");
        check("a\rb\tc", "a\\rb\\tc");
        check("\u{202e}gnp.exe", "\\u{202e}gnp.exe");
        check("\u{9b}2J", "\\u{9b}2J");
    }

    #[test]
    fn one_thing_is_told_as_one() {
        let check = |count, expected: &str| {
            assert_eq!(counted(count, "letter is", "letters are"), expected);
        };
        check(0, "0 letters are");
        check(1, "1 letter is");
        check(2, "2 letters are");
        check(11, "11 letters are");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_field() {
        let mut page = Page {
            text: String::new(),
            width: None,
        };
        let rows = [
            vec!["größe".into(), "1".into()],
            vec!["a".into(), "22".into()],
        ];
        page.table(&["NAME", "N"], &rows);
        assert_eq!(page.text, "NAME   N\ngröße  1\na      22\n");
        page.width = Some(20);
        page.text.clear();
        page.table(&["N", "WHY"], &[vec!["1".into(), "x".repeat(50).into()]]);
        assert_eq!(
            page.text.lines().last().unwrap(),
            format!("1  {}…", "x".repeat(16))
        );
    }

    #[test]
    fn durations_are_told_in_two_units() {
        let check =
            |seconds, expected: &str| assert_eq!(brief(Duration::from_secs(seconds)), expected);
        check(0, "0s");
        check(61, "1m 1s");
        check(7_260, "2h 1m");
        check(90_000, "1d 1h");
    }
}

//! `tidings explain`: the page of an error's code, from `docs/errors`, which is in the program.

use anyhow::bail;
use serde::Serialize;

use crate::{
    frame::{Ended, Frame, Usage},
    out::{Page, Report},
};

/// Each code and its page, by code.
const PAGES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/pages.rs"));

/// How many codes are named for one that is not there.
const NEAR_MAX: usize = 5;

/// Explains the code of an error: what happened, why, and what to do.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The code, as it stands at the end of an error: `TDG-1001`, or `1001`.
    code: String,
}

const EXAMPLES: &str = "\
Examples:
  tidings explain TDG-1001
  tidings explain 9003 --json

As JSON: {code, title, page}; the page is Markdown.";

/// The page of a code.
#[derive(Debug, Serialize)]
struct Explained {
    code: &'static str,
    title: &'static str,
    page: &'static str,
}

impl Report for Explained {
    fn tell(&self, page: &mut Page) {
        page.text(self.page);
    }
}

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        let asked = self.code.trim().to_ascii_uppercase();
        let asked = match asked.starts_with("TDG-") {
            true => asked,
            false => format!("TDG-{asked}"),
        };
        let Some((code, page)) = PAGES.iter().find(|(code, _)| *code == asked) else {
            let near = near(&asked).join("\n  ");
            bail!(Usage::new(format!(
                "there is no code `{}`; near it are\n  {near}",
                self.code
            )));
        };
        let title = title(page);
        frame.out.show(&Explained { code, title, page })?;
        Ok(Ended::Done)
    }
}

/// What stands after the code in the first line of its page.
fn title(page: &str) -> &str {
    let first = page.lines().next().unwrap_or_default();
    first.split_once(": ").map_or(first, |(_, title)| title)
}

/// The codes that are most like one that is not there, each with its title.
fn near(asked: &str) -> Vec<String> {
    let number = |code: &str| code.trim_start_matches("TDG-").parse::<i64>();
    let distance = |code: &str| match (number(asked), number(code)) {
        (Ok(asked), Ok(code)) => {
            // A wrong digit is nearer than another thousand.
            let (asked_text, code_text) = (asked.to_string(), code.to_string());
            let same = asked_text.chars().zip(code_text.chars());
            let wrong = same.filter(|(asked, code)| asked != code).count();
            (wrong, (asked - code).abs())
        }
        _ => (0, 0),
    };
    let mut pages: Vec<&(&str, &str)> = PAGES.iter().collect();
    pages.sort_by_key(|(code, _)| distance(code));
    let near = pages.into_iter().take(NEAR_MAX);
    near.map(|(code, page)| format!("{code}  {}", title(page)))
        .collect()
}

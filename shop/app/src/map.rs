//! `shop map`: which service handles and sends what. The map goes to stdout, what may be wrong with it
//! to stderr.

use std::{io::Write, process::ExitCode};

use anyhow::Context;
use shop_contracts::CheckoutStyle;

use crate::cli::{MapFormat, MapOptions, Options};

pub(crate) fn print(asked: &MapOptions, options: &Options) -> anyhow::Result<ExitCode> {
    let map = options.without.event_map(options.checkout);
    let text = match asked.format {
        MapFormat::Mermaid => map.to_mermaid(),
        MapFormat::Dot => map.to_dot(),
        MapFormat::Json => map.to_json(),
        MapFormat::Svg => map.to_svg(&title(options.checkout)),
    };
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("the map cannot be written to stdout")?;
    let findings = map.check();
    for finding in &findings {
        eprintln!("{finding}");
    }
    Ok(match asked.check && !findings.is_empty() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

/// What stands above the picture.
fn title(style: CheckoutStyle) -> String {
    format!("The shop in {}: who handles and sends what", style.as_str())
}

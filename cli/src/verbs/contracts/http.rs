//! What is fetched from other programs over HTTP, with limits.

use std::{error::Error as StdError, time::Duration};

use reqwest::Client;

/// How long an answer may take to come.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// The largest answer that is read.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// How much of an answer that says no is told.
const REASON_CHARACTERS_MAX: usize = 300;

/// The text at a URL; or what went wrong, without the URL.
pub(super) async fn fetch(url: &str) -> Result<String, String> {
    let told = |error: reqwest::Error| chain(&error.without_url());
    // There may be one already; it is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder().timeout(ANSWER_MAX).build();
    let mut answer = client.map_err(told)?.get(url).send().await.map_err(told)?;
    let mut bytes = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(told)? {
        bytes.extend_from_slice(&part);
        if bytes.len() > BYTES_MAX {
            return Err(format!("it has more than {BYTES_MAX} bytes"));
        }
    }
    let text = String::from_utf8(bytes).map_err(|error| error.to_string())?;
    let status = answer.status();
    if status.is_success() {
        return Ok(text);
    }
    let reason: String = text.trim().chars().take(REASON_CHARACTERS_MAX).collect();
    Err(match reason.is_empty() {
        true => format!("it answers with {status}"),
        false => format!("it answers with {status}: {reason}"),
    })
}

/// An error with what caused it, which alone says what is wrong.
fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

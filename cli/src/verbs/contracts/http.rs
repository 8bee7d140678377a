//! What is fetched from and sent to other programs over HTTP, with limits.

use std::{fmt, time::Duration};

use reqwest::{Client, RequestBuilder, StatusCode};

/// How long an answer may take to come.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// The largest answer that is read.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// How much of an answer that says no is told.
const REASON_CHARACTERS_MAX: usize = 300;

/// A client that speaks TLS.
pub(super) fn client() -> Result<Client, String> {
    // There may be one already; it is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder().timeout(ANSWER_MAX);
    client.build().map_err(|error| chain(&error))
}

/// The text of an answer, and what kind of answer it is.
pub(super) async fn answer(request: RequestBuilder) -> Result<(StatusCode, String), String> {
    let answer = request.send().await;
    let mut answer = answer.map_err(|error| chain(&error.without_url()))?;
    let mut bytes = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(|error| chain(&error.without_url()))? {
        bytes.extend_from_slice(&part);
        if bytes.len() > BYTES_MAX {
            return Err(format!("it has more than {BYTES_MAX} bytes"));
        }
    }
    let text = String::from_utf8(bytes).map_err(|error| error.to_string())?;
    Ok((answer.status(), text))
}

/// The text of an answer that is what was asked for.
pub(super) async fn text(request: RequestBuilder) -> Result<String, String> {
    let (status, text) = answer(request).await?;
    match status.is_success() {
        true => Ok(text),
        false => Err(refused(status, &text)),
    }
}

/// What is told of an answer that says no.
pub(super) fn refused(status: StatusCode, text: &str) -> String {
    let reason: String = text.trim().chars().take(REASON_CHARACTERS_MAX).collect();
    match reason.is_empty() {
        true => format!("it answers with {status}"),
        false => format!("it answers with {status}: {reason}"),
    }
}

/// An error with what caused it, which alone says what is wrong.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let separator = if text.is_empty() { "" } else { ": " };
        let _ = fmt::Write::write_fmt(&mut text, format_args!("{separator}{error}"));
        next = error.source();
    }
    text
}

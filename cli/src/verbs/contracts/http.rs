//! What is asked of other programs over HTTP, with limits.

use std::{error::Error as StdError, time::Duration};

use reqwest::{Client, RequestBuilder, StatusCode, header, redirect::Policy};

/// How long an answer may take to come.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// The largest answer that is read.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// How much of an answer that says no is told.
const REASON_CHARACTERS_MAX: usize = 300;

/// What another program says.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// Where it leads, if it says so.
    pub(super) location: Option<String>,
    pub(super) text: String,
}

/// Asks other programs; `redirects` says whether those that lead elsewhere are followed.
pub(super) fn client(redirects: Policy) -> Result<Client, String> {
    // There may be one already; it is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder().timeout(ANSWER_MAX).redirect(redirects);
    client.build().map_err(told)
}

/// What is answered, whatever its status; or why nothing is, without the URL.
pub(super) async fn send(request: RequestBuilder) -> Result<Answer, String> {
    let mut answer = request.send().await.map_err(told)?;
    let mut bytes = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(told)? {
        bytes.extend_from_slice(&part);
        if bytes.len() > BYTES_MAX {
            return Err(format!("it has more than {BYTES_MAX} bytes"));
        }
    }
    let location = answer.headers().get(header::LOCATION);
    Ok(Answer {
        status: answer.status(),
        location: location.and_then(|it| Some(it.to_str().ok()?.to_owned())),
        text: String::from_utf8(bytes).map_err(|error| error.to_string())?,
    })
}

/// The text at a URL; or what went wrong, without the URL.
pub(super) async fn fetch(url: &str) -> Result<String, String> {
    let answer = send(client(Policy::default())?.get(url)).await?;
    match answer.status.is_success() {
        true => Ok(answer.text),
        false => Err(answer.refusal(&answer.text)),
    }
}

impl Answer {
    /// That it says no, and in which words.
    pub(super) fn refusal(&self, words: &str) -> String {
        let reason: String = words.trim().chars().take(REASON_CHARACTERS_MAX).collect();
        match reason.is_empty() {
            true => format!("it answers with {}", self.status),
            false => format!("it answers with {}: {reason}", self.status),
        }
    }
}

/// An error with what caused it, which alone says what is wrong.
fn told(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

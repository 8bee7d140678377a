//! Reads JSON bodies, and turns whatever is wrong with one into a [`Problem`] with the right
//! status: 413 too large, 415 not JSON by its own account, 400 not JSON in fact, 422 JSON that
//! makes no sense here.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Query, Request},
    http::{HeaderMap, header, request::Parts},
};
use http_body_util::BodyExt;
use serde::{de::DeserializeOwned, de::IgnoredAny};

use crate::Problem;

/// The largest body that any call of the shop takes.
pub const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// How much of a body that is too large is read and thrown away before it is refused.
const DISCARDED_BYTES_MAX: usize = 8 * 1024 * 1024;

/// How long a body may take to arrive.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);

/// A body of JSON.
#[derive(Debug)]
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        is_json(&parts.headers)?;
        read(body).await.map(Self)
    }
}

async fn read<T: DeserializeOwned>(body: Body) -> Result<T, Problem> {
    match tokio::time::timeout(REQUEST_TIMEOUT, collect(body)).await {
        Ok(bytes) => parse(&bytes?),
        Err(_) => Err(Problem::malformed(format_args!(
            "the body did not arrive within {REQUEST_TIMEOUT:?}"
        ))),
    }
}

/// Reads on past the limit for a while: a client that is still sending would not see the answer.
async fn collect(mut body: Body) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|_| Problem::malformed("the body ended before it was complete"))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        length += data.len();
        if length <= REQUEST_BYTES_MAX {
            bytes.extend_from_slice(&data);
        }
        if length > DISCARDED_BYTES_MAX {
            break;
        }
    }
    if length > REQUEST_BYTES_MAX {
        return Err(Problem::too_large(format_args!(
            "a body may have {REQUEST_BYTES_MAX} bytes"
        )));
    }
    Ok(bytes)
}

/// The syntax first: a body that is not JSON is 400 even if its first field already makes no
/// sense.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice::<IgnoredAny>(bytes)
        .map_err(|error| Problem::malformed(format_args!("the body is not JSON: {error}")))?;
    serde_json::from_slice(bytes)
        .map_err(|error| Problem::invalid(format_args!("the body does not fit: {error}")))
}

fn is_json(headers: &HeaderMap) -> Result<(), Problem> {
    let content_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json")
        || essence.to_ascii_lowercase().ends_with("+json")
    {
        return Ok(());
    }
    Err(Problem::not_json(format_args!(
        "send `content-type: application/json`, not `{essence}`"
    )))
}

/// The parameters after the `?`, or a [`Problem`].
#[derive(Debug)]
pub struct QueryOf<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for QueryOf<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(query)) => Ok(Self(query)),
            Err(rejection) => Err(Problem::malformed(rejection.body_text())),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Restock {
        #[expect(dead_code, reason = "only whether it can be read matters")]
        quantity: u32,
    }

    async fn check(content_type: &str, body: impl Into<Body>, expected: u16) {
        let request = Request::builder()
            .header(header::CONTENT_TYPE, content_type)
            .body(body.into())
            .unwrap();
        let status = match JsonBody::<Restock>::from_request(request, &()).await {
            Ok(_) => 200,
            Err(problem) => problem.status().as_u16(),
        };
        assert_eq!(status, expected);
    }

    #[tokio::test]
    async fn each_way_a_body_can_be_wrong_has_its_status() {
        check("application/json", r#"{"quantity": 1}"#, 200).await;
        check("application/json; charset=utf-8", r#"{"quantity": 1}"#, 200).await;
        check("application/json", r#"{"quantity": 1"#, 400).await;
        check("application/json", r#"{"quantity": -1, "#, 400).await;
        check("application/json", "", 400).await;
        check("application/json", [0xff, 0xfe].to_vec(), 400).await;
        check("application/json", r#"{"quantity": -1}"#, 422).await;
        check("application/json", r#"{"quantity": 1e30}"#, 422).await;
        check(
            "application/json",
            r#"{"quantity": 1, "colour": "red"}"#,
            422,
        )
        .await;
        check("application/json", "[]", 422).await;
        check("text/plain", r#"{"quantity": 1}"#, 415).await;
        check("", r#"{"quantity": 1}"#, 415).await;
        check("application/json", vec![b' '; REQUEST_BYTES_MAX + 1], 413).await;
        check("application/json", "[".repeat(10_000), 400).await;
    }
}

//! Bodies in a bucket of S3, or of a server that speaks like it.
//!
//! Objects are named as files are in a folder, `<prefix>/<day>/<id>`, so listing them in S3's order
//! lists the oldest first. An object is there when S3 has answered that it has all of it, never in
//! part. What a program that was killed in the middle of a large put leaves is a multipart upload
//! that was not completed: let the bucket's own rules abort those after some days.

mod read;

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use jiff::Timestamp;
use rusty_s3::{
    Bucket, Credentials, S3Action, UrlStyle,
    actions::{
        CompleteMultipartUploadResponse, CreateMultipartUpload, ListObjectsV2,
        ListObjectsV2Response,
    },
};
use tidings_core::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::{Before, BodyId, BodyStore, BoxRead, Error, Pruned, StoreId};

/// How much of a body is in memory while it is put: a body that is larger goes in parts of this
/// size, of which S3 takes 10,000.
const PART_BYTES: usize = 8 * 1024 * 1024;

/// How long S3 may take to begin its answer, a part's way to it included.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// How long a signature is good for.
const SIGNED_FOR: Duration = Duration::from_secs(300);

/// The longest answer that is not a body: a list of 1,000 names is the longest S3 gives.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Where a bucket is, and who may use it.
#[derive(Clone)]
pub struct S3Options {
    /// `https://s3.eu-central-1.amazonaws.com`, or that of another server.
    pub endpoint: String,
    /// The name of the bucket, which must exist.
    pub bucket: String,
    /// `eu-central-1`; servers of one's own often want `us-east-1`.
    pub region: String,
    /// Names of objects begin with it and a `/`. The store should have it for itself.
    pub prefix: String,
    /// Who may use the bucket.
    pub access_key: String,
    /// Its password.
    pub secret_key: String,
    /// Whether the bucket is in the path (`http://host/bucket/...`), as servers of one's own want
    /// it, and not in the host's name.
    pub path_style: bool,
}

/// A [`BodyStore`] in a bucket.
#[derive(Clone)]
pub struct S3Bodies(Arc<Inner>);

struct Inner {
    id: StoreId,
    bucket: Bucket,
    credentials: Credentials,
    /// Empty, or ends with `/`.
    prefix: String,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl S3Bodies {
    /// Bodies in the bucket, which is not asked for anything yet.
    pub fn new(options: S3Options) -> Result<Self, Error> {
        let said = format!(
            "use the bucket `{}` at `{}`",
            options.bucket, options.endpoint
        );
        Self::build(options).map_err(|error| Error::unavailable(said, error))
    }

    fn build(options: S3Options) -> io::Result<Self> {
        let style = match options.path_style {
            true => UrlStyle::Path,
            false => UrlStyle::VirtualHost,
        };
        let endpoint = options.endpoint.parse().map_err(io::Error::other)?;
        let prefix = match options.prefix.trim_matches('/') {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        };
        let id = StoreId::new(format!("s3:{}/{prefix}", options.bucket));
        let bucket = Bucket::new(endpoint, style, options.bucket, options.region);
        let connector = HttpsConnectorBuilder::new()
            .with_native_roots()?
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self(Arc::new(Inner {
            id: id.map_err(io::Error::other)?,
            bucket: bucket.map_err(io::Error::other)?,
            credentials: Credentials::new(options.access_key, options.secret_key),
            prefix,
            client: Client::builder(TokioExecutor::new()).build(connector),
        })))
    }
}

impl Inner {
    fn key(&self, id: BodyId) -> String {
        format!("{}{}/{id}", self.prefix, id.day())
    }

    /// Sends a request and waits for the head of the answer. Errors do not name the address, which
    /// holds a signature.
    async fn ask(&self, method: Method, url: &str, body: Bytes) -> io::Result<Response<Incoming>> {
        let request = Request::builder().method(method).uri(url);
        let request = request.body(Full::new(body)).map_err(io::Error::other)?;
        match tokio::time::timeout(ANSWER_MAX, self.client.request(request)).await {
            Ok(answer) => answer.map_err(io::Error::other),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("S3 did not answer within {} s", ANSWER_MAX.as_secs()),
            )),
        }
    }

    /// The same, for an answer that is no body: its headers and its text.
    async fn ask_for_text(
        &self,
        method: Method,
        url: &str,
        body: Bytes,
    ) -> io::Result<Response<String>> {
        let answer = self.ask(method, url, body).await?;
        let status = answer.status();
        let (head, body) = answer.into_parts();
        let text = text_of(body).await?;
        match status.is_success() {
            true => Ok(Response::from_parts(head, text)),
            false => Err(refusal(status, &text)),
        }
    }

    async fn put_in_parts(
        &self,
        key: &str,
        first: Vec<u8>,
        body: &mut (dyn AsyncRead + Send + Unpin),
    ) -> io::Result<()> {
        let credentials = Some(&self.credentials);
        let create = self.bucket.create_multipart_upload(credentials, key);
        let url = create.sign(SIGNED_FOR);
        let created = self
            .ask_for_text(Method::POST, url.as_str(), Bytes::new())
            .await?;
        let created = CreateMultipartUpload::parse_response(created.body());
        let created = created.map_err(io::Error::other)?;
        let upload = created.upload_id();
        let done = self.upload(key, upload, first, body).await;
        if done.is_err() {
            let abort = self.bucket.abort_multipart_upload(credentials, key, upload);
            let url = abort.sign(SIGNED_FOR);
            let aborted = self
                .ask_for_text(Method::DELETE, url.as_str(), Bytes::new())
                .await;
            if let Err(error) = aborted {
                tracing::warn!(
                    "an upload to `{}` that failed is left there: {error}",
                    self.id
                );
            }
        }
        done
    }

    async fn upload(
        &self,
        key: &str,
        upload: &str,
        mut part: Vec<u8>,
        body: &mut (dyn AsyncRead + Send + Unpin),
    ) -> io::Result<()> {
        let credentials = Some(&self.credentials);
        let mut etags = Vec::new();
        while !part.is_empty() {
            let number = u16::try_from(etags.len() + 1).map_err(io::Error::other)?;
            let put = self.bucket.upload_part(credentials, key, number, upload);
            let url = put.sign(SIGNED_FOR);
            let answer = self
                .ask_for_text(Method::PUT, url.as_str(), part.into())
                .await?;
            let etag = answer
                .headers()
                .get("etag")
                .and_then(|etag| etag.to_str().ok());
            let etag = etag.ok_or_else(|| io::Error::other("S3 gave a part no `ETag`"))?;
            etags.push(etag.to_owned());
            part = read_part(body).await?;
        }
        let etags = etags.iter().map(String::as_str);
        let complete = self
            .bucket
            .complete_multipart_upload(credentials, key, upload, etags);
        let url = complete.sign(SIGNED_FOR);
        let answer = self
            .ask_for_text(Method::POST, url.as_str(), complete.body().into())
            .await?;
        // S3 begins this answer with `200 OK` before it knows.
        match CompleteMultipartUploadResponse::parse(answer.body()) {
            Ok(_) => Ok(()),
            Err(_) => Err(refusal(answer.status(), answer.body())),
        }
    }

    async fn prune(&self, before: Before, count_max: usize) -> io::Result<Pruned> {
        let last = before.put.strftime("%Y-%m-%d").to_string();
        let mut pruned = Pruned::default();
        let mut token: Option<String> = None;
        loop {
            let mut list = ListObjectsV2::new(&self.bucket, Some(&self.credentials));
            list.with_prefix(self.prefix.as_str());
            if let Some(token) = &token {
                list.with_continuation_token(token.as_str());
            }
            let url = list.sign(SIGNED_FOR);
            let page = self
                .ask_for_text(Method::GET, url.as_str(), Bytes::new())
                .await?;
            let page = ListObjectsV2::parse_response(page.body()).map_err(io::Error::other)?;
            let ListObjectsV2Response {
                contents,
                next_continuation_token,
                ..
            } = page;
            for object in contents {
                let name = object.key.strip_prefix(&self.prefix).unwrap_or_default();
                if name
                    .get(..last.len())
                    .is_some_and(|day| day > last.as_str())
                {
                    return Ok(pruned);
                }
                if pruned.bodies == count_max as u64 {
                    pruned.more = true;
                    return Ok(pruned);
                }
                if is_old(name, object.last_modified.as_deref(), before.put) {
                    let delete = self
                        .bucket
                        .delete_object(Some(&self.credentials), &object.key);
                    let url = delete.sign(SIGNED_FOR);
                    self.ask_for_text(Method::DELETE, url.as_str(), Bytes::new())
                        .await?;
                    pruned.bodies += 1;
                }
            }
            match next_continuation_token {
                Some(next) => token = Some(next),
                None => return Ok(pruned),
            }
        }
    }
}

impl BodyStore for S3Bodies {
    fn id(&self) -> &StoreId {
        &self.0.id
    }

    fn put<'a>(
        &'a self,
        id: BodyId,
        body: &'a mut (dyn AsyncRead + Send + Unpin),
    ) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let key = self.0.key(id);
            let first = read_part(body).await?;
            if first.len() == PART_BYTES {
                return self.0.put_in_parts(&key, first, body).await;
            }
            let put = self.0.bucket.put_object(Some(&self.0.credentials), &key);
            let url = put.sign(SIGNED_FOR);
            self.0
                .ask_for_text(Method::PUT, url.as_str(), first.into())
                .await
                .map(drop)
        })
    }

    fn open(&self, id: BodyId) -> BoxFuture<'_, io::Result<Option<BoxRead>>> {
        Box::pin(async move {
            let key = self.0.key(id);
            let get = self.0.bucket.get_object(Some(&self.0.credentials), &key);
            let url = get.sign(SIGNED_FOR);
            let answer = self.0.ask(Method::GET, url.as_str(), Bytes::new()).await?;
            let status = answer.status();
            if status.is_success() {
                return Ok(Some(
                    Box::new(read::Answer::new(answer.into_body())) as BoxRead
                ));
            }
            let text = text_of(answer.into_body()).await?;
            // Not so for a bucket that is not there: then the store is not.
            match status == StatusCode::NOT_FOUND && code_of(&text) == "NoSuchKey" {
                true => Ok(None),
                false => Err(refusal(status, &text)),
            }
        })
    }

    fn prune(&self, before: Before, count_max: usize) -> BoxFuture<'_, io::Result<Pruned>> {
        Box::pin(self.0.prune(before, count_max))
    }
}

/// The next part, which is shorter than [`PART_BYTES`] only at the end.
async fn read_part(body: &mut (dyn AsyncRead + Send + Unpin)) -> io::Result<Vec<u8>> {
    let mut part = Vec::new();
    body.take(PART_BYTES as u64).read_to_end(&mut part).await?;
    Ok(part)
}

/// By both clocks, as in a folder.
fn is_old(name: &str, last_modified: Option<&str>, before: Timestamp) -> bool {
    let Some((day, id)) = name.split_once('/') else {
        return false;
    };
    let put = id.parse::<BodyId>().ok().filter(|id| id.day() == day);
    let written = last_modified.and_then(|time| time.parse::<Timestamp>().ok());
    put.is_some_and(|id| id.put_at() < before) && written.is_some_and(|time| time < before)
}

async fn text_of(body: Incoming) -> io::Result<String> {
    let whole = Limited::new(body, ANSWER_BYTES_MAX).collect();
    match tokio::time::timeout(ANSWER_MAX, whole).await {
        Ok(Ok(text)) => Ok(String::from_utf8_lossy(&text.to_bytes()).into_owned()),
        Ok(Err(error)) => Err(io::Error::other(error)),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "S3 broke off its answer",
        )),
    }
}

/// What S3 calls its refusal.
fn code_of(text: &str) -> &str {
    let code = text
        .split_once("<Code>")
        .and_then(|(_, rest)| rest.split_once("</Code>"));
    code.map_or("", |(code, _)| code)
}

fn refusal(status: StatusCode, text: &str) -> io::Error {
    let message = text
        .split_once("<Message>")
        .and_then(|(_, rest)| rest.split_once("</Message>"));
    let message: String = message
        .map_or("", |(message, _)| message)
        .chars()
        .take(300)
        .collect();
    io::Error::other(format!(
        "S3 refused ({status} {}): {message}",
        code_of(text)
    ))
}

//! The calls of a registry, and what is remembered of its answers.
//!
//! A schema's id is its own for ever, so what was asked by id once is never asked again. The version that a program writes is
//! looked up once too: a program's bodies are as its types are, whatever is registered while it runs.

use std::{
    collections::HashMap,
    fmt,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use reqwest::{Client, Method, StatusCode, Url};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tracing::{debug, warn};

use crate::{
    Language, Schema, Version,
    error::{Kind, RegistryError},
};

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long nobody asks again who has just not answered.
const REST: Duration = Duration::from_millis(500);
/// How many answers of each kind are remembered: more schemas than programs have to do with.
const REMEMBERED_MAX: usize = 10_000;
const MEDIA_TYPE: &str = "application/vnd.schemaregistry.v1+json";

/// A schema registry.
pub struct Registry {
    base: Url,
    login: Option<(String, String)>,
    client: Client,
    /// Schemas by their ids.
    schemas: Mutex<HashMap<u32, Schema>>,
    /// What this program writes, by the subject.
    written: Mutex<HashMap<String, Version>>,
    /// The ids of schemas that this program has, by the subject.
    own: Mutex<HashMap<(String, Schema), u32>>,
    away: Mutex<Option<(Instant, RegistryError)>>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registry")
            .field(&self.base.as_str())
            .finish()
    }
}

#[derive(Deserialize)]
struct Answer {
    id: Option<u32>,
    version: Option<u32>,
    schema: Option<String>,
    #[serde(rename = "schemaType")]
    language: Option<String>,
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
    error_code: Option<u32>,
}

/// What a registry answers that has no such subject, version or schema; another server knows only `404`.
const UNKNOWN: std::ops::RangeInclusive<u32> = 40_401..=40_499;

impl Registry {
    /// A registry at `http://user:password@host:port/path`, or `https://`. It is not asked anything yet.
    ///
    /// # Errors
    ///
    /// When the URL is not one.
    pub fn new(url: &str) -> Result<Self, RegistryError> {
        let refused = |why: &str| {
            let what = format!(
                "the URL of the schema registry is not one: {why}; write `http://host:8081`"
            );
            RegistryError::new(Kind::Refused, what)
        };
        let mut base: Url = url.parse().map_err(|_| refused("it cannot be read"))?;
        if !matches!(base.scheme(), "http" | "https") || !base.has_host() {
            return Err(refused("it begins with `http://` or `https://`"));
        }
        if base.query().is_some() || base.fragment().is_some() {
            return Err(refused("nothing comes behind its path"));
        }
        let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let password = decoded(base.password().unwrap_or_default());
        let login = (!base.username().is_empty()).then(|| (decoded(base.username()), password));
        // They stand in no message.
        if base.set_username("").is_err() || base.set_password(None).is_err() {
            return Err(refused("there is a host"));
        }
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        // There may be one already; it is the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder().timeout(ANSWER_MAX);
        let client = client.build().map_err(|error| {
            RegistryError::new(
                Kind::Refused,
                format!("no HTTP client can be made: {error}"),
            )
        })?;
        Ok(Self {
            base,
            login,
            client,
            schemas: Mutex::default(),
            written: Mutex::default(),
            own: Mutex::default(),
            away: Mutex::default(),
        })
    }

    /// Where it is, without a password.
    pub fn url(&self) -> &str {
        self.base.as_str()
    }

    /// The schema of this id, if it was asked for before.
    pub fn known(&self, id: u32) -> Option<Schema> {
        self.schemas.lock().get(&id).cloned()
    }

    /// The schema of this id.
    ///
    /// # Errors
    ///
    /// When there is none, or the registry does not answer.
    pub async fn schema(&self, id: u32) -> Result<Schema, RegistryError> {
        if let Some(schema) = self.known(id) {
            return Ok(schema);
        }
        let what = format!("schema {id}");
        let answer: Answer = self
            .get(&["schemas", "ids", &id.to_string()], &what)
            .await?;
        let schema = self.schema_of(&answer, &what)?;
        remember(&self.schemas, id, &schema);
        Ok(schema)
    }

    /// The version of a subject that this program writes, if it was asked for before.
    pub fn known_version(&self, subject: &str) -> Option<Version> {
        self.written.lock().get(subject).cloned()
    }

    /// The version of a subject that this program writes: the latest at the first time that it is asked for.
    ///
    /// # Errors
    ///
    /// When there is none, or the registry does not answer.
    pub async fn version(&self, subject: &str) -> Result<Version, RegistryError> {
        if let Some(version) = self.known_version(subject) {
            return Ok(version);
        }
        let version = self.latest(subject).await?;
        remember(&self.written, subject.to_owned(), &version);
        Ok(version)
    }

    /// The latest version of a subject, as it is now.
    ///
    /// # Errors
    ///
    /// When there is none, or the registry does not answer.
    pub async fn latest(&self, subject: &str) -> Result<Version, RegistryError> {
        let what = format!("the latest version of `{subject}`");
        let path = ["subjects", subject, "versions", "latest"];
        let answer = self.get(&path, &what).await?;
        self.version_of(&answer, &what)
    }

    /// The id of a schema that is under a subject already, if it was asked for before.
    pub fn known_id(&self, subject: &str, schema: &Schema) -> Option<u32> {
        let key = (subject.to_owned(), schema.clone());
        self.own.lock().get(&key).copied()
    }

    /// The id of a schema that is under a subject already, in whichever version.
    ///
    /// # Errors
    ///
    /// When it is not there, or the registry does not answer.
    pub async fn id(&self, subject: &str, schema: &Schema) -> Result<u32, RegistryError> {
        if let Some(id) = self.known_id(subject, schema) {
            return Ok(id);
        }
        let what = format!(
            "the {} schema of this program under `{subject}`",
            schema.language
        );
        let answer: Answer = self.post(&["subjects", subject], schema, &what).await?;
        let id = answer.id;
        let id = id.ok_or_else(|| self.odd(&what, "there is no `id`"))?;
        remember(&self.own, (subject.to_owned(), schema.clone()), &id);
        Ok(id)
    }

    /// Writes a schema under a subject, as its next version; one that is there already stays as it is. Gives its id.
    ///
    /// # Errors
    ///
    /// When the registry does not allow the change, takes no such schema, or does not answer.
    pub async fn register(&self, subject: &str, schema: &Schema) -> Result<u32, RegistryError> {
        let what = format!("a version of `{subject}`");
        let path = ["subjects", subject, "versions"];
        let answer: Answer = self.post(&path, schema, &what).await?;
        answer.id.ok_or_else(|| self.odd(&what, "there is no `id`"))
    }

    fn version_of(&self, answer: &Answer, what: &str) -> Result<Version, RegistryError> {
        let number = |number: Option<u32>, name: &str| {
            number.ok_or_else(|| self.odd(what, &format!("there is no `{name}`")))
        };
        Ok(Version {
            id: number(answer.id, "id")?,
            version: number(answer.version, "version")?,
            schema: self.schema_of(answer, what)?,
        })
    }

    fn schema_of(&self, answer: &Answer, what: &str) -> Result<Schema, RegistryError> {
        let language = match answer.language.as_deref() {
            // What registries leave out is the one they began with.
            None | Some("AVRO") => Language::Avro,
            Some("JSON") => Language::Json,
            Some("PROTOBUF") => Language::Protobuf,
            Some(other) => return Err(self.odd(what, &format!("`schemaType` is `{other}`"))),
        };
        let text = answer.schema.as_deref();
        let text = text.ok_or_else(|| self.odd(what, "there is no `schema`"))?;
        Ok(Schema::new(language, text))
    }

    /// An answer that is none.
    fn odd(&self, what: &str, why: &str) -> RegistryError {
        let what = format!(
            "the schema registry at {} was asked for {what}, and its answer is none: {why}",
            self.base
        );
        RegistryError::new(Kind::Refused, what)
    }

    async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        what: &str,
    ) -> Result<T, RegistryError> {
        self.ask(Method::GET, path, None, what).await
    }

    async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        schema: &Schema,
        what: &str,
    ) -> Result<T, RegistryError> {
        let mut body = json!({"schema": &*schema.text});
        // Left out for Avro, as registries know it that have nothing else.
        if schema.language != Language::Avro {
            body["schemaType"] = schema.language.as_str().into();
        }
        self.ask(Method::POST, path, Some(body), what).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &[&str],
        body: Option<Value>,
        what: &str,
    ) -> Result<T, RegistryError> {
        if let Some((since, error)) = &*self.away.lock()
            && since.elapsed() < REST
        {
            return Err(error.clone());
        }
        let asked = self.request(method, path, body, what).await;
        let mut away = self.away.lock();
        match &asked {
            Err(error) if error.is_temporary() => {
                match away.is_none() {
                    true => warn!(%error, "the schema registry does not answer"),
                    false => debug!(%error, "the schema registry does not answer"),
                }
                *away = Some((Instant::now(), error.clone()));
            }
            _ => *away = None,
        }
        let bytes = asked?;
        serde_json::from_slice(&bytes).map_err(|error| self.odd(what, &error.to_string()))
    }

    async fn request(
        &self,
        method: Method,
        path: &[&str],
        body: Option<Value>,
        what: &str,
    ) -> Result<Vec<u8>, RegistryError> {
        let path: Vec<String> = path.iter().map(|it| encoded(it)).collect();
        let mut url = self.base.clone();
        url.set_path(&format!("{}{}", self.base.path(), path.join("/")));
        let mut request = self
            .client
            .request(method, url)
            .header("accept", MEDIA_TYPE);
        if let Some((user, password)) = &self.login {
            request = request.basic_auth(user, Some(password));
        }
        if let Some(body) = body {
            request = request
                .header("content-type", MEDIA_TYPE)
                .body(body.to_string());
        }
        let base = &self.base;
        let away = |error: reqwest::Error| {
            let why = chain(&error.without_url());
            let what = format!("the schema registry at {base} does not answer: {why} (TDG-4020)");
            RegistryError::new(Kind::Away, what)
        };
        let answer = request.send().await.map_err(away)?;
        let status = answer.status();
        let bytes = answer.bytes().await.map_err(away)?;
        if status.is_success() {
            return Ok(bytes.into());
        }
        let refusal = serde_json::from_slice::<Refusal>(&bytes).ok();
        let code = refusal.as_ref().and_then(|it| it.error_code);
        let said = refusal.map_or_else(|| status.to_string(), |it| it.message);
        let (kind, what) = match status {
            StatusCode::NOT_FOUND if !code.is_some_and(|it| UNKNOWN.contains(&it)) => (
                Kind::Refused,
                format!(
                    "no schema registry answers at {base} ({said}): name the path of its API in the URL, as \
                     `http://host:8080/apis/ccompat/v7` of Apicurio (TDG-4020)"
                ),
            ),
            StatusCode::NOT_FOUND => (
                Kind::Unknown,
                format!("the schema registry at {base} does not have {what}: {said}"),
            ),
            StatusCode::CONFLICT => (
                Kind::Refused,
                format!("the schema registry at {base} does not allow {what}: {said}"),
            ),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => (
                Kind::Refused,
                format!(
                    "the schema registry at {base} does not let this program in ({status}): name user and password in its \
                     URL, `http://user:password@host:8081` (TDG-4020)"
                ),
            ),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => (
                Kind::Away,
                format!("the schema registry at {base} cannot now: {said} (TDG-4020)"),
            ),
            status if status.is_server_error() => (
                Kind::Away,
                format!("the schema registry at {base} cannot now: {said} (TDG-4020)"),
            ),
            _ => (
                Kind::Refused,
                format!("the schema registry at {base} refuses {what} ({status}): {said}"),
            ),
        };
        Err(RegistryError::new(kind, what))
    }
}

fn encoded(part: &str) -> String {
    utf8_percent_encode(part, NON_ALPHANUMERIC).to_string()
}

fn remember<K: Eq + std::hash::Hash, V: Clone>(memory: &Mutex<HashMap<K, V>>, key: K, value: &V) {
    let mut memory = memory.lock();
    if memory.len() >= REMEMBERED_MAX {
        memory.clear();
    }
    memory.insert(key, value.clone());
}

/// An error with what caused it, which alone says what is wrong.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_where_and_no_message_shows_its_password() {
        let check = |url: &str, shown: &str, login: Option<(&str, &str)>| {
            let registry = Registry::new(url).expect(url);
            assert_eq!(registry.url(), shown);
            let known = registry
                .login
                .as_ref()
                .map(|(user, password)| (&**user, &**password));
            assert_eq!(known, login, "{url}");
            assert!(!format!("{registry:?}").contains("secret"));
        };
        check("http://h:8081", "http://h:8081/", None);
        check(
            "http://h/apis/ccompat/v7",
            "http://h/apis/ccompat/v7/",
            None,
        );
        check(
            "https://u%40x:secret@h/",
            "https://h/",
            Some(("u@x", "secret")),
        );
        for wrong in [
            "h:8081",
            "ftp://u:secret@h",
            "http://u:secret@h?x=1",
            "http://",
            "",
        ] {
            let error = Registry::new(wrong).expect_err(wrong);
            assert!(
                !error.is_temporary() && !error.to_string().contains("secret"),
                "{error}"
            );
        }
    }
}

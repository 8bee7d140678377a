//! A Pact broker: where consumers put their pacts, and providers say which of them they keep.
//!
//! It is spoken to as its documentation asks for: each address comes from a link in what it answers (HAL), beginning with its
//! index. Credentials are sent to the broker's own host and to no other, whatever a link says, and a broker that leads
//! elsewhere (301) is not followed: what is published there would get lost on the way.
//! <https://docs.pact.io/pact_broker/advanced_topics/api_docs>

use base64::{Engine as _, engine::general_purpose::STANDARD};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use reqwest::{Client, Method, RequestBuilder, StatusCode, Url, redirect::Policy};
use serde_json::{Value, json};

use super::http::{self, Answer};
use crate::{code::Code, frame::Usage};

/// The variables that Pact's own tools read, too.
const USERNAME: &str = "PACT_BROKER_USERNAME";
const PASSWORD: &str = "PACT_BROKER_PASSWORD";
const TOKEN: &str = "PACT_BROKER_TOKEN";

/// How many pacts are fetched.
const PACTS_MAX: usize = 1_000;

/// What is not written as itself in a part of a path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// Who asks.
enum Credentials {
    None,
    Basic(String, String),
    Bearer(String),
}

/// A Pact broker, or a pact at it.
pub(super) struct PactBroker {
    client: Client,
    /// Without user and password.
    url: Url,
    credentials: Credentials,
    /// What is there: the broker's index with its links, or the pact.
    found: Value,
}

/// A pact that a provider is to verify.
pub(super) struct Fetched {
    /// Its address.
    pub(super) from: String,
    /// The pact, with links of the broker in it.
    pub(super) pact: Value,
    /// Whether it may be broken for now: the provider has never kept it.
    pub(super) is_pending: bool,
}

/// Which pacts are fetched.
pub(super) struct Wanted<'a> {
    pub(super) provider: &'a str,
    /// Of which consumers' versions, as the broker has it; of the latest of each if there are none.
    pub(super) selectors: &'a [Value],
    /// The provider's branch, which decides what is pending.
    pub(super) branch: Option<&'a str>,
}

/// A version of a participant, and the branch that it is on.
pub(super) struct Version<'a> {
    pub(super) number: &'a str,
    pub(super) branch: Option<&'a str>,
}

/// What became of a pact.
pub(super) struct Verdict {
    pub(super) is_kept: bool,
    /// What became of each interaction, as the broker shows it.
    pub(super) results: Vec<Value>,
}

impl PactBroker {
    /// Reads what is at the URL: the broker's index, or a pact.
    ///
    /// # Errors
    ///
    /// When it cannot be reached, or is neither.
    pub(super) async fn open(url: &str) -> anyhow::Result<Self> {
        let parsed: Result<Url, _> = url.parse();
        // The URL itself may have a password in it.
        let mut url =
            parsed.map_err(|error| Usage::new(format!("the URL of the Pact broker: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            anyhow::bail!(Usage::new(
                "the URL of a Pact broker begins with `http://` or `https://`"
            ));
        }
        let credentials = credentials(&url)?;
        disguise(&mut url);
        let client = http::client(Policy::none()).map_err(|error| Code::PactBroker.of(error))?;
        let mut broker = Self {
            client,
            url,
            credentials,
            found: Value::Null,
        };
        broker.found = broker.send(Method::GET, &broker.url, None).await?;
        if !broker.is_pact() && !broker.found["_links"].is_object() {
            return Err(broker.failed(
                "what is there is neither a Pact broker (it has no `_links`) nor a pact: check the URL",
            ));
        }
        Ok(broker)
    }

    /// Whether a pact was named, and no broker.
    pub(super) fn is_pact(&self) -> bool {
        is_pact(&self.found)
    }

    /// The pacts that the provider is to verify. If a pact was named, it is that one.
    ///
    /// # Errors
    ///
    /// When the broker refuses, or does not know the provider.
    pub(super) async fn pacts(&self, wanted: &Wanted<'_>) -> anyhow::Result<Vec<Fetched>> {
        if self.is_pact() {
            return Ok(vec![Fetched {
                from: self.url.to_string(),
                pact: self.found.clone(),
                is_pending: false,
            }]);
        }
        let mut pacts = Vec::new();
        for it in self.listed(wanted).await? {
            let url = self.link(&it, "self", &[])?;
            let pact = self.send(Method::GET, &url, None).await?;
            if !is_pact(&pact) {
                return Err(self.failed(&format!("what is at {} is no pact", url.path())));
            }
            pacts.push(Fetched {
                from: url.to_string(),
                pact,
                is_pending: it["verificationProperties"]["pending"] == true,
            });
        }
        Ok(pacts)
    }

    async fn listed(&self, wanted: &Wanted<'_>) -> anyhow::Result<Vec<Value>> {
        let provider = [("provider", wanted.provider)];
        let url = self.link(&self.found, "pb:provider-pacts-for-verification", &provider)?;
        let mut body = json!({ "includePendingStatus": wanted.branch.is_some() });
        if !wanted.selectors.is_empty() {
            body["consumerVersionSelectors"] = wanted.selectors.into();
        }
        if let Some(branch) = wanted.branch {
            body["providerVersionBranch"] = branch.into();
        }
        let answer = self.ask(Method::POST, &url, Some(&body)).await?;
        if answer.status == StatusCode::NOT_FOUND {
            return Err(self.failed(&format!(
                "it knows no provider `{}`: its consumers publish their pacts first, and `--provider-name` says what they \
                 call it",
                wanted.provider
            )));
        }
        let mut found = self.accepted(&Method::POST, &url, &answer)?;
        let Value::Array(found) = found["_embedded"]["pacts"].take() else {
            return Err(self.failed("its list of pacts to verify has no `_embedded.pacts`"));
        };
        match found.len() > PACTS_MAX {
            false => Ok(found),
            true => Err(self.failed(&format!(
                "{} pacts are to be verified, and at most {PACTS_MAX} are: choose with `--selector`",
                found.len()
            ))),
        }
    }

    /// Says what became of the pacts with this version of their provider.
    ///
    /// # Errors
    ///
    /// When the broker refuses, or a pact has no link for it.
    pub(super) async fn report(
        &self,
        version: &Version<'_>,
        verdicts: &[(Fetched, Verdict)],
    ) -> anyhow::Result<()> {
        // The branch has to be known before the results are: they count for it then.
        if let (Some(branch), Some((fetched, _))) = (version.branch, verdicts.first()) {
            let url = self.link(&fetched.pact, "pb:provider", &[])?;
            let provider = self.send(Method::GET, &url, None).await?;
            let values = [("branch", branch), ("version", version.number)];
            let url = self.link(&provider, "pb:branch-version", &values)?;
            self.send(Method::PUT, &url, Some(&json!({}))).await?;
        }
        for (fetched, verdict) in verdicts {
            let url = self.link(&fetched.pact, "pb:publish-verification-results", &[])?;
            let body = json!({
                "success": verdict.is_kept,
                "providerApplicationVersion": version.number,
                "verifiedBy": { "implementation": "tidings", "version": env!("CARGO_PKG_VERSION") },
                "testResults": verdict.results,
            });
            self.send(Method::POST, &url, Some(&body)).await?;
        }
        Ok(())
    }

    /// Puts the pacts of a consumer there, each with its provider, as those of this version of it. All are taken, or none is.
    ///
    /// # Errors
    ///
    /// When the broker refuses.
    pub(super) async fn publish(
        &self,
        consumer: &str,
        version: &Version<'_>,
        pacts: &[(String, String)],
    ) -> anyhow::Result<()> {
        let contracts = pacts.iter().map(|(provider, text)| {
            json!({
                "consumerName": consumer,
                "providerName": provider,
                "specification": "pact",
                "contentType": "application/json",
                "content": STANDARD.encode(text),
            })
        });
        let mut body = json!({
            "pacticipantName": consumer,
            "pacticipantVersionNumber": version.number,
            "contracts": contracts.collect::<Vec<_>>(),
        });
        if let Some(branch) = version.branch {
            body["branch"] = branch.into();
        }
        let url = self.link(&self.found, "pb:publish-contracts", &[])?;
        self.send(Method::POST, &url, Some(&body)).await.map(drop)
    }

    /// Where a link leads, with these values in its template.
    fn link(&self, of: &Value, relation: &str, values: &[(&str, &str)]) -> anyhow::Result<Url> {
        let href = of["_links"][relation]["href"].as_str();
        let href = href.ok_or_else(|| {
            self.failed(&format!(
                "it has no link `{relation}`: give the URL of the broker's first page; a broker of before 2022 is too old"
            ))
        })?;
        let mut href = href.to_owned();
        for (name, value) in values {
            let segment = utf8_percent_encode(value, SEGMENT).to_string();
            href = href.replace(&format!("{{{name}}}"), &segment);
        }
        let url = self.url.join(&href);
        let mut url =
            url.map_err(|error| self.failed(&format!("its link `{relation}`: {error}")))?;
        disguise(&mut url);
        match url.origin() == self.url.origin() {
            true => Ok(url),
            false => Err(self.failed(&format!(
                "its link `{relation}` leads to `{}`, and credentials are for `{}` only: name the broker as it names \
                 itself, or tell it its name (`PACT_BROKER_BASE_URL` where it runs)",
                url.origin().ascii_serialization(),
                self.url.origin().ascii_serialization()
            ))),
        }
    }

    /// What it answers to a request that it accepts.
    async fn send(&self, method: Method, url: &Url, body: Option<&Value>) -> anyhow::Result<Value> {
        let answer = self.ask(method.clone(), url, body).await?;
        self.accepted(&method, url, &answer)
    }

    async fn ask(&self, method: Method, url: &Url, body: Option<&Value>) -> anyhow::Result<Answer> {
        let request = self.client.request(method, url.clone());
        let accepted = "application/hal+json, application/json";
        let mut request = self.known(request).header("Accept", accepted);
        if let Some(body) = body {
            let json = body.to_string();
            request = request.header("Content-Type", "application/json").body(json);
        }
        let answer = http::send(request).await;
        answer.map_err(|error| self.failed(&format!("it cannot be asked: {error}")))
    }

    fn accepted(&self, method: &Method, url: &Url, answer: &Answer) -> anyhow::Result<Value> {
        let failed = |what: String| self.failed(&format!("{method} {}: {what}", url.path()));
        let text = answer.text.trim();
        match answer.status {
            it if it.is_success() && text.is_empty() => Ok(Value::Null),
            it if it.is_success() => serde_json::from_str(text).map_err(|_| {
                failed("its answer is not JSON, so this is no Pact broker: check the URL".to_owned())
            }),
            it if it.is_redirection() => {
                let to = answer.location.as_deref().unwrap_or("somewhere else");
                Err(failed(format!("it leads on to {to}: give the URL there")))
            }
            StatusCode::UNAUTHORIZED => Err(failed(match self.credentials {
                Credentials::None => format!(
                    "it asks who you are (401): set {USERNAME} and {PASSWORD}, or {TOKEN}"
                ),
                Credentials::Basic(..) => {
                    "it does not accept the user and the password (401)".to_owned()
                }
                Credentials::Bearer(_) => format!("it does not accept the token in {TOKEN} (401)"),
            })),
            _ => Err(failed(answer.refusal(&reason(text)))),
        }
    }

    fn known(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.credentials {
            Credentials::None => request,
            Credentials::Basic(user, password) => request.basic_auth(user, Some(password)),
            Credentials::Bearer(token) => request.bearer_auth(token),
        }
    }

    fn failed(&self, what: &str) -> anyhow::Error {
        Code::PactBroker.of(format!("the Pact broker at {}: {what}", self.url))
    }
}

/// Those in the URL; or else those of the environment.
fn credentials(url: &Url) -> anyhow::Result<Credentials> {
    let decoded = |part: &str| percent_decode_str(part).decode_utf8_lossy().into_owned();
    if !url.username().is_empty() || url.password().is_some() {
        let password = url.password().unwrap_or_default();
        return Ok(Credentials::Basic(
            decoded(url.username()),
            decoded(password),
        ));
    }
    let variable = |name| std::env::var(name).ok().filter(|it| !it.is_empty());
    match (variable(TOKEN), variable(USERNAME), variable(PASSWORD)) {
        (Some(_), Some(_), _) => Err(Usage::new(format!(
            "set either {TOKEN} or {USERNAME}, not both"
        ))
        .into()),
        (Some(token), None, _) => Ok(Credentials::Bearer(token)),
        (None, Some(user), password) => Ok(Credentials::Basic(user, password.unwrap_or_default())),
        (None, None, _) => Ok(Credentials::None),
    }
}

/// Takes user and password out of a URL, which may be shown then.
fn disguise(url: &mut Url) {
    // It fails for URLs that cannot have any.
    let _ = url.set_username("");
    let _ = url.set_password(None);
}

fn is_pact(json: &Value) -> bool {
    json["provider"]["name"].is_string() && json["consumer"]["name"].is_string()
}

/// What a refusal says: `{"error": TEXT}`, `{"errors": {FIELD: [TEXT]}}`, or a page of somebody in between.
fn reason(text: &str) -> String {
    let json: Value = serde_json::from_str(text).unwrap_or_default();
    match (&json["error"], &json["errors"]) {
        (Value::String(it), _) => it.clone(),
        (_, Value::Object(fields)) => {
            let fields = fields
                .iter()
                .map(|(field, all)| format!("{field}: {}", texts(all).join(", ")));
            fields.collect::<Vec<_>>().join("; ")
        }
        _ => text.to_owned(),
    }
}

/// All texts in a value, in their order.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(it) => vec![it.clone()],
        Value::Array(all) => all.iter().flat_map(texts).collect(),
        Value::Object(all) => all.values().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

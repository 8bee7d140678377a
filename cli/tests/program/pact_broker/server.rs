//! The part of a Pact broker that `tidings` speaks with, as a server for tests. The real one is a program in Ruby that no package
//! registry of ours has. This one answers as that one's documentation and its own recorded answers say
//! (<https://github.com/pact-foundation/pact_broker>, `spec/fixtures/approvals`). Pact's own command and verifier
//! speak with it in a test, too: so what they send and read is what we do.

use std::{net::TcpListener, sync::Arc};

use axum::{
    Router,
    body::Bytes,
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// A Pact broker on a port of its own, until it is dropped.
pub(crate) struct PactBroker {
    pub(crate) url: String,
    pub(crate) state: Arc<State>,
    runtime: Option<Runtime>,
}

/// What it may be like.
#[derive(Default)]
pub(crate) struct Settings {
    /// What the header `Authorization` has to be.
    pub(crate) authorization: Option<String>,
    /// Where the links in its index lead, if not to itself.
    pub(crate) links_to: Option<String>,
    /// Where it says that it has gone.
    pub(crate) moved_to: Option<String>,
}

/// What it has.
#[derive(Default)]
pub(crate) struct State {
    settings: Settings,
    url: String,
    pub(crate) pacts: Mutex<Vec<Stored>>,
    /// Results with the consumer of their pact.
    pub(crate) results: Mutex<Vec<(String, Value)>>,
    /// Branches of versions, `NAME/BRANCH/VERSION`, as they were in a path.
    pub(crate) branches: Mutex<Vec<String>>,
    /// What providers asked for.
    pub(crate) asked: Mutex<Vec<Value>>,
}

/// A pact, its latest version.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) consumer: String,
    pub(crate) provider: String,
    pub(crate) version: String,
    pact: Value,
}

/// A status, and what is said with it.
type Answer = (StatusCode, Value);

impl PactBroker {
    pub(crate) fn start(settings: Settings) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(State {
            settings,
            url: url.clone(),
            ..State::default()
        });
        let shared = Arc::clone(&state);
        let app = Router::new().fallback(move |method, uri, headers, body| {
            let state = Arc::clone(&shared);
            async move { state.answer(&method, &uri, &headers, &body) }
        });
        let runtime = Runtime::new().unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, app).await
        });
        Self {
            url,
            state,
            runtime: Some(runtime),
        }
    }

    /// Where the pact of a consumer is.
    pub(crate) fn pact_url(&self, consumer: &str) -> String {
        let pacts = self.state.pacts.lock();
        let stored = pacts.iter().find(|it| it.consumer == consumer).unwrap();
        self.state.address(stored)
    }
}

impl Drop for PactBroker {
    fn drop(&mut self) {
        // Also a test that is asynchronous itself may drop it.
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl State {
    fn answer(&self, method: &Method, uri: &Uri, headers: &HeaderMap, body: &Bytes) -> Response {
        if let Some(to) = &self.settings.moved_to {
            let to = [(header::LOCATION, to.clone())];
            return (StatusCode::MOVED_PERMANENTLY, to).into_response();
        }
        let shown = headers
            .get(header::AUTHORIZATION)
            .map(|it| it.to_str().unwrap());
        if let Some(wanted) = &self.settings.authorization
            && shown != Some(wanted)
        {
            return StatusCode::UNAUTHORIZED.into_response();
        }
        let path: Vec<&str> = uri.path().split('/').filter(|it| !it.is_empty()).collect();
        let body: Value = match body.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(body).unwrap(),
        };
        let (status, answer) = self.routed(method.as_str(), &path, body);
        let hal = [(header::CONTENT_TYPE, "application/hal+json;charset=utf-8")];
        (status, hal, answer.to_string()).into_response()
    }

    fn routed(&self, method: &str, path: &[&str], body: Value) -> Answer {
        let ok = |answer| (StatusCode::OK, answer);
        match (method, path) {
            ("GET", []) => ok(self.index()),
            ("POST", ["contracts", "publish"]) => self.publish(&body),
            ("GET", ["pacticipants", name]) => {
                let versions = format!(
                    "{}/pacticipants/{name}/branches/{{branch}}/versions/{{version}}",
                    self.url
                );
                ok(json!({
                    "name": name,
                    "_links": { "pb:branch-version": { "href": versions, "templated": true } },
                }))
            }
            (
                "PUT",
                [
                    "pacticipants",
                    name,
                    "branches",
                    branch,
                    "versions",
                    version,
                ],
            ) => {
                let branches = &mut self.branches.lock();
                branches.push(format!("{name}/{branch}/{version}"));
                (StatusCode::CREATED, json!({}))
            }
            // Pact's verifier asks in both ways, the second time with what it selects.
            ("GET", ["pacts", "provider", provider, "for-verification"]) => {
                self.for_verification(provider, &Value::Null)
            }
            ("POST", ["pacts", "provider", provider, "for-verification"]) => {
                self.asked.lock().push(body.clone());
                self.for_verification(provider, &body)
            }
            (
                "GET",
                [
                    "pacts",
                    "provider",
                    provider,
                    "consumer",
                    consumer,
                    "pact-version",
                    _,
                ],
            ) => self.pact(provider, consumer),
            (
                "POST",
                [
                    "pacts",
                    "provider",
                    _,
                    "consumer",
                    consumer,
                    "pact-version",
                    _,
                    "verification-results",
                ],
            ) => self.result(consumer, body),
            _ => (
                StatusCode::NOT_FOUND,
                json!({ "error": format!("{method} {path:?}") }),
            ),
        }
    }

    fn index(&self) -> Value {
        let base = self.settings.links_to.as_ref().unwrap_or(&self.url);
        let link = |path: &str| json!({ "href": format!("{base}{path}"), "templated": path.contains('{') });
        json!({ "_links": {
            "self": link("/"),
            "pb:publish-pact": link("/pacts/provider/{provider}/consumer/{consumer}/version/{consumerApplicationVersion}"),
            "pb:publish-contracts": link("/contracts/publish"),
            "pb:latest-provider-pacts": link("/pacts/provider/{provider}/latest"),
            "pb:provider-pacts-for-verification": link("/pacts/provider/{provider}/for-verification"),
            "pb:pacticipant": link("/pacticipants/{pacticipant}"),
            "pb:pacticipant-branch-version": link("/pacticipants/{pacticipant}/branches/{branch}/versions/{version}"),
        } })
    }

    fn publish(&self, body: &Value) -> Answer {
        let text = |it: &Value| it.as_str().unwrap().to_owned();
        let version = text(&body["pacticipantVersionNumber"]);
        let consumer = text(&body["pacticipantName"]);
        if version.trim().is_empty() {
            let errors = json!({ "pacticipantVersionNumber": ["must be filled"] });
            return (StatusCode::BAD_REQUEST, json!({ "errors": errors }));
        }
        let mut all = Vec::new();
        for contract in body["contracts"].as_array().unwrap() {
            assert_eq!(contract["specification"], "pact");
            assert_eq!(contract["contentType"], "application/json");
            assert_eq!(contract["consumerName"], consumer.as_str());
            let content = STANDARD.decode(text(&contract["content"])).unwrap();
            let pact: Value = serde_json::from_slice(&content).unwrap();
            assert_eq!(pact["consumer"]["name"], contract["consumerName"]);
            assert_eq!(pact["provider"]["name"], contract["providerName"]);
            all.push(Stored {
                consumer: consumer.clone(),
                provider: text(&contract["providerName"]),
                version: version.clone(),
                pact,
            });
        }
        let mut pacts = self.pacts.lock();
        for new in &all {
            let is_other =
                |it: &&Stored| it.is_beside(new) && it.version == version && it.pact != new.pact;
            if pacts.iter().any(|it| is_other(&it)) {
                let text = format!(
                    "Cannot change the content of the pact for {consumer} version {version} and provider {}, as race \
                     conditions will cause unreliable results for can-i-deploy.",
                    new.provider
                );
                let notices = json!([{ "type": "error", "text": text }]);
                let errors = json!({ "contracts": [text] });
                return (
                    StatusCode::CONFLICT,
                    json!({ "notices": notices, "errors": errors }),
                );
            }
        }
        if let Some(branch) = body["branch"].as_str() {
            let branches = &mut self.branches.lock();
            branches.push(format!("{consumer}/{branch}/{version}"));
        }
        for new in all {
            pacts.retain(|it| !it.is_beside(&new));
            pacts.push(new);
        }
        let answer = json!({
            "notices": [{ "type": "success", "text": format!("Pact successfully published for {consumer} version {version}.") }],
            "_links": { "pb:pacticipant": { "href": format!("{}/pacticipants/{consumer}", self.url) } },
            "_embedded": { "pacticipant": { "name": consumer }, "version": { "number": version } },
        });
        (StatusCode::OK, answer)
    }

    fn address(&self, it: &Stored) -> String {
        let Stored {
            consumer,
            provider,
            version,
            ..
        } = it;
        format!(
            "{}/pacts/provider/{provider}/consumer/{consumer}/pact-version/{version}",
            self.url
        )
    }

    fn for_verification(&self, provider: &str, body: &Value) -> Answer {
        let asks_pending = body["includePendingStatus"] == true;
        let results = self.results.lock();
        let pacts = self.pacts.lock();
        if !pacts
            .iter()
            .any(|it| it.consumer == provider || it.provider == provider)
        {
            let error = format!("No provider with name '{provider}' found");
            return (StatusCode::NOT_FOUND, json!({ "error": error }));
        }
        let all = pacts.iter().filter(|it| it.provider == provider).map(|it| {
            let kept = results.iter().any(|(of, result)| *of == it.consumer && result["success"] == true);
            let mut properties = json!({ "notices": [] });
            if asks_pending {
                properties["pending"] = (!kept).into();
            }
            json!({
                "shortDescription": "latest",
                "verificationProperties": properties,
                "_links": { "self": { "href": self.address(it), "name": format!("Pact between {} and {provider}", it.consumer) } },
            })
        });
        let answer = json!({
            "_embedded": { "pacts": all.collect::<Vec<_>>() },
            "_links": { "self": { "href": format!("{}/pacts/provider/{provider}/for-verification", self.url) } },
        });
        (StatusCode::OK, answer)
    }

    /// As a broker gives it: each interaction has an id, and the pact has links.
    fn pact(&self, provider: &str, consumer: &str) -> Answer {
        let pacts = self.pacts.lock();
        let mut all = pacts.iter();
        let Some(stored) = all.find(|it| it.provider == provider && it.consumer == consumer) else {
            return (
                StatusCode::NOT_FOUND,
                json!({ "error": "The requested document was not found" }),
            );
        };
        let mut pact = stored.pact.clone();
        let interactions = pact["interactions"].as_array_mut().unwrap();
        for (number, interaction) in interactions.iter_mut().enumerate() {
            interaction["_id"] = format!("{consumer}-{number}").into();
        }
        let here = self.address(stored);
        pact["createdAt"] = "2026-11-29T10:00:00+00:00".into();
        pact["_links"] = json!({
            "self": { "href": here, "name": format!("Pact between {consumer} and {provider}") },
            "pb:publish-verification-results": { "href": format!("{here}/verification-results") },
            "pb:provider": { "href": format!("{}/pacticipants/{provider}", self.url), "name": provider },
        });
        (StatusCode::OK, pact)
    }

    fn result(&self, consumer: &str, body: Value) -> Answer {
        if !body["success"].is_boolean() || !body["providerApplicationVersion"].is_string() {
            let errors = json!({ "success": ["is missing"] });
            return (StatusCode::BAD_REQUEST, json!({ "errors": errors }));
        }
        self.results
            .lock()
            .push((consumer.to_owned(), body.clone()));
        (StatusCode::CREATED, body)
    }
}

impl Stored {
    /// Whether both are between the same two.
    fn is_beside(&self, other: &Stored) -> bool {
        self.consumer == other.consumer && self.provider == other.provider
    }
}

//! Verifies pacts, whoever wrote them, with the matching of Pact's own libraries.

use std::{collections::BTreeMap, fmt, panic::RefUnwindSafe, path::Path};

use pact_matching::Mismatch;
use pact_models::{
    bodies::OptionalBody,
    content_types::JSON,
    interaction::Interaction,
    pact,
    v4::{async_message::AsynchronousMessage, message_parts::MessageContents},
};
use serde_json::Value;

use crate::Document;

type AnyInteraction = Box<dyn Interaction + Send + Sync + RefUnwindSafe>;

/// A pact, of which the messages are verified.
pub struct Pact {
    pact: Box<dyn pact::Pact + Send + Sync + RefUnwindSafe>,
}

/// A pact that cannot be read.
#[derive(Debug)]
pub struct PactError {
    what: String,
}

impl fmt::Display for PactError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for PactError {}

/// The bodies that a provider writes: by the name of the message and, for special cases, the provider state.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bodies {
    by_name: BTreeMap<String, Vec<(Option<String>, Value)>>,
    /// What others' descriptions mean.
    described: BTreeMap<String, String>,
}

/// What became of an interaction.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// Its description.
    pub description: String,
    /// The provider states that it asks for.
    pub states: Vec<String>,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of an interaction.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The provider writes what the consumer expects.
    Kept,
    /// It does not; each is a sentence.
    Broken(Vec<String>),
    /// It could not be tried, and why: that is no success.
    Untried(String),
}

impl Bodies {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The examples of all that the service sends.
    pub fn of(document: &Document) -> Self {
        let mut bodies = Self::new();
        for contract in &document.sends {
            for example in &contract.examples {
                bodies = bodies.with(&contract.name, example.name.as_deref(), &example.body);
            }
        }
        bodies
    }

    /// A body of a message; with a state, in that case.
    pub fn with(mut self, message: &str, state: Option<&str>, body: &Value) -> Self {
        let all = self.by_name.entry(message.to_owned()).or_default();
        all.push((state.map(str::to_owned), body.clone()));
        self
    }

    /// What somebody else's pact describes in these words is this message.
    pub fn described(mut self, description: &str, message: &str) -> Self {
        self.described
            .insert(description.to_owned(), message.to_owned());
        self
    }

    fn body(&self, description: &str, states: &[String]) -> Result<&Value, String> {
        // `order-confirmed.v1 of a guest` is of that message, too.
        let first_word = description.split_whitespace().next().unwrap_or_default();
        let name = self.described.get(description).map_or(first_word, |it| it);
        let all = self.by_name.get(name).ok_or_else(|| {
            let known = listed(self.by_name.keys().map(|it| &**it));
            format!(
                "no message is known by `{description}`: say which it is with `--message '{description}=NAME'`, or give \
                 the message an example ({known})"
            )
        })?;
        let in_state = |state: Option<&String>| {
            let mut all = all.iter();
            Some(&all.find(|(name, _)| name.as_ref() == state)?.1)
        };
        match states {
            [] => in_state(None)
                .or(all.first().map(|(_, body)| body))
                .ok_or_else(|| format!("`{name}` has no example")),
            [state, ..] => in_state(Some(state)).ok_or_else(|| {
                let known = listed(all.iter().filter_map(|(it, _)| it.as_deref()));
                format!(
                    "`{name}` has no example for the state `{state}`: give it one of that name ({known})"
                )
            }),
        }
    }
}

fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.collect();
    match names.as_slice() {
        [] => "there is none".to_owned(),
        names => format!("there are {}", names.join(", ")),
    }
}

impl Pact {
    /// Reads a pact of any version of the specification; `from` says in errors where it came from.
    ///
    /// # Errors
    ///
    /// When it is none.
    pub fn parse(text: &str, from: &str) -> Result<Self, PactError> {
        let wrong = |error: &dyn fmt::Display| PactError {
            what: format!("{from} is not a pact: {error}"),
        };
        let json: Value = serde_json::from_str(text).map_err(|error| wrong(&error))?;
        if !json["interactions"].is_array() && !json["messages"].is_array() {
            return Err(wrong(&"it has neither `interactions` nor `messages`"));
        }
        let pact = pact::load_pact_from_json(from, &json).map_err(|error| wrong(&error))?;
        Ok(Self { pact })
    }

    /// Reads the pact in a file.
    ///
    /// # Errors
    ///
    /// When it cannot be read, or is none.
    pub fn load(path: &Path) -> Result<Self, PactError> {
        let text = std::fs::read_to_string(path).map_err(|error| PactError {
            what: format!("{}: {error}", path.display()),
        })?;
        Self::parse(&text, &path.display().to_string())
    }

    /// Who wrote down what it expects.
    pub fn consumer(&self) -> String {
        self.pact.consumer().name
    }

    /// Of whom it is expected.
    pub fn provider(&self) -> String {
        self.pact.provider().name
    }

    /// Compares each message of the pact with what the provider writes. An interaction that is not a message is
    /// [`Untried`](Outcome::Untried).
    pub async fn verify(&self, bodies: &Bodies) -> Vec<Verified> {
        let mut all = Vec::new();
        for interaction in self.pact.interactions() {
            let states: Vec<String> = interaction
                .provider_states()
                .into_iter()
                .map(|it| it.name)
                .collect();
            let description = interaction.description();
            let outcome = match bodies.body(&description, &states) {
                _ if !interaction.is_message() => {
                    Outcome::Untried("it is a call, and only messages are verified".to_owned())
                }
                Ok(body) => self.compare(&interaction, body).await,
                Err(why) => Outcome::Untried(why),
            };
            all.push(Verified {
                description,
                states,
                outcome,
            });
        }
        all
    }

    async fn compare(&self, expected: &AnyInteraction, body: &Value) -> Outcome {
        let content = OptionalBody::Present(body.to_string().into(), Some(JSON.clone()), None);
        let actual = AsynchronousMessage {
            description: expected.description(),
            contents: MessageContents {
                contents: content,
                metadata: [("contentType".to_owned(), Value::from("application/json"))].into(),
                ..MessageContents::default()
            },
            ..AsynchronousMessage::default()
        };
        let mismatches = pact_matching::match_message(expected, &actual.boxed(), &self.pact).await;
        let broken: Vec<String> = mismatches.iter().filter_map(said).collect();
        match broken.is_empty() {
            true => Outcome::Kept,
            false => Outcome::Broken(broken),
        }
    }
}

/// What a consumer expects of metadata beyond the content type is up to the transport: bodies are the contract.
fn said(mismatch: &Mismatch) -> Option<String> {
    match mismatch {
        Mismatch::BodyMismatch { path, mismatch, .. } => Some(format!("`{path}`: {mismatch}")),
        Mismatch::MetadataMismatch { key, .. } if key != "contentType" => None,
        other => Some(other.description()),
    }
}

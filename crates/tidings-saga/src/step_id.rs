//! How a step is named on its way: in the headers of its command and of the answer to it.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The header of a command that is a part of a saga, and of the answer to it.
pub const STEP_HEADER: &str = "tidings-step";

/// Names a step of one saga.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct StepId {
    /// The saga's name.
    pub saga: Box<str>,
    /// Which of its sagas.
    pub key: Box<str>,
    /// Which run of it.
    pub run: u32,
    /// The step.
    pub step: Box<str>,
    /// What is asked of its target.
    pub part: Part,
}

/// What is asked of the target of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// To do it.
    Do,
    /// To undo what was done.
    Undo,
    /// Not to do it, if it is not done.
    Cancel,
}

impl StepId {
    /// The same step, with something else asked.
    pub fn with(&self, part: Part) -> Self {
        Self {
            part,
            ..self.clone()
        }
    }
}

/// `checkout/0/charge-card#undo/o-1`. The key comes last, because it may be any text.
impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = match self.part {
            Part::Do => "",
            Part::Undo => "#undo",
            Part::Cancel => "#cancel",
        };
        let Self {
            saga,
            key,
            run,
            step,
            ..
        } = self;
        write!(f, "{saga}/{run}/{step}{part}/{key}")
    }
}

impl FromStr for StepId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let mut parts = text.splitn(4, '/');
            let (saga, run) = (parts.next()?, parts.next()?.parse().ok()?);
            let (step, key) = (parts.next()?, parts.next()?);
            let (step, part) = match step.split_once('#') {
                None => (step, Part::Do),
                Some((step, "undo")) => (step, Part::Undo),
                Some((step, "cancel")) => (step, Part::Cancel),
                Some(_) => return None,
            };
            Some(Self {
                saga: saga.into(),
                key: key.into(),
                run,
                step: step.into(),
                part,
            })
        };
        parse().ok_or_else(|| {
            format!(
                "`{text}` does not name a step; it should look like `checkout/0/charge-card/o-1`"
            )
        })
    }
}

impl From<StepId> for String {
    fn from(id: StepId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for StepId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_comes_back() {
        for text in ["a/0/b/k", "a/12/b#undo/k/with/slashes", "a/0/b#cancel/"] {
            let id: StepId = text.parse().expect("a step");
            assert_eq!(id.to_string(), text);
        }
        for text in ["", "a/0/b", "a/x/b/k", "a/0/b#other/k"] {
            assert!(text.parse::<StepId>().is_err(), "{text}");
        }
    }
}

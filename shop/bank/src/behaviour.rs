//! How the bank behaves from now on. It is remembered across restarts.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    sync::Arc,
    time::Duration,
};

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use shop_kit::{Db, FieldError, Problem, StoreError, sql};

/// The longest that the bank may be told to take for an answer.
const LATENCY_MS_MAX: u64 = 60_000;
/// How long a slow bank takes if nobody says otherwise.
const LATENCY_MS_WHEN_SLOW: u64 = 2_000;
/// The part of requests that a flaky bank fails if nobody says otherwise.
const FAILURE_RATE_WHEN_FLAKY: f64 = 0.5;

/// What can be set, as in JSON.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Settings {
    mode: Mode,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    latency_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failure_rate: Option<f64>,
    #[serde(default)]
    refunds: Refunds,
}

/// What becomes of refunds that reach the bank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Refunds {
    #[default]
    Ok,
    /// They are refused for good, so that trying again does not help: a person has to.
    Refused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Ok,
    Down,
    Slow,
    Flaky,
}

impl Settings {
    fn check(&self) -> Result<(), Problem> {
        let mut errors = Vec::new();
        if self.latency_ms.is_some_and(|ms| ms > LATENCY_MS_MAX) {
            let detail = format!("must be 0 to {LATENCY_MS_MAX} milliseconds");
            errors.push(FieldError::new("/latencyMs", detail));
        }
        if self
            .failure_rate
            .is_some_and(|rate| !(0.0..=1.0).contains(&rate))
        {
            errors.push(FieldError::new("/failureRate", "must be 0 to 1"));
        }
        if errors.is_empty() {
            return Ok(());
        }
        Err(Problem::invalid("the bank cannot behave like that").with_errors(errors))
    }

    fn latency(&self) -> Duration {
        let unless_set = match self.mode {
            Mode::Slow => LATENCY_MS_WHEN_SLOW,
            Mode::Ok | Mode::Down | Mode::Flaky => 0,
        };
        Duration::from_millis(self.latency_ms.unwrap_or(unless_set))
    }

    fn fate(&self, chance: f64) -> Fate {
        let rate = self.failure_rate.unwrap_or(FAILURE_RATE_WHEN_FLAKY);
        match self.mode {
            Mode::Ok | Mode::Slow => Fate::Answer,
            Mode::Down => Fate::Refuse,
            // Half of the failures come after the money has moved: the answer is lost, which is
            // what idempotency keys are for.
            Mode::Flaky if chance < rate / 2.0 => Fate::LoseAnswer,
            Mode::Flaky if chance < rate => Fate::Fail,
            Mode::Flaky => Fate::Answer,
        }
    }
}

/// What becomes of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is answered.
    Answer,
    /// It fails before anything is done.
    Fail,
    /// It is carried out, and then the answer is lost.
    LoseAnswer,
    /// Nobody is there.
    Refuse,
}

/// The behaviour of this bank.
#[derive(Clone)]
pub(crate) struct Behaviour(Arc<RwLock<Settings>>);

impl Behaviour {
    pub(crate) async fn load(db: &Db) -> Result<Self, StoreError> {
        let rows = db
            .read(sql("select settings from behaviour where id = 1"))
            .await?;
        let settings = match rows.first() {
            // Settings of another version are not worth refusing to start.
            Some(row) => serde_json::from_str(&row.get::<String>(0)?).unwrap_or_default(),
            None => Settings::default(),
        };
        Ok(Self(Arc::new(RwLock::new(settings))))
    }

    pub(crate) async fn set(&self, db: &Db, settings: Settings) -> Result<Settings, Problem> {
        settings.check()?;
        let text = serde_json::to_string(&settings)
            .map_err(|error| Problem::invalid(format_args!("cannot be remembered: {error}")))?;
        let remember = sql("insert into behaviour (id, settings) values (1, $1)
             on conflict (id) do update set settings = excluded.settings");
        db.execute(remember.bind(text)).await?;
        *self.0.write() = settings.clone();
        Ok(settings)
    }

    pub(crate) fn settings(&self) -> Settings {
        self.0.read().clone()
    }

    pub(crate) fn refunds(&self) -> Refunds {
        self.0.read().refunds
    }

    /// Takes as long as this bank takes, and says what becomes of the request.
    pub(crate) async fn meet(&self) -> Fate {
        let settings = self.settings();
        let latency = settings.latency();
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        let chance = RandomState::new().build_hasher().finish() as f64 / u64::MAX as f64;
        settings.fate(chance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(json: &str) -> Settings {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn each_mode_has_its_fate() {
        let check = |json, chance, fate| assert_eq!(settings(json).fate(chance), fate, "{json}");
        check(r#"{"mode": "ok"}"#, 0.0, Fate::Answer);
        check(r#"{"mode": "slow"}"#, 0.0, Fate::Answer);
        check(r#"{"mode": "down"}"#, 0.99, Fate::Refuse);
        check(r#"{"mode": "flaky"}"#, 0.1, Fate::LoseAnswer);
        check(r#"{"mode": "flaky"}"#, 0.3, Fate::Fail);
        check(r#"{"mode": "flaky"}"#, 0.6, Fate::Answer);
        check(r#"{"mode": "flaky", "failureRate": 1}"#, 0.99, Fate::Fail);
        check(r#"{"mode": "flaky", "failureRate": 0}"#, 0.0, Fate::Answer);
    }

    #[test]
    fn latency_is_what_was_set_or_what_the_mode_means() {
        let check = |json, ms| assert_eq!(settings(json).latency().as_millis(), ms, "{json}");
        check(r#"{"mode": "ok"}"#, 0);
        check(r#"{"mode": "ok", "latencyMs": 5}"#, 5);
        check(r#"{"mode": "slow"}"#, 2000);
        check(r#"{"mode": "slow", "latencyMs": 70}"#, 70);
    }

    #[test]
    fn impossible_settings_are_refused() {
        for json in [
            r#"{"mode": "slow", "latencyMs": 60001}"#,
            r#"{"mode": "flaky", "failureRate": 1.5}"#,
            r#"{"mode": "flaky", "failureRate": -0.1}"#,
        ] {
            assert_eq!(settings(json).check().unwrap_err().status(), 422, "{json}");
        }
        assert!(serde_json::from_str::<Settings>(r#"{"mode": "odd"}"#).is_err());
        assert!(serde_json::from_str::<Settings>(r#"{"mode": "ok", "x": 1}"#).is_err());
    }
}

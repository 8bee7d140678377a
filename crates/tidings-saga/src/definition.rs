//! What a saga is: its name, the message that starts it, its key, and its function in all versions.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc, time::Duration};

use jiff::SignedDuration;
use serde_json::value::RawValue;
use tidings_core::{IntoMessages, Message, Sends};

use crate::{
    function::{Function, erase},
    saga::{Saga, Step},
};

/// The name of the messages that answer a step; with the saga's consumer in front it is their queue.
pub const ANSWER_NAME: &str = "tidings.step-answer.v1";

/// How long a compensation waits for an answer before it counts as stuck, if nothing else is said.
const STUCK_AFTER: SignedDuration = SignedDuration::from_hours(1);

/// How long what is left of an ended saga is kept, if nothing else is said.
const KEEP: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How long open journals are checked at the start, if nothing else is said.
const CHECK_MAX: Duration = Duration::from_secs(30);

/// Sagas of one kind: each message `M` starts one.
#[must_use = "give it to `Router::saga`"]
pub struct Sagas<M> {
    name: Cow<'static, str>,
    /// `None`: its key is the step of its parent.
    key: Option<KeyOf<M>>,
    functions: BTreeMap<u32, Function>,
    stuck_after: SignedDuration,
    keep: Duration,
    ends: Vec<Sends>,
    sends: Vec<Sends>,
    check: StartCheck,
}

/// What becomes of the check of open journals at the start of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartCheck {
    /// How long it may take. What it does not come to is not checked, which the log says.
    pub time_max: Duration,
    /// The service starts although a function goes another way than a journal.
    pub is_forced: bool,
}

type KeyOf<M> = Arc<dyn Fn(&M) -> String + Send + Sync>;

/// The key that a message in JSON has.
type KeyOfBody = Box<dyn Fn(&RawValue) -> Result<String, String> + Send + Sync>;

impl<M: Message> Sagas<M> {
    /// Sagas that are named so, each with a key of its own: the order's id, for example. A second
    /// message with the key of a saga that is known starts nothing.
    ///
    /// # Panics
    ///
    /// When the name is empty or has other characters than letters, digits, `.`, `-` and `_`.
    #[track_caller]
    pub fn new(
        name: impl Into<Cow<'static, str>>,
        key: impl Fn(&M) -> String + Send + Sync + 'static,
    ) -> Self {
        let mut sagas = Self::without_key(name.into());
        sagas.key = Some(Arc::new(key));
        sagas
    }

    #[track_caller]
    pub(crate) fn without_key(name: Cow<'static, str>) -> Self {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        assert!(
            !name.is_empty() && name.chars().all(allowed),
            "`{name}` cannot name a saga: it is a part of message ids; use letters, digits, `.`, `-` \
             and `_`"
        );
        Self {
            name,
            key: None,
            functions: BTreeMap::new(),
            stuck_after: STUCK_AFTER,
            keep: KEEP,
            ends: Vec::new(),
            sends: Vec::new(),
            check: StartCheck {
                time_max: CHECK_MAX,
                is_forced: false,
            },
        }
    }

    /// The function. A saga goes on with the version that it was started with: keep that here, under
    /// its number, as long as such sagas are open, and give a changed function a higher one.
    ///
    /// # Panics
    ///
    /// When there is a function with this number.
    #[track_caller]
    pub fn version<F, Fut, Done, Undone>(mut self, number: u32, function: F) -> Self
    where
        F: Fn(M, Saga) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Done, Undone>> + 'static,
        Done: IntoMessages,
        Undone: IntoMessages,
    {
        self.add(number, erase(function));
        let mut ends = Vec::new();
        Done::sends(&mut ends);
        Undone::sends(&mut ends);
        // It ends in one of two ways.
        self.ends.extend(ends.into_iter().map(Sends::maybe));
        self
    }

    #[track_caller]
    pub(crate) fn add(&mut self, number: u32, function: Function) {
        let before = self.functions.insert(number, function);
        assert!(
            before.is_none(),
            "the saga `{}` has two functions with the version {number}",
            self.name
        );
    }

    /// Says that its function sends the command `C`, as a step, an undo or a cancellation: a function
    /// shows that to nobody before it runs, and the event map shows what is said here. Once anything is
    /// said, an [`Explorer`](crate::Explorer) refuses a saga that sends something else.
    pub fn sends<C: Step>(mut self) -> Self {
        self.sends.push(Sends::of::<C>().maybe());
        self
    }

    /// How long a failed saga waits for an answer before it is stuck. Default: an hour.
    pub fn stuck_after(mut self, time: Duration) -> Self {
        self.stuck_after = SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX);
        self
    }

    /// How long an ended saga is kept: so long a second message with its key starts nothing. Default:
    /// 30 days.
    pub fn keep(mut self, time: Duration) -> Self {
        self.keep = time;
        self
    }

    /// How long a service may check at its start whether the functions go the way of all open journals.
    /// What it does not come to is not checked, which the log says. Zero: no check. Default: 30 seconds.
    pub fn start_check_max(mut self, time: Duration) -> Self {
        self.check.time_max = time;
        self
    }

    /// Lets a service start although a function goes another way than some open journals. Those sagas are
    /// stuck when something arrives for them; what arrived is kept.
    pub fn force_start(mut self, is_forced: bool) -> Self {
        self.check.is_forced = is_forced;
        self
    }

    /// The key of a message.
    pub fn key_of(&self) -> Arc<dyn Fn(&M) -> String + Send + Sync> {
        let key = self.key.clone();
        // Only sagas that are steps of others have none, and they are another type.
        key.unwrap_or_else(|| Arc::new(|_| String::new()))
    }

    /// How long an ended saga is kept.
    pub fn kept_for(&self) -> Duration {
        self.keep
    }

    /// The same without its types, run by `consumer`.
    ///
    /// # Panics
    ///
    /// When it has no function.
    #[track_caller]
    pub fn define(self, consumer: &str) -> Definition {
        assert!(
            !self.functions.is_empty(),
            "the saga `{}` has no function; add one: `.version(1, …)`",
            self.name
        );
        let key_of = self.key.map(|key| {
            Box::new(move |body: &RawValue| {
                let message = serde_json::from_str(body.get());
                message
                    .map(|message| key(&message))
                    .map_err(|error| error.to_string())
            }) as KeyOfBody
        });
        Definition {
            name: self.name,
            key_of,
            functions: self.functions,
            reply_to: format!("{consumer}.{ANSWER_NAME}"),
            stuck_after: self.stuck_after,
            ends: self.ends,
            sends: self.sends,
            check: self.check,
        }
    }
}

/// Sagas of one kind, without their types.
pub struct Definition {
    name: Cow<'static, str>,
    key_of: Option<KeyOfBody>,
    functions: BTreeMap<u32, Function>,
    reply_to: String,
    stuck_after: SignedDuration,
    ends: Vec<Sends>,
    sends: Vec<Sends>,
    check: StartCheck,
}

impl Definition {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The queue that the targets of its steps answer to.
    pub fn reply_to(&self) -> &str {
        &self.reply_to
    }

    /// What its functions return.
    pub fn ends(&self) -> &[Sends] {
        &self.ends
    }

    /// The commands that it is said to send, with [`Sagas::sends`].
    pub fn sends(&self) -> &[Sends] {
        &self.sends
    }

    /// What becomes of the check of open journals at the start of a service.
    pub fn start_check(&self) -> StartCheck {
        self.check
    }

    pub(crate) fn stuck_after(&self) -> SignedDuration {
        self.stuck_after
    }

    pub(crate) fn newest(&self) -> u32 {
        self.functions.keys().next_back().copied().unwrap_or(0)
    }

    /// The key that a saga has which is started with this; `None` if it is the step of its parent.
    pub(crate) fn key_of(&self, body: &RawValue) -> Option<Result<String, String>> {
        Some(self.key_of.as_ref()?(body))
    }

    /// Whether this program can run sagas that were started with this version.
    pub fn has_version(&self, version: u32) -> bool {
        self.functions.contains_key(&version)
    }

    pub(crate) fn function(&self, version: u32) -> Result<&Function, String> {
        self.functions.get(&version).ok_or_else(|| {
            format!(
                "this program has no function `{}` with the version {version}, with which the saga was \
                 started",
                self.name
            )
        })
    }

    /// How a saga is named for people: `checkout/o-1`.
    pub(crate) fn id(&self, key: &str, run: u32) -> String {
        match run {
            0 => format!("{}/{key}", self.name),
            run => format!("{}/{key}/{run}", self.name),
        }
    }
}

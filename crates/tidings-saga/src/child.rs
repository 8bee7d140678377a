//! A saga that is a step of another one: who its parent is, and what calls it off.

use std::{fmt, marker::PhantomData, time::Duration};

use serde::{Deserialize, Serialize};
use tidings_core::{Destination, Message, Outgoing};

use crate::{
    definition::{Definition, Sagas},
    function::erase_child,
    saga::{Saga, Step},
    step_id::{Part, StepId},
    turn::Answer,
};

/// The name of the messages that call off a saga which is a step of another one; with its consumer in
/// front it is their queue.
pub const CALL_OFF_NAME: &str = "tidings.call-off.v1";

/// Calls off a saga that is a step of another one: it is not to be done, or to be undone, as the header
/// that names the step says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CallOff {
    /// The name of the command that started it.
    pub command: Box<str>,
}

impl Message for CallOff {
    const NAME: &'static str = CALL_OFF_NAME;
    /// Each goes to the queue of the saga's consumer.
    const DESTINATION: Destination = Destination::queue(CALL_OFF_NAME);
}

impl CallOff {
    /// What calls off the saga that `target` started with `command`.
    pub(crate) fn to(target: &str, command: &str) -> Result<Outgoing, String> {
        let command = command.into();
        let message = Outgoing::new(&Self { command });
        let mut message = message.map_err(|error| error.to_string())?;
        message.destination = Destination::Queue(format!("{target}.{CALL_OFF_NAME}").into());
        Ok(message)
    }
}

/// Whose step a saga is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Parent {
    /// The step.
    pub step: StepId,
    /// Where the answers go.
    pub reply_to: Box<str>,
    /// What is asked of it now.
    pub(crate) asked: Part,
    /// How its function ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) answer: Option<Answer>,
}

impl Parent {
    /// The saga that asked for this step, and waits in this queue for the answer.
    pub fn new(step: &StepId, reply_to: impl Into<Box<str>>) -> Self {
        Self {
            step: step.with(Part::Do),
            reply_to: reply_to.into(),
            asked: step.part,
            answer: None,
        }
    }

    /// The key of the saga that carries out the step.
    pub fn key(&self) -> String {
        self.step.to_string()
    }
}

/// What a saga tells the one whose step it is.
#[derive(Debug, Clone)]
pub struct Told {
    /// The step, with what was asked.
    pub step: StepId,
    /// Where it goes.
    pub reply_to: Box<str>,
    /// The answer. `Err`: there will be none, for this reason.
    pub answer: Result<Answer, Box<str>>,
}

/// Sagas of one kind that are steps of others: each command `C` starts one, which another saga sent with
/// [`Draft::child`](crate::Draft::child).
///
/// What the function returns is the reply. An error is a refusal, told when everything is undone.
///
/// ```
/// # use serde::{Deserialize, Serialize};
/// # use tidings_core::{Command, Destination, Message};
/// use tidings_saga::{ChildSagas, Saga, Step, StepError};
/// # macro_rules! steps { ($($of:ident: $name:literal, $reply:ty;)+) => {$(
/// # #[derive(Debug, Clone, Serialize, Deserialize)] struct $of { order_id: String }
/// # impl Message for $of {
/// #     const NAME: &'static str = $name;
/// #     const DESTINATION: Destination = Destination::queue(concat!("shipping.", $name));
/// # }
/// # impl Command for $of { const TARGET: &'static str = "shipping"; }
/// # impl Step for $of { type Reply = $reply; }
/// # )+} }
/// # steps! { ShipOrder: "ship-order.v1", String; Pack: "pack.v1", (); Unpack: "unpack.v1", ();
/// #          Collect: "collect.v1", String; }
///
/// async fn ship(order: ShipOrder, saga: Saga) -> Result<String, StepError> {
///     let order_id = order.order_id.clone();
///     saga.step("pack", Pack { order_id: order.order_id.clone() })
///         .undo(move |()| Unpack { order_id: order_id.clone() })
///         .await?;
///     saga.step("collect", Collect { order_id: order.order_id }).pivot().await
/// }
///
/// let sagas = ChildSagas::new("ship-order").version(1, ship);
/// ```
#[must_use = "give it to `Router::child_saga`"]
pub struct ChildSagas<C> {
    sagas: Sagas<C>,
    of: PhantomData<fn(C)>,
}

impl<C: Step> ChildSagas<C> {
    /// Sagas that are named so. Their keys are the steps of their parents.
    ///
    /// # Panics
    ///
    /// As [`Sagas::new`].
    #[track_caller]
    pub fn new(name: impl Into<std::borrow::Cow<'static, str>>) -> Self {
        Self {
            sagas: Sagas::without_key(name.into()),
            of: PhantomData,
        }
    }

    /// The function; as [`Sagas::version`].
    ///
    /// # Panics
    ///
    /// When there is a function with this number.
    #[track_caller]
    pub fn version<F, Fut, E>(mut self, number: u32, function: F) -> Self
    where
        F: Fn(C, Saga) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<C::Reply, E>> + 'static,
        E: fmt::Display,
    {
        self.sagas.add(number, erase_child(function));
        self
    }

    /// As [`Sagas::sends`].
    pub fn sends<S: Step>(mut self) -> Self {
        self.sagas = self.sagas.sends::<S>();
        self
    }

    /// As [`Sagas::stuck_after`].
    pub fn stuck_after(mut self, time: Duration) -> Self {
        self.sagas = self.sagas.stuck_after(time);
        self
    }

    /// How long an ended saga is kept: so long its parent may ask for its answer again, and have it
    /// undone. Default: 30 days.
    pub fn keep(mut self, time: Duration) -> Self {
        self.sagas = self.sagas.keep(time);
        self
    }

    /// As [`Sagas::start_check_max`].
    pub fn start_check_max(mut self, time: Duration) -> Self {
        self.sagas = self.sagas.start_check_max(time);
        self
    }

    /// As [`Sagas::force_start`].
    pub fn force_start(mut self, is_forced: bool) -> Self {
        self.sagas = self.sagas.force_start(is_forced);
        self
    }

    /// How long an ended saga is kept.
    pub fn kept_for(&self) -> Duration {
        self.sagas.kept_for()
    }

    /// The same without its types, run by `consumer`.
    ///
    /// # Panics
    ///
    /// When it has no function.
    #[track_caller]
    pub fn define(self, consumer: &str) -> Definition {
        self.sagas.define(consumer)
    }
}

//! The router: which function handles what, and everything a service decides in one place.

use std::{
    any::{TypeId, type_name},
    borrow::Cow,
    num::NonZeroU16,
    panic::Location,
    sync::Arc,
    time::Duration,
};

use tidings_saga::{ANSWER_NAME, CALL_OFF_NAME};
use tower::{Layer, Service};

use crate::{
    AfterDeadLetter, BoxError, Context, Destination, Error, Event, Handled, Handler, HandlerInput,
    HandlerOptions, HandlerService, Incoming, Message, Outgoing, Permanent, Provided, Retry, Sends,
    States, Store,
    accept::{self, Upcast},
    handler::{Effects, Surroundings},
    publish::OnSend,
    saga::Registry,
    schedule::declared::Scheduled,
};

/// The handlers of one consumer, and how they are run.
///
/// The order of the calls does not matter, except among layers: the first one is the outermost, as
/// in `tower::ServiceBuilder`.
///
/// ```
/// use serde::{Deserialize, Serialize};
/// use tidings::prelude::*;
///
/// #[derive(Serialize, Deserialize, Event)]
/// struct OrderPlaced { order_id: String }
///
/// #[derive(Serialize, Deserialize, Event)]
/// #[event(key = "order_id")]
/// struct PaymentSettled { order_id: String }
///
/// async fn settle(order: OrderPlaced, State(bank): State<&'static str>) -> Result<PaymentSettled> {
///     println!("{bank} pays for {}", order.order_id);
///     Ok(PaymentSettled { order_id: order.order_id })
/// }
///
/// let router = Router::new("payment").on(settle).with_state("the bank");
/// ```
#[must_use = "give it to `tidings::serve`"]
pub struct Router {
    pub(crate) consumer: Cow<'static, str>,
    pub(crate) routes: Vec<Route>,
    pub(crate) store: Option<Arc<dyn Store>>,
    pub(crate) states: States,
    pub(crate) limits: Limits,
    pub(crate) on_send: Vec<OnSend>,
    pub(crate) defaults: HandlerOptions,
    layers: Vec<LayerFn>,
    /// What is sent from outside of handlers.
    pub(crate) published: Vec<Sends>,
    pub(crate) sagas: Registry,
    pub(crate) schedules: Vec<Scheduled>,
    /// With the name of the newer message.
    pub(crate) upcasts: Vec<(&'static str, Upcast)>,
}

type LayerFn = Box<dyn Fn(HandlerService) -> HandlerService + Send + Sync>;

/// The durations and counts a service keeps to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) shutdown_timeout: Duration,
    pub(crate) claim_window: Duration,
    pub(crate) outbox_alarm: Duration,
    pub(crate) held_max: Option<Duration>,
    pub(crate) keep_events: Option<Duration>,
    pub(crate) deferred_count_max: u64,
    pub(crate) lease: Duration,
}

/// One handler.
pub(crate) struct Route {
    pub(crate) name: &'static str,
    pub(crate) queue: Arc<str>,
    pub(crate) topic: Option<Cow<'static, str>>,
    pub(crate) accept: Accept,
    pub(crate) options: HandlerOptions,
    /// Those of the router it was added to, if that was merged into another one.
    layers: Option<Arc<[LayerFn]>>,
    pub(crate) handler: &'static str,
    pub(crate) location: &'static Location<'static>,
    /// What it sends, from its type and as declared.
    pub(crate) sends: Vec<Sends>,
    /// Of the saga that its message starts.
    pub(crate) saga: Option<Box<str>>,
    pub(crate) check: fn(&Provided<'_>) -> Result<(), String>,
    attempt: Box<AttemptFn>,
    pub(crate) takes_batches: bool,
    /// Whether its message says that it is a step of sagas.
    pub(crate) is_step: bool,
    /// The fields of its message that are not to be shown.
    pub(crate) sensitive: fn() -> Vec<String>,
}

/// Makes the innermost service of a handler.
type AttemptFn = dyn Fn(Surroundings) -> HandlerService + Send + Sync;

/// Decodes a message on arrival.
pub(crate) type Accept =
    fn(Incoming, &[Upcast], &Arc<States>, Option<&Arc<dyn Store>>) -> Result<Context, Permanent>;

impl Router {
    /// A consumer without handlers. `consumer` names the group whose instances compete for
    /// messages; it begins the names of its queues, and is the CloudEvents source of what it sends.
    ///
    /// # Panics
    ///
    /// When the name is empty or has other characters than letters, digits, `.`, `-` and `_`.
    #[track_caller]
    pub fn new(consumer: impl Into<Cow<'static, str>>) -> Self {
        let consumer = consumer.into();
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        assert!(
            !consumer.is_empty() && consumer.chars().all(allowed),
            "`{consumer}` cannot name a consumer: its queues begin with it; use letters, digits, \
             `.`, `-` and `_`"
        );
        Self {
            consumer,
            routes: Vec::new(),
            store: None,
            states: States::new(),
            limits: Limits {
                shutdown_timeout: Duration::from_secs(30),
                claim_window: Duration::from_secs(7 * 24 * 60 * 60),
                outbox_alarm: Duration::from_secs(30),
                held_max: None,
                keep_events: None,
                deferred_count_max: 100_000,
                lease: Duration::from_secs(10),
            },
            on_send: Vec::new(),
            defaults: HandlerOptions::new(),
            layers: Vec::new(),
            published: Vec::new(),
            sagas: Registry::default(),
            schedules: Vec::new(),
            upcasts: Vec::new(),
        }
    }

    /// Handles messages of the function's first argument with it, one by one or as a
    /// [`Batch`](crate::Batch). The queue is `consumer.message-name`, with its dead letters beside it.
    ///
    /// # Panics
    ///
    /// When the message has a handler already, or is a command for another consumer.
    #[track_caller]
    pub fn on<H, T, A>(self, handler: H) -> Self
    where
        H: Handler<T, A>,
        T: HandlerInput,
        A: 'static,
    {
        self.on_with(handler, HandlerOptions::new())
    }

    /// As [`on`](Self::on), with options that hold for this handler alone.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # use tidings::prelude::*;
    /// # #[derive(Serialize, Deserialize, Event)]
    /// # struct OrderPlaced { order_id: String }
    /// use tidings::HandlerOptions;
    ///
    /// async fn print_label(order: OrderPlaced) -> Result<()> { Ok(()) }
    ///
    /// // There is one printer.
    /// let router = Router::new("labels").on_with(print_label, HandlerOptions::new().concurrency(1));
    /// ```
    ///
    /// # Panics
    ///
    /// As [`on`](Self::on), and when an option does not fit the handler.
    #[track_caller]
    pub fn on_with<H, T, A>(self, handler: H, options: HandlerOptions) -> Self
    where
        H: Handler<T, A>,
        T: HandlerInput,
        A: 'static,
    {
        let name = <T::Message as Message>::NAME;
        let consumer = &self.consumer;
        let queue = format!("{consumer}.{name}");
        let topic = match <T::Message as Message>::DESTINATION {
            Destination::Topic(topic) => Some(topic),
            Destination::Queue(target) => {
                assert!(
                    target == queue,
                    "the command `{name}` goes to the queue `{target}`, but the router `{consumer}` \
                     would wait for it in `{queue}`; give the router the name of the command's \
                     target"
                );
                None
            }
        };
        self.on_topic(topic, handler, options)
    }

    /// Handles messages from the queue `consumer.message-name`, which gets those of `topic`.
    #[track_caller]
    pub(crate) fn on_topic<H, T, A>(
        mut self,
        topic: Option<Cow<'static, str>>,
        handler: H,
        options: HandlerOptions,
    ) -> Self
    where
        H: Handler<T, A>,
        T: HandlerInput,
        A: 'static,
    {
        let location = Location::caller();
        let name = <T::Message as Message>::NAME;
        let handler_name = type_name::<H>();
        self.refuse_second(name, handler_name);
        let takes_batches = T::GATHER.is_some();
        assert!(
            takes_batches || options.batch_max.is_none(),
            "`batch_max` was given to `{handler_name}`, which takes one message; let it take a \
             `Batch<{}>`",
            type_name::<T>().rsplit("::").next().unwrap_or_default()
        );
        let mut sends = Vec::new();
        H::sends(&mut sends);
        sends.extend(options.emits.iter().cloned());
        self.routes.push(Route {
            name,
            queue: format!("{}.{name}", self.consumer).into(),
            topic,
            accept: accept::accept::<T::Message>,
            options,
            layers: None,
            handler: handler_name,
            location,
            sends,
            saga: None,
            check: H::check,
            attempt: Box::new(move |surroundings| {
                HandlerService::attempt(handler.clone(), surroundings)
            }),
            takes_batches,
            is_step: <T::Message as Message>::IS_STEP,
            sensitive: <T::Message as Message>::sensitive_paths,
        });
        self
    }

    #[track_caller]
    fn refuse_second(&self, name: &str, handler: &str) {
        if let Some(other) = self.routes.iter().find(|route| route.name == name) {
            panic!(
                "`{name}` has two handlers in the router `{}`: `{}` at {} and `{handler}`; do both \
                 things in one handler, so that they happen together, or give the second one to a \
                 router with another name",
                self.consumer, other.handler, other.location
            );
        }
    }

    /// Adds the handlers of another router of the same consumer, made in another module, say. Their
    /// options, layers and states stay theirs, except that states are for all.
    ///
    /// # Panics
    ///
    /// When the other router is of another consumer (give [`serve`](crate::serve) both instead), has
    /// a handler for a message that has one here, a state of a type that there is here, or another
    /// store.
    #[track_caller]
    pub fn merge(mut self, other: Self) -> Self {
        assert!(
            self.consumer == other.consumer,
            "`merge` joins routers of one consumer, but these are `{}` and `{}`; give both to \
             `serve` instead: `serve(transport, [first, second])`",
            self.consumer,
            other.consumer
        );
        let layers: Arc<[LayerFn]> = other.layers.into();
        let has_sagas = !self.sagas.is_empty();
        let has_child_sagas = self.sagas.has_children();
        if has_sagas {
            self.sagas.merge(&other.sagas);
        } else {
            self.sagas = other.sagas;
        }
        for mut route in other.routes {
            if has_sagas && route.name == ANSWER_NAME {
                continue; // The answers to all sagas come to one handler.
            }
            if has_child_sagas && route.name == CALL_OFF_NAME {
                continue; // And so does what calls them off.
            }
            self.refuse_second(route.name, route.handler);
            route.options = route.options.or(&other.defaults);
            route.layers.get_or_insert_with(|| Arc::clone(&layers));
            self.routes.push(route);
        }
        for (of_type, state) in other.states {
            let before = self.states.insert(of_type, state);
            assert!(
                before.is_none(),
                "both routers of `{}` were given a state of the same type; give it to one of them",
                self.consumer
            );
        }
        match (&self.store, other.store) {
            (Some(store), Some(other)) => assert!(
                Arc::ptr_eq(store, &other),
                "the two routers of `{}` have two stores; a consumer has one: give both a clone of \
                 one `Arc`",
                self.consumer
            ),
            (None, Some(other)) => self.store = Some(other),
            (_, None) => {}
        }
        self.take_schedules(other.schedules);
        self.published.extend(other.published);
        self.upcasts.extend(other.upcasts);
        self.on_send.extend(other.on_send);
        self
    }

    /// Lets the handler of `New` take messages of an older version as well: each is decoded as an
    /// `Old` and made into a `New`, whether it comes from the broker, waited in the store, or is a
    /// dead letter that is sent again.
    ///
    /// ```
    /// # use serde::{Deserialize, Serialize};
    /// # use tidings::prelude::*;
    /// #[derive(Serialize, Deserialize, Event)]
    /// #[event(name = "order-placed.v1", topic = "order_events", id = "order_id")]
    /// struct OrderPlacedV1 { order_id: String, euros: u64 }
    ///
    /// #[derive(Serialize, Deserialize, Event)]
    /// #[event(name = "order-placed.v2", topic = "order_events", id = "order_id")]
    /// struct OrderPlaced { order_id: String, cents: u64 }
    ///
    /// impl From<OrderPlacedV1> for OrderPlaced {
    ///     fn from(old: OrderPlacedV1) -> Self {
    ///         Self { order_id: old.order_id, cents: old.euros * 100 }
    ///     }
    /// }
    ///
    /// async fn settle(order: OrderPlaced) -> Result<()> { Ok(()) }
    ///
    /// let router = Router::new("payment").on(settle).upcast::<OrderPlacedV1, OrderPlaced>();
    /// ```
    ///
    /// # Panics
    ///
    /// When `Old` is a command: it has a queue of its own, so give it a handler of its own.
    #[track_caller]
    pub fn upcast<Old, New>(mut self) -> Self
    where
        Old: Event,
        New: Event + From<Old>,
    {
        let Destination::Topic(topic) = Old::DESTINATION else {
            panic!(
                "`{}` is sent to a queue, so it cannot be upcast; handle it with `on`",
                Old::NAME
            )
        };
        self.upcasts
            .push((New::NAME, Upcast::new::<Old, New>(topic)));
        self
    }

    /// The older messages that a handler takes as well.
    pub(crate) fn upcasts_of(&self, route: &Route) -> Arc<[Upcast]> {
        let of_route = self
            .upcasts
            .iter()
            .filter(|(newer, _)| *newer == route.name);
        of_route.map(|(_, upcast)| upcast.clone()).collect()
    }

    /// Gives the handlers a database: each attempt is one transaction that holds the claim on the
    /// message, what the handler writes and what it sends. Without it a handler may run more than
    /// once for a message, and what it sends is published before the acknowledgement.
    pub fn transactional(mut self, store: impl Into<Arc<dyn Store>>) -> Self {
        self.store = Some(store.into());
        self.keep();
        self
    }

    /// Puts a tower layer (or a `ServiceBuilder` of several) around the attempts of every handler.
    /// The first call is the outermost layer. A layer's error means: try again.
    ///
    /// A [`ConcurrencyLimitLayer`](tower::limit::ConcurrencyLimitLayer) is one limit per handler.
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<HandlerService> + Send + Sync + 'static,
        L::Service: Service<Context, Response = Handled> + Clone + Send + 'static,
        <L::Service as Service<Context>>::Error: Into<BoxError>,
        <L::Service as Service<Context>>::Future: Send,
    {
        self.layers.push(Box::new(move |service| {
            HandlerService::new(layer.layer(service))
        }));
        self
    }

    /// The publishing side's layer: looks at each message that a handler sends, before it is
    /// committed, and may change it (add a header, say) or refuse it; then the attempt fails with
    /// that error. Called in the order in which they were added.
    ///
    /// ```
    /// # use tidings::prelude::*;
    /// let router = Router::new("payment").on_send(|message| {
    ///     message.envelope.headers.push(("tenant".into(), "t-1".into()));
    ///     Ok(())
    /// });
    /// ```
    pub fn on_send(
        mut self,
        look: impl Fn(&mut Outgoing) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Self {
        self.on_send.push(Arc::new(look));
        self
    }

    /// How often and when a message is tried before it is a dead letter.
    pub fn retry(mut self, policy: Retry) -> Self {
        self.defaults = self.defaults.retry(policy);
        self
    }

    /// How many messages of each queue are handled at the same time by one instance (default 64; for
    /// a handler that takes batches, twice its [`batch_max`](HandlerOptions::batch_max)).
    ///
    /// # Panics
    ///
    /// When it is not between 1 and 16383.
    #[track_caller]
    pub fn concurrency(mut self, messages: u16) -> Self {
        self.defaults = self.defaults.concurrency(messages);
        self
    }

    /// Asks for order: messages with one key, of all types that this router handles, are handled one
    /// after the other in the order in which their sender committed them: across instances, retries,
    /// redelivery and restarts. Other keys are never held up by them. It needs a store, in which
    /// messages wait behind an earlier one of their key.
    ///
    /// Keys are spread over `partitions`, which the instances share: so many instances can work at
    /// the same time. The number is written down in the store when it is first used, and an instance
    /// that differs does not start. More partitions than instances cost little: 16 is a good number.
    ///
    /// Without this, and without [`HandlerOptions::ordered`], messages are handled in any order. A
    /// broker's queue that refuses messages (`reject-publish`) is promised no order.
    ///
    /// # Panics
    ///
    /// When it is not between 1 and 64.
    #[track_caller]
    pub fn ordered(mut self, partitions: u16) -> Self {
        self.defaults = self.defaults.ordered(partitions);
        self
    }

    /// Takes the queues of events out of their topics: what is in them, or is sent to them by name, is
    /// handled, and new events do not come. For a service that is to work off what it has before it goes,
    /// or before another one takes over. Commands come as before.
    ///
    /// An instance that says otherwise subscribes the queues again when it starts, so say the same in all.
    /// It does not go together with [`ordered`](Self::ordered).
    pub fn unsubscribed(mut self) -> Self {
        self.defaults = self.defaults.unsubscribed();
        self
    }

    /// What becomes of the later messages of a key when one of them is a dead letter (default: they
    /// are handled without it). Only with [`ordered`](Self::ordered).
    pub fn after_dead_letter(mut self, then: AfterDeadLetter) -> Self {
        self.defaults = self.defaults.after_dead_letter(then);
        self
    }

    /// Gives handlers a value to take as `State<T>`. One per type.
    ///
    /// # Panics
    ///
    /// When there is a value of that type already.
    #[track_caller]
    pub fn with_state<T: Clone + Send + Sync + 'static>(mut self, state: T) -> Self {
        let before = self.states.insert(TypeId::of::<T>(), Arc::new(state));
        assert!(
            before.is_none(),
            "the router `{}` was given two states of the type `{}`; wrap one in a type of its own",
            self.consumer,
            type_name::<T>()
        );
        self
    }

    /// The longest one attempt may take, in case no timeout layer is shorter (default 15 minutes:
    /// half of what RabbitMQ waits for an acknowledgement). It begins when the handler does: an attempt
    /// that waits for a busy store has not, is given back after this time (at least 5 s), and does not
    /// count.
    pub fn attempt_timeout(mut self, limit: Duration) -> Self {
        self.defaults = self.defaults.attempt_timeout(limit);
        self
    }

    /// The longest a graceful shutdown waits for handlers under way and then for the outbox
    /// (default 30 s). What is not done by then is done after the next start.
    pub fn shutdown_timeout(mut self, limit: Duration) -> Self {
        self.limits.shutdown_timeout = limit;
        self
    }

    /// How long a message that was handled is remembered (default 7 days). A duplicate that comes
    /// later is handled again: keep it longer than the longest redelivery.
    pub fn claim_window(mut self, window: Duration) -> Self {
        self.limits.claim_window = window;
        self
    }

    /// The age of the oldest unsent message from which on the log warns (default 30 s).
    pub fn outbox_alarm(mut self, age: Duration) -> Self {
        self.limits.outbox_alarm = age;
        self
    }

    /// How long an event may be held in the outbox because nobody listens to its topic (default: for
    /// ever). After that it is set aside, listed for an operator, never deleted. Commands and dead
    /// letters are held for ever.
    pub fn held_max(mut self, age: Duration) -> Self {
        self.limits.held_max = Some(age);
        self
    }

    /// How many messages of a handler may wait in the store before it receives no more (default
    /// 100,000); the rest then stays in the broker.
    pub fn deferred_count_max(mut self, messages: u64) -> Self {
        self.limits.deferred_count_max = messages.max(1);
        self
    }

    /// How long the messages that an instance has taken from the store stay with it after it died
    /// (default 10 s, at least 100 ms); while it lives it keeps them.
    pub fn lease(mut self, lease: Duration) -> Self {
        self.limits.lease = lease.max(Duration::from_millis(100));
        self
    }

    /// The service that makes one attempt at a message of a route's queue, with its layers.
    pub(crate) fn service(&self, route: &Route, effects: &Arc<Effects>) -> HandlerService {
        let limit = route.options.or(&self.defaults).attempt_timeout;
        let limit = limit.unwrap_or(ATTEMPT_TIMEOUT);
        let attempt = (route.attempt)(Surroundings {
            queue: Arc::clone(&route.queue),
            effects: Arc::clone(effects),
            upcasts: self.upcasts_of(route),
            limit,
            batch_max: batch_max_of(route).get().into(),
            answers_steps: route.options.answers_steps,
            only_writes: route.options.only_writes,
        });
        let layers = route.layers.as_deref().unwrap_or(&self.layers).iter().rev();
        layers.fold(attempt, |service, layer| layer(service))
    }
}

/// How many messages are handled at the same time, or make a batch, if nobody says otherwise.
pub(crate) const MESSAGES_DEFAULT: NonZeroU16 = NonZeroU16::new(64).unwrap();

pub(crate) fn batch_max_of(route: &Route) -> NonZeroU16 {
    route.options.batch_max.unwrap_or(MESSAGES_DEFAULT)
}

/// The longest one attempt may take if nobody says otherwise: half of what RabbitMQ waits for an
/// acknowledgement.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// The prefetch for a number of handlers: enough that none of them waits for the broker.
pub(crate) fn prefetch(concurrency: NonZeroU16) -> NonZeroU16 {
    concurrency.saturating_mul(const { NonZeroU16::new(4).unwrap() })
}

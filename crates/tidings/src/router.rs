//! The router: which function handles what, and everything a service decides in one place.

use std::{
    any::{TypeId, type_name},
    borrow::Cow,
    num::NonZeroU16,
    panic::Location,
    sync::Arc,
    time::Duration,
};

use tower::{Layer, Service};

use crate::{
    BoxError, Context, Delivery, Destination, Envelope, Event, Handled, Handler, HandlerService,
    Message, MessageId, Permanent, Provided, Queue, RetryPolicy, States, Store, Topology,
    handler::{Effects, decode},
    identity_of,
};

/// A queue's name leaves room for `.dead` and `.retry.<ms>` in the 255 bytes AMQP gives it.
const QUEUE_BYTES_MAX: usize = 230;

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
    pub(crate) retry: RetryPolicy,
    pub(crate) concurrency: NonZeroU16,
    pub(crate) is_ordered: bool,
    pub(crate) limits: Limits,
    layers: Vec<Box<dyn Fn(HandlerService) -> HandlerService + Send + Sync>>,
    published: Vec<Destination>,
}

/// The durations a service keeps to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) attempt_timeout: Duration,
    pub(crate) shutdown_timeout: Duration,
    pub(crate) claim_window: Duration,
    pub(crate) outbox_alarm: Duration,
}

/// One handler.
pub(crate) struct Route {
    pub(crate) name: &'static str,
    pub(crate) queue: Arc<str>,
    pub(crate) topic: Option<Cow<'static, str>>,
    pub(crate) accept: Accept,
    handler: &'static str,
    location: &'static Location<'static>,
    destinations: fn(&mut Vec<Destination>),
    check: fn(&Provided<'_>) -> Result<(), String>,
    attempt: Box<dyn Fn(Arc<Effects>) -> HandlerService + Send + Sync>,
}

/// Decodes a delivery on arrival.
pub(crate) type Accept =
    fn(&Delivery, &Arc<States>, Option<&Arc<dyn Store>>) -> Result<Accepted, Permanent>;

/// A delivery that can be handled.
pub(crate) struct Accepted {
    pub(crate) context: Context,
    pub(crate) key: Option<Box<str>>,
}

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
            retry: RetryPolicy::default(),
            concurrency: const { NonZeroU16::new(64).unwrap() },
            is_ordered: true,
            limits: Limits {
                attempt_timeout: Duration::from_secs(15 * 60),
                shutdown_timeout: Duration::from_secs(30),
                claim_window: Duration::from_secs(7 * 24 * 60 * 60),
                outbox_alarm: Duration::from_secs(30),
            },
            layers: Vec::new(),
            published: Vec::new(),
        }
    }

    /// Handles messages of the function's first argument with it. The queue is
    /// `consumer.message-name`, with its dead letters beside it.
    ///
    /// # Panics
    ///
    /// When the message has a handler already, or is a command for another consumer.
    #[track_caller]
    pub fn on<H, M, A>(mut self, handler: H) -> Self
    where
        H: Handler<M, A>,
        M: Message,
    {
        let location = Location::caller();
        let consumer = &self.consumer;
        let queue = format!("{consumer}.{}", M::NAME);
        let handler_name = type_name::<H>();
        if let Some(other) = self.routes.iter().find(|route| route.name == M::NAME) {
            panic!(
                "`{}` has two handlers in the router `{consumer}`: `{}` at {} and `{handler_name}`; \
                 do both things in one handler, so that they happen together, or give the second \
                 one to a router with another name",
                M::NAME,
                other.handler,
                other.location
            );
        }
        let topic = match M::DESTINATION {
            Destination::Topic(topic) => Some(topic),
            Destination::Queue(target) => {
                assert!(
                    target == queue,
                    "the command `{}` goes to the queue `{target}`, but the router `{consumer}` \
                     would wait for it in `{queue}`; give the router the name of the command's \
                     target",
                    M::NAME
                );
                None
            }
        };
        assert!(
            queue.len() <= QUEUE_BYTES_MAX,
            "the queue `{queue}` has a name of more than {QUEUE_BYTES_MAX} bytes; shorten the \
             router's or the message's"
        );
        self.routes.push(Route {
            name: M::NAME,
            queue: queue.into(),
            topic,
            accept: accept::<M>,
            handler: handler_name,
            location,
            destinations: H::destinations,
            check: H::check,
            attempt: Box::new(move |effects| HandlerService::attempt(handler.clone(), effects)),
        });
        self
    }

    /// Gives the handlers a database: each attempt is one transaction that holds the claim on the
    /// message, what the handler writes and what it sends. Without it a handler may run more than
    /// once for a message, and what it sends is published before the acknowledgement.
    pub fn transactional(mut self, store: impl Into<Arc<dyn Store>>) -> Self {
        self.store = Some(store.into());
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

    /// How often and when a message is tried before it is a dead letter. A
    /// [`RetryLayer`](crate::RetryLayer) given to [`layer`](Self::layer) comes before this.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// Says that the service publishes `E` from outside of handlers, so that its topic is declared.
    pub fn publishes<E: Event>(mut self) -> Self {
        self.published.push(E::DESTINATION);
        self
    }

    /// How many messages of each queue are handled at the same time (default 64). Messages with
    /// the same key never are.
    ///
    /// # Panics
    ///
    /// When it is not between 1 and 16383 (a broker counts what is out in 16 bits, and four times
    /// as many are fetched ahead).
    #[track_caller]
    pub fn concurrency(mut self, handlers: u16) -> Self {
        self.concurrency = NonZeroU16::new(handlers)
            .filter(|handlers| handlers.get() <= u16::MAX / 4)
            .expect("`concurrency` is between 1 and 16383");
        self
    }

    /// Gives up order per key: messages with the same key may be handled at the same time and in
    /// any order, and none waits for an earlier one that is tried again.
    pub fn unordered(mut self) -> Self {
        self.is_ordered = false;
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
    /// half of what RabbitMQ waits for an acknowledgement).
    pub fn attempt_timeout(mut self, limit: Duration) -> Self {
        self.limits.attempt_timeout = limit;
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

    /// The topics and queues this service needs.
    pub fn topology(&self) -> Topology {
        let mut destinations = self.published.clone();
        for route in &self.routes {
            (route.destinations)(&mut destinations);
        }
        let mut topology = Topology::default();
        for destination in destinations {
            // The queue of a command belongs to its target, which declares it.
            if let Destination::Topic(topic) = destination
                && !topology.topics.contains(&topic)
            {
                topology.topics.push(topic);
            }
        }
        topology.queues = self
            .routes
            .iter()
            .map(|route| Queue {
                name: Cow::Owned(route.queue.to_string()),
                topics: route.topic.clone().into_iter().collect(),
                delays: self.retry.delays(),
            })
            .collect();
        topology
    }

    /// Panics if a handler lacks something.
    #[track_caller]
    pub(crate) fn check(&self) {
        let provided = Provided::new(&self.states, self.store.as_ref());
        for route in &self.routes {
            if let Err(lack) = (route.check)(&provided) {
                panic!(
                    "the handler `{}` at {} of the router `{}` cannot run: {lack}",
                    route.handler, route.location, self.consumer
                );
            }
        }
    }

    /// The service that handles a route's queue: attempts inside, the router's retry policy
    /// outermost.
    pub(crate) fn service(&self, route: &Route, effects: &Arc<Effects>) -> HandlerService {
        let attempt = (route.attempt)(Arc::clone(effects));
        let layers = self.layers.iter().rev();
        let layered = layers.fold(attempt, |service, layer| layer(service));
        HandlerService::new(self.retry.layer(layered))
    }
}

fn accept<M: Message>(
    delivery: &Delivery,
    states: &Arc<States>,
    store: Option<&Arc<dyn Store>>,
) -> Result<Accepted, Permanent> {
    let envelope = &delivery.envelope;
    let message = decode::<M>(envelope)?;
    let id = message_id(&message, envelope)?;
    let key = match message.key() {
        Some(key) => Some(key.into_owned().into()),
        None => envelope.key.clone(),
    };
    let context = Context::new(delivery, id, Arc::clone(states), store.cloned());
    context.keep_decoded(message);
    Ok(Accepted { context, key })
}

/// What the message says it is counts more than the id it came with: a foreign program may send
/// the same fact twice under two ids.
fn message_id<M: Message>(message: &M, envelope: &Envelope) -> Result<MessageId, Permanent> {
    identity_of(message)
        .or_else(|| envelope.id.clone())
        .ok_or_else(|| {
            Permanent::new(format!(
                "the message has no id, so a duplicate of it could not be told; send a \
                 `message_id` property or a `cloudEvents:id` header with it, or say which field \
                 identifies a `{}` with `id = \"field\"` beside its name",
                M::NAME
            ))
        })
}

/// The prefetch for a number of handlers: enough that one busy key leaves work for the others.
pub(crate) fn prefetch(concurrency: NonZeroU16) -> NonZeroU16 {
    concurrency.saturating_mul(const { NonZeroU16::new(4).unwrap() })
}

//! The toolkit's [`Transport`] over Amazon SNS and SQS.
//!
//! It waits while Amazon does not answer, never says a message is published before SNS or SQS have taken it, looks at
//! the outcome of each message of a batch, and keeps what is being handled hidden from others for as long as that
//! takes.
//!
//! ```no_run
//! use tidings_aws::Aws;
//!
//! # async fn example() -> Result<(), tidings_core::TransportError> {
//! let transport = Aws::connect("aws://eu-central-1").await?;
//! # Ok(())
//! # }
//! ```
//!
//! # The URL
//!
//! `aws://REGION/PREFIX?option=value&...`. The prefix, which may be left out, is what the names of all topics and
//! queues begin with. Credentials come from where the SDK looks for them: the environment, a profile
//! (`AWS_PROFILE`), a web identity, the role of the container or machine. Options: `endpoint` (where to ask instead
//! of Amazon), `account` (else STS is asked), `queues` (`fifo`, the default, or `standard`), and in seconds
//! `visibility` (how long a message is hidden when its process dies, default 30), `wait` (how long a receive waits for
//! messages, default 20), `handling` (how long a message may be out at most, default and maximum 42300) and
//! `handover` (how long a dropped subscription waits for what is out, default 5).
//!
//! # What it makes at Amazon
//!
//! Topic `T` is a topic of SNS, queue `Q` a queue of SQS, with its dead letters in the queue `Q.dead`. Dots in names
//! become `--`, the prefix comes before them and `.fifo` behind; a name that is too long or has other characters is
//! cut and ends with a piece of its hash. Subscriptions deliver messages as they were published, with `Q.dead` for
//! what SNS cannot deliver. Metadata are attributes: `ce_id`, `ce_type`, `ce_source`, `ce_time`,
//! `ce_partitionkey`, `content-type`, and everything else as JSON in `tidings-more`, because SNS drops a message with
//! more than ten attributes. A body that is no text is in base64, and `tidings-encoding` says so.
//!
//! # Order
//!
//! By default topics and queues are FIFO: the message group is the key, else the id, so messages with one key that
//! went to one topic or queue come in their order, to whichever consumer. There is no order between topics. With
//! `queues=standard` there is none at all, and a message may come twice without anybody's failure. An ordered group is a
//! single queue of its name; its partitions are so many receivers of it ([`Features::partitions_share_keys`]).
//!
//! # Settling
//!
//! An acknowledgement is noted at once, and the message deleted in a batch with others right after. A crash in between
//! means that it comes again. What is given back, or retried, is handed out again from memory; after a crash it comes
//! from SQS, without the attempts that were counted since. A standard queue delays a retry for up to fifteen minutes;
//! one with order cannot ([`Features::delay_max`] is zero), so a consumer that retries later needs a store.
//!
//! # Dead letters
//!
//! Operators hold them by keeping them hidden, one operator at a time: whoever has the only message of the queue
//! `Q.dead.hold`. Each letter has a message group of its own, so that no letter hides others.
//!
//! # What it does not do
//!
//! No ordered groups of standard queues ([`Features::partitions_max`] is zero). A queue that ends with its process stays behind if the process
//! is killed. What nobody acknowledged within fourteen days SQS forgets.

mod address;
mod client;
mod depths;
mod entry;
mod groups;
mod intake;
mod letters;
mod message;
mod names;
mod plan;
mod publisher;
mod receiving;
mod topology;
mod work;

pub use tidings_adapter::{Piece, PieceKind, PieceState};

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tidings_adapter::{Backoff, Standing};
use tidings_core::{
    BoxFuture, DeadLetterAccess, Deliveries, Features, Outgoing, PublishError, QueueDepth,
    Subscription, Topology, Transport, TransportError,
};
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::{
    address::Address,
    client::{Clients, Trouble, trouble},
    intake::Intake,
    topology::QueueAt,
};

/// How long [`Transport::close`] waits for what is under way.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long [`Transport::publish`] goes on sending, unless the [`Builder`] says otherwise.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest delay of a standard queue.
const DELAY_MAX: Duration = Duration::from_secs(15 * 60);

/// A transport over SNS and SQS. Dropping it ends its consumers; [`Transport::close`] does that in good order.
pub struct Aws {
    shared: Arc<Shared>,
    letters: letters::Access,
}

/// How to connect; made by [`Aws::builder`].
#[derive(Debug, Clone)]
pub struct Builder {
    address: Address,
    name: String,
    confirm_timeout: Duration,
}

impl Builder {
    /// The program's name in Amazon's logs. Default: the name of the program.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// How long [`Transport::publish`] goes on sending a batch. What was not sent then is
    /// [`Unavailable`](tidings_core::PublishErrorKind::Unavailable). Default: 30 seconds.
    pub fn confirm_timeout(mut self, time: Duration) -> Self {
        self.confirm_timeout = time;
        self
    }

    /// Connects, and waits while Amazon does not answer.
    ///
    /// # Errors
    ///
    /// As [`Aws::connect`].
    pub async fn connect(self) -> Result<Aws, TransportError> {
        let aws = self.start().await?;
        aws.shared.status.reached().await?;
        Ok(aws)
    }

    /// Connects in the background: for a service that has something to do without a broker, too.
    /// What cannot be mended by waiting is in the log, and the error of [`Transport::declare`] and
    /// [`Transport::subscribe`].
    ///
    /// # Errors
    ///
    /// When the clients of the SDK cannot be made.
    pub async fn start(self) -> Result<Aws, TransportError> {
        let clients = Clients::start(&self.address, &self.name).await?;
        let shared = Arc::new_cyclic(|this| Shared {
            this: this.clone(),
            address: self.address,
            clients,
            status: Arc::new(Standing::new("SNS and SQS")),
            is_probed: AtomicBool::new(false),
            confirm_timeout: self.confirm_timeout,
            account: OnceLock::new(),
            declared: Mutex::default(),
            queues: Mutex::default(),
            mended: tokio::sync::Mutex::default(),
            publishing: tokio::sync::RwLock::default(),
            wanted: Mutex::default(),
            ephemeral: Mutex::default(),
            intakes: Mutex::default(),
            holds: Mutex::default(),
        });
        let beginning = Arc::clone(&shared);
        tokio::spawn(async move { beginning.begin().await });
        let letters = letters::Access {
            shared: Arc::clone(&shared),
        };
        Ok(Aws { shared, letters })
    }
}

impl Aws {
    /// Connects to SNS and SQS as `url` says, and waits while they do not answer.
    ///
    /// # Errors
    ///
    /// When waiting does not help: the URL is malformed, there are no credentials, or Amazon does not know them.
    pub async fn connect(url: &str) -> Result<Self, TransportError> {
        Self::builder(url)?.connect().await
    }

    /// Starts to describe a connection.
    ///
    /// # Errors
    ///
    /// When the URL is malformed.
    pub fn builder(url: &str) -> Result<Builder, TransportError> {
        Ok(Builder {
            address: Address::parse(url)?,
            name: tidings_adapter::program_name(),
            confirm_timeout: CONFIRM_TIMEOUT,
        })
    }

    /// True while SNS and SQS answer.
    pub fn is_connected(&self) -> bool {
        self.shared.status.is_connected()
    }
}

impl fmt::Debug for Aws {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Aws")
            .field("address", &self.shared.address)
            .field("connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}

impl Drop for Aws {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl Transport for Aws {
    fn features(&self) -> Features {
        let mut features = Features::new("Amazon SNS and SQS");
        features.durable = true;
        features.reports_unroutable = true;
        features.counts_deliveries = true;
        features.shares_partitions = true;
        features.keeps_order = self.shared.address.is_fifo;
        features.partitions_share_keys = self.shared.address.is_fifo;
        features.fetches_ahead = true;
        features.holds_dead_letters = true;
        if !self.shared.address.is_fifo {
            features.delay_max = DELAY_MAX;
        }
        features.partitions_max = self.shared.partitions_max();
        features.name_bytes_max = names::NAME_BYTES_TAKEN_MAX;
        features.body_bytes_max = Some(publisher::BODY_BYTES_MAX);
        features
    }

    fn declare<'a>(&'a self, topology: &'a Topology) -> BoxFuture<'a, Result<(), TransportError>> {
        Box::pin(self.shared.declare(topology))
    }

    fn publish(&self, batch: Vec<Outgoing>) -> BoxFuture<'_, Vec<Result<(), PublishError>>> {
        Box::pin(self.shared.publish(batch))
    }

    fn subscribe(
        &self,
        subscription: Subscription,
    ) -> BoxFuture<'_, Result<Deliveries, TransportError>> {
        Box::pin(receiving::subscribe(&self.shared, subscription))
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.shared.close())
    }

    fn dead_letter_access(&self) -> Option<&dyn DeadLetterAccess> {
        Some(&self.letters)
    }

    fn queue_depths<'a>(
        &'a self,
        queues: &'a [String],
    ) -> BoxFuture<'a, Result<Vec<Option<QueueDepth>>, TransportError>> {
        Box::pin(self.shared.depths(queues))
    }
}

/// What the transport and its subscriptions share.
struct Shared {
    this: std::sync::Weak<Shared>,
    address: Address,
    clients: Clients,
    status: Arc<Standing>,
    /// Somebody asks until it answers.
    is_probed: AtomicBool,
    confirm_timeout: Duration,
    /// The partition (`aws`) and account of topics and queues, once they are known.
    account: OnceLock<(String, String)>,
    /// Everything that was declared, to do it again.
    declared: Mutex<Topology>,
    /// Queues that were there.
    queues: Mutex<HashMap<String, QueueAt>>,
    /// When everything was declared again, at last; held while that is done.
    mended: tokio::sync::Mutex<Option<Instant>>,
    /// Held by those who publish, and against them.
    publishing: tokio::sync::RwLock<()>,
    /// Topics that had subscribers, and when.
    wanted: Mutex<HashMap<String, Instant>>,
    /// Queues that end with this transport.
    ephemeral: Mutex<BTreeSet<String>>,
    intakes: Mutex<Vec<Arc<Intake>>>,
    /// Dead letters that operators hold.
    holds: Mutex<Vec<std::sync::Weak<letters::HeldQueue>>>,
}

impl Shared {
    /// Waits until Amazon answers for the first time.
    async fn begin(&self) {
        let mut backoff = Backoff::default();
        while !self.status.is_closed() {
            match self.look().await {
                Ok(()) => return self.status.up(),
                Err(why) if why.passes() => {
                    debug!(?why, "waiting for SNS and SQS");
                    backoff.pause().await;
                }
                Err(why) => {
                    let refused = why.into_error("SNS and SQS cannot be used");
                    return self.status.refused(refused.to_string());
                }
            }
        }
    }

    /// Asks who it is that asks, or, if that is known, anything.
    async fn look(&self) -> Result<(), Trouble> {
        if let Some(account) = &self.address.account {
            let region = &self.address.region;
            let partition = match region.split('-').next() {
                Some("cn") => "aws-cn",
                _ if region.starts_with("us-gov-") => "aws-us-gov",
                _ => "aws",
            };
            let _ = self.account.set((partition.to_owned(), account.clone()));
            let name = self.name_of(topology::LOOK_NAME);
            let call = self.clients.sqs.get_queue_url().queue_name(name);
            return match call.send().await.map_err(trouble) {
                Ok(_) | Err(Trouble::Missing(_)) => Ok(()),
                Err(why) => Err(why),
            };
        }
        let caller = self.clients.sts.get_caller_identity().send().await;
        let caller = caller.map_err(trouble)?;
        let partition = caller.arn().and_then(|arn| arn.split(':').nth(1));
        let partition = partition.unwrap_or("aws").to_owned();
        let Some(account) = caller.account else {
            return Err(Trouble::Busy("STS does not say whose account it is".into()));
        };
        let _ = self.account.set((partition, account));
        Ok(())
    }

    /// A call failed: if that was because nobody answers, somebody asks until it does.
    fn note(&self, why: &Trouble) {
        if let Trouble::Away(why) = why {
            self.is_away(why);
        }
    }

    fn probe_if_down(&self) {
        if self.account.get().is_some() {
            self.is_away("it did not answer before");
        }
    }

    /// Somebody asks until it answers, and nobody else meanwhile.
    fn is_away(&self, why: &str) {
        self.status.down(&format!("{why} (TDG-4033)"));
        if self.is_probed.swap(true, Ordering::Relaxed) {
            return;
        }
        let Some(shared) = self.this.upgrade() else {
            return;
        };
        tokio::spawn(async move {
            let mut backoff = Backoff::default();
            while !shared.status.is_closed() {
                match shared.look().await {
                    Err(Trouble::Away(_)) => backoff.pause().await,
                    _ => break,
                }
            }
            shared.is_probed.store(false, Ordering::Relaxed);
            shared.status.up();
        });
    }

    /// How many partitions an ordered group may have.
    fn partitions_max(&self) -> u16 {
        match self.address.is_fifo {
            true => tidings_core::SLOT_COUNT,
            false => 0,
        }
    }

    /// How long a message that came now is surely hidden: somewhat less than SQS was asked for.
    fn hidden_for(&self) -> Duration {
        self.address.visibility * 9 / 10
    }

    /// Makes a queue again that was declared and is gone; false if that cannot help. Where all are gone, one of those who
    /// miss theirs makes them all.
    async fn declare_again(&self, queue: &str) -> bool {
        let missed = Instant::now();
        let mut mended = self.mended.lock().await;
        let is_since = mended.is_some_and(|mended| mended > missed);
        if is_since && self.queues.lock().contains_key(queue) {
            return true;
        }
        // What is said before everybody has a queue again would not reach them all.
        let _nobody_publishes = self.publishing.write().await;
        let declared = self.declared.lock().clone();
        let mut names = declared.queues.iter().map(|it| &it.name);
        let mut groups = declared.groups.iter().map(|it| &it.name);
        if !names.any(|it| *it == queue) && !groups.any(|it| *it == queue) {
            return false;
        }
        warn!(
            queue,
            "a queue is gone: everything is declared again (TDG-4032)"
        );
        self.queues.lock().clear();
        self.wanted.lock().clear();
        let is_made = self.declare(&declared).await.is_ok();
        *mended = Some(Instant::now());
        is_made
    }

    /// Ends what is received.
    fn stop(&self) {
        self.status.close();
        for intake in self.intakes.lock().iter() {
            intake.over();
        }
        for hold in self.held() {
            hold.end();
        }
    }

    fn held(&self) -> Vec<Arc<letters::HeldQueue>> {
        let holds = self.holds.lock();
        holds.iter().filter_map(std::sync::Weak::upgrade).collect()
    }

    async fn close(&self) {
        let was_closed = self.status.is_closed();
        let held = self.held();
        self.stop();
        let intakes = std::mem::take(&mut *self.intakes.lock());
        let mut tasks = Vec::new();
        for intake in &intakes {
            tasks.extend(intake.take_tasks());
        }
        let ended = async {
            for task in &mut tasks {
                let _ = task.await;
            }
            for hold in held {
                hold.has_ended().await;
            }
        };
        if timeout(CLOSE_TIMEOUT, ended).await.is_err() {
            debug!("a receive was still waiting for messages when the transport closed");
        }
        for task in tasks {
            task.abort();
        }
        if was_closed {
            return;
        }
        let ephemeral = std::mem::take(&mut *self.ephemeral.lock());
        for queue in ephemeral {
            let at = self.queues.lock().remove(&queue);
            if let Some(at) = at {
                let call = self.clients.sqs.delete_queue().queue_url(&at.url);
                let _ = timeout(CLOSE_TIMEOUT, call.send()).await;
            }
        }
    }
}

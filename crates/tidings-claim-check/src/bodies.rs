//! What services use: putting, getting and pruning bodies, whatever the store.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::{MissedTickBehavior, interval},
};
use tracing::{info, warn};

use crate::{
    Attachment, Before, BodyId, BodyReader, BodyStore, Error, FolderBodies, Pruned, StoreId,
    measure::{Measured, Outcome},
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long bodies are kept unless the program says otherwise.
const KEEP: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The shortest time for which bodies can be kept: a day more than the seven for which an inbox
/// remembers what was handled, since until then the same message may come again.
const KEEP_MIN: Duration = Duration::from_secs(8 * 24 * 60 * 60);

/// How long a put may take without writing anything before its rest counts as left behind.
const UNFINISHED_KEEP: Duration = DAY;

/// How many bodies are deleted before others get a turn.
const PRUNE_COUNT_MAX: usize = 1000;

/// How soon a pruning that failed is tried again.
const PRUNE_AGAIN: Duration = Duration::from_secs(60 * 60);

/// The largest body that is put unless the program says otherwise.
const BODY_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// The largest body that is read into memory unless the program says otherwise.
const GET_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Large bodies: one store in which they are put, and any number from which they are read.
///
/// It is cheap to clone: give it to a router with `.with_state(bodies)`, and take it in a handler as
/// `State<Bodies>`.
#[derive(Clone)]
pub struct Bodies {
    stores: Arc<[Arc<dyn BodyStore>]>,
    keep: Duration,
    body_bytes_max: u64,
    get_bytes_max: u64,
}

impl Bodies {
    /// Bodies in `store`.
    pub fn new(store: impl BodyStore) -> Self {
        Self {
            stores: Arc::new([Arc::new(store)]),
            keep: KEEP,
            body_bytes_max: BODY_BYTES_MAX,
            get_bytes_max: GET_BYTES_MAX,
        }
    }

    /// Bodies in a folder, which is created if it is not there; see [`FolderBodies::open`].
    pub async fn folder(path: impl Into<PathBuf>) -> Result<Self, Error> {
        Ok(Self::new(FolderBodies::open(path).await?))
    }

    /// Reads from `store` too, and puts nothing there and prunes nothing: for the bodies of another
    /// service, or of before a move to another store.
    pub fn reading_also(mut self, store: impl BodyStore) -> Self {
        let stores = self.stores.iter().cloned();
        self.stores = stores
            .chain([Arc::new(store) as Arc<dyn BodyStore>])
            .collect();
        self
    }

    /// How long bodies are kept (default 30 days, at least 8).
    ///
    /// Messages that refer to a body may be delivered until then: as dead letters that somebody
    /// redrives, as a replay, as what waits in the outbox for a broker. Programs that prune the same
    /// store should agree on it: the shortest time counts.
    ///
    /// # Panics
    ///
    /// With less than 8 days.
    #[track_caller]
    pub fn keep(mut self, time: Duration) -> Self {
        assert!(
            time >= KEEP_MIN,
            "bodies must be kept for at least 8 days, a day more than an inbox remembers messages; \
             `keep` was given {} s",
            time.as_secs()
        );
        self.keep = time;
        self
    }

    /// The largest body that can be put (default 1 GiB).
    pub fn body_bytes_max(mut self, bytes: u64) -> Self {
        self.body_bytes_max = bytes;
        self
    }

    /// The largest body that [`get`](Self::get) reads into memory (default 64 MiB).
    pub fn get_bytes_max(mut self, bytes: u64) -> Self {
        self.get_bytes_max = bytes;
        self
    }

    /// The store in which bodies are put: what other hosts must have too.
    pub fn store(&self) -> &StoreId {
        self.stores[0].id()
    }

    /// Puts a body. It is on stable storage when this returns.
    ///
    /// Do so before the transaction that sends the message begins to write: then a message that is
    /// committed has its body, and no transaction waits for a large file. A body whose message was
    /// not committed is pruned in its time.
    pub async fn put(&self, body: impl Into<Bytes>) -> Result<Attachment, Error> {
        let body: Bytes = body.into();
        self.put_from(&*body).await
    }

    /// Puts all that `source` has, in memory that does not grow with it.
    pub async fn put_from(
        &self,
        source: impl AsyncRead + Send + Unpin,
    ) -> Result<Attachment, Error> {
        let store = &self.stores[0];
        let id = BodyId::random();
        let mut source = Measured::new(source, self.body_bytes_max);
        let put = store.put(id, &mut source).await;
        match (put, source.outcome()) {
            (_, Outcome::Failed(error)) => Err(Error::of_source(error)),
            (_, Outcome::TooLarge) => Err(Error::too_large_to_put(self.body_bytes_max)),
            (Ok(()), Outcome::Whole { bytes, sha256 }) => {
                Ok(Attachment::new(id, store.id().clone(), bytes, sha256))
            }
            (Ok(()), Outcome::NotRead) => {
                let half = io::Error::other("it took a part of the body and said it had all");
                Err(Error::unavailable(put_in(store.id()), half))
            }
            (Err(error), _) => Err(Error::unavailable(put_in(store.id()), error)),
        }
    }

    /// The whole body, compared with its length and checksum.
    pub async fn get(&self, attachment: &Attachment) -> Result<Bytes, Error> {
        if attachment.bytes() > self.get_bytes_max {
            return Err(Error::too_large_to_get(attachment, self.get_bytes_max));
        }
        let mut reader = self.read(attachment).await?;
        let mut body = Vec::with_capacity(usize::try_from(attachment.bytes()).unwrap_or_default());
        match reader.read_to_end(&mut body).await {
            Ok(_) => Ok(body.into()),
            Err(error) => Err(Error::from_reading(attachment, error)),
        }
    }

    /// The body piece by piece, in memory that does not grow with it.
    ///
    /// What was read may be acted on when the end is reached without an error, and not before: see
    /// [`BodyReader`].
    pub async fn read(&self, attachment: &Attachment) -> Result<BodyReader, Error> {
        let store = self
            .stores
            .iter()
            .find(|store| store.id() == attachment.store());
        let Some(store) = store else {
            let ours = self.stores.iter().map(|store| format!("`{}`", store.id()));
            return Err(Error::other_store(attachment, &ours.collect::<Vec<_>>()));
        };
        match store.open(attachment.claim()).await {
            Ok(Some(body)) => Ok(BodyReader::new(body, attachment.clone())),
            Ok(None) => Err(Error::missing(attachment, Timestamp::now(), self.keep)),
            Err(error) => Err(Error::from_reading(attachment, error)),
        }
    }

    /// Deletes the bodies that are too old at `now`, from the store in which they are put, in
    /// batches of 1,000.
    ///
    /// Any number of programs may do so at the same time. Bodies that younger messages refer to are
    /// never touched: each is put anew and has an age of its own.
    pub async fn prune(&self, now: Timestamp) -> Result<Pruned, Error> {
        let store = &self.stores[0];
        let before = Before {
            put: now - self.keep,
            unfinished: now - UNFINISHED_KEEP,
        };
        let mut all = Pruned::default();
        loop {
            let batch = store.prune(before, PRUNE_COUNT_MAX).await;
            let batch = batch.map_err(|error| {
                Error::unavailable(format!("prune the bodies in `{}`", store.id()), error)
            })?;
            all.bodies += batch.bodies;
            all.unfinished += batch.unfinished;
            if !batch.more {
                return Ok(all);
            }
            tokio::task::yield_now().await;
        }
    }

    /// Prunes at once and then once a day, until it is dropped: run it beside the service.
    ///
    /// A failure is logged and tried again after an hour.
    ///
    /// ```
    /// # async fn example(bodies: tidings_claim_check::Bodies, service: impl Future<Output = ()>) {
    /// tokio::select! {
    ///     ended = service => ended,
    ///     never = bodies.prune_daily() => match never {},
    /// }
    /// # }
    /// ```
    pub async fn prune_daily(&self) -> std::convert::Infallible {
        let mut tick = interval(DAY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            match self.prune(Timestamp::now()).await {
                Ok(pruned) => info!(
                    store = %self.store(),
                    bodies = pruned.bodies,
                    unfinished = pruned.unfinished,
                    "old bodies were deleted"
                ),
                Err(error) => {
                    warn!("old bodies were not deleted: {error}");
                    tick.reset_after(PRUNE_AGAIN);
                }
            }
        }
    }
}

fn put_in(store: &StoreId) -> String {
    format!("put a body in `{store}`")
}

impl std::fmt::Debug for Bodies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stores: Vec<_> = self
            .stores
            .iter()
            .map(|store| store.id().as_str())
            .collect();
        f.debug_struct("Bodies")
            .field("stores", &stores)
            .field("keep", &self.keep)
            .finish_non_exhaustive()
    }
}

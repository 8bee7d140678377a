//! How relays in other processes hear of a commit.
//!
//! While a relay has all lanes nobody else sends from this outbox, and nobody is told. A relay that
//! has just come asks for lanes first, so it is not kept from what it did not hear of.
//!
//! A `notify` inside the writing transaction would make commits queue up behind each other. So one
//! is sent afterwards, on a connection of its own, and one stands for all commits of a moment. It
//! may be lost (a crash in between, a listener that reconnects): a relay also polls slowly. Each
//! says which store sent it, so that a store passes over its own.

use std::{
    future::poll_fn,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    task::{Poll, ready},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinHandle};
use tokio_postgres::{AsyncMessage, Config};

use crate::{
    connection::Pool,
    error::{Error, explain},
    tls::Tls,
};

/// The shortest time between two notifications.
const NOTIFY_EVERY: Duration = Duration::from_millis(20);

/// How long to wait after a failure of the database.
const PAUSE: Duration = Duration::from_secs(1);

/// Tasks that end when this is dropped.
pub(crate) struct Tasks(Vec<JoinHandle<()>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// Where notifications go, and the name of the store that sends and hears them.
#[derive(Clone)]
struct Channel {
    name: String,
    sender: String,
}

/// What is told, and where it is counted what others tell.
pub(crate) struct Heard {
    /// Counts the commits of this store.
    pub(crate) own: watch::Receiver<u64>,
    /// Until when nobody else has to be told.
    pub(crate) alone_until: Arc<Mutex<Option<Instant>>>,
    /// Counts what wakes its relay.
    pub(crate) wakes: watch::Sender<u64>,
}

/// Tells other processes of own commits, and counts what they tell to `listener`.
pub(crate) fn spawn(
    pool: Pool,
    listener: Option<(Config, Tls)>,
    schema: &str,
    heard: Heard,
) -> Tasks {
    let channel = Channel {
        name: format!("tidings_{schema}"),
        // A fresh hasher has random keys.
        sender: format!("{:016x}", RandomState::new().hash_one(schema)),
    };
    let listen = listener.map(|listener| listen(listener, channel.clone(), heard.wakes));
    let notify = notify(pool, channel, heard.own, heard.alone_until);
    let mut tasks = vec![tokio::spawn(notify)];
    tasks.extend(listen.map(tokio::spawn));
    Tasks(tasks)
}

async fn notify(
    pool: Pool,
    channel: Channel,
    mut own: watch::Receiver<u64>,
    alone_until: Arc<Mutex<Option<Instant>>>,
) {
    while own.changed().await.is_ok() {
        if alone_until
            .lock()
            .is_some_and(|until| Instant::now() < until)
        {
            continue;
        }
        let sent = pool
            .execute(
                "select pg_notify($1, $2)",
                &[&channel.name, &channel.sender],
            )
            .await;
        match sent {
            Ok(_) => tokio::time::sleep(NOTIFY_EVERY).await,
            Err(error) => {
                tracing::debug!("{}", explain("wake other processes", error));
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn listen((config, tls): (Config, Tls), channel: Channel, wakes: watch::Sender<u64>) {
    loop {
        if let Err(error) = hear(&config, &tls, &channel, &wakes).await {
            tracing::debug!("{}", explain("listen to other processes", error));
        }
        tokio::time::sleep(PAUSE).await;
        // There may have been something meanwhile.
        wakes.send_modify(|wakes| *wakes += 1);
    }
}

/// Listens on a connection of its own, until that ends.
async fn hear(
    config: &Config,
    tls: &Tls,
    channel: &Channel,
    wakes: &watch::Sender<u64>,
) -> Result<(), Error> {
    let (client, mut connection) = config.connect(tls.clone()).await?;
    let listen = format!("listen \"{}\"", channel.name);
    let mut listening = std::pin::pin!(client.batch_execute(&listen));
    let mut has_begun = false;
    poll_fn(|task| {
        loop {
            if !has_begun && let Poll::Ready(begun) = listening.as_mut().poll(task) {
                begun?;
                has_begun = true;
            }
            let message = ready!(connection.poll_message(task));
            match message.transpose()? {
                Some(AsyncMessage::Notification(heard)) if heard.payload() != channel.sender => {
                    wakes.send_modify(|wakes| *wakes += 1);
                }
                Some(_) => {}
                None => return Poll::Ready(Ok(())),
            }
        }
    })
    .await
}

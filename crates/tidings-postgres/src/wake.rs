//! How relays in other processes hear of a commit.
//!
//! A `notify` inside the writing transaction would make commits queue up behind each other. So one
//! is sent afterwards, on a connection of its own, and one stands for all commits of a moment. It
//! may be lost (a crash in between, a listener that reconnects): a relay also polls slowly. Each
//! says which store sent it, so that a store passes over its own.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use sqlx::{PgPool, postgres::PgListener};
use tokio::{sync::watch, task::JoinHandle};

use crate::error::explain;

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

/// Tells other processes of the commits that `own` counts, and counts what they tell in `wakes`.
pub(crate) fn spawn(
    pool: PgPool,
    schema: &str,
    own: watch::Receiver<u64>,
    wakes: watch::Sender<u64>,
) -> Tasks {
    let channel = Channel {
        name: format!("tidings_{schema}"),
        // A fresh hasher has random keys.
        sender: format!("{:016x}", RandomState::new().hash_one(schema)),
    };
    Tasks(vec![
        tokio::spawn(notify(pool.clone(), channel.clone(), own)),
        tokio::spawn(listen(pool, channel, wakes)),
    ])
}

async fn notify(pool: PgPool, channel: Channel, mut own: watch::Receiver<u64>) {
    while own.changed().await.is_ok() {
        let sent = sqlx::query("select pg_notify($1, $2)")
            .bind(&channel.name)
            .bind(&channel.sender)
            .execute(&pool)
            .await;
        match sent {
            Ok(_) => tokio::time::sleep(NOTIFY_EVERY).await,
            Err(error) => {
                tracing::debug!("{}", explain("wake other processes", &error));
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn listen(pool: PgPool, channel: Channel, wakes: watch::Sender<u64>) {
    loop {
        let ended = hear(&pool, &channel, &wakes).await;
        if let Err(error) = ended {
            tracing::debug!("{}", explain("listen to other processes", &error));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn hear(pool: &PgPool, channel: &Channel, wakes: &watch::Sender<u64>) -> sqlx::Result<()> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(&channel.name).await?;
    loop {
        // `None`: the connection was lost and made again; there may have been something.
        let heard = listener.try_recv().await?;
        if heard.is_none_or(|heard| heard.payload() != channel.sender) {
            wakes.send_modify(|wakes| *wakes += 1);
        }
    }
}

//! How relays in other processes hear of a commit.
//!
//! A `notify` inside the writing transaction would make commits queue up behind each other. So one
//! is sent afterwards, on a connection of its own, and one stands for all commits of a moment. It
//! may be lost (a crash in between, a listener that reconnects): a relay also polls slowly.

use std::time::Duration;

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

/// Tells other processes of the commits that `own` counts, and counts what they tell in `wakes`.
pub(crate) fn spawn(
    pool: PgPool,
    schema: &str,
    own: watch::Receiver<u64>,
    wakes: watch::Sender<u64>,
) -> Tasks {
    let channel = format!("tidings_{schema}");
    Tasks(vec![
        tokio::spawn(notify(pool.clone(), channel.clone(), own)),
        tokio::spawn(listen(pool, channel, wakes)),
    ])
}

async fn notify(pool: PgPool, channel: String, mut own: watch::Receiver<u64>) {
    while own.changed().await.is_ok() {
        let sent = sqlx::query("select pg_notify($1, '')")
            .bind(&channel)
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

async fn listen(pool: PgPool, channel: String, wakes: watch::Sender<u64>) {
    loop {
        let ended = hear(&pool, &channel, &wakes).await;
        if let Err(error) = ended {
            tracing::debug!("{}", explain("listen to other processes", &error));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn hear(pool: &PgPool, channel: &str, wakes: &watch::Sender<u64>) -> sqlx::Result<()> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(channel).await?;
    loop {
        // `None`: the connection was lost and made again; there may have been something.
        listener.try_recv().await?;
        wakes.send_modify(|wakes| *wakes += 1);
    }
}

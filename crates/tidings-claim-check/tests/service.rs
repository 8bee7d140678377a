//! Services that send large bodies to each other: the reference goes through outbox, transport and
//! inbox, the body through the folder.

mod support;

use std::{
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use support::{content, eventually};
use tidings::prelude::*;
use tidings_claim_check::{Attachment, Bodies};
use tidings_memory::MemoryTransport;
use tidings_sqlite::{SqliteStore, Tx};

const QUEUE: &str = "gallery.photo-taken.v1";

/// Somebody asks for a photo: a thin event that starts it all.
#[derive(Serialize, Deserialize, Event)]
#[event(key = "album", id = "album")]
struct ShutterPressed {
    album: String,
}

#[derive(Serialize, Deserialize, Event)]
#[event(key = "album", id = "album")]
struct PhotoTaken {
    album: String,
    photo: Attachment,
}

/// The sender: the body first, then the event in the transaction.
async fn take(pressed: ShutterPressed, State(bodies): State<Bodies>) -> Result<PhotoTaken> {
    let photo = bodies.put(content(1_000_000)).await?;
    let album = pressed.album;
    Ok(PhotoTaken { album, photo })
}

static ATTEMPTS: AtomicU32 = AtomicU32::new(0);

/// The receiver: the body by its reference.
async fn hang(event: PhotoTaken, State(bodies): State<Bodies>, mut tx: Tx) -> Result<()> {
    ATTEMPTS.fetch_add(1, Ordering::Relaxed);
    let photo = bodies.get(&event.photo).await?;
    let insert = "insert into photo (album, bytes, good) values (?1, ?2, ?3)";
    let good = photo == content(1_000_000);
    let row = (event.album, i64::try_from(photo.len())?, good);
    tx.execute(insert, row).await?;
    Ok(())
}

/// A gallery with its own view of the folder, and a camera that uses `sender`.
async fn gallery(
    transport: &MemoryTransport,
    folder: &Path,
    receiver: Bodies,
) -> Result<(SqliteStore, tokio::task::JoinHandle<()>)> {
    let store = SqliteStore::open(folder.join("gallery.db")).await?;
    let table = "create table photo (album text primary key, bytes integer, good integer)";
    store.migrate(&[("1", table)]).await?;
    let router = Router::new("gallery")
        .on(hang)
        .transactional(store.clone())
        .retry(Retry::exponential(Duration::from_millis(10)).attempts(3))
        .with_state(receiver);
    let serving = serve(transport.connect(), router);
    let ready = serving.ready();
    let running = tokio::spawn(async move { serving.await.unwrap() });
    ready.await;
    Ok((store, running))
}

async fn photos(store: &SqliteStore) -> Vec<(String, i64, bool)> {
    let read = store.read(|connection| {
        let mut select = connection.prepare("select album, bytes, good from photo")?;
        let rows = select.query_map((), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        rows.collect()
    });
    read.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_photo_goes_from_service_to_service_and_a_lost_one_is_a_dead_letter_at_once() -> Result<()>
{
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("bodies");
    let transport = MemoryTransport::new();

    // Two services that share the folder, each with its own handle.
    let camera_store = SqliteStore::open(folder.path().join("camera.db")).await?;
    let camera = Router::new("camera")
        .on(take)
        .transactional(camera_store.clone())
        .publishes::<ShutterPressed>()
        .with_state(Bodies::folder(&path).await?);
    let taking = serve(transport.connect(), camera);
    let ready = taking.ready();
    let taking = tokio::spawn(async move { taking.await.unwrap() });
    let (store, hanging) = gallery(&transport, folder.path(), Bodies::folder(&path).await?).await?;
    ready.await;

    let producer = Producer::new("someone", camera_store);
    let album = "summer".to_owned();
    producer.publish(&ShutterPressed { album }).await?;
    let until = std::time::Instant::now() + Duration::from_secs(20);
    while photos(&store).await.is_empty() {
        assert!(
            std::time::Instant::now() < until,
            "the photo did not arrive"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(
        photos(&store).await,
        [("summer".to_owned(), 1_000_000, true)]
    );
    assert_eq!(ATTEMPTS.swap(0, Ordering::Relaxed), 1);

    // A body that is gone: trying again cannot help, so nobody does.
    let bodies = Bodies::folder(&path).await?;
    let lost = bodies.put(&b"lost"[..]).await?;
    std::fs::remove_file(path.join(lost.claim().day()).join(lost.claim().to_string()))?;
    let album = "lost".to_owned();
    producer.publish(&PhotoTaken { album, photo: lost }).await?;
    let dead = || transport.dead_letters(QUEUE);
    eventually("the lost one is a dead letter", || dead().len() == 1).await;
    let reason = dead()[0].reason.clone().unwrap_or_default();
    assert!(reason.contains("(TDG-1001)"), "{reason}");
    assert_eq!(ATTEMPTS.swap(0, Ordering::Relaxed), 1);

    // A body in a folder that the gallery does not have: tried again, as it is not its fault.
    let elsewhere = Bodies::folder(folder.path().join("elsewhere")).await?;
    let unshared = elsewhere.put(&b"unshared"[..]).await?;
    let album = "unshared".to_owned();
    producer
        .publish(&PhotoTaken {
            album,
            photo: unshared,
        })
        .await?;
    eventually("the unshared one is a dead letter", || dead().len() == 2).await;
    let reason = dead()[1].reason.clone().unwrap_or_default();
    assert!(reason.contains("(TDG-1002)"), "{reason}");
    assert!(reason.contains(elsewhere.store().as_str()), "{reason}");
    assert_eq!(ATTEMPTS.load(Ordering::Relaxed), 3);
    taking.abort();
    hanging.abort();
    Ok(())
}

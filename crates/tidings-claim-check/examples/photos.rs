//! Two services that send each other photos: `cargo run -p tidings-claim-check --example photos`.
//!
//! It runs on a broker and a store in this process; with `tidings_amqp::Amqp` and
//! `tidings_sqlite::SqliteStore` in their places it runs for real, and nothing else changes.

use tidings::prelude::*;
use tidings_claim_check::{Attachment, Bodies};
use tidings_memory::{MemoryStore, MemoryTransport};
use tokio::sync::mpsc;

#[derive(Serialize, Deserialize, Event)]
#[event(key = "album", id = "album")]
struct ShutterPressed {
    album: String,
}

/// The message carries the reference.
#[derive(Serialize, Deserialize, Event)]
#[event(key = "album", id = "album")]
struct PhotoTaken {
    album: String,
    photo: Attachment,
}

/// Who sends puts the body first. It is on stable storage when `put` returns, and only then can a
/// transaction refer to it.
async fn take(pressed: ShutterPressed, State(bodies): State<Bodies>) -> Result<PhotoTaken> {
    let picture = vec![200; 3_000_000];
    let photo = bodies.put(picture).await?;
    let album = pressed.album;
    Ok(PhotoTaken { album, photo })
}

/// Who receives gets the body by its reference, compared with its checksum.
async fn hang(event: PhotoTaken, State(bodies): State<Bodies>) -> Result<()> {
    let photo = bodies.get(&event.photo).await?;
    println!("{}: a photo of {} bytes", event.album, photo.len());
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bodies = Bodies::folder(folder.path().join("bodies")).await?;
    let (transport, store) = (MemoryTransport::new(), MemoryStore::new());
    let camera = Router::new("camera")
        .on(take)
        .transactional(store.clone())
        .publishes::<ShutterPressed>()
        .with_state(bodies.clone());
    // So that the example ends when the photo hangs.
    let (hung, mut is_hung) = mpsc::channel(1);
    let hang_and_tell = move |event: PhotoTaken, state: State<Bodies>| {
        let hung = hung.clone();
        async move {
            let done = hang(event, state).await;
            let _ = hung.try_send(());
            done
        }
    };
    let gallery = Router::new("gallery")
        .on(hang_and_tell)
        .with_state(bodies.clone());

    let producer = Producer::new("someone", store);
    producer
        .publish(&ShutterPressed {
            album: "summer".into(),
        })
        .await?;
    let end = async move {
        let _ = is_hung.recv().await;
    };
    let services = serve(transport, [camera, gallery]).with_graceful_shutdown(end);
    tokio::select! {
        ended = services => Ok(ended?),
        // Old bodies are deleted beside the services, at the start and once a day.
        never = bodies.prune_daily() => match never {},
    }
}

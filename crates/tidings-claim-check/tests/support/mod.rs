//! The suite that every store of this crate passes, through [`Bodies`].
#![allow(dead_code, reason = "not every test file needs all of it")]

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use jiff::Timestamp;
use tidings_claim_check::{Attachment, Bodies, BodyStore, Code, Error};
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What is put is got back, and nothing that failed is.
pub(crate) async fn conformance<S: BodyStore + Clone>(store: S) {
    lengths_of_every_kind(&Bodies::new(store.clone())).await;
    the_same_content_many_times_at_once(&Bodies::new(store.clone())).await;
    failing_sources(&Bodies::new(store.clone())).await;
    limits(store.clone()).await;
    pruning(&Bodies::new(store)).await;
}

async fn lengths_of_every_kind(bodies: &Bodies) {
    // Around the pieces in which stores write.
    for bytes in [
        0,
        1,
        1000,
        256 << 10,
        (256 << 10) + 1,
        (8 << 20) - 1,
        8 << 20,
        17 << 20,
    ] {
        let body = content(bytes);
        let attachment = bodies.put(body.clone()).await.unwrap();
        assert_eq!(attachment.bytes(), bytes as u64);
        assert_eq!(attachment.store(), bodies.store());
        assert!(bodies.get(&attachment).await.unwrap() == body, "{bytes}");
    }
}

async fn the_same_content_many_times_at_once(bodies: &Bodies) {
    let puts: Vec<_> = (0..20)
        .map(|_| {
            let bodies = bodies.clone();
            tokio::spawn(async move { bodies.put(content(300_000)).await.unwrap() })
        })
        .collect();
    let mut claims = Vec::new();
    for put in puts {
        let attachment = put.await.unwrap();
        assert!(bodies.get(&attachment).await.unwrap() == content(300_000));
        claims.push(attachment.claim());
    }
    claims.sort();
    claims.dedup();
    assert_eq!(claims.len(), 20, "each put has a body of its own");
}

async fn failing_sources(bodies: &Bodies) {
    for bytes in [0, 10, 9 << 20] {
        let failed = bodies.put_from(BreaksAfter(bytes)).await.unwrap_err();
        assert_eq!(failed.code(), Code::Source, "{failed}");
        assert!(!tidings_core::is_permanent(&failed));
    }
}

async fn limits<S: BodyStore + Clone>(store: S) {
    let bodies = Bodies::new(store).body_bytes_max(1000).get_bytes_max(900);
    let large = bodies.put(content(1000)).await.unwrap();
    let refused = bodies.put(content(1001)).await.unwrap_err();
    assert_eq!(refused.code(), Code::TooLarge);
    assert!(tidings_core::is_permanent(&refused));
    let refused = bodies.get(&large).await.unwrap_err();
    assert_eq!(refused.code(), Code::TooLarge);
    let mut read = Vec::new();
    let mut reader = bodies.read(&large).await.unwrap();
    reader.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, content(1000));
}

/// Ends with an empty store.
async fn pruning(bodies: &Bodies) {
    let now = Timestamp::now();
    let attachment = bodies.put(content(100)).await.unwrap();
    let pruned = bodies.prune(now + 29 * DAY).await.unwrap();
    assert_eq!(pruned.bodies, 0);
    bodies.get(&attachment).await.unwrap();
    let kept_longer = bodies.clone().keep(40 * DAY);
    assert_eq!(kept_longer.prune(now + 31 * DAY).await.unwrap().bodies, 0);
    let pruned = bodies.prune(Timestamp::now() + 31 * DAY).await.unwrap();
    assert!(pruned.bodies >= 1 && !pruned.more, "{pruned:?}");
    assert_missing(bodies, &attachment).await;
    assert_eq!(bodies.prune(now + 31 * DAY).await.unwrap().bodies, 0);
}

pub(crate) async fn assert_missing(bodies: &Bodies, attachment: &Attachment) -> Error {
    let missing = bodies.get(attachment).await.unwrap_err();
    assert_eq!(missing.code(), Code::Missing, "{missing}");
    assert!(tidings_core::is_permanent(&missing));
    missing
}

/// Bytes that look the same nowhere.
pub(crate) fn content(bytes: usize) -> Vec<u8> {
    (0..bytes as u64)
        .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

/// A source that fails after so many bytes.
pub(crate) struct BreaksAfter(pub(crate) usize);

impl AsyncRead for BreaksAfter {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        if self.0 == 0 {
            return Poll::Ready(Err(std::io::Error::other("the camera was unplugged")));
        }
        let bytes = self.0.min(buffer.remaining()).min(10_000);
        buffer.put_slice(&vec![1; bytes]);
        self.0 -= bytes;
        Poll::Ready(Ok(()))
    }
}

/// Waits until something is so.
pub(crate) async fn eventually(what: &str, so: impl Fn() -> bool) {
    let until = std::time::Instant::now() + Duration::from_secs(20);
    while !so() {
        assert!(std::time::Instant::now() < until, "{what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

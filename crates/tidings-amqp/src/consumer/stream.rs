//! The stream of a subscription: what one connection delivers after the other.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    vec,
};

use futures_core::Stream;
use tidings_core::{Delivery, TransportError};
use tidings_wire::Delivered;
use tokio::sync::mpsc;

use super::Consumer;

/// What one connection delivers.
pub(super) struct Source {
    batches: mpsc::Receiver<Vec<Delivered>>,
    /// What is left of the batch that was received last.
    batch: vec::IntoIter<Delivered>,
    pub(super) consumer: Arc<Consumer>,
}

impl Source {
    pub(super) fn new(batches: mpsc::Receiver<Vec<Delivered>>, consumer: Arc<Consumer>) -> Self {
        Self {
            batches,
            batch: Vec::new().into_iter(),
            consumer,
        }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Delivered>> {
        ready!(self.consumer.poll_room(cx));
        loop {
            if let Some(next) = self.batch.next() {
                return Poll::Ready(Some(next));
            }
            match ready!(self.batches.poll_recv(cx)) {
                Some(batch) => self.received(batch),
                None => return Poll::Ready(None),
            }
        }
    }

    fn received(&mut self, batch: Vec<Delivered>) {
        self.consumer
            .waiting
            .fetch_sub(batch.len(), Ordering::Relaxed);
        self.batch = batch.into_iter();
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        if self.consumer.is_ordered {
            return self.consumer.leave();
        }
        self.consumer.cancel();
        self.batches.close();
        loop {
            for raw in self.batch.by_ref() {
                self.consumer.give_back(raw.delivery_tag);
            }
            match self.batches.try_recv() {
                Ok(batch) => self.received(batch),
                Err(_) => return,
            }
        }
    }
}

/// The stream of a subscription.
pub(crate) struct Deliveries {
    sources: mpsc::Receiver<Result<Source, TransportError>>,
    source: Option<Source>,
}

impl Deliveries {
    pub(super) fn new(
        sources: mpsc::Receiver<Result<Source, TransportError>>,
        first: Source,
    ) -> Self {
        Self {
            sources,
            source: Some(first),
        }
    }
}

impl Stream for Deliveries {
    type Item = Result<Delivery, TransportError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(source) = &mut self.source {
                match ready!(source.poll_next(cx)) {
                    Some(raw) if !source.consumer.is_ended() => {
                        return Poll::Ready(Some(Ok(source.consumer.deliver(raw))));
                    }
                    Some(_) => {}
                    None => self.source = None,
                }
                continue;
            }
            match ready!(self.sources.poll_recv(cx)) {
                Some(Ok(source)) => self.source = Some(source),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

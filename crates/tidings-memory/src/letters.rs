//! Dead letters for operators, on the broker in the process.

use std::sync::Arc;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tidings_core::{
    AccessError, AccessErrorKind, BoxFuture, DeadLetter, DeadLetterAccess, Envelope, HeldLetters,
    LetterPlace, PublishError,
};

use crate::{
    MemoryTransport,
    broker::{Broker, Holder, Stored},
};

impl DeadLetterAccess for MemoryTransport {
    fn hold<'a>(
        &'a self,
        queue: &'a str,
    ) -> BoxFuture<'a, Result<Box<dyn HeldLetters>, AccessError>> {
        async move {
            let (broker, connection) = self.parts();
            let holder = broker.lock().hold(queue, connection);
            let holder = holder.map_err(|kind| refused(queue, kind))?;
            Ok(Box::new(Hold {
                broker,
                holder,
                queue: queue.into(),
            }) as Box<dyn HeldLetters>)
        }
        .boxed()
    }

    fn count<'a>(&'a self, queue: &'a str) -> BoxFuture<'a, Result<u64, AccessError>> {
        async move {
            let ready = self.parts().0.lock().ready(queue);
            ready.ok_or_else(|| refused(queue, AccessErrorKind::Missing))
        }
        .boxed()
    }

    fn send_back<'a>(
        &'a self,
        consumer: &'a str,
        batch: Vec<Envelope>,
    ) -> BoxFuture<'a, Vec<Result<(), PublishError>>> {
        async move {
            let broker = self.parts().0;
            let mut broker = broker.lock();
            let send = |envelope| broker.send_back(consumer, envelope);
            batch.into_iter().map(send).collect()
        }
        .boxed()
    }

    fn put<'a>(
        &'a self,
        queue: &'a str,
        batch: Vec<Envelope>,
    ) -> BoxFuture<'a, Vec<Result<(), PublishError>>> {
        async move {
            let broker = self.parts().0;
            let mut broker = broker.lock();
            let put = |envelope| broker.put(queue, envelope);
            batch.into_iter().map(put).collect()
        }
        .boxed()
    }
}

fn refused(queue: &str, kind: AccessErrorKind) -> AccessError {
    let message = match kind {
        AccessErrorKind::Busy => format!("somebody else holds the letters of `{queue}`"),
        _ => format!("there is no queue `{queue}`"),
    };
    AccessError::new(kind, message)
}

struct Hold {
    broker: Arc<Mutex<Broker>>,
    holder: Holder,
    queue: Box<str>,
}

impl HeldLetters for Hold {
    fn next(&mut self, count: usize) -> BoxFuture<'_, Result<Vec<DeadLetter>, AccessError>> {
        async move {
            let mut broker = self.broker.lock();
            let taken = broker.take_held(&self.queue, self.holder, count);
            Ok(taken.into_iter().map(letter).collect())
        }
        .boxed()
    }

    fn remove<'a>(
        &'a mut self,
        places: &'a [LetterPlace],
    ) -> BoxFuture<'a, Result<(), AccessError>> {
        async move {
            let mut broker = self.broker.lock();
            for place in places {
                if !broker.remove_held(&self.queue, place.0) {
                    return Err(AccessError::new(
                        AccessErrorKind::Unavailable,
                        "the connection was closed; what was held is back in its place",
                    ));
                }
            }
            Ok(())
        }
        .boxed()
    }

    fn behind(&mut self) -> BoxFuture<'_, Result<u64, AccessError>> {
        async move {
            let ready = self.broker.lock().ready(&self.queue);
            ready.ok_or_else(|| refused(&self.queue, AccessErrorKind::Missing))
        }
        .boxed()
    }

    fn release(self: Box<Self>) -> BoxFuture<'static, Result<(), AccessError>> {
        drop(self);
        std::future::ready(Ok(())).boxed()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.broker.lock().release(&self.queue, self.holder);
    }
}

fn letter((tag, stored): (u64, Stored)) -> DeadLetter {
    let mut letter = DeadLetter::new(LetterPlace(tag), stored.envelope);
    letter.reason = stored.reason;
    letter.consumer = stored.dead_from;
    letter.failures = stored.failures;
    letter.history = stored.history;
    letter
}

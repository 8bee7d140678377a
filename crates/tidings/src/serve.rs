//! Running a service.

use std::{error::Error as StdError, fmt, future::IntoFuture, sync::Arc};

use crate::{BoxError, BoxFuture, Router, Transport};

/// Runs `router` on `transport` when it is awaited: declares what it needs, handles messages, and
/// publishes what its outbox holds.
///
/// # Panics
///
/// When a handler lacks something that the router was not given.
#[track_caller]
pub fn serve<T: Transport>(transport: T, router: Router) -> Serve {
    router.check();
    Serve {
        transport: Arc::new(transport),
        router,
        shutdown: Box::pin(std::future::pending()),
    }
}

/// A service that runs when it is awaited; from [`serve`].
#[must_use = "a service runs when it is awaited"]
pub struct Serve {
    transport: Arc<dyn Transport>,
    router: Router,
    shutdown: BoxFuture<'static, ()>,
}

impl Serve {
    /// Stops in good order when `signal` resolves.
    pub fn with_graceful_shutdown<F>(mut self, signal: F) -> Self
    where
        F: Future + Send + 'static,
    {
        self.shutdown = Box::pin(async move {
            signal.await;
        });
        self
    }
}

impl IntoFuture for Serve {
    type Output = Result<(), ServeError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let _ = (self.transport, self.router);
            self.shutdown.await;
            Ok(())
        })
    }
}

/// Why a service did not start, or stopped by itself.
#[derive(Debug)]
pub struct ServeError {
    message: String,
    source: Option<BoxError>,
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for ServeError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

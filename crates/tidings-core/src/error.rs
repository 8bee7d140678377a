//! Errors of handlers. Any error means *try again*, unless it is marked [`Permanent`]: then the
//! message goes to the dead letters at once.

use std::{error::Error as StdError, fmt, time::Duration};

/// Any error, as tower's layers return it.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// What a handler may return: made from any error with `?`.
///
/// It deliberately does not implement [`std::error::Error`], so that `?` works on every error type
/// (the way `anyhow::Error` does it).
pub struct Error(BoxError);

impl Error {
    /// An error from a text.
    pub fn msg(message: impl fmt::Display) -> Self {
        Self(message.to_string().into())
    }

    /// The same error, with a word on when to try again: not before `delay` has passed (a
    /// `Retry-After` of an HTTP answer, for example). It counts as a failed attempt.
    pub fn retry_after(self, delay: Duration) -> Self {
        Self(Box::new(RetryAfter::new(self.0, delay)))
    }

    /// True if trying again cannot help.
    pub fn is_permanent(&self) -> bool {
        is_permanent(&*self.0)
    }

    /// The error inside, if it is a `T`.
    pub fn downcast_ref<T: StdError + 'static>(&self) -> Option<&T> {
        self.0.downcast_ref()
    }

    /// The error inside.
    pub fn into_inner(self) -> BoxError {
        self.0
    }
}

impl<E: Into<BoxError>> From<E> for Error {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// An error that trying again cannot mend.
#[derive(Debug)]
pub struct Permanent(BoxError);

impl Permanent {
    /// Marks `error` as permanent.
    pub fn new(error: impl Into<BoxError>) -> Self {
        Self(error.into())
    }
}

impl fmt::Display for Permanent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl StdError for Permanent {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source()
    }
}

/// An error after which the next attempt should wait for a while: the other side said how long.
#[derive(Debug)]
pub struct RetryAfter {
    error: BoxError,
    delay: Duration,
}

impl RetryAfter {
    /// Says that what failed with `error` is worth another attempt after `delay`, not before.
    pub fn new(error: impl Into<BoxError>, delay: Duration) -> Self {
        Self {
            error: error.into(),
            delay,
        }
    }

    /// How long to wait.
    pub fn delay(&self) -> Duration {
        self.delay
    }
}

impl fmt::Display for RetryAfter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl StdError for RetryAfter {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.error.source()
    }
}

/// True if `error` or one of its sources is [`Permanent`].
pub fn is_permanent(error: &(dyn StdError + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<Permanent>() {
            return true;
        }
        next = error.source();
    }
    false
}

/// Adds `.permanent()` to results: `parse(text).permanent()?`.
pub trait PermanentExt<T> {
    /// Marks the error as one that trying again cannot mend.
    fn permanent(self) -> Result<T, Error>;
}

impl<T, E: Into<BoxError>> PermanentExt<T> for Result<T, E> {
    fn permanent(self) -> Result<T, Error> {
        self.map_err(|error| Error::from(Permanent::new(error)))
    }
}

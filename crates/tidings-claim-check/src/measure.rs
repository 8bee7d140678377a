//! Bytes are measured on their way into a store and compared on their way out.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use ring::digest::{self, SHA256};
use tokio::io::{AsyncRead, ReadBuf};

use crate::{Attachment, Error, store::BoxRead};

/// Length and checksum of what went by.
struct Measure {
    bytes: u64,
    sha256: digest::Context,
}

impl Measure {
    fn new() -> Self {
        Self {
            bytes: 0,
            sha256: digest::Context::new(&SHA256),
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.sha256.update(bytes);
    }

    fn sha256(&self) -> [u8; 32] {
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(self.sha256.clone().finish().as_ref());
        sha256
    }
}

/// Reads from a source up to a limit, and knows afterwards what there was.
pub(crate) struct Measured<R> {
    source: R,
    measure: Measure,
    bytes_max: u64,
    at_end: bool,
    failed: Option<io::Error>,
}

/// What came out of a source.
pub(crate) enum Outcome {
    Whole { bytes: u64, sha256: [u8; 32] },
    NotRead,
    TooLarge,
    Failed(io::Error),
}

impl<R> Measured<R> {
    pub(crate) fn new(source: R, bytes_max: u64) -> Self {
        Self {
            source,
            measure: Measure::new(),
            bytes_max,
            at_end: false,
            failed: None,
        }
    }

    pub(crate) fn outcome(self) -> Outcome {
        match self.failed {
            Some(error) => Outcome::Failed(error),
            None if self.measure.bytes > self.bytes_max => Outcome::TooLarge,
            None if !self.at_end => Outcome::NotRead,
            None => Outcome::Whole {
                bytes: self.measure.bytes,
                sha256: self.measure.sha256(),
            },
        }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Measured<R> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        if let Err(error) = ready!(Pin::new(&mut this.source).poll_read(cx, buffer)) {
            let said = io::Error::new(error.kind(), "the source of the body failed");
            this.failed = Some(error);
            return Poll::Ready(Err(said));
        }
        let read = &buffer.filled()[before..];
        this.at_end = read.is_empty();
        this.measure.add(read);
        if this.measure.bytes > this.bytes_max {
            // Who fails has read nothing.
            buffer.set_filled(before);
            return Poll::Ready(Err(io::Error::other("the body is too large")));
        }
        Poll::Ready(Ok(()))
    }
}

/// A body that is read piece by piece.
///
/// It is compared with its [`Attachment`] as it goes by, so whether it is the one that was put is
/// known at its end: **whoever reads it must not act on a part of it before the end was reached
/// without an error.** The error of a damaged body has an [`Error`] inside.
pub struct BodyReader {
    body: BoxRead,
    measure: Measure,
    attachment: Attachment,
}

impl BodyReader {
    pub(crate) fn new(body: BoxRead, attachment: Attachment) -> Self {
        Self {
            body,
            measure: Measure::new(),
            attachment,
        }
    }

    fn check(&self, at_end: bool) -> io::Result<()> {
        let (is, was) = (self.measure.bytes, self.attachment.bytes());
        let how = if is > was {
            format!("it has more than the {was} bytes that were put")
        } else if !at_end {
            return Ok(());
        } else if is < was {
            format!("it has {is} of the {was} bytes that were put")
        } else if self.measure.sha256() != self.attachment.sha256() {
            "its checksum is not that of what was put".to_owned()
        } else {
            return Ok(());
        };
        let damaged = Error::damaged(&self.attachment, &how);
        Err(io::Error::new(io::ErrorKind::InvalidData, damaged))
    }
}

impl AsyncRead for BodyReader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.body).poll_read(cx, buffer))?;
        let read = &buffer.filled()[before..];
        this.measure.add(read);
        let checked = this.check(read.is_empty());
        if checked.is_err() {
            // Who fails has read nothing.
            buffer.set_filled(before);
        }
        Poll::Ready(checked)
    }
}

impl std::fmt::Debug for BodyReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BodyReader")
            .field("attachment", &self.attachment)
            .field("read", &self.measure.bytes)
            .finish_non_exhaustive()
    }
}

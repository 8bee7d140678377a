//! The body of an answer, as something to read from.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use hyper::body::{Body, Incoming};
use tokio::io::{AsyncRead, ReadBuf};

pub(super) struct Answer {
    body: Incoming,
    /// What came and was not read yet.
    rest: Bytes,
}

impl Answer {
    pub(super) fn new(body: Incoming) -> Self {
        Self {
            body,
            rest: Bytes::new(),
        }
    }
}

impl AsyncRead for Answer {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.rest.is_empty() {
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(io::Error::other(error))),
                Some(Ok(frame)) => this.rest = frame.into_data().unwrap_or_default(),
            }
        }
        let bytes = this.rest.len().min(buffer.remaining());
        buffer.put_slice(&this.rest[..bytes]);
        this.rest.advance(bytes);
        Poll::Ready(Ok(()))
    }
}

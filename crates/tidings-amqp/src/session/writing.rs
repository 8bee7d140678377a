//! The task that writes: whatever was sent while its last write was under way goes out in the next.
//!
//! Settlements that are few wait for others, for a moment: a broker does a lot for each acknowledgement, and little more for one
//! of many messages.

use std::{io, time::Duration};

use bytes::BytesMut;
use tidings_wire::encode_heartbeat;
use tokio::{
    io::{AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use tracing::debug;

use super::{Closed, LAST_WRITE, OUT_BYTES_MAX, Session};

/// How long settlements wait for others, at most.
const MOMENT: Duration = Duration::from_millis(1);

impl Session {
    pub(super) async fn write(
        &self,
        mut writer: Box<dyn AsyncWrite + Send + Unpin>,
        heartbeat: Duration,
    ) {
        let pause = match heartbeat {
            Duration::ZERO => Duration::MAX,
            heartbeat => heartbeat / 2,
        };
        let mut written = Written::default();
        let error = loop {
            self.take_out(&mut written);
            if written.is_done() {
                tokio::select! {
                    filled = timeout(pause, self.out_filled.notified()) => {
                        if filled.is_ok() {
                            continue;
                        }
                        encode_heartbeat(&mut written.bytes);
                    }
                    () = self.out_waits.notified() => {
                        let _ = timeout(MOMENT, self.out_filled.notified()).await;
                        continue;
                    }
                    () = self.ended.cancelled() => break None,
                }
            }
            tokio::select! {
                result = written.go_on(&mut writer) => if let Err(error) = result {
                    break Some(error);
                },
                () = self.ended.cancelled() => break None,
            }
        };
        match error {
            Some(error) => self.finish(Closed::lost(format!("the connection broke: {error}"))),
            None => self.write_the_rest(writer, written).await,
        }
    }

    /// The answer to a close may be among it.
    async fn write_the_rest(
        &self,
        mut writer: Box<dyn AsyncWrite + Send + Unpin>,
        mut written: Written,
    ) {
        let rest = async {
            written.go_on(&mut writer).await?;
            self.take_out(&mut written);
            written.go_on(&mut writer).await?;
            writer.shutdown().await
        };
        if !matches!(timeout(LAST_WRITE, rest).await, Ok(Ok(()))) {
            debug!("the last bytes could not be written");
        }
    }

    /// Takes all that is to be written; only when what was taken before is done.
    fn take_out(&self, written: &mut Written) {
        let flushes = {
            let mut out = self.out.lock();
            std::mem::swap(&mut out.bytes, &mut written.bytes);
            out.is_told = false;
            std::mem::take(&mut out.flushes)
        };
        self.out_taken.notify_waiters();
        for flush in flushes {
            flush.flush(&mut written.settlements);
        }
    }
}

/// What is being written. It knows how far it came, so that it can be dropped and gone on with.
#[derive(Default)]
struct Written {
    /// Settlements come first: their channel may be closed by what follows.
    settlements: BytesMut,
    bytes: BytesMut,
    settlements_done: usize,
    bytes_done: usize,
}

impl Written {
    fn is_done(&self) -> bool {
        self.settlements.is_empty() && self.bytes.is_empty()
    }

    /// Writes everything and leaves the buffers empty, with their memory unless that is a lot.
    async fn go_on(&mut self, writer: &mut (dyn AsyncWrite + Send + Unpin)) -> io::Result<()> {
        for (buffer, done) in [
            (&mut self.settlements, &mut self.settlements_done),
            (&mut self.bytes, &mut self.bytes_done),
        ] {
            while *done < buffer.len() {
                match writer.write(&buffer[*done..]).await? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    count => *done += count,
                }
            }
            *done = 0;
            buffer.clear();
            if buffer.capacity() > 2 * OUT_BYTES_MAX {
                *buffer = BytesMut::new();
            }
        }
        writer.flush().await
    }
}

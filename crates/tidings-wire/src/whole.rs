//! A delivery whose frames are all there, read in one step: what nearly all are.

use bytes::{Buf, BytesMut};

use crate::{
    Content, FRAME_OVERHEAD_BYTES, Properties,
    frame::{BODY, END, HEAD_BYTES, HEADER, METHOD},
    lent::{check, split_short},
};

/// `basic.deliver` with its content.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivered {
    /// What it is settled by.
    pub delivery_tag: u64,
    /// It was handed out before.
    pub redelivered: bool,
    /// Properties and body.
    pub content: Content,
}

/// A delivery at the front of a buffer, of which nothing is missing.
#[derive(Debug, Clone, Copy)]
pub struct WholeDelivery {
    channel: u16,
    delivery_tag: u64,
    redelivered: bool,
    method_bytes: usize,
    properties_bytes: usize,
    /// 0 if there is no frame for it.
    body_bytes: usize,
}

/// Class, weight, and size of the body, before the properties.
const HEADER_BYTES: usize = 12;

impl WholeDelivery {
    /// Looks for one at the front of `buffer`: a `basic.deliver`, its header, and its body in at most one
    /// frame. `None` for everything else, also for what is against the protocol:
    /// [`decode_frame`](crate::decode_frame) says what it is.
    pub fn find(buffer: &[u8], frame_bytes_max: u32) -> Option<Self> {
        let (channel, method, rest) = frame(METHOD, buffer, frame_bytes_max)?;
        let arguments = method.strip_prefix(&[0, 60, 0, 60])?;
        let (_consumer_tag, arguments) = split_short(arguments)?;
        let (delivery_tag, arguments) = arguments.split_first_chunk::<8>()?;
        let (bits, arguments) = arguments.split_first()?;
        let (_exchange, arguments) = split_short(arguments)?;
        let (_routing_key, []) = split_short(arguments)? else {
            return None;
        };
        let (of_header, header, rest) = frame(HEADER, rest, frame_bytes_max)?;
        let (before, properties) = header.split_first_chunk::<HEADER_BYTES>()?;
        let [0, 60, _, _, body_bytes @ ..] = before else {
            return None;
        };
        let body_bytes = usize::try_from(u64::from_be_bytes(*body_bytes)).ok()?;
        if of_header != channel || check(properties).is_err() {
            return None;
        }
        if body_bytes > 0 {
            let (of_body, body, _) = frame(BODY, rest, frame_bytes_max)?;
            if of_body != channel || body.len() != body_bytes {
                return None;
            }
        }
        Some(Self {
            channel,
            delivery_tag: u64::from_be_bytes(*delivery_tag),
            redelivered: bits & 1 == 1,
            method_bytes: method.len() + FRAME_OVERHEAD_BYTES,
            properties_bytes: properties.len(),
            body_bytes,
        })
    }

    /// The channel it is for.
    pub fn channel(&self) -> u16 {
        self.channel
    }

    /// Takes it from the buffer in which it was [found](Self::find).
    pub fn take(self, buffer: &mut BytesMut) -> Delivered {
        let properties_at = self.method_bytes + HEAD_BYTES + HEADER_BYTES;
        let header_end = properties_at + self.properties_bytes + 1;
        let end = match self.body_bytes {
            0 => header_end,
            body_bytes => header_end + FRAME_OVERHEAD_BYTES + body_bytes,
        };
        let mut body = buffer.split_to(end).freeze();
        let properties = body.slice(properties_at..header_end - 1);
        match self.body_bytes {
            0 => body.clear(),
            body_bytes => {
                body.advance(header_end + HEAD_BYTES);
                body.truncate(body_bytes);
            }
        }
        Delivered {
            delivery_tag: self.delivery_tag,
            redelivered: self.redelivered,
            content: Content {
                properties: Properties::checked(properties),
                body,
                body_bytes: self.body_bytes as u64,
            },
        }
    }
}

/// The channel and the payload of a frame of this kind, and what is behind it.
#[inline]
fn frame(kind: u8, bytes: &[u8], frame_bytes_max: u32) -> Option<(u16, &[u8], &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<HEAD_BYTES>()?;
    let &[is, c1, c0, l3, l2, l1, l0] = head;
    let length = u32::from_be_bytes([l3, l2, l1, l0]) as usize;
    let is_short = length.saturating_add(FRAME_OVERHEAD_BYTES) <= frame_bytes_max as usize;
    let (payload, rest) = rest.split_at_checked(length)?;
    let (&end, rest) = rest.split_first()?;
    let is_frame = is == kind && is_short && end == END;
    is_frame.then_some((u16::from_be_bytes([c1, c0]), payload, rest))
}

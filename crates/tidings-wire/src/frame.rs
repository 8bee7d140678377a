//! Frames: an octet for the type, two for the channel, four for the length, the payload, and an
//! octet that ends it.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::{EncodeMethod, Method, ShortStrTooLong, WireError, reader::Reader, short_str::Short};

/// What a client says first.
pub const PROTOCOL_HEADER: [u8; 8] = *b"AMQP\x00\x00\x09\x01";

/// The smallest limit on frames that two peers may agree upon.
pub const FRAME_BYTES_MIN: u32 = 4096;

/// What a frame has beside its payload.
pub const FRAME_OVERHEAD_BYTES: usize = HEAD_BYTES + 1;

pub(crate) const HEAD_BYTES: usize = 7;
pub(crate) const END: u8 = 0xce;
pub(crate) const METHOD: u8 = 1;
pub(crate) const HEADER: u8 = 2;
pub(crate) const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
const BASIC: u16 = 60;

/// One frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame {
    /// The channel; 0 is the connection itself.
    pub channel: u16,
    /// What it carries.
    pub payload: Payload,
}

/// What a frame carries.
#[derive(Debug, Clone, PartialEq)]
pub enum Payload {
    /// A method.
    Method(Method),
    /// The header of a content.
    Header {
        /// The class of the method before it; always 60, basic.
        class_id: u16,
        /// How many bytes the body frames bring together. Not to be trusted.
        body_bytes: u64,
        /// The properties as they came. [`Properties::parse`](crate::Properties::parse) checks them.
        properties: Bytes,
    },
    /// A part of a body.
    Body(Bytes),
    /// Nothing but a sign of life.
    Heartbeat,
}

/// Takes the next frame from the front of `buffer`, or `None` while it is not complete there.
///
/// `frame_bytes_max` is the agreed limit on whole frames. No memory is reserved for what a peer
/// only announces.
///
/// # Errors
///
/// 501 for a frame that is too long, of an unknown type or not ended properly, 502 and 540 for a
/// method that cannot be decoded. The connection has to be closed: where the next frame begins is
/// not known any more.
pub fn decode_frame(
    buffer: &mut BytesMut,
    frame_bytes_max: u32,
) -> Result<Option<Frame>, WireError> {
    let Some(head) = buffer.first_chunk::<HEAD_BYTES>() else {
        return Ok(None);
    };
    let &[kind, c1, c0, l3, l2, l1, l0] = head;
    let channel = u16::from_be_bytes([c1, c0]);
    let length = u32::from_be_bytes([l3, l2, l1, l0]) as usize;
    if !matches!(kind, METHOD | HEADER | BODY | HEARTBEAT) {
        return Err(WireError::frame(format!("frame type {kind} is unknown")));
    }
    let bytes = length.saturating_add(FRAME_OVERHEAD_BYTES);
    if bytes > frame_bytes_max as usize {
        return Err(WireError::frame(format!(
            "a frame of {bytes} bytes, but `frame_max` is {frame_bytes_max}"
        )));
    }
    if buffer.len() < bytes {
        return Ok(None);
    }
    if buffer[bytes - 1] != END {
        return Err(WireError::frame("a frame does not end with octet 206"));
    }
    let mut payload = buffer.split_to(bytes).freeze();
    payload.advance(HEAD_BYTES);
    payload.truncate(length);
    let payload = decode_payload(kind, channel, payload)?;
    Ok(Some(Frame { channel, payload }))
}

fn decode_payload(kind: u8, channel: u16, mut payload: Bytes) -> Result<Payload, WireError> {
    match kind {
        METHOD if payload.len() < 4 => Err(WireError::frame("a method frame without a method")),
        METHOD => {
            let (class_id, method_id) = (payload.get_u16(), payload.get_u16());
            Method::decode(class_id, method_id, &payload).map(Payload::Method)
        }
        HEADER => decode_header(&payload),
        BODY => Ok(Payload::Body(payload)),
        _ if channel != 0 || !payload.is_empty() => {
            Err(WireError::frame("a heartbeat is empty and on channel 0"))
        }
        _ => Ok(Payload::Heartbeat),
    }
}

fn decode_header(payload: &Bytes) -> Result<Payload, WireError> {
    let mut reader = Reader::new(payload);
    let class_id = reader.field()?;
    let _weight: u16 = reader.field()?;
    let body_bytes = reader.field()?;
    let properties = reader.rest();
    Ok(Payload::Header {
        class_id,
        body_bytes,
        properties,
    })
}

/// Appends a method frame.
///
/// The methods are small; only one with a very large table could exceed the agreed frame size.
pub fn encode_method(out: &mut BytesMut, channel: u16, method: &impl EncodeMethod) {
    frame(out, METHOD, channel, |out| {
        out.put_u16(method.class_id());
        out.put_u16(method.method_id());
        method.encode_arguments(out);
    });
}

/// Appends a heartbeat.
pub fn encode_heartbeat(out: &mut BytesMut) {
    frame(out, HEARTBEAT, 0, |_| ());
}

/// Appends a content: its header, and its body in as many frames as `frame_bytes_max` asks for.
///
/// `properties` are encoded ones, as [`Properties::as_bytes`](crate::Properties::as_bytes) and
/// [`BasicProperties::encode`](crate::BasicProperties::encode) give them.
pub fn encode_content(
    out: &mut BytesMut,
    channel: u16,
    properties: &[u8],
    body: &[u8],
    frame_bytes_max: u32,
) {
    frame(out, HEADER, channel, |out| {
        out.put_u16(BASIC);
        out.put_u16(0);
        out.put_u64(body.len() as u64);
        out.put_slice(properties);
    });
    let chunk_bytes = frame_bytes_max.max(FRAME_BYTES_MIN) as usize - FRAME_OVERHEAD_BYTES;
    for chunk in body.chunks(chunk_bytes) {
        frame(out, BODY, channel, |out| out.put_slice(chunk));
    }
}

/// Appends `basic.publish` with its content.
///
/// # Errors
///
/// When a name is too long to be one; nothing is appended then.
#[expect(clippy::too_many_arguments, reason = "they are the method's")]
pub fn encode_publish(
    out: &mut BytesMut,
    channel: u16,
    exchange: &str,
    routing_key: &str,
    mandatory: bool,
    properties: &[u8],
    body: &[u8],
    frame_bytes_max: u32,
) -> Result<(), ShortStrTooLong> {
    let names = [Short::of(exchange)?, Short::of(routing_key)?];
    reserve(out, exchange.len() + routing_key.len(), properties, body);
    frame(out, METHOD, channel, |out| {
        out.put_u32(u32::from(BASIC) << 16 | 40);
        out.put_u16(0);
        names.iter().for_each(|name| name.put(out));
        out.put_u8(mandatory.into());
    });
    encode_content(out, channel, properties, body, frame_bytes_max);
    Ok(())
}

/// Appends `basic.deliver` with its content.
///
/// # Errors
///
/// When a name is too long to be one; nothing is appended then.
#[expect(clippy::too_many_arguments, reason = "they are the method's")]
pub fn encode_deliver(
    out: &mut BytesMut,
    channel: u16,
    consumer_tag: &[u8],
    delivery_tag: u64,
    redelivered: bool,
    exchange: &[u8],
    routing_key: &[u8],
    properties: &[u8],
    body: &[u8],
    frame_bytes_max: u32,
) -> Result<(), ShortStrTooLong> {
    let tag = Short::of(consumer_tag)?;
    let names = [Short::of(exchange)?, Short::of(routing_key)?];
    let names_bytes = consumer_tag.len() + exchange.len() + routing_key.len();
    reserve(out, names_bytes, properties, body);
    frame(out, METHOD, channel, |out| {
        out.put_u32(u32::from(BASIC) << 16 | 60);
        tag.put(out);
        out.put_u64(delivery_tag);
        out.put_u8(redelivered.into());
        names.iter().for_each(|name| name.put(out));
    });
    encode_content(out, channel, properties, body, frame_bytes_max);
    Ok(())
}

/// Appends `basic.ack`: a consumer's, or a broker's confirm.
pub fn encode_ack(out: &mut BytesMut, channel: u16, delivery_tag: u64, multiple: bool) {
    frame(out, METHOD, channel, |out| {
        out.put_u32(u32::from(BASIC) << 16 | 80);
        out.put_u64(delivery_tag);
        out.put_u8(multiple.into());
    });
}

/// What the frames of a small content need at most, so that the buffer grows once.
fn reserve(out: &mut BytesMut, names: usize, properties: &[u8], body: &[u8]) {
    out.reserve(names + properties.len() + body.len() + 72);
}

/// Appends a frame whose payload `fill` writes; the length is written afterwards.
fn frame(out: &mut BytesMut, kind: u8, channel: u16, fill: impl FnOnce(&mut BytesMut)) {
    out.put_u8(kind);
    out.put_u16(channel);
    let length_at = out.len();
    out.put_u32(0);
    fill(out);
    let length = (out.len() - length_at - 4) as u32;
    out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
    out.put_u8(END);
}

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderCheck {
    /// Right so far, but not complete.
    Incomplete,
    /// AMQP 0-9-1. The header was taken from the buffer.
    Accepted,
    /// AMQP of another version: the server answers with [`PROTOCOL_HEADER`] and closes.
    OtherVersion,
    /// Another protocol: the server answers with [`PROTOCOL_HEADER`] and closes.
    NotAmqp,
}

/// Looks for the protocol header at the front of `buffer`. Says [`HeaderCheck::NotAmqp`] as soon
/// as it can be known.
pub fn check_protocol_header(buffer: &mut BytesMut) -> HeaderCheck {
    // The form of 0-9 is what some old clients send, and RabbitMQ accepts.
    const ACCEPTED: [[u8; 8]; 2] = [PROTOCOL_HEADER, *b"AMQP\x01\x01\x00\x09"];
    let shared = buffer.len().min(4);
    if buffer[..shared] != b"AMQP"[..shared] {
        return HeaderCheck::NotAmqp;
    }
    let Some(header) = buffer.first_chunk::<8>() else {
        return HeaderCheck::Incomplete;
    };
    if !ACCEPTED.contains(header) {
        return HeaderCheck::OtherVersion;
    }
    buffer.advance(8);
    HeaderCheck::Accepted
}

//! AMQP 0-9-1 as RabbitMQ speaks it: bytes to frames to methods and back, for both ends.
//!
//! It never does I/O, knows no runtime, and copies nothing it does not have to: what is decoded
//! are slices of the buffer that was read, and the bytes of properties and tables are kept as they
//! came, so that order, duplicates and types survive a broker.
//!
//! # Use
//!
//! Reading, on either side:
//!
//! ```
//! use bytes::BytesMut;
//! use tidings_wire::{Assembler, Command, Frame, Method, Payload, decode_frame, encode_publish};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut wire = BytesMut::new();
//! encode_publish(&mut wire, 1, "orders", "", true, &[0, 0], b"{}", 131_072)?;
//!
//! // One assembler per channel: it joins a method with its content and polices their order.
//! let mut channel_1 = Assembler::new(16 * 1024 * 1024);
//! while let Some(Frame { channel, payload }) = decode_frame(&mut wire, 131_072)? {
//!     assert_eq!(channel, 1);
//!     if let Some(Command { method: Method::BasicPublish(publish), content: Some(content) }) =
//!         channel_1.push(payload)?
//!     {
//!         assert_eq!(publish.exchange, "orders");
//!         assert_eq!(&content.body[..], b"{}");
//!         assert_eq!(content.properties.delivery_mode(), None);
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Writing: [`encode_method`] takes any method (`&QueueDeclareOk { .. }` or a whole [`Method`]),
//! [`encode_publish`], [`encode_deliver`] and [`encode_ack`] are the hot ones without any
//! allocation, [`encode_content`] adds properties and body after any other method that carries
//! content (`basic.return`, `basic.get-ok`), [`encode_heartbeat`] does what it says. A
//! [`ShortStr`] is at most 255 bytes by construction, so that encoding one cannot fail; encoders that
//! take plain names refuse those that are too long.
//!
//! Who takes many deliveries and keeps none of their headers reads those that came whole with
//! [`WholeDelivery`] and [`Properties::lend`], and writes with [`encode_properties`].
//!
//! Every error of a peer is a [`WireError`] with the reply code to close the connection with
//! (see [`reply`]). A connection begins with [`PROTOCOL_HEADER`]; a server checks it with
//! [`check_protocol_header`].
//!
//! Decoded [`Bytes`](bytes::Bytes) share the buffer that was read. Who keeps a small one for long
//! keeps the whole buffer alive, and may want to copy it (`Bytes::copy_from_slice`).

mod content;
mod error;
mod frame;
mod lent;
mod method;
mod properties;
mod reader;
pub mod reply;
mod short_str;
mod table;
mod whole;
mod writer;

pub use content::{Assembler, Command, Content};
pub use error::WireError;
pub use frame::{
    FRAME_BYTES_MIN, FRAME_OVERHEAD_BYTES, Frame, HeaderCheck, PROTOCOL_HEADER, Payload,
    check_protocol_header, decode_frame, encode_ack, encode_content, encode_deliver,
    encode_heartbeat, encode_method, encode_publish,
};
pub use lent::{Lent, LentProperties, LentTable, encode_properties};
pub use method::*;
pub use properties::{BasicProperties, Properties};
pub use short_str::{ShortStr, ShortStrTooLong};
pub use table::{Array, ArrayBuilder, DEPTH_MAX, Table, TableBuilder, TableWriter, Value};
pub use whole::{Delivered, WholeDelivery};

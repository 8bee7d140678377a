//! What a redrive has to do at least: messages from one queue to another, each confirmed in the one
//! before it is acknowledged in the other.

use std::{collections::BTreeSet, time::Instant};

use anyhow::{bail, ensure};
use bytes::Bytes;
use tidings_wire::{
    BasicAck, ConfirmSelect, Frame, Method, Payload, decode_frame, encode_ack, encode_publish,
};

use super::{CHANNEL, Client, DRAIN_MAX, FRAME_BYTES_MAX};

/// Moves `count` messages from the queue `from` to the queue `to`, bodies and properties as they are,
/// with at most `window` of them under way.
pub(crate) fn forward(
    url: &str,
    from: &str,
    to: &str,
    count: u64,
    window: u16,
) -> anyhow::Result<()> {
    let mut client = Client::connect(url)?;
    client.ask(&ConfirmSelect { no_wait: false })?;
    client.subscribe(from, window)?;
    let mut unconfirmed = BTreeSet::new();
    let (mut published, mut confirmed) = (0, 0);
    let mut properties = Bytes::new();
    let mut last_came = Instant::now();
    while confirmed < count {
        ensure!(
            last_came.elapsed() < DRAIN_MAX,
            "only {confirmed} of {count} messages were moved"
        );
        client.read()?;
        while let Some(Frame { payload, .. }) = decode_frame(&mut client.received, FRAME_BYTES_MAX)?
        {
            last_came = Instant::now();
            match payload {
                Payload::Header {
                    properties: came, ..
                } => properties = came,
                // A body is one frame: it is smaller than one may be.
                Payload::Body(body) => {
                    published += 1;
                    unconfirmed.insert(published);
                    encode_publish(
                        &mut client.out,
                        CHANNEL,
                        "",
                        to,
                        true,
                        &properties,
                        &body,
                        FRAME_BYTES_MAX,
                    )?;
                }
                Payload::Method(Method::BasicAck(BasicAck {
                    delivery_tag,
                    multiple,
                })) => match multiple {
                    true => unconfirmed = unconfirmed.split_off(&(delivery_tag + 1)),
                    false => drop(unconfirmed.remove(&delivery_tag)),
                },
                Payload::Method(Method::BasicDeliver(_)) | Payload::Heartbeat => {}
                Payload::Method(method) => bail!("{method:?} instead of a delivery or a confirm"),
            }
        }
        // The first publish was of the first delivery, and so on.
        let now = unconfirmed.first().map_or(published, |first| first - 1);
        if now > confirmed {
            encode_ack(&mut client.out, CHANNEL, now, true);
            confirmed = now;
        }
        client.flush()?;
    }
    Ok(())
}

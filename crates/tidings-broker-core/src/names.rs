//! Generated names: `amq.gen-…` and `amq.ctag-…`, 128 bits each, from whoever drives the broker. Who
//! knows one name must not be able to tell others: a queue for replies is protected by nothing else.

use bytes::Bytes;

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// 22 letters of 6 bits hold 128 bits.
const LENGTH: usize = 22;

/// The bits of the name that is generated after so many others.
pub(crate) type NameBits = fn(u64) -> u128;

#[derive(Debug)]
pub(crate) struct Names {
    bits: NameBits,
    generated: u64,
}

impl Names {
    pub(crate) const fn new(bits: NameBits) -> Self {
        Self { bits, generated: 0 }
    }

    pub(crate) fn generate(&mut self, prefix: &str) -> Bytes {
        let mut bits = (self.bits)(self.generated);
        self.generated += 1;
        let mut name = Vec::with_capacity(prefix.len() + LENGTH);
        name.extend_from_slice(prefix.as_bytes());
        for _ in 0..LENGTH {
            name.push(LETTERS[(bits & 63) as usize]);
            bits >>= 6;
        }
        name.into()
    }
}

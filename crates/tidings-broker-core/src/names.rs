//! Generated names: `amq.gen-…` and `amq.ctag-…`, 128 bits each, from a seed.

use bytes::Bytes;

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// 22 letters of 6 bits hold 128 bits.
const LENGTH: usize = 22;

#[derive(Debug)]
pub(crate) struct Names {
    state: u64,
}

impl Names {
    pub(crate) const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub(crate) fn generate(&mut self, prefix: &str) -> Bytes {
        let mut bits = u128::from(self.next()) << 64 | u128::from(self.next());
        let mut name = Vec::with_capacity(prefix.len() + LENGTH);
        name.extend_from_slice(prefix.as_bytes());
        for _ in 0..LENGTH {
            name.push(LETTERS[(bits & 63) as usize]);
            bits >>= 6;
        }
        name.into()
    }

    /// SplitMix64.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

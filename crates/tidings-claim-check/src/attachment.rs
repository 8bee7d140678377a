//! What a message carries instead of the body: where it is, how long it is, and its checksum.

use std::{fmt, str::FromStr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The longest name of a store.
const STORE_BYTES_MAX: usize = 255;

/// A reference to a body in a store: a field of a message.
///
/// It is made by [`Bodies::put`](crate::Bodies::put) when the body is on stable storage, and is
/// worth nothing before. In JSON, for programs in other languages:
///
/// ```json
/// {
///   "claim": "0193a5c0-4d3e-7c11-9a56-2f1f6f2f8a10",
///   "store": "folder:5b0e7b5e-6a55-4f9d-8a0b-0d7a6f8f3c21",
///   "bytes": 1048576,
///   "sha256": "30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58"
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct Attachment {
    claim: BodyId,
    store: StoreId,
    bytes: u64,
    sha256: [u8; 32],
}

impl Attachment {
    pub(crate) fn new(claim: BodyId, store: StoreId, bytes: u64, sha256: [u8; 32]) -> Self {
        Self {
            claim,
            store,
            bytes,
            sha256,
        }
    }

    /// Which body it is.
    pub fn claim(&self) -> BodyId {
        self.claim
    }

    /// Where the body is.
    pub fn store(&self) -> &StoreId {
        &self.store
    }

    /// How long the body is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The SHA-256 of the body.
    pub fn sha256(&self) -> [u8; 32] {
        self.sha256
    }

    /// When the body was put, by the clock of who put it.
    pub fn put_at(&self) -> Timestamp {
        self.claim.put_at()
    }
}

/// The name of a body: chosen when it is put, never used again, and with the time in it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BodyId {
    uuid: Uuid,
    put_at: Timestamp,
}

impl BodyId {
    pub(crate) fn random() -> Self {
        let uuid = Uuid::now_v7();
        let put_at = time_of(uuid).unwrap_or(Timestamp::UNIX_EPOCH);
        Self { uuid, put_at }
    }

    /// When the body was put, by the clock of who put it, to the millisecond.
    pub fn put_at(self) -> Timestamp {
        self.put_at
    }

    /// The day of [`put_at`](Self::put_at) in UTC, as `2026-11-24`: stores keep bodies by it.
    pub fn day(self) -> String {
        self.put_at.strftime("%Y-%m-%d").to_string()
    }
}

fn time_of(uuid: Uuid) -> Option<Timestamp> {
    if uuid.get_version_num() != 7 {
        return None;
    }
    let (seconds, nanos) = uuid.get_timestamp()?.to_unix();
    let millis = i64::try_from(seconds).ok()?.checked_mul(1000)? + i64::from(nanos) / 1_000_000;
    Timestamp::from_millisecond(millis).ok()
}

impl FromStr for BodyId {
    type Err = String;

    /// Takes the one way in which an id is written, so that it can be the name of a file.
    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || {
            format!(
                "`{}` is not the id of a body (a UUID of version 7)",
                short(text)
            )
        };
        let uuid = Uuid::try_parse(text).map_err(|_| refused())?;
        let put_at = time_of(uuid).ok_or_else(refused)?;
        let id = Self { uuid, put_at };
        if id.to_string() == text {
            Ok(id)
        } else {
            Err(refused())
        }
    }
}

impl fmt::Display for BodyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.uuid, f)
    }
}

impl fmt::Debug for BodyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.uuid, f)
    }
}

/// The identity of a store, the same on every host that has it: `folder:<uuid>` or
/// `s3:<bucket>/<prefix>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StoreId(Box<str>);

impl StoreId {
    /// An identity, of 1 to 255 bytes without control characters.
    pub fn new(id: impl Into<String>) -> Result<Self, String> {
        let id = id.into();
        if id.is_empty() || id.len() > STORE_BYTES_MAX || id.chars().any(char::is_control) {
            return Err(format!(
                "`{}` cannot name a store: 1 to {STORE_BYTES_MAX} bytes without control \
                 characters can",
                short(&id).escape_debug()
            ));
        }
        Ok(Self(id.into()))
    }

    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for StoreId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::new(text)
    }
}

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The beginning of a text that may be long.
fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

/// An attachment as it is in JSON.
#[derive(Serialize, Deserialize)]
struct Written {
    claim: String,
    store: String,
    bytes: u64,
    sha256: String,
}

impl From<Attachment> for Written {
    fn from(attachment: Attachment) -> Self {
        Self {
            claim: attachment.claim.to_string(),
            store: attachment.store.0.into(),
            bytes: attachment.bytes,
            sha256: to_hex(&attachment.sha256),
        }
    }
}

impl TryFrom<Written> for Attachment {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let sha256 = from_hex(&written.sha256)
            .ok_or_else(|| format!("`{}` is not a SHA-256 in hex", short(&written.sha256)))?;
        Ok(Self {
            claim: written.claim.parse()?,
            store: StoreId::new(written.store)?,
            bytes: written.bytes,
            sha256,
        })
    }
}

pub(crate) fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: [&str; 4] = [
        "0193a5c0-4d3e-7c11-9a56-2f1f6f2f8a10",
        "folder:5b0e7b5e-6a55-4f9d-8a0b-0d7a6f8f3c21",
        "1048576",
        "30e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58",
    ];

    fn json([claim, store, bytes, sha256]: [&str; 4]) -> String {
        format!(r#"{{"claim":"{claim}","store":"{store}","bytes":{bytes},"sha256":"{sha256}"}}"#)
    }

    #[test]
    fn an_attachment_is_written_as_it_was_read() {
        let text = json(GOOD);
        let attachment: Attachment = serde_json::from_str(&text).unwrap();
        assert_eq!(serde_json::to_string(&attachment).unwrap(), text);
        assert_eq!(attachment.put_at().to_string(), "2024-12-08T10:11:03.614Z");
        assert_eq!(attachment.claim().day(), "2024-12-08");
    }

    #[test]
    fn what_could_name_another_file_or_nothing_is_refused() {
        let bad = [
            (0, "../../../../etc/passwd"),
            (0, "0193A5C0-4D3E-7C11-9A56-2F1F6F2F8A10"),
            (0, "0193a5c04d3e7c119a562f1f6f2f8a10"),
            (0, "5b0e7b5e-6a55-4f9d-8a0b-0d7a6f8f3c21"),
            (0, "ffffffff-ffff-7c11-9a56-2f1f6f2f8a10"),
            (1, ""),
            (1, r"\u0000"),
            (2, "-1"),
            (3, "30e1"),
            (
                3,
                "+0e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb58",
            ),
            (
                3,
                "é0e14955ebf1352266dc2ff8067e68104607e750abb9d3b36582b8af909fcb5",
            ),
        ];
        for (field, text) in bad {
            let mut fields = GOOD;
            fields[field] = text;
            let read: Result<Attachment, _> = serde_json::from_str(&json(fields));
            assert!(read.is_err(), "{text}: {read:?}");
        }
    }
}

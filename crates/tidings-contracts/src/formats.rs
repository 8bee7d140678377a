//! Bodies that are not in JSON: what their schemas say, so that the same checks are made of them.
//!
//! For people, for pacts and for what a consumer [uses](crate::Contracts::uses), a body in any format is the same fields; so an Avro
//! schema and a Protocol Buffers file are shown as a JSON Schema of those. What breaks whom is decided by each format's own rules:
//! in Avro a field is known by its name or an alias and may have a default, in Protocol Buffers by its number.

mod avro;
mod protobuf;

use std::borrow::Cow;

use serde_json::Value;
use tidings_formats::proto_files::ProtoFile;

use crate::{
    compat::{self, Break, What},
    document::Body,
};

/// Types nested deeper than any message's are not looked into: documents are strangers' input.
const DEPTH_MAX: usize = 64;

/// What stands for them in a finding.
fn too_deep() -> What {
    What::Unclear {
        keywords: format!("types that are nested deeper than {DEPTH_MAX} levels"),
    }
}

/// Which side of a message a schema describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// What is written.
    Sender,
    /// What is read.
    Reader,
}

impl Body {
    /// A body in Protocol Buffers, by the text of its file. Which message of it the body is must be said if there are several.
    ///
    /// # Errors
    ///
    /// When the file cannot be read alone, has no such message, or has several.
    pub fn protobuf(file: &str, message: Option<&str>) -> Result<Self, String> {
        let read = ProtoFile::parse(file)?;
        let message = match message {
            Some(message) if read.message(message).is_some() => message.to_owned(),
            Some(message) => return Err(format!("the `.proto` file has no message `{message}`")),
            None => {
                let is_outer = |name: &&str| {
                    let message = read.message(name);
                    message.is_some_and(|it| it.index.len() == 1)
                };
                let mut outer = read.messages().filter(is_outer);
                match (outer.next(), outer.next()) {
                    (Some(only), None) => only.to_owned(),
                    _ => {
                        return Err(
                            "the `.proto` file does not have exactly one message: say which one it is with \
                             `protobufMessage` in `x-tidings`"
                                .to_owned(),
                        );
                    }
                }
            }
        };
        Ok(Self::Protobuf {
            file: file.to_owned(),
            message,
        })
    }

    /// The fields of the body as a JSON Schema; nothing if no schema is known, or it is none.
    pub(crate) fn fields(&self, side: Side) -> Option<Cow<'_, Value>> {
        match self {
            Self::Json(schema) => Some(Cow::Borrowed(schema)),
            Self::Avro(schema) => Some(Cow::Owned(avro::fields(schema, side))),
            Self::Protobuf { file, message } => {
                protobuf::fields(file, message).ok().map(Cow::Owned)
            }
            Self::Other(_) | Self::Unsaid => None,
        }
    }

    /// What it is written in, for people.
    pub(crate) fn format(&self) -> String {
        match self {
            Self::Json(_) => "JSON".to_owned(),
            Self::Avro(_) => "Avro".to_owned(),
            Self::Protobuf { .. } => "Protocol Buffers".to_owned(),
            Self::Other(format) => format!("`{format}`"),
            Self::Unsaid => "what its document does not say".to_owned(),
        }
    }
}

/// What of a body as it is written is not read. Bodies of an unknown format are compared by its name only.
pub(crate) fn breaks(written: &Body, read: &Body) -> Vec<Break> {
    let whole = |what| {
        vec![Break {
            path: String::new(),
            what,
        }]
    };
    match (written, read) {
        (Body::Json(written), Body::Json(read)) => compat::breaks(written, read),
        (Body::Avro(written), Body::Avro(read)) => avro::breaks(written, read),
        (
            Body::Protobuf { file, message },
            Body::Protobuf {
                file: read_file,
                message: read_message,
            },
        ) => match protobuf::breaks((file, message), (read_file, read_message)) {
            Ok(found) => found,
            Err(keywords) => whole(What::Unclear { keywords }),
        },
        (Body::Unsaid, _) | (_, Body::Unsaid) => Vec::new(),
        (Body::Other(one), Body::Other(other)) if one == other => Vec::new(),
        // Every type of the toolkit reads JSON as well, whatever it writes.
        (Body::Json(written), Body::Avro(_) | Body::Protobuf { .. }) => {
            match read.fields(Side::Reader) {
                Some(read) => compat::breaks(written, &read),
                None => whole(What::Unclear {
                    keywords: "a schema that cannot be read".to_owned(),
                }),
            }
        }
        (one, other) => whole(What::Kind {
            written: one.format(),
            read: other.format(),
        }),
    }
}

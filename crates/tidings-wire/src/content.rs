//! A method and its content, joined again from frames.

use bytes::{Bytes, BytesMut};

use crate::{Method, Payload, Properties, WireError};

/// A method, with its content if it is one that carries any.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// The method.
    pub method: Method,
    /// What followed `basic.publish`, `basic.deliver`, `basic.return` or `basic.get-ok`.
    pub content: Option<Content>,
}

/// Properties and body of a message.
#[derive(Debug, Clone, PartialEq)]
pub struct Content {
    /// The properties, checked.
    pub properties: Properties,
    /// The body. Of one frame it is a slice of what was read, of several it is a copy.
    pub body: Bytes,
    /// How long the body was said to be. More than `body` holds only if that was over the limit:
    /// then the body was read and thrown away, and `body` is empty.
    pub body_bytes: u64,
}

impl Content {
    /// True if the body was over the limit and thrown away.
    pub fn is_too_large(&self) -> bool {
        self.body_bytes > self.body.len() as u64
    }
}

/// Joins the frames of one channel to commands.
///
/// A body over the limit does not break the connection: it is read and thrown away, and the
/// command says so ([`Content::is_too_large`]).
#[derive(Debug)]
pub struct Assembler {
    body_bytes_max: u64,
    state: State,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Method,
    Header(Method),
    Body(Partial),
}

#[derive(Debug)]
struct Partial {
    method: Method,
    content: Content,
    joined: BytesMut,
    missing_bytes: u64,
}

impl Assembler {
    /// An assembler that keeps bodies up to `body_bytes_max`.
    pub fn new(body_bytes_max: u64) -> Self {
        Self {
            body_bytes_max,
            state: State::Method,
        }
    }

    /// True between commands.
    pub fn is_idle(&self) -> bool {
        matches!(self.state, State::Method)
    }

    /// Bytes that are kept of a command that is not complete: its properties, and room for what has
    /// come of its body.
    pub fn held_bytes(&self) -> usize {
        match &self.state {
            State::Method | State::Header(_) => 0,
            State::Body(partial) => {
                partial.content.properties.as_bytes().len() + partial.joined.capacity()
            }
        }
    }

    /// Takes the next frame of the channel; a command when that completes one.
    ///
    /// # Errors
    ///
    /// 505 for a frame out of place, 502 for properties that cannot be read. The connection has to
    /// be closed.
    pub fn push(&mut self, payload: Payload) -> Result<Option<Command>, WireError> {
        match (std::mem::take(&mut self.state), payload) {
            (state, Payload::Heartbeat) => {
                self.state = state;
                Ok(None)
            }
            (State::Method, Payload::Method(method)) if method.has_content() => {
                self.state = State::Header(method);
                Ok(None)
            }
            (State::Method, Payload::Method(method)) => Ok(Some(Command {
                method,
                content: None,
            })),
            (
                State::Header(method),
                Payload::Header {
                    class_id: 60,
                    body_bytes,
                    properties,
                },
            ) => {
                let content = Content {
                    properties: Properties::parse(properties)?,
                    body: Bytes::new(),
                    body_bytes,
                };
                Ok(self.advance(Partial {
                    method,
                    content,
                    joined: BytesMut::new(),
                    missing_bytes: body_bytes,
                }))
            }
            (State::Body(partial), Payload::Body(chunk)) => self.push_body(partial, chunk),
            (State::Method, _) => Err(WireError::unexpected(
                "expected a method, got the content of a message",
            )),
            (State::Header(_), _) => Err(WireError::unexpected(
                "expected the content header of a message, got something else",
            )),
            (State::Body(_), _) => Err(WireError::unexpected(
                "expected the rest of a message's body, got something else",
            )),
        }
    }

    fn push_body(
        &mut self,
        mut partial: Partial,
        chunk: Bytes,
    ) -> Result<Option<Command>, WireError> {
        let chunk_bytes = chunk.len() as u64;
        let Some(missing_bytes) = partial.missing_bytes.checked_sub(chunk_bytes) else {
            return Err(WireError::unexpected(
                "the body of a message is longer than its header said",
            ));
        };
        let whole = chunk_bytes == partial.content.body_bytes;
        partial.missing_bytes = missing_bytes;
        if partial.content.body_bytes <= self.body_bytes_max {
            if whole {
                partial.content.body = chunk;
            } else {
                partial.joined.extend_from_slice(&chunk);
            }
        }
        Ok(self.advance(partial))
    }

    fn advance(&mut self, mut partial: Partial) -> Option<Command> {
        if partial.missing_bytes > 0 {
            self.state = State::Body(partial);
            return None;
        }
        if !partial.joined.is_empty() {
            partial.content.body = partial.joined.freeze();
        }
        Some(Command {
            method: partial.method,
            content: Some(partial.content),
        })
    }
}

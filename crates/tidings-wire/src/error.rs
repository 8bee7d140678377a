//! What a peer did wrong.

use std::{borrow::Cow, error::Error as StdError, fmt};

use crate::reply;

/// Bytes that are not AMQP 0-9-1, with the reply code to close the connection with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireError {
    code: u16,
    message: Cow<'static, str>,
    class_id: u16,
    method_id: u16,
}

impl WireError {
    /// An error with a code of [`reply`] and a text for the peer.
    pub fn new(code: u16, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
            class_id: 0,
            method_id: 0,
        }
    }

    pub(crate) fn frame(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(reply::FRAME_ERROR, message)
    }

    pub(crate) fn syntax(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(reply::SYNTAX_ERROR, message)
    }

    pub(crate) fn unexpected(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(reply::UNEXPECTED_FRAME, message)
    }

    pub(crate) fn within(mut self, class_id: u16, method_id: u16) -> Self {
        (self.class_id, self.method_id) = (class_id, method_id);
        self
    }

    /// The reply code: 501, 502, 505, 540.
    pub fn code(&self) -> u16 {
        self.code
    }

    /// What was wrong, without the code's name.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The class of the method that was wrong; 0 if it was not a method.
    pub fn class_id(&self) -> u16 {
        self.class_id
    }

    /// The method that was wrong; 0 if it was not a method.
    pub fn method_id(&self) -> u16 {
        self.method_id
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} - {}", reply::name(self.code), self.message)
    }
}

impl StdError for WireError {}

//! Why the broker refuses: AMQP's reply codes with the texts RabbitMQ's users know.

use std::fmt;

/// The reply codes the core can give. [`ReplyCode::is_hard`] tells a refusal that closes the whole
/// connection from one that closes only the channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum ReplyCode {
    /// 403: a reserved name, the default exchange, an exclusive consumer in the way.
    AccessRefused = 403,
    /// 404: no such exchange or queue.
    NotFound = 404,
    /// 405: the queue is exclusive to another connection.
    ResourceLocked = 405,
    /// 406: an argument that differs or is invalid, a queue in use, an unknown delivery tag.
    PreconditionFailed = 406,
    /// 504: the channel is not open.
    ChannelError = 504,
    /// 506: the store has no room for what the command would record.
    ResourceError = 506,
    /// 530: a consumer tag that is taken.
    NotAllowed = 530,
    /// 540: something AMQP has and this broker has not.
    NotImplemented = 540,
}

impl ReplyCode {
    /// The number on the wire.
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// Whether the refusal closes the connection rather than the channel.
    pub const fn is_hard(self) -> bool {
        self.code() >= 500
    }

    const fn name(self) -> &'static str {
        match self {
            Self::AccessRefused => "ACCESS_REFUSED",
            Self::NotFound => "NOT_FOUND",
            Self::ResourceLocked => "RESOURCE_LOCKED",
            Self::PreconditionFailed => "PRECONDITION_FAILED",
            Self::ChannelError => "CHANNEL_ERROR",
            Self::ResourceError => "RESOURCE_ERROR",
            Self::NotAllowed => "NOT_ALLOWED",
            Self::NotImplemented => "NOT_IMPLEMENTED",
        }
    }
}

/// A command that was not carried out. Nothing has changed, and no effect was emitted.
///
/// `text` is the reply text for the wire, in the words of RabbitMQ
/// (``NOT_FOUND - no queue 'q' in vhost '/'``), because people and programs look for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The reply code of the close method.
    pub code: ReplyCode,
    /// The whole reply text.
    pub text: String,
}

impl Refusal {
    pub(crate) fn new(code: ReplyCode, text: impl fmt::Display) -> Self {
        Self {
            code,
            text: format!("{} - {text}", code.name()),
        }
    }

    pub(crate) fn no_room() -> Self {
        Self::new(ReplyCode::ResourceError, "the broker's disk is full")
    }

    /// Whether the store had no room: the same command may be carried out later.
    pub fn is_no_room(&self) -> bool {
        self.code == ReplyCode::ResourceError
    }

    pub(crate) fn unknown_delivery(tag: u64) -> Self {
        Self::precondition(format_args!("unknown delivery tag {tag}"))
    }

    pub(crate) fn precondition(text: impl fmt::Display) -> Self {
        Self::new(ReplyCode::PreconditionFailed, text)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.code.code(), self.text)
    }
}

impl std::error::Error for Refusal {}

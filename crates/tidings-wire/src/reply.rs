//! Reply codes: how a return, a channel or a connection says why.

macro_rules! reply_codes {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        $($(#[$doc])* pub const $name: u16 = $code;)*

        /// The code's name as RabbitMQ writes it at the start of a reply text: `NOT_FOUND`.
        pub const fn name(code: u16) -> &'static str {
            match code {
                $($code => stringify!($name),)*
                _ => "UNKNOWN",
            }
        }
    };
}

reply_codes! {
    /// All is well.
    REPLY_SUCCESS = 200,
    /// The body was too large for now.
    CONTENT_TOO_LARGE = 311,
    /// A mandatory message had no queue to go to.
    NO_ROUTE = 312,
    /// An immediate message had no consumer.
    NO_CONSUMERS = 313,
    /// An operator closed the connection.
    CONNECTION_FORCED = 320,
    /// The virtual host is not known.
    INVALID_PATH = 402,
    /// Not with these credentials.
    ACCESS_REFUSED = 403,
    /// No such exchange, queue or virtual host.
    NOT_FOUND = 404,
    /// Another connection has it for itself.
    RESOURCE_LOCKED = 405,
    /// It exists but differs, or the state forbids the request.
    PRECONDITION_FAILED = 406,
    /// A frame that cannot be decoded.
    FRAME_ERROR = 501,
    /// A frame with illegal values in its fields.
    SYNTAX_ERROR = 502,
    /// A sequence of frames that makes no sense.
    COMMAND_INVALID = 503,
    /// A channel that was not opened, or was already.
    CHANNEL_ERROR = 504,
    /// A frame that was not expected, usually in the content of a message.
    UNEXPECTED_FRAME = 505,
    /// The server is out of something.
    RESOURCE_ERROR = 506,
    /// Something that is prohibited regardless of rights.
    NOT_ALLOWED = 530,
    /// Something the server does not do.
    NOT_IMPLEMENTED = 540,
    /// The server's own fault.
    INTERNAL_ERROR = 541,
}

/// True if this code closes the whole connection, false if only the channel.
pub const fn is_hard(code: u16) -> bool {
    matches!(code, CONNECTION_FORCED | INVALID_PATH | 500..)
}

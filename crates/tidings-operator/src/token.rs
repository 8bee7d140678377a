//! The secret that lets an operator in.

use std::{fmt, path::Path};

use subtle::ConstantTimeEq as _;

use crate::Error;

/// How long a token must be.
pub const TOKEN_BYTES_MIN: usize = 16;
/// How long one may be; it travels in a header.
const TOKEN_BYTES_MAX: usize = 1024;

/// A secret that both sides know. It is never printed, and compared in a time that does not depend on where it
/// differs.
#[derive(Clone)]
pub struct Token(Box<str>);

impl Token {
    /// A token of at least [`TOKEN_BYTES_MIN`] printable ASCII characters without spaces.
    ///
    /// # Errors
    ///
    /// When it is shorter, longer than a header may be, or has other characters.
    pub fn new(token: &str) -> Result<Self, Error> {
        let token = token.trim();
        if !(TOKEN_BYTES_MIN..=TOKEN_BYTES_MAX).contains(&token.len()) {
            return Err(Error::token(format!(
                "the operator token must have {TOKEN_BYTES_MIN} to {TOKEN_BYTES_MAX} characters; make one \
                 with `openssl rand -hex 32`"
            )));
        }
        if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(Error::token(
                "the operator token has characters that cannot travel in a header; make one with \
                 `openssl rand -hex 32`",
            ));
        }
        Ok(Self(token.into()))
    }

    /// The token in a file, without the white space around it.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or as [`new`](Self::new).
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let read = std::fs::read_to_string(path).map_err(|error| {
            let path = path.display();
            Error::token(format!(
                "the operator token cannot be read from `{path}`: {error}"
            ))
        });
        Self::new(&read?)
    }

    /// Whether `said` is it.
    pub(crate) fn is(&self, said: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(said).into()
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_long_enough_and_never_shown() {
        let check = |token: &str, expected: bool| {
            let made = Token::new(token);
            assert_eq!(made.is_ok(), expected, "{token}");
            let shown = format!("{made:?}");
            assert!(!shown.contains(token) || token.is_empty(), "{shown}");
        };
        check("", false);
        check("short", false);
        check("0123456789abcdef", true);
        check("0123456789abcdef with spaces", false);
        check("0123456789abcdefé", false);
        check(&"x".repeat(2000), false);
        let token = Token::new(" 0123456789abcdef\n").unwrap();
        assert!(token.is(b"0123456789abcdef"));
        assert!(!token.is(b"0123456789abcdeF"));
        assert!(!token.is(b"0123456789abcde"));
        assert!(!token.is(b""));
    }
}

//! What the adapters of message engines have in common: whether the engine is there ([`Standing`]), pauses between tries
//! ([`Backoff`]), the name that a program connects under, the parts of URLs, and what operators see of what services need
//! ([`Piece`]).

mod backoff;
mod piece;
mod standing;

pub use backoff::Backoff;
pub use piece::{Piece, PieceKind, PieceState};
pub use standing::{Standing, closed};

/// The name of this program's file, under which it connects unless it says another.
pub fn program_name() -> String {
    let program = std::env::current_exe().ok();
    let program = program.as_deref().and_then(|path| path.file_stem());
    program.map_or("tidings".into(), |name| name.to_string_lossy().into_owned())
}

/// The text without its percent-encoding; `None` if that is wrong, or what it stands for is not UTF-8.
pub fn decode_percent(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'%' {
            bytes.push(byte);
            rest = tail;
            continue;
        }
        let (hex, tail) = tail.split_at_checked(2)?;
        let digit = |at: usize| char::from(hex[at]).to_digit(16);
        bytes.push((digit(0)? * 16 + digit(1)?) as u8);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percent_encoding_is_undone_or_refused() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(decode_percent(text).as_deref(), expected, "{text}");
        };
        check("", Some(""));
        check("a%2Fb%3a", Some("a/b:"));
        check("m%C3%BCsli", Some("müsli"));
        check("100%25", Some("100%"));
        for wrong in ["%", "%2", "%2x", "%x2", "%FF", "%C3"] {
            check(wrong, None);
        }
    }

    #[test]
    fn a_program_is_called_as_its_file() {
        assert!(program_name().starts_with("tidings_adapter-"));
    }
}

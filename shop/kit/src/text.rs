//! Texts that a stranger wrote, made fit for a database, a header and a person.

/// `text` as one line of at most `bytes_max` bytes: control characters (a NUL, which PostgreSQL
/// does not store, among them) become spaces, and what was cut off is marked with `…`.
pub fn one_line(text: &str, bytes_max: usize) -> String {
    const CUT: char = '…';
    let mut line = String::with_capacity(text.len().min(bytes_max));
    for c in text.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if line.len() + c.len_utf8() > bytes_max {
            while line.len() + CUT.len_utf8() > bytes_max && line.pop().is_some() {}
            if line.len() + CUT.len_utf8() <= bytes_max {
                line.push(CUT);
            }
            break;
        }
        line.push(c);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strangers_text_becomes_one_short_line() {
        let check = |text: &str, bytes_max, expected| {
            let line = one_line(text, bytes_max);
            assert_eq!(line, expected);
            assert!(line.len() <= bytes_max);
        };
        check("no money", 8, "no money");
        check("no money", 7, "no m…");
        check("a\u{0}b\nc\u{85}d", 20, "a b c d");
        check("Grüße", 6, "Gr…");
        check("ééé", 6, "ééé");
        check("abcdef", 2, "");
        check("", 0, "");
    }
}

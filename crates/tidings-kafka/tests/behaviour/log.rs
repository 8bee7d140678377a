//! What the transport says: on stderr where `RUST_LOG` asks for it, and its errors to tests that look for them.

use std::{io::Write, sync::Once};

use parking_lot::Mutex;
use tracing_subscriber::{
    EnvFilter, Layer, filter::LevelFilter, fmt::layer, layer::SubscriberExt,
    util::SubscriberInitExt,
};

static ERRORS: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Errors;

impl Write for Errors {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        ERRORS.lock().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub(crate) fn begin() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let shown = layer().with_writer(std::io::stderr);
        let errors = layer().with_ansi(false).with_writer(|| Errors);
        tracing_subscriber::registry()
            .with(shown.with_filter(EnvFilter::from_default_env()))
            .with(errors.with_filter(LevelFilter::ERROR))
            .init();
    });
}

/// How many errors were told in which all of `words` are.
pub(crate) fn errors_with(words: &[&str]) -> usize {
    let errors = String::from_utf8_lossy(&ERRORS.lock()).into_owned();
    let has_all = |line: &&str| words.iter().all(|word| line.contains(word));
    errors.lines().filter(has_all).count()
}

//! What the transport says: on stderr where `RUST_LOG` asks for it, and to tests that look for it its warnings and errors, and
//! all that its receiving says.

use std::{io::Write, sync::Once};

use parking_lot::Mutex;
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{LevelFilter, Targets},
    fmt::layer,
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

static TOLD: Mutex<Vec<u8>> = Mutex::new(Vec::new());

struct Told;

impl Write for Told {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        TOLD.lock().extend(bytes);
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
        let told = layer().with_ansi(false).with_writer(|| Told);
        tracing_subscriber::registry()
            .with(shown.with_filter(EnvFilter::from_default_env()))
            .with(
                told.with_filter(
                    Targets::new()
                        .with_default(LevelFilter::WARN)
                        .with_target("tidings_kafka::polling", LevelFilter::DEBUG),
                ),
            )
            .init();
    });
}

/// How many lines were told in which all of `words` are.
pub(crate) fn told_with(words: &[&str]) -> usize {
    let told = String::from_utf8_lossy(&TOLD.lock()).into_owned();
    let has_all = |line: &&str| words.iter().all(|word| line.contains(word));
    told.lines().filter(has_all).count()
}

//! What the tests are made of: a queue of its own for each, and short words for what they do with it.

use std::sync::Once;

use tidings_aws::Aws;

/// A connection whose receives do not wait for long, so that none is left when a case ends.
pub(crate) async fn connect(url: &str) -> Aws {
    logs();
    credentials();
    let url = format!("{url}&wait=1&visibility=6&handover=1");
    Aws::connect(&url).await.expect("it connects")
}

/// An emulator takes any; without them, nobody asks it anything.
pub(crate) fn credentials() {
    // Read by the SDK whenever it is asked for some.
    assert!(
        std::env::var("AWS_ACCESS_KEY_ID").is_ok(),
        "set `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` to anything, or run `cargo xtask test`"
    );
}

/// What the transport says, where `RUST_LOG` asks for it.
pub(crate) fn logs() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            .init();
    });
}

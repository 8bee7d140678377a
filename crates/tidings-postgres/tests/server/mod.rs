//! The real server that these tests run on.

/// Where it is.
pub(crate) fn url() -> String {
    std::env::var("TIDINGS_TEST_POSTGRES_URL")
        .expect("set TIDINGS_TEST_POSTGRES_URL, or run `cargo xtask test`, which does")
}

/// A schema that nobody used before.
pub(crate) fn fresh_schema() -> String {
    format!("test_{}", uuid::Uuid::new_v4().simple())
}

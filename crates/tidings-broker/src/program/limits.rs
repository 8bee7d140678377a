//! The limits among the program's options: what one peer may have, and all of them together.

use clap::Args;

use crate::Limits;

const MEGABYTE: u64 = 1024 * 1024;

#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(super) struct LimitArguments {
    /// Megabytes that all connections together may hold in bodies that are not finished and
    /// transactions that are not committed; above it the one that has not grown for the longest time
    /// goes, with its connection.
    #[arg(long, value_name = "MB", default_value_t = Limits::default().pending_bytes_max / MEGABYTE)]
    pending_max: u64,

    /// The same for one connection; above it the transaction is refused, or the connection closed.
    #[arg(
        long,
        value_name = "MB",
        default_value_t = Limits::default().connection_pending_bytes_max / MEGABYTE
    )]
    connection_pending_max: u64,
}

impl LimitArguments {
    pub(super) fn limits(&self) -> Limits {
        Limits {
            pending_bytes_max: self.pending_max.saturating_mul(MEGABYTE),
            connection_pending_bytes_max: self.connection_pending_max.saturating_mul(MEGABYTE),
            ..Limits::default()
        }
    }
}

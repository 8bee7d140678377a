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

    /// Connections at once; a further one is refused.
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().connections_max)]
    connections_max: usize,

    /// Connections at once from one address.
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = Limits::default().connections_per_address_max
    )]
    connections_per_address_max: usize,

    /// Connections at once that have not logged in yet; above it the oldest of them is dropped.
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().handshakes_max)]
    handshakes_max: usize,

    /// The same from one address.
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = Limits::default().handshakes_per_address_max
    )]
    handshakes_per_address_max: usize,

    /// Wrong passwords from one address within a second; after them no login from there is looked
    /// at for a moment.
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = Limits::default().refused_logins_per_address_max
    )]
    refused_logins_per_address_max: usize,

    /// Channels of all connections together; a further one closes its connection.
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().channels_max)]
    channels_max: usize,

    /// Queues; a further one is refused. What the data folder has is kept.
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().queues_max)]
    queues_max: usize,

    /// Exchanges; a further one is refused.
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().exchanges_max)]
    exchanges_max: usize,

    /// Bindings; a further one is refused.
    #[arg(long, value_name = "COUNT", default_value_t = Limits::default().bindings_max)]
    bindings_max: usize,
}

impl LimitArguments {
    pub(super) fn limits(&self) -> Limits {
        Limits {
            pending_bytes_max: self.pending_max.saturating_mul(MEGABYTE),
            connection_pending_bytes_max: self.connection_pending_max.saturating_mul(MEGABYTE),
            connections_max: self.connections_max,
            connections_per_address_max: self.connections_per_address_max,
            handshakes_max: self.handshakes_max,
            handshakes_per_address_max: self.handshakes_per_address_max,
            refused_logins_per_address_max: self.refused_logins_per_address_max,
            channels_max: self.channels_max,
            queues_max: self.queues_max,
            exchanges_max: self.exchanges_max,
            bindings_max: self.bindings_max,
            ..Limits::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        limits: LimitArguments,
    }

    #[test]
    fn each_option_sets_its_limit_and_the_defaults_are_the_same_ones() {
        let none = Program::parse_from(["program"]).limits.limits();
        assert_eq!(format!("{none:?}"), format!("{:?}", Limits::default()));
        let limits = Program::parse_from([
            "program",
            "--pending-max=1",
            "--connection-pending-max=2",
            "--connections-max=3",
            "--connections-per-address-max=4",
            "--handshakes-max=5",
            "--handshakes-per-address-max=6",
            "--refused-logins-per-address-max=7",
            "--channels-max=8",
            "--queues-max=9",
            "--exchanges-max=10",
            "--bindings-max=11",
        ]);
        let limits = limits.limits.limits();
        let expected = Limits {
            pending_bytes_max: MEGABYTE,
            connection_pending_bytes_max: 2 * MEGABYTE,
            connections_max: 3,
            connections_per_address_max: 4,
            handshakes_max: 5,
            handshakes_per_address_max: 6,
            refused_logins_per_address_max: 7,
            channels_max: 8,
            queues_max: 9,
            exchanges_max: 10,
            bindings_max: 11,
            ..Limits::default()
        };
        assert_eq!(format!("{limits:?}"), format!("{expected:?}"));
    }
}

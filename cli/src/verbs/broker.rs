//! `tidings broker`: runs the broker in the box.

use tidings_broker::program::Arguments;

use crate::frame::{Ended, Frame};

/// Runs the broker in the box: a durable message broker that speaks AMQP 0-9-1 as RabbitMQ does.
///
/// What it confirms is on disk. Any AMQP 0-9-1 client connects unmodified.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    program: Arguments,
}

const EXAMPLES: &str = "\
Examples:
  tidings broker                                    on 127.0.0.1:5672, data in ./data/broker
  tidings broker --listen 127.0.0.1:0 --ephemeral   any free port, for a test
  tidings broker --listen 0.0.0.0:5672 --user shop:s3cret --data /var/lib/tidings

Stdout says `listening amqp ADDR` and then `ready`; logs go to stderr (RUST_LOG filters them).
Ctrl-C or SIGTERM stops it: connections are closed, the log is synced, the exit code is 0.";

impl Args {
    pub(crate) async fn run(self, _: &Frame) -> anyhow::Result<Ended> {
        self.program.init_logs();
        self.program.run().await?;
        Ok(Ended::Done)
    }
}

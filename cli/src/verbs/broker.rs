//! `tidings broker`: runs the broker in the box, and looks at its folder.

use tidings_broker::program::{self, Arguments};

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
  tidings broker check /var/lib/tidings             what is in the folder, and what is wrong with it
  tidings broker check /var/lib/tidings --json      the same for programs
  tidings broker salvage /var/lib/tidings --into /var/lib/tidings-salvaged

Stdout says `listening amqp ADDR` and then `ready`; logs go to stderr (RUST_LOG filters them).
Ctrl-C or SIGTERM stops it: connections are closed, the log is synced, the exit code is 0.";

impl Args {
    pub(crate) async fn run(self, _: &Frame) -> anyhow::Result<Ended> {
        self.program.init_logs();
        Ok(match self.program.run().await? {
            program::Ended::Done => Ended::Done,
            program::Ended::Problem => Ended::Problem,
        })
    }
}

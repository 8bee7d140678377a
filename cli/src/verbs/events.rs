//! `tidings events`: what services say to each other, and have said.

use crate::frame::{Ended, Frame};

/// What services say to each other, and have said.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Events,
}

const EXAMPLES: &str = "\
Examples:
  tidings events map shop.json billing.json
  tidings events replay --service orders --to loyalty.order-confirmed.v1
  tidings events replays --service orders                    how far replays are
  tidings events tail --topic order_events";

verbs! { Events:
    map => Map,
    replay => Replay,
    replays => Replays,
    tail => Tail,
}

#[cfg(feature = "contracts")]
pub(in crate::verbs) use tail::topics;

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        self.verb.run(frame).await
    }
}

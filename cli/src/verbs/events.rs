//! `tidings events`: what services say to each other, and have said.

use crate::frame::{Ended, Frame};

/// What services say to each other, and have said.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Events,
}

verbs! { Events:
    map => Map,
    replay => Replay,
    replays => Replays,
}

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        self.verb.run(frame).await
    }
}

//! `tidings events`: what services say to each other.

use crate::frame::{Ended, Frame};

/// What services say to each other.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Events,
}

verbs! { Events:
    map => Map,
}

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        self.verb.run(frame).await
    }
}

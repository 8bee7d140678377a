//! `tidings completions`: what a shell completes after `tidings`.

use clap::CommandFactory as _;
use clap_complete::{Shell, generate};

use crate::{
    Cli,
    frame::{Ended, Frame},
};

/// Prints a script that completes `tidings` in your shell.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Which shell.
    #[arg(value_enum)]
    shell: Shell,
}

const EXAMPLES: &str = "\
Examples:
  tidings completions bash > /etc/bash_completion.d/tidings
  tidings completions zsh > ~/.zfunc/_tidings
  tidings completions fish > ~/.config/fish/completions/tidings.fish";

impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        let mut script = Vec::new();
        generate(self.shell, &mut Cli::command(), "tidings", &mut script);
        frame.out.bytes(&script)?;
        Ok(Ended::Done)
    }
}

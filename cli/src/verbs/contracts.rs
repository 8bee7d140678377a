//! `tidings contracts`: whether services understand each other, and whom a change breaks.

#[cfg(feature = "contracts")]
pub(super) mod files;
#[cfg(feature = "contracts")]
mod http;
#[cfg(feature = "contracts")]
mod pact_broker;
#[cfg(feature = "contracts")]
mod registry;

use crate::frame::{Ended, Frame};

/// Whether services understand each other, and whom a change breaks.
///
/// Works on AsyncAPI 3 documents, in JSON or YAML, of programs in any language; only `listen` needs a
/// broker, and none a database. `publish` and `verify` also speak with a Pact broker, `register` and `check` with a
/// schema registry.
#[cfg(feature = "contracts")]
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Contracts,
}

#[cfg(feature = "contracts")]
const EXAMPLES: &str = "\
Examples:
  tidings contracts check asyncapi/                           do these services understand each other?
  tidings contracts check asyncapi/ --baseline published/     whom does a change break?
  tidings contracts record asyncapi/ --into published/        after a release
  tidings contracts export published/ --to catalogue/         pages about all messages
  tidings contracts verify pacts/ --provider asyncapi/orders.json
  tidings contracts publish pacts/ --to https://pacts.example.org --version 1.4.0
  tidings contracts register published/ --to http://registry:8081
  tidings contracts listen order_events --document asyncapi/  is what flows as the documents say?";

#[cfg(feature = "contracts")]
verbs! { Contracts:
    check => Check,
    export => Export,
    listen => Listen,
    publish => Publish,
    record => Record,
    register => Register,
    verify => Verify,
}

#[cfg(feature = "contracts")]
impl Args {
    pub(crate) async fn run(self, frame: &Frame) -> anyhow::Result<Ended> {
        self.verb.run(frame).await
    }
}

#[cfg(not(feature = "contracts"))]
const EXAMPLES: &str = "\
Examples:
  tidings contracts check asyncapi/ --baseline published/     in a build with `--features contracts`";

/// Whether services understand each other, and whom a change breaks (built with `--features contracts`)
#[cfg(not(feature = "contracts"))]
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Whatever was asked for: this build can do none of it
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    _asked: Vec<String>,
}

#[cfg(not(feature = "contracts"))]
impl Args {
    pub(crate) async fn run(self, _: &Frame) -> anyhow::Result<Ended> {
        anyhow::bail!(crate::frame::Usage::new(
            "this build of `tidings` cannot work with contracts; build it with `--features contracts`"
        ))
    }
}

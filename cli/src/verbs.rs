//! The verbs of the command. Each is a file here that has `Args`, which clap reads, with
//! `async fn run(self, frame: &Frame) -> anyhow::Result<Ended>`; and a line below.

/// Declares verbs: for each its module (a file), its name in Rust, and nothing else. A verb that
/// consists of others (`events map`) uses this in its own file again.
macro_rules! verbs {
    ($(#[$about:meta])* $name:ident: $($module:ident => $variant:ident,)+) => {
        $(mod $module;)+

        $(#[$about])*
        #[derive(Debug, clap::Subcommand)]
        pub(crate) enum $name {
            $($variant($module::Args),)+
        }

        impl $name {
            /// Does what the command line says.
            pub(crate) async fn run(
                self,
                frame: &$crate::frame::Frame,
            ) -> anyhow::Result<$crate::frame::Ended> {
                match self {
                    $(Self::$variant(args) => Box::pin(args.run(frame)).await,)+
                }
            }
        }
    };
}

verbs! { Verb:
    broker => Broker,
    completions => Completions,
    consumers => Consumers,
    contracts => Contracts,
    dead_letters => DeadLetters,
    deferred => Deferred,
    doctor => Doctor,
    events => Events,
    explain => Explain,
    r#move => Move,
    outbox => Outbox,
    sagas => Sagas,
    schedules => Schedules,
    topology => Topology,
}

//! The codes of what the command finds and of what it cannot do. Each has a page in `docs/errors`.

use std::fmt;

/// A code that starts with `TDG-9`: other crates have other thousands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// A service's database cannot be used.
    Database,
    /// The broker cannot be reached.
    Broker,
    /// Messages in an outbox are not sent.
    OutboxOld,
    /// Messages in an outbox are held.
    Held,
    /// Messages in an outbox were set aside.
    SetAside,
    /// Sagas are stuck.
    Stuck,
    /// A consumer is paused.
    Paused,
    /// There are dead letters.
    DeadLetters,
    /// Many messages wait at a consumer.
    Deferred,
    /// No service carried out what an operator asked for.
    NobodyOperates,
    /// Nobody receives from the queue of a consumer.
    NobodyReceives,
    /// Something that services need is not on the broker.
    MissingOnBroker,
    /// Messages are in the queue of a handler that is gone.
    HandlerGone,
    /// Something on the broker is not as services need it.
    DiffersOnBroker,
    /// Something of a handler that is gone is not removed.
    NotPruned,
    /// A file is not an event map.
    EventMapFile,
    /// Something may be wrong with the event map.
    EventMapFinding,
    /// Topics cannot be watched.
    Tail,
    /// Messages were not moved to another broker.
    NotMoved,
    /// A file is no contract, or none can be made.
    #[cfg(feature = "contracts")]
    ContractFile,
    /// Something is wrong with contracts.
    #[cfg(feature = "contracts")]
    ContractFinding,
    /// A provider does not keep a pact.
    #[cfg(feature = "contracts")]
    PactBroken,
    /// A Pact broker cannot be used.
    #[cfg(feature = "contracts")]
    PactBroker,
    /// A schema registry cannot be used.
    #[cfg(feature = "contracts")]
    SchemaRegistry,
}

impl Code {
    /// As it is written.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Code::Database => "TDG-9001",
            Code::Broker => "TDG-9002",
            Code::OutboxOld => "TDG-9003",
            Code::Held => "TDG-9004",
            Code::SetAside => "TDG-9005",
            Code::Stuck => "TDG-9006",
            Code::Paused => "TDG-9007",
            Code::DeadLetters => "TDG-9008",
            Code::Deferred => "TDG-9009",
            Code::NobodyOperates => "TDG-9010",
            Code::NobodyReceives => "TDG-9011",
            Code::MissingOnBroker => "TDG-9030",
            Code::HandlerGone => "TDG-9031",
            Code::DiffersOnBroker => "TDG-9032",
            Code::NotPruned => "TDG-9033",
            Code::EventMapFile => "TDG-9040",
            Code::EventMapFinding => "TDG-9041",
            Code::Tail => "TDG-9050",
            Code::NotMoved => "TDG-9060",
            #[cfg(feature = "contracts")]
            Code::ContractFile => "TDG-9070",
            #[cfg(feature = "contracts")]
            Code::ContractFinding => "TDG-9071",
            #[cfg(feature = "contracts")]
            Code::PactBroken => "TDG-9072",
            #[cfg(feature = "contracts")]
            Code::PactBroker => "TDG-9073",
            #[cfg(feature = "contracts")]
            Code::SchemaRegistry => "TDG-9074",
        }
    }

    /// An error with this code at its end.
    pub(crate) fn of(self, error: impl fmt::Display) -> anyhow::Error {
        anyhow::anyhow!("{error} ({self})")
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

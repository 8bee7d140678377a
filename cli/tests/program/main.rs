//! The program `tidings`, run as an operator runs it: on real databases, on a real broker, beside
//! services that run or do not run.

mod at;
#[cfg(feature = "contracts")]
mod contracts;
mod dead_letters;
mod doctor;
mod events_map;
mod explain;
#[cfg(feature = "contracts")]
mod guide;
#[cfg(feature = "contracts")]
mod listen;
mod moving;
#[cfg(feature = "contracts")]
mod pact_broker;
#[cfg(feature = "contracts")]
mod registry;
mod replay;
mod run;
mod sagas;
mod sensitive;
mod surroundings;
mod tail;
mod topology;
mod waiting;
mod world;

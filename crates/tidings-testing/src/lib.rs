//! What tests of services need: a world in the process ([`TestWorld`]), one conformance suite for
//! each port, real servers to take away and bring back, and programs in other languages.
//!
//! It is a dev-dependency only: nothing that ships depends on it.

pub mod foreign;
pub mod servers;
pub mod store;
pub mod transport;
#[cfg(feature = "world")]
mod world;

#[cfg(feature = "world")]
pub use world::{CrashPoint, Kept, Maker, Start, TestWorld, run_test};

//! TBD.

pub mod foreign;
pub mod servers;
pub mod store;
pub mod transport;

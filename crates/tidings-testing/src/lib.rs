//! TBD.

pub mod foreign;
pub mod servers;

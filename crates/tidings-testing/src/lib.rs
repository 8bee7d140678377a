//! TBD.

pub mod servers;

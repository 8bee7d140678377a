//! The shop.

fn main() {}

//! Placeholder until the router lands.
fn main() {}

//! A worker to be killed.
fn main() {}

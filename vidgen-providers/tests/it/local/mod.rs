//! The local provider with the real tools; without them these tests fail, as they prove nothing.

mod cleanup;
mod compose;
mod conformance;
mod corpus;
mod image;
mod kit;
mod speech;
mod video;

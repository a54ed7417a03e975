//! Core's own tests of its public face: the whole machine in process, and the in-process backends
//! held to the rules.

mod pipeline;
mod provider;
mod queue;

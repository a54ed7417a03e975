//! Core's own tests of its public face: the in-process backends, held to the rules.

mod queue;

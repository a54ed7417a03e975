//! The integration tests of vidgen-core, in one binary.

mod pipeline;

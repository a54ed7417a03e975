//! The integration tests of the whole project, in one binary.

mod crash_memory;

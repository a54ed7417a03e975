//! The proof that anybody can write a backend: a store, a notifier, a provider and a queue that
//! know of vidgen-core what any crate can know, held to the rules by the macros that any crate can
//! call. What cannot be built from outside would not compile here.

mod notifier;
mod provider;
mod queue;
mod store;

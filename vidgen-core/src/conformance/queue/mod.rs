//! The rules of [`Queue`](crate::Queue). Each function is one rule's test, named after the rule's
//! number in the trait's contract; [`queue_conformance!`](crate::queue_conformance) runs them all.

mod bench;
mod claims;

pub use bench::{Backend, Bench, check, start};
pub use claims::*;

/// Holds a queue to every rule: a module of one `#[test]` for each.
///
/// The second argument is a closure that takes a [`ManualClock`](crate::clock::ManualClock), which
/// the queue must ask for every moment and duration, and gives a future of a fresh, empty queue, or
/// of a [`Backend`](crate::conformance::queue::Backend) with a second handle on the same state.
///
/// ```
/// use vidgen_core::memory::MemoryQueue;
///
/// vidgen_core::queue_conformance!(memory, |clock| async move { MemoryQueue::with_clock(clock) });
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! queue_conformance {
    ($name:ident, $open:expr) => {
        $crate::queue_rules!($name, $open);
    };
}

macro_rules! rules {
    ($d:tt $($rule:ident)*) => {
        /// Every rule there is a test for.
        pub const RULES: &[&str] = &[$(stringify!($rule)),*];

        /// See [`queue_conformance!`].
        #[doc(hidden)]
        #[macro_export]
        macro_rules! queue_rules {
            ($d name:ident, $d open:expr) => {
                mod $d name {
                    #[allow(unused_imports, reason = "the closure may need what is in scope around it")]
                    use super::*;
                    $(
                        #[test]
                        fn $rule() {
                            let name = concat!(stringify!($d name), "::", stringify!($rule));
                            $crate::conformance::queue::check(name, $d open, $crate::conformance::queue::$rule);
                        }
                    )*
                }
            };
        }
    };
}

rules! { $
    q1_a_claim_is_exclusive
    q1_the_epoch_only_grows
    q1_a_restart_under_the_same_name_frees_the_orphans
    q2_a_stale_claim_cannot_checkpoint
    q2_a_stale_claim_cannot_release
    q2_a_stale_claim_cannot_settle
    q2_the_same_epoch_of_another_worker_is_refused
    q2_a_repeated_settle_is_already
    q2_another_end_by_the_same_claim_is_stale
    q2_a_repeated_release_is_already
    q2_a_repeated_checkpoint_is_already
    q2_random_interleavings_accept_no_stale_write
}

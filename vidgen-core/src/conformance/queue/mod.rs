//! The rules of [`Queue`](crate::Queue). Each function is one rule's test, named after the rule's
//! number in the trait's contract; [`queue_conformance!`](crate::queue_conformance) runs them all.

mod atomic;
mod bench;
mod claims;
mod leases;
mod waits;

pub use atomic::*;
pub use bench::{Backend, Bench, check, start};
pub use claims::*;
pub use leases::*;
pub use waits::*;

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
    q3_a_refused_create_leaves_nothing
    q3_a_job_id_is_created_once
    q3_a_settle_moves_everything_together
    q3_a_second_handle_sees_what_the_first_wrote
    q3_stats_count_what_is_live
    q3_cancel_ends_a_queued_job_at_once
    q3_cancel_flags_a_running_job
    q3_cancel_and_settle_have_one_winner
    q4_beats_keep_the_claims
    q4_a_lost_claim_reply_is_handed_back
    q4_a_young_claim_is_no_stray
    q4_a_beat_names_lost_claims
    q4_a_beat_tells_of_cancels_and_wakes
    q5_an_unknown_worker_claims_nothing
    q5_a_reaped_worker_can_do_nothing
    q6_a_dead_workers_jobs_are_rescued
    q6_crashes_are_counted_apart_from_attempts
    q6_a_deregistered_workers_jobs_are_free_at_once
    q6_rescue_never_overwrites_an_end
    q6_rescue_takes_from_the_dead_alone
    q7_a_jump_of_the_wall_clock_changes_nothing
    q7_a_delayed_job_does_not_run_early
    q7_a_release_waits_and_counts_as_it_says
    q7_a_wake_makes_a_waiting_job_ready
    q8_rescue_is_bounded
    q8_a_claim_is_bounded
    q9_ready_wakes_a_claimer
    q9_signalled_wakes_a_worker
    q9_work_is_found_without_hints
    q9_a_watch_answers_a_newer_version
    q9_a_watch_ends_with_its_patience
    q12_the_store_stamps_intents_and_acceptances
}

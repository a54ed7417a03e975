//! The rules of [`Queue`](crate::Queue). Each function is one rule's test, named after the rule's
//! number in the trait's contract; [`queue_conformance!`](crate::queue_conformance) runs them all.

mod atomic;
mod bench;
mod claims;
mod jobs;
mod keys;
mod leases;
mod model;
mod money;
mod order;
mod outbox;
mod retention;
mod waits;
mod witnesses;

pub use atomic::*;
pub use bench::{Backend, Bench, check, start};
pub use claims::*;
pub use jobs::*;
pub use keys::*;
pub use leases::*;
pub use model::*;
pub use money::*;
pub use order::*;
pub use outbox::*;
pub use retention::*;
pub use waits::*;
pub use witnesses::*;

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
    q2_an_older_claim_of_the_same_worker_is_stale
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
    q3_cancel_leaves_an_open_submission_to_a_worker
    q3_cancel_flags_a_running_job
    q3_cancel_and_settle_have_one_winner
    q3_random_histories_match_the_model
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
    q7_a_release_makes_no_canceled_job_wait
    q7_a_wake_makes_a_waiting_job_ready
    q8_rescue_is_bounded
    q8_a_claim_is_bounded
    q9_ready_wakes_a_claimer
    q9_signalled_wakes_a_worker
    q9_work_is_found_without_hints
    q9_a_watch_answers_a_newer_version
    q9_a_watch_ends_with_its_patience
    q10_first_in_first_out_within_a_tenant
    q10_parked_jobs_keep_their_order
    q10_priority_goes_first
    q10_a_flood_starves_nobody
    q10_weights_share_the_workers
    q10_a_tenant_has_so_many_active_jobs
    q10_a_hand_back_keeps_its_turn
    q10_a_rescued_job_keeps_its_turn
    q10_a_paused_queue_hands_out_nothing
    q10_counters_never_drift
    q11_the_same_key_is_the_same_job
    q11_a_replay_is_no_new_job_to_limits
    q11_another_hash_is_a_conflict
    q11_keys_belong_to_a_tenant
    q11_racing_creates_make_one_job
    q11_a_key_outlives_its_job
    q11_a_key_lives_for_a_day
    q12_the_store_stamps_intents_and_acceptances
    q13_a_step_never_goes_back
    q13_records_stand_in_the_order_of_the_plan
    q13_progress_never_falls
    q13_the_version_counts_visible_changes
    q14_creates_are_limited_by_window
    q14_live_jobs_are_limited
    q14_racing_creates_keep_the_budget
    q14_the_budget_counts_what_was_spent
    q14_a_budget_starts_anew_with_its_window
    q15_another_tenants_job_is_not_found
    q15_a_list_is_the_tenants_own_newest_first
    q16_a_hold_lasts_until_the_end
    q16_a_cost_is_recorded_once
    q16_an_overrun_is_recorded_in_full
    q16_a_failed_job_is_free
    q16_a_retry_goes_on_from_what_was_done
    q16_a_canceled_job_can_be_retried
    q16_a_retry_is_refused_where_it_could_buy_twice
    q16_a_doubt_that_a_callback_cleared_is_retried
    q16_a_doubt_keeps_its_hold
    q16_a_doubt_is_resolved_once
    q16_usage_adds_up_by_day_and_step
    q16_the_ledger_outlives_its_job
    q17_an_event_is_delivered_as_it_was_written
    q17_an_event_is_inserted_once_by_its_id
    q17_a_failed_delivery_is_due_again_later
    q17_a_returned_delivery_counts_no_attempt
    q17_a_given_up_delivery_stays_so
    q17_a_delivery_is_fenced_like_a_claim
    q17_a_delivery_is_claimed_once
    q17_an_endpoint_has_few_deliveries_at_once
    q17_a_hung_endpoint_delays_no_other
    q17_a_dead_couriers_deliveries_are_rescued
    q17_an_event_can_be_told_again
    q17_the_log_is_newest_first
    q17_an_event_outlives_its_job
    q18_jobs_are_kept_for_their_time
    q18_jobs_are_kept_up_to_a_count
    q18_what_is_still_needed_is_kept
    q18_ledger_and_keys_are_kept
    q18_forgetting_is_bounded
    q19_a_witness_is_kept_and_wakes_its_job
    q19_the_last_witness_of_a_submission_counts
    q19_a_witness_of_an_end_stays
    q19_a_late_witness_changes_nothing_else
}

//! The rules of [`Provider`](crate::Provider), and what a backend brings to be held to them.
//!
//! The kit speaks no protocol. A [`Fixture`] does: for each [`Scene`] it sets up a remote that plays
//! it (a scripted server, recorded exchanges) and answers a [`Stage`], which is a client of that
//! remote and what the remote saw.

mod runs;
mod stage;
mod submits;

pub use runs::*;
pub use stage::*;
pub use submits::*;

/// Makes one test of every rule, each on scenes that `fixture`, a
/// [`Fixture`](crate::conformance::provider::Fixture), sets up.
///
/// A rule that this provider cannot keep at all is named with its reason:
///
/// ```text
/// vidgen_core::provider_conformance!(acme, Recorded::new(), except: [("p12", "it takes neither key nor reference")]);
/// ```
#[macro_export]
macro_rules! provider_conformance {
    ($name:ident, $fixture:expr) => {
        $crate::provider_conformance!($name, $fixture, except: []);
    };
    ($name:ident, $fixture:expr, except: [$($exemption:expr),* $(,)?]) => {
        mod $name {
            #[allow(unused_imports, reason = "a fixture may need nothing of its surroundings")]
            use super::*;

            $crate::provider_conformance!(@rules $name, $fixture, [$($exemption),*],
                p1_a_handle_survives_json_and_a_new_client
                p2_secrets_are_in_neither_handle_nor_debug_nor_errors
                p3_terminal_stays_terminal
                p4_an_unknown_state_is_running
                p5_a_rate_limit_carries_its_retry_after
                p6_a_bad_key_is_unauthorized_and_never_retried
                p7_a_garbled_answer_to_a_read_is_protocol
                p8_a_lost_answer_is_outcome_unknown_and_one_request
                p9_cancel_after_the_end_is_too_late
                p10_what_is_not_declared_is_unsupported_without_a_call
                p11_an_unknown_handle_is_not_found
                p12_the_submission_id_goes_out_with_every_submit
                p13_find_never_says_absent_of_what_may_be_there
                p14_a_truncated_or_oversized_output_is_never_a_short_file
                p15_the_cost_is_the_remotes_or_none
                p16_only_a_genuine_callback_is_believed
            );
        }
    };
    (@rules $name:ident, $fixture:expr, $exemptions:expr, $($rule:ident)*) => {
        #[test]
        pub(super) fn exemptions_are_from_rules() {
            $crate::conformance::assert_exemptions(stringify!($name), &[$(stringify!($rule)),*], &$exemptions);
        }
        $(
            #[test]
            fn $rule() {
                let exemptions: &[(&str, &str)] = &$exemptions;
                let number = stringify!($rule).split('_').next().unwrap_or_default();
                if $crate::conformance::is_exempt(stringify!($name), number, exemptions) {
                    return;
                }
                $crate::conformance::block_on(async {
                    let fixture = $fixture;
                    $crate::conformance::provider::$rule(&fixture).await;
                });
            }
        )*
    };
}

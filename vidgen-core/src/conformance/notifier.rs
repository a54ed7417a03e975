//! The rules of [`Notifier`].

#![allow(clippy::print_stdout, reason = "what is not checked is not passed over in silence")]

use std::time::Duration;

use crate::error::ErrorKind;
use crate::job::JobId;
use crate::notifier::{Delivery, EventId, Notifier};
use crate::queue::WorkerId;
use crate::tenant::TenantId;

/// Makes one test of every rule, each on the [`Bench`] that `factory` yields.
///
/// ```text
/// vidgen_core::notifier_conformance!(webhooks, async { Receivers::start().await });
/// ```
///
/// A rule that a notifier cannot keep at all is named with its reason, as
/// `except: [("n3", "it tells one after the other")]`.
#[macro_export]
macro_rules! notifier_conformance {
    ($name:ident, $factory:expr) => {
        $crate::notifier_conformance!($name, $factory, except: []);
    };
    ($name:ident, $factory:expr, except: [$($exemption:expr),* $(,)?]) => {
        mod $name {
            #[allow(unused_imports, reason = "a factory may need nothing of its surroundings")]
            use super::*;

            $crate::notifier_conformance!(@rules $name, $factory, [$($exemption),*],
                n1_a_retry_repeats_the_id_and_the_bytes
                n2_a_failure_is_an_error_with_a_verdict
                n3_a_slow_receiver_stalls_nobody_else
                n4_an_endpoint_that_cannot_be_told_is_refused
            );
        }
    };
    (@rules $name:ident, $factory:expr, $exemptions:expr, $($rule:ident)*) => {
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
                    let bench = $factory.await;
                    $crate::conformance::notifier::$rule(&bench).await;
                });
            }
        )*
    };
}

/// A notifier with receivers around it that the kit can arrange and ask.
pub trait Bench: Send + Sync {
    /// The notifier.
    fn notifier(&self) -> &dyn Notifier;

    /// Arranges a receiver for the next delivery and answers its endpoint; `None` if this notifier
    /// cannot meet such a one.
    fn arrange(&self, scene: Scene) -> Option<String>;

    /// What receivers got so far, in order: the event id and the body.
    fn received(&self) -> Vec<(String, String)>;

    /// Endpoints that could never be told.
    fn impossible(&self) -> Vec<String>;
}

/// How a receiver behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scene {
    /// It takes what it is told.
    Takes,
    /// It reads it, and fails.
    Fails,
    /// It does not want to be told anything ever again.
    Gone,
    /// It is not there.
    Away,
    /// It never answers.
    Hangs,
}

/// How long a notifier may spend on a receiver that never answers.
const PATIENCE: Duration = Duration::from_secs(20);

/// N1.
pub async fn n1_a_retry_repeats_the_id_and_the_bytes(bench: &dyn Bench) {
    let endpoint = bench.arrange(Scene::Fails).unwrap();
    let delivery = delivery(endpoint, 1);
    bench.notifier().notify(&delivery).await.unwrap_err();
    let retry = Delivery {
        endpoint: bench.arrange(Scene::Takes).unwrap(),
        attempt: 2,
        worker: WorkerId::new(),
        epoch: 2,
        ..delivery.clone()
    };
    bench.notifier().notify(&retry).await.unwrap();
    let told = (delivery.id.to_string(), delivery.body);
    assert_eq!(bench.received(), [told.clone(), told]);
}

/// N2.
pub async fn n2_a_failure_is_an_error_with_a_verdict(bench: &dyn Bench) {
    for scene in [Scene::Fails, Scene::Gone, Scene::Away, Scene::Hangs] {
        let Some(endpoint) = bench.arrange(scene) else {
            println!("n2: no receiver here is {scene:?}");
            continue;
        };
        let error = bench.notifier().notify(&delivery(endpoint.clone(), 1)).await.unwrap_err();
        let final_verdict = [ErrorKind::Invalid, ErrorKind::Refused, ErrorKind::NotFound, ErrorKind::Unauthorized]
            .contains(&error.kind());
        assert_eq!(final_verdict, scene == Scene::Gone, "{scene:?}: {error:?}");
        assert!(!format!("{error:?} {error}").contains(&endpoint), "{scene:?}: the error tells the endpoint");
    }
    let error = bench.notifier().notify(&delivery("\0 not an endpoint".into(), 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
}

/// N3.
pub async fn n3_a_slow_receiver_stalls_nobody_else(bench: &dyn Bench) {
    let Some(slow) = bench.arrange(Scene::Hangs) else {
        println!("n3: no receiver here hangs");
        return;
    };
    let slow = delivery(slow, 1);
    let good = delivery(bench.arrange(Scene::Takes).unwrap(), 1);
    let mut hung = bench.notifier().notify(&slow);
    for _ in 0..10 {
        // Biased, so that the hung call is under way before each of the good ones.
        tokio::select! {
            biased;
            ended = &mut hung => panic!("it gave up before a healthy receiver was told: {ended:?}"),
            told = bench.notifier().notify(&good) => told.unwrap(),
        }
    }
    let ended = tokio::time::timeout(PATIENCE, hung).await;
    assert!(ended.is_ok_and(|verdict| verdict.is_err()), "a receiver that never answers was waited for, or believed");
}

/// N4.
pub async fn n4_an_endpoint_that_cannot_be_told_is_refused(bench: &dyn Bench) {
    let good = bench.arrange(Scene::Takes).unwrap();
    bench.notifier().accepts(&good).unwrap();
    for endpoint in bench.impossible() {
        match bench.notifier().accepts(&endpoint) {
            Ok(()) => panic!("{endpoint:?} was accepted"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Invalid, "{endpoint:?}: {error}"),
        }
    }
    assert!(bench.received().is_empty(), "a call was made");
}

/// Some delivery to `endpoint`.
#[must_use]
pub fn delivery(endpoint: String, attempt: u32) -> Delivery {
    Delivery {
        id: EventId::new(),
        kind: "job.completed".into(),
        job: JobId::new(),
        tenant: TenantId::single(),
        endpoint,
        body: r#"{"type":"job.completed","data":{"a":1, "ü":"é"}}"#.into(),
        attempt,
        worker: WorkerId::new(),
        epoch: 1,
    }
}

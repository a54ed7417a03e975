//! The scripted provider, held to the rules; and the rules, held to their word: each of them is
//! broken on purpose, and that rule alone has to see it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use serde_json::Map;
use vidgen_core::conformance::provider::{self as kit, Call, Fixture, Impossible, Stage};
use vidgen_core::memory::{Scene, ScriptedProvider};
use vidgen_core::*;

const PROMPT: &str = "a prompt that is nobody else's business";
const RETRY_AFTER: Duration = Duration::from_secs(17);
const COST: Usd = Usd::from_cents(7);
const OUTPUT: &[u8] = b"\x89PNG\r\n\x1a\nan output of more than a few bytes";

/// Sets the scripted provider up.
struct Scripted {
    studio: fn() -> ScriptedProvider,
}

fn studio() -> ScriptedProvider {
    ScriptedProvider::new("studio")
}

fn keyed() -> ScriptedProvider {
    studio().with_resubmit(Resubmit::Keyed(Duration::from_secs(3600)))
}

fn plain() -> ScriptedProvider {
    studio().without_find().without_cancel()
}

/// What the scripted provider plays for a scene of the kit.
fn script(scene: kit::Scene) -> Result<Scene, Impossible> {
    let fails = |kind| Scene::Fails(RunFailure::new(kind, "the scene says so"));
    Ok(match scene {
        kit::Scene::Accepts | kit::Scene::Running | kit::Scene::CancelOk => Scene::RunsForever,
        kit::Scene::Succeeds => Scene::Succeeds { after_polls: 2 },
        kit::Scene::StatesCost => Scene::Bills(COST),
        kit::Scene::Fails => fails(ErrorKind::Unavailable),
        kit::Scene::Refuses => Scene::Rejects(ErrorKind::Refused),
        kit::Scene::RateLimits => Scene::RateLimits(RETRY_AFTER),
        kit::Scene::RateLimitsLooks => Scene::RateLimitsPolls(RETRY_AFTER),
        // The key is revoked as well.
        kit::Scene::BadKey => Scene::Rejects(ErrorKind::Unauthorized),
        kit::Scene::Unreachable => Scene::Rejects(ErrorKind::NotSent),
        kit::Scene::Garbled => Scene::Garbles,
        kit::Scene::ResetsAfterAccepting => Scene::LosesAnswer,
        kit::Scene::Hangs => Scene::Hangs,
        kit::Scene::UnknownState => Scene::UnknownState,
        kit::Scene::UnknownHandle => Scene::Vanishes,
        kit::Scene::CancelLate => Scene::EndsAtOnce,
        kit::Scene::OutputExpired => Scene::Expires,
        kit::Scene::TruncatedOutput => Scene::Truncates { times: 1 },
        kit::Scene::OversizedOutput => Scene::Overruns,
        kit::Scene::StalledOutput => Scene::Stalls,
        other => return Err(Impossible::because(format!("in process there are no bytes to be {other:?}"))),
    })
}

fn task() -> Task {
    let size = Size { width: 64, height: 64 };
    let image = ImageTask { prompt: PROMPT.into(), negative_prompt: None, style: None, size, seed: None };
    Task { model: ModelId::from("scripted/image"), spec: TaskSpec::Image(image), extra: Map::new() }
}

/// A stage on which `client` makes clients of `studio`.
fn set<P: Provider>(studio: &ScriptedProvider, client: impl Fn() -> P + Send + Sync + 'static) -> Stage {
    let remote = studio.clone();
    let calls = move || {
        let submits = remote.requests();
        let others = remote.calls() - submits.len();
        let submits = submits.into_iter().map(|id| Call::submit(id.as_str()));
        submits.chain((0..others).map(|_| Call::other(""))).collect()
    };
    Stage::new(task(), client, calls)
        .with_secrets([PROMPT, studio.secret()])
        .with_handle(Handle::new(studio.id(), "run-999"))
        .with_retry_after(RETRY_AFTER)
        .with_output(OUTPUT)
}

impl Scripted {
    fn remote(&self, scene: kit::Scene) -> Result<ScriptedProvider, Impossible> {
        let studio = (self.studio)();
        studio.always(Some(script(scene)?));
        if scene == kit::Scene::BadKey {
            studio.revoke_key();
        }
        studio.makes(StepKind::Image, Bytes::from_static(OUTPUT));
        Ok(studio)
    }
}

#[async_trait]
impl Fixture for Scripted {
    async fn stage(&self, scene: kit::Scene) -> Result<Stage, Impossible> {
        let remote = self.remote(scene)?;
        let stage = set(&remote, {
            let remote = remote.clone();
            move || remote.clone()
        });
        Ok(if scene == kit::Scene::StatesCost { stage.with_cost(COST) } else { stage })
    }
}

vidgen_core::provider_conformance!(scripted, Scripted { studio });
vidgen_core::provider_conformance!(scripted_with_keys, Scripted { studio: keyed });
vidgen_core::provider_conformance!(scripted_without_anything, Scripted { studio: plain });

#[test]
#[should_panic(expected = r#"mistyped does not keep "p21": no such rule among ["p1", "p2","#)]
#[allow(dead_code, unnameable_test_items, reason = "these rules are not to run, only to be named")]
fn an_exemption_from_no_rule_fails() {
    vidgen_core::provider_conformance!(mistyped, Scripted { studio }, except: [("p12", "so"), ("p21", "so")]);
    mistyped::exemptions_are_from_rules();
}

/// What is wrong with a provider, named after the rule it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    P1NeedsItsMemory,
    P2TellsTheSignatureInErrors,
    P2KeepsTheSignatureInHandles,
    P2PrintsItsKey,
    P3ForgetsEnds,
    P4FailsOnUnknownStates,
    P4FinishesUnknownStates,
    P5ForgetsRetryAfter,
    P6TriesBadKeysAgain,
    P6CallsBadKeysOutages,
    P7TakesGarbageForRunning,
    P8CallsLostAnswersOutages,
    P8SubmitsTwice,
    P8CallsRefusalsUnknown,
    P8CallsUnreachableUnavailable,
    P9CancelsWhatEnded,
    P10CancelsUndeclared,
    P10FindsUndeclared,
    P10TakesAnyModel,
    P11CallsUnknownHandlesOutages,
    P11CallsExpiredOutputsOutages,
    P12SendsAnIdOfItsOwn,
    P13SaysAbsentWhenUnsure,
    P13NeverFinds,
    P14EndsQuietly,
    P14Buffers,
    P15SaysZero,
    P15IgnoresStatedCosts,
}

use Fault::*;

const FAULTS: [Fault; 28] = [
    P1NeedsItsMemory,
    P2TellsTheSignatureInErrors,
    P2KeepsTheSignatureInHandles,
    P2PrintsItsKey,
    P3ForgetsEnds,
    P4FailsOnUnknownStates,
    P4FinishesUnknownStates,
    P5ForgetsRetryAfter,
    P6TriesBadKeysAgain,
    P6CallsBadKeysOutages,
    P7TakesGarbageForRunning,
    P8CallsLostAnswersOutages,
    P8SubmitsTwice,
    P8CallsRefusalsUnknown,
    P8CallsUnreachableUnavailable,
    P9CancelsWhatEnded,
    P10CancelsUndeclared,
    P10FindsUndeclared,
    P10TakesAnyModel,
    P11CallsUnknownHandlesOutages,
    P11CallsExpiredOutputsOutages,
    P12SendsAnIdOfItsOwn,
    P13SaysAbsentWhenUnsure,
    P13NeverFinds,
    P14EndsQuietly,
    P14Buffers,
    P15SaysZero,
    P15IgnoresStatedCosts,
];

impl Fault {
    fn rule(self) -> String {
        let name = format!("{self:?}");
        let digits: String = name.chars().skip(1).take_while(char::is_ascii_digit).collect();
        format!("p{digits}")
    }
}

/// A client of the scripted provider with one fault.
struct Broken {
    inner: ScriptedProvider,
    scene: kit::Scene,
    fault: Fault,
    /// Which client it is of those of its stage.
    number: u32,
    ends_seen: AtomicU32,
}

impl std::fmt::Debug for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let key = if self.fault == P2PrintsItsKey { self.inner.secret() } else { "…" };
        f.debug_struct("Broken").field("key", &key).finish()
    }
}

impl Broken {
    fn outage() -> Error {
        Error::new(ErrorKind::Unavailable, "broken", "try later")
    }

    fn sent(&self, id: &SubmissionId) -> SubmissionId {
        if self.fault == P12SendsAnIdOfItsOwn {
            return SubmissionId::from_remote(id.as_str().chars().rev().collect::<String>());
        }
        id.clone()
    }
}

#[async_trait]
impl Provider for Broken {
    fn id(&self) -> ProviderId {
        self.inner.id()
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.inner.capabilities();
        capabilities.cancel = self.fault != P10CancelsUndeclared;
        capabilities.find = self.fault != P10FindsUndeclared;
        capabilities
    }

    async fn submit(&self, task: &Task, options: &SubmitOptions) -> Result<Handle> {
        let options = SubmitOptions::new(self.sent(&options.submission));
        let mut task = task.clone();
        if self.fault == P10TakesAnyModel {
            task.model = ModelId::from("scripted/image");
        }
        let again = match self.fault {
            P6TriesBadKeysAgain => self.scene == kit::Scene::BadKey,
            P8SubmitsTwice => self.scene == kit::Scene::ResetsAfterAccepting,
            _ => false,
        };
        if again {
            drop(self.inner.submit(&task, &options).await);
        }
        let answer = self.inner.submit(&task, &options).await;
        match (self.fault, answer) {
            (P1NeedsItsMemory, Ok(handle)) => Ok(handle.with_detail(self.number.into())),
            (P2KeepsTheSignatureInHandles, Ok(handle)) => Ok(handle.with_detail(self.inner.secret().into())),
            (P2TellsTheSignatureInErrors, Err(error)) => {
                Err(error.with_source(std::io::Error::other(format!("GET /?signature={}", self.inner.secret()))))
            }
            (P5ForgetsRetryAfter, Err(error)) => Err(Error::new(error.kind(), "broken", "slow down")),
            (P6CallsBadKeysOutages, Err(error)) if error.kind() == ErrorKind::Unauthorized => Err(Self::outage()),
            (P8CallsLostAnswersOutages, Err(error)) if error.kind() == ErrorKind::OutcomeUnknown => Err(Self::outage()),
            (P8CallsUnreachableUnavailable, Err(error)) if error.kind() == ErrorKind::NotSent => Err(Self::outage()),
            (P8CallsRefusalsUnknown, Err(error)) if error.kind() == ErrorKind::Refused => {
                Err(Error::new(ErrorKind::OutcomeUnknown, "broken", "the answer is not understood"))
            }
            (_, answer) => answer,
        }
    }

    async fn poll(&self, handle: &Handle) -> Result<Snapshot> {
        if self.fault == P1NeedsItsMemory && handle.detail.is_u64() && handle.detail != self.number {
            return Err(Error::new(ErrorKind::NotFound, "broken", "no such run"));
        }
        let answer = self.inner.poll(handle).await;
        if let (P3ForgetsEnds, Ok(RunState::Succeeded(_))) = (self.fault, answer.as_ref().map(|s| &s.state))
            && self.ends_seen.fetch_add(1, Ordering::SeqCst) >= 3
        {
            return Ok(Snapshot::running(None));
        }
        match (self.fault, self.scene, answer) {
            (P4FailsOnUnknownStates, kit::Scene::UnknownState, _) => {
                Err(Error::new(ErrorKind::Protocol, "broken", "what state is that"))
            }
            (P4FinishesUnknownStates, kit::Scene::UnknownState, _) => Ok(Snapshot::succeeded(vec![])),
            (P7TakesGarbageForRunning, _, Err(error)) if error.kind() == ErrorKind::Protocol => {
                Ok(Snapshot::running(None))
            }
            (P11CallsUnknownHandlesOutages, _, Err(error)) if error.kind() == ErrorKind::NotFound => {
                Err(Self::outage())
            }
            (P15SaysZero, _, Ok(snapshot)) if snapshot.cost.is_none() => Ok(snapshot.with_cost(Usd::ZERO)),
            (P15IgnoresStatedCosts, _, Ok(mut snapshot)) => {
                snapshot.cost = None;
                Ok(snapshot)
            }
            (_, _, answer) => answer,
        }
    }

    async fn open(&self, output: &Output) -> Result<Body> {
        match (self.fault, self.inner.open(output).await) {
            (P11CallsExpiredOutputsOutages, Err(_)) => Err(Self::outage()),
            (P14EndsQuietly, Ok(body)) => {
                let good = body.take_while(|chunk| std::future::ready(chunk.is_ok()));
                Ok(Body::new(good, None))
            }
            (P14Buffers, Ok(body)) => {
                let length = body.length();
                let all: Vec<_> = body.collect().await;
                Ok(Body::new(futures::stream::iter(all), length))
            }
            (_, answer) => answer,
        }
    }

    async fn cancel(&self, handle: &Handle) -> Result<()> {
        match (self.fault, self.inner.cancel(handle).await) {
            (P9CancelsWhatEnded, Err(error)) if error.kind() == ErrorKind::TooLate => Ok(()),
            (_, answer) => answer,
        }
    }

    async fn find(&self, submission: &Submission) -> Result<Lookup> {
        let submission = Submission { id: self.sent(&submission.id), ..submission.clone() };
        match (self.fault, self.inner.find(&submission).await) {
            (P13SaysAbsentWhenUnsure, Err(_)) => Ok(Lookup::Absent),
            (P13NeverFinds, Ok(_)) => Ok(Lookup::Unknown),
            (_, answer) => answer,
        }
    }

    async fn callback(&self, _: &Callback, _: &Spool) -> Result<Handle> {
        Err(Error::new(ErrorKind::Unsupported, "broken", "does not call back"))
    }
}

/// Sets the broken one up.
struct BrokenFixture {
    fault: Option<Fault>,
}

#[async_trait]
impl Fixture for BrokenFixture {
    async fn stage(&self, scene: kit::Scene) -> Result<Stage, Impossible> {
        let scripted = Scripted { studio: keyed };
        let Some(fault) = self.fault else { return scripted.stage(scene).await };
        let remote = scripted.remote(scene)?;
        let inner = remote.clone();
        let clients = AtomicU32::new(0);
        let client = move || Broken {
            inner: inner.clone(),
            scene,
            fault,
            number: clients.fetch_add(1, Ordering::SeqCst),
            ends_seen: AtomicU32::new(0),
        };
        let stage = set(&remote, client);
        Ok(if scene == kit::Scene::StatesCost { stage.with_cost(COST) } else { stage })
    }
}

type Rule = fn(Arc<dyn Fixture>) -> BoxFuture<'static, ()>;

macro_rules! rules {
    ($($rule:ident)*) => {
        [$((stringify!($rule), |fixture| async move { kit::$rule(&*fixture).await }.boxed())),*]
    };
}

const RULES: [(&str, Rule); 15] = rules! {
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
};

/// The numbers of the rules that see something wrong.
async fn complaints(fault: Option<Fault>) -> Vec<String> {
    let mut complaints = vec![];
    for (name, rule) in RULES {
        let held = tokio::spawn(rule(Arc::new(BrokenFixture { fault }))).await;
        if held.is_err_and(|e| e.is_panic()) {
            complaints.extend(name.split('_').next().map(str::to_owned));
        }
    }
    complaints
}

#[tokio::test(start_paused = true)]
async fn each_rule_sees_its_own_fault_and_no_other_does() {
    assert!(complaints(None).await.is_empty(), "the rules complain of a good provider");
    let mut wrong = vec![];
    for fault in FAULTS {
        let seen = complaints(Some(fault)).await;
        if seen != [fault.rule()] {
            wrong.push((fault, seen));
        }
    }
    assert!(wrong.is_empty(), "faults that another rule saw, or none: {wrong:#?}");
    for number in 1..=RULES.len() {
        assert!(FAULTS.iter().any(|fault| fault.rule() == format!("p{number}")), "nothing breaks rule {number}");
    }
}

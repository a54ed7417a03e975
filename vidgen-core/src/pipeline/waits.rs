//! How a run waits: for moments, for providers, and never longer than its claim and its worker last.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::run::{Halt, Run};

/// How long a provider may take to answer anything but a submit, which has a time of its own.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

impl Run {
    /// Waits, unless the worker stops or the claim is lost; returns early on any signal.
    pub(crate) async fn pause(&self, duration: Duration) -> Result<(), Halt> {
        let mut signals = self.signals.clone();
        signals.mark_unchanged();
        self.check()?;
        tokio::select! {
            () = self.inner.clock.sleep(duration) => {}
            changed = signals.changed() => {
                // The worker is gone: so is the claim.
                changed.map_err(|_| Halt::Lost)?;
            }
        }
        self.check()
    }

    /// Waits for all of `duration`, whoever calls meanwhile, unless the worker stops or the claim is lost.
    pub(super) async fn rest(&self, duration: Duration) -> Result<(), Halt> {
        tokio::select! {
            () = self.inner.clock.sleep(duration) => Ok(()),
            halt = self.halted() => Err(halt),
        }
    }

    /// Asks a provider, which may not answer at all, and not for longer than the claim is ours.
    pub(super) async fn ask<T>(&self, answer: impl Future<Output = Result<T>>) -> Result<Result<T>, Halt> {
        tokio::select! {
            answer = self.answered(answer) => Ok(answer),
            halt = self.halted() => Err(halt),
        }
    }

    /// The answer, or an error if there is none in time.
    pub(super) async fn answered<T>(&self, answer: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            answer = answer => answer,
            () = self.inner.clock.sleep(ANSWER_WITHIN) => {
                Err(Error::new(ErrorKind::Unavailable, "pipeline", "the provider did not answer in time"))
            }
        }
    }

    /// Returns when the worker stops or the claim is lost.
    pub(crate) async fn halted(&self) -> Halt {
        let mut signals = self.signals.clone();
        match signals.wait_for(|s| s.stop || s.lost).await {
            Ok(signals) if !signals.lost => Halt::Stopped,
            _ => Halt::Lost,
        }
    }

    pub(super) fn check(&self) -> Result<(), Halt> {
        let signals = *self.signals.borrow();
        if signals.lost {
            Err(Halt::Lost)
        } else if signals.stop {
            Err(Halt::Stopped)
        } else {
            Ok(())
        }
    }

    /// How many calls of providers this run was told of.
    pub(super) fn calls(&self) -> u64 {
        self.signals.borrow().wake
    }
}

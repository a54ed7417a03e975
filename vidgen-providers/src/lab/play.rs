//! What happens to a submission: how it is answered, what becomes of its run, how that is shown
//! and served.

use std::time::Duration;

use vidgen_core::{Usage, Usd};

/// What happens to one submission. Made from what becomes of the run ([`Play::succeeds`], …) and
/// changed by what goes wrong around it.
///
/// ```
/// use std::time::Duration;
/// use vidgen_providers::lab::{Answer, Play, Serving};
///
/// let play = Play::succeeds().after_looks(2).with_serving(Serving::Truncated);
/// let lost = Play::succeeds().with_answer(Answer::Resets);
/// let refused = Play::rate_limits(Duration::from_secs(7));
/// # let _ = (play, lost, refused);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Play {
    /// How the submit is answered.
    pub answer: Answer,
    /// What becomes of the run.
    pub course: Course,
    /// When the run ends.
    pub ends: Ends,
    /// How looks at the run are answered, and how many of them: then plainly.
    pub looks: (Looks, u32),
    /// How its output is served, and how often: then whole.
    pub serving: (Serving, u32),
    /// What being asked to stop does to it.
    pub on_cancel: OnCancel,
    /// What the remote says that it costs, if it can say that at all.
    pub cost: Option<Usd>,
    /// What the remote says was used. Without it a remote that always says so makes something up.
    pub usage: Option<Usage>,
}

/// How a submit is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// As the remote does.
    Plainly,
    /// Not accepted, in the remote's own way and words.
    Refuses(Refusal),
    /// Accepted, but the connection is reset before the answer.
    Resets,
    /// Accepted, but the connection is closed half-way through the answer.
    BreaksOff,
    /// Accepted, but the answer is a fault with this status, such as 502.
    Fails(u16),
    /// Accepted, but the answer is a 200 that nobody can understand.
    Garbles,
    /// Accepted, but there is never an answer.
    Hangs,
    /// Accepted, but the answer takes this long.
    Late(Duration),
}

/// Why a call is refused. Each remote has its own status and words for it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// Too many; come back after this long.
    RateLimited(Duration),
    /// The key is wrong.
    BadKey,
    /// The account is empty.
    NoCredit,
    /// The request is wrong, for this reason.
    Invalid(String),
    /// The content is not wanted, for this reason.
    Moderated(String),
    /// There is no such model, run or file.
    NotFound,
    /// It cannot take any more at this moment.
    Busy,
    /// It is away: a gateway's 503, which says nothing of what was done.
    Unavailable,
}

/// What becomes of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Course {
    /// It succeeds.
    Succeeds,
    /// It fails.
    Fails(Failure),
    /// It ends because its content is not wanted, for this reason.
    Moderated(String),
    /// The remote gives it up without having begun (a deadline of its own, where it has one).
    Aborts,
}

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The remote's own code, where it has some.
    pub code: Option<String>,
    /// The remote's own words.
    pub text: String,
}

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ends {
    /// So many looks see it running; the next sees its end. Where a callback is asked, it ends by
    /// itself, too, as if somebody looked every 100 ms.
    AfterLooks(u32),
    /// So long after it was accepted.
    After(Duration),
    /// When [`Lab::finish`](super::Lab::finish) says so, or it is canceled.
    WhenTold,
}

/// How looks at a run are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Looks {
    /// As the remote does.
    Plainly,
    /// What nobody can understand.
    Garbled,
    /// Too many; come back after this long.
    RateLimited(Duration),
    /// A fault with this status.
    Fail(u16),
    /// A state of which the remote's documentation says nothing.
    UnknownState,
    /// No such run.
    NotFound,
    /// Never.
    Hang,
}

/// How an output is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Serving {
    /// As it is.
    Whole,
    /// It is there no more.
    Expired,
    /// The connection ends half-way.
    Truncated,
    /// It goes on after the length that the remote's API states. HTTP itself has no such thing: what
    /// comes after a `Content-Length` is not part of the body. So none is sent.
    Oversized,
    /// It never ends, and no length is sent.
    Endless,
    /// It stops half-way, and the connection stays open.
    Stalled,
    /// A byte every so often.
    Dripping(Duration),
    /// An error page, with status 200.
    Page,
}

/// What being asked to stop does to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnCancel {
    /// It stops.
    Stops,
    /// The remote agrees, but the run goes on and ends as it would have.
    GoesOn,
}

impl Default for Play {
    fn default() -> Self {
        Self::succeeds()
    }
}

impl Play {
    fn of(course: Course) -> Self {
        Self {
            answer: Answer::Plainly,
            course,
            ends: Ends::AfterLooks(1),
            looks: (Looks::Plainly, 0),
            serving: (Serving::Whole, 0),
            on_cancel: OnCancel::Stops,
            cost: None,
            usage: None,
        }
    }

    /// Accepted; the first look sees it running, the second sees that it has succeeded.
    #[must_use]
    pub fn succeeds() -> Self {
        Self::of(Course::Succeeds)
    }

    /// Accepted; runs until [`Lab::finish`](super::Lab::finish) or a cancel.
    #[must_use]
    pub fn runs() -> Self {
        Self::of(Course::Succeeds).when_told()
    }

    /// Accepted; fails, in the remote's own words.
    pub fn fails(text: impl Into<String>) -> Self {
        Self::of(Course::Fails(Failure { code: None, text: text.into() }))
    }

    /// Accepted; fails, with a code of the remote's own.
    pub fn fails_as(code: impl Into<String>, text: impl Into<String>) -> Self {
        Self::of(Course::Fails(Failure { code: Some(code.into()), text: text.into() }))
    }

    /// Accepted; given up by the remote without having begun.
    #[must_use]
    pub fn aborts() -> Self {
        Self::of(Course::Aborts)
    }

    /// Accepted; the content is refused while it runs.
    #[must_use]
    pub fn refuses_in_run() -> Self {
        Self::of(Course::Moderated(MODERATED.to_owned()))
    }

    /// Not accepted: the content is refused.
    #[must_use]
    pub fn refuses() -> Self {
        Self::refuses_for(Refusal::Moderated(MODERATED.to_owned()))
    }

    /// Not accepted, for any reason.
    #[must_use]
    pub fn refuses_for(refusal: Refusal) -> Self {
        Self::succeeds().with_answer(Answer::Refuses(refusal))
    }

    /// Not accepted: too many, come back after this long.
    #[must_use]
    pub fn rate_limits(delay: Duration) -> Self {
        Self::refuses_for(Refusal::RateLimited(delay))
    }

    /// Lets so many looks see it running.
    #[must_use]
    pub fn after_looks(mut self, looks: u32) -> Self {
        self.ends = Ends::AfterLooks(looks);
        self
    }

    /// Lets it end so long after it was accepted.
    #[must_use]
    pub fn after(mut self, duration: Duration) -> Self {
        self.ends = Ends::After(duration);
        self
    }

    /// Lets it end when [`Lab::finish`](super::Lab::finish) says so.
    #[must_use]
    pub fn when_told(mut self) -> Self {
        self.ends = Ends::WhenTold;
        self
    }

    /// Sets how the submit is answered.
    #[must_use]
    pub fn with_answer(mut self, answer: Answer) -> Self {
        self.answer = answer;
        self
    }

    /// Sets how all looks are answered.
    #[must_use]
    pub fn with_looks(self, looks: Looks) -> Self {
        self.with_looks_for(u32::MAX, looks)
    }

    /// Sets how the first so many looks are answered.
    #[must_use]
    pub fn with_looks_for(mut self, times: u32, looks: Looks) -> Self {
        self.looks = (looks, times);
        self
    }

    /// Sets how the output is served.
    #[must_use]
    pub fn with_serving(self, serving: Serving) -> Self {
        self.with_serving_for(u32::MAX, serving)
    }

    /// Sets how the output is served the first so many times.
    #[must_use]
    pub fn with_serving_for(mut self, times: u32, serving: Serving) -> Self {
        self.serving = (serving, times);
        self
    }

    /// Lets it go on when it is asked to stop.
    #[must_use]
    pub fn with_on_cancel(mut self, on_cancel: OnCancel) -> Self {
        self.on_cancel = on_cancel;
        self
    }

    /// Sets what the remote says that it costs, where it can.
    #[must_use]
    pub fn with_cost(mut self, cost: Usd) -> Self {
        self.cost = Some(cost);
        self
    }

    /// Sets what the remote says was used, where it can.
    #[must_use]
    pub fn with_usage(mut self, usage: Usage) -> Self {
        self.usage = Some(usage);
        self
    }
}

/// Words without meaning for any test; each remote wraps them in its own.
const MODERATED: &str = "the content was flagged as sensitive";

//! Seeded schedules on the virtual clock: providers of every profile, faults before and after the
//! effect of every call, processes that die or stand still, callbacks that come early, late, twice
//! or never, cancels and retries. Oracle: the remotes' own ledgers.
//!
//! `RELIABILITY_LONG=1` runs more of them, `SIM_SEEDS=n` so many; `SIM_SEED=n` runs one, and says what happened in it. What
//! a seed fixes are the faults and the moments; in which order tasks of one moment run is the
//! runtime's, so a seed that fails once is run a few times.

pub(crate) mod chaos;
mod oracle;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::sleep;
use vidgen_core::clock::VirtualClock;
use vidgen_core::memory::{MemoryQueue, MemoryStore, Scene, ScriptedProvider};
use vidgen_core::*;

use chaos::{Chaos, Chaotic, Dice, Process, Site, Tally};
use oracle::judge;

/// How many schedules are run.
const SEEDS: u64 = 10_000;
const LONG: u64 = 200_000;
/// How long a job may take on the virtual clock. Only a key that nobody mends takes longer.
const PATIENCE: Duration = Duration::from_secs(3 * 3600);

/// What a provider can tell of a submission whose answer was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Profile {
    Keyed,
    Find,
    VagueFind,
    Callback,
    CallbackAndFind,
    Never,
    Spool,
    OnlyCallback,
    Free,
}

impl Profile {
    const ALL: [Self; 9] = [
        Self::Keyed,
        Self::Find,
        Self::VagueFind,
        Self::Callback,
        Self::CallbackAndFind,
        Self::Never,
        Self::Spool,
        Self::OnlyCallback,
        Self::Free,
    ];

    fn provider(self, id: &str) -> ScriptedProvider {
        let plain = ScriptedProvider::new(id)
            .with_poll_floor(Duration::from_secs(1))
            .with_submit_timeout(Duration::from_secs(5));
        match self {
            Self::Keyed => plain.without_find().with_resubmit(Resubmit::Keyed(Duration::from_secs(3600))),
            Self::Find => plain,
            Self::VagueFind => plain.with_vague_find(),
            Self::Callback => plain.without_find().with_callback(),
            Self::CallbackAndFind => plain.with_callback(),
            Self::Never => plain.without_find(),
            Self::Spool => plain.without_find().without_cancel().with_spools(),
            Self::OnlyCallback => plain.without_find().with_only_callback(),
            Self::Free => {
                let free = |kind: StepKind| Model::new(format!("free/{kind}"), kind, Price::Free);
                plain.with_resubmit(Resubmit::Free).with_models(StepKind::ALL.map(free).into())
            }
        }
    }

    /// Whether it can always tell in the end.
    fn always_tells(self) -> bool {
        matches!(self, Self::Keyed | Self::Find | Self::CallbackAndFind | Self::Free)
    }

    fn calls_back(self) -> bool {
        matches!(self, Self::Callback | Self::CallbackAndFind | Self::OnlyCallback)
    }
}

/// Who plays in one schedule.
struct Cast {
    profiles: Vec<Profile>,
    remotes: Vec<ScriptedProvider>,
    /// Whether the second one is an alternative for the video, or speaks.
    speaks: bool,
    /// Whether a remote forgets one of its runs.
    forgets: bool,
}

impl Cast {
    fn draw(dice: &mut Dice) -> Self {
        let mut profiles = vec![dice.one_of(&Profile::ALL)];
        if dice.chance(40) {
            profiles.push(dice.one_of(&Profile::ALL));
        }
        let speaks = profiles.len() == 2 && dice.chance(50);
        let name = |n: usize| format!("p{n}");
        let remotes: Vec<_> = profiles.iter().enumerate().map(|(n, profile)| profile.provider(&name(n))).collect();
        let mut forgets = false;
        for (profile, remote) in profiles.iter().zip(&remotes) {
            if profile.calls_back() {
                // It ends when the remote says so, not when somebody looks.
                remote.always(Some(Scene::RunsForever));
            }
            for _ in 0..dice.below(4) {
                for kind in [StepKind::Video, StepKind::Speech] {
                    let scene = scene(*profile, dice);
                    forgets |= matches!(scene, Scene::Vanishes);
                    remote.then(kind, scene);
                }
            }
        }
        Self { profiles, remotes, speaks, forgets }
    }

    fn pipeline<P: Provider>(&self, wrap: impl Fn(&ScriptedProvider) -> P) -> Pipeline {
        let pipeline = Pipeline::named("default").video(wrap(&self.remotes[0]));
        let Some(second) = self.remotes.get(1) else { return pipeline };
        if !self.speaks {
            return pipeline.or(wrap(second));
        }
        // Compose and thumbnail are done on this machine, so to speak.
        let studio = Profile::Free.provider("studio");
        pipeline.speech(wrap(second)).compose(wrap(&studio))
    }
}

fn scene(profile: Profile, dice: &mut Dice) -> Scene {
    let failure = |dice: &mut Dice| {
        let failure = RunFailure::new(dice.one_of(&[ErrorKind::Unavailable, ErrorKind::Refused]), "the scene says so");
        if dice.chance(50) { failure.with_bill() } else { failure }
    };
    let goes_on = |after_polls| match profile.calls_back() {
        true => Scene::RunsForever,
        false => Scene::Succeeds { after_polls },
    };
    match dice.below(16) {
        0 => Scene::Fails(failure(dice)),
        1 => Scene::Bills(Usd::from_cents(i64::try_from(dice.below(120)).unwrap())),
        2 => Scene::Rejects(dice.one_of(&[ErrorKind::NotSent, ErrorKind::Unavailable, ErrorKind::Unavailable])),
        3 => Scene::Rejects(dice.one_of(&[ErrorKind::Refused, ErrorKind::Unsupported, ErrorKind::NotFound])),
        4 => Scene::RateLimits(dice.millis(500, 40_000)),
        5 => Scene::Rejects(dice.one_of(&[ErrorKind::Unauthorized, ErrorKind::OverBudget])),
        6 if profile != Profile::OnlyCallback => Scene::Vanishes,
        7 => Scene::Truncates { times: 1 },
        8 | 9 => Scene::LosesAnswer,
        10 => Scene::LosesRequest,
        11 => Scene::Hangs,
        12 => Scene::RunsForever,
        _ => goes_on(u32::try_from(dice.below(20)).unwrap()),
    }
}

fn callbacks() -> Callbacks {
    Callbacks::new("https://video.example", &"a secret of enough bytes".to_owned().into()).unwrap()
}

/// What outlives every process.
struct World {
    chaos: Arc<Chaos>,
    clock: VirtualClock,
    queue: MemoryQueue,
    store: MemoryStore,
    cast: Cast,
    /// The host's own process, in which nothing goes wrong.
    host: Vidgen,
    /// Whose end a callback told of, and when.
    told: Mutex<BTreeMap<SubmissionId, Timestamp>>,
}

impl World {
    fn new(seed: u64) -> Arc<Self> {
        let mut dice = Dice::new(seed);
        let clock = VirtualClock::starting_at(Timestamp::from_second(1_800_000_000).unwrap());
        let (queue, store) = (MemoryQueue::with_clock(clock), MemoryStore::new());
        let cast = Cast::draw(&mut dice);
        let host = build(queue.clone(), store.clone(), cast.pipeline(Clone::clone), clock);
        Arc::new(Self { chaos: Chaos::new(dice), clock, queue, store, cast, host, told: Mutex::default() })
    }

    fn process(&self, name: usize) -> (Process, Vidgen) {
        let process = Process::new(&self.chaos, name);
        let queue = Chaotic { inner: self.queue.clone(), process: process.clone(), queue: self.queue.clone() };
        let store = Chaotic { inner: self.store.clone(), process: process.clone(), queue: self.queue.clone() };
        let wrap = |remote: &ScriptedProvider| Chaotic {
            inner: remote.clone(),
            process: process.clone(),
            queue: self.queue.clone(),
        };
        let vidgen = build(queue, store, self.cast.pipeline(wrap), self.clock);
        (process, vidgen)
    }

    /// Keeps a worker running: where one dies, another one comes.
    async fn supervise(self: Arc<Self>, mut name: usize) {
        loop {
            let (process, vidgen) = self.process(name);
            let worker = vidgen.worker().deliveries(0).spawn();
            process.died().await;
            drop(worker);
            name += 2;
            sleep(self.chaos.dice(|d| d.millis(100, 20_000))).await;
        }
    }

    /// Tells of the runs of those who call back: early, at their end, late, twice, never, or wrongly.
    async fn carry(self: Arc<Self>) {
        let mut known = vec![0; self.cast.remotes.len()];
        loop {
            for (n, remote) in self.cast.remotes.iter().enumerate() {
                if !self.cast.profiles[n].calls_back() {
                    continue;
                }
                let accepted = remote.accepted();
                for submission in accepted.iter().skip(known[n]) {
                    tokio::spawn(self.clone().tell(remote.clone(), submission.clone()));
                }
                known[n] = accepted.len();
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    async fn tell(self: Arc<Self>, remote: ScriptedProvider, submission: SubmissionId) {
        let dice = |from, to| self.chaos.dice(|d| d.millis(from, to));
        if self.chaos.dice(|d| d.chance(20)) {
            self.call(&remote, &submission, "early").await;
        }
        if self.chaos.dice(|d| d.chance(10)) {
            self.call_wrongly(&remote, &submission).await;
        }
        sleep(dice(100, 60_000)).await;
        remote.end(&submission);
        match self.chaos.dice(|d| d.below(10)) {
            0 => return,
            1 => sleep(dice(1_000, 300_000)).await,
            _ => {}
        }
        self.call(&remote, &submission, "the end").await;
        self.told.lock().unwrap().insert(submission.clone(), self.clock.now());
        if self.chaos.dice(|d| d.chance(20)) {
            sleep(dice(1, 100_000)).await;
            self.call(&remote, &submission, "again").await;
        }
    }

    async fn call(&self, remote: &ScriptedProvider, submission: &SubmissionId, what: &str) {
        let Some((url, callback)) = remote.callback_of(submission, self.clock.now()) else { return };
        self.send(remote, submission, &url, callback, what).await;
    }

    async fn call_wrongly(&self, remote: &ScriptedProvider, submission: &SubmissionId) {
        let Some((url, genuine)) = remote.callback_of(submission, self.clock.now()) else { return };
        // Where nobody can be asked, what is signed is believed.
        let body = if remote.capabilities().only_callback { "run-999 running" } else { "run-999 succeeded" };
        let wrong = Callback::new([("scripted-signature", remote.secret())], body, genuine.received_at);
        self.send(remote, submission, &url, wrong, "wrong").await;
    }

    async fn send(
        &self,
        remote: &ScriptedProvider,
        submission: &SubmissionId,
        url: &url::Url,
        callback: Callback,
        what: &str,
    ) {
        self.chaos.note(format_args!("callback of {submission}: {what}"));
        let signature = url.query_pairs().find(|(n, _)| n == "signature").unwrap().1.into_owned();
        self.host.callback(&remote.id(), submission.as_str(), &signature, callback).await.unwrap();
    }

    /// A user: creates a job, may cancel it, waits, may try it again.
    async fn user(self: Arc<Self>) -> JobId {
        let tenant = TenantId::single();
        sleep(self.chaos.dice(|d| d.millis(0, 5_000))).await;
        let mut request = JobRequest::new("a cat");
        if self.cast.speaks {
            request = request.with_script("meow");
        }
        let id = self.host.create(&tenant, request, CreateOptions::default()).await.unwrap().job.id;
        self.chaos.note(format_args!("{id} created"));
        if self.chaos.dice(|d| d.chance(25)) {
            let after = self.chaos.dice(|d| {
                let longest = d.one_of(&[2_000, 20_000, 200_000]);
                d.millis(0, longest)
            });
            let world = self.clone();
            tokio::spawn(async move {
                sleep(after).await;
                let canceled = world.host.cancel(&TenantId::single(), id).await;
                world.chaos.note(format_args!("{id} canceled: {:?}", canceled.map(|j| j.state).map_err(|e| e.kind())));
            });
        }
        self.ended(id).await;
        for _ in 0..self.chaos.dice(|d| d.below(3)) {
            if self.host.retry(&tenant, id, None).await.is_ok() {
                self.chaos.note(format_args!("{id} tried again"));
                self.ended(id).await;
            }
        }
        id
    }

    async fn ended(&self, id: JobId) {
        let tenant = TenantId::single();
        let mut job = self.host.get(&tenant, id).await.unwrap();
        while !job.state.is_ended() {
            job = self.host.watch(&tenant, id, job.version, Duration::from_secs(600)).await.unwrap();
        }
        // Whoever was told in time has no doubt, unless everybody died at it.
        let in_time = self.clock.now() - SignedDuration::from_secs(10);
        for step in job.steps.iter().filter(|s| matches!(s.state, StepState::InDoubt { .. }) && job.crashes < 3) {
            let id = &step.open_submission().unwrap().id;
            if self.told.lock().unwrap().get(id).is_some_and(|at| *at < in_time) {
                self.chaos.wrong.lock().unwrap().push(format!("a callback told of {id}, and it is in doubt"));
            }
        }
        self.chaos.note(format_args!("{id} ended: {:?} {:?}", job.state, job.failure.map(|f| f.code)));
    }

    /// An operator looks at what is in doubt, in the remotes' own books.
    async fn resolve(&self, job: &Job) {
        let bought = |submission: &Submission| {
            self.cast.remotes.iter().any(|r| r.id() == submission.provider && r.accepted().contains(&submission.id))
        };
        let mut doubts = job.steps.iter().filter(|s| matches!(s.state, StepState::InDoubt { .. }));
        let verdicts: Vec<bool> = doubts.by_ref().filter_map(StepRecord::open_submission).map(bought).collect();
        // One verdict is given for all of a job's doubts.
        if verdicts.windows(2).all(|w| w[0] == w[1]) {
            let verdict = if verdicts[0] { Verdict::Bought } else { Verdict::NotBought };
            self.host.resolve(&TenantId::single(), job.id, verdict).await.unwrap();
            self.chaos.note(format_args!("{} resolved: {verdict:?}", job.id));
        }
    }
}

fn build(queue: impl Queue, store: impl Store, pipeline: Pipeline, clock: VirtualClock) -> Vidgen {
    // As patient as the usual, with quicker providers: a lost request can arrive for a minute.
    let mut timing = Timing::default();
    timing.find_patience = Duration::from_secs(400);
    timing.run_deadline = Duration::from_secs(300);
    timing.run_grace = Duration::from_secs(60);
    let builder = Vidgen::builder().queue(queue).store(store).pipeline(pipeline).clock(clock);
    builder.timing(timing).callbacks(callbacks()).build().unwrap()
}

/// What came of some schedules.
#[derive(Debug, Default)]
struct Sum {
    faults: Tally,
    ends: BTreeMap<String, u64>,
    doubts: BTreeMap<Profile, u64>,
    steps: BTreeMap<Profile, u64>,
    failed: Vec<(u64, String)>,
}

async fn schedule(seed: u64, sum: &Mutex<Sum>) {
    let world = World::new(seed);
    let mut all = tokio::task::JoinSet::new();
    for name in 0..2 {
        all.spawn(world.clone().supervise(name));
    }
    all.spawn(world.clone().carry());
    let mut users = tokio::task::JoinSet::new();
    for _ in 0..=world.chaos.dice(|d| d.below(2)) {
        users.spawn(world.clone().user());
    }
    let mut wrong = vec![];
    let ids = match tokio::time::timeout(PATIENCE, users.join_all()).await {
        Ok(ids) => ids,
        Err(_) => {
            wrong.push("a job does not end".into());
            let filter = JobFilter { limit: 10, ..JobFilter::default() };
            let page = world.queue.list(&TenantId::single(), &filter).await.unwrap();
            page.items.into_iter().map(|job| job.id).collect()
        }
    };
    // Late callbacks and late requests change nothing any more.
    sleep(world.chaos.dice(|d| d.millis(0, 60_000))).await;
    let (remotes, profiles) = (&world.cast.remotes, &world.cast.profiles);
    wrong.extend(judge(&world.queue, &world.store, remotes, &ids).await);
    let of = |provider: &ProviderId| remotes.iter().position(|r| r.id() == *provider).map(|n| profiles[n]);
    for id in &ids {
        let job = world.queue.get(&TenantId::single(), *id).await.unwrap();
        wrong.extend(sum.lock().unwrap().count(&job, of));
        for step in job.steps.iter().filter(|s| matches!(s.state, StepState::InDoubt { .. }) && job.crashes < 3) {
            let id = &step.open_submission().unwrap().id;
            if Spool::new(Arc::new(world.store.clone()), id).unwrap().kept().await.unwrap().is_some() {
                wrong.push(format!("the answer to {id} lies in the spool, and it is in doubt"));
            }
        }
        let lost = job.steps.iter().flat_map(|s| &s.attempts).find(|a| a.kind == ErrorKind::Protocol);
        if let Some(lost) = lost.filter(|_| !world.cast.forgets) {
            wrong.push(format!("{} is taken for paid and lost, and its remote knows it", lost.submission));
        }
        if job.in_doubt() && world.chaos.dice(|d| d.chance(50)) {
            world.resolve(&job).await;
        }
    }
    wrong.extend(judge(&world.queue, &world.store, remotes, &ids).await);
    all.shutdown().await;
    wrong.append(&mut world.chaos.wrong.lock().unwrap());
    let asked = std::env::var_os("SIM_SEED").is_some();
    let story = if asked || !wrong.is_empty() { world.story(seed, &ids, &wrong).await } else { String::new() };
    if asked {
        println!("{story}");
    }
    let mut sum = sum.lock().unwrap();
    for (fault, count) in world.chaos.tally.lock().unwrap().iter() {
        *sum.faults.entry(*fault).or_default() += count;
    }
    if !wrong.is_empty() {
        sum.failed.push((seed, story));
    }
}

impl Sum {
    /// Counts how a job ended; says what is in doubt that should not be.
    fn count(&mut self, job: &Job, of: impl Fn(&ProviderId) -> Option<Profile>) -> Option<String> {
        let code = job.failure.as_ref().map(|f| f.code.clone()).unwrap_or_default();
        *self.ends.entry(format!("{:?} {code}", job.state)).or_default() += 1;
        let mut wrong = None;
        for step in &job.steps {
            let provider = match &step.state {
                StepState::Done { provider, .. } => Some(provider),
                _ => step.open_submission().map(|s| &s.provider),
            };
            let Some(profile) = provider.and_then(&of) else { continue };
            *self.steps.entry(profile).or_default() += 1;
            if matches!(step.state, StepState::InDoubt { .. }) {
                *self.doubts.entry(profile).or_default() += 1;
                if profile.always_tells() {
                    wrong = Some(format!("{profile:?} can tell, and {} is in doubt", job.id));
                }
            }
        }
        wrong
    }
}

impl World {
    /// All that happened, and how it ended.
    async fn story(&self, seed: u64, ids: &[JobId], wrong: &[String]) -> String {
        let mut story = format!("seed {seed}: {:?}, speaks: {}\n", self.cast.profiles, self.cast.speaks);
        for line in self.chaos.log.lock().unwrap().iter() {
            let _ = writeln!(story, "  {line}");
        }
        for id in ids {
            let job = self.queue.get(&TenantId::single(), *id).await.unwrap();
            let _ = writeln!(story, "  {id} {:?} cost {} held {} {:#?}", job.state, job.cost, job.held, job.steps);
        }
        let _ = writeln!(story, "  wrong: {wrong:#?}");
        story
    }
}

fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn whatever_fails_nothing_is_bought_twice_lost_or_charged_for_nothing() {
    let seeds = match (env("SIM_SEED"), env("SIM_SEEDS"), env("RELIABILITY_LONG")) {
        (Some(seed), ..) => seed..seed + 1,
        (None, Some(count), _) => 0..count,
        (None, None, Some(1)) => 0..LONG,
        (None, None, _) => 0..SEEDS,
    };
    let (began, next) = (std::time::Instant::now(), AtomicU64::new(seeds.start));
    let sum = Mutex::new(Sum::default());
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(8));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= seeds.end || sum.lock().unwrap().failed.len() >= 20 {
                        return;
                    }
                    let mut runtime = tokio::runtime::Builder::new_current_thread();
                    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
                    runtime.block_on(schedule(seed, &sum));
                }
            });
        }
    });
    let sum = sum.into_inner().unwrap();
    report(&sum, seeds.end - seeds.start, began.elapsed());
    if let Some((seed, story)) = sum.failed.first() {
        let all: Vec<u64> = sum.failed.iter().map(|(seed, _)| *seed).collect();
        panic!("SIM_SEED={seed} (and of these: {all:?})\n{story}");
    }
    if seeds.end - seeds.start >= SEEDS {
        for site in Site::ALL {
            for fault in site.faults() {
                assert!(sum.faults.contains_key(&(site, *fault)), "{fault:?} at {site:?} never fired");
            }
        }
    }
}

fn report(sum: &Sum, seeds: u64, took: Duration) {
    println!("{seeds} schedules in {:.1} s", took.as_secs_f64());
    for (end, count) in &sum.ends {
        println!("  {count:6} {end}");
    }
    for profile in Profile::ALL {
        let count = |of: &BTreeMap<Profile, u64>| of.get(&profile).copied().unwrap_or_default();
        println!("  {:?}: {} steps, {} in doubt", profile, count(&sum.steps), count(&sum.doubts));
    }
    let total: u64 = sum.faults.values().sum();
    println!("  {total} faults");
    for ((site, fault), count) in &sum.faults {
        println!("    {count:6} {site:?} {fault:?}");
    }
}

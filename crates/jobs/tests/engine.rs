//! The engine's claims, with steps that do as they are told.

#![allow(clippy::unwrap_used, reason = "a test that finds nothing has failed")]

use fleetward_jobs::{
    Backoff, Engine, EngineOptions, Job, JobError, JobFilter, JobKind, JobState, Registry,
    Retention, Step, StepContext, StepError, StepState, Steps, Submission, UndoStep, async_trait,
};
use fleetward_model::{ErrorCode, Failure, JobId};
use fleetward_store::{Range, SqliteOptions, SqliteStore, Store, StoreError, Txn};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::Notify;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(20);

/// What a step (or, with "undo " before its name, an undo) does the next time it is called.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Act {
    Fail,
    FailForNow,
    Panic,
    /// Waits for the cancel, then fails.
    HeedCancel,
    /// Waits for the cancel, then succeeds.
    SucceedDespiteCancel,
    /// Waits for ever.
    Hang,
    /// Waits for the test's word.
    Gate,
    SayPastUndo,
}

/// The world the steps act on: what exists, what was called, what is to happen.
#[derive(Debug, Default)]
struct World {
    acts: Mutex<HashMap<String, VecDeque<Act>>>,
    calls: Mutex<Vec<String>>,
    effects: Mutex<Vec<&'static str>>,
    generations: Mutex<Vec<u64>>,
    reached: Notify,
    gate: Notify,
}

impl World {
    fn plan(&self, call: &str, acts: impl IntoIterator<Item = Act>) {
        self.acts
            .lock()
            .unwrap()
            .entry(call.to_owned())
            .or_default()
            .extend(acts);
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    fn effects(&self) -> Vec<&'static str> {
        self.effects.lock().unwrap().clone()
    }

    /// Carries out what is planned for `call`; the effect itself is the caller's.
    async fn act(&self, call: String, cx: &StepContext<Order>) -> Result<(), StepError> {
        self.calls.lock().unwrap().push(call.clone());
        self.generations.lock().unwrap().push(cx.generation());
        let act = self
            .acts
            .lock()
            .unwrap()
            .get_mut(&call)
            .and_then(VecDeque::pop_front);
        let failure = |code| Failure::new(code, format!("{call} failed as told"));
        match act {
            None => Ok(()),
            Some(Act::Fail) => Err(StepError::fatal(failure(ErrorCode::HypervisorFailed))),
            Some(Act::FailForNow) => Err(failure(ErrorCode::HostUnreachable).into()),
            Some(Act::Panic) => panic!("{call} panicked as told"),
            Some(Act::HeedCancel) => {
                self.reached.notify_one();
                cx.unless_cancelled(std::future::pending::<Result<(), StepError>>())
                    .await
            }
            Some(Act::SucceedDespiteCancel) => {
                self.reached.notify_one();
                cx.cancelled().cancelled().await;
                Ok(())
            }
            Some(Act::Hang) => {
                self.reached.notify_one();
                std::future::pending().await
            }
            Some(Act::Gate) => {
                self.reached.notify_one();
                self.gate.notified().await;
                Ok(())
            }
            Some(Act::SayPastUndo) => Err(StepError::past_undo("it is done already")),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Order {
    name: String,
}

const NAMES: [&str; 6] = ["look", "one", "two", "cross", "ahead", "last"];

/// The step called `NAMES[N]`.
struct Told<const N: usize>(Arc<World>);

#[async_trait]
impl<const N: usize> Step<Order> for Told<N> {
    const NAME: &'static str = NAMES[N];
    const RETRY_FOR: Duration = Duration::from_millis(300);
    type Output = String;

    async fn run(&self, cx: &StepContext<Order>) -> Result<String, StepError> {
        let told = self.0.act(Self::NAME.to_owned(), cx).await;
        // a failure leaves the effect behind: undo has to cope
        let mut effects = self.0.effects.lock().unwrap();
        if N > 0 && !effects.contains(&Self::NAME) {
            effects.push(Self::NAME);
        }
        told.map(|()| format!("{} of {}", Self::NAME, cx.input().name))
    }
}

#[async_trait]
impl<const N: usize> UndoStep<Order> for Told<N> {
    async fn undo(&self, cx: &StepContext<Order>) -> Result<(), StepError> {
        self.0.act(format!("undo {}", Self::NAME), cx).await?;
        self.0
            .effects
            .lock()
            .unwrap()
            .retain(|effect| *effect != Self::NAME);
        Ok(())
    }
}

/// look, one, two, cross | ahead, last
struct Crossing(Arc<World>);

impl JobKind for Crossing {
    const NAME: &'static str = "crossing";
    type Input = Order;

    fn locks(order: &Order) -> Vec<String> {
        vec!["shared/all".into(), format!("order/{}", order.name)]
    }

    fn steps(&self) -> Steps<Order> {
        let world = || Arc::clone(&self.0);
        Steps::new()
            .check(Told::<0>(world()))
            .step(Told::<1>(world()))
            .step(Told::<2>(world()))
            .step(Told::<3>(world()))
            .forward(Told::<4>(world()))
            .forward(Told::<5>(world()))
    }
}

/// one alone, locking only its name
struct Short(Arc<World>);

impl JobKind for Short {
    const NAME: &'static str = "short";
    type Input = Order;

    fn locks(order: &Order) -> Vec<String> {
        vec![format!("order/{}", order.name)]
    }

    fn steps(&self) -> Steps<Order> {
        Steps::new().step(Told::<1>(Arc::clone(&self.0)))
    }
}

/// Runs a [`Short`] under the same lock.
struct Parent;
struct RunChild;

impl JobKind for Parent {
    const NAME: &'static str = "parent";
    type Input = Order;

    fn locks(order: &Order) -> Vec<String> {
        vec![format!("order/{}", order.name)]
    }

    fn steps(&self) -> Steps<Order> {
        Steps::new().check(RunChild)
    }
}

#[async_trait]
impl Step<Order> for RunChild {
    const NAME: &'static str = "run-child";
    type Output = JobId;

    async fn run(&self, cx: &StepContext<Order>) -> Result<JobId, StepError> {
        let job = cx.run_child::<Short>("the child", cx.input()).await?;
        assert_eq!(
            cx.start_child::<Short>("the child", cx.input()).await?,
            job.id
        );
        Ok(job.id)
    }
}

struct Scene {
    dir: TempDir,
    store: Arc<dyn Store>,
    world: Arc<World>,
}

fn order(name: &str) -> Order {
    Order {
        name: name.to_owned(),
    }
}

fn quick() -> EngineOptions {
    EngineOptions {
        lease: Duration::from_millis(600),
        backoff: Backoff {
            first: Duration::from_millis(20),
            most: Duration::from_millis(100),
        },
        cancel_grace: Duration::from_millis(200),
        progress_every: Duration::from_millis(100),
        ..EngineOptions::default()
    }
}

impl Scene {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(dir.path().join("store.db"))
            .await
            .unwrap();
        Self {
            dir,
            store: Arc::new(store),
            world: Arc::default(),
        }
    }

    fn registry(&self) -> Registry {
        let world = || Arc::clone(&self.world);
        Registry::new()
            .with(Crossing(world()))
            .with(Short(world()))
            .with(Parent)
    }

    fn engine(&self) -> Engine {
        Engine::start(Arc::clone(&self.store), self.registry(), quick())
    }

    async fn crossing(&self) -> Job {
        let engine = self.engine();
        let id = engine
            .submit::<Crossing>(&order("a"), "tester")
            .await
            .unwrap();
        let job = end_of(&engine, id).await;
        engine.shutdown().await;
        job
    }

    async fn keys(&self, prefix: &str) -> Vec<String> {
        let page = self.store.list(Range::prefix(prefix)).await.unwrap();
        page.entries.into_iter().map(|entry| entry.key).collect()
    }

    async fn reached(&self) {
        tokio::time::timeout(PATIENCE, self.world.reached.notified())
            .await
            .expect("reached");
    }
}

async fn end_of(engine: &Engine, id: JobId) -> Job {
    tokio::time::timeout(PATIENCE, engine.wait(id))
        .await
        .expect("ends in time")
        .unwrap()
}

/// The first update of the job that is as wanted.
async fn seen(engine: &Engine, id: JobId, mut wanted: impl FnMut(&Job) -> bool) -> Job {
    let mut updates = engine.watch(id).await.unwrap();
    let found = async {
        while let Some(job) = updates.next().await {
            let job = job.unwrap();
            if wanted(&job) {
                return job;
            }
        }
        panic!("the job ended without");
    };
    tokio::time::timeout(PATIENCE, found)
        .await
        .expect("seen in time")
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn steps_run_in_order_and_hand_their_outputs_on() {
    let scene = Scene::new().await;
    let job = scene.crossing().await;
    assert_eq!(job.state, JobState::Done);
    assert_eq!(scene.world.calls(), NAMES);
    assert_eq!(job.output::<String>("two").unwrap(), "two of a");
    assert!(
        job.steps
            .iter()
            .all(|s| s.state == StepState::Done && s.attempts == 1)
    );
    assert!(job.started_at.is_some() && job.ended_at.is_some() && job.failure.is_none());
    for prefix in ["job-locks/", "job-cancels/", "job-progress/"] {
        assert!(scene.keys(prefix).await.is_empty(), "{prefix}");
    }
}

#[tokio::test]
async fn every_kind_and_step_is_known_without_running() {
    let scene = Scene::new().await;
    let kinds = scene.registry().kinds();
    let crossing = &kinds[0];
    assert_eq!(crossing.name, "crossing");
    let facts: Vec<_> = crossing
        .steps
        .iter()
        .map(|step| (step.name, step.undoable, step.point_of_no_return))
        .collect();
    assert_eq!(
        facts,
        [
            ("look", false, false),
            ("one", true, false),
            ("two", true, false),
            ("cross", true, true),
            ("ahead", false, false),
            ("last", false, false),
        ]
    );
}

#[tokio::test]
async fn a_fatal_failure_takes_back_the_interrupted_and_the_completed_in_reverse() {
    let scene = Scene::new().await;
    scene.world.plan("two", [Act::Fail]);
    let job = scene.crossing().await;
    assert_eq!(job.state, JobState::Undone);
    assert_eq!(
        scene.world.calls(),
        ["look", "one", "two", "undo two", "undo one"]
    );
    assert!(scene.world.effects().is_empty());
    assert_eq!(job.failure.unwrap().code, ErrorCode::HypervisorFailed);
    assert!(scene.keys("job-locks/").await.is_empty());
}

#[tokio::test]
async fn a_panic_is_a_fatal_failure() {
    let scene = Scene::new().await;
    scene.world.plan("one", [Act::Panic]);
    let job = scene.crossing().await;
    assert_eq!(job.state, JobState::Undone);
    let failure = job.failure.unwrap();
    assert_eq!(failure.code, ErrorCode::Internal);
    assert!(failure.because.contains("panicked as told"), "{failure}");
}

#[tokio::test]
async fn an_undo_is_retried_until_it_succeeds() {
    let scene = Scene::new().await;
    scene.world.plan("two", [Act::Fail]);
    scene
        .world
        .plan("undo two", [Act::Fail, Act::FailForNow, Act::Panic]);
    let job = scene.crossing().await;
    assert_eq!(job.state, JobState::Undone);
    assert_eq!(job.step("two").unwrap().undo_attempts, 4);
    assert!(scene.world.effects().is_empty());
    assert_eq!(job.failure.unwrap().what, "two failed as told");
}

#[tokio::test]
async fn a_passing_failure_is_retried() {
    let scene = Scene::new().await;
    scene.world.plan("one", [Act::FailForNow, Act::FailForNow]);
    let job = scene.crossing().await;
    assert_eq!(job.state, JobState::Done);
    assert_eq!(job.step("one").unwrap().attempts, 3);
    assert!(job.step("one").unwrap().failure.is_none());
}

#[tokio::test]
async fn a_failure_that_does_not_pass_in_time_turns_the_job_back() {
    let scene = Scene::new().await;
    scene.world.plan("one", [Act::FailForNow; 100]);
    let job = scene.crossing().await;
    assert_eq!(job.state, JobState::Undone);
    assert!(job.step("one").unwrap().attempts > 2);
    assert_eq!(job.failure.unwrap().code, ErrorCode::HostUnreachable);
}

#[tokio::test]
async fn past_the_point_of_no_return_every_failure_is_retried_and_cancel_refused() {
    let scene = Scene::new().await;
    // longer than RETRY_FOR
    scene.world.plan("ahead", [Act::Fail; 12]);
    let engine = scene.engine();
    let id = engine
        .submit::<Crossing>(&order("a"), "tester")
        .await
        .unwrap();
    let waiting = seen(&engine, id, |job| job.waiting.is_some()).await;
    assert!(
        waiting
            .waiting
            .unwrap()
            .reason
            .contains("ahead failed as told")
    );
    assert!(waiting.past_return);
    let refused = engine.cancel(id, "tester").await;
    assert!(
        matches!(refused, Err(JobError::NotCancellable { .. })),
        "{refused:?}"
    );
    let job = end_of(&engine, id).await;
    assert_eq!(job.state, JobState::Done);
    assert_eq!(job.step("ahead").unwrap().attempts, 13);
    assert!(job.waiting.is_none());
}

#[tokio::test]
async fn a_cancel_before_the_point_of_no_return_takes_everything_back_at_any_step() {
    for (i, name) in NAMES[..4].iter().enumerate() {
        let scene = Scene::new().await;
        scene.world.plan(name, [Act::HeedCancel]);
        let engine = scene.engine();
        let id = engine
            .submit::<Crossing>(&order("a"), "tester")
            .await
            .unwrap();
        scene.reached().await;
        engine.cancel(id, "boss").await.unwrap();
        engine
            .cancel(id, "boss")
            .await
            .expect("asking twice is asking once");
        let job = end_of(&engine, id).await;
        assert_eq!(job.state, JobState::Undone, "{name}");
        assert!(scene.world.effects().is_empty(), "{name}");
        let failure = job.failure.unwrap();
        assert_eq!(failure.code, ErrorCode::Cancelled);
        assert_eq!(failure.because, "boss asked for it");
        assert_eq!(job.cancel.unwrap().by, "boss");
        let undone = scene
            .world
            .calls()
            .iter()
            .filter(|c| c.starts_with("undo"))
            .count();
        assert_eq!(undone, i);
        engine.cancel(id, "boss").await.expect("and later, too");
    }
}

#[tokio::test]
async fn a_cancel_that_comes_too_late_at_the_crossing_step_lets_the_job_go_on() {
    let scene = Scene::new().await;
    scene.world.plan("cross", [Act::SucceedDespiteCancel]);
    let engine = scene.engine();
    let id = engine
        .submit::<Crossing>(&order("a"), "tester")
        .await
        .unwrap();
    scene.reached().await;
    engine.cancel(id, "boss").await.unwrap();
    let job = end_of(&engine, id).await;
    assert_eq!(job.state, JobState::Done);
    assert_eq!(scene.world.effects(), NAMES[1..]);
    let late = engine.cancel(id, "boss").await;
    assert!(
        matches!(late, Err(JobError::NotCancellable { .. })),
        "{late:?}"
    );

    // at any other step the effect is taken back
    scene.world.effects.lock().unwrap().clear();
    scene.world.plan("two", [Act::SucceedDespiteCancel]);
    let id = engine
        .submit::<Crossing>(&order("a"), "tester")
        .await
        .unwrap();
    scene.reached().await;
    engine.cancel(id, "boss").await.unwrap();
    assert_eq!(end_of(&engine, id).await.state, JobState::Undone);
    assert!(scene.world.effects().is_empty());
}

#[tokio::test]
async fn a_step_that_does_not_heed_a_cancel_is_dropped() {
    let scene = Scene::new().await;
    scene.world.plan("two", [Act::Hang]);
    let engine = scene.engine();
    let id = engine
        .submit::<Crossing>(&order("a"), "tester")
        .await
        .unwrap();
    scene.reached().await;
    engine.cancel(id, "boss").await.unwrap();
    assert_eq!(end_of(&engine, id).await.state, JobState::Undone);
}

#[tokio::test]
async fn a_cancel_ends_the_wait_for_a_retry() {
    let scene = Scene::new().await;
    scene.world.plan("one", [Act::FailForNow]);
    let mut options = quick();
    options.backoff = Backoff {
        first: PATIENCE * 10,
        most: PATIENCE * 10,
    };
    let engine = Engine::start(Arc::clone(&scene.store), scene.registry(), options);
    let id = engine
        .submit::<Crossing>(&order("a"), "tester")
        .await
        .unwrap();
    seen(&engine, id, |job| job.waiting.is_some()).await;
    engine.cancel(id, "boss").await.unwrap();
    assert_eq!(end_of(&engine, id).await.state, JobState::Undone);
}

#[tokio::test]
async fn an_undo_that_finds_the_crossing_irrevocable_turns_the_job_forward() {
    let scene = Scene::new().await;
    scene.world.plan("cross", [Act::Fail]);
    scene.world.plan("undo cross", [Act::SayPastUndo]);
    let job = scene.crossing().await;
    assert_eq!(job.state, JobState::Done);
    assert!(job.failure.is_none() && job.past_return);
    let calls = scene.world.calls();
    assert_eq!(
        calls[3..],
        ["cross", "undo cross", "cross", "ahead", "last"]
    );
}

#[tokio::test]
async fn no_other_step_can_turn_a_job_forward() {
    let scene = Scene::new().await;
    scene.world.plan("two", [Act::Fail]);
    scene.world.plan("undo two", [Act::SayPastUndo]);
    let job = scene.crossing().await;
    assert_eq!(job.state, JobState::Undone);
    assert_eq!(job.step("two").unwrap().undo_attempts, 2);
}

#[tokio::test]
async fn locks_are_taken_together_and_name_their_holder() {
    let scene = Scene::new().await;
    scene.world.plan("one", [Act::Gate]);
    let engine = scene.engine();
    let first = engine
        .submit::<Crossing>(&order("a"), "tester")
        .await
        .unwrap();
    scene.reached().await;
    let busy = engine.submit::<Crossing>(&order("b"), "tester").await;
    assert!(
        matches!(&busy, Err(JobError::Busy { resource, by }) if resource == "shared/all" && *by == first),
        "{busy:?}"
    );
    let failure = busy.unwrap_err().to_failure();
    assert_eq!(failure.code, ErrorCode::VmBusy);
    assert!(failure.fix.contains(&first.to_string()));
    // the refused one has left nothing locked
    let short = engine.submit::<Short>(&order("b"), "tester").await.unwrap();
    end_of(&engine, short).await;
    let busy = engine.submit::<Short>(&order("a"), "tester").await;
    assert!(matches!(busy, Err(JobError::Busy { .. })), "{busy:?}");
    scene.world.gate.notify_one();
    end_of(&engine, first).await;
    let next = engine.submit::<Short>(&order("a"), "tester").await.unwrap();
    end_of(&engine, next).await;
    let concerning_a = JobFilter {
        resource: Some("order/a".into()),
        ..JobFilter::default()
    };
    let found: Vec<_> = engine
        .list(&concerning_a)
        .await
        .unwrap()
        .iter()
        .map(|j| j.id)
        .collect();
    assert_eq!(found, [next, first]);
}

#[tokio::test]
async fn submitting_the_same_again_finds_the_first() {
    let scene = Scene::new().await;
    let engine = scene.engine();
    let mine = Submission::by("tester").with_id(JobId(Uuid::from_u128(7)));
    let first = engine
        .submit_as::<Short>(&order("a"), mine.clone())
        .await
        .unwrap();
    let again = engine
        .submit_as::<Short>(&order("a"), mine.clone())
        .await
        .unwrap();
    assert_eq!(first, again);
    end_of(&engine, first).await;
    assert_eq!(
        engine
            .submit_as::<Short>(&order("a"), mine.clone())
            .await
            .unwrap(),
        first
    );
    let other = engine.submit_as::<Short>(&order("b"), mine).await;
    assert!(matches!(other, Err(JobError::IdTaken { .. })), "{other:?}");
    assert_eq!(scene.world.calls(), ["one"]);
}

#[tokio::test]
async fn generations_grow_across_attempts_and_jobs_and_can_be_raised() {
    let scene = Scene::new().await;
    Engine::raise_generation(&scene.store, 1_000_000)
        .await
        .unwrap();
    scene.world.plan("two", [Act::FailForNow, Act::Fail]);
    scene.crossing().await;
    scene.crossing().await;
    let generations = scene.world.generations.lock().unwrap().clone();
    assert!(generations.is_sorted_by(|a, b| a < b), "{generations:?}");
    assert!(generations[0] > 1_000_000);
    Engine::raise_generation(&scene.store, 5).await.unwrap();
    scene.crossing().await;
    let later = *scene.world.generations.lock().unwrap().last().unwrap();
    assert!(later > *generations.last().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_engines_one_runs_the_jobs_and_the_other_takes_over() {
    let scene = Scene::new().await;
    let (first, second) = (scene.engine(), scene.engine());
    until("one leads", || first.is_leader() != second.is_leader()).await;
    let (leader, other) = if first.is_leader() {
        (first, second)
    } else {
        (second, first)
    };
    // the one that does not lead takes submissions, too
    let mut ids = Vec::new();
    for i in 0..5 {
        ids.push(
            other
                .submit::<Short>(&order(&format!("{i}")), "tester")
                .await
                .unwrap(),
        );
    }
    for id in ids {
        assert_eq!(end_of(&other, id).await.state, JobState::Done);
    }
    assert_eq!(scene.world.calls().len(), 5);

    scene.world.plan("two", [Act::Hang]);
    let id = other
        .submit::<Crossing>(&order("x"), "tester")
        .await
        .unwrap();
    scene.reached().await;
    leader.shutdown().await;
    assert_eq!(end_of(&other, id).await.state, JobState::Done);
    assert!(other.is_leader() && !leader.is_leader());
    assert_eq!(
        other.get(id).await.unwrap().step("two").unwrap().attempts,
        2
    );
    assert!(matches!(
        leader.submit::<Short>(&order("y"), "tester").await,
        Err(JobError::ShutDown)
    ));
}

#[test]
fn an_engine_that_dies_without_a_word_is_replaced_when_its_lease_is_over() {
    let here = tokio::runtime::Runtime::new().unwrap();
    let scene = here.block_on(Scene::new());
    scene.world.plan("two", [Act::Hang]);
    let there = tokio::runtime::Runtime::new().unwrap();
    let (doomed, id) = there.block_on(async {
        let engine = scene.engine();
        let id = engine
            .submit::<Crossing>(&order("a"), "tester")
            .await
            .unwrap();
        scene.reached().await;
        (engine, id)
    });
    let heir = {
        let _in = here.enter();
        scene.engine()
    };
    there.shutdown_background();
    let job = here.block_on(end_of(&heir, id));
    assert_eq!(job.state, JobState::Done);
    assert_eq!(job.step("two").unwrap().attempts, 2);
    drop(doomed);
}

#[tokio::test]
async fn a_shut_down_engine_leaves_its_jobs_resumable() {
    for name in &NAMES[..] {
        let scene = Scene::new().await;
        scene.world.plan(name, [Act::Hang]);
        let engine = scene.engine();
        let id = engine
            .submit::<Crossing>(&order("a"), "tester")
            .await
            .unwrap();
        scene.reached().await;
        engine.shutdown().await;
        assert_eq!(engine.get(id).await.unwrap().state, JobState::Running);
        let next = scene.engine();
        assert_eq!(end_of(&next, id).await.state, JobState::Done, "{name}");
        assert_eq!(scene.world.effects(), NAMES[1..]);
    }
}

#[tokio::test]
async fn a_cancel_asked_for_while_no_engine_runs_is_heeded_by_the_next() {
    let scene = Scene::new().await;
    scene.world.plan("two", [Act::Hang]);
    let engine = scene.engine();
    let id = engine
        .submit::<Crossing>(&order("a"), "tester")
        .await
        .unwrap();
    scene.reached().await;
    engine.shutdown().await;
    engine.cancel(id, "boss").await.unwrap();
    let next = scene.engine();
    let job = end_of(&next, id).await;
    assert_eq!(job.state, JobState::Undone);
    assert!(scene.world.effects().is_empty());
}

/// Reports progress, then waits for the test's word.
struct Reporting(Arc<World>);

impl JobKind for Reporting {
    const NAME: &'static str = "reporting";
    type Input = Order;
    fn locks(_: &Order) -> Vec<String> {
        Vec::new()
    }
    fn steps(&self) -> Steps<Order> {
        Steps::new().check(Report(Arc::clone(&self.0)))
    }
}

struct Report(Arc<World>);

#[async_trait]
impl Step<Order> for Report {
    const NAME: &'static str = "report";
    type Output = ();
    async fn run(&self, cx: &StepContext<Order>) -> Result<(), StepError> {
        cx.progress().text("copying");
        for done in 0..=1000 {
            cx.progress().bytes(done, 1000);
            tokio::task::yield_now().await;
        }
        self.0.gate.notified().await;
        Ok(())
    }
}

#[tokio::test]
async fn progress_is_seen_live_and_stored_seldom() {
    let scene = Scene::new().await;
    let registry = || Registry::new().with(Reporting(Arc::clone(&scene.world)));
    let engine = Engine::start(Arc::clone(&scene.store), registry(), quick());
    until("leads", || engine.is_leader()).await;
    let onlooker = Engine::start(Arc::clone(&scene.store), registry(), quick());
    let before = scene.store.revision().await.unwrap();
    let id = engine
        .submit::<Reporting>(&order("a"), "tester")
        .await
        .unwrap();
    let complete = |job: &Job| {
        let progress = job.progress.as_ref();
        progress.is_some_and(|p| p.percent() == Some(100.0) && p.text.as_deref() == Some("copying"))
    };
    let job = seen(&engine, id, complete).await;
    assert_eq!(job.progress.unwrap().step, "report");
    // through the store, where another engine runs the job
    seen(&onlooker, id, complete).await;
    let listed = onlooker
        .list(&JobFilter {
            active: Some(true),
            ..JobFilter::default()
        })
        .await;
    assert!(complete(&listed.unwrap()[0]));
    let writes = scene.store.revision().await.unwrap().0 - before.0;
    assert!(writes < 20, "{writes} writes for 1000 reports");
    scene.world.gate.notify_one();
    assert_eq!(end_of(&engine, id).await.state, JobState::Done);
    assert!(scene.keys("job-progress/").await.is_empty());
}

#[tokio::test]
async fn a_child_uses_its_parents_lock_and_is_the_same_after_a_restart() {
    let scene = Scene::new().await;
    scene.world.plan("one", [Act::Hang]);
    let engine = scene.engine();
    let id = engine
        .submit::<Parent>(&order("a"), "tester")
        .await
        .unwrap();
    scene.reached().await;
    engine.shutdown().await;
    let engine = scene.engine();
    let parent = end_of(&engine, id).await;
    assert_eq!(parent.state, JobState::Done);
    let children = JobFilter {
        parent: Some(id),
        ..JobFilter::default()
    };
    let children = engine.list(&children).await.unwrap();
    assert_eq!(children.len(), 1);
    assert_eq!(parent.output::<JobId>("run-child"), Some(children[0].id));
    assert!(scene.keys("job-locks/").await.is_empty());
}

#[tokio::test]
async fn cancelling_the_parent_cancels_the_child() {
    let scene = Scene::new().await;
    scene.world.plan("one", [Act::HeedCancel]);
    let engine = scene.engine();
    let id = engine
        .submit::<Parent>(&order("a"), "tester")
        .await
        .unwrap();
    scene.reached().await;
    engine.cancel(id, "boss").await.unwrap();
    assert_eq!(end_of(&engine, id).await.state, JobState::Undone);
    let all = engine.list(&JobFilter::default()).await.unwrap();
    assert!(
        all.iter().all(|job| job.state == JobState::Undone),
        "{all:?}"
    );
    assert!(scene.world.effects().is_empty());
}

#[tokio::test]
async fn a_failed_child_fails_the_step_with_its_own_failure() {
    let scene = Scene::new().await;
    scene.world.plan("one", [Act::Fail]);
    let engine = scene.engine();
    let id = engine
        .submit::<Parent>(&order("a"), "tester")
        .await
        .unwrap();
    let job = end_of(&engine, id).await;
    assert_eq!(job.state, JobState::Undone);
    assert_eq!(job.failure.unwrap().what, "one failed as told");
}

#[tokio::test]
async fn a_job_given_up_ends_as_failed_and_frees_its_locks() {
    let scene = Scene::new().await;
    scene.world.plan("two", [Act::Fail]);
    scene.world.plan("undo two", [Act::Fail; 10_000]);
    let engine = scene.engine();
    let id = engine
        .submit::<Crossing>(&order("a"), "tester")
        .await
        .unwrap();
    seen(&engine, id, |job| {
        job.state == JobState::Undoing && job.waiting.is_some()
    })
    .await;
    let job = engine.abandon(id, "boss").await.unwrap();
    assert_eq!(job.state, JobState::Failed);
    assert!(
        job.failure
            .unwrap()
            .because
            .contains("undo two failed as told")
    );
    assert!(scene.keys("job-locks/").await.is_empty());
    let calls = scene.world.calls().len();
    scene.world.acts.lock().unwrap().clear();
    let next = engine
        .submit::<Crossing>(&order("a"), "tester")
        .await
        .unwrap();
    assert_eq!(end_of(&engine, next).await.state, JobState::Done);
    assert!(scene.world.calls().len() <= calls + 1 + NAMES.len());
    assert_eq!(engine.get(id).await.unwrap().state, JobState::Failed);
}

#[tokio::test]
async fn a_job_of_an_unknown_kind_waits_for_a_program_that_knows_it() {
    let scene = Scene::new().await;
    scene.world.plan("two", [Act::Hang]);
    let engine = scene.engine();
    let id = engine
        .submit::<Crossing>(&order("a"), "tester")
        .await
        .unwrap();
    scene.reached().await;
    engine.shutdown().await;

    let stranger = Engine::start(Arc::clone(&scene.store), Registry::new(), quick());
    let job = seen(&stranger, id, |job| job.waiting.is_some()).await;
    assert!(job.waiting.unwrap().reason.contains("does not know"));
    let refused = stranger.submit::<Short>(&order("b"), "tester").await;
    assert!(
        matches!(refused, Err(JobError::UnknownKind { .. })),
        "{refused:?}"
    );
    stranger.shutdown().await;

    let next = scene.engine();
    let job = end_of(&next, id).await;
    assert_eq!(job.state, JobState::Done);
}

#[tokio::test]
async fn old_ended_jobs_are_forgotten_and_the_latest_kept() {
    let scene = Scene::new().await;
    let engine = scene.engine();
    for i in 0..6 {
        let id = engine
            .submit::<Short>(&order(&format!("{i}")), "tester")
            .await
            .unwrap();
        end_of(&engine, id).await;
    }
    scene.world.plan("one", [Act::Gate]);
    let active = engine
        .submit::<Short>(&order("active"), "tester")
        .await
        .unwrap();
    scene.reached().await;
    engine.shutdown().await;
    let mut options = quick();
    options.retention = Retention {
        age: Duration::ZERO,
        keep: 2,
    };
    scene.world.plan("one", [Act::Gate]);
    let engine = Engine::start(Arc::clone(&scene.store), scene.registry(), options);
    let deadline = Instant::now() + PATIENCE;
    while scene.keys("jobs/").await.len() > 3 {
        assert!(Instant::now() < deadline, "not pruned");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let left = engine.list(&JobFilter::default()).await.unwrap();
    let left: Vec<_> = left.iter().map(|job| job.resources[0].as_str()).collect();
    assert_eq!(left, ["order/active", "order/5", "order/4"]);
    scene.world.gate.notify_waiters();
    scene.world.gate.notify_one();
    assert_eq!(end_of(&engine, active).await.state, JobState::Done);
}

#[tokio::test]
async fn more_jobs_than_slots_wait_their_turn_and_can_be_cancelled_meanwhile() {
    let scene = Scene::new().await;
    scene.world.plan("one", [Act::Gate]);
    let options = EngineOptions {
        running: 1,
        ..quick()
    };
    let engine = Engine::start(Arc::clone(&scene.store), scene.registry(), options);
    let first = engine.submit::<Short>(&order("a"), "tester").await.unwrap();
    scene.reached().await;
    let second = engine.submit::<Short>(&order("b"), "tester").await.unwrap();
    let third = engine.submit::<Short>(&order("c"), "tester").await.unwrap();
    engine.cancel(third, "boss").await.unwrap();
    assert_eq!(end_of(&engine, third).await.state, JobState::Undone);
    assert_eq!(engine.get(second).await.unwrap().state, JobState::Pending);
    scene.world.gate.notify_one();
    assert_eq!(end_of(&engine, first).await.state, JobState::Done);
    assert_eq!(end_of(&engine, second).await.state, JobState::Done);
    assert_eq!(scene.world.calls(), ["one", "one"]);
}

#[tokio::test]
async fn a_full_disk_holds_a_job_up_and_room_lets_it_go_on() {
    let mut scene = Scene::new().await;
    let options = SqliteOptions {
        size_limit: Some(512 * 1024),
        ..SqliteOptions::default()
    };
    let path = scene.dir.path().join("small.db");
    scene.store = Arc::new(SqliteStore::open_with(path, options).await.unwrap());
    scene.world.plan("two", [Act::Gate]);
    let engine = scene.engine();
    let id = engine
        .submit::<Crossing>(&order("a"), "tester")
        .await
        .unwrap();
    scene.reached().await;
    // old versions, which can be compacted away, then new keys into what gaps are left
    let fill = |key: String, size| scene.store.commit(Txn::new().put(key, vec![7; size]));
    while fill("fill".into(), 50_000).await.is_ok() {}
    for size in [2_000, 1] {
        let mut n = 0;
        while fill(format!("fill/{size}/{n}"), size).await.is_ok() {
            n += 1;
        }
    }
    let refused = engine.submit::<Short>(&order("b"), "tester").await;
    assert!(
        matches!(refused, Err(JobError::Store(StoreError::DiskFull { .. }))),
        "{refused:?}"
    );
    scene.world.gate.notify_one();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(scene.world.calls().last().unwrap(), "two");
    assert_eq!(engine.get(id).await.unwrap().state, JobState::Running);

    let everything = scene.store.revision().await.unwrap();
    scene.store.compact(everything).await.unwrap();
    assert_eq!(end_of(&engine, id).await.state, JobState::Done);
    assert_eq!(scene.world.calls(), NAMES);
}

#[tokio::test]
async fn what_is_not_there_is_said_so() {
    let scene = Scene::new().await;
    let engine = scene.engine();
    let id = JobId(Uuid::from_u128(1));
    assert!(matches!(
        engine.get(id).await,
        Err(JobError::NotFound { .. })
    ));
    assert!(matches!(
        engine.cancel(id, "x").await,
        Err(JobError::NotFound { .. })
    ));
    assert!(matches!(
        engine.wait(id).await,
        Err(JobError::NotFound { .. })
    ));
    assert!(matches!(
        engine.abandon(id, "x").await,
        Err(JobError::NotFound { .. })
    ));
}

#[test]
#[should_panic(expected = "two steps called one")]
fn a_kind_with_two_steps_of_one_name_is_a_mistake_in_the_program() {
    struct Twice;
    impl JobKind for Twice {
        const NAME: &'static str = "twice";
        type Input = Order;
        fn locks(_: &Order) -> Vec<String> {
            Vec::new()
        }
        fn steps(&self) -> Steps<Order> {
            Steps::new()
                .step(Told::<1>(Arc::default()))
                .step(Told::<1>(Arc::default()))
        }
    }
    let _ = Registry::new().with(Twice);
}

//! Kill -9 at every place of every step, then a new process goes on: everything is done once, or nothing is.
//!
//! The job runs in a child process on a SQLite store; its effects lie in the same store, outside the
//! engine's keys. The harness asks the registry for all steps, so that a new one is walked, too.

#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

use fleetward_failpoint::{HOLD_DIR_VARIABLE, HoldPoints};
use fleetward_jobs::{
    Absence, Backoff, Debtor, Engine, EngineOptions, Job, JobError, JobFilter, JobKind, JobState,
    Patience, Registry, Settled, Step, StepContext, StepError, StepState, Steps, Submission,
    UndoStep, async_trait,
};
use fleetward_model::{ErrorCode, Failure, JobId};
use fleetward_store::{Guard, Range, SqliteStore, Store, StoreExt, Txn};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(20);
const STORE: &str = "JOBS_TEST_STORE";
const COURSE: &str = "JOBS_TEST_COURSE";
const THE_JOB: JobId = JobId(Uuid::from_u128(0xf1ee7));

/// How the job is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Course {
    /// To the end.
    Well,
    /// The last step before the point of no return fails, with its effect half made.
    Back,
    /// The same step fails, but its effect proves irrevocable.
    Forward,
    /// As `Well`; the far host has died before the last step, and comes back when the job has ended.
    WellAlone,
    /// As `Back`; the far host has died before the first undo, and comes back when the job has ended.
    BackAlone,
}

impl Course {
    fn far_host_dies(self) -> bool {
        matches!(self, Self::WellAlone | Self::BackAlone)
    }
}

/// Where effects are made: some beside the engine, some on a host that may be away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Near,
    Far,
}

const FAR: &str = "far-host";

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Order {
    name: String,
    course: Course,
}

/// Makes effects of which there is one each, and refuses whoever was overtaken.
struct Effects(Arc<dyn Store>, Place);

impl Effects {
    /// Whoever comes with a smaller generation is an attempt that was given up.
    async fn fence(&self, cx: &StepContext<Order>) -> Result<(), StepError> {
        let place = self.1;
        if place == Place::Far && self.far_is_away().await {
            let what = Failure::new(ErrorCode::HostUnreachable, "the far host does not answer");
            return Err(what.into());
        }
        let key = format!("fence/{place:?}/{}", cx.input().name);
        let held = self
            .0
            .get_json::<u64>(&key)
            .await
            .expect("read")
            .map_or(0, |held| held.value);
        // a debt that is paid once more comes with the same again
        let passes = held < cx.generation() || cx.pays_debt() && held == cx.generation();
        assert!(passes, "generation {} after {held}", cx.generation());
        let _ = self
            .0
            .put_json(&key, &cx.generation(), Guard::Any)
            .await
            .expect("write");
        Ok(())
    }

    async fn far_is_away(&self) -> bool {
        let there = async |key| self.0.get(key).await.expect("read").is_some();
        there("told/dead").await && !there("told/back-again").await
    }

    async fn far_dies(&self) {
        let dead = Txn::new().put("told/dead", "");
        let _ = self.0.commit(dead).await.expect("write");
    }

    async fn make(&self, cx: &StepContext<Order>, what: &str) -> Result<(), StepError> {
        self.fence(cx).await?;
        let key = format!("effect/{}/{what}", cx.input().name);
        // there already: an earlier attempt made it
        let _ = self
            .0
            .commit(Txn::new().if_absent(&key).put(key, ""))
            .await
            .expect("write");
        Ok(())
    }

    async fn remove(&self, cx: &StepContext<Order>, what: &str) -> Result<(), StepError> {
        self.fence(cx).await?;
        let key = format!("effect/{}/{what}", cx.input().name);
        let _ = self.0.commit(Txn::new().delete(key)).await.expect("write");
        Ok(())
    }
}

/// Declares a step that makes its own effect, and the undo that removes it.
macro_rules! effect_step {
    ($step:ident, $name:literal) => {
        struct $step(Effects);

        #[async_trait]
        impl Step<Order> for $step {
            const NAME: &'static str = $name;
            type Output = String;
            fn absence(&self, _cx: &StepContext<Order>) -> Absence {
                absence(self.0.1)
            }

            async fn run(&self, cx: &StepContext<Order>) -> Result<String, StepError> {
                self.0.make(cx, $name).await?;
                Ok($name.to_owned())
            }
        }

        #[async_trait]
        impl UndoStep<Order> for $step {
            fn undo_absence(&self, _cx: &StepContext<Order>) -> Absence {
                absence(self.0.1)
            }

            async fn undo(&self, cx: &StepContext<Order>) -> Result<(), StepError> {
                self.0.remove(cx, $name).await
            }
        }
    };
}

fn absence(place: Place) -> Absence {
    match place {
        Place::Near => Absence::Wait,
        Place::Far => Absence::Owe(Debtor::new(FAR).removing("thing/it")),
    }
}

effect_step!(Reserve, "reserve");
effect_step!(Build, "build");
effect_step!(Announce, "announce");
effect_step!(PartOne, "part-one");
effect_step!(PartTwo, "part-two");

struct Look;

#[async_trait]
impl Step<Order> for Look {
    const NAME: &'static str = "look";
    type Output = ();
    async fn run(&self, _cx: &StepContext<Order>) -> Result<(), StepError> {
        Ok(())
    }
}

/// Runs a child job under the same name; its undo removes what the child made.
struct Parts(Effects);

#[async_trait]
impl Step<Order> for Parts {
    const NAME: &'static str = "parts";
    type Output = JobId;
    async fn run(&self, cx: &StepContext<Order>) -> Result<JobId, StepError> {
        let order = Order {
            name: format!("{}/child", cx.input().name),
            ..cx.input().clone()
        };
        Ok(cx.run_child::<Part>("part", &order).await?.id)
    }
}

#[async_trait]
impl UndoStep<Order> for Parts {
    async fn undo(&self, cx: &StepContext<Order>) -> Result<(), StepError> {
        cx.stop_child("part").await?;
        self.0.remove(cx, "child/part-one").await?;
        // a new attempt of the same step: the fence of the first half is passed already
        let key = format!("effect/{}/child/part-two", cx.input().name);
        let _ = self
            .0
            .0
            .commit(Txn::new().delete(key))
            .await
            .expect("write");
        Ok(())
    }
}

/// The last step before the point of no return; fails the first time if the course says so.
struct Cross(Effects);

#[async_trait]
impl Step<Order> for Cross {
    const NAME: &'static str = "cross";
    type Output = ();
    async fn run(&self, cx: &StepContext<Order>) -> Result<(), StepError> {
        // needs what earlier steps handed on, also after a restart
        assert_eq!(cx.output::<Reserve>()?, "reserve");
        let told = Failure::new(ErrorCode::HypervisorFailed, "failed as told");
        let been_here = self.0.0.get("told/forward").await.expect("read").is_some();
        self.0.make(cx, "cross").await?;
        if cx.input().course.far_host_dies() {
            self.0.far_dies().await;
        }
        match cx.input().course {
            Course::Back | Course::BackAlone => Err(StepError::fatal(told)),
            Course::Forward if !been_here => Err(StepError::fatal(told)),
            Course::Well | Course::Forward | Course::WellAlone => Ok(()),
        }
    }
}

#[async_trait]
impl UndoStep<Order> for Cross {
    async fn undo(&self, cx: &StepContext<Order>) -> Result<(), StepError> {
        if cx.input().course == Course::Forward {
            self.0.fence(cx).await?;
            let _ = self
                .0
                .0
                .commit(Txn::new().put("told/forward", ""))
                .await
                .expect("write");
            return Err(StepError::past_undo("it is out"));
        }
        self.0.remove(cx, "cross").await
    }
}

struct Sample(Arc<dyn Store>);
struct Part(Arc<dyn Store>);

impl JobKind for Sample {
    const NAME: &'static str = "sample";
    type Input = Order;
    fn locks(order: &Order) -> Vec<String> {
        vec![format!("thing/{}", order.name)]
    }
    fn steps(&self) -> Steps<Order> {
        let near = || Effects(Arc::clone(&self.0), Place::Near);
        let far = || Effects(Arc::clone(&self.0), Place::Far);
        Steps::new()
            .check(Look)
            .step(Reserve(far()))
            .step(Build(far()))
            .step(Parts(near()))
            .step(Cross(near()))
            .forward(Announce(far()))
    }
}

impl JobKind for Part {
    const NAME: &'static str = "part";
    type Input = Order;
    fn locks(order: &Order) -> Vec<String> {
        vec![format!("thing/{}", order.name)]
    }
    fn steps(&self) -> Steps<Order> {
        let effects = || Effects(Arc::clone(&self.0), Place::Near);
        Steps::new()
            .step(PartOne(effects()))
            .forward(PartTwo(effects()))
    }
}

const ALL_EFFECTS: [&str; 6] = [
    "announce",
    "build",
    "child/part-one",
    "child/part-two",
    "cross",
    "reserve",
];

fn registry(store: &Arc<dyn Store>) -> Registry {
    Registry::new()
        .with(Sample(Arc::clone(store)))
        .with(Part(Arc::clone(store)))
}

fn options() -> EngineOptions {
    EngineOptions {
        backoff: Backoff {
            first: Duration::from_millis(10),
            most: Duration::from_millis(50),
        },
        patience: Patience {
            forward: PATIENCE,
            owed: Duration::from_millis(30),
        },
        ..EngineOptions::default()
    }
}

/// Opens the store, submits the job unless that has been done, and runs it to its end. A far host that has died is back
/// then, and pays what it owes.
async fn run_to_the_end(path: &Path, course: Course) -> (Arc<dyn Store>, Engine, Job) {
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(path).await.expect("open"));
    let engine = Engine::start(Arc::clone(&store), registry(&store), options());
    let order = Order {
        name: "it".into(),
        course,
    };
    let submission = Submission::by("tester").with_id(THE_JOB);
    let id = engine
        .submit_as::<Sample>(&order, submission)
        .await
        .expect("submit");
    let job = tokio::time::timeout(PATIENCE, engine.wait(id))
        .await
        .expect("ends in time");
    let job = job.expect("wait");
    if !course.far_host_dies() {
        return (store, engine, job);
    }
    let back = Txn::new().put("told/back-again", "");
    let _ = store.commit(back).await.expect("write");
    // of another engine's term are the debts loaded when this one leads
    let deadline = Instant::now() + PATIENCE;
    while !engine.is_leader() {
        assert!(Instant::now() < deadline, "does not lead");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert_eq!(engine.settle(FAR).await.expect("settle"), Settled::All);
    let job = engine.get(id).await.expect("still there");
    (store, engine, job)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run as a child by the tests that kill it"]
async fn child_runs_the_job() {
    let (Some(path), Ok(course)) = (std::env::var_os(STORE), std::env::var(COURSE)) else {
        return;
    };
    let course = serde_json::from_str(&course).expect("a course");
    run_to_the_end(Path::new(&path), course).await;
}

struct Scene {
    dir: TempDir,
    course: Course,
}

impl Scene {
    fn new(course: Course) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(dir.path().join("points")).expect("create");
        Self { dir, course }
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store.db")
    }

    fn points(&self) -> HoldPoints {
        HoldPoints::in_directory(self.dir.path().join("points"))
    }

    fn spawn(&self) -> Child {
        Command::new(std::env::current_exe().expect("own path"))
            .args(["--exact", "child_runs_the_job", "--ignored"])
            .env(STORE, self.store())
            .env(COURSE, serde_json::to_string(&self.course).expect("text"))
            .env(HOLD_DIR_VARIABLE, self.dir.path().join("points"))
            .stdout(Stdio::null())
            .spawn()
            .expect("spawn")
    }

    /// All points that a run without a kill passes.
    async fn points_passed(&self) -> BTreeSet<String> {
        let mut child = self.spawn();
        wait_for("the free run", || child.try_wait().expect("wait").is_some()).await;
        assert!(child.wait().expect("wait").success());
        self.check_end().await;
        self.points().reached().expect("list").into_iter().collect()
    }

    /// Runs the job until it reaches `point`, and kills it there.
    async fn kill_at(&self, point: &str) {
        self.points().set(point).expect("set");
        let mut child = self.spawn();
        let points = self.points();
        wait_for(point, || {
            assert!(
                child.try_wait().expect("wait").is_none(),
                "ended before {point}"
            );
            points.is_reached(point)
        })
        .await;
        child.kill().expect("kill");
        child.wait().expect("wait");
        points.release(point).expect("release");
    }

    /// Goes on in this process and holds the end against the course.
    async fn check_end(&self) {
        let (store, engine, job) = run_to_the_end(&self.store(), self.course).await;
        let effects = store
            .list(Range::prefix("effect/"))
            .await
            .expect("list")
            .entries;
        let found: Vec<_> = effects
            .iter()
            .map(|entry| entry.key.trim_start_matches("effect/it/"))
            .collect();
        match self.course {
            Course::Well | Course::Forward | Course::WellAlone => {
                assert_eq!(job.state, JobState::Done);
                assert_eq!(found, ALL_EFFECTS);
                assert!(
                    effects.iter().all(|effect| effect.version == 1),
                    "made twice"
                );
            }
            Course::Back | Course::BackAlone => {
                assert_eq!(job.state, JobState::Undone);
                assert_eq!(found, [""; 0]);
            }
        }
        let owed = job.steps.iter().any(|step| step.state == StepState::Owed);
        assert!(!owed, "paid, and not said so: {job:#?}");
        let jobs = engine.list(&JobFilter::default()).await.expect("list");
        assert!(
            jobs.len() <= 2 && jobs.iter().all(|job| job.state.has_ended()),
            "{jobs:?}"
        );
        engine.shutdown().await;
        for prefix in [
            "job-locks/",
            "job-cancels/",
            "job-progress/",
            "job-engine/owner",
            "debts/",
        ] {
            let left = store
                .list(Range::prefix(prefix))
                .await
                .expect("list")
                .entries;
            assert!(left.is_empty(), "{left:?}");
        }
    }
}

async fn wait_for(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Every point there can be, from the registry alone.
async fn all_points() -> BTreeSet<String> {
    let dir = tempfile::tempdir().expect("temporary directory");
    let store: Arc<dyn Store> = Arc::new(
        SqliteStore::open(dir.path().join("store.db"))
            .await
            .expect("open"),
    );
    let mut points = BTreeSet::new();
    for kind in registry(&store).kinds() {
        for step in kind.steps {
            let mut places = vec!["before", "after", "recorded"];
            if step.undoable {
                places.extend(["undo.before", "undo.after", "undo.recorded"]);
            }
            let point = |place| format!("job.{}.{}.{place}", kind.name, step.name);
            points.extend(places.into_iter().map(point));
        }
    }
    points
}

async fn walk(course: Course) -> BTreeSet<String> {
    let points = Scene::new(course).points_passed().await;
    for point in &points {
        let scene = Scene::new(course);
        scene.kill_at(point).await;
        scene.check_end().await;
    }
    points
}

#[tokio::test]
async fn killed_anywhere_the_job_ends_done_once_or_undone() {
    let mut walked = walk(Course::Well).await;
    walked.extend(walk(Course::Back).await);
    walked.extend(walk(Course::Forward).await);
    // only the child's first step can be undone without ever being: its job is never turned back here
    let never = all_points()
        .await
        .difference(&walked)
        .cloned()
        .collect::<Vec<_>>();
    let expected = ["after", "before", "recorded"].map(|p| format!("job.part.part-one.undo.{p}"));
    assert_eq!(never, expected);
}

#[tokio::test]
async fn killed_anywhere_a_job_whose_host_died_ends_and_the_host_pays_once() {
    let mut walked = walk(Course::WellAlone).await;
    walked.extend(walk(Course::BackAlone).await);
    // the places that a job passes only when somebody is away, found by themselves
    for (step, place) in [
        ("announce", "owed"),
        ("build", "owed"),
        ("reserve", "owed"),
        ("announce", "pay.before"),
        ("announce", "pay.after"),
        ("announce", "pay.recorded"),
        ("build", "pay.before"),
        ("build", "pay.after"),
        ("build", "pay.recorded"),
        ("reserve", "pay.before"),
        ("reserve", "pay.after"),
        ("reserve", "pay.recorded"),
    ] {
        let point = format!("job.sample.{step}.{place}");
        assert!(walked.contains(&point), "{point} was not walked");
    }
    // owed together with the undo of build, and never asked for before
    assert!(!walked.contains("job.sample.reserve.undo.before"));
}

#[tokio::test]
async fn killed_anywhere_and_cancelled_before_it_goes_on_it_is_done_or_undone() {
    let (mut done, mut undone) = (0, 0);
    for point in Scene::new(Course::Well).points_passed().await {
        let scene = Scene::new(Course::Well);
        scene.kill_at(&point).await;
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(scene.store()).await.expect("open"));
        let stranger = Engine::start(Arc::clone(&store), Registry::new(), options());
        let asked = stranger.cancel(THE_JOB, "boss").await;
        stranger.shutdown().await;
        drop((stranger, store));
        let (store, engine, job) = run_to_the_end(&scene.store(), scene.course).await;
        let left = store
            .list(Range::prefix("effect/"))
            .await
            .expect("list")
            .entries
            .len();
        match job.state {
            JobState::Done => {
                assert!(
                    matches!(asked, Err(JobError::NotCancellable { .. })),
                    "{point}: {asked:?}"
                );
                assert_eq!(left, ALL_EFFECTS.len(), "{point}");
                done += 1;
            }
            JobState::Undone => {
                assert!(asked.is_ok(), "{point}");
                assert_eq!(left, 0, "{point}");
                undone += 1;
            }
            other => panic!("{point}: {other:?}"),
        }
        let active = JobFilter {
            active: Some(true),
            ..JobFilter::default()
        };
        assert!(
            engine.list(&active).await.expect("list").is_empty(),
            "{point}"
        );
        engine.shutdown().await;
    }
    assert!(done > 2 && undone > 10, "{done} done, {undone} undone");
}

#[tokio::test]
async fn killed_at_two_points_in_a_row_it_ends_all_the_same() {
    let steps = ["reserve", "build", "parts", "cross"];
    for (course, second) in [(Course::Back, "undo.after"), (Course::Forward, "after")] {
        for step in steps {
            let scene = Scene::new(course);
            scene.kill_at(&format!("job.sample.{step}.after")).await;
            let then = if course == Course::Back {
                step
            } else {
                "cross"
            };
            scene.kill_at(&format!("job.sample.{then}.{second}")).await;
            scene.check_end().await;
        }
    }
}

#[tokio::test]
async fn killed_at_any_moment_again_and_again_it_ends_all_the_same() {
    for course in [Course::Well, Course::Back, Course::Forward] {
        let scene = Scene::new(course);
        for round in 0..12_u64 {
            let mut child = scene.spawn();
            tokio::time::sleep(Duration::from_millis(4 + 5 * round)).await;
            child.kill().expect("kill");
            child.wait().expect("wait");
        }
        scene.check_end().await;
    }
}

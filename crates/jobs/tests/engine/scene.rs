//! The steps that do as they are told, the kinds of jobs made of them, and an engine to run them.

use fleetward_jobs::{
    Absence, Backoff, Engine, EngineOptions, Job, JobKind, Patience, Registry, Step, StepContext,
    StepError, Steps, UndoStep, async_trait,
};
use fleetward_model::{ErrorCode, Failure, JobId};
use fleetward_store::{Range, SqliteStore, Store};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::sync::Notify;

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What a step (or, with "undo " before its name, an undo) does the next time it is called.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Act {
    Fail,
    FailForNow,
    /// Fails as a host does for which something newer has happened.
    FailAsStale,
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
    SayNotBegun,
}

/// The world the steps act on: what exists, what was called, what is to happen.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) acts: Mutex<HashMap<String, VecDeque<Act>>>,
    pub(crate) calls: Mutex<Vec<String>>,
    pub(crate) effects: Mutex<Vec<&'static str>>,
    pub(crate) generations: Mutex<Vec<u64>>,
    /// What becomes of a step (or, with "undo " before its name, an undo) whose host stays away.
    pub(crate) absences: Mutex<HashMap<&'static str, Absence>>,
    /// Steps that have nothing to do.
    pub(crate) pointless: Mutex<Vec<&'static str>>,
    pub(crate) reached: Notify,
    pub(crate) gate: Notify,
}

impl World {
    pub(crate) fn plan(&self, call: &str, acts: impl IntoIterator<Item = Act>) {
        self.acts
            .lock()
            .unwrap()
            .entry(call.to_owned())
            .or_default()
            .extend(acts);
    }

    pub(crate) fn absent(&self, call: &'static str, absence: Absence) {
        self.absences.lock().unwrap().insert(call, absence);
    }

    fn absence(&self, call: &str) -> Absence {
        let absences = self.absences.lock().unwrap();
        absences.get(call).cloned().unwrap_or(Absence::Wait)
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    pub(crate) fn effects(&self) -> Vec<&'static str> {
        self.effects.lock().unwrap().clone()
    }

    /// Carries out what is planned for `call`; the effect itself is the caller's.
    pub(crate) async fn act(&self, call: String, cx: &StepContext<Order>) -> Result<(), StepError> {
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
            Some(Act::FailAsStale) => Err(StepError::fatal(failure(ErrorCode::StaleGeneration))),
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
            Some(Act::SayNotBegun) => {
                Err(StepError::not_begun(failure(ErrorCode::HostUnreachable)))
            }
            Some(Act::SayPastUndo) => Err(StepError::past_undo("it is done already")),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) name: String,
}

pub(crate) const NAMES: [&str; 6] = ["look", "one", "two", "cross", "ahead", "last"];

/// The step called `NAMES[N]`.
pub(crate) struct Told<const N: usize>(pub(crate) Arc<World>);

#[async_trait]
impl<const N: usize> Step<Order> for Told<N> {
    const NAME: &'static str = NAMES[N];
    const RETRY_FOR: Duration = Duration::from_millis(300);
    type Output = String;

    fn applies(&self, _cx: &StepContext<Order>) -> bool {
        !self.0.pointless.lock().unwrap().contains(&Self::NAME)
    }

    fn absence(&self, _cx: &StepContext<Order>) -> Absence {
        self.0.absence(Self::NAME)
    }

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
    fn undo_absence(&self, _cx: &StepContext<Order>) -> Absence {
        self.0.absence(&format!("undo {}", Self::NAME))
    }

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
pub(crate) struct Crossing(pub(crate) Arc<World>);

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
pub(crate) struct Short(pub(crate) Arc<World>);

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
pub(crate) struct Parent;
pub(crate) struct RunChild;

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

pub(crate) struct Scene {
    pub(crate) dir: TempDir,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) world: Arc<World>,
}

pub(crate) fn order(name: &str) -> Order {
    Order {
        name: name.to_owned(),
    }
}

pub(crate) fn quick() -> EngineOptions {
    EngineOptions {
        lease: Duration::from_millis(600),
        backoff: Backoff {
            first: Duration::from_millis(20),
            most: Duration::from_millis(100),
        },
        patience: Patience {
            forward: Duration::from_secs(10),
            owed: Duration::from_millis(60),
        },
        lasting_pause: Duration::from_millis(100),
        cancel_grace: Duration::from_millis(200),
        progress_every: Duration::from_millis(100),
        ..EngineOptions::default()
    }
}

impl Scene {
    pub(crate) async fn new() -> Self {
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

    pub(crate) fn registry(&self) -> Registry {
        let world = || Arc::clone(&self.world);
        Registry::new()
            .with(Crossing(world()))
            .with(Short(world()))
            .with(Parent)
    }

    pub(crate) fn engine(&self) -> Engine {
        Engine::start(Arc::clone(&self.store), self.registry(), quick())
    }

    pub(crate) async fn crossing(&self) -> Job {
        let engine = self.engine();
        let id = engine
            .submit::<Crossing>(&order("a"), "tester")
            .await
            .unwrap();
        let job = end_of(&engine, id).await;
        engine.shutdown().await;
        job
    }

    pub(crate) async fn keys(&self, prefix: &str) -> Vec<String> {
        let page = self.store.list(Range::prefix(prefix)).await.unwrap();
        page.entries.into_iter().map(|entry| entry.key).collect()
    }

    pub(crate) async fn reached(&self) {
        tokio::time::timeout(PATIENCE, self.world.reached.notified())
            .await
            .expect("reached");
    }
}

pub(crate) async fn end_of(engine: &Engine, id: JobId) -> Job {
    tokio::time::timeout(PATIENCE, engine.wait(id))
        .await
        .expect("ends in time")
        .unwrap()
}

/// The first update of the job that is as wanted.
pub(crate) async fn seen(engine: &Engine, id: JobId, mut wanted: impl FnMut(&Job) -> bool) -> Job {
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

pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

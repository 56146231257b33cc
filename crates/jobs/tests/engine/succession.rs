//! One engine after another, or beside it: what was under way goes on.

use crate::scene::{Act, Crossing, NAMES, Order, Scene, Short, World, end_of, order, quick, until};
use fleetward_jobs::{
    Engine, JobError, JobKind, JobState, Registry, Step, StepContext, StepError, Steps, async_trait,
};
use std::sync::Arc;

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

/// A step without an output, and one that asks for it.
struct Plain(Arc<World>);
struct Nothing;
struct AskForNothing(Arc<World>);

impl JobKind for Plain {
    const NAME: &'static str = "plain";
    type Input = Order;

    fn locks(_: &Order) -> Vec<String> {
        Vec::new()
    }

    fn steps(&self) -> Steps<Order> {
        Steps::new()
            .check(Nothing)
            .check(AskForNothing(Arc::clone(&self.0)))
    }
}

#[async_trait]
impl Step<Order> for Nothing {
    const NAME: &'static str = "nothing";
    type Output = ();

    async fn run(&self, _: &StepContext<Order>) -> Result<(), StepError> {
        Ok(())
    }
}

#[async_trait]
impl Step<Order> for AskForNothing {
    const NAME: &'static str = "ask-for-nothing";
    type Output = ();

    async fn run(&self, cx: &StepContext<Order>) -> Result<(), StepError> {
        self.0.act(Self::NAME.to_owned(), cx).await?;
        assert!(cx.output_if_done::<Self>()?.is_none());
        cx.output::<Nothing>()
    }
}

#[tokio::test]
async fn an_output_of_nothing_is_an_output_after_a_restart_too() {
    let scene = Scene::new().await;
    scene.world.plan("ask-for-nothing", [Act::Hang]);
    let registry = || Registry::new().with(Plain(Arc::clone(&scene.world)));
    let engine = Engine::start(Arc::clone(&scene.store), registry(), quick());
    let id = engine.submit::<Plain>(&order("a"), "tester").await.unwrap();
    scene.reached().await;
    engine.shutdown().await;

    let engine = Engine::start(Arc::clone(&scene.store), registry(), quick());
    let job = end_of(&engine, id).await;
    assert_eq!(job.state, JobState::Done, "{job:#?}");
    assert_eq!(job.output::<()>("nothing"), Some(()));
    engine.shutdown().await;
}

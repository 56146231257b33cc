//! Progress: seen at once, stored seldom.

use crate::scene::{Order, Scene, World, end_of, order, quick, seen, until};
use fleetward_jobs::{
    Engine, Job, JobFilter, JobKind, JobState, Registry, Step, StepContext, StepError, Steps,
    async_trait,
};
use std::sync::Arc;

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

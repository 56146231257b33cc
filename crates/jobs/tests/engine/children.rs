//! Jobs of jobs.

use crate::scene::{Act, Parent, Scene, end_of, order};
use fleetward_jobs::{JobFilter, JobState};
use fleetward_model::JobId;

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

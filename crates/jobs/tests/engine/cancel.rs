//! A cancel: when it takes everything back, and when it comes too late.

use crate::scene::{Act, Crossing, NAMES, PATIENCE, Scene, end_of, order, quick, seen};
use fleetward_jobs::{Backoff, Engine, JobError, JobState};
use fleetward_model::ErrorCode;
use std::sync::Arc;

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

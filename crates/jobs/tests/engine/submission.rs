//! Submitting: locks, repeats, generations.

use crate::scene::{Act, Crossing, Scene, Short, end_of, order};
use fleetward_jobs::{Engine, JobError, JobFilter, Submission};
use fleetward_model::{ErrorCode, JobId};
use uuid::Uuid;

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

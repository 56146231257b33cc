//! What becomes of the steps of one job: order, failures, retries, the way back.

use crate::scene::{Act, Crossing, NAMES, Scene, end_of, order, seen};
use fleetward_jobs::{JobError, JobState, StepState};
use fleetward_model::ErrorCode;

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

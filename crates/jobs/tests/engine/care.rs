//! What administrators and time do to jobs: given up, set aside, pruned, waiting for room.

use crate::scene::{
    Act, Crossing, NAMES, Order, PATIENCE, Scene, Short, Told, end_of, order, quick, seen,
};
use fleetward_jobs::{
    Engine, EngineOptions, JobError, JobFilter, JobKind, JobState, Registry, Retention, Steps,
};
use fleetward_model::JobId;
use fleetward_store::{SqliteOptions, SqliteStore, StoreError, Txn};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

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
    let job = engine.give_up(id, "boss").await.unwrap();
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
        engine.give_up(id, "x").await,
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

//! Somebody whom a job needs stays away: the job ends, and what is left to do is owed until they are back.

use crate::scene::{Act, Crossing, Scene, Short, end_of, order, quick, seen};
use fleetward_jobs::{
    Absence, Debtor, Engine, EngineOptions, Job, JobState, Patience, Settled, StepState,
};
use fleetward_model::ErrorCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

const MANY: [Act; 1000] = [Act::FailForNow; 1000];

fn by(host: &str) -> Absence {
    Absence::Owe(Debtor::new(host).removing("order/a"))
}

fn state_of(job: &Job, step: &str) -> StepState {
    job.step(step).unwrap().state
}

/// A crossing that turned back, with the undo of step two owed by host b.
async fn owed_undo(scene: &Scene, engine: &Engine) -> Job {
    scene.world.plan("cross", [Act::Fail]);
    scene.world.plan("undo two", MANY);
    scene.world.absent("undo two", by("b"));
    let id = engine
        .submit::<Crossing>(&order("a"), "tester")
        .await
        .unwrap();
    end_of(engine, id).await
}

fn back_again(scene: &Scene) {
    scene.world.acts.lock().unwrap().clear();
}

#[tokio::test]
async fn an_undo_is_owed_by_who_stays_away_and_paid_when_they_are_back() {
    let scene = Scene::new().await;
    let options = quick();
    let debts = Arc::clone(&options.debts);
    let engine = Engine::start(Arc::clone(&scene.store), scene.registry(), options);
    let job = owed_undo(&scene, &engine).await;
    assert_eq!(job.state, JobState::Undone);
    assert_eq!(
        job.failure.as_ref().unwrap().code,
        ErrorCode::HypervisorFailed
    );
    assert_eq!(state_of(&job, "two"), StepState::Owed);
    assert_eq!(state_of(&job, "one"), StepState::Undone);
    assert_eq!(
        scene.world.effects(),
        ["two"],
        "what is owed is still there"
    );
    // everything is free, and whoever asks knows who owes what
    assert!(scene.keys("job-locks/").await.is_empty());
    assert!(debts.holds_up("b") && !debts.holds_up("a"));
    assert!(debts.removes("b", "order/a") && !debts.removes("b", "order/b"));
    assert_eq!(
        scene.keys("debts/").await,
        [format!("debts/b/{}/two", job.id)]
    );
    scene.world.absences.lock().unwrap().clear();
    scene.world.plan("one", [Act::Fail]);
    let next = engine.submit::<Short>(&order("a"), "tester").await.unwrap();
    assert_eq!(end_of(&engine, next).await.state, JobState::Undone);

    assert_eq!(engine.settle("b").await.unwrap(), Settled::Away);
    assert!(debts.holds_up("b"));
    back_again(&scene);
    assert_eq!(engine.settle("b").await.unwrap(), Settled::All);
    assert!(scene.world.effects().is_empty());
    assert!(debts.is_empty() && scene.keys("debts/").await.is_empty());
    let job = engine.get(job.id).await.unwrap();
    assert_eq!(state_of(&job, "two"), StepState::Undone);
    // paid with the generation of the attempt that found nobody: older than what has happened since
    let calls = scene.world.calls();
    let generations = scene.world.generations.lock().unwrap().clone();
    let failed = calls.iter().rposition(|call| call == "undo one").unwrap();
    assert!(generations.last().unwrap() < &generations[failed]);
    assert_eq!(
        engine.settle("b").await.unwrap(),
        Settled::All,
        "nothing twice"
    );
    assert_eq!(scene.world.calls().len(), calls.len());
}

#[tokio::test]
async fn what_the_same_host_would_undo_later_is_owed_unasked_and_paid_in_order() {
    let scene = Scene::new().await;
    let engine = scene.engine();
    scene.world.absent("undo one", by("b"));
    let job = owed_undo(&scene, &engine).await;
    assert_eq!(job.state, JobState::Undone);
    assert_eq!(state_of(&job, "one"), StepState::Owed);
    assert!(
        !scene.world.calls().contains(&"undo one".to_owned()),
        "asked out of turn"
    );
    back_again(&scene);
    scene.world.calls.lock().unwrap().clear();
    assert_eq!(engine.settle("b").await.unwrap(), Settled::All);
    assert_eq!(scene.world.calls(), ["undo two", "undo one"]);
    assert!(scene.world.effects().is_empty());
}

#[tokio::test]
async fn a_debt_outlives_the_engine_and_the_record_of_its_job() {
    let scene = Scene::new().await;
    let engine = scene.engine();
    let job = owed_undo(&scene, &engine).await;
    engine.shutdown().await;
    let forgotten = fleetward_store::Txn::new().delete(format!("jobs/{}", job.id));
    let _ = scene.store.commit(forgotten).await.unwrap();
    back_again(&scene);
    let options = quick();
    let debts = Arc::clone(&options.debts);
    let next = Engine::start(Arc::clone(&scene.store), scene.registry(), options);
    crate::scene::until("the debts are known again", || debts.holds_up("b")).await;
    assert_eq!(next.settle("b").await.unwrap(), Settled::All);
    assert!(scene.world.effects().is_empty());
    assert!(scene.keys("debts/").await.is_empty());
}

#[tokio::test]
async fn a_last_step_is_owed_and_the_job_is_done_or_failed_where_it_was_what_the_job_was_for() {
    for half_way in [false, true] {
        let scene = Scene::new().await;
        let engine = scene.engine();
        scene.world.plan("ahead", MANY);
        let debtor = Debtor::new("b").about("order/a");
        let debtor = if half_way { debtor.half_way() } else { debtor };
        scene.world.absent("ahead", Absence::Owe(debtor));
        let id = engine
            .submit::<Crossing>(&order("a"), "tester")
            .await
            .unwrap();
        let job = end_of(&engine, id).await;
        assert_eq!(state_of(&job, "ahead"), StepState::Owed);
        if half_way {
            assert_eq!(job.state, JobState::Failed);
            assert_eq!(job.failure.unwrap().code, ErrorCode::HostUnreachable);
            assert!(!scene.world.calls().contains(&"last".to_owned()));
        } else {
            assert_eq!((job.state, job.failure), (JobState::Done, None));
            assert!(scene.world.calls().contains(&"last".to_owned()));
        }
        assert!(scene.keys("job-locks/").await.is_empty());
        back_again(&scene);
        assert_eq!(engine.settle("b").await.unwrap(), Settled::All);
        assert!(scene.world.effects().contains(&"ahead"));
        let job = engine.get(id).await.unwrap();
        assert_eq!(state_of(&job, "ahead"), StepState::Done);
    }
}

#[tokio::test]
async fn a_debt_that_waiting_does_not_cure_says_so_and_holds_up_no_other() {
    let scene = Scene::new().await;
    let options = quick();
    let debts = Arc::clone(&options.debts);
    let engine = Engine::start(Arc::clone(&scene.store), scene.registry(), options);
    let job = owed_undo(&scene, &engine).await;
    back_again(&scene);
    scene.world.plan("undo two", [Act::Fail, Act::Panic]);
    for attempts in 1..=2 {
        assert_eq!(engine.settle("b").await.unwrap(), Settled::Failed);
        let [debt] = &debts.of("b")[..] else {
            panic!("one debt")
        };
        assert_eq!(debt.attempts, attempts);
        assert!(debt.failure.is_some());
        assert!(!debts.holds_up("b") && debts.concerns("b", "order/a"));
    }
    // given up, it is gone, and the job says so
    let job = engine.give_up(job.id, "boss").await.unwrap();
    assert_eq!(job.state, JobState::Undone);
    assert_eq!(state_of(&job, "two"), StepState::Failed);
    assert!(debts.is_empty() && scene.keys("debts/").await.is_empty());
    assert_eq!(scene.world.effects(), ["two"]);
}

#[tokio::test]
async fn a_debt_that_something_newer_made_void_is_dropped() {
    let scene = Scene::new().await;
    let engine = scene.engine();
    owed_undo(&scene, &engine).await;
    back_again(&scene);
    scene.world.plan("undo two", [Act::FailAsStale]);
    assert_eq!(engine.settle("b").await.unwrap(), Settled::All);
    assert!(scene.keys("debts/").await.is_empty());
    assert_eq!(scene.world.effects(), ["two"], "left to who is newer");
}

#[tokio::test]
async fn a_debt_paid_while_its_job_is_under_way_is_noted_when_that_ends() {
    let scene = Scene::new().await;
    let options = quick();
    let debts = Arc::clone(&options.debts);
    let engine = Engine::start(Arc::clone(&scene.store), scene.registry(), options);
    scene.world.plan("cross", [Act::Fail]);
    scene.world.plan("undo two", MANY);
    scene.world.plan("undo one", [Act::Gate]);
    scene.world.absent("undo two", by("b"));
    let id = engine
        .submit::<Crossing>(&order("a"), "tester")
        .await
        .unwrap();
    scene.reached().await;
    assert!(debts.holds_up("b"));
    scene.world.acts.lock().unwrap().remove("undo two");
    assert_eq!(engine.settle("b").await.unwrap(), Settled::All);
    assert_eq!(scene.world.effects(), ["one"]);
    scene.world.gate.notify_one();
    let job = end_of(&engine, id).await;
    assert_eq!(job.state, JobState::Undone);
    assert_eq!(state_of(&job, "two"), StepState::Undone);
    assert!(debts.is_empty());
}

#[tokio::test]
async fn an_undo_that_may_be_left_out_is_and_the_job_says_what_that_leaves() {
    let scene = Scene::new().await;
    let engine = scene.engine();
    scene.world.plan("cross", [Act::Fail]);
    scene.world.plan("undo one", MANY);
    let told = "it stays as it is".to_owned();
    scene.world.absent("undo one", Absence::Forgo(told.clone()));
    let id = engine
        .submit::<Crossing>(&order("a"), "tester")
        .await
        .unwrap();
    let job = end_of(&engine, id).await;
    assert_eq!(job.state, JobState::Undone);
    let one = job.step("one").unwrap();
    assert_eq!(
        (one.state, one.forgone.as_ref()),
        (StepState::Undone, Some(&told))
    );
    assert!(scene.keys("debts/").await.is_empty());
}

#[tokio::test]
async fn a_host_that_is_back_in_time_owes_nothing() {
    let scene = Scene::new().await;
    let options = EngineOptions {
        patience: Patience {
            forward: Duration::from_secs(10),
            owed: Duration::from_secs(10),
        },
        ..quick()
    };
    let engine = Engine::start(Arc::clone(&scene.store), scene.registry(), options);
    scene.world.plan("cross", [Act::Fail]);
    scene.world.plan("undo two", [Act::FailForNow; 3]);
    scene.world.absent("undo two", by("b"));
    let id = engine
        .submit::<Crossing>(&order("a"), "tester")
        .await
        .unwrap();
    let job = end_of(&engine, id).await;
    assert_eq!(state_of(&job, "two"), StepState::Undone);
    assert!(scene.world.effects().is_empty() && scene.keys("debts/").await.is_empty());
}

#[tokio::test]
async fn a_step_turns_back_sooner_for_somebody_who_is_away() {
    let scene = Scene::new().await;
    let options = EngineOptions {
        patience: Patience {
            forward: Duration::from_millis(50),
            owed: Duration::from_millis(50),
        },
        ..quick()
    };
    let engine = Engine::start(Arc::clone(&scene.store), scene.registry(), options);
    scene.world.plan("two", MANY);
    let begun = Instant::now();
    let id = engine
        .submit::<Crossing>(&order("a"), "tester")
        .await
        .unwrap();
    let job = end_of(&engine, id).await;
    assert_eq!(job.state, JobState::Undone);
    assert_eq!(job.failure.unwrap().code, ErrorCode::HostUnreachable);
    assert!(
        begun.elapsed() < Duration::from_millis(300),
        "as long as for other causes"
    );
}

#[tokio::test]
async fn what_does_not_pass_by_itself_is_not_tried_hotly_and_says_so() {
    for (step, planned) in [("undo two", "two"), ("ahead", "never")] {
        let scene = Scene::new().await;
        let options = EngineOptions {
            lasting_pause: Duration::from_secs(3600),
            ..quick()
        };
        let engine = Engine::start(Arc::clone(&scene.store), scene.registry(), options);
        scene.world.plan(planned, [Act::Fail]);
        scene.world.plan(step, [Act::Fail; 1000]);
        let id = engine
            .submit::<Crossing>(&order("a"), "tester")
            .await
            .unwrap();
        let lasting = |job: &Job| job.waiting.as_ref().is_some_and(|waiting| waiting.lasting);
        seen(&engine, id, lasting).await;
        let tries = scene
            .world
            .calls()
            .iter()
            .filter(|call| *call == step)
            .count();
        assert_eq!(tries, 3, "{step}");
        let job = engine.give_up(id, "boss").await.unwrap();
        assert_eq!(job.state, JobState::Failed);
        assert!(scene.keys("job-locks/").await.is_empty());
    }
}

#[tokio::test]
async fn a_step_with_nothing_to_do_is_skipped_and_never_undone() {
    let scene = Scene::new().await;
    scene
        .world
        .pointless
        .lock()
        .unwrap()
        .extend(["two", "last"]);
    let job = scene.crossing().await;
    assert_eq!(job.state, JobState::Done);
    assert_eq!(state_of(&job, "two"), StepState::Skipped);
    assert_eq!(state_of(&job, "last"), StepState::Skipped);
    assert_eq!(scene.world.calls(), ["look", "one", "cross", "ahead"]);

    scene.world.calls.lock().unwrap().clear();
    scene.world.plan("cross", [Act::Fail]);
    let job = scene.crossing().await;
    assert_eq!(job.state, JobState::Undone);
    assert_eq!(state_of(&job, "two"), StepState::Skipped);
    assert_eq!(
        scene.world.calls(),
        ["look", "one", "cross", "undo cross", "undo one"]
    );
}

#[tokio::test]
async fn a_skipped_crossing_is_the_point_of_no_return_all_the_same() {
    let scene = Scene::new().await;
    scene.world.pointless.lock().unwrap().push("cross");
    scene.world.plan("ahead", [Act::Fail]);
    let job = scene.crossing().await;
    assert_eq!(job.state, JobState::Done);
    assert!(job.past_return);
}

#[tokio::test]
async fn the_first_step_past_the_point_of_no_return_can_turn_back_and_no_later_one() {
    let scene = Scene::new().await;
    scene
        .world
        .plan("ahead", [Act::FailForNow, Act::SayNotBegun]);
    let job = scene.crossing().await;
    assert_eq!(job.state, JobState::Undone);
    assert_eq!(job.failure.unwrap().code, ErrorCode::HostUnreachable);
    let undone = ["undo cross", "undo two", "undo one"];
    assert_eq!(scene.world.calls()[6..], undone);

    let scene = Scene::new().await;
    scene.world.plan("last", [Act::SayNotBegun]);
    let job = scene.crossing().await;
    assert_eq!(job.state, JobState::Done);
}

#[tokio::test]
async fn a_job_that_turned_back_for_somebody_away_does_not_wait_for_them_anew() {
    let scene = Scene::new().await;
    let options = EngineOptions {
        patience: Patience {
            forward: Duration::from_millis(200),
            owed: Duration::from_millis(200),
        },
        ..quick()
    };
    let engine = Engine::start(Arc::clone(&scene.store), scene.registry(), options);
    scene.world.plan("two", MANY);
    scene.world.plan("undo two", MANY);
    scene.world.absent("undo two", by("b"));
    let id = engine
        .submit::<Crossing>(&order("a"), "tester")
        .await
        .unwrap();
    let job = end_of(&engine, id).await;
    assert_eq!(state_of(&job, "two"), StepState::Owed);
    let asked = scene
        .world
        .calls()
        .iter()
        .filter(|call| *call == "undo two")
        .count();
    assert_eq!(asked, 1);
}

/// As written by the program of before there were debts.
#[test]
fn a_record_of_an_older_program_is_read() {
    let text = r#"{
        "id": "5f8e3c1a-3f0e-4a53-9c57-0f3b2a1d7e10", "kind": "crossing", "input": {"name": "a"}, "created_by": "boss",
        "parent": null, "resources": ["order/a"], "held": ["order/a"], "state": "undoing",
        "created_at": "2026-11-01T10:00:00Z", "started_at": "2026-11-01T10:00:00Z", "ended_at": null,
        "steps": [
            {"name": "one", "state": "undoing", "attempts": 1, "undo_attempts": 3, "started_at": "2026-11-01T10:00:00Z",
             "ended_at": null, "output": null, "failure": null, "failing_since": "2026-11-01T10:00:10Z"}
        ],
        "past_return": false, "failure": null,
        "waiting": {"reason": "host b does not answer", "since": "2026-11-01T10:00:10Z",
                    "next_attempt_at": "2026-11-01T10:00:40Z"},
        "cancel": null
    }"#;
    let job: Job = serde_json::from_str(text).unwrap();
    assert_eq!(state_of(&job, "one"), StepState::Undoing);
    assert!(!job.waiting.unwrap().lasting);
}

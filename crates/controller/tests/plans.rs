//! What the controller says a change of TPMs would do, before it is asked for.

#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

#[expect(dead_code, reason = "each test program uses its own part")]
mod fleet;

use fleet::{Controller, failure};
use fleetward_api::plans::{QuestionAbout, TpmPlan, Would};
use fleetward_model::ErrorCode;
use http::Method;
use serde_json::{Value, json};

/// VMs `bare` (without a TPM), `one` and `two` on host `a`, `far` on host `b`.
async fn vms(controller: &Controller) {
    for (name, host, tpm) in [
        ("bare", "a", false),
        ("one", "a", true),
        ("two", "a", true),
        ("far", "b", true),
    ] {
        let labels = json!({ "tier": if name == "two" { "back" } else { "front" } });
        let body = json!({ "name": name, "host": host, "disk_bytes": 1 << 30, "tpm": tpm, "labels": labels });
        controller.done(Method::POST, "/v1/vms", &body).await;
    }
}

async fn plan(controller: &Controller, request: Value) -> TpmPlan {
    controller.post("/v1/tpm-plans", &request).await
}

fn said(plan: &TpmPlan, vm: &str) -> (Would, Option<ErrorCode>, String) {
    let found = plan.vms.iter().find(|plan| plan.vm.as_str() == vm);
    let found = found.unwrap_or_else(|| panic!("nothing is said of {vm}: {plan:?}"));
    (found.would, found.code, found.message.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_knows_of_hosts_that_are_away_of_running_vms_and_of_what_is_so_already() {
    let controller = Controller::start().await;
    let _a = controller.join("a", "default").await;
    let b = controller.join("b", "default").await;
    vms(&controller).await;
    b.cut();
    controller
        .wait_online(&"b".parse().expect("name"), false)
        .await;
    controller
        .done(Method::POST, "/v1/vms/two/start", &json!({}))
        .await;

    let all = plan(&controller, json!({ "change": "disable", "all": true })).await;
    let nothing = (Would::Nothing, None, "nothing to do: has no TPM".to_owned());
    assert_eq!(said(&all, "bare"), nothing);
    let away = "host b of VM far does not answer".to_owned();
    assert_eq!(
        said(&all, "far"),
        (Would::Fail, Some(ErrorCode::HostUnreachable), away)
    );
    let change = "would lose its TPM on host a; the TPM is kept".to_owned();
    assert_eq!(said(&all, "one"), (Would::Change, None, change));
    let (would, code, message) = said(&all, "two");
    assert_eq!((would, code), (Would::Fail, Some(ErrorCode::VmRunning)));
    assert!(
        message.contains("only while the VM is stopped"),
        "{message}"
    );

    let question = all.question.expect("a TPM that is lost is asked about");
    assert_eq!(question.about, QuestionAbout::TpmIsLost);
    let lose: Vec<_> = question.vms.iter().map(|vm| vm.as_str()).collect();
    assert_eq!(lose, ["far", "one", "two"]);

    let restart = json!({ "change": "disable", "names": ["two"], "stop_and_restart": true });
    let (would, _, message) = said(&plan(&controller, restart).await, "two");
    assert_eq!(would, Would::Change);
    assert!(message.contains("after an orderly shutdown"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_roll_spares_chosen_vms_without_a_tpm_and_refuses_those_that_were_named() {
    let controller = Controller::start().await;
    let _agents = [
        controller.join("a", "default").await,
        controller.join("b", "default").await,
    ];
    vms(&controller).await;
    let chosen = plan(
        &controller,
        json!({ "change": "roll", "host": "a", "labels": ["tier=front"] }),
    )
    .await;
    let names: Vec<_> = chosen.vms.iter().map(|plan| plan.vm.as_str()).collect();
    assert_eq!(names, ["bare", "one"]);
    assert!(chosen.vms[0].spared && !chosen.vms[1].spared);
    assert_eq!(said(&chosen, "bare").0, Would::Nothing);
    assert_eq!(chosen.question, None);

    let named = plan(
        &controller,
        json!({ "change": "roll", "names": ["bare", "bare"] }),
    )
    .await;
    assert_eq!(named.vms.len(), 1);
    assert_eq!(said(&named, "bare").1, Some(ErrorCode::VmStateWrong));
    assert!(!named.vms[0].spared);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_says_where_a_new_tpm_or_another_version_closes_what_was_sealed() {
    let controller = Controller::start().await;
    let _agents = [
        controller.join("a", "default").await,
        controller.join("b", "default").await,
    ];
    vms(&controller).await;
    let replaced = plan(
        &controller,
        json!({ "change": "restore", "names": ["one"], "version": 1 }),
    )
    .await;
    assert_eq!(
        replaced.question.expect("a question").about,
        QuestionAbout::TpmIsReplaced
    );

    controller
        .done(Method::POST, "/v1/vms/one/tpm/disable", &json!({}))
        .await;
    let enable = json!({ "change": "enable", "names": ["one", "bare"] });
    let again = plan(&controller, enable).await;
    let question = again.question.clone().expect("a question");
    assert_eq!(question.about, QuestionAbout::NewTpmOpensNothing);
    assert_eq!(question.vms.len(), 1, "bare never had one: {question:?}");
    assert!(said(&again, "one").2.contains("would be lost to it"));
    assert_eq!(said(&again, "bare").2, "would get a TPM on host a");
    let nothing_is_lost = json!({ "change": "restore", "names": ["one"], "version": 1 });
    assert_eq!(plan(&controller, nothing_is_lost).await.question, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_of_unknown_vms_or_of_none_is_refused() {
    let controller = Controller::start().await;
    for (request, code) in [
        (
            json!({ "change": "roll", "names": ["ghost"] }),
            ErrorCode::VmNotFound,
        ),
        (json!({ "change": "roll" }), ErrorCode::InvalidArgument),
        (
            json!({ "change": "roll", "names": ["x"], "all": true }),
            ErrorCode::InvalidArgument,
        ),
        (
            json!({ "change": "explode", "all": true }),
            ErrorCode::InvalidRequest,
        ),
    ] {
        let (_, failure) =
            failure(&controller.local, Method::POST, "/v1/tpm-plans", &request).await;
        assert_eq!(failure.code, code, "{request}");
    }
}

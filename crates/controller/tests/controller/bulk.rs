//! Bulk requests: what a dry run says, and what becomes of each VM when hosts, VMs and the controller itself go away.

use crate::fleet::agent::FakeAgent;
use crate::fleet::{Controller, failure};
use fleetward_api::bulk::{BulkEntry, BulkEvent, BulkSummary, Plan, Question, Would};
use fleetward_api::controller::{
    CheckView, HostView, JobView, Outcome, Role, SecureBootView, VmView,
};
use fleetward_link::client::{Client, Lines};
use fleetward_model::secure_boot::{CertificateState, SecureBootObserved};
use fleetward_model::vm::VmState;
use fleetward_model::{ErrorCode, JobId, VmId};
use http::Method;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const BULK: &str = "/v1/bulk";

/// The lines of an answer, as they come.
struct Events(Lines);

impl Events {
    async fn of(client: &Client, request: &Value) -> Self {
        let sent = client
            .request(Method::POST, BULK)
            .json(request)
            .send()
            .await;
        Self(
            sent.unwrap_or_else(|error| panic!("{request}: {error:?}"))
                .lines(),
        )
    }

    /// None at the end, or where the answer is cut off.
    async fn next(&mut self) -> Option<BulkEvent> {
        let next = tokio::time::timeout(Duration::from_secs(60), self.0.next_json());
        next.await.expect("a line within a minute").ok().flatten()
    }

    async fn job_of(&mut self, vm: &str) -> String {
        let [job] = self.jobs_of([vm]).await;
        job
    }

    /// The jobs of VMs whose submission is told, in whichever order.
    async fn jobs_of<const N: usize>(&mut self, vms: [&str; N]) -> [String; N] {
        let mut jobs = BTreeMap::new();
        while !vms.iter().all(|vm| jobs.contains_key(*vm)) {
            if let BulkEvent::Submitted(line) = self.next().await.expect("another line") {
                jobs.insert(line.target.to_string(), line.job.to_string());
            }
        }
        vms.map(|vm| jobs[vm].clone())
    }

    /// To the summary.
    async fn ends(mut self) -> (BTreeMap<String, BulkEntry>, BulkSummary) {
        let mut ends = BTreeMap::new();
        loop {
            match self.next().await.expect("a summary") {
                BulkEvent::Ended(entry) => {
                    let before = ends.insert(entry.target.to_string(), *entry);
                    assert!(before.is_none(), "ended twice: {before:?}");
                }
                BulkEvent::Summary(summary) => return (ends, summary),
                _ => {}
            }
        }
    }
}

async fn bulk(
    controller: &Controller,
    request: Value,
) -> (BTreeMap<String, BulkEntry>, BulkSummary) {
    Events::of(&controller.local, &request).await.ends().await
}

/// A dry run of a verb.
async fn plans(controller: &Controller, action: Value, vms: Value) -> Vec<Plan> {
    let request = json!({ "action": action, "vms": vms, "dry_run": true });
    let mut events = Events::of(&controller.local, &request).await;
    let mut plans = Vec::new();
    loop {
        match events.next().await.expect("a summary") {
            BulkEvent::Planned(plan) => plans.push(plan),
            BulkEvent::Summary(summary) => {
                assert_eq!(summary.skipped, plans.len());
                return plans;
            }
            other => panic!("a dry run said {other:?}"),
        }
    }
}

fn verb(verb: &str) -> Value {
    json!({ "verb": verb })
}

fn named(names: &[&str]) -> Value {
    json!({ "named": names })
}

fn said(plans: &[Plan], vm: &str) -> (Would, Option<ErrorCode>, String) {
    let found = plans.iter().find(|plan| plan.target.as_str() == vm);
    let found = found.unwrap_or_else(|| panic!("nothing is said of {vm}: {plans:?}"));
    let code = found.failure.as_ref().map(|failure| failure.code);
    (found.would, code, found.message.clone())
}

fn asked(plans: &[Plan]) -> Vec<(&str, Question)> {
    let asked = plans.iter();
    asked
        .filter_map(|plan| Some((plan.target.as_str(), plan.question?)))
        .collect()
}

/// A controller with hosts `a` and `b`, and on them VMs `bare` (without a TPM), `one`, `two` and `far` (on `b`).
async fn fleet_of_four() -> (Controller, FakeAgent, FakeAgent) {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    let b = controller.join("b", "default").await;
    a.knows(&b);
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
    (controller, a, b)
}

async fn start(controller: &Controller, vm: &str) {
    let path = format!("/v1/vms/{vm}/start");
    controller.done(Method::POST, &path, &json!({})).await;
}

async fn cut(controller: &Controller, agent: &FakeAgent) {
    agent.cut();
    controller.wait_online(&agent.host, false).await;
}

async fn state_of(controller: &Controller, vm: &str) -> VmState {
    let view: VmView = controller.get(&format!("/v1/vms/{vm}")).await;
    view.state
}

async fn jobs(controller: &Controller, kind: &str) -> usize {
    let jobs: Vec<JobView> = controller.get(&format!("/v1/jobs?kind={kind}")).await;
    jobs.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_knows_of_hosts_that_are_away_of_running_vms_and_of_what_is_so_already() {
    let (controller, _a, b) = fleet_of_four().await;
    cut(&controller, &b).await;
    start(&controller, "two").await;

    let all = plans(&controller, verb("tpm_disable"), json!("all")).await;
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
    let lost = [
        ("far", Question::TpmIsLost),
        ("one", Question::TpmIsLost),
        ("two", Question::TpmIsLost),
    ];
    assert_eq!(asked(&all), lost);

    let restart = json!({ "verb": "tpm_disable", "stop_and_restart": true });
    let (would, _, message) = said(&plans(&controller, restart, named(&["two"])).await, "two");
    assert_eq!(would, Would::Change);
    assert!(message.contains("after an orderly shutdown"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_roll_skips_chosen_vms_without_a_tpm_and_refuses_those_that_were_named() {
    let (controller, _a, _b) = fleet_of_four().await;
    let front = json!({ "matching": { "host": "a", "labels": ["tier=front"] } });
    let chosen = plans(&controller, verb("tpm_roll"), front).await;
    let names: Vec<_> = chosen.iter().map(|plan| plan.target.as_str()).collect();
    assert_eq!(names, ["bare", "one"]);
    assert_eq!(said(&chosen, "bare").0, Would::Nothing);
    assert_eq!(asked(&chosen), []);

    let twice = plans(&controller, verb("tpm_roll"), named(&["bare", "bare"])).await;
    assert_eq!(twice.len(), 1);
    assert_eq!(said(&twice, "bare").1, Some(ErrorCode::VmStateWrong));

    // the run says the same
    let planned = json!({ "action": verb("tpm_roll"), "vms": { "planned": ["bare"] } });
    let (ends, _) = bulk(&controller, planned).await;
    let bare = &ends["bare"];
    assert_eq!(
        (bare.outcome, bare.message.as_str()),
        (Outcome::Skipped, "has no TPM")
    );
    let request = json!({ "action": verb("tpm_roll"), "vms": named(&["bare", "one"]) });
    let (ends, summary) = bulk(&controller, request).await;
    assert_eq!(ends["bare"].code, Some(ErrorCode::VmStateWrong));
    assert_eq!((summary.succeeded, summary.failed), (1, 1), "{ends:?}");
}

/// Lets the host say what a VM's variables hold.
async fn variables(controller: &Controller, host: &FakeAgent, vm: VmId, state: CertificateState) {
    host.look(|inner| {
        let found = inner.vms.get_mut(&vm).expect("there");
        found.secure_boot = Some(SecureBootObserved::of(state));
        inner.tell(vm);
    });
    controller
        .wait("the variables are told of", async || {
            let view: VmView = controller.get(&format!("/v1/vms/{vm}")).await;
            view.secure_boot.is_some_and(|found| found.state == state)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_vms_get_their_certificates_by_one_request_that_said_before_what_it_costs() {
    use CertificateState::{Custom, Off, Ok as UpToDate, UpdateAvailable};
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    let states = [UpdateAvailable, UpToDate, Custom, Off, UpdateAvailable];
    for n in 0..20 {
        let (name, tpm) = (format!("vm{n:02}"), n % 5 == 0);
        let body = json!({"name": name, "host": "a", "tpm": tpm});
        controller.done(Method::POST, "/v1/vms", &body).await;
        let vm: VmView = controller.get(&format!("/v1/vms/{name}")).await;
        variables(&controller, &a, vm.id, states[n % 5]).await;
    }
    start(&controller, "vm00").await;
    start(&controller, "vm01").await;
    let planned = plans(&controller, verb("secure_boot_enroll"), json!("all")).await;
    let count = |would| planned.iter().filter(|plan| plan.would == would).count();
    assert_eq!(planned.len(), 20);
    // vm00 runs, and is the only one that somebody has to stop
    let refused = said(&planned, "vm00");
    assert_eq!(
        (refused.0, refused.1),
        (Would::Fail, Some(ErrorCode::VmRunning))
    );
    assert_eq!((count(Would::Change), count(Would::Nothing)), (7, 12));
    for left_alone in ["vm01", "vm02", "vm03"] {
        assert_eq!(said(&planned, left_alone).0, Would::Nothing, "{left_alone}");
    }
    let (would, _, message) = said(&planned, "vm05");
    assert_eq!(would, Would::Change);
    for told in [
        "PCR 7",
        "recovery key",
        "manage-bde -protectors -disable C: -RebootCount 1",
    ] {
        assert!(message.contains(told), "{message}");
    }
    let asked_about = asked(&planned);
    assert!(
        asked_about.contains(&("vm05", Question::Pcr7Changes)),
        "{asked_about:?}"
    );
    assert!(
        !asked_about.iter().any(|(vm, _)| *vm == "vm04"),
        "it has no TPM"
    );
    let host: HostView = controller.get("/v1/hosts/a").await;
    assert!(
        host.warnings
            .iter()
            .any(|told| told.starts_with("8 VMs trust only")),
        "{:?}",
        host.warnings
    );
    let found: Vec<CheckView> = controller.get("/v1/check?vm=vm05&to=a").await;
    let codes: Vec<_> = found[0]
        .findings
        .iter()
        .map(|f| (f.code, f.blocking))
        .collect();
    assert!(
        codes.contains(&(ErrorCode::SecureBootOutdated, false)),
        "{codes:?}"
    );

    let named_custom = plans(&controller, verb("secure_boot_enroll"), named(&["vm02"])).await;
    assert_eq!(
        said(&named_custom, "vm02").1,
        Some(ErrorCode::SecureBootCustom)
    );
    let nothing_kept = plans(&controller, verb("secure_boot_restore"), named(&["vm05"])).await;
    assert_eq!(
        said(&nothing_kept, "vm05").1,
        Some(ErrorCode::SecureBootNothingKept)
    );

    let restart = json!({ "verb": "secure_boot_enroll", "stop_and_restart": true });
    let (ends, summary) = bulk(&controller, json!({ "action": restart, "vms": "all" })).await;
    assert_eq!((summary.succeeded, summary.failed), (8, 0), "{ends:?}");
    assert_eq!(state_of(&controller, "vm00").await, VmState::Running);
    let status: Vec<SecureBootView> = controller.get("/v1/secure-boot").await;
    let outdated = status
        .iter()
        .filter(|view| view.state == Some(UpdateAvailable));
    assert_eq!((status.len(), outdated.count()), (20, 0));

    // Back again, where something was kept.
    let restart = json!({ "verb": "secure_boot_restore", "stop_and_restart": true });
    let (ends, summary) = bulk(&controller, json!({ "action": restart, "vms": "all" })).await;
    assert_eq!((summary.succeeded, summary.failed), (8, 0), "{ends:?}");
    let host: HostView = controller.get("/v1/hosts/a").await;
    assert!(
        host.warnings
            .iter()
            .any(|told| told.starts_with("8 VMs trust only")),
        "{:?}",
        host.warnings
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_where_a_new_tpm_or_another_version_closes_what_was_sealed() {
    let (controller, _a, _b) = fleet_of_four().await;
    let restore = json!({ "verb": "tpm_restore", "version": 1 });
    let replaced = plans(&controller, restore.clone(), named(&["one"])).await;
    assert_eq!(asked(&replaced), [("one", Question::TpmIsReplaced)]);

    controller
        .done(Method::POST, "/v1/vms/one/tpm/disable", &json!({}))
        .await;
    let again = plans(&controller, verb("tpm_enable"), named(&["one", "bare"])).await;
    assert_eq!(
        asked(&again),
        [("one", Question::NewTpmOpensNothing)],
        "bare never had one"
    );
    assert!(said(&again, "one").2.contains("would be lost to it"));
    assert_eq!(said(&again, "bare").2, "would get a TPM on host a");
    assert_eq!(
        asked(&plans(&controller, restore, named(&["one"])).await),
        []
    );
    let missing = json!({ "verb": "tpm_restore", "version": 99 });
    let missing = plans(&controller, missing, named(&["one"])).await;
    assert_eq!(said(&missing, "one").1, Some(ErrorCode::TpmVersionNotFound));
}

/// Every verb, on a VM that is stopped and on one that runs: what is refused is refused by name, and the run says the same.
#[tokio::test(flavor = "multi_thread")]
async fn each_verb_has_a_plan_for_each_state_and_a_dry_run_changes_nothing() {
    use ErrorCode::{SameHost, VmNotFound, VmNotRunning, VmRunning};
    let (controller, a, b) = fleet_of_four().await;
    start(&controller, "two").await;
    let jobs_before: Vec<JobView> = controller.get("/v1/jobs").await;
    let looked = || [&a, &b].map(|agent| agent.look(|inner| inner.asked.len()));
    let before = looked();
    let migrate =
        |to: &str, offline: bool| json!({ "verb": "migrate", "to": to, "offline": offline });
    let change = |message: &'static str| (Would::Change, None, message);
    let nothing = |message: &'static str| (Would::Nothing, None, message);
    let fail = |code| (Would::Fail, Some(code), "");
    let table = [
        (verb("start"), "one", change("would be started on host a")),
        (verb("start"), "two", nothing("nothing to do: runs already")),
        (
            verb("stop"),
            "one",
            nothing("nothing to do: is stopped already"),
        ),
        (verb("stop"), "two", change("would be shut down on host a")),
        (
            json!({ "verb": "stop", "force": true }),
            "two",
            change("would have its power cut on host a"),
        ),
        (
            verb("delete"),
            "one",
            change("would be deleted from host a, with its disks and TPM"),
        ),
        (verb("delete"), "two", fail(VmRunning)),
        (
            migrate("b", true),
            "bare",
            change("would move from host a to host b"),
        ),
        (migrate("b", false), "bare", fail(VmNotRunning)),
        (migrate("b", true), "two", fail(VmRunning)),
        (migrate("a", true), "one", fail(SameHost)),
        (
            migrate("nowhere", true),
            "one",
            fail(ErrorCode::HostNotFound),
        ),
        (
            verb("tpm_enable"),
            "one",
            nothing("nothing to do: has a TPM already"),
        ),
        (
            verb("tpm_enable"),
            "bare",
            change("would get a TPM on host a"),
        ),
        (
            verb("tpm_disable"),
            "bare",
            nothing("nothing to do: has no TPM"),
        ),
        (verb("tpm_disable"), "two", fail(VmRunning)),
        (verb("tpm_restore"), "one", fail(ErrorCode::InvalidArgument)),
        (
            verb("tpm_roll"),
            "one",
            change("would get a new TPM key on host a"),
        ),
        (verb("tpm_roll"), "two", fail(VmRunning)),
        (verb("start"), "ghost", fail(VmNotFound)),
    ];
    for (action, vm, (would, code, message)) in table {
        let plans = plans(&controller, action.clone(), named(&[vm])).await;
        let said = said(&plans, vm);
        assert_eq!((said.0, said.1), (would, code), "{action} {vm}: {plans:?}");
        assert!(
            code.is_some() || said.2 == message,
            "{action} {vm}: {said:?}"
        );
    }
    let jobs: Vec<JobView> = controller.get("/v1/jobs").await;
    assert_eq!(jobs.len(), jobs_before.len(), "a dry run made a job");
    let questions = looked().map(|asked| asked);
    assert_eq!(questions, before, "a dry run asked a host to do something");
}

/// Requests that are not made of many VMs.
#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_of_any_other_request_is_refused_like_it_or_changes_nothing() {
    let (controller, a, b) = fleet_of_four().await;
    let jobs_before = controller.get::<Vec<JobView>>("/v1/jobs").await.len();
    let rows = [
        (
            "/v1/vms",
            json!({ "name": "new" }),
            json!({ "name": "one" }),
        ),
        (
            "/v1/vms/one/clone",
            json!({ "name": "twin" }),
            json!({ "name": "far" }),
        ),
        (
            "/v1/templates",
            json!({ "name": "gold", "from": "one" }),
            json!({ "name": "gold", "from": "ghost" }),
        ),
        (
            "/v1/guardian-revocations",
            json!({ "vm": "one", "from": "b" }),
            json!({ "vm": "one", "from": "a" }),
        ),
        (
            "/v1/guardian-rotations",
            json!({ "host": "a" }),
            json!({ "host": "nowhere" }),
        ),
    ];
    let asked = || [&a, &b].map(|agent| agent.look(|inner| inner.asked.clone()));
    let before = asked();
    for (path, good, bad) in rows {
        let dry = |mut request: Value| {
            request["dry_run"] = json!(true);
            request
        };
        let answer: Value = controller.post(path, &dry(good)).await;
        assert_eq!(answer["job"], Value::Null, "{path}: {answer}");
        let real = controller.refusal(Method::POST, path, &bad).await;
        let planned = controller.refusal(Method::POST, path, &dry(bad)).await;
        assert_eq!(planned.code, real.code, "{path}: {planned}");
    }
    let jobs = controller.get::<Vec<JobView>>("/v1/jobs").await.len();
    assert_eq!(jobs, jobs_before, "a dry run made a job");
    assert_eq!(asked(), before, "a dry run asked a host to do something");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_request_says_about_its_vms_must_make_sense() {
    let (controller, _a, _b) = fleet_of_four().await;
    let requests = [
        (
            json!({ "action": verb("tpm_roll"), "vms": named(&["one", "ghost"]) }),
            ErrorCode::VmNotFound,
        ),
        (
            json!({ "action": verb("start"), "vms": named(&[]) }),
            ErrorCode::InvalidArgument,
        ),
        (
            json!({ "action": verb("start"), "vms": { "matching": {} } }),
            ErrorCode::InvalidArgument,
        ),
        (
            json!({ "action": verb("start"), "vms": { "matching": { "labels": ["tier"] } } }),
            ErrorCode::InvalidArgument,
        ),
        (
            json!({ "action": { "verb": "stop", "deadline_seconds": 0 }, "vms": "all" }),
            ErrorCode::InvalidArgument,
        ),
        (
            json!({ "action": verb("start"), "vms": "all", "how": { "parallel": 0 } }),
            ErrorCode::InvalidArgument,
        ),
        (
            json!({ "action": verb("explode"), "vms": "all" }),
            ErrorCode::InvalidRequest,
        ),
    ];
    for (request, code) in requests {
        let (_, failure) = failure(&controller.local, Method::POST, BULK, &request).await;
        assert_eq!(failure.code, code, "{request}");
    }
    for vm in ["one", "two", "far"] {
        assert_eq!(state_of(&controller, vm).await, VmState::Stopped);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_viewer_may_plan_and_not_do() {
    let (controller, _a, _b) = fleet_of_four().await;
    let viewer = controller.admin("eve", Role::Viewer).await;
    let request = |dry_run| json!({ "action": verb("start"), "vms": "all", "dry_run": dry_run });
    let mut events = Events::of(&viewer, &request(true)).await;
    assert!(matches!(events.next().await, Some(BulkEvent::Planned(_))));
    let (status, failure) = failure(&viewer, Method::POST, BULK, &request(false)).await;
    assert_eq!((status, failure.code), (403, ErrorCode::RoleMissing));
}

#[tokio::test(flavor = "multi_thread")]
async fn each_vm_ends_by_itself_and_a_repeated_request_does_the_rest() {
    let (controller, _a, b) = fleet_of_four().await;
    cut(&controller, &b).await;
    let request =
        json!({ "action": verb("start"), "vms": named(&["one", "far", "ghost", "two", "one"]) });
    let (ends, summary) = bulk(&controller, request.clone()).await;
    assert_eq!(
        (summary.succeeded, summary.failed, summary.skipped),
        (2, 2, 0),
        "{ends:#?}"
    );
    assert_eq!(ends["one"].message, "started");
    assert_eq!(ends["far"].code, Some(ErrorCode::HostUnreachable));
    assert_eq!(ends["ghost"].code, Some(ErrorCode::VmNotFound));
    b.comes_back().await;
    controller.wait_online(&b.host, true).await;
    let (ends, summary) = bulk(&controller, request).await;
    assert_eq!(
        (summary.succeeded, summary.failed, summary.skipped),
        (1, 1, 2),
        "{ends:#?}"
    );
    assert_eq!(ends["one"].message, "runs already");
    assert_eq!(ends["far"].message, "started");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_vanishes_in_the_middle_fails_alone() {
    let (controller, a, _b) = fleet_of_four().await;
    a.look(|inner| inner.busy.insert("start"));
    let request = json!({ "action": verb("start"), "vms": named(&["one", "two", "far"]), "how": { "parallel": 1 } });
    let mut events = Events::of(&controller.local, &request).await;
    events.job_of("one").await;
    controller
        .done(Method::DELETE, "/v1/vms/two", &json!({}))
        .await;
    a.look(|inner| inner.busy.clear());
    let (ends, summary) = events.ends().await;
    assert_eq!((summary.succeeded, summary.failed), (2, 1), "{ends:#?}");
    assert_eq!(ends["two"].code, Some(ErrorCode::VmNotFound));
}

#[tokio::test(flavor = "multi_thread")]
async fn after_too_many_failures_nothing_more_is_begun() {
    let (controller, a, _b) = fleet_of_four().await;
    a.look(|inner| inner.broken.insert("start"));
    let request = json!({
        "action": verb("start"), "vms": named(&["bare", "one", "two", "far"]), "how": { "parallel": 1, "max_failures": 2 },
    });
    let (ends, summary) = bulk(&controller, request).await;
    assert_eq!((summary.failed, summary.skipped), (2, 2), "{ends:#?}");
    assert_eq!(ends["two"].message, "not begun: too many failures");
    assert_eq!(state_of(&controller, "far").await, VmState::Stopped);
}

/// A request for two VMs on host a, one at a time, whose first waits: its answer, its first job, and where it is stopped.
async fn waiting_for_one(controller: &Controller, a: &FakeAgent) -> (Events, JobId, String) {
    a.look(|inner| inner.busy.insert("start"));
    let request =
        json!({ "action": verb("start"), "vms": named(&["one", "two"]), "how": { "parallel": 1 } });
    let mut events = Events::of(&controller.local, &request).await;
    let Some(BulkEvent::Begun { bulk }) = events.next().await else {
        panic!("the first line names the request");
    };
    let job = events.job_of("one").await.parse().expect("an id");
    (events, job, format!("/v1/bulk/{bulk}/stop"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_request_says_which_jobs_go_on_and_begins_nothing_more() {
    let (controller, a, _b) = fleet_of_four().await;
    let (events, job, path) = waiting_for_one(&controller, &a).await;
    let stop = || controller.local.request(Method::POST, &path).send();
    stop().await.expect("stopped");
    let (ends, _) = events.ends().await;
    let one = &ends["one"];
    assert!(one.goes_on && one.job == Some(job), "{one:?}");
    assert_eq!(ends["two"].message, "not begun: interrupted");
    a.look(|inner| inner.busy.clear());
    controller.ended(job).await;
    assert_eq!(state_of(&controller, "one").await, VmState::Running);
    assert_eq!(jobs(&controller, "vm-start").await, 1);
    controller
        .wait("the request is over", async || stop().await.is_err())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_nobody_reads_any_longer_begins_nothing_more() {
    let (controller, a, _b) = fleet_of_four().await;
    let (events, job, path) = waiting_for_one(&controller, &a).await;
    drop(events);
    controller
        .wait("the request is over", async || {
            let stopped = controller.local.request(Method::POST, &path).send().await;
            stopped.is_err()
        })
        .await;
    a.look(|inner| inner.busy.clear());
    controller.ended(job).await;
    assert_eq!(jobs(&controller, "vm-start").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_dies_past_the_point_of_no_return_holds_up_nobody() {
    let (controller, _a, b) = fleet_of_four().await;
    b.dies_at("set-aside-tpm", false);
    // one at a time: without giving up on far, one would never have its turn
    let request = json!({ "action": verb("tpm_disable"), "vms": named(&["far", "one"]), "how": { "parallel": 1 } });
    let (ends, _) = bulk(&controller, request).await;
    assert_eq!(ends["far"].outcome, Outcome::Failed, "{ends:#?}");
    assert!(ends["far"].job.is_some() && ends["far"].failure.is_some());
    assert_eq!(ends["one"].outcome, Outcome::Succeeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_waiting_all_jobs_are_submitted_and_the_answer_ends() {
    let (controller, a, _b) = fleet_of_four().await;
    a.look(|inner| inner.busy.insert("start"));
    let request = json!({ "action": verb("start"), "vms": named(&["one", "two", "ghost"]), "how": { "wait": false } });
    let (ends, summary) = bulk(&controller, request).await;
    assert_eq!((summary.succeeded, summary.failed), (2, 1));
    assert!(ends["one"].goes_on && ends["two"].job.is_some());
    a.look(|inner| inner.busy.clear());
    for vm in ["one", "two"] {
        controller.ended(ends[vm].job.expect("a job")).await;
        assert_eq!(state_of(&controller, vm).await, VmState::Running);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_is_taken_up_again_after_the_controller_was_killed_in_the_middle() {
    if std::env::var_os("FLEETWARD_HOLD_DIR").is_some() {
        return; // this process is the controller
    }
    let holds = tempfile::tempdir().expect("directory");
    let mut controller = Controller::spawn(holds.path()).await;
    let a = controller.join("a", "default").await;
    for name in ["one", "two", "three"] {
        let body = json!({ "name": name, "host": "a", "tpm": false });
        controller.done(Method::POST, "/v1/vms", &body).await;
    }
    a.look(|inner| inner.busy.insert("start"));
    let names = ["one", "two", "three"];
    let request =
        json!({ "action": verb("start"), "vms": named(&names), "how": { "parallel": 2 } });
    let mut events = Events::of(&controller.local, &request).await;
    let submitted = events.jobs_of(["one", "two"]).await;
    controller
        .kill_and_restart(holds.path(), || a.look(|inner| inner.busy.clear()))
        .await;
    while let Some(event) = events.next().await {
        assert!(
            !matches!(event, BulkEvent::Summary(_)),
            "cut off, and not ended"
        );
    }
    let jobs_known =
        json!([{ "vm": "one", "job": submitted[0] }, { "vm": "two", "job": submitted[1] }]);
    let again = json!({ "action": verb("start"), "vms": named(&names), "how": { "parallel": 2, "jobs": jobs_known } });
    controller.wait_online(&a.host, true).await;
    let (ends, summary) = bulk(&controller, again).await;
    assert_eq!(summary.succeeded, 3, "{ends:#?}");
    assert_eq!(
        ends["one"].job.map(|job| job.to_string()),
        Some(submitted[0].clone())
    );
    assert_eq!(
        jobs(&controller, "vm-start").await,
        3,
        "nothing was asked for twice"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_vms_are_planned_and_started_by_one_request() {
    const VMS: usize = 1000;
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    let body = json!({ "name": "vm-0", "host": "a", "tpm": false });
    controller.done(Method::POST, "/v1/vms", &body).await;
    a.look(|inner| {
        let first = inner.vms.values().next().expect("the first").clone();
        for number in 1..VMS {
            let mut vm = first.clone();
            let id = VmId(uuid::Uuid::new_v4());
            vm.metadata.spec.id = id;
            vm.metadata.spec.name = format!("vm-{number}").parse().expect("a name");
            inner.vms.insert(id, vm);
        }
    });
    cut(&controller, &a).await;
    a.comes_back().await;
    controller
        .wait("all VMs are told of", async || {
            let vms: Vec<Value> = controller.get("/v1/vms").await;
            vms.len() == VMS
        })
        .await;
    let begun = Instant::now();
    let plans = plans(&controller, verb("start"), json!("all")).await;
    assert!(plans.iter().all(|plan| plan.would == Would::Change));
    assert_eq!(plans.len(), VMS);
    let planned = begun.elapsed();
    let request = json!({ "action": verb("start"), "vms": "all", "how": { "parallel": 64 } });
    let (ends, summary) = bulk(&controller, request).await;
    assert_eq!((ends.len(), summary.succeeded), (VMS, VMS));
    println!(
        "planned in {planned:?}, started in {:?}",
        begun.elapsed() - planned
    );
}

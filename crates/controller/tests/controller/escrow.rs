//! The controller's copies of TPMs, seen from outside: what history and recovery say is what happened.

use crate::findings::is_fleet_wide;
use crate::fleet::Controller;
use crate::fleet::agent::FakeAgent;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_api::agent::TpmStateJudged;
use fleetward_api::controller::{CheckView, JobState};
use fleetward_api::tpm::{BundleParts, TpmBundle, TpmVersion, VersionReason};
use fleetward_model::error::Finding;
use fleetward_model::vm::VmState;
use fleetward_model::{ErrorCode, Failure, HostName, KeyId, VmId};
use fleetward_protector::ExpiredAllowed;
use fleetward_protector_open::{LocalGuardian, SealRequest, TpmKey, seal};
use http::Method;
use serde_json::{Value, json};
use std::sync::LazyLock;
use time::OffsetDateTime;
use uuid::Uuid;

/// Opens the VM's key; no host's own.
static GUARDIAN: LazyLock<LocalGuardian> = LazyLock::new(|| {
    let name: HostName = "keeper".parse().expect("name");
    LocalGuardian::generate(&name, OffsetDateTime::now_utc()).expect("guardian")
});

/// The key of the TPM that is copied.
const KEY: KeyId = KeyId(Uuid::from_u128(1));

/// The VM `web` with a TPM that can be copied, on the first of two hosts.
async fn with_a_copy() -> (Controller, FakeAgent, FakeAgent, VmId) {
    let controller = Controller::start().await;
    let a = controller.join("a", "default").await;
    let b = controller.join("b", "default").await;
    let body = json!({ "name": "web", "host": "a", "disk_bytes": 1 << 30, "tpm": true });
    controller.done(Method::POST, "/v1/vms", &body).await;
    let id = a.look(|inner| *inner.vms.keys().next().expect("the VM"));
    has_state(&a, id, 1);
    // The job that made it has taken a copy too, of the TPM that the agent pretends to have.
    let current = async || {
        let vm: Value = controller.get("/v1/vms/web").await;
        let all: Vec<TpmVersion> = controller.get("/v1/vms/web/tpm/history").await;
        let ours = all.last().is_some_and(|newest| newest.key_id == KEY);
        ours && vm["escrow"]["current"] == true
    };
    controller.wait("a current copy", current).await;
    (controller, a, b, id)
}

/// The host has the VM's TPM in this state, and says so.
fn has_state(agent: &FakeAgent, id: VmId, content: u8) {
    agent.look(|inner| {
        let parts = inner.parts.entry(id).or_insert_with(|| BundleParts {
            state: Vec::new(),
            key_protector: protector(id),
            ek_certificate: None,
            uefi_variables: None,
        });
        parts.state = vec![2, 1, 0, 10, 0, 9, 0, 0, 0, 11, content];
        let text = STANDARD.encode(&parts.key_protector);
        let vm = inner.vms.get_mut(&id).expect("the VM");
        vm.metadata.key_protector = Some(text);
        inner.tell(id);
    });
}

fn protector(vm_id: VmId) -> Vec<u8> {
    let request = SealRequest {
        vm_id,
        key_id: KEY,
        tpm_key: &TpmKey::generate().expect("key"),
        owner: &GUARDIAN,
        recipients: &[],
        now: OffsetDateTime::now_utc(),
        expired: &ExpiredAllowed::none(),
    };
    seal(&request).expect("seal").der().to_vec()
}

async fn newest(controller: &Controller) -> TpmVersion {
    let mut all: Vec<TpmVersion> = controller.get("/v1/vms/web/tpm/history").await;
    all.pop().expect("a version")
}

async fn age(controller: &Controller) -> u64 {
    let vm: Value = controller.get("/v1/vms/web").await;
    vm["escrow_age"].as_u64().expect("an age")
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_that_have_not_changed_are_kept_with_a_new_state_and_not_sent_again() {
    let (controller, a, _b, id) = with_a_copy().await;
    let set = |content: u8| {
        a.look(|inner| {
            let parts = inner.parts.get_mut(&id).expect("its TPM");
            parts.uefi_variables = Some(vec![content; 528 << 10]);
        });
    };
    let left_out = || a.look(|inner| inner.given.without_variables);
    let digest = || {
        a.look(|inner| TpmBundle::new(inner.vms[&id].metadata.clone(), &inner.parts[&id]).sha256)
    };
    for (variables, state, expected) in [(7, 2, 0), (7, 3, 1), (7, 4, 2), (8, 5, 2), (8, 6, 3)] {
        set(variables);
        has_state(&a, id, state);
        // The digest is over everything, the variables among it.
        let kept = async || newest(&controller).await.sha256 == digest();
        controller.wait("the whole new state", kept).await;
        assert_eq!(left_out(), expected, "state {state}");
    }
    let controller = controller.restart().await;
    controller.wait_online(&a.host, true).await;
    has_state(&a, id, 9);
    let kept = async || newest(&controller).await.sha256 == digest();
    controller.wait("the whole new state", kept).await;
    assert_eq!(left_out(), 4, "a restarted controller knows them too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_whose_roll_is_pending_is_not_called_rolled() {
    let (controller, a, _b, id) = with_a_copy().await;
    let revoke = json!({ "vm": "web", "from": "b" });
    controller
        .done(Method::POST, "/v1/vms/web/start", &json!({}))
        .await;
    // One that the guest wrote, and that no event has told of yet: the job is the first to copy it.
    a.look(|inner| {
        let parts = inner.parts.get_mut(&id).expect("its TPM");
        parts.state[10] = 2;
    });
    let path = "/v1/guardian-revocations";
    let job = controller.done(Method::POST, path, &revoke).await;
    let result = job.result.expect("a result");
    assert_eq!(result["rolled"], false, "{result}");
    let kept = newest(&controller).await;
    assert_eq!(kept.why, VersionReason::Revoked, "{kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_was_deleted_on_purpose_is_not_called_lost() {
    let (controller, _a, _b, _) = with_a_copy().await;
    let path = "/v1/vms/web?keep_tpm_state=true";
    controller.done(Method::DELETE, path, &json!({})).await;
    assert_eq!(newest(&controller).await.why, VersionReason::Deleted);
    let host: Value = controller.get("/v1/hosts/a").await;
    assert_eq!(host["warnings"], json!([]), "{host}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_age_of_a_copy_grows_while_its_host_is_silent_and_shrinks_after() {
    let (controller, a, _b, _) = with_a_copy().await;
    assert!(age(&controller).await <= 3, "its host has just spoken");
    a.cut();
    controller.wait_online(&a.host, false).await;
    let before = age(&controller).await;
    let grown = async || age(&controller).await >= before + 4;
    controller.wait("the age to grow", grown).await;
    a.serve().await;
    let shrunk = async || age(&controller).await < before + 3;
    controller.wait("the age to shrink", shrunk).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_older_than_the_hosts_last_word_is_used_only_when_that_is_meant() {
    let (controller, a, b, id) = with_a_copy().await;
    b.look(|inner| inner.opens.insert(id));
    let kept = newest(&controller).await;
    // What it says now, nobody can copy any more: the host ends in that moment.
    a.look(|inner| {
        let parts = inner.parts.get_mut(&id).expect("its TPM");
        parts.state = vec![2, 1, 0, 10, 0, 9, 0, 0, 0, 11, 9];
        let whole = inner.observed(id).expect("the VM");
        inner.parts.get_mut(&id).expect("its TPM").state.clear();
        inner.tell_of(whole);
    });
    let behind = async || {
        let vm: Value = controller.get("/v1/vms/web").await;
        vm["escrow"]["current"] == false
    };
    controller.wait("the host's last word", behind).await;
    a.cut();
    controller.wait_online(&a.host, false).await;
    let path = "/v1/vms/web/recover";
    let ask = async |body: &Value| controller.refusal(Method::POST, path, body).await;
    let refused = ask(&json!({ "to": "b" })).await;
    assert_eq!(refused.code, ErrorCode::EscrowOutdated, "{refused}");
    let version = format!("version {} of 2", kept.version);
    assert!(refused.what.contains(&version), "{refused}");
    let body = json!({ "to": "b", "outdated": true });
    let job = controller.done(Method::POST, path, &body).await;
    let result = job.result.expect("a result");
    assert_eq!(result["outdated"], true, "{result}");
    assert_eq!(result["version"], kept.version, "{result}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_current_copy_is_used_without_a_question() {
    let (controller, a, b, id) = with_a_copy().await;
    b.look(|inner| inner.opens.insert(id));
    a.cut();
    controller.wait_online(&a.host, false).await;
    let body = json!({ "to": "b" });
    let path = "/v1/vms/web/recover";
    let job = controller.job(Method::POST, path, &body).await;
    assert_eq!(job.state, JobState::Done, "{job:?}");
    assert_eq!(job.result.expect("a result")["outdated"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_a_vm_comes_to_is_told_of_the_states_of_its_tpm_from_before() {
    let (controller, a, b, id) = with_a_copy().await;
    b.look(|inner| inner.opens.insert(id));
    a.knows(&b);
    b.knows(&a);
    let copies = async || -> Vec<String> {
        let all: Vec<TpmVersion> = controller.get("/v1/vms/web/tpm/history").await;
        all.into_iter().map(|kept| kept.state_sha256).collect()
    };
    // What its host has seen beside what there are copies of.
    let seen = vec!["5e".repeat(32)];
    a.look(|inner| inner.seen_states = seen.clone());
    let before = copies().await;
    let there = json!({ "to": "b", "offline": true });
    controller
        .done(Method::POST, "/v1/vms/web/migrate", &there)
        .await;
    assert_eq!(
        b.look(|inner| inner.told_states.clone()),
        [before, seen].concat()
    );

    b.cut();
    controller.wait_online(&b.host, false).await;
    a.look(|inner| inner.opens.insert(id));
    let back = json!({ "to": "a", "outdated": true });
    controller
        .done(Method::POST, "/v1/vms/web/recover", &back)
        .await;
    let told = a.look(|inner| inner.told_states.clone());
    let kept = copies().await;
    assert!(!told.is_empty(), "{kept:?}");
    assert!(
        told.iter().all(|one| kept.contains(one)),
        "{told:?} {kept:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_cannot_open_a_lost_vm_s_key_is_told_what_works() {
    let (controller, a, b, _) = with_a_copy().await;
    a.cut();
    controller.wait_online(&a.host, false).await;
    let path = "/v1/vms/web/recover";
    let body = json!({ "to": "b" });
    let refused = controller.refusal(Method::POST, path, &body).await;
    assert_eq!(refused.code, ErrorCode::KeyNotGranted, "{refused}");
    assert!(refused.fix.contains("import-pfx"), "{refused}");
    assert!(!refused.fix.contains("guardian grant"), "{refused}");
    let asked = b.look(|inner| inner.asked.clone());
    assert!(!asked.contains(&"rebuild_incoming"), "{asked:?}");
    // A third host that opens it is named.
    let c = controller.join("c", "default").await;
    c.look(|inner| {
        let host = inner.host.clone();
        let facts = GUARDIAN.public().facts(host, false, true);
        inner.facts.guardians.push(facts);
    });
    let named = async || {
        let refused = controller.refusal(Method::POST, path, &body).await;
        refused.fix.contains("fleetward vm recover web --to c && ")
    };
    controller.wait("host c to be offered", named).await;
}

/// A host answers with the TPM of another VM, whose copies are its best only as long as nothing worse is newer.
/// The host has that libtpms now, and the controller knows.
async fn has_libtpms(controller: &Controller, agent: &FakeAgent, version: &str) {
    agent.look(|inner| {
        inner.facts.versions.libtpms = version.parse().ok();
        inner.tell_facts();
    });
    let path = format!("/v1/hosts/{}", agent.host);
    let told = async || {
        let host: Value = controller.get(&path).await;
        host["facts"]["versions"]["libtpms"] == version
    };
    controller.wait("the version to be known", told).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_is_refused_where_libtpms_is_older_than_what_wrote_it() {
    let (controller, a, b, id) = with_a_copy().await;
    let first = newest(&controller).await;
    assert_eq!(first.libtpms, "0.9.2".parse().ok(), "{first:?}");
    b.look(|inner| inner.opens.insert(id));
    has_libtpms(&controller, &a, "0.10.1").await;

    // Nothing has written the state since: it still goes to the older one.
    let check = "/v1/check?vm=web&to=b&offline=true";
    let checks: Vec<CheckView> = controller.get(check).await;
    assert!(checks[0].possible, "{checks:?}");
    has_state(&a, id, 2);
    let written = async || newest(&controller).await.libtpms == "0.10.1".parse().ok();
    controller.wait("a copy of what was written", written).await;

    let too_old = async |path: &str, body: &Value| {
        let refused = controller.refusal(Method::POST, path, body).await;
        assert_eq!(refused.code, ErrorCode::SwtpmTooOld, "{path}: {refused}");
        let finding = refused.findings.first();
        let what = finding.map_or(refused.what.clone(), |finding| finding.what.clone());
        let said = format!("{what} {}", refused.because);
        assert!(said.contains("libtpms 0.10.1 on host a"), "{refused}");
        assert!(refused.fix.contains("--only-upgrade"), "{refused}");
    };
    let there = json!({ "to": "b", "offline": true });
    too_old("/v1/vms/web/migrate", &there).await;
    let copy = json!({ "name": "copy", "host": "b", "tpm": "copy" });
    too_old("/v1/vms/web/clone", &copy).await;
    let new = json!({ "name": "copy", "host": "b", "tpm": "new", "dry_run": true });
    controller.post::<Value>("/v1/vms/web/clone", &new).await;

    // Its own host's packages go back.
    has_libtpms(&controller, &a, "0.9.2").await;
    let last = newest(&controller).await.version;
    let restore = json!({ "version": last });
    too_old("/v1/vms/web/tpm/restore", &restore).await;
    too_old("/v1/vms/web/migrate", &there).await;
    let checks: Vec<CheckView> = controller.get("/v1/check?vm=web&to=a").await;
    assert_eq!(checks[0].code, Some(ErrorCode::SwtpmTooOld), "{checks:?}");

    a.cut();
    controller.wait_online(&a.host, false).await;
    let there = json!({ "to": "b" });
    too_old("/v1/vms/web/recover", &there).await;
    has_libtpms(&controller, &b, "0.10.1").await;
    controller
        .done(Method::POST, "/v1/vms/web/recover", &there)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_adds_no_version_to_a_vm_that_was_not_asked_for() {
    let (controller, a, _b, id) = with_a_copy().await;
    let body = json!({ "name": "other", "host": "a", "disk_bytes": 1 << 30, "tpm": true });
    controller.done(Method::POST, "/v1/vms", &body).await;
    let other: Value = controller.get("/v1/vms/other").await;
    let other: VmId = serde_json::from_value(other["id"].clone()).expect("id");
    has_state(&a, other, 1);
    let history = async || -> Vec<TpmVersion> { controller.get("/v1/vms/other/tpm/history").await };
    let kept = async || history().await.last().is_some_and(|v| v.key_id == KEY);
    controller.wait("a copy of the other", kept).await;
    let before = history().await;
    // Another state of the other VM, handed out for the first.
    a.look(|inner| {
        inner.answers_with = Some(other);
        inner.parts.get_mut(&other).expect("its TPM").state[10] = 9;
    });
    has_state(&a, id, 2);
    let missed = async || {
        let vm: Value = controller.get("/v1/vms/web").await;
        vm["escrow"]["failure"]["code"] == "ESCROW_CORRUPT"
    };
    controller.wait("the refusal to show", missed).await;
    assert_eq!(history().await, before);
}

/// What was wrong when a copy was asked for may have been put right since, and the other way round.
#[tokio::test(flavor = "multi_thread")]
async fn a_check_says_of_the_state_what_its_host_finds_now() {
    let (controller, a, _b, id) = with_a_copy().await;
    let found = async || -> Option<Finding> {
        let checks: Vec<CheckView> = controller.get("/v1/check?vm=web&to=b").await;
        let codes = [
            ErrorCode::TpmStateDamaged,
            ErrorCode::TpmStateOutdated,
            ErrorCode::TpmStateUnreadable,
        ];
        let all = checks.into_iter().flat_map(|check| check.findings);
        all.into_iter().find(|f| codes.contains(&f.code))
    };
    let refuse = |code| Failure::new(code, "the TPM of VM web").because("so it is");
    a.look(|inner| inner.no_copy = Some(refuse(ErrorCode::TpmStateDamaged)));
    has_state(&a, id, 2);
    let missed = async |code: &str| {
        let vm: Value = controller.get("/v1/vms/web").await;
        vm["escrow"]["failure"]["code"] == code
    };
    let damaged = async || missed("TPM_STATE_DAMAGED").await;
    controller.wait("the refusal to show", damaged).await;
    // An agent that does not say is believed in what it said then.
    let then = found().await.expect("a finding");
    assert_eq!(
        (then.code, then.blocking),
        (ErrorCode::TpmStateDamaged, true)
    );
    is_fleet_wide(&controller, "a", ErrorCode::TpmStateDamaged, true).await;

    for fine in [TpmStateJudged::Untried, TpmStateJudged::Opened] {
        a.look(|inner| inner.judged = Some(fine.clone()));
        assert_eq!(found().await, None, "{fine:?}");
    }
    let failure = refuse(ErrorCode::TpmStateOutdated);
    a.look(|inner| inner.judged = Some(TpmStateJudged::Refused { failure }));
    let now = found().await.expect("a finding");
    assert_eq!(
        (now.code, now.blocking),
        (ErrorCode::TpmStateOutdated, true)
    );
    assert!(
        now.fix.starts_with("fleetward tpm restore web --version "),
        "{now:?}"
    );

    // Whether it opens is known of a try only.
    a.look(|inner| {
        inner.no_copy = Some(refuse(ErrorCode::TpmStateUnreadable));
        inner.judged = Some(TpmStateJudged::Untried);
    });
    has_state(&a, id, 3);
    let unreadable = async || missed("TPM_STATE_UNREADABLE").await;
    controller.wait("the refusal to show", unreadable).await;
    let now = found().await.expect("a finding");
    assert_eq!(now.code, ErrorCode::TpmStateUnreadable);
    is_fleet_wide(&controller, "a", ErrorCode::TpmStateUnreadable, true).await;
    a.look(|inner| inner.judged = Some(TpmStateJudged::Opened));
    assert_eq!(found().await, None);
}

/// What a host says of a VM is about its own copy, whatever name and time it writes into it.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_speaks_only_for_itself() {
    let (controller, a, b, id) = with_a_copy().await;
    let far = OffsetDateTime::now_utc() + time::Duration::days(900);
    let mut lie = a.look(|inner| inner.observed(id).expect("the VM"));
    lie.id = VmId(Uuid::from_u128(77));
    lie.name = "elsewhere".parse().expect("name");
    lie.observed = far;
    if let Some(metadata) = &mut lie.metadata {
        metadata.spec.id = lie.id;
        metadata.spec.name = lie.name.clone();
    }
    b.look(|inner| inner.tell_of(lie));
    let shown = async || {
        let vms: Value = controller.get("/v1/vms").await;
        let vms = vms.as_array().expect("a list").clone();
        vms.into_iter().find(|vm| vm["name"] == "elsewhere")
    };
    controller
        .wait("the VM to show", async || shown().await.is_some())
        .await;
    let vm = shown().await.expect("the VM");
    assert_eq!(vm["host"], "b", "{vm}");
    let observed: OffsetDateTime = {
        let text = vm["observed"].as_str().unwrap_or("2000-01-01T00:00:00Z");
        let format = &time::format_description::well_known::Rfc3339;
        OffsetDateTime::parse(text, format).expect("a time")
    };
    assert!(observed < far, "{vm}");
}

/// One that reports more than is taken, of a VM or of itself, is named and holds up nobody else; its VM stays as it was.
#[tokio::test(flavor = "multi_thread")]
async fn an_over_large_report_harms_nobody_but_its_host() {
    let (controller, a, b, id) = with_a_copy().await;
    let warned = async |of: &str| {
        let host: Value = controller.get("/v1/hosts/b").await;
        let warnings = host["warnings"].as_array().expect("a list").clone();
        let large = |text: &str| text.starts_with("REPORT_TOO_LARGE") && text.contains(of);
        warnings.iter().filter_map(Value::as_str).any(large)
    };
    let mut large = a.look(|inner| inner.observed(id).expect("the VM"));
    large.id = VmId(Uuid::from_u128(78));
    large.name = "large".parse().expect("name");
    if let Some(metadata) = &mut large.metadata {
        metadata.spec.id = large.id;
        metadata.spec.name = large.name.clone();
    }
    b.look(|inner| inner.tell_of(large.clone()));
    let shown = async || {
        let vms: Value = controller.get("/v1/vms").await;
        let vms = vms.as_array().expect("a list").clone();
        vms.into_iter().find(|vm| vm["name"] == "large")
    };
    let there = async || shown().await.is_some();
    controller.wait("the VM", there).await;
    let before = shown().await.expect("the VM")["state"].clone();
    large.reason = "x".repeat(2 << 20);
    large.state = VmState::Paused;
    b.look(|inner| inner.tell_of(large.clone()));
    let named = async || warned("large").await;
    controller.wait("the VM to be named", named).await;
    assert_eq!(shown().await.expect("as it was")["state"], before);
    let facts = b.look(|inner| {
        let facts = inner.facts.clone();
        inner.facts.warnings = vec!["x".repeat(1000); 2000];
        inner.tell_facts();
        facts
    });
    let named = async || warned("of itself").await;
    controller.wait("the facts to be named", named).await;

    // The store takes what other hosts say, and a delete on one of them ends.
    controller
        .done(Method::DELETE, "/v1/vms/web", &json!({}))
        .await;
    let vms: Value = controller.get("/v1/vms").await;
    let web = |vm: &Value| vm["name"] == "web";
    assert!(!vms.as_array().expect("a list").iter().any(web), "{vms}");

    // And all is well again when the host says less.
    b.look(|inner| {
        inner.facts = facts;
        inner.tell_facts();
        large.reason = String::new();
        inner.tell_of(large);
    });
    let well = async || !warned("").await;
    controller.wait("no warning", well).await;
    let shown = shown().await.expect("the VM");
    assert_ne!(shown["state"], before, "{shown}");
}

/// As much as fits into no line of its events, and no VM of it is large.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_has_much_to_report_is_online() {
    const VMS: u128 = 40;
    let (controller, a, _, id) = with_a_copy().await;
    a.look(|inner| {
        let vm = inner.observed(id).expect("the VM");
        let all = (0..VMS).map(|n| {
            let mut vm = vm.clone();
            if let (1.., Some(metadata)) = (n, &mut vm.metadata) {
                vm.id = VmId(Uuid::from_u128(1_000_000 + n));
                vm.name = format!("many-{n}").parse().expect("name");
                metadata.spec.id = vm.id;
                metadata.spec.name = vm.name.clone();
            }
            vm.reason = "x".repeat(500_000);
            vm
        });
        inner.tell_all(all.collect());
    });
    let all = async || {
        let host: Value = controller.get("/v1/hosts/a").await;
        host["state"] == "online" && host["vms"] == u64::try_from(VMS).expect("few")
    };
    controller.wait("all of its VMs", all).await;
}

/// A host keeps, in its history, what a VM had there. When the VM is deleted for good, that goes too, on whatever host.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_deleted_vms_tpm_stays_on_a_host_that_had_it_before() {
    let (controller, a, b, id) = with_a_copy().await;
    let other = VmId(Uuid::from_u128(5));
    let keeps = |agent: &FakeAgent| agent.look(|inner| inner.facts.histories.clone());
    for agent in [&a, &b] {
        agent.look(|inner| {
            inner.facts.histories = vec![id, other];
            inner.tell_facts();
        });
    }
    // one of them is away when the VM is deleted
    b.cut();
    controller.wait_online(&b.host, false).await;
    controller
        .done(Method::DELETE, "/v1/vms/web", &json!({}))
        .await;
    let gone = async || keeps(&a) == [other];
    controller.wait("a's history to go", gone).await;
    b.comes_back().await;
    let gone = async || keeps(&b) == [other];
    controller.wait("b's history to go", gone).await;
    assert_eq!(keeps(&a), [other], "of a VM that nobody deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kept_tpm_of_a_deleted_vm_is_listed_and_removed_by_its_id() {
    let (controller, a, _b, id) = with_a_copy().await;
    let kept = async || -> Vec<TpmVersion> { controller.get("/v1/kept-tpms").await };
    assert_eq!(kept().await, [], "its VM is there");
    let there = format!("/v1/kept-tpms/{id}");
    let refusal = controller.refusal(Method::DELETE, &there, &json!({})).await;
    assert_eq!(refusal.code, ErrorCode::VmStateWrong, "{refusal:?}");

    let keep = "/v1/vms/web?keep_tpm_state=true";
    controller.done(Method::DELETE, keep, &json!({})).await;
    a.look(|inner| {
        inner.facts.histories = vec![id];
        inner.tell_facts();
    });
    // Its name is used again, by a VM that has nothing to do with it.
    let body = json!({ "name": "web", "host": "a", "tpm": false });
    controller.done(Method::POST, "/v1/vms", &body).await;
    let listed = kept().await;
    assert_eq!(listed.len(), 1, "{listed:#?}");
    assert_eq!((listed[0].vm, listed[0].why), (id, VersionReason::Deleted));
    let reported = async || {
        let host: Value = controller.get("/v1/hosts/a").await;
        host["facts"]["histories"][0] == id.to_string()
    };
    controller.wait("the report", reported).await;
    assert_eq!(
        a.look(|inner| inner.facts.histories.len()),
        1,
        "it was kept by choice"
    );

    for wrong in ["web", "00000000-0000-0000-0000-000000000009"] {
        let path = format!("/v1/kept-tpms/{wrong}");
        controller.refusal(Method::DELETE, &path, &json!({})).await;
    }
    controller
        .local
        .request(Method::DELETE, &there)
        .send()
        .await
        .expect("forgotten");
    assert_eq!(kept().await, []);
    let gone = async || a.look(|inner| inner.facts.histories.is_empty());
    controller.wait("the host's history to go", gone).await;
}

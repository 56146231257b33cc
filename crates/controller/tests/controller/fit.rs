//! A host that cannot run a VM is refused before anything is done, whoever wants to put the VM there, and a VM on a host
//! that does not answer is shown as what it is.

use crate::fleet::Controller;
use crate::fleet::agent::FakeAgent;
use fleetward_api::bulk::Would;
use fleetward_api::controller::{CheckView, DrainAnswer, JobState, JobView, VmView};
use fleetward_model::host::{Accelerator, Formats, HostFacts, Version};
use fleetward_model::vm::VmState;
use fleetward_model::{ByteSize, ErrorCode, Failure};
use http::Method;
use serde_json::{Value, json};

/// Who wants to put a VM on host `b`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Caller {
    Create,
    Deploy,
    Clone,
    MigrateLive,
    MigrateOffline,
}

const CALLERS: [Caller; 5] = [
    Caller::Create,
    Caller::Deploy,
    Caller::Clone,
    Caller::MigrateLive,
    Caller::MigrateOffline,
];

impl Caller {
    fn request(self) -> (&'static str, Value) {
        match self {
            Self::Create => (
                "/v1/vms",
                json!({"name": "new", "host": "b", "start": true, "tpm": true}),
            ),
            Self::Deploy => (
                "/v1/vms",
                json!({"name": "new", "host": "b", "template": "golden", "tpm": true}),
            ),
            Self::Clone => (
                "/v1/vms/web/clone",
                json!({"name": "new", "host": "b", "tpm": "new"}),
            ),
            Self::MigrateLive => ("/v1/vms/web/migrate", json!({"to": "b"})),
            Self::MigrateOffline => ("/v1/vms/idle/migrate", json!({"to": "b", "offline": true})),
        }
    }

    /// The VM that exists already, with its machine type.
    fn moves(self) -> bool {
        match self {
            Self::Create | Self::Deploy => false,
            Self::Clone | Self::MigrateLive | Self::MigrateOffline => true,
        }
    }
}

/// Host `a` with the running `web`, the stopped `idle` and the template `golden`, and host `b`.
async fn fleet() -> (Controller, FakeAgent, FakeAgent) {
    let controller = Controller::start().await;
    let (a, b) = tokio::join!(
        controller.join("a", "default"),
        controller.join("b", "default")
    );
    a.knows(&b);
    let web = json!({"name": "web", "host": "a", "start": true, "tpm": true});
    controller.done(Method::POST, "/v1/vms", &web).await;
    let idle = json!({"name": "idle", "host": "a", "tpm": true});
    controller.done(Method::POST, "/v1/vms", &idle).await;
    let golden = json!({"name": "golden", "from": "idle"});
    controller
        .done(Method::POST, "/v1/templates", &golden)
        .await;
    (controller, a, b)
}

/// Everything that was asked of the hosts.
fn asked(agents: [&FakeAgent; 2]) -> Vec<&'static str> {
    let asked = agents.map(|agent| agent.look(|inner| inner.asked.clone()));
    asked.concat()
}

async fn refused(controller: &Controller, caller: Caller, agents: [&FakeAgent; 2]) -> Failure {
    let (path, body) = caller.request();
    let before = asked(agents);
    let refusal = controller.refusal(Method::POST, path, &body).await;
    assert_eq!(asked(agents), before, "{caller:?}: {refusal}");
    let vms: Vec<VmView> = controller.get("/v1/vms").await;
    assert_eq!(vms.len(), 2, "{caller:?}");
    refusal
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_cannot_run_a_vm_is_refused_by_everybody_before_anything_is_done() {
    let (controller, a, b) = fleet().await;
    let whole = b.look(|inner| inner.facts.clone());
    type Spoil = fn(&mut HostFacts);
    type Concerns<'a> = &'a dyn Fn(Caller) -> bool;
    // What is missing, and whom it concerns: a VM that stands still needs no free memory and no accelerator.
    let all = |_: Caller| true;
    let running = |caller: Caller| matches!(caller, Caller::Create | Caller::MigrateLive);
    let cases: [(ErrorCode, Spoil, Concerns<'_>); 10] = [
        (ErrorCode::SwtpmMissing, |f| f.versions.swtpm = None, &all),
        (
            ErrorCode::SwtpmTooOld,
            |f| f.versions.swtpm = Some(Version::new(0, 6, 0)),
            &all,
        ),
        (
            ErrorCode::QemuTooOld,
            |f| f.versions.qemu = Version::new(7, 0, 0),
            &all,
        ),
        (
            ErrorCode::SecureBootMissing,
            |f| f.secure_boot = false,
            &all,
        ),
        (ErrorCode::PoolMissing, |f| f.pools.clear(), &all),
        (
            ErrorCode::NoSpace,
            |f| f.pools[0].available = ByteSize(0),
            &all,
        ),
        (ErrorCode::NoMemory, |f| f.memory = ByteSize(1), &|caller| {
            !running(caller)
        }),
        (
            ErrorCode::NoMemory,
            |f| f.memory_available = ByteSize(1),
            &running,
        ),
        (
            ErrorCode::AcceleratorDiffers,
            |f| f.accelerator = Accelerator::Kvm,
            &|caller| caller == Caller::MigrateLive,
        ),
        (
            ErrorCode::MachineMissing,
            |f| f.machines.clear(),
            &|caller| caller.moves(),
        ),
    ];
    for (code, spoil, concerns) in cases {
        controller.hears_from(&b, spoil).await;
        for caller in CALLERS.into_iter().filter(|caller| concerns(*caller)) {
            let refusal = refused(&controller, caller, [&a, &b]).await;
            assert_eq!(refusal.code, code, "{caller:?}: {refusal}");
            assert!(
                refusal
                    .findings
                    .iter()
                    .any(|finding| finding.blocking && finding.code == code),
                "{caller:?}: {refusal}"
            );
        }
        let checks: Vec<CheckView> = controller.get("/v1/check?vm=web&to=b").await;
        let live = concerns(Caller::MigrateLive);
        assert_eq!(checks[0].possible, !live, "{code}: {checks:?}");
        controller
            .hears_from(&b, |facts| *facts = whole.clone())
            .await;
    }

    controller
        .post::<Value>("/v1/hosts/b/drain", &json!({}))
        .await;
    for caller in CALLERS {
        let refusal = refused(&controller, caller, [&a, &b]).await;
        assert_eq!(
            refusal.code,
            ErrorCode::HostDrained,
            "{caller:?}: {refusal}"
        );
        assert_eq!(refusal.fix, "fleetward host resume b", "{caller:?}");
    }
    controller
        .post::<Value>("/v1/hosts/b/resume", &json!({}))
        .await;
    b.cut();
    controller.wait_online(&b.host, false).await;
    for caller in CALLERS {
        let refusal = refused(&controller, caller, [&a, &b]).await;
        assert_eq!(
            refusal.code,
            ErrorCode::HostUnreachable,
            "{caller:?}: {refusal}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_of_another_group_is_refused_by_everybody() {
    let (controller, a, _b) = fleet().await;
    let other = controller.join("other", "edge").await;
    for caller in [Caller::Clone, Caller::MigrateLive, Caller::MigrateOffline] {
        let (path, mut body) = caller.request();
        for field in ["to", "host"] {
            if let Some(host) = body.get_mut(field) {
                *host = json!("other");
            }
        }
        let before = asked([&a, &other]);
        let refusal = controller.refusal(Method::POST, path, &body).await;
        assert!(
            refusal.code == ErrorCode::GroupForbids
                || refusal
                    .findings
                    .iter()
                    .any(|f| f.code == ErrorCode::GroupForbids),
            "{caller:?}: {refusal}"
        );
        assert_eq!(asked([&a, &other]), before, "{caller:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_leaves_the_vms_that_no_other_host_can_run() {
    let (controller, a, b) = fleet().await;
    // a dry run says where they would go, and the host still takes VMs
    let dry_run = async || {
        let answer: DrainAnswer = controller
            .post("/v1/hosts/a/drain?dry_run=true", &json!({}))
            .await;
        assert_eq!(answer.job, None);
        answer.plan
    };
    for plan in dry_run().await {
        let said = (plan.would, plan.message.as_str());
        assert_eq!(said, (Would::Change, "would move to host b"), "{plan:?}");
    }
    controller
        .hears_from(&b, |facts| facts.versions.swtpm = None)
        .await;
    let codes = dry_run()
        .await
        .into_iter()
        .map(|plan| plan.failure.map(|f| f.code));
    let codes: Vec<_> = codes.collect();
    assert_eq!(codes, [Some(ErrorCode::NoHostFits); 2]);
    let host: Value = controller.get("/v1/hosts/a").await;
    assert_eq!(host["state"], "online", "a dry run drained it");
    let before = asked([&a, &b]);
    let job: JobView = controller
        .job(Method::POST, "/v1/hosts/a/drain", &json!({}))
        .await;
    assert_ne!(job.state, JobState::Done);
    let failure = job.failure.expect("a failure");
    assert_eq!(failure.findings.len(), 2, "{failure}");
    for finding in &failure.findings {
        assert_eq!(finding.code, ErrorCode::NoHostFits, "{finding:?}");
        assert!(finding.what.contains("host b has no swtpm"), "{finding:?}");
    }
    assert_eq!(asked([&a, &b]), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_not_rebuilt_where_it_could_not_run() {
    let controller = Controller::start().await;
    let (a, b) = tokio::join!(
        controller.join("a", "default"),
        controller.join("b", "default")
    );
    let web = json!({"name": "web", "host": "a", "tpm": false});
    controller.done(Method::POST, "/v1/vms", &web).await;
    a.cut();
    controller.wait_online(&a.host, false).await;
    let whole = b.look(|inner| inner.facts.clone());
    type Spoil = fn(&mut HostFacts);
    let cases: [(ErrorCode, Spoil); 4] = [
        (ErrorCode::SecureBootMissing, |f| f.secure_boot = false),
        (ErrorCode::PoolMissing, |f| f.pools.clear()),
        (ErrorCode::NoMemory, |f| f.memory = ByteSize(1)),
        (ErrorCode::QemuTooOld, |f| {
            f.versions.qemu = Version::new(7, 0, 0);
        }),
    ];
    let before = b.look(|inner| inner.asked.clone());
    for (code, spoil) in cases {
        controller.hears_from(&b, spoil).await;
        let refusal = controller
            .refusal(Method::POST, "/v1/vms/web/recover", &json!({"to": "b"}))
            .await;
        assert_eq!(refusal.code, code, "{refusal}");
        controller
            .hears_from(&b, |facts| *facts = whole.clone())
            .await;
    }
    assert_eq!(b.look(|inner| inner.asked.clone()), before);
    controller
        .done(Method::POST, "/v1/vms/web/recover", &json!({"to": "b"}))
        .await;
}

/// Makes `agent` one of version 7917ca9, or of today.
async fn set_formats(controller: &Controller, agent: &FakeAgent, formats: Formats) {
    controller
        .hears_from(agent, |facts| facts.formats = formats)
        .await;
}

fn assert_too_old(refusal: &Failure, host: &str) {
    assert_eq!(refusal.code, ErrorCode::AgentTooOld, "{refusal}");
    let named = format!("on host {host}");
    let fix = &refusal.fix;
    assert!(
        fix.starts_with("upgrade that host's agent") && fix.contains(&named),
        "{refusal}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_too_old_for_a_vm_is_named_by_everybody() {
    let (controller, a, b) = fleet().await;
    set_formats(&controller, &b, Formats::default()).await;
    // What version 1 can say goes there as before.
    let moved = json!({"to": "b", "offline": true});
    let idle = "/v1/vms/idle/migrate";
    controller.done(Method::POST, idle, &moved).await;
    controller
        .done(Method::POST, idle, &json!({"to": "a", "offline": true}))
        .await;

    let described = json!({"description": "B\u{fc}ro"});
    for vm in ["web", "idle"] {
        let path = format!("/v1/vms/{vm}");
        controller.done(Method::PATCH, &path, &described).await;
    }
    for caller in CALLERS {
        let (path, mut body) = caller.request();
        if !caller.moves() {
            body["description"] = described["description"].clone();
        }
        let before = asked([&a, &b]);
        let refusal = controller.refusal(Method::POST, path, &body).await;
        assert_too_old(&refusal, "b");
        assert_eq!(asked([&a, &b]), before, "{caller:?}: {refusal}");
    }
    let checks: Vec<CheckView> = controller.get("/v1/check?vm=web&to=b").await;
    assert_eq!(checks[0].code, Some(ErrorCode::AgentTooOld), "{checks:?}");
    let job: JobView = controller
        .job(Method::POST, "/v1/hosts/a/drain", &json!({}))
        .await;
    let failure = job.failure.expect("a failure");
    for finding in &failure.findings {
        let named = finding.what.contains("the agent of host b");
        assert!(named, "{finding:?}");
    }
    controller
        .post::<Value>("/v1/hosts/a/resume", &json!({}))
        .await;

    // The VM's own agent, by a change; a change of the TPM is older than versions.
    let plain = json!({"name": "plain", "host": "b", "tpm": true});
    controller.done(Method::POST, "/v1/vms", &plain).await;
    let cpus = json!({"cpus": 3});
    let refusal = controller
        .refusal(Method::PATCH, "/v1/vms/plain", &cpus)
        .await;
    assert_too_old(&refusal, "b");
    controller
        .done(Method::PATCH, "/v1/vms/plain", &json!({"tpm": false}))
        .await;
    set_formats(&controller, &b, Formats::KNOWN).await;
    controller.done(Method::PATCH, "/v1/vms/plain", &cpus).await;
    let (path, body) = Caller::MigrateLive.request();
    controller.done(Method::POST, path, &body).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_is_not_rebuilt_by_an_agent_that_is_too_old_for_it() {
    let controller = Controller::start().await;
    let (a, b) = tokio::join!(
        controller.join("a", "default"),
        controller.join("b", "default")
    );
    let web = json!({"name": "web", "host": "a", "tpm": false, "autostart": true});
    controller.done(Method::POST, "/v1/vms", &web).await;
    a.cut();
    controller.wait_online(&a.host, false).await;
    set_formats(&controller, &b, Formats::default()).await;
    let refusal = controller
        .refusal(Method::POST, "/v1/vms/web/recover", &json!({"to": "b"}))
        .await;
    assert_too_old(&refusal, "b");
    assert!(b.is_clean());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_clone_under_way_will_take_is_not_given_away_again() {
    let (controller, a, b) = fleet().await;
    // The VM's disk takes 1 MiB, so there is room for one.
    controller
        .hears_from(&b, |facts| {
            facts.pools[0].available = ByteSize(3 << 19);
        })
        .await;
    a.look(|inner| inner.busy.insert("copy-vm"));
    let first: Value = controller
        .post(
            "/v1/vms/idle/clone",
            &json!({"name": "one", "host": "b", "full": true}),
        )
        .await;
    let (path, body) = Caller::Clone.request();
    let refusal = controller.refusal(Method::POST, path, &body).await;
    assert_eq!(refusal.code, ErrorCode::NoSpace, "{refusal}");
    a.look(|inner| inner.busy.clear());
    let job = first["job"].as_str().expect("a job");
    let ended = controller.ended(job.parse().expect("an id")).await;
    assert_eq!(ended.state, JobState::Done, "{ended:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_on_a_silent_host_is_unknown_and_every_refusal_says_what_helps() {
    let (controller, a, b) = fleet().await;
    a.cut();
    controller.wait_online(&a.host, false).await;
    let web: VmView = controller.get("/v1/vms/web").await;
    assert_eq!(web.state, VmState::Unknown);
    let seen = web.last_seen.expect("what was last seen");
    assert_eq!(seen.state, VmState::Running);
    let all: Vec<VmView> = controller.get("/v1/vms").await;
    assert!(all.iter().all(|vm| vm.state == VmState::Unknown), "{all:?}");
    let metrics = controller.metrics().await;
    assert!(
        metrics.contains("fleetward_vms{state=\"unknown\"} 2"),
        "{metrics}"
    );
    assert!(
        metrics.contains("fleetward_vms{state=\"running\"} 0"),
        "{metrics}"
    );

    // No other host has its disks: what helps is its own host.
    for (method, path, body) in [
        (Method::POST, "/v1/vms/web/start", json!({})),
        (Method::POST, "/v1/vms/web/stop", json!({"force": true})),
        (Method::DELETE, "/v1/vms/web", json!({})),
        (Method::POST, "/v1/vms/web/migrate", json!({"to": "b"})),
        (Method::POST, "/v1/vms/web/clone", json!({"name": "new"})),
        (Method::POST, "/v1/vms/web/tpm/roll", json!({})),
    ] {
        let refusal = controller.refusal(method, path, &body).await;
        assert_eq!(
            refusal.code,
            ErrorCode::HostUnreachable,
            "{path}: {refusal}"
        );
        assert!(
            refusal.fix.ends_with("fleetward host show a"),
            "{path}: {refusal}"
        );
    }
    // A host that shares its pool could take it, should its own be lost for good.
    controller
        .hears_from(&b, |facts| facts.pools[0].id = "pool of a".into())
        .await;
    let refusal = controller
        .refusal(Method::POST, "/v1/vms/web/start", &json!({}))
        .await;
    assert!(
        refusal.fix.ends_with("fleetward vm recover web --to b"),
        "{refusal}"
    );

    a.serve().await;
    controller.wait_online(&a.host, true).await;
    let web: VmView = controller.get("/v1/vms/web").await;
    assert_eq!((web.state, web.last_seen), (VmState::Running, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_without_secure_boot_is_not_made_from_variables_that_switch_it_on() {
    let (controller, _a, _b) = fleet().await;
    let keeps = json!({"name": "keeps", "from": "idle", "uefi_variables": true});
    controller.done(Method::POST, "/v1/templates", &keeps).await;
    let vm = |template: &str, secure_boot: bool| json!({"name": "new", "host": "b", "template": template, "tpm": true, "secure_boot": secure_boot});
    let refusal = controller
        .refusal(Method::POST, "/v1/vms", &vm("keeps", false))
        .await;
    assert_eq!(refusal.code, ErrorCode::InvalidArgument, "{refusal}");
    assert!(refusal.what.contains("Secure Boot"), "{refusal}");
    let made = controller
        .done(Method::POST, "/v1/vms", &vm("golden", false))
        .await;
    let made: Value = serde_json::to_value(&made).expect("json");
    assert!(!made.is_null());
    let shown: Value = controller.get("/v1/vms/new").await;
    assert_eq!(shown["firmware"]["secure_boot"], false, "{shown}");
}

//! A host dies in the middle of a job and stays away: the job ends soon, its VM is free, and when the host is back its
//! remains go, before anything else is asked of it, and nothing else does.

use crate::findings::fleet_wide;
use crate::fleet::Controller;
use crate::fleet::agent::FakeAgent;
use fleetward_api::controller::{Accepted, HostView, JobState, JobView, VmView};
use fleetward_model::ErrorCode;
use fleetward_model::host::HostState;
use fleetward_model::vm::VmState;
use http::Method;
use serde_json::{Value, json};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// From the request to the job's end, the host's death in between.
const SOON: Duration = Duration::from_secs(30);

/// Three hosts, each with a VM that nobody touches.
struct Scene {
    controller: Controller,
    hosts: [FakeAgent; 3],
}

impl Scene {
    async fn new() -> Self {
        let controller = Controller::start().await;
        // one after the other: each makes keys, which takes a processor for a while
        let hosts = [
            controller.join("a", "default").await,
            controller.join("b", "default").await,
            controller.join("c", "default").await,
        ];
        for (at, one) in hosts.iter().enumerate() {
            hosts[at + 1..].iter().for_each(|other| one.knows(other));
            let host = one.host.as_str();
            let body = json!({"name": format!("keep-{host}"), "host": host});
            controller.done(Method::POST, "/v1/vms", &body).await;
        }
        Self { controller, hosts }
    }

    /// The same with a VM on host a.
    async fn with_web(start: bool) -> Self {
        let scene = Self::new().await;
        scene.make_web(start).await;
        scene
    }

    /// Makes the VM on host a.
    async fn make_web(&self, start: bool) {
        let body = json!({"name": "web", "host": "a", "start": start, "tpm": false});
        self.done(Method::POST, "/v1/vms", &body).await;
    }

    /// As it was at first.
    async fn tidy(&self) {
        let vms: Vec<VmView> = self.controller.get("/v1/vms").await;
        for vm in vms
            .iter()
            .filter(|vm| !vm.name.as_str().starts_with("keep-"))
        {
            let path = format!("/v1/vms/{}", vm.name);
            let force = json!({"force": true});
            if vm.state != VmState::Stopped {
                self.done(Method::POST, &format!("{path}/stop"), &force)
                    .await;
            }
            self.done(Method::DELETE, &path, &json!({})).await;
        }
        for host in &self.hosts {
            host.look(|inner| assert_eq!((inner.vms.len(), inner.volumes.len()), (1, 1)));
        }
    }

    fn host(&self, name: &str) -> &FakeAgent {
        let found = self.hosts.iter().find(|host| host.host.as_str() == name);
        found.expect("a host")
    }

    async fn done(&self, method: Method, path: &str, body: &Value) -> JobView {
        self.controller.done(method, path, body).await
    }

    /// The job of a request, which ends soon although a host dies in it.
    async fn ends_soon(&self, method: Method, path: &str, body: Value) -> JobView {
        let begun = Instant::now();
        let job = self.controller.job(method, path, &body).await;
        let took = begun.elapsed();
        assert!(took < SOON, "{path} ended after {took:?}: {job:#?}");
        job
    }

    async fn web(&self) -> VmView {
        self.controller.get("/v1/vms/web").await
    }

    async fn show(&self, host: &str) -> HostView {
        self.controller.get(&format!("/v1/hosts/{host}")).await
    }

    /// `web` is there, no job holds it, and it starts or stops at once.
    async fn web_is_free_on(&self, host: &str) {
        let web = self.web().await;
        assert_eq!((web.host.as_str(), web.job), (host, None), "{web:#?}");
        assert!(
            matches!(web.state, VmState::Running | VmState::Stopped),
            "{web:#?}"
        );
        if web.state == VmState::Running {
            let body = json!({});
            self.done(Method::POST, "/v1/vms/web/stop", &body).await;
        }
        let body = json!({});
        self.done(Method::POST, "/v1/vms/web/start", &body).await;
    }

    /// The host is back and owes nothing; of what it had, `keep-` is left, and `web` where it says so.
    async fn comes_back(&self, name: &str, web_too: bool) {
        let host = self.host(name);
        let owed = self.show(name).await.debts;
        host.comes_back().await;
        self.controller.wait_online(&host.host, true).await;
        let shown = self.show(name).await;
        assert_eq!(shown.debts, [], "{owed:#?}");
        let left = if web_too { 2 } else { 1 };
        host.look(|inner| {
            let names: Vec<_> = inner
                .vms
                .values()
                .map(|vm| &vm.metadata.spec.name)
                .collect();
            assert_eq!(
                (names.len(), inner.volumes.len()),
                (left, left),
                "{names:?} {owed:#?}"
            );
        });
        let keep: VmView = self.controller.get(&format!("/v1/vms/keep-{name}")).await;
        assert_eq!(keep.host.as_str(), name);
    }
}

fn failed_with(job: &JobView, state: JobState, code: ErrorCode) {
    let failure = job.failure.as_ref();
    assert_eq!(
        (job.state, failure.map(|f| f.code)),
        (state, Some(code)),
        "{job:#?}"
    );
}

fn step<'a>(job: &'a JobView, name: &str) -> &'a str {
    let found = job.steps.iter().find(|step| step.name == name);
    found.map_or("none", |step| step.state.as_str())
}

async fn destination_of_a_live_migration(scene: &Scene) {
    scene.make_web(true).await;
    scene
        .host("a")
        .outlives(scene.host("b"), "migrate-live", false);
    let job = scene
        .ends_soon(Method::POST, "/v1/vms/web/migrate", json!({"to": "b"}))
        .await;
    failed_with(&job, JobState::Undone, ErrorCode::HostUnreachable);
    assert_eq!(step(&job, "prepare-incoming"), "owed");
    assert!(
        job.warnings
            .iter()
            .any(|warning| warning.contains("host b")),
        "{job:#?}"
    );
    let b = scene.show("b").await;
    assert_eq!((b.debts.len(), b.debts[0].job), (1, job.id));
    assert!(
        b.warnings
            .iter()
            .any(|warning| warning.contains("prepare-incoming")),
        "{b:#?}"
    );
    scene.web_is_free_on("a").await;
    // to a third host at once
    scene
        .done(Method::POST, "/v1/vms/web/migrate", &json!({"to": "c"}))
        .await;
    scene.comes_back("b", false).await;
    let asked = scene.host("b").look(|inner| inner.asked.clone());
    assert_eq!(
        asked,
        ["abandon-incoming"],
        "first of all, and nothing else"
    );
    assert_eq!(scene.web().await.host.as_str(), "c");
    let job: JobView = scene.controller.get(&format!("/v1/jobs/{}", job.id)).await;
    assert_eq!(step(&job, "prepare-incoming"), "undone");
    // the very host is as good as any now
    scene
        .done(Method::POST, "/v1/vms/web/migrate", &json!({"to": "b"}))
        .await;
}

async fn destination_with_the_memory_before_the_hand_over(scene: &Scene) {
    scene.make_web(true).await;
    scene
        .host("a")
        .outlives(scene.host("b"), "migrate-live", true);
    let job = scene
        .ends_soon(Method::POST, "/v1/vms/web/migrate", json!({"to": "b"}))
        .await;
    failed_with(&job, JobState::Undone, ErrorCode::HostUnreachable);
    assert_eq!(
        scene.web().await.state,
        VmState::Stopped,
        "its memory was there"
    );
    scene.web_is_free_on("a").await;
    scene.comes_back("b", false).await;
    assert_eq!(scene.web().await.host.as_str(), "a");
}

async fn destination_in_the_hand_over(scene: &Scene) {
    scene.make_web(true).await;
    scene.host("b").dies_at("commit-incoming", false);
    let job = scene
        .ends_soon(Method::POST, "/v1/vms/web/migrate", json!({"to": "b"}))
        .await;
    failed_with(&job, JobState::Failed, ErrorCode::HostUnreachable);
    assert_eq!(step(&job, "hand-over"), "owed");
    let web = scene.web().await;
    assert_eq!(
        (web.host.as_str(), web.job),
        ("b", None),
        "the source has let go"
    );
    scene.comes_back("b", true).await;
    assert!(
        scene.host("a").look(|inner| inner.vms.len() == 1),
        "the source is cleaned up"
    );
    scene
        .done(Method::POST, "/v1/vms/web/start", &json!({}))
        .await;
}

async fn source_of_a_live_migration(scene: &Scene) {
    scene.make_web(true).await;
    scene.host("a").dies_at("migrate-live", false);
    let job = scene
        .ends_soon(Method::POST, "/v1/vms/web/migrate", json!({"to": "b"}))
        .await;
    failed_with(&job, JobState::Undone, ErrorCode::HostUnreachable);
    assert!(
        scene.host("b").look(|inner| inner.volumes.len() == 1),
        "the arrival is taken back"
    );
    assert_eq!(scene.web().await.job, None);
    scene.comes_back("a", true).await;
    scene.web_is_free_on("a").await;
}

async fn source_in_the_clean_up(scene: &Scene) {
    scene.make_web(true).await;
    scene.host("a").dies_at("clean-up-departed", false);
    let job = scene
        .ends_soon(Method::POST, "/v1/vms/web/migrate", json!({"to": "b"}))
        .await;
    assert_eq!(job.state, JobState::Done, "{job:#?}");
    assert_eq!(step(&job, "clean-up"), "owed");
    scene.web_is_free_on("b").await;
    scene
        .done(Method::POST, "/v1/vms/web/stop", &json!({}))
        .await;
    scene.comes_back("a", false).await;
    assert_eq!(
        scene.web().await.host.as_str(),
        "b",
        "the old copy counts for nothing"
    );
}

async fn destination_of_a_stopped_vm(scene: &Scene) {
    scene.make_web(false).await;
    scene
        .host("a")
        .outlives(scene.host("b"), "send-stopped", false);
    let body = json!({"to": "b", "offline": true});
    let job = scene
        .ends_soon(Method::POST, "/v1/vms/web/migrate", body)
        .await;
    failed_with(&job, JobState::Undone, ErrorCode::HostUnreachable);
    scene.web_is_free_on("a").await;
    scene.comes_back("b", false).await;
}

async fn host_of_a_creation(scene: &Scene) {
    for (operation, after) in [("define", false), ("start", true)] {
        scene.host("b").dies_at(operation, after);
        let body = json!({"name": "web", "host": "b", "start": true});
        let job = scene.ends_soon(Method::POST, "/v1/vms", body).await;
        failed_with(&job, JobState::Undone, ErrorCode::HostUnreachable);
        let list: Vec<VmView> = scene.controller.get("/v1/vms").await;
        assert!(list.iter().all(|vm| vm.name.as_str() != "web"), "{list:#?}");
        // the name is free
        let body = json!({"name": "web", "host": "a", "start": true, "tpm": false});
        scene.done(Method::POST, "/v1/vms", &body).await;
        scene.web_is_free_on("a").await;
        scene.comes_back("b", false).await;
        scene.web_is_free_on("a").await;
        scene.tidy().await;
    }
}

async fn hosts_of_a_clone(scene: &Scene) {
    scene.make_web(false).await;
    // where it is made
    scene.host("a").dies_at("define", true);
    let body = json!({"name": "twin", "tpm": "none", "host": "b"});
    let job = scene
        .ends_soon(Method::POST, "/v1/vms/web/clone", body)
        .await;
    failed_with(&job, JobState::Undone, ErrorCode::HostUnreachable);
    scene.comes_back("a", true).await;
    scene.web_is_free_on("a").await;
    // where it is to be
    scene
        .host("a")
        .outlives(scene.host("b"), "send-stopped", false);
    scene
        .done(Method::POST, "/v1/vms/web/stop", &json!({}))
        .await;
    let body = json!({"name": "twin", "tpm": "none", "host": "b"});
    let job = scene
        .ends_soon(Method::POST, "/v1/vms/web/clone", body)
        .await;
    failed_with(&job, JobState::Undone, ErrorCode::HostUnreachable);
    scene.web_is_free_on("a").await;
    assert!(
        scene
            .host("a")
            .look(|inner| inner.vms.len() == 2 && inner.volumes.len() == 2)
    );
    scene.comes_back("b", false).await;
}

async fn host_of_a_deletion(scene: &Scene) {
    for operation in ["undefine", "remove-tpm"] {
        scene.make_web(false).await;
        scene.host("a").dies_at(operation, false);
        let job = scene
            .ends_soon(Method::DELETE, "/v1/vms/web", json!({}))
            .await;
        assert_eq!(job.state, JobState::Done, "{job:#?}");
        assert_eq!(step(&job, "delete-volumes"), "owed");
        assert!(
            job.warnings
                .iter()
                .any(|warning| warning.contains("host a")),
            "{job:#?}"
        );
        let body = json!({"name": "web", "host": "b", "start": true, "tpm": false});
        scene.done(Method::POST, "/v1/vms", &body).await;
        scene.comes_back("a", false).await;
        scene.web_is_free_on("b").await;
        scene.tidy().await;
    }
}

async fn host_of_a_roll(scene: &Scene) {
    let roll = async |operation, after| {
        let body = json!({"name": "web", "host": "a", "start": true});
        scene.done(Method::POST, "/v1/vms", &body).await;
        scene.host("a").dies_at(operation, after);
        let body = json!({"stop_and_restart": true});
        let job = scene
            .ends_soon(Method::POST, "/v1/vms/web/tpm/roll", body)
            .await;
        assert_eq!(scene.web().await.job, None);
        job
    };
    let job = roll("prepare-roll", true).await;
    failed_with(&job, JobState::Undone, ErrorCode::HostUnreachable);
    let stays = "is not started again";
    assert!(
        job.warnings.iter().any(|warning| warning.contains(stays)),
        "{job:#?}"
    );
    scene.comes_back("a", true).await;
    assert!(
        scene
            .host("a")
            .look(|inner| inner.asked.contains(&"abandon-tpm"))
    );
    scene.web_is_free_on("a").await;
    scene.tidy().await;

    let job = roll("commit-tpm", false).await;
    failed_with(&job, JobState::Failed, ErrorCode::HostUnreachable);
    scene.comes_back("a", true).await;
    assert!(
        scene
            .host("a")
            .look(|inner| inner.asked.contains(&"commit-tpm"))
    );
    let web = scene.web().await;
    assert_eq!(
        web.state,
        VmState::Stopped,
        "nobody starts a VM after so long"
    );
    scene.web_is_free_on("a").await;
}

async fn new_host_of_a_recovery(scene: &Scene) {
    for operation in ["rebuild-incoming", "commit-incoming"] {
        scene.make_web(true).await;
        scene.host("a").cut();
        scene
            .controller
            .wait_online(&scene.host("a").host, false)
            .await;
        scene.host("b").dies_at(operation, true);
        let job = scene
            .ends_soon(Method::POST, "/v1/vms/web/recover", json!({"to": "b"}))
            .await;
        let state = match operation {
            "rebuild-incoming" => JobState::Undone,
            _ => JobState::Failed,
        };
        failed_with(&job, state, ErrorCode::HostUnreachable);
        // on a third host at once
        scene
            .done(Method::POST, "/v1/vms/web/recover", &json!({"to": "c"}))
            .await;
        scene
            .done(Method::POST, "/v1/vms/web/start", &json!({}))
            .await;
        for host in ["b", "a"] {
            scene.host(host).comes_back().await;
            scene
                .controller
                .wait_online(&scene.host(host).host, true)
                .await;
            let gone = async || scene.host(host).look(|inner| inner.vms.len() == 1);
            scene.controller.wait("the copy to go", gone).await;
            let web = scene.web().await;
            assert_eq!((web.host.as_str(), web.state), ("c", VmState::Running));
        }
        scene.tidy().await;
    }
}

async fn destination_of_a_drain(scene: &Scene) {
    scene.make_web(true).await;
    scene
        .done(Method::DELETE, "/v1/vms/keep-a", &json!({}))
        .await;
    scene
        .done(Method::DELETE, "/v1/vms/keep-c", &json!({}))
        .await;
    scene
        .controller
        .post::<Value>("/v1/hosts/c/drain", &json!({}))
        .await;
    scene
        .host("a")
        .outlives(scene.host("b"), "migrate-live", false);
    let job = scene
        .ends_soon(Method::POST, "/v1/hosts/a/drain", json!({}))
        .await;
    assert_ne!(job.state, JobState::Done, "{job:#?}");
    scene.web_is_free_on("a").await;
    scene.comes_back("b", false).await;
    for host in ["a", "c"] {
        let resume = format!("/v1/hosts/{host}/resume");
        let _: HostView = scene.controller.post(&resume, &json!({})).await;
    }
    for host in ["a", "c"] {
        let body = json!({"name": format!("keep-{host}"), "host": host});
        scene.done(Method::POST, "/v1/vms", &body).await;
    }
}

async fn host_of_a_template(scene: &Scene) {
    scene.make_web(false).await;
    scene.host("a").dies_at("copy-vm", true);
    let body = json!({"name": "gold", "from": "web"});
    let job = scene
        .ends_soon(Method::POST, "/v1/templates", body.clone())
        .await;
    failed_with(&job, JobState::Undone, ErrorCode::HostUnreachable);
    scene.comes_back("a", true).await;
    scene.host("a").dies_at("uncopy-vm", false);
    let job = scene.ends_soon(Method::POST, "/v1/templates", body).await;
    assert_eq!(
        (job.state, step(&job, "clean-up")),
        (JobState::Done, "owed")
    );
    scene.comes_back("a", true).await;
    scene.web_is_free_on("a").await;
}

async fn host_of_a_start_and_a_stop(scene: &Scene) {
    scene.make_web(false).await;
    scene.host("a").dies_at("start", true);
    let job = scene
        .ends_soon(Method::POST, "/v1/vms/web/start", json!({}))
        .await;
    failed_with(&job, JobState::Undone, ErrorCode::HostUnreachable);
    assert_eq!(
        scene.show("a").await.debts,
        [],
        "a guest that runs is not cut off later"
    );
    scene.comes_back("a", true).await;
    scene.web_is_free_on("a").await;
    scene.host("a").dies_at("stop", false);
    let job = scene
        .ends_soon(Method::POST, "/v1/vms/web/stop", json!({}))
        .await;
    failed_with(&job, JobState::Undone, ErrorCode::HostUnreachable);
    scene.comes_back("a", true).await;
}

async fn host_of_a_change(scene: &Scene) {
    scene.make_web(false).await;
    let before = scene.web().await;
    // done there, and the answer was lost
    scene.host("a").dies_at("change-vm", true);
    let body = json!({"name": "shop", "description": "sells hats", "cpus": 3});
    let job = scene.ends_soon(Method::PATCH, "/v1/vms/web", body).await;
    failed_with(&job, JobState::Undone, ErrorCode::HostUnreachable);
    assert_eq!(step(&job, "change"), "owed");
    assert_eq!(scene.show("a").await.debts.len(), 1);
    // the name that it gets back is nobody else's meanwhile
    let body = json!({"name": "web", "host": "b", "tpm": false});
    let refused = scene
        .controller
        .refusal(Method::POST, "/v1/vms", &body)
        .await;
    assert_eq!(refused.code, ErrorCode::NameTaken, "{refused:#?}");
    scene.comes_back("a", true).await;
    let body = json!({"name": "shop", "host": "b", "tpm": false});
    scene.done(Method::POST, "/v1/vms", &body).await;
    let after = scene.web().await;
    assert_eq!(
        (&after.name, after.cpus, after.pending.len()),
        (&before.name, before.cpus, 0)
    );
    scene.web_is_free_on("a").await;
    scene.tidy().await;

    for (operation, on) in [("attach-tpm", true), ("detach-tpm", false)] {
        let body = json!({"name": "web", "host": "a", "tpm": !on});
        scene.done(Method::POST, "/v1/vms", &body).await;
        scene.host("a").dies_at(operation, true);
        let body = json!({"tpm": on});
        let job = scene.ends_soon(Method::PATCH, "/v1/vms/web", body).await;
        failed_with(&job, JobState::Undone, ErrorCode::HostUnreachable);
        assert_eq!(step(&job, operation), "owed");
        scene.comes_back("a", true).await;
        assert_eq!(scene.web().await.tpm.enabled, !on, "{operation}");
        scene.web_is_free_on("a").await;
        scene.tidy().await;
    }

    // past the point of no return: off it is, and what it had is set aside later
    let body = json!({"name": "web", "host": "a"});
    scene.done(Method::POST, "/v1/vms", &body).await;
    scene.host("a").dies_at("set-aside-tpm", false);
    let body = json!({"tpm": false});
    let job = scene.ends_soon(Method::PATCH, "/v1/vms/web", body).await;
    assert_eq!(
        (job.state, step(&job, "set-aside-tpm")),
        (JobState::Done, "owed"),
        "{job:#?}"
    );
    scene.comes_back("a", true).await;
    assert!(!scene.web().await.tpm.enabled);
    scene.web_is_free_on("a").await;
}

/// A case, and the fleet as it was before it.
async fn case(scene: &Scene, name: &str, case: impl Future<Output = ()>) {
    let begun = Instant::now();
    eprintln!("{name}");
    case.await;
    scene.tidy().await;
    eprintln!("{name}: {:.1} s", begun.elapsed().as_secs_f32());
}

/// Cases one after the other, on a fleet and a thread of their own.
fn beside(cases: impl AsyncFnOnce(&Scene) + Send + 'static) -> JoinHandle<()> {
    std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build();
        runtime.expect("a runtime").block_on(async {
            let scene = Scene::new().await;
            cases(&scene).await;
        });
    })
}

/// Cases by their functions' names, beside others.
macro_rules! beside {
    ($($case:ident),+) => {
        beside(async |scene: &Scene| {
            $(case(scene, stringify!($case), $case(scene)).await;)+
        })
    };
}

/// Some at once: most of it is waiting.
#[test]
fn in_whatever_job_a_host_dies_that_ends_soon_and_the_remains_go_when_the_host_is_back() {
    let lanes = [
        beside!(host_of_a_change, destination_of_a_drain),
        beside!(new_host_of_a_recovery, host_of_a_template),
        beside!(hosts_of_a_clone, host_of_a_start_and_a_stop),
        beside!(
            host_of_a_creation,
            destination_of_a_live_migration,
            source_of_a_live_migration,
            destination_in_the_hand_over
        ),
        beside!(
            host_of_a_roll,
            destination_with_the_memory_before_the_hand_over,
            host_of_a_deletion,
            destination_of_a_stopped_vm,
            source_in_the_clean_up
        ),
    ];
    let failed = lanes.into_iter().filter_map(|lane| lane.join().err());
    assert_eq!(failed.count(), 0, "said above which");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_host_that_is_away_and_owes_something_it_is_said_that_it_is_away() {
    let scene = Scene::with_web(true).await;
    let a = scene.host("a");
    // A job that is under way and asks again and again, while another leaves a debt.
    a.look(|inner| inner.busy.insert("stop"));
    let stop = scene
        .controller
        .local
        .request(Method::POST, "/v1/vms/web/stop");
    let accepted: Accepted = stop
        .json(&json!({}))
        .send()
        .await
        .expect("asked")
        .json()
        .await
        .expect("accepted");
    a.dies_at("set-aside-tpm", false);
    let job = scene
        .ends_soon(Method::PATCH, "/v1/vms/keep-a", json!({"tpm": false}))
        .await;
    assert_eq!(step(&job, "set-aside-tpm"), "owed", "{job:#?}");
    let job = scene.controller.ended(accepted.job.expect("a job")).await;
    failed_with(&job, JobState::Undone, ErrorCode::HostUnreachable);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_host_cannot_clear_up_is_shown_keeps_that_vm_away_and_is_given_up_by_name() {
    let scene = Scene::with_web(true).await;
    let (a, b) = (scene.host("a"), scene.host("b"));
    a.outlives(b, "migrate-live", false);
    let body = json!({"to": "b"});
    let job = scene
        .ends_soon(Method::POST, "/v1/vms/web/migrate", body.clone())
        .await;
    failed_with(&job, JobState::Undone, ErrorCode::HostUnreachable);
    b.look(|inner| inner.broken.insert("abandon-incoming"));
    b.comes_back().await;
    // one bad debt does not keep a host out
    scene.controller.wait_online(&b.host, true).await;
    let shown = scene.show("b").await;
    let failure = shown.debts[0].failure.as_ref().expect("it failed");
    assert_eq!(failure.code, ErrorCode::HypervisorFailed);
    assert!(
        shown.warnings.iter().any(|w| w.contains("job give-up")),
        "{shown:#?}"
    );
    let other = json!({"name": "other", "host": "b"});
    scene.done(Method::POST, "/v1/vms", &other).await;
    // but of that VM nothing comes there before
    let migrate = "/v1/vms/web/migrate";
    let refused = scene.controller.refusal(Method::POST, migrate, &body).await;
    assert_eq!(refused.code, ErrorCode::DebtsUnpaid);
    assert!(refused.fix.contains(&job.id.to_string()), "{refused}");
    let (named, _) = fleet_wide(&scene.controller, "a").await;
    assert!(named.contains(&ErrorCode::DebtsUnpaid), "{named:?}");

    let given_up = format!("/v1/jobs/{}/give-up", job.id);
    let _: JobView = scene.controller.post(&given_up, &json!({})).await;
    assert_eq!(scene.show("b").await.debts, []);
    let again = scene
        .controller
        .refusal(Method::POST, &given_up, &json!({}))
        .await;
    assert_eq!(again.code, ErrorCode::JobNotCancellable);
    let audit: Vec<Value> = scene.controller.get("/v1/audit").await;
    let said = |event: &Value| event.to_string().contains("give-up-job");
    assert!(audit.iter().any(said), "not in the audit log");
}

#[tokio::test(flavor = "multi_thread")]
async fn debts_outlive_the_controller_and_go_with_their_host() {
    let mut scene = Scene::with_web(true).await;
    scene
        .host("a")
        .outlives(scene.host("b"), "migrate-live", false);
    let body = json!({"to": "b"});
    scene
        .ends_soon(Method::POST, "/v1/vms/web/migrate", body)
        .await;
    scene.controller = scene.controller.restart().await;
    scene
        .controller
        .wait_online(&scene.host("a").host, true)
        .await;
    assert_eq!(scene.show("b").await.debts.len(), 1);
    scene
        .done(Method::POST, "/v1/vms/web/migrate", &json!({"to": "c"}))
        .await;
    scene.comes_back("b", false).await;

    scene
        .host("c")
        .outlives(scene.host("b"), "migrate-live", false);
    let body = json!({"to": "b"});
    scene
        .ends_soon(Method::POST, "/v1/vms/web/migrate", body)
        .await;
    let refused = scene
        .controller
        .refusal(Method::DELETE, "/v1/hosts/b", &json!({}))
        .await;
    assert_eq!(
        refused.code,
        ErrorCode::HostNotEmpty,
        "its own VM is another matter"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_job_keeps_a_vm_from_being_cut_off() {
    let scene = Scene::with_web(true).await;
    let a = scene.host("a");
    // an undo that cannot succeed
    a.look(|inner| inner.busy.extend(["migration-state"]));
    a.fail_once("migrate-live", ErrorCode::HypervisorFailed);
    let body = json!({"to": "b"});
    let accepted: Value = scene.controller.post("/v1/vms/web/migrate", &body).await;
    let job = accepted["job"].as_str().expect("a job").to_owned();
    let path = format!("/v1/jobs/{job}");
    let undoing = async || scene.controller.get::<JobView>(&path).await.state == JobState::Undoing;
    scene.controller.wait("the undo", undoing).await;
    let refused = scene
        .controller
        .refusal(Method::POST, "/v1/vms/web/stop", &json!({}))
        .await;
    assert_eq!(refused.code, ErrorCode::VmBusy);
    let force = json!({"force": true});
    scene.done(Method::POST, "/v1/vms/web/stop", &force).await;
    let stopped = a.look(|inner| {
        let mut web = inner
            .vms
            .values()
            .filter(|vm| vm.metadata.spec.name.as_str() == "web");
        web.next().map(|vm| vm.state)
    });
    assert_eq!(stopped, Some(VmState::Stopped));
    // and the job can be given up, which frees the VM
    let given_up: JobView = scene
        .controller
        .post(&format!("{path}/give-up"), &json!({}))
        .await;
    assert_eq!(given_up.state, JobState::Failed);
    a.look(|inner| inner.busy.clear());
    scene.web_is_free_on("a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_done_shows_no_start_of_a_vm_that_was_not_started() {
    let scene = Scene::new().await;
    let body = json!({"name": "web", "host": "a", "tpm": false});
    let job = scene.done(Method::POST, "/v1/vms", &body).await;
    assert_eq!(
        (step(&job, "start"), step(&job, "make-tpm")),
        ("skipped", "skipped")
    );
    let body = json!({"name": "db", "host": "a", "start": true});
    let job = scene.done(Method::POST, "/v1/vms", &body).await;
    assert_eq!(
        (step(&job, "start"), step(&job, "make-tpm")),
        ("done", "done")
    );
}

/// All that a controller does stands still for longer than a host may be silent, as on a machine that has no time for it; its
/// hosts go on meanwhile.
#[test]
fn a_controller_that_was_held_up_has_lost_no_host() {
    const WORKERS: usize = 2;
    let runtime = |threads| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .enable_all()
            .build()
            .expect("a runtime")
    };
    let (own, theirs) = (runtime(WORKERS), runtime(1));
    let controller = own.block_on(Controller::start());
    let hosts = ["a", "b", "c"].map(|name| theirs.block_on(controller.join(name, "default")));
    let streams = || {
        hosts
            .each_ref()
            .map(|host| host.look(|inner| inner.streams))
    };
    assert_eq!(streams(), [1; 3]);

    let all = Arc::new(std::sync::Barrier::new(WORKERS));
    let stalls: Vec<_> = (0..WORKERS)
        .map(|_| {
            let all = all.clone();
            own.spawn(async move {
                all.wait();
                std::thread::sleep(Duration::from_secs(15));
            })
        })
        .collect();
    for stall in stalls {
        own.block_on(stall).expect("no panic");
    }
    // Whoever takes them for lost does so now, and calls them again.
    std::thread::sleep(Duration::from_secs(4));
    let views: Vec<HostView> = theirs.block_on(controller.get("/v1/hosts"));
    let online = |view: &HostView| view.state == HostState::Online;
    assert!(views.iter().all(online), "{views:?}");
    assert_eq!(streams(), [1; 3], "nobody was called again");
}

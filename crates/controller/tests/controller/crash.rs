//! kill -9 of the controller before and after every step of every kind of job, forward and back.
//!
//! The walk reads the kinds and their steps from the running controller, so that a new step is walked without anybody thinking
//! of it; a new kind fails until [`Case`] says how to ask for it. The agents only pretend: what crashes of agents do is for the
//! tests on lab hosts.

use crate::fleet::Controller;
use crate::fleet::agent::FakeAgent;
use fleetward_api::controller::{Accepted, JobKindView, JobState, JobView};
use fleetward_failpoint::HoldPoints;
use fleetward_model::ErrorCode;
use fleetward_model::vm::VmState;
use http::Method;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Steps that have nothing to do in the cases here; they are walked on lab hosts.
const WITHOUT_WORK: &[(&str, &str)] = &[
    ("tpm-enable", "restart"),
    ("tpm-disable", "restart"),
    ("vm-create", "place-images"),
    ("vm-change", "place-images"),
];

/// Fleets that are walked at once.
const FLEETS: usize = 3;

/// How to make a job of a kind, and what is there before and after it.
struct Case {
    method: Method,
    path: &'static str,
    body: Value,
    before: Where,
    after: Where,
    /// The operation whose failure turns the job back; none where nothing can be taken back.
    fails: Option<(&'static str, &'static str)>,
}

/// Where the VM `web` is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Where {
    Nowhere,
    On(&'static str, VmState),
    /// There, stopped, and without a TPM.
    Bare(&'static str),
    /// It stopped on the first host, and its clone on the second.
    Both,
}

fn case(kind: &str, step: &str) -> Case {
    use Where::{Bare, Both, Nowhere, On};
    let (stopped, running) = (On("a", VmState::Stopped), On("a", VmState::Running));
    let paused = On("a", VmState::Paused);
    let post = |path, body, before, after, fails| Case {
        method: Method::POST,
        path,
        body,
        before,
        after,
        fails,
    };
    match kind {
        "vm-create" => post(
            "/v1/vms",
            json!({"name": "web", "host": "a", "start": true}),
            Nowhere,
            running,
            Some(("a", "start")),
        ),
        "vm-start" => post(
            "/v1/vms/web/start",
            json!({}),
            stopped,
            running,
            Some(("a", "start")),
        ),
        "vm-stop" => post("/v1/vms/web/stop", json!({}), running, stopped, None),
        // A guest that has shut down is not taken back by anything.
        "vm-restart" => post("/v1/vms/web/restart", json!({}), running, running, None),
        "vm-pause" => post(
            "/v1/vms/web/pause",
            json!({}),
            running,
            paused,
            Some(("a", "pause")),
        ),
        "vm-resume" => post(
            "/v1/vms/web/resume",
            json!({}),
            paused,
            running,
            Some(("a", "resume")),
        ),
        "vm-delete" => Case {
            method: Method::DELETE,
            ..post("/v1/vms/web", json!({}), stopped, Nowhere, None)
        },
        "vm-change" if OF_TPM_OFF.contains(&step) => Case {
            method: Method::PATCH,
            ..post(
                "/v1/vms/web",
                json!({"tpm": false, "cpus": 3}),
                stopped,
                Bare("a"),
                Some(("a", "change-vm")),
            )
        },
        "vm-change" if step == "remove-volumes" => Case {
            method: Method::PATCH,
            ..post(
                "/v1/vms/web",
                json!({"disks": [{"action": "move", "disk": "vda", "pool": "fast"}]}),
                stopped,
                stopped,
                Some(("a", "change-vm")),
            )
        },
        "vm-change" => Case {
            method: Method::PATCH,
            ..post(
                "/v1/vms/web",
                json!({"tpm": true, "cpus": 3, "name": "net", "labels": {"k": "v"}}),
                Bare("a"),
                stopped,
                Some(("a", "change-vm")),
            )
        },
        "vm-migrate" => post(
            "/v1/vms/web/migrate",
            json!({"to": "b"}),
            running,
            On("b", VmState::Running),
            Some(("a", "migrate-live")),
        ),
        "vm-migrate-stopped" => post(
            "/v1/vms/web/migrate",
            json!({"to": "b", "offline": true}),
            stopped,
            On("b", VmState::Stopped),
            Some(("a", "send-stopped")),
        ),
        "vm-clone" => post(
            "/v1/vms/web/clone",
            json!({"name": "twin", "tpm": "copy", "host": "b"}),
            stopped,
            Both,
            Some(("a", "send-stopped")),
        ),
        "template-create" => post(
            "/v1/templates",
            json!({"name": "gold", "from": "web"}),
            stopped,
            stopped,
            None,
        ),
        "host-drain" => post(
            "/v1/hosts/a/drain",
            json!({}),
            running,
            On("b", VmState::Running),
            None,
        ),
        "tpm-enable" => post(
            "/v1/vms/web/tpm/enable",
            json!({}),
            Bare("a"),
            stopped,
            Some(("a", "attach-tpm")),
        ),
        "tpm-disable" => post(
            "/v1/vms/web/tpm/disable",
            json!({"stop_and_restart": true}),
            stopped,
            Bare("a"),
            Some(("a", "detach-tpm")),
        ),
        "tpm-roll" => post(
            "/v1/vms/web/tpm/roll",
            json!({"stop_and_restart": true}),
            running,
            running,
            Some(("a", "prepare-roll")),
        ),
        "tpm-unlock" => post(
            "/v1/vms/web/tpm/unlock",
            json!({"stop_and_restart": true}),
            running,
            running,
            Some(("a", "prepare-unlock")),
        ),
        "secure-boot-enroll" => post(
            "/v1/vms/web/secure-boot/enroll",
            json!({"stop_and_restart": true}),
            running,
            running,
            Some(("a", "enroll-certificates")),
        ),
        "secure-boot-restore" => post(
            "/v1/vms/web/secure-boot/restore",
            json!({"stop_and_restart": true}),
            running,
            running,
            Some(("a", "restore-certificates")),
        ),
        other => panic!("say here how a job of kind {other} is made"),
    }
}

/// Steps of `vm-change` that only switching the TPM off has.
const OF_TPM_OFF: [&str; 3] = ["last-copy", "detach-tpm", "set-aside-tpm"];

struct Walk {
    controller: Controller,
    hosts: [FakeAgent; 2],
    /// By kind and body of a case: the steps that have nothing to do in it.
    skipped: BTreeMap<String, BTreeSet<String>>,
    holds: HoldPoints,
    dir: tempfile::TempDir,
}

impl Walk {
    async fn begin() -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let controller = Controller::spawn(dir.path()).await;
        let (a, b) = tokio::join!(
            controller.join("a", "default"),
            controller.join("b", "default")
        );
        a.knows(&b);
        Self {
            controller,
            hosts: [a, b],
            skipped: BTreeMap::new(),
            holds: HoldPoints::in_directory(dir.path()),
            dir,
        }
    }

    /// A controller that has just begun lists what it last knew, until the hosts have told it.
    async fn hosts_have_told(&self) {
        self.controller
            .local
            .request(Method::POST, "/v1/hosts/a/resume")
            .send()
            .await
            .expect("resume");
        for host in &self.hosts {
            self.controller.wait_online(&host.host, true).await;
        }
    }

    async fn arrange(&self, place: Where) {
        let tpm = !matches!(place, Where::Bare(_));
        self.hosts_have_told().await;
        if let Where::On(host, _) | Where::Bare(host) = place {
            let start = matches!(place, Where::On(_, VmState::Running | VmState::Paused));
            let body = json!({"name": "web", "host": host, "start": start, "tpm": tpm});
            self.controller.done(Method::POST, "/v1/vms", &body).await;
            if matches!(place, Where::On(_, VmState::Paused)) {
                let pause = "/v1/vms/web/pause";
                self.controller.done(Method::POST, pause, &json!({})).await;
            }
        }
    }

    /// Kills the controller at `point` of the job, lets another finish it.
    async fn killed_at(&mut self, point: &str, case: &Case) -> JobView {
        self.holds.set(point).expect("hold");
        let request = self
            .controller
            .local
            .request(case.method.clone(), case.path)
            .json(&case.body);
        let response = request
            .send()
            .await
            .unwrap_or_else(|error| panic!("{point}: {error:?}"));
        let job = response
            .json::<Accepted>()
            .await
            .expect("accepted")
            .job
            .expect("a job");
        let controller = &mut self.controller;
        let holds = &self.holds;
        controller
            .wait(point, async || holds.is_reached(point))
            .await;
        let release = || holds.release(point).expect("release");
        controller.kill_and_restart(self.dir.path(), release).await;
        controller.ended(job).await
    }

    /// The VM is exactly there, and nothing of it elsewhere.
    fn assert_is(&self, point: &str, place: Where) {
        for agent in &self.hosts {
            let place = match place {
                Where::Both if agent.host.as_str() == "b" => Where::On("b", VmState::Stopped),
                Where::Both => Where::On("a", VmState::Stopped),
                place => place,
            };
            match place {
                Where::On(host, state) if agent.host.as_str() == host => {
                    let states = agent.look(|inner| {
                        let found = (inner.volumes.len(), inner.tpms.len());
                        assert_eq!(found, (1, 1), "{point}");
                        let whole =
                            |vm: &crate::fleet::agent::FakeVm| vm.metadata.transit.is_none();
                        inner
                            .vms
                            .values()
                            .map(|vm| (vm.state, whole(vm)))
                            .collect::<Vec<_>>()
                    });
                    assert_eq!(states, [(state, true)], "{point} on {host}");
                }
                Where::Bare(host) if agent.host.as_str() == host => {
                    let seen = agent.look(|inner| {
                        let with_tpm = inner.vms.values().filter(|vm| vm.metadata.spec.tpm);
                        (inner.vms.len(), inner.tpms.len(), with_tpm.count())
                    });
                    assert_eq!(seen, (1, 0, 0), "{point} on {host}");
                }
                _ => assert!(agent.is_clean(), "{point}: rests on {}", agent.host),
            }
        }
    }

    /// The VM of `vm-change` has all that was wanted, or nothing of it, in specification and definition.
    fn assert_changed(&self, point: &str, case: &Case, done: bool) {
        let (Some(cpus), true) = (case.body["cpus"].as_u64(), case.method == Method::PATCH) else {
            return;
        };
        let name = case.body["name"].as_str().filter(|_| done);
        let expected = (
            name.unwrap_or("web").to_owned(),
            if done { cpus } else { 1 },
            usize::from(done && case.body["labels"].is_object()),
        );
        let found = self.hosts[0].look(|inner| {
            let (id, vm) = inner.vms.iter().next().expect("the VM");
            let (spec, seen) = (&vm.metadata.spec, inner.observed(*id).expect("seen"));
            let defined = seen.defined.expect("told");
            assert_eq!(
                (defined.cpus, seen.domain_name),
                (spec.cpus, None),
                "{point}"
            );
            (
                spec.name.to_string(),
                u64::from(spec.cpus),
                spec.labels.len(),
            )
        });
        assert_eq!(found, expected, "{point}");
    }

    async fn clear(&self) {
        self.hosts_have_told().await;
        let vms: Vec<Value> = self.controller.get("/v1/vms").await;
        for vm in vms {
            let path = format!("/v1/vms/{}", vm["name"].as_str().expect("name"));
            if vm["state"] != "stopped" {
                let force = json!({"force": true});
                self.controller
                    .done(Method::POST, &format!("{path}/stop"), &force)
                    .await;
            }
            self.controller
                .done(Method::DELETE, &path, &json!({}))
                .await;
        }
        let templates: Vec<Value> = self.controller.get("/v1/templates").await;
        for template in templates {
            let path = format!("/v1/templates/{}", template["name"].as_str().expect("name"));
            let deleted = self
                .controller
                .local
                .request(Method::DELETE, &path)
                .send()
                .await;
            deleted.expect("deleted");
        }
        self.assert_is("clearing", Where::Nowhere);
    }

    /// Whether a job of the case has nothing to do in the step, which may be so only where [`WITHOUT_WORK`] says it.
    async fn skips(&mut self, kind: &str, step: &str, case: &Case) -> bool {
        let key = format!("{kind} {}", case.body);
        if !self.skipped.contains_key(&key) {
            self.arrange(case.before).await;
            let job = self
                .controller
                .job(case.method.clone(), case.path, &case.body)
                .await;
            assert_eq!(job.state, JobState::Done, "{job:#?}");
            self.clear().await;
            let skipped = job.steps.into_iter().filter(|step| step.state == "skipped");
            let names = skipped.map(|step| step.name).collect();
            self.skipped.insert(key.clone(), names);
        }
        let skips = self.skipped[&key].contains(step);
        assert_eq!(skips, WITHOUT_WORK.contains(&(kind, step)), "{kind} {step}");
        skips
    }

    /// Every point of every step of a kind.
    async fn kind(&mut self, JobKindView { kind, steps }: &JobKindView) {
        // What these do is done to key protectors, which agents that pretend do not have: walked on lab hosts.
        if kind.starts_with("guardian-") {
            return;
        }
        // These need a TPM that opens or a host that is lost, which agents that pretend do not have: walked on lab hosts.
        if ["tpm-restore", "vm-recover", "vm-supersede"].contains(&kind.as_str()) {
            return;
        }
        for step in steps {
            let case = case(kind, &step.name);
            if self.skips(kind, &step.name, &case).await {
                continue;
            }
            for moment in ["before", "after", "recorded"] {
                let point = format!("job.{kind}.{}.{moment}", step.name);
                self.arrange(case.before).await;
                let job = self.killed_at(&point, &case).await;
                assert_eq!(job.state, JobState::Done, "{point}: {job:#?}");
                self.assert_is(&point, case.after);
                self.assert_changed(&point, &case, true);
                self.clear().await;
            }
        }
        for step in steps.iter().filter(|step| step.undoable) {
            let case = case(kind, &step.name);
            let Some((host, operation)) = case.fails else {
                continue;
            };
            if self.skips(kind, &step.name, &case).await {
                continue;
            }
            for moment in ["before", "after", "recorded"] {
                let point = format!("job.{kind}.{}.undo.{moment}", step.name);
                self.arrange(case.before).await;
                let failing = self
                    .hosts
                    .iter()
                    .find(|agent| agent.host.as_str() == host)
                    .expect("host");
                failing.fail_once(operation, ErrorCode::HypervisorFailed);
                let job = self.killed_at(&point, &case).await;
                assert_eq!(job.state, JobState::Undone, "{point}: {job:#?}");
                self.assert_is(&point, case.before);
                self.assert_changed(&point, &case, false);
                self.clear().await;
            }
        }
    }
}

#[test]
fn a_controller_killed_at_any_point_of_any_job_leaves_it_done_or_undone() {
    if std::env::var_os("FLEETWARD_HOLD_DIR").is_some() {
        return; // this process is the controller
    }
    // Fleets side by side, each of which takes the next kind: much of a restart is waiting.
    let next = Arc::new(AtomicUsize::new(0));
    let lanes: Vec<_> = (0..FLEETS)
        .map(|_| {
            let next = next.clone();
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build();
                runtime.expect("a runtime").block_on(async {
                    let mut walk = Walk::begin().await;
                    let kinds: Vec<JobKindView> = walk.controller.get("/v1/job-kinds").await;
                    while let Some(kind) = kinds.get(next.fetch_add(1, Ordering::SeqCst)) {
                        walk.kind(kind).await;
                    }
                });
            })
        })
        .collect();
    let failed = lanes.into_iter().filter_map(|lane| lane.join().err());
    assert_eq!(failed.count(), 0, "said above where");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_was_made_is_listed_after_a_kill_although_its_host_is_silent() {
    if std::env::var_os("FLEETWARD_HOLD_DIR").is_some() {
        return; // this process is the controller
    }
    let mut walk = Walk::begin().await;
    // twice: what the first wrote must not hold up what the second says
    for name in ["web", "db"] {
        let body = json!({"name": name, "host": "a"});
        walk.controller.done(Method::POST, "/v1/vms", &body).await;
    }
    let (controller, a) = (&mut walk.controller, &walk.hosts[0]);
    controller
        .kill_and_restart(walk.dir.path(), || a.cut())
        .await;
    let vms: Vec<Value> = controller.get("/v1/vms").await;
    let names: Vec<_> = vms.iter().map(|vm| &vm["name"]).collect();
    assert_eq!(names, ["db", "web"], "{vms:#?}");
}

//! What a scenario says happens, seen through a real controller: who simulates a fault sees that fault.

use crate::fleet::Controller;
use fleetward_api::controller::{HostView, JobState, Status};
use fleetward_api::tpm::TpmVersion;
use fleetward_sim::directory::Fleet;
use fleetward_sim::fleet::RunningFleet;
use fleetward_sim::measure::{changes_seen, wait_online};
use fleetward_sim::plan::FleetPlan;
use fleetward_sim::prepare::{Joined, prepare};
use fleetward_sim::scenario::Scenario;
use http::Method;
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use time::OffsetDateTime;

/// A controller, and six hosts of three VMs in groups of three.
struct Simulated {
    controller: Controller,
    fleet: Fleet,
    running: Arc<RunningFleet>,
    dir: TempDir,
}

impl Simulated {
    async fn start() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let controller = Controller::start().await;
        let dir = tempfile::tempdir().expect("directory");
        let number = std::process::id() % 4096 * 64 + NEXT.fetch_add(1, Ordering::Relaxed);
        let plan = FleetPlan {
            hosts: 6,
            vms: 3,
            hosts_per_group: 3,
            random_seed: 7,
            first_address: Ipv4Addr::from_bits(
                Ipv4Addr::new(127, 192, 0, 1).to_bits() + number * 16,
            ),
            port: 7443,
        };
        let fleet = Fleet {
            plan,
            shared_guardian: true,
        };
        let joined = prepare(&controller.local, &fleet, dir.path(), |_| {}).await;
        let (directory, joined) = joined.expect("joined");
        assert_eq!(joined, Joined { now: 6, before: 0 });
        let running = RunningFleet::start(&directory, &fleet)
            .await
            .expect("hosts");
        wait_online(&controller.local, &running)
            .await
            .expect("online");
        Self {
            controller,
            fleet,
            running: Arc::new(running),
            dir,
        }
    }

    fn begin(&self, scenario: &str) {
        let scenario = Scenario::parse(scenario).expect("a scenario");
        scenario.begin(&self.running);
    }

    async fn online(&self) -> u32 {
        let status: Status = self.controller.get("/v1/status").await;
        status.hosts_online
    }

    async fn wait_for(&self, online: u32) {
        let what = format!("{online} hosts online");
        self.controller
            .wait(&what, async || self.online().await == online)
            .await;
    }

    async fn reason(&self, vm: u32) -> Value {
        let name = self.running.plan.vm_name(vm);
        let view: Value = self.controller.get(&format!("/v1/vms/{name}")).await;
        view["reason"].clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_join_once_and_nothing_is_due_when_they_are_there() {
    let simulated = Simulated::start().await;
    let Simulated {
        controller,
        fleet,
        dir,
        ..
    } = &simulated;
    let again = prepare(&controller.local, fleet, dir.path(), |_| {}).await;
    assert_eq!(again.expect("joined").1, Joined { now: 0, before: 6 });
    let mut other = fleet.clone();
    other.plan.vms = 4;
    let refused = prepare(&controller.local, &other, dir.path(), |_| {}).await;
    let refused = format!("{:#}", refused.expect_err("another fleet"));
    assert!(refused.contains("another fleet"), "{refused}");
    let jobs: Vec<Value> = controller.get("/v1/jobs").await;
    assert_eq!(jobs, [Value::Null; 0], "every VM is granted to its group");
    let key = dir.path().join("hosts/sim-00001.pem");
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(key).expect("a key").permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_hosts_are_not_heard_and_speak_again() {
    let simulated = Simulated::start().await;
    let heard = async || {
        let hosts: Vec<Value> = simulated.controller.get("/v1/hosts").await;
        let heard = hosts.iter().map(|host| host["last_seen"].clone());
        heard.collect::<Vec<_>>()
    };
    let changed = |before: &[Value], after: &[Value]| {
        let pairs = before.iter().zip(after);
        pairs.filter(|(before, after)| before != after).count()
    };
    simulated.begin("[[fault]]\nkind = \"silent\"\npercent = 50\nfor_seconds = 8\n");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = heard().await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(changed(&before, &heard().await), 3);
    let again = async || changed(&before, &heard().await) == 6;
    simulated
        .controller
        .wait("all hosts are heard", again)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_are_silent_on_an_open_connection_do_not_stay_online() {
    let simulated = Simulated::start().await;
    simulated.begin("[[fault]]\nkind = \"silent\"\npercent = 50\nfor_seconds = 60\n");
    // Ten seconds of silence, of which the last sign of life may have begun a moment after the fault.
    let deadline = Instant::now() + Duration::from_secs(20);
    simulated.wait_for(3).await;
    assert!(Instant::now() < deadline, "it took too long");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_cuts_its_share_off_and_ends() {
    let simulated = Simulated::start().await;
    simulated.begin("[[fault]]\nkind = \"partition\"\npercent = 33\nfor_seconds = 4\n");
    simulated.wait_for(4).await;
    simulated.wait_for(6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_that_restart_keep_their_vms() {
    let simulated = Simulated::start().await;
    assert!(simulated.running.touch(0, "before".into()));
    simulated.begin("[[fault]]\nkind = \"restart\"\npercent = 100\nfor_seconds = 1\n");
    simulated.wait_for(0).await;
    simulated.wait_for(6).await;
    let status: Status = simulated.controller.get("/v1/status").await;
    assert_eq!(status.vms, 18);
    assert_eq!(simulated.reason(0).await, "before");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_come_at_their_rate_and_are_seen() {
    let simulated = Simulated::start().await;
    let seen = changes_seen(&simulated.controller.local, &simulated.running, 5).await;
    assert_eq!(seen.expect("seen").count, 5);
    simulated.begin("[[change]]\nper_second = 50\n");
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut newest = 0;
    for vm in 0..18 {
        let reason = simulated.reason(vm).await;
        let number = reason
            .as_str()
            .and_then(|text| text.strip_prefix("change "));
        newest = newest.max(number.and_then(|n| n.parse().ok()).unwrap_or(0));
    }
    assert!(
        (60..=400).contains(&newest),
        "{newest} changes in 2 s and some"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_writes_its_tpm_gets_a_copy_of_it() {
    let simulated = Simulated::start().await;
    assert!(simulated.running.write_tpm(4));
    let path = format!("/v1/vms/{}", simulated.running.plan.vm_name(4));
    let controller = &simulated.controller;
    let current = async || {
        let vm: Value = controller.get(&path).await;
        vm["escrow"]["current"] == true
    };
    controller.wait("a copy", current).await;
    let kept: Vec<TpmVersion> = controller.get(&format!("{path}/tpm/history")).await;
    assert!(!kept.is_empty(), "{kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_hosts_take_their_time_and_a_wrong_clock_is_told() {
    let simulated = Simulated::start().await;
    simulated.begin(
        "[[fault]]\nkind = \"slow\"\npercent = 100\nfor_seconds = 60\ndelay_ms = 700\n\
         [[fault]]\nkind = \"clock\"\npercent = 100\nfor_seconds = 60\nahead_seconds = 7200\n",
    );
    tokio::time::sleep(Duration::from_millis(100)).await;
    let name = simulated.running.plan.vm_name(0);
    let begin = Instant::now();
    let stop = format!("/v1/vms/{name}/stop");
    let controller = &simulated.controller;
    let force = json!({ "force": true });
    controller.done(Method::POST, &stop, &force).await;
    assert!(begin.elapsed() > Duration::from_millis(700));
    let host = format!("/v1/hosts/{}", simulated.running.plan.host(0));
    let ahead = async || {
        let view: HostView = controller.get(&host).await;
        let facts = view.facts.expect("it was heard");
        facts.clock > OffsetDateTime::now_utc() + time::Duration::hours(1)
    };
    controller.wait("its clock", ahead).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn vms_move_between_simulated_hosts_in_both_directions_at_once() {
    let simulated = Simulated::start().await;
    let Simulated {
        controller,
        running,
        ..
    } = &simulated;
    let request = |vm: u32, to: u32| {
        let path = format!("/v1/vms/{}/migrate", running.plan.vm_name(vm));
        (path, json!({ "to": running.plan.host(to) }))
    };
    let ((there, to_b), (back, to_a)) = (request(0, 1), request(3, 0));
    let (a, b) = tokio::join!(
        controller.job(Method::POST, &there, &to_b),
        controller.job(Method::POST, &back, &to_a)
    );
    assert_eq!(
        (a.state, b.state),
        (JobState::Done, JobState::Done),
        "{a:#?} {b:#?}"
    );
    let vm: Value = controller
        .get(&format!("/v1/vms/{}", running.plan.vm_name(0)))
        .await;
    assert_eq!(vm["host"], "sim-00002");
}

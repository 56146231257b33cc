//! What a scenario says happens, seen through a real controller: who simulates a fault sees that fault.

use crate::fleet::Controller;
use fleetward_api::controller::{HostView, JobState, Status, VmView};
use fleetward_api::tpm::TpmVersion;
use fleetward_model::ErrorCode;
use fleetward_model::host::HostState;
use fleetward_model::vm::VmState;
use fleetward_sim::agent::Given;
use fleetward_sim::directory::{Fleet, Protectors};
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
    /// How often each host was called for its events.
    fn streams(&self) -> Vec<u64> {
        let hosts = self.running.hosts.iter();
        hosts.map(|host| host.look(|inner| inner.streams)).collect()
    }

    async fn start() -> Self {
        Self::start_with(Protectors::Sized).await
    }

    async fn start_with(protectors: Protectors) -> Self {
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
            protectors,
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
        let view: Value = self.controller.get(&self.path(vm)).await;
        view["reason"].clone()
    }

    fn path(&self, vm: u32) -> String {
        format!("/v1/vms/{}", self.running.plan.vm_name(vm))
    }

    async fn vm(&self, vm: u32) -> VmView {
        self.controller.get(&self.path(vm)).await
    }

    /// Until the newest copy of every TPM is as its host has it.
    async fn all_copied(&self) {
        let copied = async || {
            let vms = self.vms().await;
            let escrow = |vm: &VmView| vm.escrow.as_ref().is_some_and(|copy| copy.current);
            vms.iter().all(escrow)
        };
        self.controller.wait("a copy of every TPM", copied).await;
    }

    async fn vms(&self) -> Vec<VmView> {
        self.controller.get("/v1/vms").await
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
    // Its log goes on where it was.
    let stop = format!("{}/stop", simulated.path(0));
    let controller = &simulated.controller;
    let force = json!({ "force": true });
    controller.done(Method::POST, &stop, &force).await;
    let verdict: Value = controller.get("/v1/audit/verify").await;
    assert_eq!(verdict["intact"], true, "{verdict}");
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

#[tokio::test(flavor = "multi_thread")]
async fn flapping_hosts_go_and_come_and_are_there_at_the_end() {
    let simulated = Simulated::start().await;
    let before = simulated.streams();
    simulated.begin(
        "[[fault]]\nkind = \"flapping\"\npercent = 50\nfor_seconds = 8\nup_seconds = 1\ndown_seconds = 1\n",
    );
    // Each of the three is called several times, and none of the others.
    let flapped = async || {
        let pairs = before.iter().zip(simulated.streams());
        let often = pairs.filter(|(before, after)| *after >= **before + 2);
        often.count() == 3
    };
    simulated
        .controller
        .wait("the hosts to flap", flapped)
        .await;
    tokio::time::sleep(Duration::from_secs(8)).await;
    simulated.wait_for(6).await;
    let pairs = before.iter().zip(simulated.streams());
    assert_eq!(
        pairs.filter(|(before, after)| *after == **before).count(),
        3
    );
    assert_eq!(simulated.vms().await.len(), 18);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_storm_boots_what_ran_and_each_guest_writes_its_tpm() {
    let simulated = Simulated::start().await;
    let controller = &simulated.controller;
    let stop = format!("{}/stop", simulated.path(0));
    controller
        .done(Method::POST, &stop, &json!({ "force": true }))
        .await;
    simulated.begin("[[fault]]\nkind = \"boot-storm\"\npercent = 100\nfor_seconds = 5\n");
    let in_state = async |state| {
        let vms = simulated.vms().await;
        vms.iter().filter(|vm| vm.state == state).count()
    };
    let cut = async || in_state(VmState::Stopped).await > 5;
    controller.wait("the power cut to show", cut).await;
    let booted = async || in_state(VmState::Running).await == 17;
    controller.wait("the VMs to run", booted).await;
    assert_eq!(simulated.vm(0).await.state, VmState::Stopped);
    simulated.all_copied().await;
}

/// A copy has half a mebibyte of UEFI variables, and a guest writes its TPM all the time.
#[tokio::test(flavor = "multi_thread")]
async fn a_tpm_that_is_written_costs_its_state_and_not_the_variables_again() {
    let simulated = Simulated::start_with(Protectors::Real).await;
    let running = &simulated.running;
    simulated.all_copied().await;
    let first = running.given();
    assert!(first.copies >= 18, "{first:?}");
    assert!(first.bytes / first.copies > 700_000, "{first:?}");
    assert_eq!(first.without_variables, 0);

    let next = async |before: Given| {
        let copied = async || running.given().copies > before.copies;
        simulated.controller.wait("another copy", copied).await;
        simulated.all_copied().await;
        running.given()
    };
    assert!(running.write_tpm(4));
    let second = next(first).await;
    assert_eq!(second.without_variables, 1);
    assert!(second.bytes - first.bytes < 40_000, "{first:?} {second:?}");
    assert!(running.write_variables(4));
    let third = next(second).await;
    assert_eq!(third.without_variables, 1, "they have changed");
    assert!(third.bytes - second.bytes > 700_000, "{second:?} {third:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn key_protectors_that_are_real_open_where_the_vm_goes_and_are_made_anew() {
    let simulated = Simulated::start_with(Protectors::Real).await;
    let Simulated {
        controller,
        running,
        ..
    } = &simulated;
    let jobs: Vec<Value> = controller.get("/v1/jobs").await;
    assert_eq!(jobs, [Value::Null; 0], "every VM is granted to its group");
    let migrate = format!("{}/migrate", simulated.path(0));
    let to = json!({ "to": running.plan.host(1) });
    controller.done(Method::POST, &migrate, &to).await;
    let stop = format!("{}/stop", simulated.path(0));
    let force = json!({ "force": true });
    controller.done(Method::POST, &stop, &force).await;
    let key_of = async || simulated.vm(0).await.tpm.key_id;
    let before = key_of().await;
    let roll = format!("{}/tpm/roll", simulated.path(0));
    controller.done(Method::POST, &roll, &json!({})).await;
    let rolled = async || key_of().await.is_some_and(|key| Some(key) != before);
    controller.wait("another key", rolled).await;
    let start = format!("{}/start", simulated.path(0));
    controller.done(Method::POST, &start, &json!({})).await;
    simulated.all_copied().await;
    // It opens on the host that has it now, and on the one where it began.
    for host in [1, 0] {
        let protector = running.hosts[1].look(|inner| {
            let vm = &inner.vms[&running.plan.vm_id(0)];
            vm.metadata.key_protector.clone()
        });
        let opens = running.hosts[host].look(|inner| {
            let custody = inner.custody.clone().expect("it seals");
            custody.opens(running.plan.vm_id(0), &protector.expect("sealed"))
        });
        assert!(opens, "host {host}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_is_cut_off_takes_no_other_host_with_it() {
    let simulated = Simulated::start().await;
    let before = simulated.streams();
    simulated.begin("[[fault]]\nkind = \"partition\"\ngroup = \"group-00002\"\nfor_seconds = 4\n");
    simulated.wait_for(3).await;
    let hosts: Vec<HostView> = simulated.controller.get("/v1/hosts").await;
    let away = hosts.iter().filter(|host| host.state != HostState::Online);
    let groups: Vec<String> = away.map(|host| host.group.to_string()).collect();
    assert_eq!(groups, ["group-00002"; 3]);
    simulated.wait_for(6).await;
    assert_eq!(
        simulated.streams()[..3],
        before[..3],
        "group-00001 was there all the time"
    );
    assert_eq!(simulated.vms().await.len(), 18);
}

/// The host of the VM is the one that has it, and nothing is done with it while another one claims it.
#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_claim_others_vms_get_nothing_and_the_dispute_ends_with_the_lie() {
    let simulated = Simulated::start().await;
    let controller = &simulated.controller;
    simulated.begin(
        "[[fault]]\nkind = \"lying\"\nlie = \"others-vms\"\nvms = 2\npercent = 17\nfor_seconds = 6\n",
    );
    let claimed = async || {
        let vms = simulated.vms().await;
        let claimed = vms.into_iter().filter(|vm| !vm.claims.is_empty());
        claimed.map(|vm| vm.id).collect::<Vec<_>>()
    };
    let two = async || claimed().await.len() == 2;
    controller.wait("the claims to show", two).await;
    let disputed = claimed().await;
    for id in &disputed {
        let path = format!("/v1/vms/{id}/stop");
        let refusal = controller
            .refusal(Method::POST, &path, &json!({ "force": true }))
            .await;
        assert_eq!(refusal.code, ErrorCode::VmDisputed, "{refusal:?}");
    }
    let none = async || claimed().await.is_empty();
    controller.wait("the dispute to end", none).await;
    let plan = &simulated.running.plan;
    for number in 0..plan.all_vms() {
        let vm = simulated.vm(number).await;
        assert_eq!(vm.host, plan.host(number / plan.vms), "{}", vm.name);
        assert_eq!(vm.state, VmState::Running, "{}", vm.name);
    }
    let path = format!("/v1/vms/{}/stop", disputed[0]);
    controller
        .done(Method::POST, &path, &json!({ "force": true }))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_that_answer_with_another_vm_change_nothing_of_the_one_asked_for() {
    let simulated = Simulated::start().await;
    let controller = &simulated.controller;
    simulated
        .begin("[[fault]]\nkind = \"lying\"\nlie = \"any-vm\"\npercent = 100\nfor_seconds = 600\n");
    let first_of = |number: u32| {
        let host = &simulated.running.hosts[number as usize];
        host.look(|inner| inner.answers_with)
    };
    controller
        .wait("the lie", async || first_of(0).is_some())
        .await;
    let (lie, plan) = (first_of(0).expect("a VM"), &simulated.running.plan);
    let honest = (0..plan.vms).find(|number| plan.vm_id(*number) != lie);
    let number = honest.expect("another VM of the host");
    // The look at the VM after the job is answered with another one.
    let stop = format!("{}/stop", simulated.path(number));
    controller
        .done(Method::POST, &stop, &json!({ "force": true }))
        .await;
    let vm = simulated.vm(number).await;
    assert_eq!(
        (vm.id, vm.host, vm.state),
        (plan.vm_id(number), plan.host(0), VmState::Stopped)
    );
    // So is the wish for its TPM.
    let refused = async || {
        let view: Value = controller.get(&simulated.path(number)).await;
        view["escrow"]["failure"]["code"] == "ESCROW_CORRUPT"
    };
    controller.wait("the refusal to show", refused).await;
    let history = format!("{}/tpm/history", simulated.path(number));
    let kept: Vec<TpmVersion> = controller.get(&history).await;
    assert!(kept.is_empty(), "{kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_that_grow_are_refused_for_their_host_alone_and_the_vm_stays_as_it_was() {
    let simulated = Simulated::start().await;
    let controller = &simulated.controller;
    simulated.begin(
        "[[fault]]\nkind = \"lying\"\nlie = \"growing-reports\"\npercent = 17\nfor_seconds = 6\n",
    );
    let warned = async || {
        let hosts: Vec<HostView> = controller.get("/v1/hosts").await;
        let large = |text: &String| text.starts_with("REPORT_TOO_LARGE");
        let warned = hosts.iter().filter(|host| host.warnings.iter().any(large));
        warned.count()
    };
    let one = async || warned().await == 1;
    controller.wait("the host to be named", one).await;
    let longest = simulated.vms().await.into_iter().map(|vm| vm.reason.len());
    let longest = longest.max().expect("VMs");
    assert!((1 << 10..1 << 20).contains(&longest), "{longest}");
    assert_eq!(simulated.online().await, 6);
    let none = async || warned().await == 0;
    controller.wait("the host to be honest", none).await;
    let vms = simulated.vms().await;
    assert!(vms.iter().all(|vm| vm.reason.len() < 100), "{vms:?}");
}

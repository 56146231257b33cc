//! VMs that come back with their host, guests that crash, and guests with an agent, over the agent's real API with a hypervisor
//! that is none.

use crate::support::{Fleet, Job, Node, create_running, record_of};
use fleetward_api::agent::operation::{self, *};
use fleetward_api::agent::*;
use fleetward_hypervisor::{DomainState, GuestTold, NicAddresses, StopReason};
use fleetward_link::client::Lines;
use fleetward_model::boot::{AfterBoot, BootFacts};
use fleetward_model::vm::{
    DriveContent, DriveSpec, NicSpec, Profile, StoppedBy, VmReport, VmSpec, VmState,
};
use fleetward_model::{ErrorCode, VmId};
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

const LIMIT: Duration = Duration::from_secs(60);

/// Asks until it is so.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A stream of events, held open as the controller does.
async fn listen(node: &Node) -> Lines {
    let request = node.client.request(http::Method::GET, EVENTS);
    request.send().await.unwrap().lines()
}

/// The host's facts about its boot, from a snapshot of its own.
async fn boot(node: &Node) -> Option<BootFacts> {
    match listen(node)
        .await
        .next_json::<AgentEvent>()
        .await
        .unwrap()?
    {
        AgentEvent::Snapshot { facts, .. } => facts.boot,
        other => panic!("{other:?}"),
    }
}

async fn state(node: &Node, vm: VmId) -> VmReport {
    node.detail(vm).await.unwrap().vm
}

/// A VM that is off, with what its specification is to say.
async fn off(fleet: &Fleet, node: &Node, name: &str, wish: fn(&mut VmSpec)) -> VmSpec {
    let (spec, _) = create_running(fleet, node, name).await;
    node.fake.with(|s| {
        let domain = s.domains.get_mut(&spec.id).unwrap();
        wish(&mut domain.metadata.as_mut().unwrap().spec);
        domain.state = DomainState::Stopped(StopReason::Ordinary);
        s.secrets.remove(&spec.id);
        s.started.clear();
    });
    spec
}

/// The power was cut, and the host comes back.
async fn reboots(node: &mut Node, id: &str) {
    node.down().await;
    node.fake.with(|s| {
        for domain in s.domains.values_mut() {
            domain.state = DomainState::Stopped(StopReason::Ordinary);
        }
        s.secrets.clear();
        s.started.clear();
    });
    node.boot_id = id.to_owned();
    node.up().await;
}

fn started(node: &Node) -> Vec<VmId> {
    node.fake.with(|s| s.started.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_boot_vms_with_autostart_are_asked_for_a_few_at_a_time_and_nothing_starts_unasked()
{
    let fleet = Fleet::start().await;
    let mut node = Node::start(&fleet, "a").await;
    node.config.autostart_parallel = 2;
    node.config.autostart_pause = 0;
    node.config.autostart_patience = 1;
    let mut vms = Vec::new();
    for name in ["one", "two", "three"] {
        vms.push(off(&fleet, &node, name, |spec| spec.autostart = true).await);
    }
    let plain = off(&fleet, &node, "plain", |_| {}).await;
    // The agent alone is started again: that is no boot.
    node.down().await;
    node.up().await;
    assert_eq!(boot(&node).await, None);

    reboots(&mut node, "second").await;
    let facts = until("asking", async || {
        boot(&node).await.filter(|b| b.asking.len() == 2)
    })
    .await;
    assert_eq!((facts.waiting, facts.started), (3, 0));
    assert_eq!(
        state(&node, vms[0].id).await.noted.after_boot,
        Some(AfterBoot::Waiting)
    );
    assert_eq!(state(&node, plain.id).await.noted.after_boot, None);
    // The controller is not there, and agent.toml does not permit a start without it.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(started(&node), []);

    // It answers one by one, in whatever order; each makes room for the next.
    let first = facts.asking[0];
    Job::new(first, 5)
        .on(&node, operation::Start {})
        .await
        .unwrap();
    let facts = until("the next", async || {
        boot(&node)
            .await
            .filter(|b| b.started == 1 && b.asking.len() == 2)
    })
    .await;
    assert!(!facts.asking.contains(&first));
    // An agent that is started again in the middle goes on.
    node.down().await;
    node.up().await;
    for vm in &vms {
        if vm.id != first {
            until("its turn", async || {
                boot(&node).await.filter(|b| b.asking.contains(&vm.id))
            })
            .await;
            Job::new(vm.id, 5)
                .on(&node, operation::Start {})
                .await
                .unwrap();
        }
    }
    let facts = until("all", async || boot(&node).await.filter(|b| b.started == 3)).await;
    assert_eq!(
        (facts.waiting, facts.asking.len(), facts.off.len()),
        (0, 0, 0)
    );
    assert_eq!(state(&node, plain.id).await.state, VmState::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_was_rebuilt_elsewhere_or_cannot_start_stays_off_and_says_why() {
    let fleet = Fleet::start().await;
    let mut node = Node::start(&fleet, "a").await;
    node.config.autostart_parallel = 4;
    let old = off(&fleet, &node, "old", |spec| spec.autostart = true).await;
    let broken = off(&fleet, &node, "broken", |spec| spec.autostart = true).await;
    reboots(&mut node, "second").await;
    until("asking", async || {
        boot(&node).await.filter(|b| b.asking.len() == 2)
    })
    .await;

    Job::new(old.id, 5).on(&node, Supersede {}).await.unwrap();
    std::fs::remove_dir_all(node.fake.tpm(broken.id))
        .or_else(|_| std::fs::remove_file(node.fake.tpm(broken.id)))
        .unwrap();
    let refused = Job::new(broken.id, 5)
        .on(&node, operation::Start {})
        .await
        .unwrap_err();
    assert_eq!(refused.code, ErrorCode::TpmStateMissing);

    let facts = until("both off", async || {
        boot(&node).await.filter(|b| b.off.len() == 2)
    })
    .await;
    assert_eq!((facts.waiting, facts.started), (0, 0));
    let why = |name: &str| {
        let off = facts
            .off
            .iter()
            .find(|off| off.vm.as_str() == name)
            .unwrap();
        off.because.clone()
    };
    assert!(
        why("old").contains("rebuilt on another host"),
        "{}",
        why("old")
    );
    assert!(
        why("broken").contains("TPM_STATE_MISSING"),
        "{}",
        why("broken")
    );
    let noted = state(&node, broken.id).await.noted;
    assert!(
        matches!(noted.after_boot, Some(AfterBoot::Off { .. })),
        "{noted:?}"
    );
    assert_eq!(started(&node), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_controller_the_configured_rule_holds_and_half_of_a_migration_never_starts() {
    let fleet = Fleet::start().await;
    let mut node = Node::start(&fleet, "a").await;
    node.config.autostart_without_controller = true;
    node.config.autostart_patience = 1;
    node.config.autostart_pause = 0;
    let mine = off(&fleet, &node, "mine", |spec| spec.autostart = true).await;
    let left = off(&fleet, &node, "left", |spec| spec.autostart = true).await;
    // It has moved away, and its host lost power before the rests were removed.
    let transit = json!({"side": "departed", "job": Job::new(left.id, 5).id});
    std::fs::write(
        record_of(&node, left.id).join("transit.json"),
        transit.to_string(),
    )
    .unwrap();
    reboots(&mut node, "second").await;
    // While the controller listens, it decides.
    let listening = listen(&node).await;
    until("asking", async || {
        boot(&node).await.filter(|b| b.asking == [mine.id])
    })
    .await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(started(&node), []);
    drop(listening);
    until("the start", async || {
        (started(&node) == [mine.id]).then_some(())
    })
    .await;
    assert_eq!(state(&node, mine.id).await.state, VmState::Running);
    assert_eq!(node.fake.with(|s| s.secrets.len()), 1, "its key was opened");
    assert_eq!(state(&node, left.id).await.state, VmState::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_crashes_is_started_again_until_it_is_a_loop() {
    let fleet = Fleet::start().await;
    let mut node = Node::start(&fleet, "a").await;
    node.down().await;
    node.config.crash_pause = 0;
    node.up().await;
    let web = off(&fleet, &node, "web", |spec| spec.restart_on_crash = true).await;
    let plain = off(&fleet, &node, "plain", |_| {}).await;
    for vm in [&web, &plain] {
        Job::new(vm.id, 5)
            .on(&node, operation::Start {})
            .await
            .unwrap();
    }
    node.fake.stop_because(plain.id, StopReason::Crashed);
    for time in 1..=5 {
        node.fake.stop_because(web.id, StopReason::Crashed);
        until("the next start", async || {
            let web = state(&node, web.id).await;
            let again = web
                .noted
                .crashes
                .as_ref()
                .is_some_and(|c| c.count == time && c.again.is_none());
            (web.state == VmState::Running && again).then_some(())
        })
        .await;
    }
    node.fake.stop_because(web.id, StopReason::Crashed);
    let crashes = until("the end of it", async || {
        state(&node, web.id)
            .await
            .noted
            .crashes
            .filter(|c| c.given_up.is_some())
    })
    .await;
    assert!(crashes.given_up.unwrap().contains("6 times"));
    // Also an agent that is started anew leaves it so.
    node.down().await;
    node.up().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(state(&node, web.id).await.state, VmState::Stopped);
    assert_eq!(
        state(&node, plain.id).await.state,
        VmState::Stopped,
        "it did not ask for it"
    );
    // Somebody who starts it gives it another chance; a shutdown by itself is no crash.
    Job::new(web.id, 6)
        .on(&node, operation::Start {})
        .await
        .unwrap();
    assert_eq!(state(&node, web.id).await.noted.crashes, None);
    node.fake.stop_by_itself(web.id);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(state(&node, web.id).await.state, VmState::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_asks_the_guests_agent_first_and_presses_the_button_when_that_does_not_help() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "web").await;
    let job = Job::new(spec.id, 5);
    let stop = |seconds| operation::Stop {
        force: false,
        deadline_seconds: seconds,
        tell: true,
    };
    assert_eq!(
        job.on(&node, stop(5)).await.unwrap().by,
        Some(StoppedBy::Acpi),
        "it has no agent"
    );
    node.fake.with(|s| s.agents.insert(spec.id));
    job.on(&node, operation::Start {}).await.unwrap();
    assert_eq!(
        job.on(&node, stop(5)).await.unwrap().by,
        Some(StoppedBy::GuestAgent)
    );
    node.fake.with(|s| s.agent_ignores_shutdown = true);
    job.on(&node, operation::Start {}).await.unwrap();
    assert_eq!(
        job.on(&node, stop(2)).await.unwrap().by,
        Some(StoppedBy::Acpi)
    );
    node.fake.with(|s| s.ignore_shutdown = true);
    job.on(&node, operation::Start {}).await.unwrap();
    let refused = job.on(&node, stop(1)).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::ShutdownTimedOut);
    // An older controller reads no content in the answer.
    let old = operation::Stop {
        force: true,
        deadline_seconds: 1,
        tell: false,
    };
    let answer = job.any(&node, old.into()).await.unwrap();
    assert!(matches!(answer, OperationResult::Nothing), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_guest_is_shown_harmlessly_and_a_silent_one_by_what_its_host_sees() {
    let fleet = Fleet::start().await;
    let node = Node::start(&fleet, "a").await;
    let (spec, _) = create_running(&fleet, &node, "web").await;
    let mac = "52:54:00:0a:0b:0c".to_owned();
    node.fake.with(|s| {
        let domain = s.domains.get_mut(&spec.id).unwrap();
        let spec = &mut domain.metadata.as_mut().unwrap().spec;
        spec.nics.push(NicSpec::first(Profile::Linux, &mac));
    });
    let card = |addresses: &[&str]| NicAddresses {
        mac: mac.to_uppercase(),
        addresses: addresses.iter().map(|a| (*a).to_owned()).collect(),
    };
    node.fake.with(|s| s.neighbours = vec![card(&["10.0.0.9"])]);
    let guest = until("the neighbours' word", async || {
        state(&node, spec.id).await.noted.guest
    })
    .await;
    assert!(!guest.agent);
    assert_eq!(guest.first_address(), "10.0.0.9".parse().ok());
    node.fake.with(|s| {
        s.agents.insert(spec.id);
        s.told = GuestTold {
            host_name: Some("web\x1b[31m\n\u{202e}evil".repeat(1000)),
            os: Some("\0".into()),
            addresses: vec![card(&["10.0.0.7", "no address", "127.0.0.1"])],
        };
    });
    let guest = until("its agent's word", async || {
        state(&node, spec.id)
            .await
            .noted
            .guest
            .filter(|guest| guest.agent)
    })
    .await;
    let name = guest.host_name.clone().unwrap();
    assert!(
        name.len() <= 128 && !name.contains(char::is_control) && !name.contains('\u{202e}'),
        "{name:?}"
    );
    assert_eq!(guest.os, None);
    assert_eq!(
        guest.addresses(&mac),
        ["10.0.0.7".parse::<std::net::IpAddr>().unwrap()]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_boots_medium_goes_when_the_guests_agent_has_answered_for_a_while() {
    let fleet = Fleet::start().await;
    let mut node = Node::start(&fleet, "a").await;
    node.down().await;
    node.config.first_boot_grace = 1;
    node.up().await;
    // One guest has an agent, one has none, and one holds its medium.
    let mut vms = Vec::new();
    for name in ["heard", "silent", "holds"] {
        let (spec, _) = create_running(&fleet, &node, name).await;
        let path = VM_SEED.replace("{id}", &spec.id.to_string());
        let put = node.client.request(http::Method::PUT, &path);
        put.json(&name).send().await.unwrap();
        let file = node.config.run_dir.join(format!("seeds/{}.iso", spec.id));
        node.fake.with(|s| {
            let domain = s.domains.get_mut(&spec.id).unwrap();
            let taken = std::iter::once("vda");
            let mut drive = DriveSpec::with_seed(Profile::Linux, taken).unwrap();
            if name == "holds" {
                drive.target = "sdb".into();
            }
            let device = (drive.target.clone(), Some(file.clone()));
            domain.drives = vec![device.clone()];
            domain.next_drives = vec![device];
            let metadata = domain.metadata.as_mut().unwrap();
            metadata.spec.drives = vec![drive];
        });
        vms.push((spec.id, file));
    }
    let [(heard, gone), (silent, stays), (holds, held)] = vms.try_into().unwrap();
    node.fake.with(|s| {
        s.agents.extend([heard, holds]);
        s.held = vec!["sdb".into()];
    });
    let before = state(&node, heard).await.drives[0].clone();
    assert_eq!(before.holds, Some(DriveContent::FirstBoot));
    has_gone(&gone).await;
    let vm = state(&node, heard).await;
    assert_eq!((vm.drives[0].holds, &vm.drives[0].path), (None, &None));
    assert_eq!(vm.state, VmState::Running);
    let metadata = node.fake.with(|s| s.domains[&heard].metadata.clone());
    let drives = metadata.unwrap().spec.drives;
    assert!(drives.len() == 1 && !drives[0].seed, "{drives:?}");
    for (vm, file) in [(silent, &stays), (holds, &held)] {
        let now = state(&node, vm).await;
        assert_eq!(now.drives[0].holds, Some(DriveContent::FirstBoot));
        assert!(file.exists(), "it has gone too early");
    }
    // Off and without its file, as after a power cut, it is shown as what it is.
    node.fake.stop_by_itself(holds);
    std::fs::remove_file(held).unwrap();
    assert_eq!(state(&node, holds).await.drives[0].holds, None);
    // After a day it goes in any case.
    let a_day_ago = SystemTime::now() - Duration::from_secs(25 * 3600);
    let file = std::fs::File::options().write(true).open(&stays);
    file.unwrap().set_modified(a_day_ago).unwrap();
    has_gone(&stays).await;
    until("an empty drive", async || {
        let drives = node.fake.with(|s| s.domains[&silent].drives.clone());
        drives[0].1.is_none().then_some(())
    })
    .await;
}

/// Hosts look at their guests and at the media every ten seconds.
async fn has_gone(file: &Path) {
    let deadline = Instant::now() + 3 * LIMIT;
    while file.exists() {
        assert!(Instant::now() < deadline, "{} stays", file.display());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

//! What a simulated agent sends is held against what this one sends: both go through the same course, and every answer, refusal,
//! event and audit record has the same fields and says the same. A difference is a fault of the simulator (decision 0070).

mod course;
mod shape;

use crate::support::{Fleet, Node};
use course::{Course, End};
use fleetward_link::{Client, ClientTls};
use fleetward_sim::agent::variables;
use fleetward_sim::directory::{self, Protectors};
use fleetward_sim::fleet::RunningFleet;
use fleetward_sim::plan::FleetPlan;
use fleetward_sim::prepare::prepare;
use std::net::Ipv4Addr;

/// Where the two may differ, by the end of the field's name: what who sets up a host chooses, or finds missing there; and what
/// the real agent finds out in its own time.
const MAY_DIFFER: [&str; 11] = [
    "/noted/guest",
    "/networks",
    "/warnings",
    "/pools[]/name",
    "/measured/pools/fast",
    "/measured/pools/other",
    // of disks and network cards that the machine of the test need not have
    "/load/host/read",
    "/load/host/written",
    "/load/host/requests",
    "/load/host/received",
    "/load/host/sent",
];

fn plan() -> FleetPlan {
    let place = std::process::id() % 65_536;
    FleetPlan {
        hosts: 2,
        vms: 0,
        hosts_per_group: 2,
        random_seed: 1,
        first_address: Ipv4Addr::from_bits(Ipv4Addr::new(127, 96, 0, 1).to_bits() + place * 4),
        port: 7443,
    }
}

/// Two real agents, on hypervisors that are none.
async fn real() -> Vec<course::Step> {
    let fleet = Fleet::start().await;
    let (plan, mut nodes) = (plan(), Vec::new());
    for host in 0..plan.hosts {
        let node = Node::start(&fleet, plan.host(host).as_str()).await;
        let written = variables::of(plan.vm_id(0), 0);
        node.fake
            .with(|state| state.firmware_writes = Some(written));
        nodes.push(node);
    }
    let ends = nodes.iter();
    let ends = ends.map(|node| End::new(&node.name, &node.address, node.client.clone()));
    Course::run(&fleet, ends.collect()).await
}

/// Two simulated ones.
async fn simulated() -> Vec<course::Step> {
    let fleet = Fleet::start().await;
    let stranger = ClientTls::join(fleet.authority.trust().fingerprint());
    let controller = Client::tls(&fleet.address, stranger);
    let of_plan = directory::Fleet {
        plan: plan(),
        shared_guardian: false,
        protectors: Protectors::Real,
    };
    let path = fleet.dir.path().join("simulated");
    let (directory, _) = prepare(&controller, &of_plan, &path, |_| {}).await.unwrap();
    let running = RunningFleet::start(&directory, &of_plan).await.unwrap();
    let ends = running.hosts.iter().map(|host| {
        let (name, address) = (host.host.as_str(), host.address.to_string());
        End::new(name, &address, fleet.client(name, &address))
    });
    Course::run(&fleet, ends.collect()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_simulated_agent_sends_what_a_real_one_sends() {
    let (real, simulated) = tokio::join!(real(), simulated());
    let mut wrong = Vec::new();
    for (real, simulated) in real.iter().zip(&simulated) {
        assert_eq!(real.what, simulated.what);
        for difference in shape::differences(&real.said, &simulated.said) {
            let (field, _) = difference.split_once(':').unwrap();
            if !MAY_DIFFER.iter().any(|end| field.ends_with(end)) {
                wrong.push(format!("{}: {difference}", real.what));
            }
        }
    }
    assert_eq!(real.len(), simulated.len());
    assert!(
        wrong.is_empty(),
        "real / simulated, {} of {} steps:\n{}",
        wrong.len(),
        real.len(),
        wrong.join("\n")
    );
}

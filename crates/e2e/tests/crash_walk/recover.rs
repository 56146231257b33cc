//! A VM of a lost host is rebuilt on another one.

use crate::scenario::{Before, Ended, Scenario};
use crate::subject::{CREATE, VM, clean, gone, shows_as, strings};
use anyhow::{Result, ensure};
use fleetward_e2e::fleet::Fleet;
use fleetward_e2e::wait::{self, seconds};

pub(crate) const SCENARIOS: &[Scenario] = &[Scenario {
    claim: "a_recovery_survives_kill_9_everywhere",
    kind: "vm-recover",
    victims: &["controller", "b/agent"],
    prepare: |fleet| {
        on_a(fleet)?;
        fleet.kill("a/agent")?;
        host_is(fleet, "unreachable")?;
        Ok(Before::default())
    },
    command: |_| Ok(strings(&["vm", "recover", VM, "--to", "b", "--yes"])),
    fault: None,
    check: |fleet, _, ended| {
        let (_, host) = fleet.place(VM)?;
        let wanted = match ended {
            Ended::Done => "b",
            Ended::Undone => "a",
        };
        ensure!(host == wanted, "the job is {ended:?}, and the VM on {host}");
        fleet.start("a/agent")?;
        host_is(fleet, "online")?;
        shows_as(fleet, "stopped")?;
        ensure!(
            fleet.place(VM)?.1 == wanted,
            "the lost host is back, and its copy counts"
        );
        clean(fleet)
    },
    finally: Some(|fleet, _| {
        fleet.start("a/agent")?;
        host_is(fleet, "online")?;
        clean(fleet)?;
        gone(fleet)
    }),
}];

/// It is stopped, on host a, its disk in the pool that all hosts share; and nobody is lost.
fn on_a(fleet: &Fleet) -> Result<()> {
    let there = fleet.vm(VM).ok();
    if there.is_some_and(|vm| vm["disks"][0]["pool"] != "shared") {
        gone(fleet)?;
    }
    if fleet.vm(VM).is_err() {
        let create = [CREATE, &["--pool", "shared"]].concat();
        fleet.cli(&create)?.ok()?;
    }
    if fleet.place(VM)?.1 != "a" {
        fleet
            .cli(&["vm", "migrate", VM, "--to", "a", "--offline"])?
            .ok()?;
    }
    Ok(())
}

fn host_is(fleet: &Fleet, state: &str) -> Result<()> {
    wait::until(&format!("host a to be {state}"), seconds(60), || {
        let shown = fleet.json(&["host", "show", "a"])?;
        Ok((shown["state"] == state).then_some(()))
    })
}

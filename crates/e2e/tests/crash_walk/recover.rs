//! A VM of a lost host is rebuilt on another one.

use crate::chain::Chain;
use crate::scenario::{Before, Ended, Scenario};
use crate::subject::{CREATE, VM, clean, gone, host_is, shows_as, strings, unseals};
use anyhow::{Result, ensure};
use fleetward_e2e::fleet::Fleet;
use fleetward_e2e::wait::{self, seconds};

pub(crate) const SCENARIOS: &[Scenario] = &[Scenario {
    claim: "a_recovery_survives_kill_9_everywhere",
    kind: "vm-recover",
    victims: &["controller", "b/agent"],
    prepare: |fleet| {
        on_a(fleet)?;
        a_is_lost(fleet)?;
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
        host_is(fleet, "a", "online")?;
        shows_as(fleet, "stopped")?;
        ensure!(
            fleet.place(VM)?.1 == wanted,
            "the lost host is back, and its copy counts"
        );
        clean(fleet)
    },
    finally: Some(|fleet, _| {
        fleet.start("a/agent")?;
        host_is(fleet, "a", "online")?;
        clean(fleet)?;
        gone(fleet)
    }),
}];

pub(crate) const CHAINS: &[Chain] = &[Chain {
    claim: "the_end_of_a_lost_hosts_copy_survives_kill_9_everywhere",
    kind: "vm-supersede",
    victims: &["a/agent", "controller"],
    prepare: |fleet| {
        on_a(fleet)?;
        // What it has sealed here opens there, or the wrong TPM was rebuilt.
        let guest = Some(unseals(fleet, None)?);
        fleet.cli(&["vm", "stop", VM, "--force"])?.ok()?;
        a_is_lost(fleet)?;
        fleet
            .cli(&["vm", "recover", VM, "--to", "b", "--yes"])?
            .ok()?;
        Ok(Before {
            guest,
            ..Before::default()
        })
    },
    provoke: |fleet| fleet.start("a/agent"),
    check: |fleet, before| {
        ensure!(
            fleet.place(VM)? == ("stopped".into(), "b".into()),
            "the lost host is back, and its copy counts"
        );
        clean(fleet)?;
        unseals(fleet, before.guest.as_ref())?;
        gone(fleet)
    },
}];

/// Host a answers no more; the controller has the VM's TPM as it is there.
fn a_is_lost(fleet: &Fleet) -> Result<()> {
    wait::until("the controller's copy to be current", seconds(60), || {
        Ok((fleet.vm(VM)?["escrow"]["current"] == true).then_some(()))
    })?;
    fleet.kill("a/agent")?;
    host_is(fleet, "a", "unreachable")
}

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

//! What redefines a VM, and each way in which it ends, leaves its TPM and its UEFI variables as they are.
//!
//! One VM goes through all of it. Before and after each: the EK that the guest sees, a secret that it sealed to its TPM and
//! PCR 7, and the UEFI variables that make it this machine, read here and not with Fleetward's own reader. Each of them is a
//! boot or two, so this is a part of `make soak` (`FLEETWARD_E2E_SOAK=1`).

use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::{Fleet, text};
use fleetward_e2e::guest::{self, Tick};
use fleetward_e2e::variables::{self, Variables};
use fleetward_e2e::wait::{self, seconds};
use fleetward_e2e::{residue, suite};
use std::process::ExitCode;

const VM: &str = "same";
const HOSTS: &[&str] = &["a", "b"];

/// How the VM is before something is done.
#[derive(Clone, Copy)]
enum Before {
    Running,
    Stopped,
}

/// How its guest goes on.
#[derive(Clone, Copy, PartialEq)]
enum After {
    /// As if nothing had been.
    GoesOn,
    /// It boots anew by itself, or was stopped.
    Boots,
}

type Row = (&'static str, Before, After, fn(&Fleet) -> Result<()>);

const ROWS: &[Row] = {
    use After::{Boots, GoesOn};
    use Before::{Running, Stopped};
    &[
        (
            "a_live_migration_there_and_back",
            Running,
            GoesOn,
            |fleet| {
                cli(fleet, "vm migrate same --to b")?;
                cli(fleet, "vm migrate same --to a")
            },
        ),
        (
            "a_guardian_revoked_and_granted_again",
            Running,
            GoesOn,
            |fleet| {
                cli(fleet, "guardian revoke same --from b --yes")?;
                cli(fleet, "guardian grant same --to b")
            },
        ),
        (
            "a_guardian_revoked_of_a_stopped_vm",
            Stopped,
            Boots,
            |fleet| {
                cli(fleet, "guardian revoke same --from b --yes")?;
                cli(fleet, "guardian grant same --to b")
            },
        ),
        ("guardians_rotated", Running, GoesOn, |fleet| {
            cli(fleet, "guardian rotate --host a")?;
            cli(fleet, "guardian rotate --host b")
        }),
        ("the_key_rolled", Running, Boots, |fleet| {
            cli(fleet, "tpm roll same --stop-and-restart")
        }),
        ("the_tpm_disabled_and_restored", Stopped, Boots, |fleet| {
            cli(fleet, "tpm disable same --yes")?;
            cli(fleet, "tpm restore same")
        }),
        ("the_tpm_enabled_that_is_on", Stopped, Boots, |fleet| {
            cli(fleet, "tpm enable same --yes")
        }),
        ("a_clone_of_the_running_vm", Running, GoesOn, |fleet| {
            cli(fleet, "vm clone same twin --tpm copy")?;
            cli(fleet, "vm delete twin --yes")
        }),
        ("a_clone_of_the_stopped_vm", Stopped, Boots, |fleet| {
            cli(fleet, "vm clone same twin --tpm copy")?;
            cli(fleet, "vm delete twin --yes")
        }),
        ("a_template_made_of_it", Running, GoesOn, |fleet| {
            cli(fleet, "template create shape --from same")?;
            cli(fleet, "template delete shape --yes")
        }),
        ("another_name_and_back", Stopped, Boots, |fleet| {
            cli(fleet, "vm rename same other")?;
            cli(fleet, "vm rename other same")
        }),
        (
            "the_memory_of_another_tpm_beside_its_state",
            Stopped,
            Boots,
            |fleet| {
                let id = text(&fleet.vm(VM)?, "id")?;
                let stray = format!("/var/lib/libvirt/swtpm/{id}/tpm2/tpm2-00.volatilestate");
                let plant = format!("head -c 300 /dev/urandom > {stray}; chown tss {stray}");
                fleet.exec("a", &["sh", "-ec", &plant])?.ok().map(drop)
            },
        ),
        ("more_memory_at_the_next_start", Running, Boots, |fleet| {
            cli(fleet, "vm set same --memory 600M")?;
            cli(fleet, "vm restart same")
        }),
        (
            "moved_while_stopped_there_and_back",
            Stopped,
            Boots,
            |fleet| {
                cli(fleet, "vm migrate same --to b --offline")?;
                cli(fleet, "vm migrate same --to a --offline")
            },
        ),
        ("another_agent", Running, GoesOn, |fleet| {
            fleet.kill("a/agent")?;
            fleet.start("a/agent")
        }),
        (
            "libvirtd_started_anew_and_a_move_there_and_back",
            Running,
            GoesOn,
            |fleet| {
                libvirtd_anew(fleet)?;
                cli(fleet, "vm migrate same --to b")?;
                cli(fleet, "vm migrate same --to a")
            },
        ),
        (
            "libvirtd_started_anew_and_memory_saved",
            Running,
            GoesOn,
            |fleet| {
                libvirtd_anew(fleet)?;
                virsh(fleet, "managedsave")?;
                saved(fleet)?;
                cli(fleet, "vm start same")
            },
        ),
        (
            "libvirtd_started_anew_and_a_reboot_by_its_guest",
            Running,
            Boots,
            |fleet| {
                libvirtd_anew(fleet)?;
                cli(fleet, "vm keys same reboot enter")
            },
        ),
        ("the_controller_rebuilt", Running, GoesOn, |fleet| {
            cli(fleet, "controller rebuild --yes")
        }),
        ("powered_off_by_its_guest", Running, Boots, |fleet| {
            cli(fleet, "vm keys same poweroff enter")?;
            stopped(fleet)
        }),
        ("rebooted_by_its_guest", Running, Boots, |fleet| {
            cli(fleet, "vm keys same reboot enter")
        }),
        ("a_kernel_that_panicked", Running, Boots, |fleet| {
            let before = guest::last(fleet, VM)?;
            cli(fleet, "vm keys same panic enter")?;
            wait::until("the guest to be silent", seconds(30), || {
                let now = guest::last(fleet, VM)?;
                std::thread::sleep(seconds(3));
                Ok((now != before && now == guest::last(fleet, VM)?).then_some(()))
            })?;
            cli(fleet, "vm stop same --force")
        }),
        ("reset_by_virsh", Running, Boots, |fleet| {
            virsh(fleet, "reset")
        }),
        ("destroyed_by_virsh", Running, Boots, |fleet| {
            virsh(fleet, "destroy")?;
            stopped(fleet)
        }),
        ("stopped_by_force", Running, Boots, |fleet| {
            cli(fleet, "vm stop same --force")
        }),
        ("a_qemu_that_was_killed", Running, Boots, |fleet| {
            let kill = "kill -9 $(cat /run/libvirt/qemu/same.pid)";
            fleet.exec("a", &["sh", "-ec", kill])?.ok()?;
            stopped(fleet)
        }),
        ("memory_saved_and_gone_on_with", Running, GoesOn, |fleet| {
            virsh(fleet, "managedsave")?;
            saved(fleet)?;
            cli(fleet, "vm start same")
        }),
        ("a_host_whose_power_failed", Running, Boots, |fleet| {
            fleet.kill("a")?;
            fleet.start("a")?;
            stopped(fleet)
        }),
    ]
};

fn main() -> ExitCode {
    let rows = match std::env::var_os("FLEETWARD_E2E_SOAK") {
        Some(_) => ROWS,
        None => &[],
    };
    let cases = rows.iter().map(|&(claim, before, after, act)| {
        let proof = move |fleet: &Fleet| leaves_it_alone(fleet, before, after, act);
        (claim, Box::new(proof) as suite::Proof)
    });
    let up = &["--hosts", "2"];
    suite::run_with("e2e-same-machine", up, Vec::new(), cases.collect())
}

fn cli(fleet: &Fleet, line: &str) -> Result<()> {
    let words: Vec<&str> = line.split(' ').collect();
    fleet
        .cli(&words)?
        .ok()
        .map(drop)
        .with_context(|| line.to_owned())
}

fn virsh(fleet: &Fleet, verb: &str) -> Result<()> {
    fleet.exec("a", &["virsh", verb, VM])?.ok().map(drop)
}

/// libvirtd ends under the running VM, and comes back without the secrets that it was given.
fn libvirtd_anew(fleet: &Fleet) -> Result<()> {
    fleet.kill("a/libvirtd")?;
    fleet.start("a/libvirtd")?;
    wait::until("libvirt to answer, and the host", seconds(60), || {
        let answers = fleet.exec("a", &["virsh", "domstate", VM])?.code == 0;
        let check = fleet.cli(&["vm", "migrate", VM, "--to", "b", "--check"])?;
        Ok((answers && check.code == 0).then_some(()))
    })
}

fn saved(fleet: &Fleet) -> Result<()> {
    wait::until("it to show as saved", seconds(20), || {
        Ok((fleet.place(VM)?.0 == "saved").then_some(()))
    })
}

fn stopped(fleet: &Fleet) -> Result<()> {
    wait::until("it to show as stopped", seconds(60), || {
        Ok((fleet.place(VM)? == ("stopped".into(), "a".into())).then_some(()))
    })
}

/// What makes it this machine.
fn machine(fleet: &Fleet) -> Result<Variables> {
    let host = fleet.place(VM)?.1;
    let found = variables::of(fleet, &host, &text(&fleet.vm(VM)?, "id")?)?;
    for name in ["PK", "KEK", "db", "dbx", "BootOrder", "Boot0001"] {
        ensure!(
            found.contains_key(name),
            "no {name} among {:?}",
            found.keys()
        );
    }
    Ok(found)
}

/// It runs on host a, and has booted at least once.
fn running(fleet: &Fleet) -> Result<Tick> {
    if fleet.vm(VM).is_err() {
        cli(
            fleet,
            "vm create same --image lab-guest --memory 512M --host a",
        )?;
    }
    if fleet.place(VM)?.0 != "running" {
        let boots = guest::last(fleet, VM)?.map_or(0, |tick| tick.boots);
        cli(fleet, "vm start same")?;
        return guest::booted(fleet, VM, boots + 1);
    }
    guest::last(fleet, VM)?.context("it runs and says nothing")
}

fn leaves_it_alone(
    fleet: &Fleet,
    before: Before,
    after: After,
    act: fn(&Fleet) -> Result<()>,
) -> Result<()> {
    let tick = running(fleet)?;
    ensure!(tick.unseal == "ok", "not even before: {tick:?}");
    if let Before::Stopped = before {
        cli(fleet, "vm stop same")?;
    }
    let machine_before = machine(fleet)?;
    act(fleet)?;
    if let After::GoesOn = after {
        // The controller may have to learn of it first.
        wait::until("it to show as running", seconds(60), || {
            Ok((fleet.place(VM).ok() == Some(("running".into(), "a".into()))).then_some(()))
        })?;
        guest::goes_on(fleet, VM, &guest::last(fleet, VM)?.context("ticks")?)?;
    } else if fleet.place(VM)?.0 == "stopped" {
        variables::same(&machine_before, &machine(fleet)?)?;
        cli(fleet, "vm start same")?;
    }
    let anew = u64::from(after == After::Boots);
    let now = guest::booted(fleet, VM, tick.boots + anew)?;
    ensure!(
        now.unseal == "ok" && now.ek == tick.ek && now.pcr7 == tick.pcr7,
        "{tick:?} then {now:?}"
    );
    ensure!(now.boots == tick.boots + anew, "{tick:?} then {now:?}");
    variables::same(&machine_before, &machine(fleet)?)?;
    wait::until("nothing to be left over", seconds(20), || {
        residue::none_anywhere(fleet, HOSTS).map(Some)
    })
}

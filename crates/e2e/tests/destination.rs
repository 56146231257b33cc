//! A destination that fails in one way after the other: the source's guest goes on, the reason names the part, nothing is
//! left, and once the harm is undone the VM moves there and back.
//!
//! What fails in the middle of a move is in suite `faults`: libvirtd killed, the disk that fills up, the link that is cut, a
//! swtpm that stands still at the switch-over. Each row here is up to three moves, so this is a part of `make soak`
//! (`FLEETWARD_E2E_SOAK=1`).

use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::{Fleet, text};
use fleetward_e2e::wait::{self, seconds};
use fleetward_e2e::{guest, residue, suite};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const VM: &str = "storm";
const HOSTS: &[&str] = &["a", "b"];
/// A move that cannot succeed has ended by then.
const BOUND: Duration = Duration::from_secs(120);

/// How a move ends while the destination is harmed.
enum Ends {
    /// It does not begin: the check before it finds what is wrong, as soon as the host has told of itself.
    Refused(&'static str),
    /// It is taken back. The code of the reason, and a word of its text.
    Fails(&'static str, &'static str),
    /// It is made good, and the VM moves all the same.
    Works,
}

struct Row {
    claim: &'static str,
    /// Scripts on the destination; `$id` is the VM's.
    harm: &'static str,
    cure: &'static str,
    /// libvirtd there learns of it when it starts.
    libvirtd_anew: bool,
    ends: Ends,
}

const SWTPM: &str = "/var/lib/libvirt/swtpm";

const ROWS: &[Row] = &[
    Row {
        claim: "a_swtpm_that_does_nothing",
        harm: "mount --bind /bin/false $(readlink -f $(command -v swtpm))",
        cure: "umount $(readlink -f $(command -v swtpm))",
        libvirtd_anew: false,
        ends: Ends::Refused("SWTPM_MISSING"),
    },
    Row {
        claim: "a_directory_of_tpm_states_that_cannot_be_written",
        harm: "mkdir -p $states; mount --bind $states $states; mount -o remount,bind,ro $states",
        cure: "umount $states",
        libvirtd_anew: false,
        ends: Ends::Fails("HYPERVISOR_FAILED", "/var/lib/libvirt/swtpm/"),
    },
    Row {
        claim: "a_file_system_of_tpm_states_that_is_full",
        harm: "mkdir -p $states; mount -t tmpfs -o size=64k,mode=711 tmpfs $states; dd if=/dev/zero of=$states/full bs=4k || true",
        cure: "umount $states",
        libvirtd_anew: false,
        ends: Ends::Fails("MIGRATION_FAILED", "swtpm_setup"),
    },
    Row {
        claim: "a_secret_of_that_id_with_another_value",
        harm: "f=$(mktemp); echo \"<secret ephemeral='yes' private='yes'><uuid>$id</uuid><usage type='vtpm'><name>$id</name></usage></secret>\" > $f; \
            virsh secret-define $f; virsh secret-set-value $id d3Jvbmc=; rm $f",
        cure: "true",
        libvirtd_anew: false,
        ends: Ends::Works,
    },
    Row {
        claim: "the_memory_of_another_tpm_beside_its_place",
        harm: "mkdir -p $states/$id/tpm2; head -c 300 /dev/urandom > $states/$id/tpm2/tpm2-00.volatilestate; \
            chown -R tss $states/$id",
        cure: "[ \"$(stat -c %s $states/$id/tpm2/tpm2-00.volatilestate 2> /dev/null)\" != 300 ]",
        libvirtd_anew: false,
        ends: Ends::Works,
    },
    Row {
        claim: "no_directory_of_uefi_variables",
        harm: "mv /var/lib/libvirt/qemu/nvram /var/lib/libvirt/qemu/away",
        cure: "[ -e /var/lib/libvirt/qemu/nvram ] || mv /var/lib/libvirt/qemu/away /var/lib/libvirt/qemu/nvram; \
            rm -rf /var/lib/libvirt/qemu/away",
        libvirtd_anew: false,
        ends: Ends::Fails("MIGRATION_FAILED", "/var/lib/libvirt/qemu/nvram/"),
    },
    Row {
        claim: "another_firmware_of_another_size",
        harm: "mount --bind /usr/share/OVMF/OVMF_CODE.fd $(readlink -f /usr/share/OVMF/OVMF_CODE_4M.ms.fd)",
        cure: "umount $(readlink -f /usr/share/OVMF/OVMF_CODE_4M.ms.fd)",
        libvirtd_anew: false,
        ends: Ends::Refused("FIRMWARE_DIFFERS"),
    },
    Row {
        claim: "another_firmware_of_the_same_size",
        harm: "mount --bind /usr/share/OVMF/OVMF_CODE_4M.fd $(readlink -f /usr/share/OVMF/OVMF_CODE_4M.ms.fd)",
        // Its QEMU holds the file.
        cure: "umount -l $(readlink -f /usr/share/OVMF/OVMF_CODE_4M.ms.fd)",
        libvirtd_anew: false,
        ends: Ends::Works,
    },
    Row {
        claim: "no_firmware",
        harm: "mkdir -p /run/none; mount --bind /run/none /usr/share/OVMF",
        cure: "umount /usr/share/OVMF; rmdir /run/none",
        libvirtd_anew: false,
        ends: Ends::Refused("FIRMWARE_DIFFERS"),
    },
    Row {
        claim: "a_machine_type_that_qemu_does_not_have",
        // What libvirt remembers of the QEMU that is installed, as of one that calls its newest machine otherwise.
        harm: "sed -i \"s/name='pc-q35-[0-9.]*' alias/name='pc-q35-0.1' alias/\" /var/cache/libvirt/qemu/capabilities/*.xml",
        cure: "rm /var/cache/libvirt/qemu/capabilities/*.xml",
        libvirtd_anew: true,
        ends: Ends::Refused("MACHINE_MISSING"),
    },
    Row {
        claim: "a_port_that_is_closed_to_the_source",
        harm: "iptables -I INPUT -p tcp --dport 7443 -s $source -j DROP",
        cure: "iptables -D INPUT -p tcp --dport 7443 -s $source -j DROP",
        libvirtd_anew: false,
        ends: Ends::Fails("LINK_LOST", "did not answer"),
    },
];

fn main() -> ExitCode {
    let rows = match std::env::var_os("FLEETWARD_E2E_SOAK") {
        Some(_) => ROWS,
        None => &[],
    };
    let cases = rows.iter().map(|row| {
        let proof = move |fleet: &Fleet| fails_and_then_works(fleet, row);
        (row.claim, Box::new(proof) as suite::Proof)
    });
    let up = &["--hosts", "2"];
    suite::run_with("e2e-destination", up, Vec::new(), cases.collect())
}

/// The VM runs on host a.
fn running(fleet: &Fleet) -> Result<guest::Tick> {
    if fleet.vm(VM).is_err() {
        let create = [
            "vm",
            "create",
            VM,
            "--image",
            "lab-guest",
            "--memory",
            "512M",
            "--host",
            "a",
            "--start",
        ];
        fleet.cli(&create)?.ok()?;
        return guest::booted(fleet, VM, 1);
    }
    guest::last(fleet, VM)?.context("it runs and says nothing")
}

/// Runs a script on the destination.
fn there(fleet: &Fleet, script: &str) -> Result<()> {
    let id = text(&fleet.vm(VM)?, "id")?;
    let source = fleet.exec("a", &["hostname", "-I"])?.ok()?.stdout;
    let source = source.split_whitespace().next().unwrap_or_default();
    let script = format!("id={id}; states={SWTPM}; source={source}; {script}");
    fleet.exec("b", &["sh", "-ec", &script])?.ok().map(drop)
}

fn plant(fleet: &Fleet, row: &Row, script: &str) -> Result<()> {
    there(fleet, script)?;
    if !row.libvirtd_anew {
        return Ok(());
    }
    fleet.kill("b/libvirtd")?;
    fleet.start("b/libvirtd")?;
    wait::until("libvirtd to answer", seconds(60), || {
        Ok((fleet.exec("b", &["virsh", "list"])?.code == 0).then_some(()))
    })
}

/// The guest goes on where it is to be, and nothing is left anywhere.
fn unharmed(fleet: &Fleet, before: &guest::Tick, host: &str) -> Result<()> {
    wait::until("it to show as running", seconds(20), || {
        Ok((fleet.place(VM)? == ("running".into(), host.into())).then_some(()))
    })?;
    guest::goes_on(fleet, VM, before)?;
    wait::until("nothing to be left over", seconds(20), || {
        residue::none_anywhere(fleet, HOSTS).map(Some)
    })
}

fn migrate(fleet: &Fleet, host: &str) -> Result<()> {
    let words = ["vm", "migrate", VM, "--to", host];
    fleet.cli(&words)?.ok().map(drop)
}

/// Waits until the check before a move ends so. Hosts tell of themselves every few seconds.
fn checks(fleet: &Fleet, exit: i32) -> Result<()> {
    wait::until(
        &format!("the check to end with {exit}"),
        seconds(30),
        || {
            let here = fleet.place(VM)?.1;
            let other = if here == "a" { "b" } else { "a" };
            let said = fleet.cli(&["vm", "migrate", VM, "--to", other, "--check"])?;
            Ok((said.code == exit).then_some(()))
        },
    )
}

fn fails_and_then_works(fleet: &Fleet, row: &Row) -> Result<()> {
    let before = running(fleet)?;
    plant(fleet, row, row.harm)?;
    if let Ends::Refused(_) = row.ends {
        checks(fleet, 4)?;
    }
    let begin = Instant::now();
    let said = fleet.cli(&["vm", "migrate", VM, "--to", "b"]);
    let took = begin.elapsed();
    let source = guest::goes_on(fleet, VM, &guest::last(fleet, VM)?.context("ticks")?);
    plant(fleet, row, row.cure)?;
    // A job that waits for the cure goes on within a minute.
    wait::until("the job to have ended", seconds(100), || {
        Ok(fleet.vm(VM)?["job"].is_null().then_some(()))
    })?;
    checks(fleet, 0)?;
    let (said, host) = (said?, fleet.place(VM)?.1);
    source?;
    ensure!(took < BOUND, "it took {took:?}: {said:?}");
    match row.ends {
        Ends::Fails(code, word) => {
            ensure!(
                said.code != 0
                    && said.stderr.contains(&format!("error[{code}]"))
                    && said.stderr.contains(word),
                "expected {code} about {word:?} after {took:?}: {said:?}"
            );
            ensure!(host == "a", "it failed, and the VM is on host {host}");
        }
        Ends::Refused(code) => drop(said.refused(4, code)?),
        Ends::Works => {
            ensure!(said.code == 0 && host == "b", "{said:?}");
            migrate(fleet, "a")?;
        }
    }
    unharmed(fleet, &before, "a")?;
    for host in ["b", "a"] {
        migrate(fleet, host)?;
        unharmed(fleet, &before, host)?;
    }
    Ok(())
}

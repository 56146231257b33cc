//! A VM starts while its key cannot be had, in each way that happens: it is refused, its TPM's state stays byte for byte, no
//! other TPM appears, and once the key is back it starts without further ado.
//!
//! The agent's guardian store is encrypted with a credential, as its service gives it one. Each row starts the agent twice, so
//! this is a part of `make soak` (`FLEETWARD_E2E_SOAK=1`).

#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::{Fleet, program_directory};
use fleetward_e2e::wait::{self, seconds};
use fleetward_e2e::{guest, residue, suite};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;

const VM: &str = "keyless";
const HOSTS: &[&str] = &["a", "b"];
/// Where systemd puts the credentials of the agent's service.
const CREDENTIALS: &str = "/run/credentials/fleetward-agent.service";

struct Row {
    claim: &'static str,
    /// Scripts on the VM's host while its agent does not run. `$key` is the credential, `$store` the directory of guardians,
    /// `$vm` and `$other` are two VMs.
    harm: &'static str,
    cure: &'static str,
    /// What a start is refused with.
    code: &'static str,
}

const ROWS: &[Row] = &[
    Row {
        claim: "the_credential_of_the_guardian_store_is_missing",
        harm: "mv $key $key.away",
        cure: "mv $key.away $key",
        code: "HOST_UNREACHABLE",
    },
    Row {
        claim: "the_credential_is_another_one",
        harm: "mv $key $key.away; head -c 32 /dev/urandom > $key",
        cure: "mv $key.away $key",
        code: "HOST_UNREACHABLE",
    },
    Row {
        claim: "the_guardians_were_removed_by_hand",
        harm: "mv $store $store.away",
        cure: "rm -rf $store; mv $store.away $store",
        code: "HOST_UNREACHABLE",
    },
    Row {
        claim: "the_last_byte_of_the_key_protector_is_another_one",
        harm: "virsh dumpxml $vm > /run/whole.xml
            sed -E 's|(:key_protector>[^<]*)....(</)|\\1AAA=\\2|' /run/whole.xml > /run/harmed.xml
            ! cmp -s /run/whole.xml /run/harmed.xml; virsh define /run/harmed.xml",
        cure: "virsh define /run/whole.xml",
        code: "KEY_PROTECTOR_UNREADABLE",
    },
    Row {
        claim: "the_key_protector_is_of_another_vm",
        harm: "virsh dumpxml $vm > /run/whole.xml
            its=$(virsh dumpxml $other | grep -o ':key_protector>[^<]*<')
            sed -E \"s|:key_protector>[^<]*<|$its|\" /run/whole.xml > /run/harmed.xml
            ! cmp -s /run/whole.xml /run/harmed.xml; virsh define /run/harmed.xml",
        cure: "virsh define /run/whole.xml",
        code: "KEY_PROTECTOR_UNREADABLE",
    },
];

fn main() -> ExitCode {
    let rows = match std::env::var_os("FLEETWARD_E2E_SOAK") {
        Some(_) => ROWS,
        None => &[],
    };
    let cases = rows.iter().map(|row| {
        let proof = move |fleet: &Fleet| refused_and_unharmed(fleet, row);
        (row.claim, Box::new(proof) as suite::Proof)
    });
    let mut cases: Vec<_> = cases.collect();
    if !rows.is_empty() {
        cases.push((
            "the_controller_is_away_and_libvirt_is_asked",
            Box::new(without_a_controller) as suite::Proof,
        ));
    }
    let up: &'static [&'static str] = match agent_with_credential() {
        Ok(program) => {
            let agent = |host: &str| format!("{host}={program}");
            let words = [
                "--hosts",
                "2",
                "--agent-program",
                &agent("a"),
                "--agent-program",
                &agent("b"),
            ];
            let words = words.map(|word| &*word.to_owned().leak());
            Vec::from(words).leak()
        }
        Err(error) => {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    };
    suite::run_with("e2e-keys-away", up, Vec::new(), cases)
}

/// A program that is the agent, with a credential as systemd gives it to a service, which it makes at its first run.
fn agent_with_credential() -> Result<String> {
    let agent = program_directory()?.join("fleetward-agent");
    let script = format!(
        "#!/bin/sh\nset -eu\nexport CREDENTIALS_DIRECTORY={CREDENTIALS}\n\
         if [ ! -d {CREDENTIALS} ]; then\n    mkdir -p -m 700 {CREDENTIALS}\n    \
         head -c 32 /dev/urandom > {CREDENTIALS}/fleetward-guardian-key\nfi\nexec {} \"$@\"\n",
        agent.display()
    );
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("agent-with-credential");
    std::fs::write(&file, script)?;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))?;
    Ok(file.to_str().context("a path in UTF-8")?.to_owned())
}

/// Two stopped VMs on host a, of which the first has sealed its secret.
fn stopped(fleet: &Fleet) -> Result<u64> {
    if fleet.vm(VM).is_err() {
        for name in [VM, "another"] {
            let create = [
                "vm",
                "create",
                name,
                "--image",
                "lab-guest",
                "--memory",
                "512M",
                "--host",
                "a",
            ];
            fleet.cli(&create)?.ok()?;
        }
        fleet.cli(&["vm", "start", VM])?.ok()?;
        guest::booted(fleet, VM, 1)?;
        fleet.cli(&["vm", "stop", VM])?.ok()?;
    }
    wait::until("the last state to be kept", seconds(30), || {
        Ok((fleet.vm(VM)?["escrow"]["current"] == true).then_some(()))
    })?;
    Ok(guest::last(fleet, VM)?.context("it has run")?.boots)
}

/// Everything below the directory of TPM states: names, owners, modes, contents.
fn states(fleet: &Fleet) -> Result<String> {
    let list = "cd /var/lib/libvirt/swtpm; find . -path '*/.lock' -o -printf '%p %U %m\\n' | sort; \
        find . -type f ! -name .lock -print0 | sort -z | xargs -0 -r sha256sum";
    Ok(fleet.exec("a", &["sh", "-ec", list])?.ok()?.stdout)
}

fn on_a(fleet: &Fleet, script: &str) -> Result<()> {
    let script = format!(
        "key={CREDENTIALS}/fleetward-guardian-key; store=/var/lib/fleetward/guardians; vm={VM}; other=another\n{script}"
    );
    fleet.exec("a", &["sh", "-ec", &script])?.ok().map(drop)
}

/// Exchanges something under an agent that does not run meanwhile. It may not come up with it.
fn without_its_agent(fleet: &Fleet, script: &str) -> Result<bool> {
    // One that did not come up is not there to be killed.
    let _ = fleet.lab("kill", &["a/agent"])?;
    on_a(fleet, script)?;
    Ok(fleet.lab("start", &["a/agent"])?.code == 0)
}

fn refused_and_unharmed(fleet: &Fleet, row: &Row) -> Result<()> {
    let boots = stopped(fleet)?;
    let before = states(fleet)?;
    let versions = fleet.json(&["tpm", "history", VM])?;
    let came_up = without_its_agent(fleet, row.harm)?;
    ensure!(
        came_up == (row.code != "HOST_UNREACHABLE"),
        "an agent that cannot open its guardians answers all the same, or the other way round"
    );
    if !came_up {
        let log = fleet.agent_log("a")?;
        let said = log.rsplit("error[").next().unwrap_or_default();
        ensure!(said.contains("fix:"), "it does not say what to do: {said}");
    }
    wait::until("the start to be refused for that", seconds(60), || {
        let said = fleet.cli(&["vm", "start", VM])?;
        ensure!(said.code != 0, "it was started");
        let code = format!("error[{}]", row.code);
        Ok(said.stderr.contains(&code).then_some(()))
    })?;
    ensure!(states(fleet)? == before, "a state is not what it was");
    let now = fleet.json(&["tpm", "history", VM])?;
    ensure!(now == versions, "{versions} then {now}");

    ensure!(
        without_its_agent(fleet, row.cure)?,
        "the agent does not come up"
    );
    online(fleet)?;
    fleet.cli(&["vm", "start", VM])?.ok()?;
    let tick = guest::booted(fleet, VM, boots + 1)?;
    ensure!(tick.unseal == "ok", "{tick:?}");
    fleet.cli(&["vm", "stop", VM])?.ok()?;
    residue::none_anywhere(fleet, HOSTS)
}

fn online(fleet: &Fleet) -> Result<()> {
    wait::until("host a to be online", seconds(30), || {
        let host = fleet.json(&["host", "show", "a"])?;
        Ok((host["state"] == "online").then_some(()))
    })
}

/// libvirt has no key of it, so nobody gets by the agent.
fn without_a_controller(fleet: &Fleet) -> Result<()> {
    let boots = stopped(fleet)?;
    let before = states(fleet)?;
    fleet.kill("controller")?;
    let said = fleet.exec("a", &["virsh", "start", VM])?;
    ensure!(said.code != 0, "libvirt started it: {said:?}");
    ensure!(states(fleet)? == before, "a state is not what it was");
    fleet.start("controller")?;
    online(fleet)?;
    fleet.cli(&["vm", "start", VM])?.ok()?;
    let tick = guest::booted(fleet, VM, boots + 1)?;
    ensure!(tick.unseal == "ok", "{tick:?}");
    fleet.cli(&["vm", "stop", VM])?.ok().map(drop)
}

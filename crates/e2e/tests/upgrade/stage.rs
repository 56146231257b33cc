//! What must work at every stage of an upgrade, and what must still be known after it.
//!
//! | VM | what it stands for |
//! |---|---|
//! | desk | runs through all of it, moves live |
//! | safe | stopped: moves, is rolled, cloned, loses its TPM and gets it back |
//! | bare | has no TPM |
//! | held | the host b has lost its key |
//! | web | lies in the shared pool: its host loses its power, and it is recovered on the other |

use crate::world::{HOSTS, Program, World};
use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::text;
use fleetward_e2e::guest::{self, Tick};
use fleetward_e2e::residue;
use fleetward_e2e::wait::{self, seconds};
use serde_json::Value;

pub(crate) fn make_vms(world: &World) -> Result<()> {
    let label = ["--label", "owner=alice"];
    create(world, "desk", "a", &[&label[..], &["--start"]].concat())?;
    create(world, "safe", "b", &[])?;
    create(world, "bare", "b", &["--no-tpm", "--no-secure-boot"])?;
    create(world, "held", "a", &[])?;
    create(world, "web", "a", &["--pool", "shared"])?;
    ok(
        world,
        &["guardian", "revoke", "held", "--from", "b", "--yes"],
    )?;
    guest::booted(world, "desk", 1).map(drop)
}

/// Every verb that changes a VM or its place, on VMs that the former version made.
pub(crate) fn everything_works(world: &World, stage: &str) -> Result<()> {
    eprintln!("-- {stage}");
    moves_live_both_ways(world).context("live migration")?;
    moves_stopped_both_ways(world).context("migration of stopped VMs")?;
    rolls_and_starts(world).context("roll and start")?;
    is_cloned(world).context("clone")?;
    loses_its_tpm_and_gets_it_back(world).context("disable and restore")?;
    stays_revoked(world).context("revocation")?;
    is_recovered(world).context("recovery")?;
    names_the_agents_that_are_too_old(world).context("versions")?;
    residue::none_anywhere(world, HOSTS)
}

fn moves_live_both_ways(world: &World) -> Result<()> {
    let mut before = newest(world, "desk")?;
    for _ in HOSTS {
        let to = other(&world.place("desk")?.1);
        ok(world, &["vm", "migrate", "desk", "--to", to])?;
        before = guest::goes_on(world, "desk", &before)?;
    }
    Ok(())
}

fn moves_stopped_both_ways(world: &World) -> Result<()> {
    for vm in ["safe", "bare"] {
        for _ in HOSTS {
            let to = other(&world.place(vm)?.1);
            ok(world, &["vm", "migrate", vm, "--to", to, "--offline"])?;
            ensure!(world.place(vm)? == ("stopped".into(), to.into()));
        }
    }
    Ok(())
}

fn rolls_and_starts(world: &World) -> Result<()> {
    let before = text(&world.vm("safe")?["tpm"], "key_id")?;
    ok(world, &["tpm", "roll", "safe"])?;
    ensure!(text(&world.vm("safe")?["tpm"], "key_id")? != before);
    boots_once(world, "safe")?;
    boots_once(world, "bare")
}

fn is_cloned(world: &World) -> Result<()> {
    let source = guest::last(world, "safe")?.context("it has run")?;
    for linked in [true, false] {
        let mut words = vec!["vm", "clone", "safe", "twin", "--tpm", "copy"];
        if !linked {
            words.push("--full");
        }
        ok(world, &words)?;
        ok(world, &["vm", "start", "twin"])?;
        let twin = guest::booted(world, "twin", source.boots + 1)?;
        ensure!(twin.unseal == "ok" && twin.ek == source.ek, "{twin:?}");
        ok(world, &["vm", "stop", "twin", "--force"])?;
        ok(world, &["vm", "delete", "twin", "--yes"])?;
    }
    Ok(())
}

fn loses_its_tpm_and_gets_it_back(world: &World) -> Result<()> {
    let versions = || -> Result<Vec<Value>> {
        let listed = world.json(&["tpm", "history", "safe"])?;
        Ok(listed.as_array().context("a list")?.clone())
    };
    ok(world, &["tpm", "disable", "safe", "--yes"])?;
    ensure!(world.vm("safe")?["tpm"]["enabled"] == false);
    let kept = versions()?;
    let newest = kept.last().context("a version is kept")?["version"].to_string();
    ok(
        world,
        &["tpm", "restore", "safe", "--version", &newest, "--yes"],
    )?;
    ensure!(versions()?.len() >= kept.len(), "versions are gone");
    boots_once(world, "safe")
}

/// No automatic grant reaches the host that lost the key, and what it refuses has its code and its fix.
fn stays_revoked(world: &World) -> Result<()> {
    let refused = world.cli(&["vm", "migrate", "held", "--to", "b", "--offline"])?;
    ensure!(
        refused.code == 4 && refused.stderr.contains("error[") && refused.stderr.contains("fix: "),
        "a host that lost the key was given the VM, or refused without a word: {refused:?}"
    );
    ensure!(world.place("held")?.1 == "a");
    Ok(())
}

fn is_recovered(world: &World) -> Result<()> {
    let from = world.place("web")?.1;
    let to = other(&from);
    boots_once(world, "web")?;
    wait::until("the controller's copy to be current", seconds(60), || {
        Ok((world.vm("web")?["escrow"]["current"] == true).then_some(()))
    })?;
    // What runs on the host that is lost ends with it; the guest that must not end is elsewhere meanwhile.
    if world.place("desk")?.1 == from {
        ok(world, &["vm", "migrate", "desk", "--to", to])?;
    }
    let before = newest(world, "web")?;
    world.kill(&from)?;
    wait::until("the host to be unreachable", seconds(60), || {
        let shown = world.json(&["host", "show", &from])?;
        Ok((shown["state"] == "unreachable").then_some(()))
    })?;
    ok(world, &["vm", "recover", "web", "--to", to, "--yes"])?;
    ok(world, &["vm", "start", "web"])?;
    let after = guest::booted(world, "web", before.boots + 1)?;
    ensure!(after.unseal == "ok" && after.ek == before.ek, "{after:?}");
    world.start(&from)?;
    world.all_online()?;
    wait::until(
        "the copy on the lost host to be ended",
        seconds(120),
        || residue::none_anywhere(world, HOSTS).map(Some),
    )?;
    ok(world, &["vm", "stop", "web", "--force"])
}

/// A VM that the former version cannot describe goes to today's agents only, as soon as there is a controller that knows it.
fn names_the_agents_that_are_too_old(world: &World) -> Result<()> {
    if !world.is_upgraded(Program::Controller) {
        return Ok(());
    }
    let new = |host| world.is_upgraded(Program::Agent(host));
    let refuses = |words: &[&str], too_old: &str| -> Result<()> {
        let said = world.cli(words)?;
        ensure!(
            said.code == 4
                && said.stderr.contains("error[AGENT_TOO_OLD]")
                && said.stderr.contains(&format!("on host {too_old} ")),
            "host {too_old} has an old agent: {said:?}"
        );
        Ok(())
    };
    for host in HOSTS.iter().copied() {
        // What versions 2 and 3 of a specification can say.
        for more in [["--description", "B\u{fc}ro"], ["--add-disk", "8M"]] {
            let create = [&create_words("office", host)[..], &more].concat();
            if !new(host) {
                refuses(&create, host)?;
                continue;
            }
            ok(world, &create)?;
            let made = world.vm("office")?;
            let to = other(host);
            let migrate = ["vm", "migrate", "office", "--to", to, "--offline"];
            if new(to) {
                ok(world, &migrate)?;
                let moved = world.vm("office")?;
                let serials = |vm: &Value| [0, 1].map(|at| vm["disks"][at]["serial"].clone());
                ensure!(
                    moved["description"] == made["description"]
                        && serials(&moved) == serials(&made),
                    "{made} became {moved}"
                );
            } else {
                refuses(&migrate, to)?;
            }
            ok(world, &["vm", "delete", "office", "--yes"])?;
        }
    }
    // Operations that came later, on VMs of the former version.
    for (vm, words) in [
        ("bare", &["vm", "disk", "resize", "bare", "vda", "80M"][..]),
        ("desk", &["vm", "pause", "desk"]),
    ] {
        let host = other(other(&world.place(vm)?.1));
        if !new(host) {
            refuses(words, host)?;
        }
    }
    Ok(())
}

/// Starts a stopped VM, which must open its TPM if it has one, and stops it.
fn boots_once(world: &World, vm: &str) -> Result<()> {
    let before = guest::last(world, vm)?;
    ok(world, &["vm", "start", vm])?;
    let boots = before.as_ref().map_or(0, |tick| tick.boots) + 1;
    let now = guest::booted(world, vm, boots)?;
    let expected = if vm == "bare" { "none" } else { "ok" };
    ensure!(now.unseal == expected, "{now:?}");
    ensure!(
        before.is_none_or(|before| before.ek == now.ek),
        "another EK"
    );
    ok(world, &["vm", "stop", vm])
}

/// A job that has begun and not ended.
pub(crate) struct UnderWay {
    job: String,
    point: &'static str,
    before: Tick,
}

/// Begins a live migration of `desk` and holds it where it hurts: in the middle of what the program is about to be killed at.
pub(crate) fn begin_a_job(world: &World, program: Program) -> Result<UnderWay> {
    let point = match program {
        Program::Controller => "job.vm-migrate.hand-over.before",
        Program::Agent(_) => "job.vm-migrate.migrate-live.before",
    };
    let before = newest(world, "desk")?;
    let to = other(&world.place("desk")?.1);
    world.holds().set(point)?;
    let job = world.start_job(&["vm", "migrate", "desk", "--to", to])?;
    wait::until(&format!("{point} to be reached"), seconds(60), || {
        Ok(world.holds().is_reached(point).then_some(()))
    })?;
    if program == Program::Controller {
        // The next controller is not held.
        world.kill("controller")?;
        world.holds().release(point)?;
    }
    Ok(UnderWay { job, point, before })
}

pub(crate) fn the_job_ends(world: &World, under_way: &UnderWay) -> Result<()> {
    world.holds().release(under_way.point)?;
    let job = &under_way.job;
    wait::until(&format!("job {job} to end"), seconds(120), || {
        let shown = world.json(&["job", "show", job])?;
        let state = text(&shown, "state")?;
        ensure!(state != "failed", "given up: {shown}");
        Ok(matches!(state.as_str(), "done" | "undone").then_some(()))
    })?;
    guest::goes_on(world, "desk", &under_way.before)?;
    residue::none_anywhere(world, HOSTS)
}

/// What the fleet knew before a program was exchanged.
pub(crate) struct Known {
    vms: Vec<Value>,
    jobs: Vec<String>,
    versions: Vec<usize>,
    records: usize,
}

impl Known {
    pub(crate) fn of(world: &World) -> Result<Self> {
        let list = |words: &[&str]| -> Result<Vec<Value>> {
            let listed = world.json(words)?;
            Ok(listed.as_array().context("a list")?.clone())
        };
        let jobs = list(&["job", "list"])?;
        let mut versions = Vec::new();
        for vm in ["desk", "safe", "held", "web"] {
            versions.push(list(&["tpm", "history", vm])?.len());
        }
        Ok(Self {
            vms: list(&["vm", "list"])?,
            jobs: jobs
                .iter()
                .map(|job| text(job, "id"))
                .collect::<Result<_>>()?,
            versions,
            records: list(&["audit"])?.len(),
        })
    }

    pub(crate) fn is_still_known(&self, world: &World) -> Result<()> {
        for old in &self.vms {
            let name = text(old, "name")?;
            let new = world.vm(&name)?;
            for member in [
                "id",
                "managed",
                "cpus",
                "memory_bytes",
                "labels",
                "firmware",
                "created",
            ] {
                ensure!(
                    new[member] == old[member],
                    "{member} of {name}: {old} then {new}"
                );
            }
            for member in ["enabled", "key_id", "guardians", "ek_certificate"] {
                let (old, new) = (&old["tpm"][member], &new["tpm"][member]);
                ensure!(new == old, "TPM of {name}, {member}: {old} then {new}");
            }
        }
        for job in &self.jobs {
            world.json(&["job", "show", job])?;
        }
        let now = Self::of(world)?;
        ensure!(now.records >= self.records, "audit records are gone");
        for (now, then) in now.versions.iter().zip(&self.versions) {
            ensure!(now >= then, "versions of a TPM are gone: {then} then {now}");
        }
        ok(world, &["audit", "--verify"])
    }
}

fn create(world: &World, name: &str, host: &str, more: &[&str]) -> Result<()> {
    ok(world, &[&create_words(name, host)[..], more].concat())
}

fn create_words<'a>(name: &'a str, host: &'a str) -> [&'a str; 9] {
    [
        "vm",
        "create",
        name,
        "--image",
        "lab-guest",
        "--memory",
        "512M",
        "--host",
        host,
    ]
}

fn ok(world: &World, words: &[&str]) -> Result<()> {
    let said = world.cli(words)?.ok();
    said.map(drop).with_context(|| words.join(" "))
}

fn newest(world: &World, vm: &str) -> Result<Tick> {
    guest::last(world, vm)?.with_context(|| format!("the guest of {vm} has said nothing yet"))
}

fn other(host: &str) -> &'static str {
    if host == "a" { "b" } else { "a" }
}

//! The life of a host's certificate, a host that is expelled, and a VM that two hosts claim, with real agents.
//!
//! A year passes more than once, so these are a part of `make soak` (`FLEETWARD_E2E_SOAK=1`).

use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::{Fleet, text};
use fleetward_e2e::wait::{self, seconds};
use fleetward_e2e::{guest, residue, suite};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

fn main() -> ExitCode {
    let cases: &[suite::Case] = match std::env::var_os("FLEETWARD_E2E_SOAK") {
        None => &[],
        Some(_) => &[
            (
                "nothing_is_done_with_a_vm_that_two_hosts_claim_until_somebody_says_whose_it_is",
                disputed,
            ),
            (
                "a_tpm_that_was_kept_is_forgotten_everywhere_also_where_the_host_was_off",
                forgotten,
            ),
            (
                "certificates_are_renewed_by_themselves_and_a_guest_moves_under_the_new_ones",
                renewed,
            ),
            (
                "a_host_that_was_off_past_its_certificates_end_comes_back_with_its_vms",
                off_too_long,
            ),
            (
                "an_expelled_host_that_keeps_talking_is_refused_and_loses_every_key",
                expelled,
            ),
        ],
    };
    suite::run(
        "e2e-membership",
        &["--hosts", "3", "--movable-clock"],
        cases,
    )
}

fn create(fleet: &Fleet, name: &str, pool: &str) -> Result<()> {
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
        "--pool",
        pool,
    ];
    fleet.cli(&create)?.ok().map(drop)
}

/// Makes VM `web`, which the cases share, and boots it on host a once.
fn web(fleet: &Fleet) -> Result<guest::Tick> {
    if let Some(known) = guest::last(fleet, "web")? {
        if fleet.vm("web")?["state"] == "running" {
            return guest::goes_on(fleet, "web", &known);
        }
        fleet.cli(&["vm", "start", "web"])?.ok()?;
        return guest::booted(fleet, "web", known.boots + 1);
    }
    create(fleet, "web", "shared")?;
    fleet.cli(&["vm", "start", "web"])?.ok()?;
    let first = guest::booted(fleet, "web", 1)?;
    ensure!(first.unseal != "failed", "{first:?}");
    Ok(first)
}

fn host_is(fleet: &Fleet, host: &str, state: &str) -> Result<Value> {
    wait::until(&format!("host {host} to be {state}"), seconds(60), || {
        let shown = fleet.json(&["host", "show", host])?;
        Ok((shown["state"] == state).then_some(shown))
    })
}

/// The definition of the VM turns up at host b, as after a restore from the wrong backup.
fn disputed(fleet: &Fleet) -> Result<()> {
    let before = web(fleet)?;
    fleet.cli(&["vm", "stop", "web", "--force"])?.ok()?;
    let id = text(&fleet.vm("web")?, "id")?;
    let copy = "/var/lib/fleetward-shared/claimed.xml";
    let dump = format!("virsh -q dumpxml --security-info web > {copy}");
    fleet.exec("a", &["sh", "-c", &dump])?.ok()?;
    fleet.exec("b", &["virsh", "-q", "define", copy])?.ok()?;
    fleet.exec("b", &["rm", copy])?.ok()?;

    wait::until("both hosts to claim the VM", seconds(30), || {
        Ok((fleet.vm("web")?["claims"].as_array().map(Vec::len) == Some(2)).then_some(()))
    })?;
    let shown = fleet.cli(&["vm", "show", "web"])?.ok()?.stdout;
    for told in ["disputed", "its state is not there", "fleetward vm settle"] {
        ensure!(shown.contains(told), "not told {told:?}:\n{shown}");
    }
    for asked in [
        &["vm", "start", "web"][..],
        &["vm", "migrate", "web", "--to", "c"],
        &["tpm", "roll", "web"],
        &["vm", "delete", "web", "--yes"],
    ] {
        fleet.cli(asked)?.refused(4, "VM_DISPUTED")?;
    }
    fleet
        .cli(&["vm", "settle", "web", "--host", "a", "--yes"])?
        .ok()?;
    wait::until("host b to have no such VM", seconds(60), || {
        let list = fleet
            .exec("b", &["virsh", "-q", "list", "--all", "--uuid"])?
            .ok()?;
        Ok((!list.stdout.contains(&id)).then_some(()))
    })?;
    ensure!(fleet.place("web")? == ("stopped".into(), "a".into()));
    fleet.cli(&["vm", "start", "web"])?.ok()?;
    let after = guest::booted(fleet, "web", before.boots + 1)?;
    ensure!(
        after.unseal == "ok" && after.ek == before.ek,
        "{before:?} then {after:?}"
    );
    Ok(())
}

/// Every file and directory of the lab that is called after the VM.
fn named_after(directory: &Path, id: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().contains(id) {
            found.push(path.clone());
        }
        if path.is_dir() && !path.is_symlink() {
            named_after(&path, id, found);
        }
    }
}

fn forgotten(fleet: &Fleet) -> Result<()> {
    create(fleet, "old", "default")?;
    fleet.cli(&["vm", "start", "old"])?.ok()?;
    guest::booted(fleet, "old", 1)?;
    fleet.cli(&["vm", "stop", "old", "--force"])?.ok()?;
    fleet
        .cli(&["vm", "migrate", "old", "--to", "c", "--offline"])?
        .ok()?;
    let id = text(&fleet.vm("old")?, "id")?;
    fleet.kill("a")?;
    host_is(fleet, "a", "unreachable")?;
    fleet
        .cli(&["vm", "delete", "old", "--keep-tpm-state", "--yes"])?
        .ok()?;
    let kept = fleet.json(&["tpm", "kept"])?;
    ensure!(kept.to_string().contains(&id), "it is not listed: {kept}");
    fleet.cli(&["tpm", "forget", &id, "--yes"])?.ok()?;
    fleet.start("a")?;
    host_is(fleet, "a", "online")?;
    wait::until("nothing to be called after the VM", seconds(60), || {
        let mut found = Vec::new();
        for part in ["nodes", "controller"] {
            named_after(&fleet.directory().join(part), &id, &mut found);
        }
        // The number of its last operation stays, so that no late request is obeyed.
        found.retain(|path| !path.to_string_lossy().contains("/generations/"));
        match found.first() {
            None => Ok(Some(())),
            Some(first) => {
                eprintln!("still there: {}", first.display());
                Ok(None)
            }
        }
    })?;
    ensure!(!fleet.json(&["tpm", "kept"])?.to_string().contains(&id));
    residue::none_anywhere(fleet, &["b", "c"])
}

/// The last moment of the host's certificate, as the controller shows it.
fn end(fleet: &Fleet, host: &str) -> Result<OffsetDateTime> {
    let shown = fleet.json(&["host", "show", host])?;
    OffsetDateTime::parse(&text(&shown["certificate"], "not_after")?, &Rfc3339)
        .with_context(|| shown.to_string())
}

/// Days from the machine's present until `then`.
fn days_until(then: OffsetDateTime) -> i64 {
    (then - OffsetDateTime::now_utc()).whole_days()
}

/// How many days the clock of the fleet is ahead of the machine's.
fn today(fleet: &Fleet) -> Result<i64> {
    let host = fleet.json(&["host", "show", "a"])?;
    let clock = OffsetDateTime::parse(&text(&host["facts"], "clock")?, &Rfc3339)?;
    // Rounded: what the host last said is some seconds old.
    Ok(days_until(clock + Duration::hours(12)))
}

/// A host renews its certificate with a third of a year left: in steps of this many days no host that is on misses that.
const STEP: usize = 100;
const THIRD: Duration = Duration::days(365 / 3);

/// What a day of the controller is: it looks after certificates at its start, and every minute.
#[derive(Clone, Copy, PartialEq)]
enum Controller {
    /// It is restarted at each step, as for upgrades. Its own certificate is made at each start.
    Restarted,
    RunsOn,
}

/// Lets the time pass until that day, with these hosts on.
fn pass(fleet: &Fleet, to_day: i64, hosts: &[&str], controller: Controller) -> Result<()> {
    let steps = (today(fleet)?..to_day)
        .step_by(STEP)
        .skip(1)
        .chain([to_day]);
    for day in steps {
        fleet.lab("clock", &[&format!("+{day}d")])?.ok()?;
        if controller == Controller::Restarted {
            fleet.kill("controller")?;
            fleet.start("controller")?;
        }
        let now = OffsetDateTime::now_utc() + Duration::days(day);
        for host in hosts {
            let what = format!("the certificate of {host} to be good on day {day}");
            wait::until(&what, seconds(100), || {
                Ok((end(fleet, host)? - now >= THIRD).then_some(()))
            })?;
            host_is(fleet, host, "online")?;
        }
        wait::until("the day to have come", seconds(30), || {
            Ok((today(fleet)? == day).then_some(()))
        })?;
    }
    Ok(())
}

fn renewed(fleet: &Fleet) -> Result<()> {
    let before = web(fleet)?;
    let first = end(fleet, "a")?;
    pass(fleet, 250, &["a", "b", "c"], Controller::RunsOn)?;
    ensure!(end(fleet, "a")? - first > Duration::days(200));
    let (_, from) = fleet.place("web")?;
    for to in ["b", "a"].into_iter().filter(|to| *to != from) {
        fleet.cli(&["vm", "migrate", "web", "--to", to])?.ok()?;
    }
    guest::goes_on(fleet, "web", &before)?;
    for host in ["a", "b", "c"] {
        let shown = fleet.json(&["host", "show", host])?;
        ensure!(
            !shown["warnings"].to_string().contains("ertificate"),
            "{shown}"
        );
    }
    Ok(())
}

/// The id of the host's own guardian.
fn own_guardian(fleet: &Fleet, host: &str) -> Result<String> {
    let shown = fleet.json(&["host", "show", host])?;
    let guardians = shown["facts"]["guardians"].as_array();
    let own = guardians.into_iter().flatten().find(|g| g["own"] == true);
    text(own.with_context(|| shown.to_string())?, "id")
}

/// Powers the host off before its certificate ends and on again `late` days after; it comes back with a token.
fn off_until(fleet: &Fleet, host: &str, late: i64) -> Result<()> {
    let ends = days_until(end(fleet, host)?);
    fleet.kill(host)?;
    pass(fleet, ends + late, &["a", "c"], Controller::Restarted)?;
    // The lab waits for a host to be online where a controller could say so, and this one cannot come online.
    fleet.kill("controller")?;
    fleet.start(host)?;
    fleet.start("controller")?;
    wait::until("the way back to be told", seconds(60), || {
        let shown = fleet.json(&["host", "show", host])?;
        let told = shown["warnings"]
            .to_string()
            .contains(&format!("fleetward host rejoin {host}"));
        Ok((told && shown["state"] == "unreachable").then_some(()))
    })?;
    let token = text(&fleet.json(&["host", "rejoin", host])?, "token")?;
    let file = "/run/rejoin-token";
    let write = format!("umask 077; cat > {file} <<'END'\n{token}\nEND");
    fleet.exec(host, &["sh", "-c", &write])?.ok()?;
    let rejoin = ["fleetward-agent", "rejoin", "--token-file", file];
    fleet.exec(host, &rejoin)?.ok()?;
    host_is(fleet, host, "online")?;
    let again = fleet.exec(host, &rejoin)?;
    ensure!(
        again.code != 0 && again.stderr.contains("fleetward host rejoin"),
        "good twice, or without the way to another token: {again:?}"
    );
    Ok(())
}

fn off_too_long(fleet: &Fleet) -> Result<()> {
    let before = web(fleet)?;
    let (_, from) = fleet.place("web")?;
    if from != "b" {
        fleet.cli(&["vm", "migrate", "web", "--to", "b"])?.ok()?;
    }
    fleet.cli(&["vm", "stop", "web", "--force"])?.ok()?;
    let own = own_guardian(fleet, "b")?;
    for late in [1, 365] {
        off_until(fleet, "b", late)?;
        ensure!(own_guardian(fleet, "b")? == own, "it has another guardian");
        ensure!(fleet.place("web")? == ("stopped".into(), "b".into()));
    }
    fleet.cli(&["vm", "start", "web"])?.ok()?;
    let after = guest::booted(fleet, "web", before.boots + 1)?;
    ensure!(
        after.unseal == "ok" && after.ek == before.ek,
        "{before:?} then {after:?}"
    );
    fleet.cli(&["vm", "migrate", "web", "--to", "a"])?.ok()?;
    guest::goes_on(fleet, "web", &after).map(drop)
}

/// What the machine at `address` answers to a host that shows its certificate.
fn talk(fleet: &Fleet, host: &str, address: &str) -> Result<String> {
    const IDENTITY: &str = "/var/lib/fleetward/identity";
    let ask = format!(
        "printf 'GET /v1/vms HTTP/1.1\\r\\nhost: fleet\\r\\nconnection: close\\r\\n\\r\\n' \\
         | timeout 10 openssl s_client -connect {address} -tls1_3 -ign_eof -alpn http/1.1 \\
           -cert {IDENTITY}/host.pem -key {IDENTITY}/host.pem -CAfile {IDENTITY}/authority.pem 2>&1"
    );
    let said = fleet.exec(host, &["sh", "-c", &ask])?;
    Ok(said.stdout + &said.stderr)
}

fn expelled(fleet: &Fleet) -> Result<()> {
    let before = web(fleet)?;
    let (_, from) = fleet.place("web")?;
    if from != "a" {
        fleet.cli(&["vm", "migrate", "web", "--to", "a"])?.ok()?;
    }
    let key = |fleet: &Fleet| text(&fleet.vm("web")?["tpm"], "key_id");
    let known = key(fleet)?;
    let own = own_guardian(fleet, "c")?;
    ensure!(
        fleet.vm("web")?.to_string().contains(&own),
        "c was never granted the key"
    );

    fleet
        .cli(&["host", "remove", "c", "--force", "--yes"])?
        .ok()?;
    fleet
        .cli(&["host", "show", "c"])?
        .refused(4, "HOST_EXPELLED")?;
    wait::until(
        "the agent of c to tell that it is refused",
        seconds(60),
        || {
            let log = fleet.agent_log("c")?;
            Ok(log
                .contains("does not accept our certificate")
                .then_some(()))
        },
    )?;
    // What it says is heard by nobody: controller and agents refuse its certificate, and take that of host b.
    for (address, what) in [
        ("10.77.0.2:7440", "the controller"),
        ("10.77.0.11:7443", "host a"),
    ] {
        let heard = |host| talk(fleet, host, address);
        ensure!(
            heard("b")?.contains("HTTP/1.1"),
            "{what} does not hear b: {}",
            heard("b")?
        );
        let said = heard("c")?;
        ensure!(
            !said.contains("HTTP/1.1") && said.contains("alert"),
            "{what} hears the expelled host: {said}"
        );
    }
    // It stays out, whatever it says, when it comes up again.
    fleet.kill("c/agent")?;
    let said = fleet.lab("start", &["c/agent"])?;
    ensure!(said.code != 0, "it is online: {said:?}");

    fleet.cli(&["vm", "stop", "web", "--force"])?.ok()?;
    wait::until("the VM to have a new key", seconds(60), || {
        let vm = fleet.vm("web")?;
        let rolled = key(fleet)? != known && vm["job"].is_null();
        Ok((rolled && !vm["tpm"].to_string().contains(&own)).then_some(()))
    })?;
    fleet.cli(&["vm", "start", "web"])?.ok()?;
    let after = guest::booted(fleet, "web", before.boots + 1)?;
    ensure!(
        after.unseal == "ok" && after.ek == before.ek,
        "{before:?} then {after:?}"
    );
    fleet.cli(&["vm", "migrate", "web", "--to", "b"])?.ok()?;
    guest::goes_on(fleet, "web", &after)?;
    fleet.cli(&["vm", "stop", "web", "--force"])?.ok()?;
    fleet.cli(&["vm", "delete", "web", "--yes"])?.ok()?;
    residue::none_anywhere(fleet, &["a", "b"])
}

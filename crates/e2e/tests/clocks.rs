//! Years pass at once over a fleet whose VM runs: hosts' certificates are over, then guardians. What ran still opens, and the
//! documented commands lead back.
//!
//! Each leap is several boots and moves, so this is a part of `make soak` (`FLEETWARD_E2E_SOAK=1`).

use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::{Fleet, text};
use fleetward_e2e::guest::{self, Tick};
use fleetward_e2e::wait::{self, seconds};
use fleetward_e2e::{residue, suite};
use std::process::ExitCode;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const VM: &str = "old";
const HOSTS: &[&str] = &["a", "b"];
/// A guardian is good for ten years, and warns for its last half year.
const NINE_AND_A_HALF: u32 = 9 * 365 + 200;
const ELEVEN: u32 = 11 * 365;

fn main() -> ExitCode {
    let cases: &[suite::Case] = match std::env::var_os("FLEETWARD_E2E_SOAK") {
        None => &[],
        Some(_) => &[
            (
                "after_nine_and_a_half_years_hosts_come_back_with_a_token_and_everything_works",
                nine_and_a_half_years,
            ),
            (
                "after_eleven_years_keys_still_open_and_a_rotation_makes_the_rest_work",
                eleven_years,
            ),
        ],
    };
    suite::run("e2e-clocks", &["--hosts", "2", "--movable-clock"], cases)
}

fn cli(fleet: &Fleet, words: &str) -> Result<()> {
    let words: Vec<&str> = words.split(' ').collect();
    fleet.cli(&words)?.ok().map(drop)
}

/// The VM runs on host a; its disk is where both hosts see it.
fn running(fleet: &Fleet) -> Result<Tick> {
    if fleet.vm(VM).is_err() {
        cli(
            fleet,
            "vm create old --image lab-guest --memory 512M --host a --pool shared --start",
        )?;
        guest::booted(fleet, VM, 1)?;
    }
    guest::goes_on(
        fleet,
        VM,
        &guest::last(fleet, VM)?.context("it says nothing")?,
    )
}

/// That many days have passed, in which nobody was there.
fn leap(fleet: &Fleet, days: u32) -> Result<()> {
    fleet.lab("clock", &[&format!("+{days}d")])?.ok()?;
    fleet.kill("controller")?;
    fleet.start("controller")?;
    for host in HOSTS {
        come_back(fleet, host)?;
    }
    wait::until("the day to have come", seconds(60), || {
        let host = fleet.json(&["host", "show", "a"])?;
        let clock = OffsetDateTime::parse(&text(&host["facts"], "clock")?, &Rfc3339)?;
        let passed = clock - OffsetDateTime::now_utc();
        Ok((passed.whole_days() >= i64::from(days) - 1).then_some(()))
    })
}

/// What its warning says to do.
fn come_back(fleet: &Fleet, host: &str) -> Result<()> {
    let way = format!("fleetward host rejoin {host}");
    wait::until("the way back to be told", seconds(90), || {
        let shown = fleet.json(&["host", "show", host])?;
        let told = shown["warnings"].to_string().contains(&way);
        Ok((told && shown["state"] == "unreachable").then_some(()))
    })?;
    let token = text(&fleet.json(&["host", "rejoin", host])?, "token")?;
    let file = "/run/rejoin-token";
    let write = format!("umask 077; cat > {file} <<'END'\n{token}\nEND");
    fleet.exec(host, &["sh", "-c", &write])?.ok()?;
    let rejoin = ["fleetward-agent", "rejoin", "--token-file", file];
    fleet.exec(host, &rejoin)?.ok()?;
    wait::until("the host to be online", seconds(60), || {
        let shown = fleet.json(&["host", "show", host])?;
        Ok((shown["state"] == "online").then_some(()))
    })
}

/// It starts, and its guest finds its TPM as it was.
fn starts(fleet: &Fleet, before: &Tick) -> Result<Tick> {
    let boots = guest::last(fleet, VM)?.context("ticks")?.boots;
    cli(fleet, "vm stop old --force")?;
    cli(fleet, "vm start old")?;
    let now = guest::booted(fleet, VM, boots + 1)?;
    ensure!(
        now.unseal == "ok" && now.ek == before.ek,
        "{before:?} then {now:?}"
    );
    Ok(now)
}

/// Everything that uses a key.
fn works(fleet: &Fleet, before: &Tick) -> Result<()> {
    let now = starts(fleet, before)?;
    cli(fleet, "guardian revoke old --from b --yes")?;
    cli(fleet, "guardian grant old --to b")?;
    for host in ["b", "a"] {
        let words = ["vm", "migrate", VM, "--to", host];
        fleet.cli(&words)?.ok()?;
    }
    guest::goes_on(fleet, VM, &now)?;
    cli(fleet, "tpm roll old --stop-and-restart")?;
    guest::booted(fleet, VM, now.boots + 1)?;
    cli(fleet, "audit --verify")?;
    wait::until("nothing to be left over", seconds(20), || {
        residue::none_anywhere(fleet, HOSTS).map(Some)
    })
}

fn nine_and_a_half_years(fleet: &Fleet) -> Result<()> {
    let before = running(fleet)?;
    leap(fleet, NINE_AND_A_HALF)?;
    guest::goes_on(fleet, VM, &before)?;
    let shown = fleet.json(&["host", "show", "a"])?;
    ensure!(
        shown["warnings"]
            .to_string()
            .contains("fleetward guardian rotate --host a"),
        "not told that its guardian ends soon: {shown}"
    );
    works(fleet, &before)
}

fn eleven_years(fleet: &Fleet) -> Result<()> {
    let before = running(fleet)?;
    leap(fleet, ELEVEN)?;
    guest::goes_on(fleet, VM, &before)?;
    // What is wrapped opens; nothing is wrapped anew for guardians that are over.
    starts(fleet, &before)?;
    cli(fleet, "guardian revoke old --from b --yes")?;
    fleet
        .cli(&["guardian", "grant", VM, "--to", "b"])?
        .refused(4, "GUARDIAN_EXPIRED")?;
    for host in HOSTS {
        let words = ["guardian", "rotate", "--host", host];
        fleet.cli(&words)?.ok()?;
    }
    works(fleet, &before)?;
    // And it is rebuilt where its host is lost.
    wait::until("the controller's copy to be current", seconds(90), || {
        Ok((fleet.vm(VM)?["escrow"]["current"] == true).then_some(()))
    })?;
    let last = guest::last(fleet, VM)?.context("ticks")?;
    fleet.kill("a")?;
    wait::until("host a to be unreachable", seconds(60), || {
        let shown = fleet.json(&["host", "show", "a"])?;
        Ok((shown["state"] == "unreachable").then_some(()))
    })?;
    cli(fleet, "vm recover old --to b --yes")?;
    cli(fleet, "vm start old")?;
    let now = guest::booted(fleet, VM, last.boots + 1)?;
    ensure!(
        now.unseal == "ok" && now.ek == before.ek,
        "{before:?} then {now:?}"
    );
    Ok(())
}

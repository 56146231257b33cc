//! Reads the lab guest's output on its serial console, one line a second.

use crate::fleet::Fleet;
use crate::wait;
use anyhow::{Result, ensure};
use std::time::Duration;

/// One `FLEETWARD-GUEST` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tick {
    pub tick: u64,
    /// Seconds since the guest's kernel started.
    pub uptime: u64,
    /// `ok`, `failed` or `none`.
    pub unseal: String,
    pub boots: u64,
    /// The TPM's count of wrong guesses, or `none`.
    pub lockout: String,
    /// The disks that its kernel sees, by name, with their sizes: `vda:64M,vdb:1024M`.
    pub disks: String,
    pub pcr7: String,
    /// SHA-256 of the EK certificate.
    pub ek: String,
}

impl Tick {
    fn parse(line: &str) -> Option<Self> {
        let fields = line.split_once("FLEETWARD-GUEST ")?.1;
        let value = |key: &str| {
            fields
                .split_whitespace()
                .find_map(|f| f.strip_prefix(key)?.strip_prefix('='))
                .map(str::to_owned)
        };
        // A line that is still being printed ends in the middle of its last field.
        let ek = value("ek")
            .filter(|ek| ek == "none" || ek.strip_prefix("pub:").unwrap_or(ek).len() == 64)?;
        Some(Self {
            tick: value("tick")?.parse().ok()?,
            uptime: value("uptime")?.parse().ok()?,
            unseal: value("unseal")?,
            boots: value("boots")?.parse().ok()?,
            lockout: value("lockout").unwrap_or_default(),
            disks: value("disks").unwrap_or_default(),
            pcr7: value("pcr7")?,
            ek,
        })
    }
}

/// Everything the guest has said so far, across migrations.
pub fn ticks(fleet: &Fleet, vm: &str) -> Result<Vec<Tick>> {
    let said = fleet.lab("serial", &[vm])?.ok()?;
    Ok(said.stdout.lines().filter_map(Tick::parse).collect())
}

/// The newest line.
pub fn last(fleet: &Fleet, vm: &str) -> Result<Option<Tick>> {
    Ok(ticks(fleet, vm)?.pop())
}

/// How long a boot may take: under translation on a busy machine.
pub const BOOT: Duration = Duration::from_secs(120);

/// Waits for the guest's first line of its boot number `boots`.
pub fn booted(fleet: &Fleet, vm: &str, boots: u64) -> Result<Tick> {
    wait::until(&format!("boot {boots} of {vm}"), BOOT, || {
        Ok(last(fleet, vm)?.filter(|t| t.boots >= boots))
    })
}

/// Waits for a line newer than `before`, of the same boot, with an unsealed secret and the same EK.
pub fn goes_on(fleet: &Fleet, vm: &str, before: &Tick) -> Result<Tick> {
    let now = wait::until(
        &format!("{vm} to tick on after {}", before.tick),
        wait::seconds(30),
        || Ok(last(fleet, vm)?.filter(|t| t.tick > before.tick || t.boots != before.boots)),
    )?;
    ensure!(
        now.boots == before.boots,
        "{vm} was restarted: {before:?} then {now:?}"
    );
    ensure!(now.unseal == "ok", "{vm} cannot unseal any more: {now:?}");
    ensure!(
        now.ek == before.ek,
        "{vm} has another EK: {before:?} then {now:?}"
    );
    Ok(now)
}

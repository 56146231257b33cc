//! Guests on the lab's bridge: where they are, and whether they answer to somebody beside them, at 10.0.0.1.

use crate::fleet::Fleet;
use crate::wait::{self, seconds};
use anyhow::{Context, Result};
use std::io::{Read, Write};
use std::process::{Command, Stdio};

/// A command in the lab's first network of guests, with the address 10.0.0.1.
pub fn beside_guests(fleet: &Fleet, command: &[&str]) -> Command {
    let mut run = Command::new(fleet.program("fleetward-lab"));
    run.args(["exec", "--name", fleet.name(), "guests", "--"])
        .args(command);
    run
}

/// Waits until the guest's echo, port 7 at the address, answers, or until it does not.
pub fn reached(fleet: &Fleet, address: &str, expected: bool) -> Result<()> {
    let what = format!(
        "{address} to be {}",
        if expected { "reached" } else { "silent" }
    );
    let target = format!("TCP:{address}:7,connect-timeout=2");
    wait::until(&what, seconds(90), || {
        let mut child = beside_guests(fleet, &["socat", "-T", "2", "-", &target])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut input = child.stdin.take().context("piped")?;
        let _ = input.write_all(b"?\n");
        let mut answer = [0; 2];
        let answered = child
            .stdout
            .take()
            .context("piped")?
            .read_exact(&mut answer)
            .is_ok();
        drop(input);
        let _ = child.kill();
        child.wait()?;
        Ok((answered == expected).then_some(()))
    })
}

/// Waits for the address of the guest's first card, which it says on its serial console.
pub fn address_of(fleet: &Fleet, name: &str) -> Result<String> {
    wait::until(&format!("an address of {name}"), seconds(60), || {
        Ok(field(&line(fleet, name)?, "address"))
    })
}

/// The addresses whose echo the guest has heard lately.
pub fn peers(fleet: &Fleet, name: &str) -> Result<Vec<String>> {
    let peers = field(&line(fleet, name)?, "peers").unwrap_or_default();
    Ok(peers.split(',').map(str::to_owned).collect())
}

/// The newest complete line of the guest.
fn line(fleet: &Fleet, name: &str) -> Result<String> {
    let said = fleet.lab("serial", &[name])?.ok()?.stdout;
    let complete = said.rsplit_once('\n').map_or("", |(lines, _)| lines);
    let newest = complete
        .lines()
        .rfind(|line| line.contains("FLEETWARD-GUEST "));
    Ok(newest.unwrap_or_default().to_owned())
}

fn field(line: &str, name: &str) -> Option<String> {
    let value = line
        .split_whitespace()
        .find_map(|field| field.strip_prefix(name)?.strip_prefix('='))?;
    (value != "none").then(|| value.to_owned())
}

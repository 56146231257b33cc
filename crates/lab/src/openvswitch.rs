//! Open vSwitch in a host of the lab, with its datapath in user space: the kernel needs no module for it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::files::LabFiles;
use crate::node;
use crate::process::{ProcessId, wait_until};
use crate::programs::{Programs, run, tool};

/// Inside a host.
const DATABASE: &str = "/var/lib/fleetward/openvswitch.db";
const SOCKET: &str = "/run/openvswitch/db.sock";
const SCHEMA: &str = "/usr/share/openvswitch/vswitch.ovsschema";

/// Starts its two daemons in a host that was just switched on.
pub(crate) fn start(
    programs: &Programs,
    files: &LabFiles,
    host: &str,
    init: ProcessId,
) -> Result<()> {
    let log = files.node(host).log("openvswitch");
    // What it wires up is made anew at each start.
    inside(init, "/bin/rm", &["-f", DATABASE])?;
    inside(init, "/bin/mkdir", &["-p", "/run/openvswitch"])?;
    inside(init, &program("ovsdb-tool")?, &["create", DATABASE, SCHEMA])?;
    let remote = format!("--remote=punix:{SOCKET}");
    let server = tool("ovsdb-server")?;
    node::spawn(programs, init, &log, &server, &[DATABASE, &remote], &[])?;
    let socket = format!("/proc/{}/root{SOCKET}", init.pid);
    wait_until(Duration::from_secs(20), || Path::new(&socket).exists()).with_context(|| {
        format!(
            "ovsdb-server of host {host} does not answer; see {}",
            log.display()
        )
    })?;
    vsctl(init, &["--no-wait", "init"])?;
    // Guests leave the checksums of what they send to the card. Without this the datapath in user space takes such packets
    // for whole ones, and who receives them drops them.
    let offload = "other_config:userspace-tso-enable=true";
    vsctl(init, &["--no-wait", "set", "Open_vSwitch", ".", offload])?;
    let daemon = tool("ovs-vswitchd")?;
    let database = format!("unix:{SOCKET}");
    node::spawn(programs, init, &log, &daemon, &[&database], &[])?;
    let running = format!("/proc/{}/root/run/openvswitch", init.pid);
    wait_until(Duration::from_secs(20), || {
        let entries = fs::read_dir(&running).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with("ovs-vswitchd.") && name.ends_with(".ctl")
        })
    })
    .with_context(|| {
        format!(
            "ovs-vswitchd of host {host} does not answer; see {}",
            log.display()
        )
    })
}

/// A bridge with that link in it.
pub(crate) fn add_bridge(init: ProcessId, bridge: &str, link: &str) -> Result<()> {
    vsctl(
        init,
        &[
            "--timeout=20",
            "add-br",
            bridge,
            "--",
            "set",
            "bridge",
            bridge,
            "datapath_type=netdev",
            "--",
            "add-port",
            bridge,
            link,
        ],
    )
}

fn vsctl(init: ProcessId, arguments: &[&str]) -> Result<()> {
    inside(init, &program("ovs-vsctl")?, arguments)
}

fn program(name: &str) -> Result<String> {
    Ok(tool(name)?.to_string_lossy().into_owned())
}

fn inside(init: ProcessId, program: &str, arguments: &[&str]) -> Result<()> {
    let mut command: Command = node::enter(init)?;
    run(command.arg(program).args(arguments)).map(drop)
}

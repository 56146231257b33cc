//! The programs in the nodes of a lab: libvirtd, the agents and the controller, and the steps of a host's join.
//! Everything about the fleet uses the command line.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::clock;
use crate::disk::run_with_input;
use crate::files::{LabFiles, inside};
use crate::guest::GuestImage;
use crate::node;
use crate::process::{ProcessId, wait_until};
use crate::programs::{Programs, run, tool};
use crate::record::{HostRecord, LabRecord, address_of};

const AGENT_PORT: u16 = 7443;
const CONTROLLER_PORT: u16 = 7440;
const CONSOLE_PORT: u16 = 7480;

/// What the controller, or the agent of a host, has in its environment.
fn environment(files: &LabFiles, host: Option<&str>) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut environment = vec![("FLEETWARD_HOLD_DIR", files.hold())];
    environment.extend(clock::environment(files, host)?);
    Ok(environment)
}

/// libvirt's filters of network traffic, as packaged.
const FILTERS: &str = "/usr/share/libvirt/nwfilter";

/// As on a real host, but for what a host without systemd and without its own cgroups cannot have.
const QEMU_CONF: &str = r#"security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
remember_owner = 0
stdio_handler = "file"
shared_filesystems = [ "/var/lib/fleetward-shared" ]
"#;

/// Starts libvirtd and waits until it answers; does nothing when it runs.
pub(crate) fn start_libvirtd(
    programs: &Programs,
    files: &LabFiles,
    host: &HostRecord,
) -> Result<()> {
    let init = init_of(host)?;
    let socket = format!("/proc/{}/root{}", init.pid, inside::LIBVIRT_SOCKET);
    if UnixStream::connect(&socket).is_ok() {
        return Ok(());
    }
    let node = files.node(&host.name);
    let etc = node.private("/etc/libvirt");
    fs::write(etc.join("qemu.conf"), QEMU_CONF)?;
    fs::write(
        etc.join("libvirtd.conf"),
        format!(
            "host_uuid = \"{}\"\nauth_unix_rw = \"none\"\nunix_sock_group = \"root\"\nlog_outputs = \"3:file:/var/log/libvirt/libvirtd.log\"\n",
            host.uuid
        ),
    )?;
    // A package put them there on a machine; libvirt writes ids into its own copies.
    let filters = etc.join("nwfilter");
    fs::create_dir_all(&filters)?;
    for filter in fs::read_dir(FILTERS).into_iter().flatten().flatten() {
        let own = filters.join(filter.file_name());
        if !own.exists() {
            fs::copy(filter.path(), own)?;
        }
    }
    node::spawn(
        programs,
        init,
        &node.log("libvirtd"),
        &tool("libvirtd")?,
        &[],
        &[],
    )?;
    wait_until(Duration::from_secs(30), || {
        UnixStream::connect(&socket).is_ok()
    })
    .with_context(|| {
        format!(
            "libvirtd of host {} does not answer; see {}",
            host.name,
            node.log("libvirtd").display()
        )
    })
}

pub(crate) fn start_controller(
    programs: &Programs,
    files: &LabFiles,
    controller: ProcessId,
    trust: Option<&str>,
    console: bool,
) -> Result<()> {
    if node::find(controller, "fleetward").is_none() {
        let (data, socket) = (files.controller_data(), files.socket());
        let (data, socket) = (data.to_string_lossy(), socket.to_string_lossy());
        let (listen, advertise) = (format!("0.0.0.0:{CONTROLLER_PORT}"), controller_address());
        let mut arguments = vec![
            "controller",
            "run",
            "--data",
            &data,
            "--listen",
            &listen,
            "--advertise",
            &advertise,
            "--socket",
            &socket,
        ];
        arguments.extend(trust.iter().flat_map(|trust| ["--trust", trust]));
        let console = console.then(|| format!("0.0.0.0:{CONSOLE_PORT}"));
        arguments.extend(console.iter().flat_map(|address| ["--console", address]));
        let log = files.node("controller").log("controller");
        let environment = environment(files, None)?;
        node::spawn(
            programs,
            controller,
            &log,
            &programs.fleetward(),
            &arguments,
            &environment,
        )?;
    }
    wait_until(Duration::from_secs(30), || {
        hosts_of_fleet(programs, files).is_ok()
    })
    .with_context(|| {
        format!(
            "the controller does not answer{}",
            tail(files, "controller", "controller")
        )
    })
}

/// Starts the agent of a host that has joined and waits until it listens; does nothing when it runs.
pub(crate) fn start_agent(programs: &Programs, files: &LabFiles, host: &HostRecord) -> Result<()> {
    let init = init_of(host)?;
    if node::find(init, "fleetward-agent").is_none() {
        let log = files.node(&host.name).log("agent");
        let environment = environment(files, Some(&host.name))?;
        node::spawn(
            programs,
            init,
            &log,
            &programs.agent(host),
            &["run"],
            &environment,
        )?;
    }
    // The controller may still take it for online from before it was killed.
    wait_until(Duration::from_secs(30), || node::listens(init, AGENT_PORT)).with_context(|| {
        format!(
            "the agent of host {} does not listen{}",
            host.name,
            tail(files, &host.name, "agent")
        )
    })
}

/// Token, `fleetward-agent join`: what an administrator does once for each host.
pub(crate) fn join(
    programs: &Programs,
    files: &LabFiles,
    record: &LabRecord,
    host: &HostRecord,
) -> Result<()> {
    write_agent_config(files, record, host)?;
    let output = run(fleetward(programs, files).args([
        "host",
        "token",
        &host.name,
        "--group",
        &host.group,
        "-o",
        "json",
    ]))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let token = token_in(&text)
        .with_context(|| format!("no join token in the answer for host {}", host.name))?;
    // `-` is for agents from before tokens were refused as arguments.
    let mut agent = node::enter(init_of(host)?)?;
    agent.arg(programs.agent(host)).args(["join", "-"]);
    run_with_input(&mut agent, token.as_bytes())
        .with_context(|| format!("host {} does not join", host.name))
        .map(drop)
}

pub(crate) fn wait_online(programs: &Programs, files: &LabFiles, names: &[&str]) -> Result<()> {
    let online = |name: &str, hosts: &Value| {
        hosts
            .as_array()
            .into_iter()
            .flatten()
            .any(|host| host["name"] == name && host["state"] == "online")
    };
    for name in names {
        wait_until(Duration::from_secs(60), || {
            hosts_of_fleet(programs, files).is_ok_and(|hosts| online(name, &hosts))
        })
        .with_context(|| {
            // The agent is only as well as its libvirtd.
            format!(
                "host {name} does not come online{}{}",
                tail(files, name, "agent"),
                tail(files, name, "libvirtd")
            )
        })?;
    }
    Ok(())
}

pub(crate) fn import_image(
    programs: &Programs,
    files: &LabFiles,
    name: &str,
    image: &GuestImage,
) -> Result<()> {
    let listed = run(fleetward(programs, files).args(["image", "list", "-o", "json"]))?;
    let images: Value =
        serde_json::from_slice(&listed.stdout).context("read the list of images")?;
    if images
        .as_array()
        .into_iter()
        .flatten()
        .any(|known| known["name"] == name)
    {
        return Ok(());
    }
    run(fleetward(programs, files)
        .args(["image", "import", name])
        .arg(image.path()))
    .map(drop)
}

/// Where hosts reach the controller; the same in every lab, since each has its own network.
pub fn controller_address() -> String {
    format!("{}:{CONTROLLER_PORT}", address_of(0))
}

/// `fleetward`, talking to this lab.
pub(crate) fn fleetward(programs: &Programs, files: &LabFiles) -> Command {
    let mut command = Command::new(programs.fleetward());
    command.env("FLEETWARD_SOCKET", files.socket());
    command
}

fn hosts_of_fleet(programs: &Programs, files: &LabFiles) -> Result<Value> {
    let output = fleetward(programs, files)
        .args(["host", "list", "-o", "json"])
        .stdin(Stdio::null())
        .output()
        .context("start fleetward")?;
    if !output.status.success() {
        bail!("fleetward host list: {}", output.status);
    }
    serde_json::from_slice(&output.stdout).context("read the list of hosts")
}

fn write_agent_config(files: &LabFiles, record: &LabRecord, host: &HostRecord) -> Result<()> {
    // An earlier version of the agent refuses what it does not know.
    let known = host.agent_program.is_none();
    let newer = match known {
        true => {
            r#"tpm_pool_at_rest = 4
ek_address = "http://pki.lab.example/fleetward/""#
        }
        false => "",
    };
    let mut text = format!(
        r#"data_dir = "/var/lib/fleetward"
run_dir = "/run/fleetward"
listen = "0.0.0.0:{AGENT_PORT}"
advertise = "{address}:{AGENT_PORT}"
libvirt_uri = "qemu:///system"
accelerator = "{accelerator}"
serial_log_dir = "{serial}"
tpm_pool_size = 4
{newer}

[[pool]]
name = "default"
path = "{volumes}"

[[pool]]
name = "shared"
path = "{shared}"
"#,
        address = host.address(),
        accelerator = record.accelerator.name(),
        serial = inside::SERIAL,
        volumes = inside::VOLUMES,
        shared = inside::SHARED,
    );
    for network in record.networks.iter().filter(|_| known) {
        let kind = match network.openvswitch {
            true => "openvswitch",
            false => "bridge",
        };
        let (name, bridge) = (&network.name, network.bridge());
        text.push_str(&format!(
            "\n[[network]]\nname = \"{name}\"\nbridge = \"{bridge}\"\nkind = \"{kind}\"\n"
        ));
    }
    fs::write(files.node(&host.name).private(inside::AGENT_CONFIG), text)
        .context("write agent.toml")
}

fn init_of(host: &HostRecord) -> Result<ProcessId> {
    match host.init {
        Some(init) if init.is_alive() => Ok(init),
        _ => bail!(
            "host {} is switched off\n  fix: fleetward-lab start {}",
            host.name,
            host.name
        ),
    }
}

/// The token wherever it stands, as JSON or as plain text.
fn token_in(text: &str) -> Option<&str> {
    let start = text.find("fwj1.")?;
    let rest = &text[start..];
    let end = rest
        .find(|c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c)))
        .unwrap_or(rest.len());
    Some(&rest[..end])
}

fn tail(files: &LabFiles, node: &str, program: &str) -> String {
    let log = files.node(node).log(program);
    let text = fs::read_to_string(&log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(5)..].join("\n    ");
    format!("; the end of {}:\n    {last}", log.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_in_json_and_in_plain_text() {
        assert_eq!(
            token_in(r#"{"token": "fwj1.ab-C_9", "host": "a"}"#),
            Some("fwj1.ab-C_9")
        );
        assert_eq!(token_in("fwj1.abc\n"), Some("fwj1.abc"));
        assert_eq!(token_in("no"), None);
    }
}

//! `fleetward-lab`: several real hypervisor hosts on this machine.

#![allow(
    clippy::disallowed_methods,
    reason = "a tool for tests: what it makes need not survive a crash"
)]

use std::collections::HashMap;
use std::io::{Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use fleetward_lab::{
    Accelerator, ImageKind, Lab, LabNetwork, Target, UpOptions, base_dir, run_demo,
};

#[derive(Parser)]
#[command(
    name = "fleetward-lab",
    version,
    about = "Several real hypervisor hosts on this machine"
)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Args, Clone)]
struct LabName {
    /// Which lab
    #[arg(long, default_value = "lab", env = "FLEETWARD_LAB")]
    name: String,
}

#[derive(Subcommand)]
enum Verb {
    /// Start a lab, or add what is missing to one that is up
    Up {
        #[command(flatten)]
        lab: LabName,
        /// How many hosts; they are named a, b, c ...
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=26))]
        hosts: u8,
        /// Put a host into another group than `default`
        #[arg(long, value_name = "HOST=GROUP", value_parser = parse_pair)]
        group: Vec<(String, String)>,
        /// Give a host a small file system for its volumes, for instance c=64M
        #[arg(long, value_name = "HOST=SIZE", value_parser = parse_pair)]
        volume_size: Vec<(String, String)>,
        /// Run this program as a host's agent, an earlier version, say; in a lab that is up the agent is exchanged
        #[arg(long, value_name = "HOST=PATH", value_parser = parse_pair)]
        agent_program: Vec<(String, String)>,
        /// Run this `fleetward` as the controller; in a lab that is up the controller is exchanged
        #[arg(long, value_name = "PATH")]
        controller_program: Option<PathBuf>,
        /// Only hosts with libvirtd, no controller and no agents
        #[arg(long)]
        no_fleet: bool,
        /// Who grants keys inside a group: auto, or manual
        #[arg(long)]
        trust: Option<String>,
        /// Accelerator for guests; default: the one that boots the lab guest
        #[arg(long, value_enum)]
        accelerator: Option<Accelerator>,
        /// A new lab's clock can be moved, see `clock`
        #[arg(long)]
        movable_clock: bool,
        /// A new lab's controller listens for programs with API tokens, too, on port 7480
        #[arg(long)]
        console: bool,
        /// A new lab's networks of guests, each on every host
        #[arg(
            long = "network",
            value_name = "NAME[:openvswitch]",
            default_value = "lan"
        )]
        networks: Vec<LabNetwork>,
    },
    /// Print shell commands after which `fleetward` talks to this lab: eval "$(fleetward-lab env)"
    Env {
        #[command(flatten)]
        lab: LabName,
    },
    /// Show all labs and what runs in them
    Status,
    /// Run a command inside a host (or `controller`, or beside the `guests`); its exit code is returned
    Exec {
        #[command(flatten)]
        lab: LabName,
        host: String,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// SIGKILL: HOST is a power cut (agent, libvirtd and VMs at once), or controller, HOST/agent, HOST/libvirtd
    Kill {
        #[command(flatten)]
        lab: LabName,
        target: Target,
    },
    /// Start what was killed
    Start {
        #[command(flatten)]
        lab: LabName,
        target: Target,
    },
    /// Cut a host's network silently; connections hang
    Partition {
        #[command(flatten)]
        lab: LabName,
        host: String,
        /// Only between these two
        #[arg(long, value_name = "HOST")]
        from: Option<String>,
    },
    /// Undo every cut that concerns the host
    Heal {
        #[command(flatten)]
        lab: LabName,
        host: String,
    },
    /// Move the clock that controller and agents see away from the machine's: +31d, -2h, +0
    Clock {
        #[command(flatten)]
        lab: LabName,
        #[arg(allow_hyphen_values = true)]
        offset: String,
        /// Only that of this host's agent
        #[arg(long)]
        host: Option<String>,
    },
    /// Print the output of a VM on its serial console so far, on any host
    Serial {
        #[command(flatten)]
        lab: LabName,
        vm: String,
        /// Go on printing
        #[arg(short, long)]
        follow: bool,
    },
    /// End a lab; says what is left, which should be nothing
    Down {
        #[command(flatten)]
        lab: LabName,
        /// End all labs
        #[arg(long)]
        all: bool,
    },
    /// The guest images: lab-guest, which every lab has, and lab-debian
    Image {
        #[command(subcommand)]
        verb: ImageVerb,
    },
    /// Show a VM with a TPM moving between two hosts, step by step
    Demo {
        /// Which lab to bring up for it
        #[arg(long, default_value = "demo")]
        name: String,
        /// Take the lab down at the end
        #[arg(long)]
        down: bool,
    },
    #[command(hide = true)]
    NodeLaunch { lab: PathBuf, node: String },
    #[command(hide = true)]
    NodeInit { lab: PathBuf, node: String },
    #[command(hide = true)]
    NodeSpawn {
        log: PathBuf,
        program: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

#[derive(Subcommand)]
enum ImageVerb {
    /// Build it, unless the cache has it
    Build {
        /// Which image; a whole Debian takes root and some minutes
        #[arg(value_enum, default_value_t = ImageKind::LabGuest)]
        which: ImageKind,
        /// Also copy it there
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Build it, unless the cache has it, and import it into a lab's library under its name
    Import {
        #[command(flatten)]
        lab: LabName,
        #[arg(value_enum)]
        which: ImageKind,
    },
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Up {
            lab,
            hosts,
            group,
            volume_size,
            agent_program,
            controller_program,
            no_fleet,
            trust,
            accelerator,
            movable_clock,
            console,
            networks,
        } => {
            let mut options = UpOptions::new(&lab.name, hosts);
            options.fleet = !no_fleet;
            options.trust = trust;
            options.accelerator = accelerator;
            options.movable_clock = movable_clock;
            options.console = console;
            options.networks = networks;
            options.controller_program = controller_program.as_deref().map(absolute).transpose()?;
            assign(&mut options, group, volume_size, agent_program)?;
            Lab::up(&options)?;
            eprintln!("  next: eval \"$(fleetward-lab env --name {})\"", lab.name);
        }
        Verb::Env { lab } => print_env(&Lab::attach(&lab.name)?)?,
        Verb::Status => print_status()?,
        Verb::Exec { lab, host, command } => {
            let lab = Lab::attach(&lab.name)?;
            let status = lab
                .exec(&host)?
                .args(&command)
                .env("FLEETWARD_SOCKET", lab.files().socket())
                .status()
                .context("start nsenter")?;
            return Ok(ExitCode::from(
                u8::try_from(status.code().unwrap_or(1)).unwrap_or(1),
            ));
        }
        Verb::Kill { lab, target } => Lab::attach(&lab.name)?.kill(&target)?,
        Verb::Start { lab, target } => Lab::attach(&lab.name)?.start(&target)?,
        Verb::Partition { lab, host, from } => {
            Lab::attach(&lab.name)?.partition(&host, from.as_deref())?
        }
        Verb::Heal { lab, host } => Lab::attach(&lab.name)?.heal(&host)?,
        Verb::Clock { lab, offset, host } => {
            Lab::attach(&lab.name)?.move_clock(&offset, host.as_deref())?;
        }
        Verb::Serial { lab, vm, follow } => {
            let lab = Lab::attach(&lab.name)?;
            if follow {
                lab.follow_serial(&vm, &mut stdout())?;
            }
            stdout().write_all(lab.serial(&vm)?.as_bytes())?;
        }
        Verb::Down { lab, all } => {
            let names = if all { Lab::names() } else { vec![lab.name] };
            for name in names {
                end(&name)?;
            }
        }
        Verb::Image {
            verb: ImageVerb::Build { which, out },
        } => {
            let image = which.build()?;
            if let Some(out) = &out {
                std::fs::copy(image.path(), out)
                    .with_context(|| format!("write {}", out.display()))?;
            }
            println!("{}", out.as_deref().unwrap_or(image.path()).display());
        }
        Verb::Image {
            verb: ImageVerb::Import { lab, which },
        } => Lab::attach(&lab.name)?.import(which.name(), &which.build()?)?,
        Verb::Demo { name, down } => {
            run_demo(&name)?;
            if down {
                end(&name)?;
            }
        }
        Verb::NodeLaunch { lab, node } => fleetward_lab::launch_main(&lab, &node)?,
        Verb::NodeInit { lab, node } => fleetward_lab::init_main(&lab, &node)?,
        Verb::NodeSpawn {
            log,
            program,
            arguments,
        } => fleetward_lab::spawn_main(&log, &program, &arguments)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn end(name: &str) -> Result<()> {
    let left = Lab::down(name)?;
    if !left.0.is_empty() {
        bail!(
            "the lab {name} is down, but this is left:\n  {}",
            left.0.join("\n  ")
        );
    }
    eprintln!("lab {name}: down; no process, namespace, mount, link or loop device is left");
    Ok(())
}

fn assign(
    options: &mut UpOptions,
    groups: Vec<(String, String)>,
    sizes: Vec<(String, String)>,
    agents: Vec<(String, String)>,
) -> Result<()> {
    let mut agents: HashMap<String, String> = agents.into_iter().collect();
    let mut groups: HashMap<String, String> = groups.into_iter().collect();
    let mut sizes: HashMap<String, String> = sizes.into_iter().collect();
    for host in &mut options.hosts {
        if let Some(group) = groups.remove(&host.name) {
            host.group = group;
        }
        if let Some(size) = sizes.remove(&host.name) {
            host.volume_bytes = Some(parse_size(&size)?);
        }
        if let Some(program) = agents.remove(&host.name) {
            host.agent_program = Some(absolute(Path::new(&program))?);
        }
    }
    let mut unknown = groups.keys().chain(sizes.keys()).chain(agents.keys());
    match unknown.next() {
        Some(unknown) => bail!(
            "there is no host {unknown} among the {} of this lab",
            options.hosts.len()
        ),
        None => Ok(()),
    }
}

/// A program's path, wherever it is started from.
fn absolute(program: &Path) -> Result<PathBuf> {
    let found = program.canonicalize();
    found.with_context(|| format!("find the program {}", program.display()))
}

fn print_env(lab: &Lab) -> Result<()> {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    println!("export FLEETWARD_LAB={}", quoted(&lab.record().name));
    println!(
        "export FLEETWARD_LAB_DIR={}",
        quoted(&base_dir().canonicalize()?.to_string_lossy())
    );
    println!(
        "export FLEETWARD_SOCKET={}",
        quoted(&lab.files().socket().to_string_lossy())
    );
    println!(
        "export FLEETWARD_LAB_CONTROLLER_ADDRESS={}",
        quoted(&fleetward_lab::controller_address())
    );
    println!(
        "export PATH={}:\"$PATH\"",
        quoted(&lab.programs_dir().to_string_lossy())
    );
    Ok(())
}

fn print_status() -> Result<()> {
    let names = Lab::names();
    if names.is_empty() {
        println!("no lab is up");
    }
    for name in names {
        let lab = match Lab::attach(&name) {
            Ok(lab) => lab,
            Err(error) => {
                println!("{error:#}");
                continue;
            }
        };
        let record = lab.record();
        println!(
            "lab {name}: {} hosts, {}, in {}",
            record.hosts.len(),
            record.accelerator.name(),
            lab.files().root().display()
        );
        let shown = |name: &str, on: bool| match (on, lab.is_cut_off(name)) {
            (false, _) => "off".to_owned(),
            (true, false) => format!("on   {}", lab.running_programs(name).join(" ")),
            (true, true) => format!("cut  {}", lab.running_programs(name).join(" ")),
        };
        if record.fleet {
            println!(
                "  {:<12} {:<12} {:<12} {}",
                "controller",
                "",
                "10.77.0.2",
                shown("controller", record.controller.is_some())
            );
        }
        for host in &record.hosts {
            println!(
                "  {:<12} {:<12} {:<12} {}",
                host.name,
                host.group,
                host.address(),
                shown(&host.name, host.is_on())
            );
        }
    }
    Ok(())
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((host, value)) if !host.is_empty() && !value.is_empty() => {
            Ok((host.to_owned(), value.to_owned()))
        }
        _ => Err("expected HOST=VALUE".to_owned()),
    }
}

/// A number with K, M or G.
fn parse_size(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" | "k" => 10,
        "M" | "m" => 20,
        "G" | "g" => 30,
        other => bail!("unknown unit {other} in {text}; use K, M or G"),
    };
    let number: u64 = digits
        .parse()
        .with_context(|| format!("{text} is no size"))?;
    number
        .checked_mul(1 << shift)
        .with_context(|| format!("{text} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_nonsense_is_refused() {
        assert_eq!(parse_size("64M").unwrap(), 64 << 20);
        assert_eq!(parse_size("1G").unwrap(), 1 << 30);
        for bad in [
            "",
            "M",
            "1T",
            "-1M",
            "99999999999999999999",
            "18446744073709551615K",
        ] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}

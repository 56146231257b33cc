//! `fleetward-agent`: the program of every host. It joins the agent with libvirt and makes no decisions.

#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests make and damage files as they like"
    )
)]

mod audit;
#[cfg(test)]
mod documents;
mod guardian;
mod reference;
mod typed_secret;

use anyhow::Context;
use clap::{Parser, Subcommand};
use clap_complete::Shell;
use fleetward_agent::config::{AcceleratorChoice, Config, DEFAULT_PATH};
use fleetward_agent::layout::Layout;
use fleetward_agent::membership::{MembershipError, MembershipFiles};
use fleetward_agent::{Agent, Machinery, RunError, hardening, join, rejoin};
use fleetward_hypervisor::Converter;
use fleetward_hypervisor_libvirt::{
    ConfinedConverter, EK_CERTIFICATE_TOOL, LibvirtConfig, LibvirtHost, ek_certificate_tool_main,
    probe_accelerator,
};
use fleetward_model::host::Accelerator;
use fleetward_model::{ErrorCode, Failure};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;
use typed_secret::Secret;
use zeroize::Zeroizing;

/// The agent of a Fleetward host.
#[derive(Debug, Parser)]
#[command(name = "fleetward-agent", version)]
struct Arguments {
    /// The configuration.
    #[arg(long, default_value = DEFAULT_PATH, global = true)]
    config: PathBuf,
    /// The key that the guardian store is encrypted under: 32 bytes. Without it, the systemd credential
    /// fleetward-guardian-key, where there is one. While the service runs with that credential, root finds it as
    /// /run/credentials/fleetward-agent.service/fleetward-guardian-key.
    #[arg(long, global = true, value_name = "FILE")]
    credential_file: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Join a fleet, once, with a token made by `fleetward host token NAME`: typed, from a file, or from standard input. Not as
    /// an argument, which every user of this machine could read.
    Join {
        /// The file with the token in its first line.
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        /// `-`, for standard input. It is read in any case where there is no terminal to type on.
        #[arg(hide = true, conflicts_with = "token_file")]
        token: Option<String>,
    },
    /// Come back to the fleet with another certificate, when this host's has run out or was lost: with a token made by `fleetward host
    /// rejoin NAME`: typed, from a file, or from standard input. Guardian and VMs stay.
    Rejoin {
        /// The file with the token in its first line.
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        /// `-`, for standard input. It is read in any case where there is no terminal to type on.
        #[arg(hide = true, conflicts_with = "token_file")]
        token: Option<String>,
    },
    /// Run in the foreground until SIGTERM or SIGINT. On a host that has not joined a fleet it ends at once, with exit code 78.
    Run,
    /// This host's guardians.
    Guardian {
        #[command(subcommand)]
        command: guardian::GuardianCommand,
    },
    /// This host's audit log.
    Audit {
        #[command(subcommand)]
        command: audit::AuditCommand,
    },
    /// Print the completion script of a shell.
    Completion { shell: Shell },
    /// Write a man page for each command.
    Man {
        /// The directory, made if it is missing.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// Exit code of `run` on a host that has not joined: by it a service manager knows that another start would not help.
///
/// Source: sysexits.h, `EX_CONFIG`.
const NOT_JOINED: u8 = 78;

fn main() -> ExitCode {
    // swtpm_setup asks a program for EK certificates: this one, under another name.
    if called_as(EK_CERTIFICATE_TOOL) {
        return ek_certificate_tool_main();
    }
    let arguments = Arguments::parse();
    let is_service = matches!(arguments.command, Command::Run);
    // A service tells what it does; a command only what is wrong.
    let level = if is_service { "info" } else { "warn" };
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level)),
        )
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match carry_out(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(failure) = error.downcast_ref::<Failure>() {
                eprintln!("{failure}");
                return ExitCode::from(failure.code.class().exit_code());
            }
            eprintln!("error: {error:#}");
            match error.downcast_ref() {
                Some(MembershipError::NotJoined) if is_service => ExitCode::from(NOT_JOINED),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn called_as(name: &str) -> bool {
    std::env::args_os().next().is_some_and(|program| {
        Path::new(&program)
            .file_name()
            .is_some_and(|file| file == name)
    })
}

fn carry_out(arguments: Arguments) -> anyhow::Result<()> {
    hardening::forbid_core_dumps().context("cannot forbid core dumps")?;
    let config = Config {
        credential_file: arguments.credential_file,
        ..Config::load(&arguments.config)?
    };
    // Two threads carry all there is to carry; work that blocks has threads of its own, which end when idle.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(64)
        .thread_keep_alive(std::time::Duration::from_secs(5))
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    match arguments.command {
        Command::Join { token_file, token } => {
            let token = join_token(token_file.as_deref(), token.as_deref())?;
            runtime.block_on(join_fleet(&config, &token))
        }
        Command::Rejoin { token_file, token } => {
            let token = join_token(token_file.as_deref(), token.as_deref())?;
            runtime.block_on(rejoin_fleet(&config, &token))
        }
        Command::Run => runtime.block_on(run(config)),
        Command::Audit { command } => audit::carry_out(&config, command),
        Command::Guardian { command } => runtime.block_on(guardian::carry_out(&config, command)),
        Command::Completion { shell } => Ok(reference::print_completion(shell)?),
        Command::Man { out } => Ok(reference::write_man_pages(&out)?),
    }
}

fn join_token(file: Option<&Path>, argument: Option<&str>) -> anyhow::Result<Zeroizing<String>> {
    match (file, argument) {
        (Some(file), _) => typed_secret::read(file, Secret::Token),
        (None, None | Some("-")) => typed_secret::token(),
        (None, Some(_)) => Err(Failure::new(
            ErrorCode::InvalidArgument,
            "the join token is an argument",
        )
        .because("every user of this machine can read the arguments of a command while it runs")
        .fix("type or paste it when this asks for it: fleetward-agent join")
        .into()),
    }
}

async fn join_fleet(config: &Config, token: &str) -> anyhow::Result<()> {
    let joined = join::join(config, token).await?;
    let member = joined.member;
    println!(
        "joined fleet {} as host {} of group {}",
        member.fleet, member.host, member.group
    );
    println!("  authority  {} (SHA-256, pinned)", joined.authority);
    println!("  guardian   {}", joined.guardian);
    println!("  address    {}", member.address);
    println!(
        "next: start the agent: fleetward-agent run (or systemctl enable --now fleetward-agent)"
    );
    Ok(())
}

async fn rejoin_fleet(config: &Config, token: &str) -> anyhow::Result<()> {
    let rejoin::Rejoined {
        member,
        certificate,
    } = rejoin::rejoin(config, token).await?;
    println!(
        "host {} is back in fleet {}: certificate {}, until {}",
        member.host,
        member.fleet,
        certificate.serial,
        certificate.not_after.date()
    );
    println!(
        "a running agent presents it within seconds; otherwise: systemctl start fleetward-agent"
    );
    Ok(())
}

/// The kernel's id of this boot.
fn boot_id() -> anyhow::Result<String> {
    const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
    let id = std::fs::read_to_string(BOOT_ID).with_context(|| format!("cannot read {BOOT_ID}"))?;
    Ok(id.trim().to_owned())
}

async fn run(config: Config) -> anyhow::Result<()> {
    // Before the look at what starts VMs here, which takes a while.
    if MembershipFiles::new(&Layout::new(&config))
        .member()?
        .is_none()
    {
        return Err(MembershipError::NotJoined.into());
    }
    hardening::allow_many_connections().context("cannot have more files open")?;
    let accelerator = match config.accelerator {
        AcceleratorChoice::Auto => probe_accelerator().await,
        AcceleratorChoice::Kvm => Accelerator::Kvm,
        AcceleratorChoice::Tcg => Accelerator::Tcg,
    };
    let libvirt = Arc::new(LibvirtHost::start(LibvirtConfig {
        uri: config.libvirt_uri.clone(),
        accelerator,
        run_dir: config.run_dir.clone(),
        memory_reserve: config.memory_reserve,
        ek_certificate_tool: std::env::current_exe().context("cannot find this program")?,
    })?);
    let converter = ConfinedConverter::find(&config.conversion_user);
    if let Err(error) = converter.ready().await {
        tracing::warn!(%error, "images from elsewhere cannot be converted here");
    }
    let machinery = Machinery {
        hypervisor: libvirt.clone(),
        volumes: libvirt.clone(),
        tpms: libvirt,
        converter: Arc::new(converter),
        boot_id: boot_id()?,
    };
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stopping = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping; VMs run on");
        stopping.cancel();
    });
    let agent = match Agent::open(config.clone(), machinery).await {
        Err(RunError::Membership(MembershipError::Credential(error))) => {
            return Err(rejoin::credential_lost(&config, &error).into());
        }
        Err(RunError::Keyring(error)) => return Err(error.failure("the guardian store").into()),
        opened => opened?,
    };
    agent.serve(stop).await?;
    Ok(())
}

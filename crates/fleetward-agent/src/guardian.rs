//! `fleetward-agent guardian`: commands of the host's administrator for its guardians. They work while the agent runs.

mod export;
mod import;
mod list;

pub(crate) use self::list::Output;
use anyhow::bail;
use clap::Subcommand;
use fleetward_agent::Config;
use fleetward_agent::audit::AuditLog;
use fleetward_agent::failure::chain;
use fleetward_agent::keyring::pfx::Protection;
use fleetward_agent::keyring::{Dependent, Keyring, Purpose, survey};
use fleetward_agent::layout::Layout;
use fleetward_agent::membership::MembershipFiles;
use fleetward_model::guardian::{CertificateFacts, GuardianFacts};
use fleetward_model::{ErrorCode, Failure, GuardianId};
use std::io::{self, BufRead, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Debug, Subcommand)]
pub(crate) enum GuardianCommand {
    /// One row for each certificate of this host's guardians.
    List {
        #[arg(short, long, value_enum, visible_alias = "format")]
        output: Option<Output>,
    },
    /// Write a guardian's private keys to VMSigning.pfx and VMEncryption.pfx. On record in the audit log.
    ExportPfx {
        /// The guardian's id, or the beginning of it.
        id: String,
        /// An existing directory.
        #[arg(long)]
        out: PathBuf,
        /// File whose first line is the password; without it, it is asked for.
        #[arg(long)]
        password_file: Option<PathBuf>,
        /// 3DES and SHA-1 instead of AES-256, for Windows Server 2016 and older.
        #[arg(long)]
        legacy: bool,
    },
    /// Bring another host's guardian here: VMs sealed to it then start on this host and can move to it. On record in the
    /// audit log. A file that holds only one half is kept and waits for the other; until then nothing opens with it.
    ImportPfx {
        /// VMSigning.pfx and VMEncryption.pfx, in one command or one after the other, or one file with both.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// File whose first line is the password; without it, it is asked for.
        #[arg(long)]
        password_file: Option<PathBuf>,
    },
    /// Remove a guardian that was imported or retired, with its private keys. Refused where a VM needs it.
    Remove {
        /// The guardian's id, or the beginning of it; of a half that waits, its serial number or a thumbprint.
        id: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

pub(crate) async fn carry_out(config: &Config, command: GuardianCommand) -> anyhow::Result<()> {
    let layout = Layout::new(config);
    let member = MembershipFiles::new(&layout).load()?.member;
    let audit = Arc::new(AuditLog::new(layout.audit_log(), member.host.clone()));
    let keyring = Keyring::open_with(
        &layout.guardians(),
        member.host.clone(),
        audit,
        config.credential_file.as_deref(),
    )
    .map_err(|error| error.failure("the guardian store"))?;
    match command {
        GuardianCommand::List { output } => {
            let survey = survey(&layout);
            for error in &survey.unreadable {
                eprintln!("warning: not all VMs are listed: {}", chain(error));
            }
            let mut found = list::Found::new(&keyring, member.host, survey.readable)?;
            if !found.dependents.is_empty() {
                found.names = list::vm_names(config).await;
            }
            list::print(&found, output.unwrap_or(Output::Table))
        }
        GuardianCommand::ExportPfx {
            id,
            out,
            password_file,
            legacy,
        } => {
            let protection = if legacy {
                Protection::Legacy
            } else {
                Protection::Aes256
            };
            export::export(&keyring, &id, &out, password_file.as_deref(), protection)
        }
        GuardianCommand::ImportPfx {
            files,
            password_file,
        } => import::import(&keyring, &files, password_file.as_deref()),
        GuardianCommand::Remove { id, yes } => {
            let dependents = survey(&layout).complete().map_err(|error| {
                Failure::new(ErrorCode::CheckUnavailable, format!("removing guardian {id}"))
                    .because(format!(
                        "which VMs need it is not known: {}",
                        chain(&error)
                    ))
                    .fix("put back the file that the reason names, from a backup or from a version that the controller keeps; see docs/emergency-recovery.md")
            })?;
            remove(&keyring, &id, &dependents, yes)
        }
    }
}

fn require_root(to: &str) -> anyhow::Result<()> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        bail!("only root may {to}")
    }
}

fn remove(keyring: &Keyring, id: &str, dependents: &[Dependent], yes: bool) -> anyhow::Result<()> {
    require_root("remove private keys")?;
    let purpose = Purpose {
        actor: fleetward_agent::join::local_actor(),
        reason: "guardian remove".into(),
        job: None,
    };
    let guardian = find(&keyring.facts(), id);
    if let Some(half) = find_half(keyring.halves()?, id)? {
        if guardian.is_ok() {
            return Err(Failure::new(ErrorCode::InvalidArgument, id)
                .because("a guardian and half of one begin so")
                .into());
        }
        let question = format!(
            "Remove half a guardian, {}, and its private key from this host?",
            half.subject
        );
        confirm(yes, &format!("removing {}", half.subject), &question)?;
        keyring
            .remove_half(&half, &purpose)
            .map_err(|trouble| trouble.failure)?;
        println!("removed {}", half.subject);
        return Ok(());
    }
    let id = guardian?;
    let question = format!(
        "Remove guardian {} and its private keys from this host? Without a copy they are gone.",
        id.short()
    );
    confirm(yes, &format!("removing guardian {}", id.short()), &question)?;
    keyring
        .remove(&id, dependents, &purpose)
        .map_err(|trouble| trouble.failure)?;
    println!("removed guardian {id}");
    Ok(())
}

fn confirm(yes: bool, what: &str, question: &str) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Failure::new(ErrorCode::ConfirmationNeeded, what).into());
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("nothing was removed");
    }
    Ok(())
}

/// A half by its serial number or a thumbprint, or the beginning of one; never by the beginning of a guardian's id.
fn find_half(halves: Vec<CertificateFacts>, id: &str) -> Result<Option<CertificateFacts>, Failure> {
    let wanted = id.to_ascii_lowercase();
    let mut found = halves.into_iter().filter(|half| {
        let names = [&half.serial, &half.sha1, &half.sha256];
        !wanted.is_empty() && names.iter().any(|name| name.starts_with(&wanted))
    });
    match (found.next(), found.next()) {
        (half, None) => Ok(half),
        (_, Some(_)) => Err(
            Failure::new(ErrorCode::InvalidArgument, format!("certificate {id}"))
                .because("several begin so"),
        ),
    }
}

fn find(guardians: &[GuardianFacts], id: &str) -> Result<GuardianId, Failure> {
    let wanted = id.to_ascii_lowercase();
    let mut found = guardians
        .iter()
        .filter(|guardian| !wanted.is_empty() && guardian.id.as_str().starts_with(&wanted));
    match (found.next(), found.next()) {
        (Some(guardian), None) => Ok(guardian.id.clone()),
        (Some(_), Some(_)) => Err(Failure::new(
            ErrorCode::InvalidArgument,
            format!("guardian {id}"),
        )
        .because("several guardians begin so")),
        (None, _) => Err(
            Failure::new(ErrorCode::GuardianNotFound, format!("guardian {id}"))
                .because("this host does not hold it"),
        ),
    }
}

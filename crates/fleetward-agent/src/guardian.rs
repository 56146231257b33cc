//! `fleetward-agent guardian`: what the host's own administrator does with its guardians. Works beside a running agent.

use anyhow::{Context, bail};
use clap::{Subcommand, ValueEnum};
use fleetward_agent::Config;
use fleetward_agent::audit::AuditLog;
use fleetward_agent::keyring::pfx::{self, PairError, PfxReadError, Protection};
use fleetward_agent::keyring::{Dependent, Keyring, Purpose, dependents};
use fleetward_agent::layout::Layout;
use fleetward_agent::membership::MembershipFiles;
use fleetward_model::guardian::{CertificateFacts, CertificateRole, GuardianFacts};
use fleetward_model::{ErrorCode, Failure, GuardianId, HostName};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use serde::Serialize;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use time::OffsetDateTime;
use zeroize::Zeroizing;

/// Shortest password for a private key, in characters.
const MIN_PASSWORD: usize = 8;

/// Longest password file read, in bytes.
const MAX_PASSWORD: u64 = 4096;

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
    /// audit log. Give both files in one command; nothing is imported by halves.
    ImportPfx {
        /// VMSigning.pfx and VMEncryption.pfx, or one file with both.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// File whose first line is the password; without it, it is asked for.
        #[arg(long)]
        password_file: Option<PathBuf>,
    },
    /// Remove a guardian that was imported or retired, with its private keys. Refused where a VM needs it.
    Remove {
        /// The guardian's id, or the beginning of it.
        id: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
    /// As `certutil -store` prints it, for scripts that read that.
    Certutil,
}

/// A row, as the command line's contract names its fields.
#[derive(Debug, Serialize)]
struct Row {
    guardian: GuardianId,
    role: CertificateRole,
    serial: String,
    sha1: String,
    sha256: String,
    subject: String,
    #[serde(with = "time::serde::rfc3339")]
    not_after: OffsetDateTime,
    days_left: i64,
    has_private_key: bool,
    host: HostName,
    /// Which VMs depend on it is known to the controller: `fleetward guardian list`.
    vms: Vec<String>,
}

pub(crate) fn carry_out(config: &Config, command: GuardianCommand) -> anyhow::Result<()> {
    let layout = Layout::new(config);
    let member = MembershipFiles::new(&layout).load()?.member;
    let audit = Arc::new(AuditLog::new(layout.audit_log(), member.host.clone()));
    let keyring = Keyring::open(&layout.guardians(), member.host, audit)?;
    match command {
        GuardianCommand::List { output } => list(&keyring.facts(), output),
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
            export(&keyring, &id, &out, password_file.as_deref(), protection)
        }
        GuardianCommand::ImportPfx {
            files,
            password_file,
        } => import(&keyring, &files, password_file.as_deref()),
        GuardianCommand::Remove { id, yes } => remove(&keyring, &id, &dependents(&layout)?, yes),
    }
}

fn list(guardians: &[GuardianFacts], output: Option<Output>) -> anyhow::Result<()> {
    let now = OffsetDateTime::now_utc();
    let rows: Vec<Row> = guardians
        .iter()
        .flat_map(|guardian| {
            guardian
                .certificates
                .iter()
                .map(move |certificate| row(guardian, certificate, now))
        })
        .collect();
    match output.unwrap_or(Output::Table) {
        Output::Json => println!("{}", serde_json::to_string_pretty(&rows)?),
        Output::Certutil => print!("{}", certutil(guardians)?),
        Output::Table => {
            println!(
                "{:<14}{:<12}{:<34}{:<42}{:<12}DAYS",
                "GUARDIAN", "ROLE", "SERIAL", "SHA1", "NOT AFTER"
            );
            for row in rows {
                let role = match row.role {
                    CertificateRole::Signing => "signing",
                    CertificateRole::Encryption => "encryption",
                };
                println!(
                    "{:<14}{role:<12}{:<34}{:<42}{:<12}{}",
                    row.guardian.short(),
                    row.serial,
                    row.sha1,
                    row.not_after.date(),
                    row.days_left
                );
            }
        }
    }
    Ok(())
}

/// The layout of `certutil -store "Shielded VM Local Certificates"`, English, Windows 10 and later. Times are UTC.
fn certutil(guardians: &[GuardianFacts]) -> anyhow::Result<String> {
    let moment = time::macros::format_description!(
        "[month padding:none]/[day padding:none]/[year] [hour repr:12 padding:none]:[minute] [period]"
    );
    let mut text = String::from("Shielded VM Local Certificates\n");
    let certificates = guardians.iter().flat_map(|guardian| &guardian.certificates);
    for (number, certificate) in certificates.enumerate() {
        let (test, kind) = match certificate.role {
            CertificateRole::Signing => ("Signature", "signing"),
            CertificateRole::Encryption => ("Encryption", "encryption"),
        };
        write!(
            text,
            "================ Certificate {number} ================\n\
             Serial Number: {serial}\n\
             Issuer: {subject}\n \
             NotBefore: {before}\n \
             NotAfter: {after}\n\
             Subject: {subject}\n\
             Signature matches Public Key\n\
             Root Certificate: Subject matches Issuer\n\
             Cert Hash(sha1): {sha1}\n  \
             Key Container = {kind}-{serial}\n  \
             Provider = Fleetward guardian store\n\
             {test} test passed\n\n",
            serial = certificate.serial,
            subject = certificate.subject,
            before = certificate
                .not_before
                .to_offset(time::UtcOffset::UTC)
                .format(moment)?,
            after = certificate
                .not_after
                .to_offset(time::UtcOffset::UTC)
                .format(moment)?,
            sha1 = certificate.sha1,
        )?;
    }
    text.push_str("CertUtil: -store command completed successfully.\n");
    Ok(text)
}

fn row(guardian: &GuardianFacts, certificate: &CertificateFacts, now: OffsetDateTime) -> Row {
    Row {
        guardian: guardian.id.clone(),
        role: certificate.role,
        serial: certificate.serial.clone(),
        sha1: certificate.sha1.clone(),
        sha256: certificate.sha256.clone(),
        subject: certificate.subject.clone(),
        not_after: certificate.not_after,
        days_left: (certificate.not_after - now).whole_days(),
        has_private_key: guardian.has_private_key,
        host: guardian.host.clone(),
        vms: Vec::new(),
    }
}

fn export(
    keyring: &Keyring,
    id: &str,
    out: &Path,
    password_file: Option<&Path>,
    protection: Protection,
) -> anyhow::Result<()> {
    require_root("export private keys")?;
    let id = find(&keyring.facts(), id)?;
    if !out.is_dir() {
        bail!("{} is no directory", out.display());
    }
    let password = match password_file {
        Some(path) => read_password(path)?,
        None => ask_new_password()?,
    };
    if password.chars().count() < MIN_PASSWORD {
        return Err(Failure::new(ErrorCode::InvalidArgument, "the password")
            .because(format!("it must have at least {MIN_PASSWORD} characters"))
            .into());
    }
    let purpose = Purpose {
        actor: fleetward_agent::join::local_actor(),
        reason: format!("export-pfx to {}", out.display()),
        job: None,
    };
    let files = keyring
        .export_pfx(&id, &password, protection, &purpose)
        .map_err(|trouble| trouble.failure)?;
    for file in files {
        let path = out.join(file.name);
        write_private(&path, &file.content)
            .with_context(|| format!("cannot write {}", path.display()))?;
        println!("{}", path.display());
    }
    eprintln!(
        "Whoever has these files and the password can open every VM this guardian was granted. Keep them offline."
    );
    Ok(())
}

fn require_root(to: &str) -> anyhow::Result<()> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        bail!("only root may {to}")
    }
}

fn import(
    keyring: &Keyring,
    files: &[PathBuf],
    password_file: Option<&Path>,
) -> anyhow::Result<()> {
    require_root("import private keys")?;
    let mut contents = Vec::new();
    for path in files {
        contents.push(read_pfx(path)?);
    }
    let password = match password_file {
        Some(path) => read_password(path)?,
        None => {
            require_terminal()?;
            ask("Password of the PFX files: ")?
        }
    };
    // All files are opened before anything is kept.
    let mut keys = Vec::new();
    for (path, content) in files.iter().zip(&contents) {
        keys.extend(pfx::read(content, &password).map_err(|error| refusal(path, &error))?);
    }
    let names: Vec<String> = files
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let names = names.join(", ");
    let guardian = pfx::assemble(keys).map_err(|error| {
        let code = match error {
            PairError::Half { .. } => ErrorCode::PfxIncomplete,
            PairError::Several { .. }
            | PairError::NoRole { .. }
            | PairError::DifferentHosts { .. }
            | PairError::NotAGuardian(_) => ErrorCode::PfxNotAPair,
        };
        Failure::new(code, format!("importing {names}")).because(error)
    })?;
    let purpose = Purpose {
        actor: fleetward_agent::join::local_actor(),
        reason: format!("import-pfx of {names}"),
        job: None,
    };
    let imported = keyring
        .import(&guardian, &purpose)
        .map_err(|trouble| trouble.failure)?;
    let id = imported.guardian;
    if !imported.new {
        println!(
            "guardian {id} is here already ({})",
            imported.standing.as_str()
        );
        return Ok(());
    }
    println!("imported guardian {id}");
    for certificate in keyring
        .facts()
        .iter()
        .filter(|facts| facts.id == id)
        .flat_map(|facts| &facts.certificates)
    {
        println!("  {}", certificate.subject);
        println!(
            "    serial {}  not after {}",
            certificate.serial,
            certificate.not_after.date()
        );
        if certificate.not_after < OffsetDateTime::now_utc() {
            eprintln!("    expired: it still opens, but nothing new is sealed with it");
        }
    }
    Ok(())
}

/// A PFX file, never more of it than a PFX file has.
fn read_pfx(path: &Path) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    let file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let size = file.metadata()?.len();
    let limit = u64::try_from(pfx::MAX_PFX).expect("a small number");
    if size > limit {
        return Err(refusal(path, &PfxReadError::TooLarge { size }).into());
    }
    let mut content = Zeroizing::new(Vec::new());
    file.take(limit + 1)
        .read_to_end(&mut content)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(content)
}

fn refusal(path: &Path, error: &PfxReadError) -> Failure {
    let code = match error {
        PfxReadError::TooLarge { .. } => ErrorCode::PfxTooLarge,
        PfxReadError::Truncated { .. } => ErrorCode::PfxTruncated,
        PfxReadError::Damaged
        | PfxReadError::Altered
        | PfxReadError::Certificate(_)
        | PfxReadError::Key => ErrorCode::PfxDamaged,
        PfxReadError::NoMac => ErrorCode::PfxNoMac,
        PfxReadError::TooManyIterations { .. } | PfxReadError::TooManyIterationsInside => {
            ErrorCode::PfxTooManyIterations
        }
        PfxReadError::WrongPassword => ErrorCode::PfxWrongPassword,
        PfxReadError::Unsupported(_) => ErrorCode::PfxUnsupported,
        PfxReadError::NoKey => ErrorCode::PfxNoKey,
        PfxReadError::NoCertificate => ErrorCode::PfxNoCertificate,
        PfxReadError::WeakKey { .. } => ErrorCode::PfxWeakKey,
    };
    Failure::new(code, format!("importing {}", path.display())).because(error)
}

fn remove(keyring: &Keyring, id: &str, dependents: &[Dependent], yes: bool) -> anyhow::Result<()> {
    require_root("remove private keys")?;
    let id = find(&keyring.facts(), id)?;
    if !yes {
        if !io::stdin().is_terminal() {
            return Err(Failure::new(
                ErrorCode::ConfirmationNeeded,
                format!("removing guardian {}", id.short()),
            )
            .into());
        }
        eprint!(
            "Remove guardian {} and its private keys from this host? Without a copy they are gone. [y/N] ",
            id.short()
        );
        let mut answer = String::new();
        io::stdin().lock().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            bail!("nothing was removed");
        }
    }
    let purpose = Purpose {
        actor: fleetward_agent::join::local_actor(),
        reason: "guardian remove".into(),
        job: None,
    };
    keyring
        .remove(&id, dependents, &purpose)
        .map_err(|trouble| trouble.failure)?;
    println!("removed guardian {id}");
    Ok(())
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

/// Replaces nothing: a PFX that lies there may be the only copy of another key.
fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn read_password(path: &Path) -> anyhow::Result<Zeroizing<String>> {
    let length = fs::metadata(path)
        .with_context(|| format!("cannot read {}", path.display()))?
        .len();
    if length > MAX_PASSWORD {
        bail!("{} is too long for a password", path.display());
    }
    let text = Zeroizing::new(
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?,
    );
    Ok(Zeroizing::new(
        text.lines().next().unwrap_or_default().to_owned(),
    ))
}

fn require_terminal() -> Result<(), Failure> {
    if io::stdin().is_terminal() {
        return Ok(());
    }
    Err(Failure::new(ErrorCode::InvalidArgument, "the password")
        .because("there is no terminal to ask on")
        .fix("give it in a file: --password-file FILE"))
}

fn ask_new_password() -> anyhow::Result<Zeroizing<String>> {
    require_terminal()?;
    let first = ask("Password for the PFX files: ")?;
    let second = ask("Once more: ")?;
    if *first != *second {
        bail!("the two passwords differ");
    }
    Ok(first)
}

/// Reads a line that is not shown.
fn ask(prompt: &str) -> io::Result<Zeroizing<String>> {
    let _quiet = Quiet::new()?;
    eprint!("{prompt}");
    let mut line = Zeroizing::new(String::new());
    io::stdin().lock().read_line(&mut line)?;
    eprintln!();
    Ok(Zeroizing::new(
        line.trim_end_matches(['\n', '\r']).to_owned(),
    ))
}

/// The terminal without echo, until dropped.
struct Quiet(Termios);

impl Quiet {
    fn new() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_flags.remove(LocalFlags::ECHO);
        tcsetattr(io::stdin(), SetArg::TCSAFLUSH, &quiet)?;
        Ok(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // The process is about to end or to go on; a terminal without echo is put right with `stty sane`.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

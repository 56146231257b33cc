//! `fleetward-agent guardian import-pfx`: reads files into a guardian or one half of it. Nothing is stored before
//! every file has been opened.

use super::require_root;
use crate::typed_secret::{self, Secret};
use anyhow::Context;
use fleetward_agent::failure::chain;
use fleetward_agent::keyring::pfx::{self, Found, PfxReadError};
use fleetward_agent::keyring::{HalfImported, Imported, Keyring, Purpose};
use fleetward_durable::{self as durable, Expected};
use fleetward_model::Failure;
use fleetward_model::fix::quoted;
use fleetward_model::guardian::{CertificateFacts, CertificateRole};
use std::io::Read;
use std::path::{Path, PathBuf};
use time::OffsetDateTime;
use zeroize::Zeroizing;

pub(super) fn import(
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
        Some(path) => typed_secret::read(path, Secret::Password)?,
        None => typed_secret::ask("Password of the PFX files: ", Secret::Password)?,
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
    let found = pfx::sort_out(keys)
        .map_err(|error| Failure::new(error.code(), format!("importing {names}")).because(error))?;
    let purpose = Purpose {
        actor: fleetward_agent::join::local_actor(),
        reason: format!("import-pfx of {names}"),
        job: None,
    };
    match found {
        Found::Guardian(guardian) => {
            let imported = keyring.import(&guardian, &purpose);
            say(keyring, &imported.map_err(|trouble| trouble.failure)?);
        }
        Found::Half(half) => {
            let certificate = half.certificate().facts();
            let imported = keyring.import_half(*half, &purpose);
            match imported.map_err(|trouble| trouble.failure)? {
                HalfImported::Guardian(imported) => say(keyring, &imported),
                HalfImported::Waits { new } => say_waits(&certificate, new),
            }
        }
    }
    Ok(())
}

fn say(keyring: &Keyring, imported: &Imported) {
    let id = &imported.guardian;
    if !imported.new {
        println!(
            "guardian {id} is here already ({})",
            imported.standing.into_str()
        );
        return;
    }
    println!("imported guardian {id}");
    for certificate in keyring
        .facts()
        .iter()
        .filter(|facts| facts.id == *id)
        .flat_map(|facts| &facts.certificates)
    {
        describe(certificate);
    }
}

fn say_waits(certificate: &CertificateFacts, new: bool) {
    let (this, other) = match certificate.role {
        CertificateRole::Signing => ("signing", "encryption"),
        CertificateRole::Encryption => ("encryption", "signing"),
    };
    if new {
        println!(
            "kept the {this} half of a guardian; nothing opens with it until the {other} half is imported too"
        );
    } else {
        println!("the {this} half is here already, and waits for the {other} half");
    }
    describe(certificate);
}

fn describe(certificate: &CertificateFacts) {
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

/// A PFX file, never more of it than a PFX file has.
fn read_pfx(path: &Path) -> anyhow::Result<Zeroizing<Vec<u8>>> {
    // The path may lead into a user's directory.
    let file = durable::open_expected(path, &Expected::any())
        .with_context(|| format!("cannot read {}", path.display()))?;
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
    let failure =
        Failure::new(error.code(), format!("importing {}", path.display())).because(chain(error));
    match error {
        // Exporting the same key in another way would not help.
        PfxReadError::NotRsa { .. } | PfxReadError::LargeKey { .. } => failure.fix(
            "make a guardian with RSA keys of 2048 to 8192 bits on the host it comes from (on Hyper-V: New-HgsGuardian -GenerateCertificates), grant it, and export that one",
        ),
        PfxReadError::Form(_) => failure.fix(
            "have the certificate issued again in DER and smaller than 16 KiB, for the same key, and export both together",
        ),
        PfxReadError::PasswordCharacters
        | PfxReadError::PasswordWriting { .. }
        | PfxReadError::NullPassword => failure.fix(
            "export the file again with another password: 8 characters of ASCII or more are written alike by every program",
        ),
        PfxReadError::Ber(_) => {
            let given = quoted(&path.display().to_string());
            failure.fix(format!(
                "have OpenSSL write it as DER, with no copy in clear: openssl pkcs12 -legacy -in {given} -nodes | openssl pkcs12 -export -out der.pfx"
            ))
        }
        _ => failure,
    }
}

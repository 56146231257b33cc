//! `fleetward-agent guardian export-pfx`: writes a guardian's private keys to two files, both or none.

use super::{find, require_root};
use crate::typed_secret::{self, Secret};
use fleetward_agent::keyring::pfx::{Protection, file_name};
use fleetward_agent::keyring::{Keyring, PfxFile, Purpose};
use fleetward_durable::{self as durable, Access, Draft};
use fleetward_model::guardian::CertificateRole;
use fleetward_model::{ErrorCode, Failure, fix};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Shortest password for a private key, in characters.
const MIN_PASSWORD: usize = 8;

pub(super) fn export(
    keyring: &Keyring,
    id: &str,
    out: &Path,
    password_file: Option<&Path>,
    protection: Protection,
) -> anyhow::Result<()> {
    require_root("export private keys")?;
    let id = find(&keyring.facts(), id)?;
    if !out.is_dir() {
        let what = format!("exporting to {}", out.display());
        let out = out.to_string_lossy();
        return Err(Failure::new(ErrorCode::InvalidArgument, what)
            .because("it is not a directory")
            .fix(fix::command(["mkdir", "-m", "700", &out]))
            .into());
    }
    // Before a password is asked for, and before it is on record.
    let roles = [CertificateRole::Signing, CertificateRole::Encryption];
    require_free(out, roles.map(file_name))?;
    let password = match password_file {
        Some(path) => typed_secret::read(path, Secret::Password)?,
        None => typed_secret::ask_new()?,
    };
    if password.chars().count() < MIN_PASSWORD {
        return Err(Failure::new(ErrorCode::InvalidArgument, "the password")
            .because(format!("it must have at least {MIN_PASSWORD} characters"))
            .fix("choose a longer one: the password and the files together open the VMs")
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
    for path in write_all(out, &files)? {
        println!("{}", path.display());
    }
    eprintln!(
        "Whoever has these files and the password can open every VM this guardian was granted. Keep them offline."
    );
    Ok(())
}

/// Replaces nothing: a PFX that lies there may be the only copy of another key.
fn require_free<'a>(out: &Path, names: impl IntoIterator<Item = &'a str>) -> Result<(), Failure> {
    for name in names {
        match fs::symlink_metadata(out.join(name)) {
            Ok(_) => return Err(taken(out, name)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(not_written(out, name, &error)),
        }
    }
    Ok(())
}

/// Writes all files, mode 0600 and on the disk, or leaves none.
fn write_all(out: &Path, files: &[PfxFile]) -> Result<Vec<PathBuf>, Failure> {
    require_free(out, files.iter().map(|file| file.name))?;
    let mut written = Unfinished(Vec::new());
    let mut drafts = Vec::new();
    for file in files {
        // Of a process that was killed.
        let draft = durable::sweep_file(&out.join(file.name))
            .and_then(|_| Draft::beside(&out.join(file.name), Access::PRIVATE))
            .and_then(|draft| draft.file().write_all(&file.content).map(|()| draft))
            .map_err(|error| not_written(out, file.name, &error))?;
        drafts.push((draft, file.name));
    }
    for (draft, name) in drafts {
        let path = out.join(name);
        match draft.put_new(&path) {
            Ok(true) => written.0.push(path),
            Ok(false) => return Err(taken(out, name)),
            Err(error) => return Err(not_written(out, name, &error)),
        }
    }
    written.0.clear();
    Ok(files.iter().map(|file| out.join(file.name)).collect())
}

/// Files that go unless everything succeeds.
struct Unfinished(Vec<PathBuf>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = durable::wipe(path) {
                eprintln!("warning: {} is left: {error}", path.display());
            }
        }
    }
}

fn taken(out: &Path, name: &str) -> Failure {
    Failure::new(
        ErrorCode::NameTaken,
        format!("exporting to {}", out.display()),
    )
    .because(format!(
        "{name} already exists; it may be the only copy of another guardian. Nothing was written"
    ))
    .fix("give another directory with --out, or move that file away")
}

fn not_written(out: &Path, name: &str, error: &io::Error) -> Failure {
    let (code, fix) = if durable::is_full(error) {
        (
            ErrorCode::NoSpace,
            "free some space there, or give another directory with --out",
        )
    } else {
        (
            ErrorCode::InvalidArgument,
            "give a directory that can be written to with --out",
        )
    };
    Failure::new(code, format!("exporting to {}", out.display()))
        .because(format!("{name} was not written: {error}. No file is left"))
        .fix(fix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use zeroize::Zeroizing;

    fn file(name: &'static str, content: &str) -> PfxFile {
        PfxFile {
            name,
            content: Zeroizing::new(content.as_bytes().to_vec()),
        }
    }

    fn names(path: &Path) -> Vec<String> {
        let entries = fs::read_dir(path).expect("directory");
        let mut names: Vec<String> = entries
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into())
            .collect();
        names.sort();
        names
    }

    fn pair() -> [PfxFile; 2] {
        [file("VMSigning.pfx", "s"), file("VMEncryption.pfx", "e")]
    }

    #[test]
    fn both_files_are_there_private_and_alone() {
        let dir = tempfile::tempdir().expect("directory");
        let paths = write_all(dir.path(), &pair()).expect("written");
        assert_eq!(names(dir.path()), ["VMEncryption.pfx", "VMSigning.pfx"]);
        for path in paths {
            let mode = fs::metadata(&path).expect("metadata").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", path.display());
        }
    }

    #[test]
    fn an_older_file_of_either_name_stays_and_nothing_comes_beside_it() {
        for older in ["VMSigning.pfx", "VMEncryption.pfx"] {
            let dir = tempfile::tempdir().expect("directory");
            fs::write(dir.path().join(older), "older").expect("write");
            let refused = write_all(dir.path(), &pair()).expect_err("refused");
            assert_eq!(refused.code, ErrorCode::NameTaken, "{refused}");
            assert!(refused.because.contains(older), "{refused}");
            assert_eq!(names(dir.path()), [older]);
            let kept = fs::read(dir.path().join(older)).expect("read");
            assert_eq!(kept, b"older");
            // Once it is out of the way, the same command succeeds.
            fs::remove_file(dir.path().join(older)).expect("remove");
            write_all(dir.path(), &pair()).expect("written");
        }
        // A name that leads nowhere is taken, too.
        let dir = tempfile::tempdir().expect("directory");
        let link = dir.path().join("VMEncryption.pfx");
        std::os::unix::fs::symlink("/nonexistent", link).expect("link");
        let refused = write_all(dir.path(), &pair()).expect_err("refused");
        assert_eq!(refused.code, ErrorCode::NameTaken);
        assert_eq!(names(dir.path()), ["VMEncryption.pfx"]);
    }

    #[test]
    fn a_failure_in_the_middle_leaves_nothing() {
        let dir = tempfile::tempdir().expect("directory");
        // No file system takes a name that long; the first file is whole by then.
        let long: &'static str = Box::leak("n".repeat(300).into_boxed_str());
        for files in [
            [file("VMSigning.pfx", "s"), file(long, "e")],
            // Both are written when it shows that the second name is taken.
            [file("VMSigning.pfx", "s"), file("VMSigning.pfx", "e")],
        ] {
            write_all(dir.path(), &files).expect_err("refused");
            assert!(names(dir.path()).is_empty(), "{:?}", names(dir.path()));
        }
    }

    #[test]
    fn a_full_disk_is_called_that() {
        let error = io::Error::from(io::ErrorKind::StorageFull);
        let failure = not_written(Path::new("/out"), "VMSigning.pfx", &error);
        assert_eq!(failure.code, ErrorCode::NoSpace);
    }
}

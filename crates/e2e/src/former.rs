//! The programs of an earlier version, built from the repository's history.

use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The version whose programs today's must work beside: the one before VM types had versions.
pub const COMMIT: &str = "7917ca9";

/// The earlier version's programs, in one directory.
#[derive(Debug, Clone)]
pub struct Former {
    directory: PathBuf,
}

impl Former {
    /// Builds what is not built yet, below the target directory: `former/COMMIT/{source,target}`.
    ///
    /// # Errors
    /// When the history does not reach back to that version, as in a shallow clone; when the build fails.
    pub fn build() -> Result<Self> {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../..")
            .canonicalize()?;
        let home = target_directory()?.join("former").join(COMMIT);
        let source = home.join("source");
        if !source.join("Cargo.toml").is_file() {
            check_out(&repository, &source)?;
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let target = home.join("target");
        eprintln!("building the programs of {COMMIT} in {}", home.display());
        let status = Command::new(cargo)
            .args(["build", "--workspace", "--bins", "--locked", "--quiet"])
            .current_dir(&source)
            .env("CARGO_TARGET_DIR", &target)
            .stdin(Stdio::null())
            .status()
            .context("start cargo")?;
        ensure!(status.success(), "the programs of {COMMIT} do not build");
        Ok(Self {
            directory: target.join("debug"),
        })
    }

    /// The program of that name.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

/// Where cargo put the running program: the directory above `debug` or `release`.
pub fn target_directory() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let profile = own
        .ancestors()
        .find(|directory| directory.join(".fingerprint").is_dir())
        .context("the running program does not lie in a target directory of cargo")?;
    Ok(profile
        .parent()
        .context("a profile lies in a target directory")?
        .to_owned())
}

fn check_out(repository: &Path, source: &Path) -> Result<()> {
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(repository).args(arguments);
        command.stdin(Stdio::null());
        command
    };
    let known = git(&["cat-file", "-e", &format!("{COMMIT}^{{commit}}")])
        .stderr(Stdio::null())
        .status()
        .context("start git")?;
    if !known.success() {
        bail!(
            "the history of {} does not reach back to {COMMIT}, whose programs are wanted\n  fix: git -C {} fetch --unshallow",
            repository.display(),
            repository.display()
        );
    }
    let made = Command::new("mkdir").arg("-p").arg(source).status();
    ensure!(
        made.context("start mkdir")?.success(),
        "{} cannot be made",
        source.display()
    );
    let mut archive = git(&["archive", COMMIT])
        .stdout(Stdio::piped())
        .spawn()
        .context("start git")?;
    let content = archive.stdout.take().context("git's output")?;
    let unpacked = Command::new("tar")
        .arg("-x")
        .arg("-C")
        .arg(source)
        .stdin(content)
        .status()
        .context("start tar")?;
    ensure!(
        archive.wait()?.success() && unpacked.success(),
        "the sources of {COMMIT} cannot be unpacked to {}",
        source.display()
    );
    Ok(())
}

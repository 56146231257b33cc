//! Shared by the tests: guardians made once (RSA keys are slow), and the `openssl` program.
#![allow(
    clippy::disallowed_methods,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test program uses its part; a panic is a failed test"
)]

pub mod kit;
pub mod parts;

use fleetward_model::{HostName, KeyId, VmId};
use fleetward_protector::{ExpiredAllowed, Guardian, KeyProtector};
use fleetward_protector_open::{LocalGuardian, SealRequest, TpmKey, seal};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use time::{Duration, OffsetDateTime};

/// The day the tests take place.
pub fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

pub fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

pub static ALPHA: LazyLock<LocalGuardian> =
    LazyLock::new(|| LocalGuardian::generate(&host("alpha"), now()).unwrap());
pub static BETA: LazyLock<LocalGuardian> =
    LazyLock::new(|| LocalGuardian::generate(&host("beta"), now()).unwrap());
/// Made eleven years ago.
pub static OLD: LazyLock<LocalGuardian> = LazyLock::new(|| {
    LocalGuardian::generate(&host("old"), now() - Duration::days(11 * 365)).unwrap()
});
/// Made nine years and eleven months ago: ends soon.
pub static OLD_VALID: LazyLock<LocalGuardian> = LazyLock::new(|| {
    LocalGuardian::generate(&host("ending"), now() - Duration::days(3_620)).unwrap()
});

pub fn vm() -> VmId {
    VmId(uuid::Uuid::from_u128(
        0x7a11_0000_0000_4000_8000_0000_0000_0001,
    ))
}

pub fn key_id() -> KeyId {
    KeyId(uuid::Uuid::from_u128(
        0x7a11_0000_0000_4000_8000_0000_0000_0002,
    ))
}

pub fn tpm_key() -> TpmKey {
    TpmKey::from_bytes(&mut std::array::from_fn(|i| i as u8 ^ 0x5a))
}

pub fn sealed(owner: &LocalGuardian, recipients: &[Guardian]) -> KeyProtector {
    seal(&SealRequest {
        vm_id: vm(),
        key_id: key_id(),
        tpm_key: &tpm_key(),
        owner,
        recipients,
        now: now(),
        expired: &ExpiredAllowed::none(),
    })
    .unwrap()
}

/// A directory for one test's files, and `openssl` run in it.
pub struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    pub fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    /// What openssl makes of a line of arguments in the file `name`.
    pub fn made(&self, line: &str, name: &str) -> Vec<u8> {
        self.openssl(line)
            .unwrap_or_else(|error| panic!("{line}: {error}"));
        self.read(name)
    }

    /// Runs arguments that may hold spaces.
    pub fn openssl_words(&self, words: &[&str]) -> Result<Vec<u8>, String> {
        run_words(self.directory.path(), "/usr/bin/openssl", words)
    }

    /// Runs a line of arguments; the standard output, or the standard error when it failed.
    pub fn openssl(&self, line: &str) -> Result<Vec<u8>, String> {
        run(self.directory.path(), "/usr/bin/openssl", line)
    }
}

pub fn run(directory: &Path, program: &str, line: &str) -> Result<Vec<u8>, String> {
    run_words(
        directory,
        program,
        &line.split_whitespace().collect::<Vec<_>>(),
    )
}

pub fn run_words(directory: &Path, program: &str, words: &[&str]) -> Result<Vec<u8>, String> {
    let output = Command::new(program)
        .args(words)
        .current_dir(directory)
        .output()
        .unwrap();
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

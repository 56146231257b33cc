//! TPM state: manufacturing, installing and removing it. It is always encrypted; the key is only passed on.

use crate::{Result, SecretText};
use async_trait::async_trait;
use fleetward_model::VmId;
use fleetward_model::vm::TpmLockout;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The endorsement public key of a TPM that is being made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EkPublic {
    /// RSA modulus, big endian, exponent 65537.
    Rsa { modulus: Vec<u8> },
    /// ECC point on P-384 (or P-256, by the length), big endian.
    Ecc { x: Vec<u8>, y: Vec<u8> },
}

/// Issues the EK certificate of a TPM while it is made; returns the certificate's DER.
pub trait EkIssuer: Send + Sync {
    /// # Errors
    /// A sentence why not.
    fn issue(&self, public: &EkPublic) -> std::result::Result<Vec<u8>, String>;
}

/// A TPM that has been made and lies in a directory of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeTpm {
    /// Directory with `tpm2-00.permall`, encrypted.
    pub directory: PathBuf,
    /// DER of the RSA EK's certificate, as it lies in the TPM's NV index 0x01c00002.
    pub ek_certificate: Vec<u8>,
}

/// What the process of a running VM's TPM does about what it is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TpmAttention {
    /// It waits to be asked, or it is none.
    Idle,
    /// For a second it has not read what it was asked.
    Unread { pid: u32 },
    /// It has read all that it was asked, and does not wait to be asked more: it works, or hangs.
    Busy { pid: u32 },
}

/// Makes and keeps TPM state on this host's own disk.
#[async_trait]
pub trait TpmFactory: Send + Sync + 'static {
    /// Manufactures a TPM 2.0 in a new directory (EK with certificate, SHA-256 bank), encrypted under `key`.
    async fn manufacture(
        &self,
        directory: &Path,
        key: &SecretText,
        issuer: &dyn EkIssuer,
    ) -> Result<MadeTpm>;

    /// Makes it the VM's: moved to where the hypervisor looks for it, owned by whom it runs swtpm as.
    /// Refuses when the VM has state already that is not this one.
    async fn install(&self, vm: VmId, made: &Path) -> Result<()>;

    /// The directory below which all states lie, each VM's in a directory of its id; none where nothing can be watched.
    fn states_below(&self) -> Option<PathBuf>;

    /// Where the VM's state lies, when it has any.
    async fn state(&self, vm: VmId) -> Result<Option<PathBuf>>;

    /// Writes state that arrived from elsewhere (an offline migration, a restore); refuses to replace existing state.
    async fn write_state(&self, vm: VmId, state: &[u8]) -> Result<()>;

    /// The same TPM encrypted under another key. Touches no VM's state: bytes in, bytes out. The result has been proved:
    /// a TPM starts on it with `new` and with nothing else.
    ///
    /// # Errors
    /// [`Error::TpmStateUnreadable`](crate::Error::TpmStateUnreadable) when `old` does not open `state`.
    async fn reencrypt_state(
        &self,
        state: &[u8],
        old: &SecretText,
        new: &SecretText,
    ) -> Result<Vec<u8>>;

    /// Starts a TPM on a copy of `state` to see that `key` opens it. Says what it counts of wrong guesses, as the guest finds it
    /// at its next start; none where it opens and does not answer.
    ///
    /// # Errors
    /// [`Error::TpmStateUnreadable`](crate::Error::TpmStateUnreadable) when it does not.
    async fn prove_state(&self, state: &[u8], key: &SecretText) -> Result<Option<TpmLockout>>;

    /// The same TPM with its lockout counter at zero. Touches no VM's state: bytes in, bytes out, under the same key, and proved.
    ///
    /// # Errors
    /// [`Error::TpmLockoutGuarded`](crate::Error::TpmLockoutGuarded) when the guest has set a password for it, which is not
    /// guessed; [`Error::TpmStateUnreadable`](crate::Error::TpmStateUnreadable) when `key` does not open `state`.
    async fn clear_lockout(&self, state: &[u8], key: &SecretText) -> Result<Vec<u8>>;

    /// Puts `state` in the place of what the stopped VM has, or where it has none, in one step: after a crash it is the
    /// one or the other. What was there is gone; whoever calls this has kept it or proved that it is not needed.
    async fn replace_state(&self, vm: VmId, state: &[u8]) -> Result<()>;

    /// The encrypted state file's bytes.
    ///
    /// # Errors
    /// Where the file cannot be TPM state: empty, as after a power cut, or larger than any.
    async fn read_state(&self, vm: VmId) -> Result<Vec<u8>>;

    /// The VMs whose TPM has a process now, and the number of a process that was stopped, by a signal or a debugger: it
    /// answers nothing until it is continued.
    async fn processes(&self) -> Result<HashMap<VmId, Option<u32>>>;

    /// Lets such a process go on.
    async fn wake(&self, vm: VmId, process: u32) -> Result<()>;

    /// Looks whether a TPM's process reads what QEMU asks it; takes a second where something is unread.
    async fn attention(&self, vm: VmId) -> Result<TpmAttention>;

    /// The same, and what is unread is taken back: QEMU is answered in the process's place, a command of the guest's with
    /// "ask again", the request for the TPM's state with a failure. Of what was taken back the process never hears, so it
    /// goes on with the next question when it goes on at all.
    async fn take_back(&self, vm: VmId) -> Result<TpmAttention>;

    /// Ends a TPM's process that hangs. QEMU hears so at once, also where the kernel does not let the process end yet. The
    /// guest has no TPM until it is started anew; the state on the disk is as after a power cut.
    async fn cut_off(&self, vm: VmId) -> Result<()>;

    /// Removes what lies beside the state of a VM that does not run and is of another run: what a TPM had in memory, and
    /// writes that were cut off. A TPM that takes such memory over at a resume fails.
    async fn remove_strays(&self, vm: VmId) -> Result<()>;

    /// Sees to it that the state in place, which swtpm has only renamed there, outlives a power cut.
    async fn sync_state(&self, vm: VmId) -> Result<()>;

    /// What lies where the VM's state should be, whatever it is, up to 16 MiB: for keeping what is no state any more.
    async fn read_damaged_state(&self, vm: VmId) -> Result<Vec<u8>>;

    /// Removes the VM's state for good; missing state is fine. Only for a VM that has been deleted, or on the losing
    /// side of a finished or undone migration.
    async fn remove(&self, vm: VmId) -> Result<()>;
}

//! The one table of error codes, and the error as it travels: code, what, because, fix.
//!
//! Everything that shows codes (messages, exit codes, HTTP statuses, `explain`, the documentation) reads [`ErrorCode::ALL`].

use serde::{Deserialize, Serialize};
use std::fmt;
use utoipa::ToSchema;

/// Who must act, and so which exit code and HTTP status an error has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// The request is malformed; exit 2, HTTP 400.
    Usage,
    /// A check said no, nothing was changed; exit 4, HTTP 409.
    Refused,
    /// The named object does not exist; exit 5, HTTP 404.
    NotFound,
    /// Controller or host cannot be reached; exit 6, HTTP 503.
    Unreachable,
    /// The caller may not do that; exit 1, HTTP 401 or 403.
    Denied,
    /// It was tried and failed; exit 1, HTTP 500.
    Failed,
}

impl Class {
    /// Exit code of the command line (the contract in the user guide).
    pub const fn exit_code(self) -> u8 {
        match self {
            Self::Failed | Self::Denied => 1,
            Self::Usage => 2,
            Self::Refused => 4,
            Self::NotFound => 5,
            Self::Unreachable => 6,
        }
    }

    pub const fn http_status(self) -> u16 {
        match self {
            Self::Usage => 400,
            Self::Denied => 403,
            Self::NotFound => 404,
            Self::Refused => 409,
            Self::Failed => 500,
            Self::Unreachable => 503,
        }
    }
}

macro_rules! codes {
    ($($variant:ident = $text:literal, $class:ident, $summary:literal, $fix:literal;)*) => {
        /// A stable code: scripts match on it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
        pub enum ErrorCode {
            $(#[doc = $summary] #[serde(rename = $text)] $variant,)*
        }

        impl ErrorCode {
            /// Every code, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }

            pub const fn class(self) -> Class {
                match self { $(Self::$variant => Class::$class),* }
            }

            /// One sentence: what the code means.
            pub const fn summary(self) -> &'static str {
                match self { $(Self::$variant => $summary),* }
            }

            /// What usually helps.
            pub const fn usual_fix(self) -> &'static str {
                match self { $(Self::$variant => $fix),* }
            }
        }
    };
}

codes! {
    KeyNotGranted = "KEY_NOT_GRANTED", Refused,
        "The VM's TPM key is not wrapped for any guardian of that host, so the host could not open it. This is what Hyper-V reports as error 10698.",
        "fleetward guardian grant VM --to HOST, for a host of the VM's group; or move the VM to a host that is granted";
    KeyProtectorUnreadable = "KEY_PROTECTOR_UNREADABLE", Refused,
        "The VM's key protector cannot be opened: it is damaged, belongs to another VM, its signature is wrong, or the private key is missing.",
        "see docs/emergency-recovery.md; the last good protector is kept in the agent's data directory";
    GroupForbids = "GROUP_FORBIDS", Refused,
        "The VM belongs to one group and the host to another; a group's VMs run only on its hosts.",
        "choose a host of the VM's group: fleetward host list";
    GuardianExpired = "GUARDIAN_EXPIRED", Refused,
        "The guardian's certificates have run out. What they already opened they still open, but nothing new is wrapped for them.",
        "fleetward guardian rotate --host HOST";
    GuardianExpiresSoon = "GUARDIAN_EXPIRES_SOON", Refused,
        "The guardian's certificates run out within 180 days. Until then everything works; afterwards nothing new is wrapped for it.",
        "fleetward guardian rotate --host HOST";
    RollDue = "ROLL_DUE", Refused,
        "A guardian that lost the VM's TPM key still knows it, because the VM has run ever since or an older TPM was brought back; the key is rolled when the VM stops.",
        "fleetward vm stop NAME";
    GroupTooLarge = "GROUP_TOO_LARGE", Refused,
        "The group has more hosts than a key protector has room for (50), so a TPM key is not wrapped for all of them: a VM's key is granted when it moves.",
        "spread the hosts over several groups: fleetward host token NAME --group GROUP";
    GuardianNotEndorsed = "GUARDIAN_NOT_ENDORSED", Refused,
        "The fleet's authority has not endorsed that guardian for the VM's group, or its word for it is not valid.",
        "join the host to the group: fleetward host token NAME --group GROUP";
    GuardianInUse = "GUARDIAN_IN_USE", Refused,
        "The guardian cannot be removed: it is the host's own, or something on the host opens only with it.",
        "wrap the VMs for another guardian of the host first: fleetward guardian grant --all --to HOST";
    GuardianStoreSealed = "GUARDIAN_STORE_SEALED", Refused,
        "The host's guardian store is encrypted, and the key to it was not given, or is another one.",
        "give the key: fleetward-agent guardian list --credential-file FILE; while the service runs, FILE is /run/credentials/fleetward-agent.service/fleetward-guardian-key";
    PfxWrongPassword = "PFX_WRONG_PASSWORD", Refused,
        "The password does not open the PFX file.",
        "give the password the file was exported with; it is case sensitive, and a password file is read up to its first line end";
    PfxNoMac = "PFX_NO_MAC", Refused,
        "The PFX file has no MAC, so nothing shows that it was not altered.",
        "export it again with a password; with OpenSSL, without -nomac";
    PfxTruncated = "PFX_TRUNCATED", Refused,
        "The PFX file ends before its end: a part is missing.",
        "copy it again, in binary mode, and compare the sizes";
    PfxDamaged = "PFX_DAMAGED", Refused,
        "The file is no PFX file, or was altered after it was made.",
        "copy it again, or export it again";
    PfxTooLarge = "PFX_TOO_LARGE", Refused,
        "The file is larger than any PFX file of a guardian.",
        "see that it is the right file: VMSigning.pfx and VMEncryption.pfx have a few kilobytes each";
    PfxTooManyIterations = "PFX_TOO_MANY_ITERATIONS", Refused,
        "The PFX file asks for more than 1,000,000 rounds of key derivation, which is how such a file keeps a machine busy for hours.",
        "export it again with an ordinary number of rounds; with OpenSSL: -iter 100000";
    PfxNoKey = "PFX_NO_KEY", Refused,
        "The PFX file holds a certificate without its private key.",
        "export it with the private key: certutil -exportPFX, or fleetward-agent guardian export-pfx";
    PfxNoCertificate = "PFX_NO_CERTIFICATE", Refused,
        "The PFX file holds a private key without its certificate.",
        "export both together";
    PfxWeakKey = "PFX_WEAK_KEY", Refused,
        "An RSA key in the PFX file has fewer than 2048 bits.",
        "make a new guardian on the host it comes from, and export that one";
    PfxUnsupported = "PFX_UNSUPPORTED", Refused,
        "The PFX file uses an algorithm, a key or a form that is not read here: elliptic curves, RSA of more than 8192 bits, a certificate that is not canonical DER.",
        "export it again with AES-256 and SHA-256 or with 3DES and SHA-1, and RSA keys of 2048 to 8192 bits";
    PfxIncomplete = "PFX_INCOMPLETE", Refused,
        "The files hold only one half of a guardian; it has a signing and an encryption certificate.",
        "give both files in one command: fleetward-agent guardian import-pfx VMSigning.pfx VMEncryption.pfx";
    PfxNotAPair = "PFX_NOT_A_PAIR", Refused,
        "The certificates in the files are not one guardian's: two of a kind, of different hosts, or neither for signing nor for encryption.",
        "give the two files of one guardian, and no others";
    ClocksApart = "CLOCKS_APART", Refused,
        "The clocks of the two hosts differ by more than the limit, so certificates and audit records cannot be trusted.",
        "synchronise the clocks (chrony or systemd-timesyncd) and try again";
    LibvirtTooOld = "LIBVIRT_TOO_OLD", Refused,
        "libvirt on that host is too old, or older than where the VM runs now.",
        "upgrade libvirt on the destination first";
    QemuTooOld = "QEMU_TOO_OLD", Refused,
        "QEMU on that host is too old, or older than where the VM runs now; a VM's memory moves only to the same or a newer QEMU.",
        "upgrade QEMU on the destination first";
    SwtpmTooOld = "SWTPM_TOO_OLD", Refused,
        "swtpm on that host is too old, or older than where the VM's TPM lives now; TPM state is not readable by an older swtpm.",
        "upgrade swtpm and libtpms on the destination first";
    SwtpmMissing = "SWTPM_MISSING", Refused,
        "swtpm is not installed on that host, so no VM with a TPM can run there.",
        "apt-get install swtpm swtpm-tools on that host";
    MachineMissing = "MACHINE_MISSING", Refused,
        "QEMU on that host does not offer the VM's machine type.",
        "upgrade QEMU on the destination";
    CpuIncompatible = "CPU_INCOMPATIBLE", Refused,
        "The host's CPU lacks features the running VM uses.",
        "migrate the VM while it is stopped (--offline), or choose a host with the same or a newer CPU";
    AcceleratorDiffers = "ACCELERATOR_DIFFERS", Refused,
        "One host runs VMs with KVM and the other by translation; a running VM cannot move between them.",
        "migrate the VM while it is stopped (--offline)";
    SecureBootMissing = "SECURE_BOOT_MISSING", Refused,
        "The host has no UEFI firmware with Secure Boot and enrolled keys.",
        "apt-get install ovmf on that host";
    PoolMissing = "POOL_MISSING", Refused,
        "The host has no pool of that name.",
        "add the pool to /etc/fleetward/agent.toml on that host and restart its agent";
    PoolPathDiffers = "POOL_PATH_DIFFERS", Refused,
        "Both hosts have the pool, but in different directories; a running VM's disks keep their paths.",
        "give the pool the same path on both hosts, or migrate the VM while it is stopped (--offline)";
    NoSpace = "NO_SPACE", Refused,
        "There is not enough space in the pool.",
        "free some space, or choose another host or pool";
    NoMemory = "NO_MEMORY", Refused,
        "The host has not enough free memory for the VM.",
        "stop a VM there, or choose another host";
    NameTaken = "NAME_TAKEN", Refused,
        "Something of that name exists already.",
        "choose another name";
    UuidTaken = "UUID_TAKEN", Refused,
        "The host already has a domain with the VM's uuid.",
        "look at it with virsh on that host; it may be the rest of an earlier move";
    VmRunning = "VM_RUNNING", Refused,
        "The VM is running, and that is only possible while it is stopped.",
        "fleetward vm stop NAME";
    VmNotRunning = "VM_NOT_RUNNING", Refused,
        "The VM is not running, and that is only possible while it runs.",
        "fleetward vm start NAME";
    VmStateWrong = "VM_STATE_WRONG", Refused,
        "The VM is in a state in which that is not possible.",
        "fleetward vm show NAME";
    VmNotManaged = "VM_NOT_MANAGED", Refused,
        "The domain was not made by Fleetward; it is shown but never changed.",
        "manage it with virsh";
    VmBusy = "VM_BUSY", Refused,
        "Another job works on the VM.",
        "wait for it: fleetward job watch ID; or cancel it: fleetward job cancel ID";
    TpmStateMissing = "TPM_STATE_MISSING", Refused,
        "The VM has a key protector but its TPM state file is gone. A new TPM is never made in its place.",
        "bring the file back from a backup; see docs/emergency-recovery.md";
    TpmStateUnreadable = "TPM_STATE_UNREADABLE", Refused,
        "The TPM state does not open with the key that its key protector holds: it is damaged, or belongs to another key.",
        "take another version: fleetward tpm history NAME, fleetward tpm restore NAME --version V";
    EscrowCorrupt = "ESCROW_CORRUPT", Refused,
        "A copy of a VM's TPM is damaged: it is not what was written, not whole, or of another VM. It is never put in place.",
        "use another version: fleetward tpm history NAME";
    TpmIdentityChanges = "TPM_IDENTITY_CHANGES", Refused,
        "The VM will have another TPM than what its disk was sealed to; said as a warning.",
        "keep the recovery keys at hand; or copy the TPM too: fleetward vm clone NAME NEW --tpm copy";
    TpmIdentityTwice = "TPM_IDENTITY_TWICE", Refused,
        "Two VMs hold the same TPM identity; said as a warning.",
        "delete one of the two, or clone with --tpm new";
    VmHasNoTpm = "VM_HAS_NO_TPM", Refused,
        "The VM has no TPM.",
        "choose --tpm new or --tpm none";
    TemplateNotFound = "TEMPLATE_NOT_FOUND", NotFound,
        "There is no template of that name.",
        "fleetward template list";
    VmNotLost = "VM_NOT_LOST", Refused,
        "The VM's host answers, or a copy of the VM still runs: rebuilding it elsewhere would make two of it.",
        "migrate it: fleetward vm migrate NAME --to HOST; or, if that host is gone for good, see that it is powered off";
    DiskMissing = "DISK_MISSING", Refused,
        "A disk of the VM is not on that host.",
        "choose a host that shares the VM's pool, or copy the disk to where the error says";
    EscrowMissing = "ESCROW_MISSING", Refused,
        "The controller has no copy of the VM's TPM, so it cannot be rebuilt without its host.",
        "bring the host back; a backup of its TPM state can be used with docs/emergency-recovery.md";
    EscrowOutdated = "ESCROW_OUTDATED", Refused,
        "The newest copy of the VM's TPM is not of the state that its host last reported: what the guest stored in its TPM since \
         is not in it.",
        "bring the host back; or take the copy as it is: fleetward vm recover NAME --to HOST asks, and --yes answers";
    SameHost = "SAME_HOST", Refused,
        "The VM is on that host already.",
        "choose another host";
    HostDrained = "HOST_DRAINED", Refused,
        "The host is drained and takes no VMs.",
        "fleetward host resume NAME";
    HostNotEmpty = "HOST_NOT_EMPTY", Refused,
        "The host still has VMs.",
        "fleetward host drain NAME, and try again when it is empty";
    NoHostFits = "NO_HOST_FITS", Refused,
        "No host can take the VM; each one's reason is listed.",
        "see the reasons";
    ProfileRefuses = "PROFILE_REFUSES", Refused,
        "The VM does not meet a requirement of its profile.",
        "meet the named requirement, or choose another profile";
    DefinitionEdited = "DEFINITION_EDITED", Refused,
        "The VM's definition was edited outside Fleetward, and what is asked for does not go with that edit.",
        "see the reason; virsh edit on the VM's host changes the definition";
    NameDiffers = "NAME_DIFFERS", Refused,
        "The VM's domain has another name on its host than Fleetward knows the VM by: somebody renamed it there.",
        "fleetward vm rename NAME NEW gives both one name, while the VM is stopped";
    ImageInvalid = "IMAGE_INVALID", Refused,
        "The file is not a disk image that can be used: not a disk, a wrong format, or it refers to other files.",
        "convert it first: qemu-img convert -O qcow2 FILE NEW";
    ImageInUse = "IMAGE_IN_USE", Refused,
        "VMs still need the image as their installer medium.",
        "delete those VMs first";
    TokenUsed = "TOKEN_USED", Refused,
        "The join token has been used already.",
        "make a new one: fleetward host token NAME";
    TokenExpired = "TOKEN_EXPIRED", Refused,
        "The join token has expired.",
        "make a new one: fleetward host token NAME";
    TokenInvalid = "TOKEN_INVALID", Refused,
        "The join token is damaged, was altered, or is not of this fleet.",
        "copy it whole, or make a new one: fleetward host token NAME";
    AlreadyJoined = "ALREADY_JOINED", Refused,
        "This machine or a machine of that name has joined already.",
        "to join again, remove the host first: fleetward host remove NAME";
    ConfirmationNeeded = "CONFIRMATION_NEEDED", Usage,
        "That destroys something, and there is no terminal to ask on.",
        "add --yes if you mean it";
    StaleGeneration = "STALE_GENERATION", Refused,
        "The request is older than what the host has already done for this VM.",
        "nothing to do: a newer job has taken over";
    JobNotCancellable = "JOB_NOT_CANCELLABLE", Refused,
        "The job has ended, or has passed the point after which it can only go on.",
        "fleetward job show ID";
    CheckUnavailable = "CHECK_UNAVAILABLE", Refused,
        "A check could not be made, and so counts as failed.",
        "see the reason; usually a host does not answer";
    InvalidArgument = "INVALID_ARGUMENT", Usage,
        "An argument is malformed or out of range.",
        "see the message";
    InvalidRequest = "INVALID_REQUEST", Usage,
        "The request body is not what this endpoint takes.",
        "see the OpenAPI description under /v1/openapi.json";
    TooLarge = "TOO_LARGE", Usage,
        "The request is larger than the limit.",
        "send less";
    VmNotFound = "VM_NOT_FOUND", NotFound,
        "There is no VM of that name.",
        "fleetward vm list";
    HostNotFound = "HOST_NOT_FOUND", NotFound,
        "There is no host of that name.",
        "fleetward host list";
    ImageNotFound = "IMAGE_NOT_FOUND", NotFound,
        "There is no image of that name.",
        "fleetward image list";
    JobNotFound = "JOB_NOT_FOUND", NotFound,
        "There is no job of that id.",
        "fleetward job list";
    GuardianNotFound = "GUARDIAN_NOT_FOUND", NotFound,
        "There is no guardian of that id.",
        "fleetward guardian list";
    TpmVersionNotFound = "TPM_VERSION_NOT_FOUND", NotFound,
        "The controller keeps no such version of the VM's TPM.",
        "fleetward tpm history NAME";
    CodeNotFound = "CODE_NOT_FOUND", NotFound,
        "There is no error code of that name.",
        "fleetward explain lists them all";
    NotFound = "NOT_FOUND", NotFound,
        "There is nothing at that address.",
        "see the OpenAPI description under /v1/openapi.json";
    ControllerUnreachable = "CONTROLLER_UNREACHABLE", Unreachable,
        "The controller does not answer.",
        "start it: fleetward controller run; or say where it is: --socket, --controller";
    HostUnreachable = "HOST_UNREACHABLE", Unreachable,
        "The host does not answer.",
        "see that its agent runs and that its port is reachable: fleetward host show NAME";
    LinkLost = "LINK_LOST", Unreachable,
        "The connection between the two hosts broke.",
        "see that the hosts reach each other on the agents' port";
    CredentialsMissing = "CREDENTIALS_MISSING", Denied,
        "The request carries no credentials.",
        "use a client certificate of this fleet, or the local socket";
    CredentialsRefused = "CREDENTIALS_REFUSED", Denied,
        "The credentials are not of this fleet, or have expired.",
        "get a certificate from this fleet's controller";
    RoleMissing = "ROLE_MISSING", Denied,
        "The caller's role does not allow that.",
        "ask an administrator for the role named in the message";
    Cancelled = "CANCELLED", Failed,
        "The job was cancelled; what it had done is undone.",
        "start it again when you want it";
    HypervisorFailed = "HYPERVISOR_FAILED", Failed,
        "libvirt or QEMU reported an error.",
        "see the message, and the libvirt log on that host";
    TpmFailed = "TPM_FAILED", Failed,
        "swtpm could not make or use a TPM.",
        "see the message, and /var/log/swtpm on that host";
    MigrationFailed = "MIGRATION_FAILED", Failed,
        "The migration failed; the VM is where it was.",
        "see the reason; run fleetward vm migrate NAME --to HOST --check";
    ShutdownTimedOut = "SHUTDOWN_TIMED_OUT", Failed,
        "The guest did not shut down in time; it still runs.",
        "shut it down from inside, or cut its power: fleetward vm stop NAME --force";
    StoreFailed = "STORE_FAILED", Failed,
        "The controller's store could not be read or written.",
        "see the controller's log; is the disk full?";
    AuditBroken = "AUDIT_BROKEN", Failed,
        "The audit log's chain is broken: a record was changed, removed or reordered.",
        "keep the file as evidence and compare it with a backup";
    Internal = "INTERNAL", Failed,
        "Fleetward met a state it should never be in.",
        "report it, with the log of the service that said so";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl std::str::FromStr for ErrorCode {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL
            .iter()
            .copied()
            .find(|c| c.as_str().eq_ignore_ascii_case(text))
            .ok_or(())
    }
}

/// An error as people and scripts get it. `Display` is the three-line form of the command line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
pub struct Failure {
    pub code: ErrorCode,
    /// What failed, on which object.
    pub what: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub because: String,
    /// A command or a sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fix: String,
    /// All findings, when a check refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

impl Failure {
    /// An error with the code's usual fix.
    pub fn new(code: ErrorCode, what: impl Into<String>) -> Self {
        Self {
            code,
            what: what.into(),
            because: String::new(),
            fix: code.usual_fix().to_owned(),
            findings: Vec::new(),
        }
    }

    #[must_use]
    pub fn because(mut self, because: impl fmt::Display) -> Self {
        self.because = because.to_string();
        self
    }

    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = fix.into();
        self
    }

    /// The refusal that findings amount to: the first blocking one speaks, all are attached.
    /// None when nothing blocks.
    pub fn from_findings(what: impl Into<String>, findings: Vec<Finding>) -> Option<Self> {
        let first = findings.iter().find(|f| f.blocking)?;
        Some(Self {
            code: first.code,
            what: what.into(),
            because: first.what.clone(),
            fix: first.fix.clone(),
            findings,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.what)?;
        if !self.because.is_empty() {
            write!(f, "\n  because: {}", self.because)?;
        }
        if !self.fix.is_empty() {
            write!(f, "\n  fix: {}", self.fix)?;
        }
        Ok(())
    }
}

/// One line of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Finding {
    pub code: ErrorCode,
    /// What was found, naming the objects.
    pub what: String,
    pub fix: String,
    /// False: a remark that stops nothing.
    pub blocking: bool,
}

impl Finding {
    pub fn blocking(code: ErrorCode, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self {
            code,
            what: what.into(),
            fix: fix.into(),
            blocking: true,
        }
    }

    /// A remark with the code's usual fix.
    pub fn warning(code: ErrorCode, what: impl Into<String>) -> Self {
        Self {
            blocking: false,
            ..Self::usual(code, what)
        }
    }

    /// A blocking finding with the code's usual fix.
    pub fn usual(code: ErrorCode, what: impl Into<String>) -> Self {
        Self::blocking(code, what, code.usual_fix())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_code_is_unique_and_explains_itself() {
        let texts: BTreeSet<_> = ErrorCode::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(texts.len(), ErrorCode::ALL.len());
        for code in ErrorCode::ALL {
            assert!(code.summary().ends_with('.'), "{code}");
            assert!(!code.usual_fix().is_empty(), "{code}");
            assert_eq!(code.as_str().parse(), Ok(*code));
        }
    }

    #[test]
    fn the_first_blocking_finding_speaks_for_a_refusal() {
        let remark = Finding {
            blocking: false,
            ..Finding::usual(ErrorCode::NoSpace, "tight")
        };
        assert_eq!(Failure::from_findings("x", vec![remark.clone()]), None);
        let refusal = Failure::from_findings(
            "vm moved",
            vec![
                remark,
                Finding::usual(ErrorCode::KeyNotGranted, "no wrapping for c"),
            ],
        )
        .expect("blocked");
        assert_eq!(refusal.code, ErrorCode::KeyNotGranted);
        assert!(
            refusal
                .to_string()
                .starts_with("error[KEY_NOT_GRANTED]: vm moved\n  because: no wrapping")
        );
    }
}

//! The table of error codes, and the type of an error: code, what, because, fix.
//!
//! All output of codes (messages, exit codes, HTTP statuses, `explain`, the documentation) is derived from
//! [`ErrorCode::ALL`].

use crate::fix::{self, Names, UsualFix};
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::fmt::{self, Write};
use utoipa::ToSchema;

/// An error with its causes, as one sentence. Leaves out what a cause repeats, and the address of a library's documentation.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        let said = said.split(": https://").next().unwrap_or_default();
        if !text.contains(said) {
            write!(text, ": {said}").expect("strings take all writes");
        }
        cause = error.source();
    }
    text
}

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
    ($($variant:ident = $text:literal, $class:ident, $summary:literal, $fix:literal $(, $general:literal)?;)*) => {
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
            pub const fn usual_fix(self) -> UsualFix {
                match self { $(Self::$variant => usual_fix!($fix $(, $general)?)),* }
            }
        }
    };
}

macro_rules! usual_fix {
    ($fix:literal) => {
        usual_fix!($fix, $fix)
    };
    ($named:literal, $general:literal) => {
        UsualFix {
            named: $named,
            general: $general,
        }
    };
}

// Each code: name, class, what it means, what usually helps. Where that has slots for names, `{vm}`, `{host}` or `{job}`,
// a second text follows that needs none.
codes! {
    KeyNotGranted = "KEY_NOT_GRANTED", Refused,
        "The VM's TPM key is not wrapped for any guardian of that host, so the host could not open it. This is what Hyper-V reports as error 10698.",
        "grant the key, if the host belongs to the VM's group: fleetward guardian grant {vm} --to {host}; otherwise move the VM to a host of its group",
        "grant the VM's key to a host of its group with fleetward guardian grant, or move the VM to a host that has the key";
    KeyProtectorUnreadable = "KEY_PROTECTOR_UNREADABLE", Refused,
        "The VM's key protector cannot be opened: it is damaged, it belongs to another VM, its signature is wrong, or the private key is missing.",
        "see docs/emergency-recovery.md; the agent's data directory has the last good protector";
    GroupForbids = "GROUP_FORBIDS", Refused,
        "The VM belongs to one group and the host to another; a group's VMs run only on its hosts.",
        "choose a host of the VM's group: fleetward host list";
    GuardianExpired = "GUARDIAN_EXPIRED", Refused,
        "The guardian's certificates have expired. The guardian still opens keys that were wrapped for it before, but no new key is wrapped for it.",
        "fleetward guardian rotate --host {host}",
        "make a new guardian for the host with fleetward guardian rotate";
    GuardianExpiresSoon = "GUARDIAN_EXPIRES_SOON", Refused,
        "The guardian's certificates expire within 180 days. Until then everything works; after that no new key is wrapped for it.",
        "fleetward guardian rotate --host {host}",
        "make a new guardian for the host with fleetward guardian rotate";
    RollDue = "ROLL_DUE", Refused,
        "A revoked guardian still knows the VM's TPM key, because the VM has not stopped since the revocation, or because an older TPM was restored. The key is rolled when the VM stops.",
        "fleetward vm stop {vm}",
        "stop the VM";
    GroupTooLarge = "GROUP_TOO_LARGE", Refused,
        "The group has more hosts than the 50 that a TPM key is wrapped for in advance. In this group a VM's key is granted to a host when the VM moves there.",
        "spread the hosts over several groups: the option --group of fleetward host token sets the group of a host";
    GuardianNotEndorsed = "GUARDIAN_NOT_ENDORSED", Refused,
        "The fleet's authority has not endorsed that guardian for the VM's group, or its endorsement is not valid.",
        "let the host join the VM's group: the option --group of fleetward host token sets the group of a host";
    OwnerUnknown = "OWNER_UNKNOWN", Refused,
        "The guardian that signed the VM's key protector is none that the fleet's authority has endorsed, and the host does not hold it. Somebody else may have made the key protector.",
        "if the guardian is one of yours, import it on the host that refuses, and repeat the command there: fleetward-agent guardian import-pfx VMSigning.pfx VMEncryption.pfx";
    EkRevoked = "EK_REVOKED", Refused,
        "A warning: the EK certificate of the VM's TPM was revoked. Whoever verifies the TPM by the fleet's list of revoked certificates refuses it; the fleet itself does not.",
        "give the VM a new TPM, with BitLocker's recovery key ready: fleetward tpm disable {vm}, then fleetward tpm enable {vm}",
        "give the VM a new TPM, with BitLocker's recovery key ready: fleetward tpm disable, then fleetward tpm enable";
    EkNotOfFleet = "EK_NOT_OF_FLEET", Refused,
        "The certificate of the TPM's endorsement key does not lead to the fleet's EK root. Somebody else made the TPM, or its certificate.",
        "if you know whose TPM it is, accept its certificate with fleetward ek accept, by the SHA-256 that the refusal names";
    GuardianInUse = "GUARDIAN_IN_USE", Refused,
        "The guardian cannot be removed: it is the host's own guardian, or the host has a VM that only this guardian opens.",
        "wrap the VMs' keys for another guardian of the host first: fleetward guardian grant --all --to {host}",
        "wrap the VMs' keys for another guardian of the host first, with fleetward guardian grant --all";
    GuardianStoreSealed = "GUARDIAN_STORE_SEALED", Refused,
        "The host's guardian store is encrypted, and its key is missing or wrong.",
        "while the agent's service runs: fleetward-agent guardian list --credential-file /run/credentials/fleetward-agent.service/fleetward-guardian-key; otherwise --credential-file names a file with the key";
    PfxWrongPassword = "PFX_WRONG_PASSWORD", Refused,
        "The password does not open the PFX file.",
        "give the password that the file was exported with; it is case sensitive, and only the first line of a password file is read";
    PfxNoMac = "PFX_NO_MAC", Refused,
        "The PFX file has no MAC, so a change to it cannot be detected.",
        "export it again with a password; with OpenSSL, without -nomac";
    PfxTruncated = "PFX_TRUNCATED", Refused,
        "The PFX file is incomplete: its end is missing.",
        "copy it again, in binary mode, and compare the sizes";
    PfxDamaged = "PFX_DAMAGED", Refused,
        "The file is not a PFX file, or it was changed after it was made.",
        "copy it again, or export it again";
    PfxTooLarge = "PFX_TOO_LARGE", Refused,
        "The file is larger than any PFX file of a guardian.",
        "check that it is the right file: VMSigning.pfx and VMEncryption.pfx have a few kilobytes each";
    PfxTooManyIterations = "PFX_TOO_MANY_ITERATIONS", Refused,
        "The PFX file requires more than 1,000,000 rounds of key derivation. Such a file can keep a machine busy for hours.",
        "export it again with a normal number of rounds; with OpenSSL: -iter 100000";
    PfxNoKey = "PFX_NO_KEY", Refused,
        "The PFX file holds a certificate without its private key.",
        "export it with the private key: certutil -exportPFX, or fleetward-agent guardian export-pfx";
    PfxNoCertificate = "PFX_NO_CERTIFICATE", Refused,
        "The PFX file holds a private key without its certificate.",
        "export both together";
    PfxWeakKey = "PFX_WEAK_KEY", Refused,
        "An RSA key in the PFX file has fewer than 2048 bits.",
        "make a new guardian on the host that the file comes from, and export that guardian";
    PfxUnsupported = "PFX_UNSUPPORTED", Refused,
        "The PFX file uses an algorithm, a key or a form that Fleetward does not read: elliptic curves, RSA for PSS signatures alone or of more than 8192 bits, BER instead of DER, or a certificate that is not canonical DER.",
        "export it again with AES-256 and SHA-256 or with 3DES and SHA-1, and RSA keys of 2048 to 8192 bits";
    PfxIncomplete = "PFX_INCOMPLETE", Refused,
        "The files hold only one half of a guardian. A guardian has a signing and an encryption certificate.",
        "give both files in one command: fleetward-agent guardian import-pfx VMSigning.pfx VMEncryption.pfx";
    PfxNotAPair = "PFX_NOT_A_PAIR", Refused,
        "The certificates in the files do not belong to one guardian: there are two of one kind or for one key, they are of different hosts, or one is neither for signing nor for encryption.",
        "give the two files of one guardian and no other files";
    ClocksApart = "CLOCKS_APART", Refused,
        "The clocks of the two hosts differ by more than the limit, so certificates and audit records cannot be trusted.",
        "synchronise the clocks (chrony or systemd-timesyncd) and try again";
    LibvirtTooOld = "LIBVIRT_TOO_OLD", Refused,
        "libvirt on that host is older than the supported minimum, or older than on the host where the VM runs.",
        "upgrade libvirt on the destination first";
    QemuTooOld = "QEMU_TOO_OLD", Refused,
        "QEMU on that host is older than the supported minimum, or older than on the host where the VM runs. A VM's memory moves only to the same or a newer QEMU.",
        "upgrade QEMU on the destination first";
    SwtpmTooOld = "SWTPM_TOO_OLD", Refused,
        "swtpm on that host is older than the supported minimum, or swtpm or its library, libtpms, is older than what last wrote the VM's TPM. An older one cannot read the TPM state of a newer one; libtpms decides the format, also where swtpm's version is equal.",
        "upgrade swtpm and libtpms on the destination first";
    SwtpmMissing = "SWTPM_MISSING", Refused,
        "swtpm is not installed on that host, so no VM with a TPM can run there.",
        "on that host: apt-get install swtpm swtpm-tools";
    MachineMissing = "MACHINE_MISSING", Refused,
        "QEMU on that host does not offer the VM's machine type.",
        "upgrade QEMU on the destination";
    CpuIncompatible = "CPU_INCOMPATIBLE", Refused,
        "The host's CPU lacks features that the running VM uses.",
        "migrate the VM while it is stopped (--offline), or choose a host with the same or a newer CPU";
    AcceleratorDiffers = "ACCELERATOR_DIFFERS", Refused,
        "One host runs VMs with KVM, the other emulates their CPUs. A running VM cannot move between them.",
        "migrate the VM while it is stopped (--offline)";
    SecureBootMissing = "SECURE_BOOT_MISSING", Refused,
        "The host has no UEFI firmware with Secure Boot and enrolled keys.",
        "on that host: apt-get install ovmf";
    FirmwareDiffers = "FIRMWARE_DIFFERS", Refused,
        "The UEFI firmware that the running VM was started with is not on that host, or is one of another size. A running VM takes its firmware along, into flash of the size of the host's own.",
        "install the same version of the firmware on the destination: apt-get install ovmf";
    HostUnconfined = "HOST_UNCONFINED", Refused,
        "libvirt on that host confines its VMs by neither AppArmor nor SELinux. QEMU and swtpm of all VMs run as the same two users there, so a guest that takes over its QEMU can read the disks of the others.",
        "on that host: apt-get install -y apparmor && sed -i '/^ *security_driver/d; $a security_driver = \"apparmor\"' /etc/libvirt/qemu.conf && systemctl restart apparmor libvirtd; the VMs that run there are confined when they start again";
    SecureBootOutdated = "SECURE_BOOT_OUTDATED", Refused,
        "The VM's firmware trusts Microsoft's certificates of 2011, which have run out, and not those of 2023. What boots today goes on booting; media and loaders that only the new ones sign do not boot, and updates of the lists are refused.",
        "see what it costs, then add them while the VM is stopped: fleetward secure-boot enroll {vm} --dry-run",
        "see which VMs it concerns: fleetward secure-boot status";
    LoaderNotTrusted = "LOADER_NOT_TRUSTED", Refused,
        "The VM's firmware enforces Secure Boot, and refuses its guest's loader: it is signed by no key that the firmware trusts, or not at all.",
        "give it a loader that its firmware trusts; to see what it trusts: fleetward secure-boot status {vm}",
        "give it a loader that its firmware trusts; secure-boot status shows what that is";
    SecureBootCustom = "SECURE_BOOT_CUSTOM", Refused,
        "None of the key exchange keys of the VM's firmware is Microsoft's: somebody enrolled keys of their own, and nothing is added to them.",
        "add the certificates with the tools that manage those keys; to see what the VM trusts: fleetward secure-boot status {vm}",
        "add the certificates with the tools that manage those keys";
    SecureBootNothingKept = "SECURE_BOOT_NOTHING_KEPT", Refused,
        "No certificates were enrolled in the VM's firmware, or its former ones are back, so there is nothing to bring back.",
        "see what the VM trusts: fleetward secure-boot status {vm}",
        "see what the VM trusts with secure-boot status";
    UefiVariablesUnreadable = "UEFI_VARIABLES_UNREADABLE", Refused,
        "The VM's UEFI variables are not of the form that edk2 writes, so nothing in them is changed.",
        "see why: fleetward secure-boot status {vm}",
        "see why with secure-boot status";
    PoolMissing = "POOL_MISSING", Refused,
        "The host has no pool of that name.",
        "add the pool to /etc/fleetward/agent.toml on that host and restart its agent";
    PoolPathDiffers = "POOL_PATH_DIFFERS", Refused,
        "Both hosts have the pool, but in different directories. The disks of a running VM keep their paths.",
        "give the pool the same path on both hosts, or migrate the VM while it is stopped (--offline)";
    NetworkMissing = "NETWORK_MISSING", Refused,
        "The host has no network of that name, or the network cannot do what the network card asks for.",
        "fleetward network list tells which hosts have it; add it to /etc/fleetward/agent.toml on that host and restart its agent";
    MacTaken = "MAC_TAKEN", Refused,
        "Another network card of the fleet has that hardware address.",
        "leave the address out to get a new one, or choose another";
    DeviceMissing = "DEVICE_MISSING", NotFound,
        "The VM has no device of that name.",
        "see which devices the VM has: fleetward vm show {vm}",
        "see which devices the VM has";
    DeviceHeld = "DEVICE_HELD", Refused,
        "The guest of a running VM does not let go of a disk or of a medium: it uses it, or it does not react yet.",
        "let the guest unmount it and try again, or stop the VM first: fleetward vm stop {vm}",
        "let the guest unmount it and try again, or stop the VM first";
    NoSpace = "NO_SPACE", Refused,
        "The pool does not have enough free space.",
        "free some space, or choose another host or pool";
    NoMemory = "NO_MEMORY", Refused,
        "The host does not have enough free memory for the VM.",
        "stop a VM on that host, or choose another host";
    NameTaken = "NAME_TAKEN", Refused,
        "The name is already in use.",
        "choose another name";
    UuidTaken = "UUID_TAKEN", Refused,
        "The host already has a domain with the VM's uuid.",
        "inspect the domain with virsh on that host; it may be left from an earlier migration";
    VmRunning = "VM_RUNNING", Refused,
        "The VM is running, but the operation needs a stopped VM.",
        "fleetward vm stop {vm}",
        "stop the VM";
    VmNotRunning = "VM_NOT_RUNNING", Refused,
        "The VM is not running, but the operation needs a running VM.",
        "fleetward vm start {vm}",
        "start the VM";
    NoScreen = "NO_SCREEN", Refused,
        "The VM has no graphics device that can be seen from outside: somebody took it out of its definition.",
        "use the serial console: fleetward vm console {vm}",
        "use the serial console, with fleetward vm console";
    TooManyViewers = "TOO_MANY_VIEWERS", Refused,
        "As many viewers as a VM's screen takes are open.",
        "close one of them; the audit log says who opened them: fleetward audit --vm {vm}",
        "close one of them; fleetward audit says who opened them";
    ViewerMissing = "VIEWER_MISSING", Refused,
        "No program that shows a VM's screen is installed on this machine.",
        "install one: apt-get install virt-viewer; or leave out --view, and use any VNC viewer on the printed address";
    VmStateWrong = "VM_STATE_WRONG", Refused,
        "The operation is not possible in the present state of the VM.",
        "fleetward vm show {vm}",
        "see the state of the VM with fleetward vm show";
    VmNotManaged = "VM_NOT_MANAGED", Refused,
        "Fleetward did not make the domain. It shows the domain but never changes it.",
        "manage it with virsh";
    SpecNewer = "SPEC_NEWER", Refused,
        "A newer program wrote the VM's specification; a program that does not know all of it shows the VM and changes nothing.",
        "upgrade Fleetward on the VM's host and on the controller to the newest version that is in use";
    AgentTooOld = "AGENT_TOO_OLD", Refused,
        "The agent of that host is too old for what the VM uses.",
        "upgrade that host's agent: install this version of fleetward-agent on host {host} and restart it",
        "upgrade that host's agent";
    StoreNewer = "STORE_NEWER", Refused,
        "A newer controller wrote the store in the data directory; this one would misread it, and has changed nothing.",
        "start the newer controller on this data directory again, or restore a backup that was made with this version";
    VmBusy = "VM_BUSY", Refused,
        "Another job is working on the VM.",
        "wait for it: fleetward job watch {job}; or cancel it: fleetward job cancel {job}",
        "see the job: fleetward job list --active";
    VmDisputed = "VM_DISPUTED", Refused,
        "Two hosts say that they have this VM, or two VMs have this name. Nothing is done with it, nor with its keys and copies, until an administrator has said which is right.",
        "see what each of them has: fleetward vm show {vm}; then name the host that is right: fleetward vm settle {vm} --host {host}",
        "see what each of them has with fleetward vm show; then name the host that is right with fleetward vm settle";
    TpmStateMissing = "TPM_STATE_MISSING", Refused,
        "The VM has a key protector, but its TPM state file is missing. Fleetward never makes a new TPM in its place.",
        "restore another version; this lists them: fleetward tpm history {vm}",
        "restore another version; fleetward tpm history lists them";
    TpmStateDamaged = "TPM_STATE_DAMAGED", Refused,
        "The VM's TPM state file is not whole: it is empty, cut short, or no TPM state, as after a power cut.",
        "restore another version; this lists them: fleetward tpm history {vm}",
        "restore another version; fleetward tpm history lists them";
    TpmStateOutdated = "TPM_STATE_OUTDATED", Refused,
        "The VM's TPM state file is one from before: its host has seen a later one, as after a power cut or where somebody has put an old file in its place.",
        "restore the newest version; this lists them: fleetward tpm history {vm}",
        "restore the newest version; fleetward tpm history lists them";
    TpmStateUnreadable = "TPM_STATE_UNREADABLE", Refused,
        "The TPM state does not open: it is damaged, is encrypted with another key than the one in its key protector, or its file has an owner or a mode with which swtpm cannot open it.",
        "restore another version; this lists them: fleetward tpm history {vm}",
        "restore another version; fleetward tpm history lists them";
    TpmLockoutGuarded = "TPM_LOCKOUT_GUARDED", Refused,
        "The guest has set a password for clearing its TPM's lockout, so only the guest can clear it.",
        "in the guest, with that password: tpm2_dictionarylockout --clear-lockout; or wait: fleetward tpm status {vm} shows the counter",
        "in the guest, with that password: tpm2_dictionarylockout --clear-lockout; or wait";
    TpmNotAnswering = "TPM_NOT_ANSWERING", Refused,
        "The process of the running VM's TPM (swtpm) was stopped, has ended under the guest, or does not answer. A VM that moves would stand still at the switch-over.",
        "start the VM anew, its TPM's state is on the disk: fleetward vm restart {vm} --force",
        "start the VM anew, its TPM's state is on the disk";
    QemuNotAnswering = "QEMU_NOT_ANSWERING", Refused,
        "The process of the running VM (QEMU) was stopped, by a signal or a debugger, or waits in the kernel, as when its storage is gone, or does not answer libvirt. Its guest stands still until it is let go on, or until what it waits for is back.",
        "see why, and what lets it go on: fleetward vm show {vm}; or cut its power: fleetward vm stop {vm} --force",
        "see why with fleetward vm show; or cut its power with fleetward vm stop --force";
    AuditDamaged = "AUDIT_DAMAGED", Refused,
        "The host's audit log is damaged at its end. No key is used on the host, since no record of it could follow.",
        "on that host, as root, close the log with a note and begin a new one: fleetward-agent audit repair --reason 'disk failed'";
    EscrowCorrupt = "ESCROW_CORRUPT", Refused,
        "A copy of a VM's TPM is damaged, incomplete, or of another VM. Fleetward never restores such a copy.",
        "use another version; this lists them: fleetward tpm history {vm}",
        "use another version; fleetward tpm history lists them";
    TpmIdentityChanges = "TPM_IDENTITY_CHANGES", Refused,
        "A warning: the VM gets another TPM than the one that its disk is sealed to.",
        "have the recovery keys ready; a clone made with --tpm copy has the same TPM, a VM made from a template never has";
    TpmIdentityTwice = "TPM_IDENTITY_TWICE", Refused,
        "A warning: two VMs have the same TPM identity.",
        "delete one of the two, or clone with --tpm new";
    VmHasNoTpm = "VM_HAS_NO_TPM", Refused,
        "The VM has no TPM.",
        "choose --tpm new or --tpm none";
    TemplateNotFound = "TEMPLATE_NOT_FOUND", NotFound,
        "There is no template with that name.",
        "fleetward template list";
    VmNotLost = "VM_NOT_LOST", Refused,
        "The VM's host answers, or a copy of the VM still runs. If the VM were rebuilt on another host, it would run twice.",
        "migrate it: fleetward vm migrate {vm} --to {host}; or, if its present host is gone for good, make sure that it is powered off",
        "migrate the VM; or, if its present host is gone for good, make sure that it is powered off";
    DiskMissing = "DISK_MISSING", Refused,
        "A disk of the VM is not on that host.",
        "choose a host that shares the VM's pool, or copy the disk to the path in the message";
    EscrowMissing = "ESCROW_MISSING", Refused,
        "The controller has no copy of the VM's TPM, so the VM cannot be rebuilt without its host.",
        "bring the host back; with a backup of its TPM state, docs/emergency-recovery.md shows another way";
    EscrowOutdated = "ESCROW_OUTDATED", Refused,
        "The newest copy of the VM's TPM is older than the state that its host last reported, so it lacks what the guest has stored in its TPM since then.",
        "bring the host back; or accept the copy: fleetward vm recover {vm} --to {host} --yes",
        "bring the host back; or accept the copy with fleetward vm recover and --yes";
    SameHost = "SAME_HOST", Refused,
        "The VM already is on that host.",
        "choose another host";
    HostDrained = "HOST_DRAINED", Refused,
        "The host is drained and accepts no VMs.",
        "fleetward host resume {host}",
        "end the drain with fleetward host resume, or choose another host";
    HostNotEmpty = "HOST_NOT_EMPTY", Refused,
        "The host still has VMs.",
        "fleetward host drain {host}, and try again when the host is empty",
        "drain the host with fleetward host drain, and try again when it is empty";
    NoHostFits = "NO_HOST_FITS", Refused,
        "No host can run the VM. The message gives the reason for each host.",
        "remove the reason for one of the hosts, or ask for less CPU, memory or disk";
    ProfileRefuses = "PROFILE_REFUSES", Refused,
        "The VM does not meet a requirement of its profile.",
        "meet the named requirement, or choose another profile";
    DefinitionEdited = "DEFINITION_EDITED", Refused,
        "The VM's definition was edited outside Fleetward, and the request contradicts that edit.",
        "see the reason; virsh edit on the VM's host changes the definition";
    NameDiffers = "NAME_DIFFERS", Refused,
        "The VM's domain has another name on its host than in Fleetward, because it was renamed there.",
        "stop the VM, and give both one name with fleetward vm rename";
    ImageInvalid = "IMAGE_INVALID", Refused,
        "The file is not a usable disk image: it is no disk image, its format is wrong, or it refers to other files.",
        "see the reason; a whole file of another format is made usable by qemu-img convert -O qcow2";
    ImageNeedsOtherFiles = "IMAGE_NEEDS_OTHER_FILES", Refused,
        "The content of the disk image lies in several files, or builds on another one; an image is one file.",
        "see the reason; qemu-img convert -O qcow2 makes one file where all of them are";
    ImageSeveralDisks = "IMAGE_SEVERAL_DISKS", Refused,
        "The archive has several disks or files, or none of the name that was given; an image is one disk.",
        "import it once for each disk that you need, with --disk and its name from the reason";
    ImageOverLimits = "IMAGE_OVER_LIMITS", Refused,
        "Converting the file takes more memory, time or room than a conversion may use, as files do that are made to do harm.",
        "if you trust the file, convert it yourself with qemu-img convert -O qcow2 and import that";
    NoConverter = "NO_CONVERTER", Refused,
        "No host can convert the file now.",
        "see the reasons; a host needs the Debian packages bubblewrap and qemu-utils, and room; fleetward host list shows which hosts answer";
    DigestDiffers = "DIGEST_DIFFERS", Refused,
        "The file has another SHA-256 than was given with --sha256, so it was not imported.",
        "compare the number with the publisher's, and fetch the file again";
    SeedInvalid = "SEED_INVALID", Refused,
        "What the guest is to find at its first boot (SSH keys, user data, answer file, address) cannot be used as it is.",
        "see the reason, which names file and line";
    ImageInUse = "IMAGE_IN_USE", Refused,
        "The image is in drives of VMs, now or from their next start.",
        "empty the drives that the message names";
    HostCertificateUnusable = "HOST_CERTIFICATE_UNUSABLE", Refused,
        "A host's certificate has run out, was lost or is refused. Its VMs run on, and it keeps its guardian.",
        "fleetward host rejoin {host}; then on the host, with the token: fleetward-agent rejoin",
        "fleetward host rejoin, on the controller; then on the host, with the token: fleetward-agent rejoin";
    AuthorityEnds = "AUTHORITY_ENDS", Refused,
        "The fleet's certificate authority ends in less than two years, has ended, or begins in the future because the fleet was made under a wrong clock. It is made for 20 years and is not renewed; certificates of the controller and the hosts end with it. VMs run on.",
        "set the clock if it is wrong; otherwise make another fleet in time, on the controller: fleetward controller run --data /var/lib/fleetward-next --listen 0.0.0.0:7450, and let the hosts join it as the user guide says (\"When the fleet's authority ends\")";
    HostExpelled = "HOST_EXPELLED", Refused,
        "The host was expelled from the fleet: its certificates and its guardians are refused for good.",
        "install the host anew, and then: fleetward host token {host}",
        "install the host anew, and then make a token for it with fleetward host token";
    TokenUsed = "TOKEN_USED", Refused,
        "The join token was already used.",
        "make a new token: fleetward host token {host}",
        "make a new token with fleetward host token";
    TokenExpired = "TOKEN_EXPIRED", Refused,
        "The join token has expired.",
        "make a new token: fleetward host token {host}",
        "make a new token with fleetward host token";
    TokenInvalid = "TOKEN_INVALID", Refused,
        "The join token is damaged, was changed, or is of another fleet.",
        "copy the whole token, or make a new one with fleetward host token";
    AlreadyJoined = "ALREADY_JOINED", Refused,
        "This machine, or another machine with that name, has already joined.",
        "to join again, remove the host first: fleetward host remove {host}",
        "to join again, remove the host first with fleetward host remove";
    ConfirmationNeeded = "CONFIRMATION_NEEDED", Usage,
        "The command destroys or weakens something, and there is no terminal to ask on.",
        "add --yes to confirm";
    StaleGeneration = "STALE_GENERATION", Refused,
        "The request is older than the latest one that the host has carried out for this VM.",
        "nothing to do: a newer job has taken over";
    JobNotCancellable = "JOB_NOT_CANCELLABLE", Refused,
        "The job has ended, or has passed its point of no return.",
        "fleetward job show {job}",
        "see the job with fleetward job show";
    CheckUnavailable = "CHECK_UNAVAILABLE", Refused,
        "A check could not be made, so it counts as failed.",
        "remove the reason that the message gives; usually a host does not answer";
    InvalidArgument = "INVALID_ARGUMENT", Usage,
        "An argument is malformed or out of range.",
        "correct the argument that the message names";
    InvalidRequest = "INVALID_REQUEST", Usage,
        "The request body does not match the schema of this endpoint.",
        "see the OpenAPI description under /v1/openapi.json";
    TooLarge = "TOO_LARGE", Usage,
        "The request is larger than the limit.",
        "send a smaller request";
    VmNotFound = "VM_NOT_FOUND", NotFound,
        "There is no VM with that name.",
        "fleetward vm list";
    AdminNotFound = "ADMIN_NOT_FOUND", NotFound,
        "There is no certificate of an administrator of that name, or with that serial number.",
        "fleetward admin list";
    ApiTokenNotFound = "API_TOKEN_NOT_FOUND", NotFound,
        "There is no API token of that name: it was never made, or is revoked.",
        "fleetward token list";
    UserNotFound = "USER_NOT_FOUND", NotFound,
        "There is no user of that name.",
        "fleetward user list";
    AlertTargetNotFound = "ALERT_TARGET_NOT_FOUND", NotFound,
        "There is no alert target of that name.",
        "fleetward alert list";
    HostNotFound = "HOST_NOT_FOUND", NotFound,
        "There is no host with that name.",
        "fleetward host list";
    ImageNotFound = "IMAGE_NOT_FOUND", NotFound,
        "There is no image with that name.",
        "fleetward image list";
    EkNotFound = "EK_NOT_FOUND", NotFound,
        "The fleet has never seen an EK certificate, nor an EK authority, with that SHA-256.",
        "see those that there are: fleetward ek list, fleetward ek authorities";
    JobNotFound = "JOB_NOT_FOUND", NotFound,
        "There is no job with that id.",
        "fleetward job list";
    GuardianNotFound = "GUARDIAN_NOT_FOUND", NotFound,
        "There is no guardian with that id.",
        "fleetward guardian list";
    TpmVersionNotFound = "TPM_VERSION_NOT_FOUND", NotFound,
        "The controller has no such version of the VM's TPM.",
        "fleetward tpm history {vm}",
        "see the versions with fleetward tpm history";
    CodeNotFound = "CODE_NOT_FOUND", NotFound,
        "There is no error code with that name.",
        "this lists all codes: fleetward explain";
    NotFound = "NOT_FOUND", NotFound,
        "There is nothing at that address.",
        "see the OpenAPI description under /v1/openapi.json";
    ControllerUnreachable = "CONTROLLER_UNREACHABLE", Unreachable,
        "The controller does not answer.",
        "start it with fleetward controller run, or give its address with --socket or --controller";
    HostUnreachable = "HOST_UNREACHABLE", Unreachable,
        "The host does not answer.",
        "check that its agent runs and that its port is reachable: fleetward host show {host}",
        "check that the host's agent runs and that its port is reachable";
    AlertTargetFailing = "ALERT_TARGET_FAILING", Unreachable,
        "An alert target does not take what is sent to it. Alerts for it are kept and tried again, at most fifteen minutes apart.",
        "see why, and try it: fleetward alert list";
    DebtsUnpaid = "DEBTS_UNPAID", Unreachable,
        "The host was away while jobs ended without it. It first removes what they left on it; until then it is asked for nothing else.",
        "wait some seconds; what it cannot remove, and why, is shown by: fleetward host show {host}",
        "wait some seconds; `fleetward host show` tells what the host cannot remove, and why";
    LinkLost = "LINK_LOST", Unreachable,
        "The connection between the two hosts broke.",
        "check that the hosts reach each other on the agents' port";
    CredentialsMissing = "CREDENTIALS_MISSING", Denied,
        "The request carries no credentials.",
        "use a client certificate of this fleet, an API token (--token-file), a session, or the local socket";
    CredentialsRefused = "CREDENTIALS_REFUSED", Denied,
        "The credentials are of another fleet, were revoked, or have expired.",
        "get a certificate or an API token from this fleet's controller: fleetward admin create, fleetward token create; with a session, log in again";
    GroupsLimited = "GROUPS_LIMITED", Denied,
        "The caller's role holds in some groups of hosts alone, and the request is about the whole fleet or another group.",
        "ask an administrator: `fleetward user set` and `fleetward token create` say in which groups a role holds";
    LoginRefused = "LOGIN_REFUSED", Denied,
        "The name or the password is wrong. Which of them is not said.",
        "try again; an administrator gives another password with `fleetward user set`";
    LoginTooOften = "LOGIN_TOO_OFTEN", Denied,
        "Too many wrong passwords came from this address. Others, and the same user elsewhere, are not held up.",
        "wait as long as the answer says, and try again";
    OriginRefused = "ORIGIN_REFUSED", Denied,
        "A browser sent the request for a page that is not the controller's own, or did not say for which.",
        "open the controller's own address; programs use an API token instead of a session: fleetward token create";
    RoleMissing = "ROLE_MISSING", Denied,
        "The caller's role does not allow the request.",
        "ask an administrator for the role that the message names";
    Cancelled = "CANCELLED", Failed,
        "The job was cancelled, and its completed steps were undone.",
        "start it again if you want it";
    DownloadFailed = "DOWNLOAD_FAILED", Failed,
        "The image could not be fetched from its address, wholly or at all; nothing was imported.",
        "see the reason; the address must be reached from the computer on which the command runs";
    HypervisorFailed = "HYPERVISOR_FAILED", Failed,
        "libvirt or QEMU reported an error.",
        "see the message and the libvirt log on that host";
    TpmFailed = "TPM_FAILED", Failed,
        "swtpm could not make or use a TPM.",
        "see the message and /var/log/swtpm on that host";
    DirectoryExposed = "DIRECTORY_EXPOSED", Refused,
        "Somebody else than root may make, rename or remove files in a directory that only root needs to write, such as a pool.",
        "give the directory that the message names to root, and take the others' permission to write: chown root:root and chmod go-w";
    ReportTooLarge = "REPORT_TOO_LARGE", Failed,
        "A host reports more of itself, or of one VM, than is taken. Its VM is shown as it was last seen, and other hosts are not concerned.",
        "see what makes it so large on that host: virsh dumpxml of the VM that the message names";
    FileUnexpected = "FILE_UNEXPECTED", Failed,
        "Where a file of the VM should be, in a directory that QEMU or swtpm may write, lies something else: a link, a pipe, a device, a directory, or a file of another user or size. It was not used.",
        "see the reason, which names it; look at who put it there, and move it away on that host";
    MigrationFailed = "MIGRATION_FAILED", Failed,
        "The migration failed. The VM is still on its source host.",
        "see the reason; this checks again: fleetward vm migrate {vm} --to {host} --check",
        "see the reason; fleetward vm migrate --check checks again";
    ShutdownTimedOut = "SHUTDOWN_TIMED_OUT", Failed,
        "The guest did not shut down in time and is still running.",
        "shut it down from inside, or cut its power: fleetward vm stop {vm} --force",
        "shut it down from inside, or cut its power with fleetward vm stop --force";
    JobFailed = "JOB_FAILED", Failed,
        "A job failed, and none of its kind for the same object has succeeded since. The alert ends by itself after a day.",
        "see its steps and their failures: fleetward job show {job}",
        "see its steps and their failures with fleetward job show";
    HostWarning = "HOST_WARNING", Failed,
        "The agent of a host warns of something on that host: an unsealed guardian store, a file of somebody else, a program that is too old.",
        "see the warning: fleetward host show {host}",
        "see the warning with fleetward host show";
    VmGone = "VM_GONE", Failed,
        "The VM was on a host that was installed anew, and is on no host now.",
        "build it again from its copy: fleetward vm recover {vm}",
        "build it again from its copy with fleetward vm recover";
    StoreFailed = "STORE_FAILED", Failed,
        "The controller's store could not be read or written.",
        "see the controller's log; check that its disk has free space";
    AuditBroken = "AUDIT_BROKEN", Failed,
        "The audit log's chain is broken: a record was changed, removed or reordered.",
        "keep the file as evidence and compare it with a backup";
    Internal = "INTERNAL", Failed,
        "Fleetward is in a state that it should never reach.",
        "report it, with the log of the service that reported it";
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
    /// An error with the code's usual fix, without names until [`Self::about`] puts them in.
    pub fn new(code: ErrorCode, what: impl Into<String>) -> Self {
        Self {
            code,
            what: what.into(),
            because: String::new(),
            fix: code.usual_fix().general.to_owned(),
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

    /// Puts the names of the objects that the error is about into its usual fix. A fix that was written for this error
    /// stays.
    #[must_use]
    pub fn about(mut self, names: &Names) -> Self {
        name_usual_fix(self.code, &mut self.fix, names);
        for finding in &mut self.findings {
            name_usual_fix(finding.code, &mut finding.fix, names);
        }
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
        Self::blocking(code, what, code.usual_fix().general)
    }

    /// Puts the names of the objects that the finding is about into its usual fix.
    #[must_use]
    pub fn about(mut self, names: &Names) -> Self {
        name_usual_fix(self.code, &mut self.fix, names);
        self
    }
}

/// Replaces a usual fix without names. A fix with a placeholder comes from an agent or a controller that does not fill slots.
fn name_usual_fix(code: ErrorCode, text: &mut String, names: &Names) {
    let usual = code.usual_fix();
    if *text == usual.general || fix::placeholder(text).is_some() {
        let named = usual.with(names);
        *text = named.unwrap_or_else(|| usual.general.to_owned());
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
            let fix = code.usual_fix();
            assert!(!fix.general.is_empty(), "{code}");
            assert!(
                !fix.general.contains('{'),
                "{code}: the fix without names has a slot"
            );
            for text in [fix.named, fix.general] {
                assert_eq!(fix::placeholder(text), None, "{code}: {text}");
            }
            let names = Names::default().vm("web").host("a").job("3f2a");
            assert!(fix.with(&names).is_some(), "{code}: an unknown slot");
            assert_eq!(code.as_str().parse(), Ok(*code));
        }
    }

    #[test]
    fn a_usual_fix_gets_the_names_and_a_fix_of_its_own_stays() {
        let names = Names::default().vm("web");
        let usual = Failure::new(ErrorCode::VmRunning, "VM web is running");
        assert_eq!(usual.fix, "stop the VM");
        assert_eq!(usual.clone().about(&names).fix, "fleetward vm stop web");
        let own = usual.fix("fleetward vm stop web --force");
        assert_eq!(own.clone().about(&names), own);
        let of_an_old_agent = own.fix("fleetward vm stop NAME");
        assert_eq!(of_an_old_agent.about(&names).fix, "fleetward vm stop web");
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

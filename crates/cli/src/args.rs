//! The definition of the command line: every command, option and help text. Completion, man pages and the reference
//! page are generated from it.
//!
//! Arguments are parsed into the types of the model, so an invalid name or size is a usage error here.

mod alert;
mod ek;
mod guardian;
mod host;
mod network;
pub(crate) mod parse;
mod secure_boot;
pub(crate) mod seed;
mod token;
mod tpm;
mod user;

pub use alert::{AlertCommand, MailArgs, TargetArgs, WebhookArgs};
pub use ek::EkCommand;
pub use guardian::{GrantArgs, GuardianCommand, RotateArgs};
pub use host::HostCommand;
pub use network::{NetworkCommand, NicCommand, NicHow};
pub use secure_boot::{SecureBootChange, SecureBootCommand};
pub use token::TokenCommand;
pub use tpm::{TpmChange, TpmCommand, TpmHow, Which};
pub use user::UserCommand;

use crate::commands::vm_disk::parse_disk;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use fleetward_api::controller::Role;
use fleetward_model::certificate::Serial;
use fleetward_model::change::DiskAsked;
use fleetward_model::change::NicAsked;
use fleetward_model::guardian::TrustMode;
use fleetward_model::machine::BootFirst;
use fleetward_model::spec::Description;
use fleetward_model::vm::{Profile, VmState};
use fleetward_model::{
    ByteSize, ErrorCode, GroupName, HostName, ImageName, LabelKey, PoolName, TemplateName, VmName,
};
use parse::{parse_label, parse_limit, parse_role, parse_since, parse_word};
use seed::SeedArgs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use time::OffsetDateTime;

/// Manages virtual machines with an encrypted TPM across a fleet of hosts.
#[derive(Debug, Parser)]
#[command(
    name = "fleetward",
    version,
    disable_help_subcommand = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 some of several failed, 4 refused by a check, 5 not found, \
                  6 controller or host unreachable, 130 interrupted while waiting (the job continues)."
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// How results are printed on stdout
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", default_value_t = Format::Table)]
    pub output: Format,

    /// Suppresses progress and messages of success
    #[arg(short, long, global = true)]
    pub quiet: bool,

    /// Answers all questions with yes
    #[arg(short, long, global = true)]
    pub yes: bool,

    /// The controller's Unix socket, for administrators on its machine
    #[arg(long, global = true, env = "FLEETWARD_SOCKET", hide_env_values = true, hide_short_help = true, value_name = "PATH",
          default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,

    /// The controller's address, https://HOST:PORT; takes precedence over --socket
    #[arg(
        long,
        global = true,
        env = "FLEETWARD_CONTROLLER",
        hide_env_values = true,
        hide_short_help = true,
        value_name = "URL"
    )]
    pub controller: Option<String>,

    /// Client certificate for --controller, PEM
    #[arg(
        long,
        global = true,
        env = "FLEETWARD_CERT",
        hide_env_values = true,
        hide_short_help = true,
        value_name = "FILE"
    )]
    pub cert: Option<PathBuf>,

    /// Private key of --cert, PEM; not needed if it is in the same file
    #[arg(
        long,
        global = true,
        env = "FLEETWARD_KEY",
        hide_env_values = true,
        hide_short_help = true,
        value_name = "FILE"
    )]
    pub key: Option<PathBuf>,

    /// API token for --controller, instead of a certificate: a file with what `token create` gave
    #[arg(
        long,
        global = true,
        env = "FLEETWARD_TOKEN_FILE",
        hide_env_values = true,
        hide_short_help = true,
        value_name = "FILE"
    )]
    pub token_file: Option<PathBuf>,

    /// Certificate of the fleet's authority for --controller, PEM; with --token-file the one to believe, by default those that this
    /// machine believes
    #[arg(
        long,
        global = true,
        env = "FLEETWARD_CA",
        hide_env_values = true,
        hide_short_help = true,
        value_name = "FILE"
    )]
    pub ca: Option<PathBuf>,
}

/// Default directory of the controller's data.
pub const DEFAULT_DATA: &str = "/var/lib/fleetward-controller";
/// Default path of the controller's Unix socket.
pub const DEFAULT_SOCKET: &str = "/var/lib/fleetward-controller/controller.sock";

/// Form of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table, for terminals
    Table,
    /// One JSON document
    Json,
    /// One YAML document
    Yaml,
}

/// Form of a list of certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    /// A table, for terminals
    Table,
    /// One JSON document
    Json,
    /// One YAML document
    Yaml,
    /// As `certutil -store` prints it
    Certutil,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// The fleet's controller
    #[command(subcommand)]
    Controller(ControllerCommand),
    /// Hosts of the fleet
    #[command(subcommand)]
    Host(HostCommand),
    /// Disk images and installer media
    #[command(subcommand)]
    Image(ImageCommand),
    /// Networks that hosts offer to VMs
    #[command(subcommand)]
    Network(NetworkCommand),
    /// Templates, from which VMs are made; a template has no machine's identity
    #[command(subcommand)]
    Template(TemplateCommand),
    /// Virtual machines
    #[command(subcommand)]
    Vm(VmCommand),
    /// TPMs of VMs: enable, disable, restore, roll
    #[command(subcommand)]
    Tpm(TpmCommand),
    /// Secure Boot of VMs: which of Microsoft's certificates they trust
    #[command(subcommand)]
    SecureBoot(SecureBootCommand),
    /// Checks whether VMs can move to hosts, and shows what prevents it
    ///
    /// Without arguments: all VMs and all hosts, in a small fleet. With --by-host: counts for each host. With a VM: that VM and all hosts. With a VM and --to: every finding,
    /// and exit code 4 if the VM cannot move there. Nothing is changed.
    Check(CheckArgs),
    /// Jobs: durable operations with steps
    #[command(subcommand)]
    Job(JobCommand),
    /// The audit log: every use of a key
    Audit(AuditArgs),
    /// Guardians: the certificates that TPM keys are wrapped for
    #[command(subcommand)]
    Guardian(GuardianCommand),
    /// Certificates of TPMs' endorsement keys (EK): who made a TPM
    #[command(subcommand)]
    Ek(EkCommand),
    /// Client certificates for remote administrators
    #[command(subcommand)]
    Admin(AdminCommand),
    /// API tokens for programs
    #[command(subcommand)]
    Token(TokenCommand),
    /// People who log in with a password
    #[command(subcommand)]
    User(UserCommand),
    /// Alerts: what needs somebody now, and where that is sent to
    #[command(subcommand)]
    Alert(AlertCommand),
    /// An overview of the fleet
    Status,
    /// Explains an error code and its fix; without a code, lists all
    Explain {
        /// For example KEY_NOT_GRANTED
        code: Option<String>,
    },
    /// Prints a completion script for a shell
    Completion { shell: Shell },
    /// Writes man pages
    Man {
        /// Directory for the pages; created if it is missing
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub enum ControllerCommand {
    /// Runs the controller until it is told to end (SIGTERM)
    Run(ControllerRun),
    /// Rebuilds the inventory from all hosts, after the controller's database was lost
    Rebuild,
}

#[derive(Debug, Clone, Args)]
pub struct ControllerRun {
    /// Directory of database, authority and images
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA)]
    pub data: PathBuf,
    /// Address for agents and remote administrators
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:7440")]
    pub listen: SocketAddr,
    /// Address in join tokens, at which hosts reach the controller; default: that of --listen
    #[arg(long, value_name = "ADDR:PORT")]
    pub advertise: Option<String>,
    /// How TPM keys are wrapped for the hosts of a group: `auto`, by jobs automatically; `manual`, only by `guardian
    /// grant` and PFX files. The controller remembers it
    #[arg(long, value_name = "auto|manual")]
    pub trust: Option<TrustMode>,
    /// Address for people who log in, and programs with API tokens; without it there is no such listener
    #[arg(long, value_name = "ADDR:PORT")]
    pub console: Option<SocketAddr>,
    /// Certificate of that listener, PEM, read again when it changes; without it the controller makes one
    #[arg(long, value_name = "FILE", requires_all = ["console", "console_key"])]
    pub console_cert: Option<PathBuf>,
    /// Private key of --console-cert, PEM
    #[arg(long, value_name = "FILE", requires = "console_cert")]
    pub console_key: Option<PathBuf>,
    /// Time between two looks for what needs somebody now, 1s to 1h; longer where a look takes more than a fiftieth of it
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = parse::parse_alert_every)]
    pub alert_every: Duration,
    /// Number of versions to keep of each VM's TPM, 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub tpm_versions: u32,
    /// Days after which a version is removed, at most 36500; the newest version of each TPM always stays
    #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u32).range(..=36_500))]
    pub tpm_days: u32,
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Uploads a disk image or an installer medium; a host converts what comes from other systems
    Import {
        name: ImageName,
        /// A file here, or an http(s) address, which this computer fetches
        file: PathBuf,
        /// What the file must be; what it is, is detected from its content
        #[arg(long, value_enum)]
        format: Option<ImageFormat>,
        /// Which disk of an archive that has several
        #[arg(long, value_name = "FILE")]
        disk: Option<String>,
        /// The SHA-256 that the file must have
        #[arg(long, value_name = "HEX", value_parser = parse_sha256)]
        sha256: Option<String>,
    },
    /// Lists images
    List {
        #[command(flatten)]
        rows: Rows,
    },
    /// Deletes an image; VMs made from it keep their disks
    Delete { name: ImageName },
}

/// Which part of a list.
#[derive(Debug, Args)]
pub struct Rows {
    /// At most so many
    #[arg(long, value_name = "N", value_parser = parse_limit)]
    pub limit: Option<usize>,
    /// Only what follows this one in the list
    #[arg(long, value_name = "NAME")]
    pub after: Option<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ImageFormat {
    Qcow2,
    Raw,
    Iso,
    Vhdx,
    Vhd,
    Vmdk,
    Vdi,
    Ova,
}

fn parse_sha256(text: &str) -> Result<String, String> {
    match text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => Ok(text.to_ascii_lowercase()),
        false => Err("a SHA-256 has 64 hex digits".to_owned()),
    }
}

#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Makes a VM with UEFI, Secure Boot and an encrypted TPM 2.0
    Create(Box<VmCreate>),
    /// Lists VMs
    List {
        /// Only those on this host
        #[arg(long)]
        host: Option<HostName>,
        /// Only those with this label; may be repeated
        #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
        labels: Vec<(LabelKey, String)>,
        /// Only those with, or without, a TPM
        #[arg(long, value_enum)]
        tpm: Option<Switch>,
        /// Only those in this state
        #[arg(long, value_parser = parse_word::<VmState>)]
        state: Option<VmState>,
        /// Only those of this group
        #[arg(long)]
        group: Option<GroupName>,
        /// With what each uses now of processors, memory, disks and network
        #[arg(long)]
        usage: bool,
        #[command(flatten)]
        rows: Rows,
    },
    /// Shows one VM
    Show { name: VmName },
    /// Starts VMs
    Start {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<VmName>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Shuts VMs down through the guest
    Stop {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<VmName>,
        /// Cuts the power instead
        #[arg(long)]
        force: bool,
        /// Time limit for the guest's shutdown, at most 1h
        #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = humantime::parse_duration)]
        deadline: Duration,
        #[command(flatten)]
        wait: Wait,
    },
    /// Shuts VMs down through the guest, and starts them again: changes that wait for the next start take effect
    Restart {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<VmName>,
        /// Cuts the power instead of asking the guest
        #[arg(long)]
        force: bool,
        /// Time limit for the guest's shutdown, at most 1h
        #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = humantime::parse_duration)]
        deadline: Duration,
        #[command(flatten)]
        wait: Wait,
    },
    /// Stops the processors of a running VM; its memory stays
    Pause {
        name: VmName,
        #[command(flatten)]
        wait: Wait,
    },
    /// Lets a paused VM run on
    Resume {
        name: VmName,
        #[command(flatten)]
        wait: Wait,
    },
    /// Deletes stopped VMs with their disks and TPMs
    Delete {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<VmName>,
        /// Leaves the encrypted TPM state on the host
        #[arg(long)]
        keep_tpm_state: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Changes a VM: what the running VM cannot take now waits for its next start
    ///
    /// What is not named stays as it is. `vm show` tells what waits. A TPM is switched, and a VM renamed, only while the VM
    /// is stopped.
    Set(crate::commands::vm_set::VmSet),
    /// Network cards of a VM: add, set, remove
    #[command(subcommand)]
    Nic(NicCommand),
    /// Adds, resizes, moves and removes disks
    #[command(subcommand)]
    Disk(crate::commands::vm_disk::VmDiskCommand),
    /// Puts media into drives and takes them out
    #[command(subcommand)]
    Media(crate::commands::vm_disk::VmMediaCommand),
    /// Gives a stopped VM another name
    ///
    /// A domain that was renamed on its host gets one name with its VM again: NEW may be either of them.
    Rename {
        name: VmName,
        #[arg(value_name = "NEW")]
        new: VmName,
        #[command(flatten)]
        wait: Wait,
    },
    /// Connects the terminal to a VM's serial console; Ctrl-] leaves
    Console { name: VmName },
    /// Shows a VM's screen to any VNC viewer of this machine, until Ctrl-C
    ///
    /// Prints the address for the viewer. The viewer stays connected while the VM moves to another host. Several viewers
    /// can be connected. Opening and closing are recorded in the audit log.
    Screen(crate::commands::vm_screen::VmScreen),
    /// Takes a picture of a VM's screen
    Screenshot(crate::commands::vm_screen::VmScreenshotArgs),
    /// Types on a VM's keyboard, for a US layout
    ///
    /// A word that consists of names of keys, joined with -, presses them together: ctrl-alt-del, alt-tab, f12, enter.
    /// Other words are typed as text, also with --text. Passwords belong on standard input, with --stdin.
    Keys(crate::commands::vm_screen::VmKeysArgs),
    /// Makes a new VM with the disks of a running or stopped VM
    ///
    /// The clone has its own machine uuid, MAC address and generation id, and is stopped. A running source keeps
    /// running: its guest is paused for less than a second, and the clone's disks, UEFI variables and TPM are of that
    /// moment, as after a power cut.
    Clone {
        name: VmName,
        /// The clone's name
        #[arg(value_name = "NEW")]
        new: VmName,
        /// The clone's TPM: a new identity, the same identity under another key, or none; default: new if the source
        /// has a TPM
        #[arg(long, value_enum)]
        tpm: Option<TpmChoice>,
        /// Host of the clone; default: the source's host
        #[arg(long)]
        host: Option<HostName>,
        /// Copies the disks in full; default: the clone builds on the source's disks if both are in one pool
        #[arg(long)]
        full: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Rebuilds a VM of a lost host on another host
    ///
    /// Its TPM and UEFI variables come from the controller's copy. Its disks must be in their pools on the new host:
    /// the same directory, or copies under the same names. The lost host must be off. If it returns, its copy of the
    /// VM is ended, and the disks of that copy stay.
    Recover {
        /// Name or id
        name: String,
        /// The host on which to rebuild the VM
        #[arg(long, value_name = "HOST")]
        to: HostName,
        /// A version of `tpm history`; default: the newest
        #[arg(long = "version", value_name = "V")]
        version: Option<u64>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Says which host has a VM that several hosts say they have
    ///
    /// What the other hosts have of it is stopped and counts for nothing from then on. Its TPM is kept in the history of its
    /// host; its disks stay.
    Settle {
        /// Name or id
        name: String,
        /// The host that is right
        #[arg(long, value_name = "HOST")]
        host: HostName,
    },
    /// Moves VMs to another host; running VMs keep running
    Migrate {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<VmName>,
        /// The destination
        #[arg(long, value_name = "HOST")]
        to: HostName,
        /// Only checks whether it would work, and changes nothing
        #[arg(long, conflicts_with = "no_wait")]
        check: bool,
        /// Moves stopped VMs
        #[arg(long)]
        offline: bool,
        #[command(flatten)]
        wait: Wait,
    },
}

/// The TPM of a clone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TpmChoice {
    /// Another identity, with its own EK certificate
    New,
    /// The source's identity
    Copy,
    /// No TPM
    None,
}

#[derive(Debug, Subcommand)]
pub enum TemplateCommand {
    /// Makes a template of a running or stopped VM; its TPM stays on
    ///
    /// The template has no TPM state. Every VM made from it gets its own TPM.
    Create {
        name: TemplateName,
        /// The VM; it is not changed
        #[arg(long, value_name = "VM")]
        from: VmName,
        /// Includes the VM's UEFI variables: boot entries, and changes of the Secure Boot keys
        #[arg(long)]
        uefi_variables: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Lists templates
    List {
        #[command(flatten)]
        rows: Rows,
    },
    /// Shows one template
    Show { name: TemplateName },
    /// Deletes a template; VMs made from it keep their disks
    Delete { name: TemplateName },
}

#[derive(Debug, Args)]
pub struct VmCreate {
    pub name: VmName,
    /// Image to copy to the system disk; without it the disk is empty
    #[arg(long)]
    pub image: Option<ImageName>,
    /// Template for disks, profile, size and firmware; the VM gets its own TPM
    #[arg(long, value_name = "TEMPLATE", conflicts_with_all = ["image", "iso", "profile"])]
    pub template: Option<TemplateName>,
    /// Size of the system disk, such as 64G; default: the image's or the profile's
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<ByteSize>,
    /// Installer medium to boot from; may be repeated for more drives, such as drivers beside the installer
    #[arg(long, value_name = "IMAGE")]
    pub iso: Vec<ImageName>,
    /// Medium with drivers for virtio, such as virtio-win: one more drive, and virtio disks and network cards
    #[arg(long, value_name = "IMAGE", conflicts_with = "template")]
    pub drivers: Option<ImageName>,
    /// What its firmware tries first: disk, iso or network
    #[arg(
        long,
        value_name = "DEVICE",
        value_parser = parse_word::<BootFirst>,
        default_value_t,
        hide_default_value = true
    )]
    pub boot: BootFirst,
    /// Another disk, empty, such as 100G,pool=fast,bus=scsi; may be repeated
    #[arg(long, value_name = "SIZE[,pool=POOL][,bus=BUS]", value_parser = parse_disk)]
    pub add_disk: Vec<DiskAsked>,
    /// Hardware defaults and requirements: windows-11, windows-server or linux
    #[arg(long, default_value = "linux")]
    pub profile: Profile,
    /// Number of virtual CPUs; default: the profile's
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Memory, such as 4G; default: the profile's
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// Host for the VM; default: the controller chooses
    #[arg(long, conflicts_with = "group")]
    pub host: Option<HostName>,
    /// Group to choose a host from
    #[arg(long)]
    pub group: Option<GroupName>,
    /// Pool of the system disk
    #[arg(long, default_value = "default")]
    pub pool: PoolName,
    /// Makes a VM without a TPM
    #[arg(long)]
    pub no_tpm: bool,
    /// Makes a VM with UEFI but without Secure Boot
    #[arg(long)]
    pub no_secure_boot: bool,
    /// Starts the VM
    #[arg(long)]
    pub start: bool,
    /// A label; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub labels: Vec<(LabelKey, String)>,
    /// A network card in that network; may be repeated. Default: one in the host's default network
    ///
    /// Such as `lan`, or `lan,vlan=7,model=virtio,mac=52:54:00:12:34:56,link=down,filter=clean-traffic`.
    #[arg(
        long = "nic",
        value_name = "NETWORK[,KEY=VALUE]...",
        value_parser = network::parse_nic,
        conflicts_with = "no_nic"
    )]
    pub nics: Vec<NicAsked>,
    /// Makes a VM without a network card
    #[arg(long)]
    pub no_nic: bool,
    /// What people should know about it: any text
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    pub description: Description,
    /// Its host starts it after a boot
    #[arg(long)]
    pub autostart: bool,
    #[command(flatten)]
    pub seed: SeedArgs,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

/// For commands that start jobs.
#[derive(Debug, Clone, Copy, Args)]
pub struct Wait {
    /// Prints the job's id and does not wait for its end
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    pub vm: Option<VmName>,
    /// Only this destination
    #[arg(long, value_name = "HOST")]
    pub to: Option<HostName>,
    /// Checks a move while the VM is stopped
    #[arg(long)]
    pub offline: bool,
    /// Counts for each host how many of its VMs can start there and can move to another host of its group, and what keeps
    /// the others
    #[arg(long, conflicts_with_all = ["vm", "to", "offline"])]
    pub by_host: bool,
    /// Only hosts of this group
    #[arg(long, requires = "by_host")]
    pub group: Option<GroupName>,
    /// At most so many hosts
    #[arg(long, value_name = "N", value_parser = parse_limit, requires = "by_host")]
    pub limit: Option<usize>,
    /// Only hosts that follow this one
    #[arg(long, value_name = "NAME", requires = "by_host")]
    pub after: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum JobCommand {
    /// Lists jobs, the newest first
    List {
        /// Only those that have not ended
        #[arg(long)]
        active: bool,
        /// Only those of this kind: vm-create, vm-migrate, ...
        #[arg(long)]
        kind: Option<String>,
        #[command(flatten)]
        rows: Rows,
    },
    /// Lists all kinds of jobs, with their steps
    Kinds,
    /// Shows one job with its steps
    Show {
        /// Its id, or the first characters of it
        id: String,
    },
    /// Waits for the end of a job; the exit code is the job's
    Watch {
        /// Its id, or the first characters of it
        id: String,
    },
    /// Cancels a job and undoes its steps
    Cancel {
        /// Its id, or the first characters of it
        id: String,
    },
    /// Ends a job half-way that can neither go on nor back; of one that has ended, drops what hosts still owe of it
    GiveUp {
        /// Its id, or the first characters of it
        id: String,
    },
}

#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Only records of this VM: name or id, also of a deleted one
    #[arg(long)]
    pub vm: Option<VmName>,
    /// Only records after a time (RFC 3339) or an age, such as 1h
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    pub since: Option<OffsetDateTime>,
    /// Checks that no record was changed, removed or reordered
    #[arg(long, conflicts_with_all = ["vm", "since", "limit", "after"])]
    pub verify: bool,
    #[command(flatten)]
    pub rows: Rows,
}

#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Makes a client certificate; the private key is made on this machine and stays here
    Create {
        /// Letters, digits, '.', '_' and '-'
        name: HostName,
        /// The role of the administrator
        #[arg(long, value_parser = parse_role)]
        role: Role,
        /// Directory for NAME.pem (certificate and key) and fleet-ca.pem
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
    },
    /// Lists the certificates that administrators have got, with number, end and standing
    List {
        #[command(flatten)]
        rows: Rows,
    },
    /// Revokes an administrator's certificates: they are refused from now on, and their open connections are cut
    Revoke {
        name: HostName,
        /// Only the certificate with this serial number; otherwise every one of that name that was made until now
        #[arg(long)]
        serial: Option<Serial>,
        /// Also if none of that name is listed: those made before November 2026 are not
        #[arg(long, conflicts_with = "serial")]
        unlisted: bool,
    },
}

/// The argument of `explain`.
pub(crate) fn parse_code(text: &str) -> Option<ErrorCode> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_table_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_name_that_could_leave_its_directory_is_a_usage_error() {
        for name in ["../x", "", "a b", "-", &"a".repeat(10_000)] {
            let error =
                Cli::try_parse_from(["fleetward", "vm", "show", "--", name]).expect_err("no name");
            assert_eq!(error.exit_code(), 2, "{name:?}");
        }
    }

    #[test]
    fn ages_and_times_are_both_understood_by_since() {
        assert!(parse_since("2026-11-23T08:00:00Z").is_ok());
        let hour_ago = parse_since("1h").expect("an age");
        let age = OffsetDateTime::now_utc() - hour_ago;
        assert!((3599..3700).contains(&age.whole_seconds()));
        assert!(parse_since("yesterday").is_err());
        assert!(parse_since("99999999999years").is_err());
    }
}

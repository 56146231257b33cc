//! The definition of the command line: every command, option and help text. Completion, man pages and the reference
//! page are generated from it.
//!
//! Arguments are parsed into the types of the model, so an invalid name or size is a usage error here.

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use fleetward_api::controller::Role;
use fleetward_model::guardian::TrustMode;
use fleetward_model::vm::Profile;
use fleetward_model::{
    ByteSize, ErrorCode, GroupName, GuardianId, HostName, ImageName, LabelKey, PoolName,
    TemplateName, VmName,
};
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
                  6 controller or host unreachable, 130 interrupted while waiting (the job goes on)."
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

    /// Prints neither progress nor confirmations of success
    #[arg(short, long, global = true)]
    pub quiet: bool,

    /// Answers every question with yes
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

    /// Private key of --cert, PEM; none if it lies in the same file
    #[arg(
        long,
        global = true,
        env = "FLEETWARD_KEY",
        hide_env_values = true,
        hide_short_help = true,
        value_name = "FILE"
    )]
    pub key: Option<PathBuf>,

    /// Certificate of the fleet's authority for --controller, PEM
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

/// Where the controller keeps its data unless told otherwise.
pub const DEFAULT_DATA: &str = "/var/lib/fleetward-controller";
/// Where the controller listens for administrators on its machine unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/var/lib/fleetward-controller/controller.sock";

/// Form of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// One JSON document
    Json,
    /// One YAML document
    Yaml,
}

/// Form of a list of certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ListFormat {
    /// For people
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
    /// Templates: what VMs are made from, without any machine's identity
    #[command(subcommand)]
    Template(TemplateCommand),
    /// Virtual machines
    #[command(subcommand)]
    Vm(VmCommand),
    /// TPMs of VMs: on, off, brought back, given a new key
    #[command(subcommand)]
    Tpm(TpmCommand),
    /// Whether VMs can move to hosts, and what stands in the way
    ///
    /// Without arguments: all VMs against all hosts. With a VM: that VM against all hosts. With a VM and --to: every
    /// finding, and exit code 4 if the VM cannot move there. Nothing is changed.
    Check(CheckArgs),
    /// Durable operations
    #[command(subcommand)]
    Job(JobCommand),
    /// The record of every use of a key
    Audit(AuditArgs),
    /// Guardians: the certificates that TPM keys are wrapped for
    #[command(subcommand)]
    Guardian(GuardianCommand),
    /// Client certificates for administrators elsewhere
    #[command(subcommand)]
    Admin(AdminCommand),
    /// The fleet at a glance
    Status,
    /// What an error code means and what helps; without a code, all of them
    Explain {
        /// For example KEY_NOT_GRANTED
        code: Option<String>,
    },
    /// Prints a completion script for a shell
    Completion { shell: Shell },
    /// Writes man pages
    Man {
        /// Directory to write to; made if it is missing
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub enum ControllerCommand {
    /// Runs the controller until it is told to end (SIGTERM)
    Run(ControllerRun),
    /// Reads hosts and VMs anew from all hosts, after the controller's database was lost
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
    /// Address that join tokens tell to hosts; by default that of --listen
    #[arg(long, value_name = "ADDR:PORT")]
    pub advertise: Option<String>,
    /// Who wraps TPM keys for the hosts of a group: `auto`, jobs do it by themselves; `manual`, only `guardian grant` and PFX
    /// files do. Remembered
    #[arg(long, value_name = "auto|manual")]
    pub trust: Option<TrustMode>,
    /// Versions of each VM's TPM to keep, 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub tpm_versions: u32,
    /// Days after which a version goes, at most 36500; the newest of each TPM stays
    #[arg(long, value_name = "DAYS", default_value_t = 90, value_parser = clap::value_parser!(u32).range(..=36_500))]
    pub tpm_days: u32,
}

#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Makes a one-time token with which a machine joins as host NAME
    Token {
        name: HostName,
        /// Group whose VMs the host may run
        #[arg(long, default_value = "default")]
        group: GroupName,
        /// How long the token is good for, at most 7d
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
        ttl: Duration,
        /// The host has joined before and was installed anew; it must not answer any more
        #[arg(long)]
        reinstalled: bool,
    },
    /// Lists hosts
    List,
    /// Shows one host
    Show { name: HostName },
    /// Moves a host's VMs elsewhere in its group, and lets it take no new ones
    Drain {
        name: HostName,
        #[command(flatten)]
        wait: Wait,
    },
    /// Ends a drain
    Resume { name: HostName },
    /// Removes an empty host from the fleet
    Remove { name: HostName },
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Uploads a disk image or an installer medium
    Import {
        name: ImageName,
        file: PathBuf,
        /// Found from the file's content unless given
        #[arg(long, value_enum)]
        format: Option<ImageFormat>,
    },
    /// Lists images
    List,
    /// Deletes an image; VMs made from it keep their disks
    Delete { name: ImageName },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ImageFormat {
    Qcow2,
    Raw,
    Iso,
}

#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Makes a VM with UEFI, Secure Boot and an encrypted TPM 2.0
    Create(VmCreate),
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
    /// Shuts VMs down by asking the guest
    Stop {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<VmName>,
        /// Cuts the power instead
        #[arg(long)]
        force: bool,
        /// How long the guest may take, at most 1h
        #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = humantime::parse_duration)]
        deadline: Duration,
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
    /// Connects the terminal to a VM's serial console; Ctrl-] leaves
    Console { name: VmName },
    /// Makes another VM with the disks of this one, running or stopped
    ///
    /// The clone has its own machine uuid, MAC address and generation id, and is stopped. A running VM goes on: its guest
    /// stands still for less than a second, and the clone's disks, UEFI variables and TPM are of that moment, as after a
    /// power cut.
    Clone {
        name: VmName,
        /// The clone's name
        #[arg(value_name = "NEW")]
        new: VmName,
        /// A TPM with a new identity, the same identity under a key of its own, or none; by default new where the source has
        /// a TPM
        #[arg(long, value_enum)]
        tpm: Option<TpmChoice>,
        /// Host of the clone; by default the source's
        #[arg(long)]
        host: Option<HostName>,
        /// Copies the disks in full; by default the clone builds on the source's disks where both lie in one pool
        #[arg(long)]
        full: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Rebuilds a VM of a lost host on another one
    ///
    /// Its TPM and UEFI variables come from the controller's copy. Its disks must lie in their pools on the new host: the same
    /// directory, or copies under the same names. The lost host must be off; should it come back, its copy of the VM is ended,
    /// and that one's disks stay where they are.
    Recover {
        /// Name or id
        name: String,
        /// Where to rebuild it
        #[arg(long, value_name = "HOST")]
        to: HostName,
        /// A version of `tpm history`; by default the newest
        #[arg(long = "version", value_name = "V")]
        version: Option<u64>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Moves VMs to another host, running ones without stopping them
    Migrate {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<VmName>,
        /// The destination
        #[arg(long, value_name = "HOST")]
        to: HostName,
        /// Only says whether it would work, and changes nothing
        #[arg(long, conflicts_with = "no_wait")]
        check: bool,
        /// Moves stopped VMs
        #[arg(long)]
        offline: bool,
        #[command(flatten)]
        wait: Wait,
    },
}

/// What TPM a clone has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TpmChoice {
    /// Another identity, with its own EK certificate
    New,
    /// The same identity a second time
    Copy,
    /// No TPM
    None,
}

#[derive(Debug, Subcommand)]
pub enum TemplateCommand {
    /// Makes a template of a VM, running or stopped, with its TPM on
    ///
    /// The template holds no TPM state. Every VM made from it gets a TPM of its own.
    Create {
        name: TemplateName,
        /// The VM; it is not changed
        #[arg(long, value_name = "VM")]
        from: VmName,
        /// Keeps the machine's UEFI variables: boot entries, and changes of the Secure Boot keys
        #[arg(long)]
        uefi_variables: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Lists templates
    List,
    /// Shows one template
    Show { name: TemplateName },
    /// Deletes a template; VMs made from it keep their disks
    Delete { name: TemplateName },
}

#[derive(Debug, Args)]
pub struct VmCreate {
    pub name: VmName,
    /// Image that the system disk is a copy of; without it the disk is empty
    #[arg(long)]
    pub image: Option<ImageName>,
    /// Template to make it from: its disks, profile, size and firmware, and a TPM of its own
    #[arg(long, value_name = "TEMPLATE", conflicts_with_all = ["image", "iso", "profile"])]
    pub template: Option<TemplateName>,
    /// Size of the system disk, such as 64G; by default the image's or the profile's
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<ByteSize>,
    /// Installer medium to boot from
    #[arg(long, value_name = "IMAGE")]
    pub iso: Option<ImageName>,
    /// Hardware defaults and requirements: windows-11 or linux
    #[arg(long, default_value = "linux")]
    pub profile: Profile,
    /// Number of virtual CPUs; by default the profile's
    #[arg(long, value_name = "N")]
    pub cpus: Option<u32>,
    /// Memory, such as 4G; by default the profile's
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,
    /// Host to make it on; by default the controller chooses
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
    /// Starts it
    #[arg(long)]
    pub start: bool,
    /// A label; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub labels: Vec<(LabelKey, String)>,
    #[command(flatten)]
    pub wait: Wait,
}

/// For commands that start jobs.
#[derive(Debug, Clone, Copy, Args)]
pub struct Wait {
    /// Prints the job's id and does not wait for its end
    #[arg(long)]
    pub no_wait: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
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
}

#[derive(Debug, Subcommand)]
pub enum TpmCommand {
    /// Gives VMs a new TPM
    ///
    /// What a former TPM of a VM had sealed stays closed to the new one: `tpm restore` brings the former one back.
    Enable(TpmChange),
    /// Takes the TPM from VMs; it is kept, and `tpm restore` brings it back
    Disable(TpmChange),
    /// Encrypts the TPM of VMs under a new key
    Roll(TpmChange),
    /// Brings back a kept version of a VM's TPM
    ///
    /// A TPM that the VM has now is kept as a version of its own, and replaced only after a question.
    Restore {
        name: VmName,
        /// A version of `tpm history`; by default the newest, for a VM whose TPM is off
        #[arg(long = "version", value_name = "V")]
        version: Option<u64>,
        #[command(flatten)]
        how: TpmHow,
    },
    /// Shows VMs with the state of their TPM
    Status {
        /// All VMs, if none is named
        names: Vec<VmName>,
    },
    /// Lists the kept versions of a VM's TPM
    History { name: VmName },
}

#[derive(Debug, Args)]
pub struct TpmChange {
    #[command(flatten)]
    pub which: Which,
    /// Says what would happen, and changes nothing
    #[arg(long)]
    pub dry_run: bool,
    /// VMs worked on at once; with --no-wait, the jobs of all VMs are begun
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = parse_parallel)]
    pub parallel: usize,
    #[command(flatten)]
    pub how: TpmHow,
}

/// VMs by name or by what they have in common.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct Which {
    #[arg(conflicts_with_all = ["all", "host", "labels"])]
    pub names: Vec<VmName>,
    /// All VMs of the fleet
    #[arg(long, conflicts_with_all = ["host", "labels"])]
    pub all: bool,
    /// All VMs on this host
    #[arg(long)]
    pub host: Option<HostName>,
    /// All VMs with this label; several: with all of them
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub labels: Vec<(LabelKey, String)>,
}

#[derive(Debug, Clone, Args)]
pub struct TpmHow {
    /// Asks running guests to shut down, and starts them again afterwards; their power is never cut
    #[arg(long)]
    pub stop_and_restart: bool,
    /// How long a guest gets to shut down
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = humantime::parse_duration)]
    pub deadline: Duration,
    #[command(flatten)]
    pub wait: Wait,
}

fn parse_parallel(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|parallel| (1..=64).contains(parallel))
        .ok_or_else(|| "1 to 64".to_owned())
}

#[derive(Debug, Subcommand)]
pub enum JobCommand {
    /// Lists jobs, the newest first
    List {
        /// Only those that have not ended
        #[arg(long)]
        active: bool,
    },
    /// Lists the kinds of jobs there are, with their steps
    Kinds,
    /// Shows one job with its steps
    Show {
        /// Its id, or the beginning of it
        id: String,
    },
    /// Follows a job to its end; the exit code is the job's
    Watch {
        /// Its id, or the beginning of it
        id: String,
    },
    /// Ends a job and undoes what it has done
    Cancel {
        /// Its id, or the beginning of it
        id: String,
    },
}

#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Only what concerns this VM: name or id, also of one that is gone
    #[arg(long)]
    pub vm: Option<VmName>,
    /// Only what happened after: a time (RFC 3339) or an age, such as 1h
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    pub since: Option<OffsetDateTime>,
    /// Checks that no record was changed, removed or reordered
    #[arg(long, conflicts_with_all = ["vm", "since"])]
    pub verify: bool,
}

#[derive(Debug, Subcommand)]
pub enum GuardianCommand {
    /// Lists guardians, one row per certificate
    List {
        /// Only those of this host
        #[arg(long)]
        host: Option<HostName>,
        /// As --output, or as `certutil -store` prints it, for scripts that read that
        #[arg(long, value_enum, conflicts_with = "output")]
        format: Option<ListFormat>,
    },
    /// Shows one guardian
    Show {
        /// Its id, or the beginning of it
        id: String,
    },
    /// Wraps the TPM keys of VMs for one more guardian; no private key moves
    Grant(GrantArgs),
    /// Takes a guardian's wrapping of a VM's TPM key away and rolls the key, at once or when the VM stops
    Revoke {
        vm: VmName,
        /// Who loses it: a host, or a guardian's id or the beginning of it
        #[arg(long, value_name = "HOST|GUARDIAN")]
        from: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Makes a new pair for a host's guardian and re-wraps every VM that depends on it, while they run
    Rotate(RotateArgs),
}

#[derive(Debug, Args)]
pub struct GrantArgs {
    #[arg(required_unless_present = "all", value_name = "VM")]
    pub names: Vec<VmName>,
    /// Every VM of the guardian's group
    #[arg(long, conflicts_with = "names")]
    pub all: bool,
    /// Who is to open them: a host, or the id of its guardian or the beginning of it
    #[arg(long, value_name = "HOST|GUARDIAN")]
    pub to: String,
    /// Only says what would happen
    #[arg(long, conflicts_with = "no_wait")]
    pub dry_run: bool,
    /// Uses this guardian although its certificates have expired; may be repeated
    #[arg(long, value_name = "GUARDIAN")]
    pub allow_expired: Vec<GuardianId>,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Debug, Args)]
pub struct RotateArgs {
    /// Whose guardian
    #[arg(
        long,
        required_unless_present = "expiring",
        conflicts_with = "expiring"
    )]
    pub host: Option<HostName>,
    /// Every guardian that ends within this time, such as 1y
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub expiring: Option<Duration>,
    /// Only says which hosts are meant
    #[arg(long, conflicts_with = "no_wait")]
    pub dry_run: bool,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Makes a client certificate; the private key is made here and stays here
    Create {
        /// Letters, digits, '.', '_' and '-'
        name: HostName,
        /// What its holder may do
        #[arg(long, value_parser = parse_role)]
        role: Role,
        /// Directory for NAME.pem (certificate and key) and fleet-ca.pem
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
    },
}

/// What `explain` was asked for.
pub(crate) fn parse_code(text: &str) -> Option<ErrorCode> {
    text.parse().ok()
}

fn parse_label(text: &str) -> Result<(LabelKey, String), String> {
    let (key, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} is not of the form KEY=VALUE"))?;
    let key = key.parse().map_err(|error| format!("{error}"))?;
    Ok((key, value.to_owned()))
}

fn parse_role(text: &str) -> Result<Role, String> {
    [Role::Viewer, Role::Operator, Role::Keeper, Role::Admin]
        .into_iter()
        .find(|role| role.as_str() == text)
        .ok_or_else(|| "the roles are viewer, operator, keeper and admin".to_owned())
}

fn parse_since(text: &str) -> Result<OffsetDateTime, String> {
    if let Ok(time) = OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339) {
        return Ok(time);
    }
    let age = humantime::parse_duration(text).map_err(|_| {
        "neither a time such as 2026-11-23T08:00:00Z nor an age such as 1h".to_owned()
    })?;
    OffsetDateTime::now_utc()
        .checked_sub(age.try_into().map_err(|_| "too long ago".to_owned())?)
        .ok_or_else(|| "too long ago".to_owned())
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

//! A lab: bringing it up and down, and acting on its nodes.
//!
//! ```text
//!   nothing --up--> incomplete --(up ends)--> usable --down--> nothing
//!                       |                        |
//!                       `---- crash, reboot -----+--> wreck --up or down--> cleaned first
//! ```

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::accelerator::Accelerator;
use crate::ending::{Leftovers, clear};
use crate::files::LabFiles;
use crate::guest::{GuestImage, ImageKind};
use crate::process::ProcessId;
use crate::programs::Programs;
use crate::record::{HostRecord, LabNetwork, LabRecord, boot_id};
use crate::serial::{self, Tick};
use crate::{clock, fleet, network, node, openvswitch};

/// The directory of all labs.
pub fn base_dir() -> PathBuf {
    std::env::var_os("FLEETWARD_LAB_DIR")
        .map_or_else(|| PathBuf::from("/var/lib/fleetward-lab"), PathBuf::from)
}

/// What `up` is asked for.
#[derive(Debug, Clone)]
pub struct UpOptions {
    pub name: String,
    pub hosts: Vec<HostOptions>,
    /// Without it: hosts with libvirtd, but no controller and no agents.
    pub fleet: bool,
    /// Who grants keys, `auto` or `manual`; the controller remembers it.
    pub trust: Option<String>,
    /// `None`: find out by trying.
    pub accelerator: Option<Accelerator>,
    /// The controller's program; `None`: as it is, at first the one beside `fleetward-lab`.
    pub controller_program: Option<PathBuf>,
    /// The clock of a new lab can be moved while it is up.
    pub movable_clock: bool,
    /// A new lab's controller listens for programs with API tokens, too.
    pub console: bool,
    /// Networks of guests in a new lab.
    pub networks: Vec<LabNetwork>,
    pub quiet: bool,
}

#[derive(Debug, Clone)]
pub struct HostOptions {
    pub name: String,
    pub group: String,
    pub volume_bytes: Option<u64>,
    /// The agent's program; `None`: as it is, at first the one beside `fleetward-lab`.
    pub agent_program: Option<PathBuf>,
}

impl UpOptions {
    /// `count` hosts named a, b, c ... in the group `default`.
    pub fn new(name: &str, count: u8) -> Self {
        let hosts = (0..count.min(26))
            .map(|i| HostOptions {
                name: char::from(b'a' + i).to_string(),
                group: "default".to_owned(),
                volume_bytes: None,
                agent_program: None,
            })
            .collect();
        Self {
            name: name.to_owned(),
            hosts,
            fleet: true,
            trust: None,
            accelerator: None,
            controller_program: None,
            movable_clock: false,
            console: false,
            networks: vec![LabNetwork {
                name: "lan".to_owned(),
                openvswitch: false,
            }],
            quiet: false,
        }
    }
}

/// What one can kill and start: `controller`, `HOST`, `HOST/agent`, `HOST/libvirtd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Controller,
    Host(String),
    Agent(String),
    Libvirtd(String),
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text.split_once('/') {
            None if text == "controller" => Self::Controller,
            None => Self::Host(text.to_owned()),
            Some((host, "agent")) => Self::Agent(host.to_owned()),
            Some((host, "libvirtd")) => Self::Libvirtd(host.to_owned()),
            Some(_) => bail!("{text} is not one of controller, HOST, HOST/agent, HOST/libvirtd"),
        })
    }
}

/// A lab that is up.
pub struct Lab {
    programs: Programs,
    files: LabFiles,
    record: LabRecord,
}

impl Lab {
    /// Brings a lab up, adds what is missing to one that is up, cleans a wreck first.
    pub fn up(options: &UpOptions) -> Result<Self> {
        let say = |text: &str| {
            if !options.quiet {
                eprintln!("lab {}: {text}", options.name);
            }
        };
        if !nix::unistd::geteuid().is_root() {
            bail!(
                "a lab needs root: it makes namespaces and runs libvirtd\n  fix: run it with sudo"
            );
        }
        let programs = Programs::find()?;
        if options.fleet {
            programs.require_fleet()?;
        }
        let files = files_of(&options.name)?;
        let _lock = lock(&files)?;
        let record = match LabRecord::load(&files) {
            Ok(Some(record)) if record.is_usable() => {
                if record.fleet != options.fleet {
                    bail!(
                        "the lab {} is up, but was made {} --no-fleet",
                        options.name,
                        if record.fleet { "without" } else { "with" }
                    );
                }
                Some(record)
            }
            Ok(None) if !files.root().exists() => None,
            _ => {
                say("cleaning up what an earlier one left");
                clear(&files)?;
                None
            }
        };
        let was_up = record.is_some();

        let cache = GuestImage::cache_dir();
        if !was_up {
            say("preparing the guest image");
        }
        let image = GuestImage::build(&cache)?;
        let accelerator = match options.accelerator {
            Some(chosen) => chosen,
            None => Accelerator::probe(&image, &cache)?,
        };
        let record = record.unwrap_or_else(|| LabRecord {
            name: options.name.clone(),
            boot_id: boot_id(),
            complete: false,
            fleet: options.fleet,
            accelerator,
            switch: None,
            controller: None,
            controller_program: None,
            console: options.console,
            networks: options.networks.clone(),
            hosts: Vec::new(),
        });
        let mut lab = Self {
            programs,
            files,
            record,
        };
        if !was_up && options.movable_clock {
            fs::create_dir_all(lab.files.root())?;
            clock::make_movable(&lab.files)?;
        }
        let added = lab.add_hosts(&options.hosts)?;
        lab.exchange_programs(options, &say)?;
        lab.record.save(&lab.files)?;
        lab.power_on_nodes(&say)?;
        if options.fleet {
            lab.start_fleet(&image, options.trust.as_deref(), &say)?;
        }
        lab.record.complete = true;
        lab.record.save(&lab.files)?;
        match (was_up, added) {
            (false, _) => say(&format!(
                "up with {} hosts ({})",
                lab.record.hosts.len(),
                lab.record.accelerator.name()
            )),
            (true, 0) => say("is up already"),
            (true, n) => say(&format!("was up already; hosts added: {n}")),
        }
        Ok(lab)
    }

    /// A lab that somebody else brought up.
    pub fn attach(name: &str) -> Result<Self> {
        let files = files_of(name)?;
        match LabRecord::load(&files)? {
            Some(record) if record.is_usable() => {
                let mut programs = Programs::find()?;
                programs.set_controller(record.controller_program.clone());
                Ok(Self {
                    programs,
                    files,
                    record,
                })
            }
            Some(_) => bail!(
                "the lab {name} is a wreck\n  fix: fleetward-lab up --name {name}, or fleetward-lab down --name {name}"
            ),
            None => {
                bail!("there is no lab {name}\n  fix: fleetward-lab up --hosts 2 --name {name}")
            }
        }
    }

    /// Ends everything of a lab and looks whether something is left. Harmless when there is no lab.
    pub fn down(name: &str) -> Result<Leftovers> {
        let files = files_of(name)?;
        let lock = lock(&files)?;
        let leftovers = clear(&files)?;
        let _ = fs::remove_file(files.lock());
        drop(lock);
        Ok(leftovers)
    }

    /// The names of all labs that are there, wrecks included.
    pub fn names() -> Vec<String> {
        let Ok(entries) = fs::read_dir(base_dir()) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .flatten()
            .filter(|entry| entry.path().is_dir())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !name.starts_with('.'))
            .collect();
        names.sort();
        names
    }

    pub fn files(&self) -> &LabFiles {
        &self.files
    }

    pub fn record(&self) -> &LabRecord {
        &self.record
    }

    /// Where `fleetward` and `fleetward-agent` lie.
    pub fn programs_dir(&self) -> &Path {
        self.programs.dir()
    }

    /// A command that will run inside the host (or `controller`, or beside the `guests`); the caller adds program and arguments.
    pub fn exec(&self, name: &str) -> Result<Command> {
        if name == "guests" {
            return self.beside_guests();
        }
        let mut command = node::enter(self.node(name)?.0)?;
        let own = self.programs.dir().display();
        command.env("PATH", format!("{own}:{}", node::PATH));
        let host = self.host(name).is_ok().then_some(name);
        command.envs(clock::environment(&self.files, host)?);
        Ok(command)
    }

    /// `fleetward`, talking to this lab.
    pub fn fleetward(&self) -> Command {
        fleet::fleetward(&self.programs, &self.files)
    }

    /// SIGKILL; of a host: all its processes at once, as in a power cut. What is dead already stays dead.
    pub fn kill(&mut self, target: &Target) -> Result<()> {
        match target {
            Target::Host(host) => match self.host(host)?.init {
                Some(init) => init.kill(),
                None => Ok(()),
            },
            Target::Controller => self.kill_program("controller", "fleetward"),
            Target::Agent(host) => self.kill_program(host, "fleetward-agent"),
            Target::Libvirtd(host) => self.kill_program(host, "libvirtd"),
        }
    }

    /// Starts what is not running, and waits until it answers (an agent: until its host is online).
    pub fn start(&mut self, target: &Target) -> Result<()> {
        let _lock = lock(&self.files)?;
        match target {
            Target::Controller => {
                self.power_on_controller()?;
                self.record.save(&self.files)?;
                fleet::start_controller(
                    &self.programs,
                    &self.files,
                    self.node("controller")?.0,
                    None,
                    self.record.console,
                )
            }
            Target::Host(host) => {
                self.host(host)?;
                self.power_on_host(host)?;
                self.record.save(&self.files)?;
                fleet::start_libvirtd(&self.programs, &self.files, self.host(host)?)?;
                self.start_agent(host)
            }
            Target::Agent(host) => self.start_agent(host),
            Target::Libvirtd(host) => {
                fleet::start_libvirtd(&self.programs, &self.files, self.host(host)?)
            }
        }
    }

    /// Moves the clock that controller and agents see away from the machine's, or that of one host's agent alone.
    pub fn move_clock(&self, offset: &str, host: Option<&str>) -> Result<()> {
        match host {
            Some(name) => {
                let host = self.host(name)?;
                clock::move_to(&self.files, offset, &[&host.name], false)
            }
            None => {
                let hosts: Vec<&str> = self.record.hosts.iter().map(|h| h.name.as_str()).collect();
                clock::move_to(&self.files, offset, &hosts, true)
            }
        }
    }

    /// Cuts a node off from all others, or from one.
    pub fn partition(&self, name: &str, from: Option<&str>) -> Result<()> {
        match from {
            None => network::cut_off(self.switch()?, self.node(name)?.1),
            Some(other) => network::cut_pair(self.node(name)?, self.node(other)?),
        }
    }

    /// Undoes every cut that concerns the node.
    pub fn heal(&self, name: &str) -> Result<()> {
        let node = self.node(name)?;
        let peers: Vec<ProcessId> = self
            .record
            .processes()
            .into_iter()
            .filter(|id| id.is_alive() && *id != node.0 && Some(*id) != self.record.switch)
            .collect();
        network::heal(self.switch()?, node, &peers)
    }

    /// Whether the node is cut off from all others.
    pub fn is_cut_off(&self, name: &str) -> bool {
        match (self.switch(), self.node(name)) {
            (Ok(switch), Ok((_, index))) => network::is_cut_off(switch, index),
            _ => false,
        }
    }

    /// Which of a node's programs run: agent and libvirtd of a host, fleetward of the controller.
    pub fn running_programs(&self, name: &str) -> Vec<&'static str> {
        let Ok((init, _)) = self.node(name) else {
            return Vec::new();
        };
        ["fleetward", "fleetward-agent", "libvirtd"]
            .into_iter()
            .filter(|program| node::find(init, program).is_some())
            .collect()
    }

    /// A command in the first network of guests, with the address 10.0.0.1; the caller adds program and arguments.
    pub fn beside_guests(&self) -> Result<Command> {
        network::beside_guests(self.switch()?)
    }

    /// All output of the VM on its serial console, on any host.
    pub fn serial(&self, vm: &str) -> Result<String> {
        serial::read(&self.files.serial(), vm)
    }

    /// Copies what the VM prints to `out`, for ever.
    pub fn follow_serial(&self, vm: &str, out: &mut impl Write) -> Result<()> {
        serial::follow(&self.files.serial(), vm, out)
    }

    /// The lab guest's lines.
    pub fn ticks(&self, vm: &str) -> Result<Vec<Tick>> {
        Ok(Tick::parse_all(&self.serial(vm)?))
    }

    // ---- the parts of `up` ---------------------------------------------------------------------------------

    /// Makes the directories and writes down the hosts that are not there yet; how many.
    fn add_hosts(&mut self, wanted: &[HostOptions]) -> Result<usize> {
        let files = &self.files;
        for directory in [
            files.root().to_owned(),
            files.serial(),
            files.shared_volumes(),
            files.hold(),
            files.controller_data(),
        ] {
            fs::create_dir_all(&directory)
                .with_context(|| format!("make {}", directory.display()))?;
        }
        // QEMU writes there under its own user.
        fs::set_permissions(files.serial(), fs::Permissions::from_mode(0o1777))?;
        fs::set_permissions(files.hold(), fs::Permissions::from_mode(0o700))?;
        fs::set_permissions(files.controller_data(), fs::Permissions::from_mode(0o700))?;

        let mut added = 0;
        for host in wanted {
            check_name(&host.name)?;
            if self.record.host(&host.name).is_some() {
                continue;
            }
            let index = self.record.hosts.iter().map(|h| h.index).max().unwrap_or(0) + 1;
            self.record.hosts.push(HostRecord {
                name: host.name.clone(),
                group: host.group.clone(),
                index,
                uuid: uuid::Uuid::new_v4(),
                init: None,
                volume_bytes: host.volume_bytes,
                joined: false,
                agent_program: None,
            });
            added += 1;
        }
        let mut names = format!(
            "127.0.0.1 localhost\n{} controller\n",
            crate::record::address_of(0)
        );
        for host in &self.record.hosts {
            names.push_str(&format!("{} {}\n", host.address(), host.name));
        }
        // In place: running nodes have this very file mounted.
        fs::write(files.hosts(), names)?;
        Ok(added)
    }

    /// Notes which programs are wanted, and kills those that run and are others; the rest of `up` starts the wanted ones.
    fn exchange_programs(&mut self, options: &UpOptions, say: &dyn Fn(&str)) -> Result<()> {
        let mut others = Vec::new();
        if let Some(program) = &options.controller_program
            && self.record.controller_program.as_ref() != Some(program)
        {
            self.record.controller_program = Some(program.clone());
            others.push(("controller", Target::Controller));
        }
        self.programs
            .set_controller(self.record.controller_program.clone());
        for wanted in &options.hosts {
            let host = self.record.host_mut(&wanted.name);
            if let (Some(program), Some(host)) = (&wanted.agent_program, host)
                && host.agent_program.as_ref() != Some(program)
            {
                host.agent_program = Some(program.clone());
                others.push((wanted.name.as_str(), Target::Agent(wanted.name.clone())));
            }
        }
        for (node, target) in others {
            if self.node(node).is_ok() {
                say(&format!("exchanging the program of {node}"));
                self.kill(&target)?;
            }
        }
        Ok(())
    }

    fn power_on_nodes(&mut self, say: &dyn Fn(&str)) -> Result<()> {
        if !self.record.switch.is_some_and(ProcessId::is_alive) {
            let switch = node::power_on(&self.programs, &self.files, "switch", None)?;
            self.record.switch = Some(switch);
            self.record.save(&self.files)?;
            network::make_bridge(switch)?;
            network::make_spans(switch, &self.record.networks)?;
        }
        if self.record.fleet {
            self.power_on_controller()?;
        }
        let names: Vec<String> = self
            .record
            .hosts
            .iter()
            .filter(|h| !h.is_on())
            .map(|h| h.name.clone())
            .collect();
        if !names.is_empty() {
            say(&format!("switching on {}", names.join(", ")));
        }
        for name in &names {
            self.power_on_host(name)?;
        }
        self.record.save(&self.files)?;
        each_at_once(&self.record.hosts, |host| {
            fleet::start_libvirtd(&self.programs, &self.files, host)
        })
    }

    fn start_fleet(
        &mut self,
        image: &GuestImage,
        trust: Option<&str>,
        say: &dyn Fn(&str),
    ) -> Result<()> {
        let controller = self.node("controller")?.0;
        let console = self.record.console;
        fleet::start_controller(&self.programs, &self.files, controller, trust, console)?;
        let strangers: Vec<HostRecord> = self
            .record
            .hosts
            .iter()
            .filter(|h| !h.joined)
            .cloned()
            .collect();
        if !strangers.is_empty() {
            say("joining hosts");
        }
        each_at_once(&strangers, |host| {
            fleet::join(&self.programs, &self.files, &self.record, host)
        })?;
        for stranger in &strangers {
            if let Some(host) = self.record.host_mut(&stranger.name) {
                host.joined = true;
            }
        }
        self.record.save(&self.files)?;
        each_at_once(&self.record.hosts, |host| {
            fleet::start_agent(&self.programs, &self.files, host)
        })?;
        let names: Vec<&str> = self.record.hosts.iter().map(|h| h.name.as_str()).collect();
        fleet::wait_online(&self.programs, &self.files, &names)?;
        self.import(ImageKind::LabGuest.name(), image)
    }

    /// Imports an image into the library, unless one of that name is there.
    pub fn import(&self, name: &str, image: &GuestImage) -> Result<()> {
        fleet::import_image(&self.programs, &self.files, name, image)
    }

    fn power_on_controller(&mut self) -> Result<()> {
        if self.record.controller.is_some_and(ProcessId::is_alive) {
            return Ok(());
        }
        let node = node::power_on(&self.programs, &self.files, "controller", None)?;
        self.record.controller = Some(node);
        network::plug_in(self.switch()?, node, 0)
    }

    fn power_on_host(&mut self, name: &str) -> Result<()> {
        let switch = self.switch()?;
        let host = self.host(name)?.clone();
        if host.is_on() {
            return Ok(());
        }
        let init = node::power_on(&self.programs, &self.files, name, host.volume_bytes)?;
        if let Some(host) = self.record.host_mut(name) {
            host.init = Some(init);
        }
        network::plug_in(switch, init, host.index)?;
        let networks = &self.record.networks;
        if networks.iter().any(|network| network.openvswitch) {
            openvswitch::start(&self.programs, &self.files, name, init)?;
        }
        network::plug_in_guests(switch, init, host.index, networks)
    }

    fn start_agent(&self, name: &str) -> Result<()> {
        if !self.record.fleet {
            return Ok(());
        }
        fleet::start_agent(&self.programs, &self.files, self.host(name)?)?;
        // Without a controller nobody can say whether the agent is well.
        match self.node("controller") {
            Ok((controller, _))
                if node::find(controller, "fleetward").is_some() && !self.is_cut_off(name) =>
            {
                fleet::wait_online(&self.programs, &self.files, &[name])
            }
            _ => Ok(()),
        }
    }

    fn kill_program(&self, name: &str, program: &str) -> Result<()> {
        let (init, _) = self.node(name)?;
        match node::find(init, program) {
            Some(process) => process.kill(),
            None => Ok(()),
        }
    }

    fn host(&self, name: &str) -> Result<&HostRecord> {
        self.record.host(name).with_context(|| {
            let names: Vec<&str> = self.record.hosts.iter().map(|h| h.name.as_str()).collect();
            format!(
                "the lab {} has no host {name}; it has {}",
                self.record.name,
                names.join(", ")
            )
        })
    }

    fn switch(&self) -> Result<ProcessId> {
        self.record
            .switch
            .filter(|id| id.is_alive())
            .context("the lab's network is gone")
    }

    /// Process 1 and index of a node that is on.
    fn node(&self, name: &str) -> Result<(ProcessId, u8)> {
        let (init, index) = if name == "controller" {
            (self.record.controller, 0)
        } else {
            let host = self.host(name)?;
            (host.init, host.index)
        };
        match init {
            Some(init) if init.is_alive() => Ok((init, index)),
            _ => bail!("{name} is switched off\n  fix: fleetward-lab start {name}"),
        }
    }
}

// ---- small things ------------------------------------------------------------------------------------------

fn files_of(name: &str) -> Result<LabFiles> {
    check_name(name)?;
    let base = base_dir();
    fs::create_dir_all(&base).with_context(|| format!("make {}", base.display()))?;
    let base = base.canonicalize()?;
    if ["/run", "/var/log", "/dev", "/proc", "/sys"]
        .iter()
        .any(|hidden| base.starts_with(hidden))
    {
        bail!(
            "labs cannot lie in {}: their hosts have their own",
            base.display()
        );
    }
    Ok(LabFiles::new(base.join(name)))
}

/// Names of labs and hosts: they become file names, host names and parts of certificates.
fn check_name(name: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > 32 || !name.chars().all(good) || name.starts_with('-') {
        bail!("{name:?} is no good name: 1 to 32 of a-z, 0-9 and -");
    }
    if name == "controller" || name == "switch" {
        bail!("{name} is taken by the lab itself");
    }
    Ok(())
}

/// One command at a time changes a lab.
fn lock(files: &LabFiles) -> Result<Flock<File>> {
    let path = files.lock();
    loop {
        let file = File::create(&path).with_context(|| format!("open {}", path.display()))?;
        let opened = file.metadata()?.ino();
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .with_context(|| format!("lock {}", path.display()))?;
        // `down` removes the file; a process that waited for it must start again with the new one.
        if fs::metadata(&path).is_ok_and(|now| now.ino() == opened) {
            return Ok(lock);
        }
    }
}

fn each_at_once(
    hosts: &[HostRecord],
    action: impl Fn(&HostRecord) -> Result<()> + Sync,
) -> Result<()> {
    std::thread::scope(|scope| {
        let action = &action;
        let running: Vec<_> = hosts
            .iter()
            .map(|host| scope.spawn(move || action(host)))
            .collect();
        let mut first = Ok(());
        for thread in running {
            let result = thread
                .join()
                .unwrap_or_else(|_| bail!("a thread of the lab panicked"));
            first = first.and(result);
        }
        first
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_named_as_on_the_command_line() {
        assert_eq!(
            "a/agent".parse::<Target>().unwrap(),
            Target::Agent("a".to_owned())
        );
        assert_eq!("controller".parse::<Target>().unwrap(), Target::Controller);
        assert_eq!("b".parse::<Target>().unwrap(), Target::Host("b".to_owned()));
        assert!("b/qemu".parse::<Target>().is_err());
    }

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        for bad in [
            "",
            "..",
            "a/b",
            "A",
            "switch",
            "controller",
            &"x".repeat(33),
        ] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        assert!(check_name("lab-2").is_ok());
    }
}

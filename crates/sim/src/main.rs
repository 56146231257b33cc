//! `fleetward-sim`: a fleet that does not exist, to see how a controller bears it.

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use fleetward_link::Client;
use fleetward_link::serve::allow_many_connections;
use fleetward_sim::directory::{Directory, Fleet, Protectors};
use fleetward_sim::fleet::RunningFleet;
use fleetward_sim::measure::budget::Budget;
use fleetward_sim::measure::controller::Controller;
use fleetward_sim::measure::{self, Effort, Report};
use fleetward_sim::plan::{FleetPlan, MOST_HOSTS};
use fleetward_sim::prepare::prepare;
use fleetward_sim::scale::{Setting, Size, begin, measure_size, table};
use fleetward_sim::scenario::Scenario;
use fleetward_sim::storm::{self, Strength};
use std::io::IsTerminal;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Simulated hosts with VMs, which join a real controller: to see how it bears a fleet before there is one
#[derive(Parser)]
#[command(name = "fleetward-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Join simulated hosts to a controller, through its API; repeated, it joins those that are missing
    Prepare(Prepare),
    /// Be the hosts that `prepare` has joined, until SIGTERM; their VMs forget what was done to them at the end
    Agents(Agents),
    /// Be the hosts, and measure the controller
    Measure(Measure),
    /// Start a controller with a fleet, let hosts vanish and return, kill the controller under changes, submit many jobs at once,
    /// and say whether what a user sees stays right; exit code 1 where it does not
    Storm(Storm),
    /// Start a controller for each size, join a fleet of that size, measure it, and print a table
    Scale(Scale),
}

#[derive(Args)]
struct Prepare {
    /// The controller's socket
    #[arg(long, value_name = "PATH", env = "FLEETWARD_SOCKET")]
    socket: PathBuf,
    /// Where the hosts' certificates and keys are kept
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// How many hosts
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_HOSTS)))]
    hosts: u32,
    /// How many VMs each of them has
    #[arg(long, value_name = "M", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=1000))]
    vms: u32,
    #[command(flatten)]
    plan: PlanOptions,
    /// Give all hosts one pair of guardian keys. Such a fleet protects nothing; making a pair for each host takes a second of
    /// processor time
    #[arg(long)]
    shared_guardian: bool,
}

#[derive(Args)]
struct PlanOptions {
    /// Hosts of each group
    #[arg(long, value_name = "K", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    hosts_per_group: u32,
    /// Names, sizes and scenarios follow from it; keys are random in every fleet
    #[arg(long, value_name = "N", default_value_t = 1)]
    random_seed: u64,
    /// The address of the first host, in 127.0.0.0/8; the others follow it
    #[arg(long, value_name = "ADDR", default_value = "127.64.0.1", value_parser = parse_loopback)]
    first_address: Ipv4Addr,
    /// The port of every host
    #[arg(long, value_name = "PORT", default_value_t = 7443)]
    port: u16,
    /// What the key protectors of the VMs are. Real ones take some milliseconds of processor time for each VM
    #[arg(long, value_name = "KIND", value_enum, default_value_t)]
    protectors: Protectors,
}

#[derive(Args)]
struct Agents {
    /// What `prepare` has made
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// What happens in the fleet meanwhile
    #[arg(long, value_name = "FILE")]
    scenario: Option<PathBuf>,
}

#[derive(Args)]
struct Measure {
    /// The socket of a controller that runs on this machine
    #[arg(long, value_name = "PATH", env = "FLEETWARD_SOCKET")]
    socket: PathBuf,
    /// What `prepare` has made; no other process may be these hosts now
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    effort: EffortOptions,
    /// What is over a budget of this file makes the exit code 1
    #[arg(long, value_name = "FILE")]
    budget: Option<PathBuf>,
}

#[derive(Args)]
struct EffortOptions {
    /// How long the controller is looked at while nothing happens, and again under changes
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    idle_seconds: u64,
    /// Requests of each kind
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// VMs that are stopped and started
    #[arg(long, value_name = "N", default_value_t = 20)]
    jobs: u32,
    /// VMs that change each second while the controller is looked at under changes; 0: not at all
    #[arg(long, value_name = "R", default_value_t = 200.0, value_parser = parse_rate)]
    changes: f64,
    /// TPMs that guests write each second while the controller is looked at once more; 0: not at all
    #[arg(long, value_name = "R", default_value_t = 0.0, value_parser = parse_rate)]
    tpm_writes: f64,
    /// Writes the report into this file and not to standard output
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What is measured, for the report
    #[arg(long, value_name = "TEXT", default_value = "")]
    commit: String,
}

#[derive(Args)]
struct Scale {
    /// The program `fleetward` whose controller is measured
    #[arg(long, value_name = "PATH")]
    program: PathBuf,
    /// Hosts and VMs of each, for instance 100x20,500x20
    #[arg(long, value_name = "HOSTSxVMS", value_delimiter = ',', required = true)]
    sizes: Vec<Size>,
    /// A directory that does not exist: data of all controllers and fleets. It stays
    #[arg(long, value_name = "DIR")]
    work: PathBuf,
    /// Where the controllers listen
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7490")]
    listen: SocketAddr,
    #[command(flatten)]
    plan: PlanOptions,
    #[command(flatten)]
    effort: EffortOptions,
    /// Writes the table into this file, too
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

#[derive(Args)]
struct Storm {
    /// The program `fleetward` whose controller is tried
    #[arg(
        long,
        value_name = "PATH",
        requires = "work",
        required_unless_present = "socket"
    )]
    program: Option<PathBuf>,
    /// A directory that does not exist: data of the controller and the fleet. It stays
    #[arg(long, value_name = "DIR", requires = "program")]
    work: Option<PathBuf>,
    /// In the place of --program: the socket of a controller that runs on this machine. It is not killed
    #[arg(long, value_name = "PATH", requires = "dir", conflicts_with_all = ["program", "work"])]
    socket: Option<PathBuf>,
    /// What `prepare` has made for that controller; no other process may be these hosts now
    #[arg(long, value_name = "DIR", requires = "socket", conflicts_with_all = ["size", "listen"])]
    dir: Option<PathBuf>,
    /// Hosts and VMs of each
    #[arg(long, value_name = "HOSTSxVMS", default_value = "1000x25")]
    size: Size,
    /// Where the controller listens
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:7490")]
    listen: SocketAddr,
    #[command(flatten)]
    plan: PlanOptions,
    #[command(flatten)]
    strength: StrengthOptions,
    /// Writes the report into this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes the table into this file, too
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// What is tried, for the report
    #[arg(long, value_name = "TEXT", default_value = "")]
    commit: String,
}

#[derive(Args)]
struct StrengthOptions {
    /// Hosts that vanish at once, of all
    #[arg(long, value_name = "P", default_value_t = 30.0, value_parser = parse_percent)]
    vanish_percent: f64,
    /// How long they are away
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(..=86_400))]
    away_seconds: u64,
    /// VMs that change each second around the kill -9 of the controller
    #[arg(long, value_name = "R", default_value_t = 500.0, value_parser = parse_rate)]
    changes: f64,
    /// How long VMs change before it, and again after it
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(..=86_400))]
    changing_seconds: u64,
    /// Jobs that are submitted at once, each for a VM of its own
    #[arg(long, value_name = "N", default_value_t = 2000)]
    jobs: u32,
    /// Within which hosts are shown lost and back, the controller answers again, and every VM is shown as its host has it
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    within_seconds: u64,
    /// What 99 of 100 answers may take during a storm
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    answer_ms: u64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Hosts that vanish on purpose leave connections that break.
    let filter = EnvFilter::try_from_env("FLEETWARD_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,fleetward_link=warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let run = || -> Result<ExitCode> {
        allow_many_connections().context("cannot have more files open")?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let code = runtime.block_on(run(cli.command));
        runtime.shutdown_background();
        code
    };
    run().unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

async fn run(command: Verb) -> Result<ExitCode> {
    match command {
        Verb::Prepare(options) => join(options).await,
        Verb::Agents(options) => be_hosts(options).await,
        Verb::Measure(options) => measure_one(options).await,
        Verb::Storm(options) => storm(options).await,
        Verb::Scale(options) => measure_sizes(options).await,
    }
}

async fn join(options: Prepare) -> Result<ExitCode> {
    let fleet = Fleet {
        plan: options.plan.plan(options.hosts, options.vms),
        shared_guardian: options.shared_guardian,
        protectors: options.plan.protectors,
    };
    if fleet.shared_guardian {
        eprintln!(
            "NOT FOR REAL FLEETS: all guardians of these hosts share one pair of keys, so each of them opens every VM's key."
        );
    }
    let hosts = options.hosts;
    let client = Client::unix(&options.socket);
    let progress = |done: u32| {
        if done.is_multiple_of(100) {
            eprintln!("{done} hosts have joined");
        }
    };
    let (_, joined) = prepare(&client, &fleet, &options.dir, progress).await?;
    println!(
        "{hosts} hosts of {} VMs are in the fleet: {} joined now, {} before",
        options.vms, joined.now, joined.before
    );
    println!(
        "{}",
        match fleet.protectors {
            Protectors::Sized =>
                "Key protectors are sized: they are sealed when the controller asks for a copy of a TPM.",
            Protectors::Real => "Key protectors are real: each host of a VM's group opens them.",
        }
    );
    println!("next: fleetward-sim agents --dir {}", options.dir.display());
    Ok(ExitCode::SUCCESS)
}

async fn be_hosts(options: Agents) -> Result<ExitCode> {
    let scenario = match &options.scenario {
        Some(path) => Scenario::read(path)?,
        None => Scenario::default(),
    };
    let (directory, fleet) = Directory::open(&options.dir)?;
    scenario.require_groups(&fleet.plan)?;
    let running = Arc::new(RunningFleet::start(&directory, &fleet).await?);
    println!(
        "{} hosts of {} VMs answer, from {} on",
        fleet.plan.hosts,
        fleet.plan.vms,
        fleet.plan.address(0)
    );
    scenario.begin(&running);
    let (mut term, mut int) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure_one(options: Measure) -> Result<ExitCode> {
    let budget = options.budget.as_deref().map(Budget::read).transpose()?;
    let (directory, fleet) = Directory::open(&options.dir)?;
    let mut controller = Controller::attach(&options.socket).await?;
    let running = Arc::new(RunningFleet::start(&directory, &fleet).await?);
    let effort = options.effort.effort();
    let measured = measure::run(&mut controller, &running, &effort, None, say);
    let report = Report {
        commit: options.effort.commit.clone(),
        ..measured.await?
    };
    match &options.effort.json {
        Some(path) => measure::write(&report, path)?,
        None => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    let Some(budget) = budget else {
        return Ok(ExitCode::SUCCESS);
    };
    let exceeded = budget.exceeded(&serde_json::to_value(&report)?);
    for line in &exceeded {
        eprintln!("over budget: {line}");
    }
    Ok(match exceeded.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

async fn storm(options: Storm) -> Result<ExitCode> {
    let (mut controller, directory, fleet) = match (&options.socket, &options.dir) {
        (Some(socket), Some(dir)) => {
            let (directory, fleet) = Directory::open(dir)?;
            (Controller::attach(socket).await?, directory, fleet)
        }
        _ => {
            let program = options.program.as_deref().context("--program is missing")?;
            let work = options.work.as_deref().context("--work is missing")?;
            require_absent(work)?;
            let fleet = Fleet {
                plan: options.plan.plan(options.size.hosts, options.size.vms),
                shared_guardian: true,
                protectors: options.plan.protectors,
            };
            say("the hosts join");
            let (controller, directory) = begin(program, options.listen, &fleet, work).await?;
            (controller, directory, fleet)
        }
    };
    let running = Arc::new(RunningFleet::start(&directory, &fleet).await?);
    let strength = options.strength.strength();
    let mut report = storm::run(&mut controller, &running, &strength, say).await?;
    report.commit.clone_from(&options.commit);
    running.stop();
    controller.kill().await?;
    let text = storm::table(&report);
    println!("{text}");
    if let Some(path) = &options.markdown {
        fleetward_durable::replace(path, text.as_bytes(), fleetward_durable::Access::PUBLIC)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &options.json {
        fleetward_durable::replace_json(path, &report, fleetward_durable::Access::PUBLIC)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    for sentence in &report.broken {
        eprintln!("does not hold: {sentence}");
    }
    Ok(match report.broken.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn require_absent(work: &Path) -> Result<()> {
    if work.exists() {
        bail!(
            "{} exists: give a directory that does not, so that no fleet is measured with another one's data",
            work.display()
        );
    }
    Ok(())
}

async fn measure_sizes(options: Scale) -> Result<ExitCode> {
    require_absent(&options.work)?;
    let setting = Setting {
        program: options.program,
        listen: options.listen,
        plan: options.plan.plan(1, 1),
        protectors: options.plan.protectors,
        effort: options.effort.effort(),
        commit: options.effort.commit.clone(),
    };
    let mut reports = Vec::new();
    for size in options.sizes {
        let name = format!("{}x{}", size.hosts, size.vms);
        let say = |what: &str| eprintln!("{name}: {what}");
        let work = options.work.join(&name);
        let report = measure_size(&setting, size, &work, say).await;
        reports.push((size, report.with_context(|| name.clone())?));
        // What was measured before a size that is too large is not lost.
        if let Some(path) = &options.markdown {
            let text = table(&reports);
            fleetward_durable::replace(path, text.as_bytes(), fleetward_durable::Access::PUBLIC)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    println!("{}", table(&reports));
    if let Some(path) = &options.effort.json {
        let all: Vec<&Report> = reports.iter().map(|(_, report)| report).collect();
        fleetward_durable::replace_json(path, &all, fleetward_durable::Access::PUBLIC)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn say(what: &str) {
    eprintln!("{what}");
}

impl PlanOptions {
    fn plan(&self, hosts: u32, vms: u32) -> FleetPlan {
        FleetPlan {
            hosts,
            vms,
            hosts_per_group: self.hosts_per_group,
            random_seed: self.random_seed,
            first_address: self.first_address,
            port: self.port,
        }
    }
}

impl StrengthOptions {
    fn strength(&self) -> Strength {
        Strength {
            vanish_percent: self.vanish_percent,
            away: Duration::from_secs(self.away_seconds),
            changes_per_second: self.changes,
            changing: Duration::from_secs(self.changing_seconds),
            jobs: self.jobs,
            within: Duration::from_secs(self.within_seconds),
            answers_within: Duration::from_millis(self.answer_ms),
        }
    }
}

impl EffortOptions {
    fn effort(&self) -> Effort {
        Effort {
            idle: Duration::from_secs(self.idle_seconds),
            requests: self.requests,
            jobs: self.jobs,
            changes_per_second: self.changes,
            tpm_writes_per_second: self.tpm_writes,
        }
    }
}

fn parse_loopback(text: &str) -> Result<Ipv4Addr, String> {
    let wrong = |_| format!("{text:?} is no address");
    let address: Ipv4Addr = text.parse().map_err(wrong)?;
    let last = u64::from(address.to_bits()) + u64::from(MOST_HOSTS);
    match address.is_loopback() && last < u64::from(Ipv4Addr::new(127, 255, 255, 255).to_bits()) {
        true => Ok(address),
        false => Err(format!(
            "{address} is not in 127.0.0.0/8 with {MOST_HOSTS} addresses after it"
        )),
    }
}

fn parse_percent(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err(format!("{text:?} is no share of 0 to 100 percent")),
    }
}

fn parse_rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.0..=100_000.0).contains(&rate) => Ok(rate),
        _ => Err(format!("{text:?} is no rate of 0 to 100,000")),
    }
}

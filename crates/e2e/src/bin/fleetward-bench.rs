//! `make bench`: compares Fleetward with the usual tools, in the same run and on the same lab hosts.
//!
//! Prints medians of ratios. The machines are noisy, so absolute seconds mean little: each round runs both sides one
//! after the other and yields one ratio.

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use fleetward_e2e::fleet::{Fleet, run};
use fleetward_e2e::{guest, wait};
use serde_json::Value;
use std::time::{Duration, Instant};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const ROUNDS: usize = 5;
const AT_ONCE: usize = 20;
/// VMs of the bulk operations.
const MANY: usize = 200;

/// Measures Fleetward against virt-install and virsh on two lab hosts, and prints the medians of ratios with their goals.
///
/// Needs root and about half an hour. The lab is named "bench" and is taken down at the end; after a failure it stays up,
/// and `fleetward-lab down --name bench` takes it down. Build in release mode first, as `make bench` does.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Only these, not all
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT")]
    only: Vec<What>,
}

/// What is measured, in this order. `Join` needs the VMs of `Bulk`.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    Memory,
    Create,
    Many,
    Migrate,
    Bulk,
    Join,
}

fn main() -> Result<()> {
    let Arguments { only } = Arguments::parse();
    let is_wanted = |what| only.is_empty() || only.contains(&what);
    let fleet = Fleet::up("bench", &["--hosts", "2"])?;
    let bench = Bench { fleet: &fleet };
    bench.warm_up()?;
    println!(
        "what                                                        ratio      ours      peer   goal"
    );
    for (what, measure) in Bench::MEASURES {
        if is_wanted(what) {
            measure(&bench)?;
        }
    }
    fleet.down()
}

struct Bench<'a> {
    fleet: &'a Fleet,
}

/// Prints the figures of one thing.
type Measure<B> = fn(&B) -> Result<()>;

/// One round's two figures.
type Pair = (f64, f64);

impl Bench<'_> {
    const MEASURES: [(What, Measure<Self>); 6] = [
        (What::Memory, Self::idle_memory),
        (What::Create, Self::create_and_start),
        (What::Many, Self::many_at_once),
        (What::Migrate, Self::migrate),
        (What::Bulk, Self::bulk),
        (What::Join, Self::join_a_host),
    ];

    /// The first start on a host probes QEMU's capabilities, for both sides alike: not measured.
    fn warm_up(&self) -> Result<()> {
        for host in ["a", "b"] {
            self.create("warm", host)?;
            self.delete("warm")?;
        }
        self.virt_install("warm")?;
        self.virsh_delete("a", "warm")
    }

    fn create(&self, name: &str, host: &str) -> Result<()> {
        self.fleet
            .cli(&[
                "vm",
                "create",
                name,
                "--image",
                "lab-guest",
                "--memory",
                "512M",
                "--host",
                host,
                "--start",
            ])?
            .ok()
            .map(drop)
    }

    fn delete(&self, name: &str) -> Result<()> {
        self.fleet.cli(&["vm", "stop", name, "--force"])?.ok()?;
        self.fleet
            .cli(&["vm", "delete", name, "--yes"])?
            .ok()
            .map(drop)
    }

    /// What an administrator types without Fleetward: copy the image, then virt-install with a TPM.
    fn virt_install(&self, name: &str) -> Result<()> {
        self.fleet
            .exec("a", &["sh", "-c", &virt_install_script(name, 512)])?
            .ok()
            .map(drop)
    }

    fn virsh_delete(&self, host: &str, name: &str) -> Result<()> {
        self.fleet.exec(host, &["virsh", "-q", "destroy", name])?;
        self.fleet
            .exec(host, &["virsh", "-q", "undefine", "--nvram", "--tpm", name])?
            .ok()?;
        self.fleet
            .exec(host, &["rm", "-f", &plain_disk(name)])?
            .ok()
            .map(drop)
    }

    fn create_and_start(&self) -> Result<()> {
        let mut pairs = Vec::new();
        for round in 0..ROUNDS {
            let name = format!("one{round}");
            let ours = timed(|| self.create(&name, "a"))?;
            self.delete(&name)?;
            let peer = timed(|| self.virt_install(&name))?;
            self.virsh_delete("a", &name)?;
            pairs.push((ours, peer));
        }
        show(
            "create and start with TPM / virt-install with TPM",
            &pairs,
            "s",
            "<= 0.7",
        );
        Ok(())
    }

    fn many_at_once(&self) -> Result<()> {
        let names: Vec<String> = (0..AT_ONCE).map(|i| format!("many{i}")).collect();
        let ours = timed(|| {
            std::thread::scope(|scope| {
                let threads: Vec<_> = names
                    .iter()
                    .map(|n| scope.spawn(|| self.create(n, "a")))
                    .collect();
                threads
                    .into_iter()
                    .try_for_each(|t| t.join().expect("no panic"))
            })
        })?;
        for name in &names {
            self.delete(name)?;
        }
        let peer = timed(|| {
            std::thread::scope(|scope| {
                let threads: Vec<_> = names
                    .iter()
                    .map(|n| scope.spawn(|| self.virt_install(n)))
                    .collect();
                threads
                    .into_iter()
                    .try_for_each(|t| t.join().expect("no panic"))
            })
        })?;
        for name in &names {
            self.virsh_delete("a", name)?;
        }
        show(
            &format!("{AT_ONCE} VMs at once / {AT_ONCE} virt-install in parallel"),
            &[(ours, peer)],
            "s",
            "",
        );
        Ok(())
    }

    fn migrate(&self) -> Result<()> {
        self.fleet
            .cli(&[
                "vm",
                "create",
                "mover",
                "--image",
                "lab-guest",
                "--memory",
                "1G",
                "--host",
                "a",
                "--start",
            ])?
            .ok()?;
        self.fleet
            .exec("a", &["sh", "-c", &virt_install_script("plain", 1024)])?
            .ok()?;
        guest::booted(self.fleet, "mover", 1)?;
        self.relays()?;
        let (mut total, mut downtime) = (Vec::new(), Vec::new());
        let mut hosts = ("a", "b");
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let result = self
                .fleet
                .json(&["vm", "migrate", "mover", "--to", hosts.1])?;
            let ours = start.elapsed().as_secs_f64();
            let ours_down = find(&result, "downtime_ms").context("no downtime in our result")?;

            let start = Instant::now();
            self.virsh_migrate(hosts.0, hosts.1)?;
            let peer = start.elapsed().as_secs_f64();
            let info = self
                .fleet
                .exec(hosts.1, &["virsh", "domjobinfo", "plain", "--completed"])?
                .ok()?
                .stdout;
            let peer_down = info
                .lines()
                .find(|l| l.starts_with("Total downtime"))
                .and_then(|l| l.split_whitespace().nth(2)?.parse().ok())
                .with_context(|| format!("no downtime in {info}"))?;
            total.push((ours, peer));
            downtime.push((ours_down, peer_down));
            hosts = (hosts.1, hosts.0);
        }
        show(
            "migrate 1 GiB, encrypted link / virsh migrate over TCP",
            &total,
            "s",
            "<= 1.15",
        );
        show("its downtime / virsh migrate's", &downtime, "ms", "<= 1.2");
        self.delete("mover")?;
        self.virsh_delete(hosts.0, "plain")
    }

    /// libvirt's own connection for the peer: an ordinary relay in the clear, since the lab's libvirt listens on no port.
    fn relays(&self) -> Result<()> {
        for (host, other) in [("a", "b"), ("b", "a")] {
            let address = self.address(other)?;
            let script = format!(
                "mkdir -p /run/plain && (setsid socat TCP-LISTEN:16509,reuseaddr,fork UNIX-CONNECT:/run/libvirt/libvirt-sock & \
                 setsid socat UNIX-LISTEN:/run/plain/peer.sock,fork TCP:{address}:16509,nodelay &) </dev/null >/dev/null 2>&1"
            );
            self.fleet.exec(host, &["sh", "-c", &script])?.ok()?;
        }
        Ok(())
    }

    fn address(&self, host: &str) -> Result<String> {
        let view = self.fleet.json(&["host", "show", host])?;
        let address = view["address"].as_str().context("host has no address")?;
        Ok(address
            .rsplit_once(':')
            .map_or(address, |(ip, _)| ip)
            .to_owned())
    }

    fn virsh_migrate(&self, from: &str, to: &str) -> Result<()> {
        let disk = plain_disk("plain");
        self.fleet
            .exec(
                to,
                &[
                    "sh",
                    "-c",
                    &format!("qemu-img create -q -f qcow2 {disk} 64M && chmod 666 {disk}"),
                ],
            )?
            .ok()?;
        let uri = format!("tcp://{}", self.address(to)?);
        self.fleet
            .exec(
                from,
                &[
                    "virsh",
                    "migrate",
                    "--live",
                    "--p2p",
                    "--persistent",
                    "--undefinesource",
                    "--copy-storage-all",
                    "plain",
                    "qemu+unix:///system?socket=/run/plain/peer.sock",
                    "--migrateuri",
                    &uri,
                ],
            )?
            .ok()?;
        self.fleet.exec(from, &["rm", "-f", &disk])?.ok().map(drop)
    }

    /// A TPM for each of many stopped VMs on both hosts, against a loop over the program that makes TPMs. Both make the
    /// same number of them, so with what is not made ahead neither can be faster than the cores: 1 / cores is the limit.
    fn bulk(&self) -> Result<()> {
        let names: Vec<String> = (0..MANY).map(|i| format!("bulk{i}")).collect();
        for (at, name) in names.iter().enumerate() {
            let host = ["a", "b"][at % 2];
            let words = [
                "vm", "create", name, "--disk", "16M", "--memory", "64M", "--host", host,
                "--no-tpm", "--label", "bulk=yes",
            ];
            self.fleet.cli(&words)?.ok()?;
        }
        let enable = || {
            timed(|| {
                let enable = ["tpm", "enable", "--label", "bulk=yes", "--yes"];
                self.fleet.cli(&enable)?.ok().map(drop)
            })
        };
        let busy = enable()?;
        let disable = ["tpm", "disable", "--label", "bulk=yes", "--yes"];
        self.fleet.cli(&disable)?.ok()?;
        self.rested(MANY / 2)?;
        let rested = enable()?;
        let script = format!(
            "set -e; d=$(mktemp -d); for i in $(seq {MANY}); do mkdir $d/$i; swtpm_setup --tpm2 --tpmstate $d/$i --create-ek-cert \
             --lock-nvram --pcr-banks sha256 >/dev/null; done; rm -r $d"
        );
        let peer = timed(|| {
            let run = self.fleet.exec("a", &["sh", "-c", &script])?;
            run.ok().map(drop)
        })?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        for (ours, hosts) in [(busy, "busy"), (rested, "rested")] {
            show(
                &format!("TPM on for {MANY} VMs, hosts {hosts} before / serial swtpm_setup"),
                &[(ours, peer)],
                "s",
                &format!("<= 0.1; {cores} cores allow {:.2}", 1.0 / cores as f64),
            );
        }
        Ok(())
    }

    /// Waits until each host has made that many TPMs in advance, which a lab's do not make by themselves.
    fn rested(&self, ready: usize) -> Result<()> {
        for host in ["a", "b"] {
            let more = format!("s/^tpm_pool_at_rest = .*/tpm_pool_at_rest = {ready}/");
            let edit = ["sed", "-i", &more, "/etc/fleetward/agent.toml"];
            self.fleet.exec(host, &edit)?.ok()?;
            let agent = format!("{host}/agent");
            self.fleet.kill(&agent)?;
            self.fleet.start(&agent)?;
        }
        wait::until(
            "TPMs to be made in advance",
            Duration::from_secs(900),
            || {
                let hosts = self.fleet.json(&["host", "list"])?;
                let hosts = hosts.as_array().context("a list of hosts")?;
                let has = |host: &Value| host["facts"]["tpm_pool"].as_u64() >= Some(ready as u64);
                Ok(hosts.iter().all(has).then_some(()))
            },
        )
    }

    /// One host more: how long until every key of its group is wrapped for it. The VMs are those of the bulk before.
    fn join_a_host(&self) -> Result<()> {
        self.fleet.lab("up", &["--hosts", "3"])?.ok()?;
        let took = wait::until("the keys to be granted", Duration::from_secs(300), || {
            let jobs = self.fleet.json(&["job", "list"])?;
            let mut jobs = jobs.as_array().into_iter().flatten();
            let grant = jobs.find(|job| job["kind"] == "guardian-grant" && job["state"] == "done");
            Ok(match grant {
                Some(job) => Some(lasted(job)?),
                None => None,
            })
        })?;
        println!(
            "{:<57} {took:>18.1} s           <= {} (20 s for 1,000)",
            format!("a third host is granted {MANY} keys"),
            20.0 * MANY as f64 / 1_000.0
        );
        Ok(())
    }

    fn idle_memory(&self) -> Result<()> {
        std::thread::sleep(Duration::from_secs(5));
        let agent = self
            .fleet
            .exec(
                "a",
                &[
                    "sh",
                    "-c",
                    "grep VmRSS /proc/$(pgrep -o -x fleetward-agent)/status",
                ],
            )?
            .ok()?;
        let status = run(std::process::Command::new("sh").arg("-c").arg(format!(
            "for p in $(pgrep -x fleetward); do tr '\\0' ' ' </proc/$p/cmdline | grep -q '{}' && grep VmRSS /proc/$p/status; done; true",
            self.fleet.directory().display()
        )))?
        .ok()?;
        for (who, text, goal) in [
            ("agent", agent.stdout, 40.0),
            ("controller", status.stdout, 80.0),
        ] {
            let kib: f64 = text
                .split_whitespace()
                .find_map(|w| w.parse().ok())
                .with_context(|| format!("no memory of the {who}"))?;
            println!(
                "{:<57} {:>18.1} MB          <= {goal}",
                format!("idle {who}, resident"),
                kib / 1024.0
            );
        }
        Ok(())
    }
}

fn plain_disk(name: &str) -> String {
    format!("/var/lib/libvirt/images/{name}.qcow2")
}

fn virt_install_script(name: &str, memory: u32) -> String {
    let disk = plain_disk(name);
    format!(
        "mkdir -p /var/lib/libvirt/images && image=$(ls /var/lib/fleetward/images/*.qcow2 | head -1) && \
         qemu-img convert -f qcow2 -O qcow2 \"$image\" {disk} && chmod 666 {disk} && \
         virt-install --quiet --name {name} --memory {memory} --vcpus 1 --import --osinfo linux2022 --virt-type qemu --machine q35 \
         --disk path={disk},format=qcow2,bus=virtio --network none --graphics none --noautoconsole --cpu mode=maximum \
         --boot firmware=efi,firmware.feature0.name=secure-boot,firmware.feature0.enabled=yes,firmware.feature1.name=enrolled-keys,firmware.feature1.enabled=yes \
         --features smm.state=on --tpm backend.type=emulator,backend.version=2.0,model=tpm-crb"
    )
}

/// From a job's creation to its end, in seconds.
fn lasted(job: &Value) -> Result<f64> {
    let at = |key: &str| {
        let text = job[key]
            .as_str()
            .with_context(|| format!("no {key} in {job}"))?;
        Ok::<_, anyhow::Error>(OffsetDateTime::parse(text, &Rfc3339)?)
    };
    Ok((at("ended")? - at("created")?).as_seconds_f64())
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

/// The first number of that name anywhere in the value.
fn find(value: &Value, key: &str) -> Option<f64> {
    match value {
        Value::Object(map) => map
            .get(key)
            .and_then(Value::as_f64)
            .or_else(|| map.values().find_map(|v| find(v, key))),
        Value::Array(list) => list.iter().find_map(|v| find(v, key)),
        _ => None,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn show(what: &str, pairs: &[Pair], unit: &str, goal: &str) {
    let ratio = median(pairs.iter().map(|(ours, peer)| ours / peer).collect());
    let (ours, peer) = (
        median(pairs.iter().map(|p| p.0).collect()),
        median(pairs.iter().map(|p| p.1).collect()),
    );
    println!("{what:<57} {ratio:>7.2} {ours:>7.1} {unit:<2} {peer:>6.1} {unit:<2} {goal}");
}

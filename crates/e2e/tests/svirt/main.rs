//! VMs that libvirt confines with AppArmor: two machines whose kernels have it, as Debian installs them, with the agents and the
//! controller of the tests, and VMs in them.
//!
//! The machines are emulated, and their VMs are emulated in them, so nothing here waits for a guest: QEMU and swtpm run, with
//! what they opened. The image is made from Debian's packages, which takes a minute and a mirror of Debian. So this is a part of
//! `make soak` (`FLEETWARD_E2E_SOAK=1`).

#![allow(
    clippy::disallowed_methods,
    reason = "tests make and read files as they like"
)]

mod image;
mod machine;

use anyhow::{Context, Result, ensure};
use fleetward_e2e::fleet::{run, text};
use fleetward_e2e::wait::{self, seconds};
use image::Image;
use libtest_mimic::{Arguments, Failed, Trial};
use machine::Machine;
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::{Arc, Mutex};
use std::time::Instant;

const VM: &str = "desk1";

type Claim = (&'static str, fn(&mut World) -> Result<()>);

const CLAIMS: &[Claim] = &[
    ("hosts_say_that_apparmor_confines_their_vms", told),
    ("qemu_and_swtpm_of_a_vm_run_under_its_own_profile", started),
    (
        "a_profile_opens_its_own_vms_tpm_and_disk_and_no_others",
        apart,
    ),
    ("a_vm_moves_live_and_is_confined_where_it_arrives", moved),
    ("a_clone_of_it_is_confined_apart_from_it", cloned),
    ("a_vm_with_a_rolled_key_is_confined_as_before", rolled),
    (
        "a_vm_of_a_lost_host_is_confined_where_it_is_rebuilt",
        rebuilt,
    ),
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let claims = match std::env::var_os("FLEETWARD_E2E_SOAK") {
        None => &[],
        Some(_) => CLAIMS,
    };
    let world: Arc<Mutex<Option<World>>> = Arc::default();
    let trials = claims.iter().map(|&(claim, prove)| {
        let world = Arc::clone(&world);
        Trial::test(claim, move || {
            let mut world = world
                .lock()
                .map_err(|_| Failed::from("an earlier case panicked"))?;
            let mut proved = || {
                if world.is_none() {
                    *world = Some(World::up()?);
                }
                let start = Instant::now();
                let proved = prove(world.as_mut().context("it is up")?);
                eprintln!("{claim}: {:.1} s", start.elapsed().as_secs_f32());
                proved
            };
            proved().map_err(|error| {
                // Now, and not only at the end: a later case may hang.
                eprintln!("{claim}: {error:#}");
                Failed::from(format!("{error:#}"))
            })
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    drop(world.lock().ok().and_then(|mut world| world.take()));
    conclusion.exit_code()
}

/// Two machines, and what lies around them on this one.
struct World {
    a: Machine,
    b: Machine,
    directory: PathBuf,
}

impl Drop for World {
    fn drop(&mut self) {
        self.a.kill();
        self.b.kill();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// What both hosts are given; `NAME` and `ADDRESS` are the host's.
const HOST: &str = r#"set -e
printf '127.0.0.1 localhost\n10.9.0.1 a\n10.9.0.2 b\n' > /etc/hosts
ip addr add ADDRESS/24 dev eth0
ip link set eth0 up
apparmor_parser -r /etc/apparmor.d/usr.sbin.libvirtd /etc/apparmor.d/usr.lib.libvirt.virt-aa-helper
mkdir -p /etc/fleetward /srv/vms
printf 'cgroup_controllers = [ ]\nstdio_handler = "file"\n' > /etc/libvirt/qemu.conf
printf 'auth_unix_rw = "none"\nunix_sock_group = "root"\nhost_uuid = "%s"\n' $(cat /proc/sys/kernel/random/uuid) > /etc/libvirt/libvirtd.conf
libvirtd -d
cat > /etc/fleetward/agent.toml << END
advertise = "ADDRESS:7443"
accelerator = "tcg"
tpm_pool_size = 1
tpm_pool_at_rest = 1
nvram_dir = "/var/lib/fleetward/uefi"

[[pool]]
name = "default"
path = "/srv/vms"
END
"#;
const CONTROLLER: &str = r#"set -e
setsid /mnt/given/fleetward controller run --data /var/lib/fwc --listen 0.0.0.0:7440 --advertise 10.9.0.1:7440 \
    --socket /run/fwc.sock > /var/log/controller.log 2>&1 &
"#;

/// Writes what arrives at port 9000 to `FILE`.
const RECEIVE: &str = r#"setsid perl -MIO::Socket::INET -e '
    my $listening = IO::Socket::INET->new(LocalAddr => "10.9.0.1", LocalPort => 9000, Listen => 1, ReuseAddr => 1) or die;
    open(my $file, ">", "FILE") or die;
    my $from = $listening->accept;
    while (read($from, my $part, 65536)) { print $file $part }
' > /var/log/receive.log 2>&1 &
sleep 1
"#;

impl World {
    fn up() -> Result<Self> {
        let image = Image::get()?;
        let parent = std::env::var_os("FLEETWARD_LAB_DIR")
            .map_or_else(|| PathBuf::from("/var/lib/fleetward-lab"), PathBuf::from);
        let directory = parent.join("svirt-machines");
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir_all(&directory)?;
        let me = std::env::current_exe()?;
        let programs = me
            .ancestors()
            .skip(1)
            .find(|at| at.join("fleetward-lab").is_file())
            .context(
                "fleetward-lab is not beside the tests; build it first: cargo build --workspace",
            )?;
        let guest = directory.join("guest.qcow2");
        let mut build = Command::new(programs.join("fleetward-lab"));
        run(build.args(["image", "build", "--out"]).arg(&guest))?.ok()?;
        let files = [
            (programs.join("fleetward"), "fleetward"),
            (programs.join("fleetward-agent"), "fleetward-agent"),
            (guest, "guest.qcow2"),
        ];
        let given = machine::given(&directory, &files)?;
        let world = Self {
            a: Machine::boot("a", true, &image, &given, &directory)?,
            b: Machine::boot("b", false, &image, &given, &directory)?,
            directory,
        };
        let host = |name, address| HOST.replace("NAME", name).replace("ADDRESS", address);
        world.a.ok(&host("a", "10.9.0.1"))?;
        world.b.ok(&host("b", "10.9.0.2"))?;
        world.a.ok(CONTROLLER)?;
        wait::until("the controller", seconds(120), || {
            Ok(world.fleetward("host list").ok())
        })?;
        for (name, machine) in [("a", &world.a), ("b", &world.b)] {
            let token = world.json(&format!("host token {name}"))?;
            let token = text(&token, "token")?;
            machine.ok(&format!(
                "set -e; echo {token} | /mnt/given/fleetward-agent join\n\
                 setsid /mnt/given/fleetward-agent run > /var/log/agent.log 2>&1 &"
            ))?;
            world.is(name, "online")?;
        }
        world.fleetward("image import lab-guest /mnt/given/guest.qcow2")?;
        Ok(world)
    }

    /// The command line, on the controller's machine.
    fn fleetward(&self, words: &str) -> Result<String> {
        self.a.ok(&format!(
            "/mnt/given/fleetward --yes --quiet --socket /run/fwc.sock {words}"
        ))
    }

    fn json(&self, words: &str) -> Result<Value> {
        let said = self.fleetward(&format!("-o json {words}"))?;
        serde_json::from_str(&said).with_context(|| format!("not JSON: {said}"))
    }

    fn is(&self, host: &str, state: &str) -> Result<()> {
        wait::until(&format!("host {host} to be {state}"), seconds(180), || {
            let shown = self.json(&format!("host show {host}"))?;
            Ok((shown["state"] == state).then_some(()))
        })
    }

    fn warnings(&self, host: &str) -> Result<String> {
        Ok(self.json(&format!("host show {host}"))?["warnings"].to_string())
    }

    fn id(&self, vm: &str) -> Result<String> {
        text(&self.json(&format!("vm show {vm}"))?, "id")
    }
}

/// QEMU and swtpm of a VM, each with the profile that the kernel holds it to, and no other of that name.
fn confined(machine: &Machine, id: &str) -> Result<()> {
    let said = machine.ok(&format!(
        "for process in /proc/[0-9]*; do\n\
           case \"$(cat $process/cmdline 2>/dev/null | tr '\\0' ' ')\" in\n\
             *swtpm*/{id}/*) echo \"swtpm $(cat $process/attr/current)\";;\n\
             *'-uuid {id} '*) echo \"qemu $(cat $process/attr/current)\";;\n\
           esac\n\
         done"
    ))?;
    let mut seen: Vec<&str> = said.lines().collect();
    seen.sort_unstable();
    let expected = ["qemu", "swtpm"].map(|what| format!("{what} libvirt-{id} (enforce)"));
    ensure!(seen == expected, "{said}");
    Ok(())
}

/// Whether root can read that file under the VM's profile.
fn reads(machine: &Machine, id: &str, file: &str) -> Result<bool> {
    // It must be there and have something in it, or a refusal would mean nothing.
    machine.ok(&format!("test -s {file}"))?;
    let (code, _) = machine.run(&format!(
        "aa-exec -p libvirt-{id} -- head -c 1 {file} > /dev/null"
    ))?;
    Ok(code == 0)
}

fn tpm_state(id: &str) -> String {
    format!("/var/lib/libvirt/swtpm/{id}/tpm2/tpm2-00.permall")
}

fn disk(id: &str) -> String {
    format!("/srv/vms/{id}-vda.qcow2")
}

fn variables(id: &str) -> String {
    format!("/var/lib/fleetward/uefi/{id}_VARS.fd")
}

/// Each of two VMs opens its own of these files, and not the other's.
fn are_apart(
    machine: &Machine,
    one: &str,
    other: &str,
    files: &[fn(&str) -> String],
) -> Result<()> {
    for file in files {
        for (mine, theirs) in [(one, other), (other, one)] {
            let (own, foreign) = (file(mine), file(theirs));
            ensure!(reads(machine, mine, &own)?, "its own: {own}");
            ensure!(!reads(machine, mine, &foreign)?, "another's: {foreign}");
        }
    }
    Ok(())
}

fn told(world: &mut World) -> Result<()> {
    for (name, machine) in [("a", &world.a), ("b", &world.b)] {
        let shown = world.json(&format!("host show {name}"))?;
        ensure!(shown["facts"]["confinement"] == "apparmor", "{shown}");
        // What it says is missing is cured by the command that it says.
        let warned = shown["warnings"].as_array().into_iter().flatten();
        let warned = warned
            .filter_map(Value::as_str)
            .find_map(|warning| warning.split_once("as root: "))
            .context("no word of the rule for migrations")?;
        let (command, _) = warned.1.split_once("; VMs").context("no command")?;
        machine.ok(command)?;
        wait::until("the warning to go", seconds(60), || {
            Ok((!world.warnings(name)?.contains("AppArmor")).then_some(()))
        })?;
    }
    Ok(())
}

fn started(world: &mut World) -> Result<()> {
    world.fleetward(&format!(
        "vm create {VM} --image lab-guest --memory 512M --host a --start"
    ))?;
    confined(&world.a, &world.id(VM)?)?;
    let checked = world.json(&format!("check {VM} --to b"))?.to_string();
    ensure!(!checked.contains("HOST_UNCONFINED"), "{checked}");
    Ok(())
}

fn apart(world: &mut World) -> Result<()> {
    world.fleetward("vm create other --image lab-guest --memory 512M --host a --start")?;
    let (one, other) = (world.id(VM)?, world.id("other")?);
    are_apart(&world.a, &one, &other, &[tpm_state, variables, disk])?;
    let keys = world.a.ok("ls /var/lib/fleetward/guardians/*.guardian")?;
    ensure!(!reads(&world.a, &one, &keys)?, "the guardian: {keys}");
    world.is("a", "online")?;
    world.fleetward("vm stop other --force")?;
    world.fleetward("vm delete other").map(drop)
}

fn moved(world: &mut World) -> Result<()> {
    let id = world.id(VM)?;
    // On a loaded machine the emulated ones are late with their reports at times.
    world.is("a", "online")?;
    world.is("b", "online")?;
    world.fleetward(&format!("vm migrate {VM} --to b"))?;
    confined(&world.b, &id)?;
    ensure!(reads(&world.b, &id, &tpm_state(&id))?);
    let gone = world.a.ok("aa-status | grep -c libvirt- || true")?;
    ensure!(gone == "0", "profiles are left at the source: {gone}");
    Ok(())
}

fn cloned(world: &mut World) -> Result<()> {
    world.fleetward(&format!("vm clone {VM} copy --tpm copy"))?;
    world.fleetward("vm start copy")?;
    let (source, clone) = (world.id(VM)?, world.id("copy")?);
    // Its source has been running throughout.
    confined(&world.b, &source)?;
    confined(&world.b, &clone)?;
    // A linked clone reads its source's disk.
    are_apart(&world.b, &source, &clone, &[tpm_state, variables])?;
    world.fleetward("vm stop copy --force")?;
    world.fleetward("vm delete copy").map(drop)
}

fn rolled(world: &mut World) -> Result<()> {
    let id = world.id(VM)?;
    world.is("b", "online")?;
    world.fleetward(&format!("vm stop {VM} --force"))?;
    world.fleetward(&format!("tpm roll {VM}"))?;
    world.fleetward(&format!("vm start {VM}"))?;
    confined(&world.b, &id)?;
    ensure!(reads(&world.b, &id, &tpm_state(&id))?);
    world.fleetward(&format!("vm stop {VM} --force")).map(drop)
}

fn rebuilt(world: &mut World) -> Result<()> {
    world.is("b", "online")?;
    world.fleetward("vm create lost --image lab-guest --memory 512M --host b")?;
    let id = world.id("lost")?;
    wait::until("its copy at the controller", seconds(120), || {
        let shown = world.json("vm show lost")?;
        Ok((shown["escrow"]["current"] == true).then_some(()))
    })?;
    // The administrator's backup of the disk, which the controller does not keep.
    world.a.ok(&RECEIVE.replace("FILE", &disk(&id)))?;
    let sent = format!("cat {} > /dev/tcp/10.9.0.1/9000", disk(&id));
    world.b.ok(&format!("bash -c '{sent}'"))?;
    let sum = |machine: &Machine| machine.ok(&format!("sha256sum < {}", disk(&id)));
    let sent = sum(&world.b)?;
    wait::until("the backup to arrive", seconds(60), || {
        Ok((sum(&world.a)? == sent).then_some(()))
    })?;
    world.b.kill();
    world.is("b", "unreachable")?;
    world.fleetward("vm recover lost --to a")?;
    world.fleetward("vm start lost")?;
    confined(&world.a, &id)?;
    ensure!(reads(&world.a, &id, &tpm_state(&id))?);
    ensure!(reads(&world.a, &id, &disk(&id))?);
    Ok(())
}

//! Guests on networks: they are reached, they stay reached when they move, and they send nothing under another's address.
//!
//! The lab's networks `lan` and `back` are Linux bridges that span the hosts, `vs` is one of Open vSwitch. Tests talk to the
//! guests of `lan` from 10.0.0.1.

use anyhow::{Context, Result, bail, ensure};
use fleetward_e2e::fleet::Fleet;
use fleetward_e2e::lan::{address_of, beside_guests, peers, reached};
use fleetward_e2e::wait::{self, seconds};
use fleetward_e2e::{guest, suite};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// Moves between the hosts.
const WEB: &str = "web";
/// Stays.
const DB: &str = "db";
/// Whose cards change.
const CARDS: &str = "cards";

/// Longest silence of a connection across a migration that is still taken for the guest's pause. Under translation, with
/// several hosts on two cores, the pause is much longer than on real hosts.
const SILENCE: Duration = seconds(20);

fn main() -> ExitCode {
    suite::run(
        "e2e-networks",
        &[
            "--hosts",
            "3",
            "--network",
            "lan",
            "--network",
            "vs:openvswitch",
            "--network",
            "back",
        ],
        &[
            (
                "a_host_tells_its_networks_and_nobody_gets_a_missing_one",
                offered,
            ),
            (
                "a_connection_goes_on_while_its_guest_moves_from_host_to_host",
                moving,
            ),
            (
                "a_card_goes_to_another_bridge_while_its_guest_runs",
                other_bridge,
            ),
            (
                "a_guest_is_reached_from_another_host_and_only_in_its_vlan",
                vlans,
            ),
            (
                "a_guest_under_clean_traffic_is_not_heard_as_somebody_else",
                forging,
            ),
            (
                "cards_change_while_the_guest_runs_and_move_and_are_copied",
                changing,
            ),
        ],
    )
}

fn offered(fleet: &Fleet) -> Result<()> {
    let networks = fleet.json(&["network", "list"])?;
    let names: Vec<&str> = each(&networks)
        .filter_map(|network| network["name"].as_str())
        .collect();
    ensure!(names == ["back", "lan", "nat", "vs"], "{networks}");
    for network in each(&networks) {
        let hosts: Vec<&Value> = each(&network["hosts"]).collect();
        ensure!(hosts.len() == 3, "{network}");
        ensure!(
            hosts.iter().all(|host| host.get("problem").is_none()),
            "{network}"
        );
        let vlans = network["name"] == "vs";
        ensure!(
            hosts
                .iter()
                .all(|host| host["vlans"] == vlans || network["name"] != "nat"),
            "{network}"
        );
    }
    let create = [
        "vm",
        "create",
        "nowhere",
        "--image",
        "lab-guest",
        "--nic",
        "dmz",
    ];
    let nowhere = fleet.cli(&create)?.refused(4, "NO_HOST_FITS")?;
    ensure!(
        nowhere.stderr.contains("host b has no network dmz"),
        "{}",
        nowhere.stderr
    );
    let there = [&create[..], &["--host", "a"]].concat();
    let refused = fleet.cli(&there)?.refused(4, "NETWORK_MISSING")?;
    let fix = "fleetward network list tells which hosts have it";
    ensure!(refused.stderr.contains(fix), "{}", refused.stderr);
    Ok(())
}

fn moving(fleet: &Fleet) -> Result<()> {
    made(fleet, WEB, "a", &["--nic", "lan"])?;
    let address = address_of(fleet, WEB)?;
    let before = guest::last(fleet, WEB)?.context("it has spoken")?;
    let mut connection = Connection::open(fleet, &address)?;
    let ping = Ping::start(fleet, &address)?;
    connection.talk_for(seconds(2))?;
    let calm = connection.take_longest_silence();
    let mut downtimes = Vec::new();
    for host in ["b", "c", "a"] {
        let job = fleet.start_job(&["vm", "migrate", WEB, "--to", host])?;
        connection.talk_until(|| Ok(fleet.json(&["job", "show", &job])?["ended"].is_string()))?;
        let ended = fleet.json(&["job", "show", &job])?;
        ensure!(ended["state"] == "done", "{ended}");
        connection.talk_for(seconds(2))?;
        let silence = connection.take_longest_silence();
        eprintln!(
            "to {host}: longest silence {} ms (while it stays: {} ms), result {}",
            silence.as_millis(),
            calm.as_millis(),
            ended["result"]
        );
        ensure!(
            silence < SILENCE,
            "silent for {silence:?} on the way to {host}"
        );
        downtimes.push(silence);
    }
    let (sent, received) = ping.stop()?;
    let lost = sent.saturating_sub(received);
    // One ping each 200 ms; the silences explain so many, and one more at each end of each.
    let explained: u64 = downtimes
        .iter()
        .map(|silence| u64::try_from(silence.as_millis() / 200).unwrap_or(u64::MAX) + 2)
        .sum();
    eprintln!("ping: {sent} sent, {lost} lost, {explained} explained by the silences");
    ensure!(
        lost <= explained,
        "{lost} of {sent} pings were lost, the silences explain {explained}"
    );
    guest::goes_on(fleet, WEB, &before)?;
    Ok(())
}

/// Two guests on different hosts go from one Linux bridge to another, one after the other.
fn other_bridge(fleet: &Fleet) -> Result<()> {
    made(fleet, WEB, "a", &["--nic", "lan"])?;
    made(fleet, DB, "b", &["--nic", "lan"])?;
    sees(fleet, WEB, DB, true).context("both on lan")?;
    let to = |name, network| {
        let set = ["vm", "nic", "set", name, "nic-0", "--network", network];
        fleet.cli(&set)?.ok()?;
        nothing_waits(fleet, name)?;
        let vm = fleet.vm(name)?;
        ensure!(vm["nics"][0]["network"] == network, "{vm}");
        Ok(())
    };
    to(DB, "back")?;
    sees(fleet, WEB, DB, false).context("on lan, where the other is no more")?;
    reached(fleet, &address_of(fleet, DB)?, false)?;
    to(WEB, "back")?;
    sees(fleet, WEB, DB, true).context("both on back")?;
    to(WEB, "lan")?;
    sees(fleet, WEB, DB, false).context("on lan again")?;
    reached(fleet, &address_of(fleet, WEB)?, true)
}

/// Two guests on different hosts in the VLANs of an Open vSwitch.
fn vlans(fleet: &Fleet) -> Result<()> {
    fleet.cli(&["vm", "stop", DB, "--force"])?.ok()?;
    // Names of their own: the serial line of a VM that was deleted stays in the lab.
    let (one, other) = ("web-7", "db-7");
    made(fleet, one, "a", &["--nic", "vs,vlan=7"])?;
    made(fleet, other, "b", &["--nic", "vs,vlan=7"])?;
    sees(fleet, one, other, true).context("in the same VLAN")?;
    let to_vlan = |vlan| {
        fleet
            .cli(&["vm", "nic", "set", other, "nic-0", "--vlan", vlan])?
            .ok()
    };
    to_vlan("8")?;
    let vm = fleet.vm(other)?;
    ensure!(
        vm["nics"][0]["vlan"] == 8 && vm["pending"] == json!([]),
        "{vm}"
    );
    sees(fleet, one, other, false).context("in another VLAN")?;
    to_vlan("7")?;
    sees(fleet, one, other, true).context("in the same VLAN again")?;
    // A card leaves an Open vSwitch when its VM starts anew, and until then is in it as it was.
    let set = ["vm", "nic", "set", other, "nic-0"];
    let away = [&set[..], &["--network", "lan", "--vlan", "none"]].concat();
    let result = fleet.json(&away)?;
    ensure!(result["next_start"] == json!(["nics"]), "{result}");
    sees(fleet, one, other, true).context("which waits to leave")?;
    fleet
        .cli(&[&set[..], &["--network", "vs", "--vlan", "7"]].concat())?
        .ok()?;
    nothing_waits(fleet, other)?;
    fleet.cli(&["vm", "migrate", other, "--to", "c"])?.ok()?;
    sees(fleet, one, other, true).context("in the same VLAN, on a third host")?;
    fleet.cli(&["vm", "stop", one, other, "--force"])?.ok()?;
    Ok(())
}

fn forging(fleet: &Fleet) -> Result<()> {
    const FORGED: &str = "02:00:00:00:0f:01";
    made(fleet, WEB, "a", &["--nic", "lan"])?;
    let address = address_of(fleet, WEB)?;
    forge(fleet, &address, FORGED)?;
    wait::until("the forged address to be learnt", seconds(20), || {
        Ok(learnt(fleet)?.contains(FORGED).then_some(()))
    })?;
    reached(fleet, &address, true)?;
    let filtered = [
        "vm",
        "nic",
        "set",
        WEB,
        "nic-0",
        "--filter",
        "clean-traffic",
    ];
    fleet.cli(&filtered)?.ok()?;
    let vm = fleet.vm(WEB)?;
    let nic = &vm["nics"][0];
    ensure!(
        nic["filter"] == "clean-traffic" && vm["pending"] == json!([]),
        "{vm}"
    );
    not_heard(fleet, &address, 2).context("with the filter")?;
    // It goes along.
    fleet.cli(&["vm", "migrate", WEB, "--to", "b"])?.ok()?;
    not_heard(fleet, &address, 6).context("with the filter, on another host")
}

/// Sends under other addresses, of which nothing arrives. libvirt filters by the hardware address at once; when it has learnt
/// the IP address from what the guest sends, it replaces the rules, and in that moment something may pass.
///
/// (Nobody looks at the rules meanwhile: `ebtables -L` makes the replacement fail, and libvirt then lets nothing pass.)
fn not_heard(fleet: &Fleet, address: &str, first: u8) -> Result<()> {
    reached(fleet, address, true)?;
    for number in first..first + 3 {
        let mac = format!("02:00:00:00:0f:{number:02x}");
        forge(fleet, address, &mac)?;
        // Back under its own address it has sent everything that it sends under the other.
        reached(fleet, address, true)?;
        if !learnt(fleet)?.contains(&mac) {
            return Ok(());
        }
        eprintln!("heard as {mac}, while the rules were replaced");
    }
    bail!("it is heard under every address")
}

/// Each change of a card on a running and on a stopped VM; afterwards everything is as `vm show` says, also elsewhere.
fn changing(fleet: &Fleet) -> Result<()> {
    made(fleet, CARDS, "a", &["--no-nic"])?;
    ensure!(fleet.vm(CARDS)?["nics"] == json!([]));
    let before = guest::last(fleet, CARDS)?.context("it has spoken")?;
    fleet.cli(&["vm", "nic", "add", CARDS, "lan"])?.ok()?;
    nothing_waits(fleet, CARDS)?;
    let address = address_of(fleet, CARDS)?;
    reached(fleet, &address, true)?;
    fleet
        .cli(&["vm", "nic", "set", CARDS, "nic-0", "--link", "down"])?
        .ok()?;
    nothing_waits(fleet, CARDS)?;
    reached(fleet, &address, false)?;
    fleet
        .cli(&["vm", "nic", "set", CARDS, "nic-0", "--link", "up"])?
        .ok()?;
    reached(fleet, &address, true)?;
    let other = [
        "vm",
        "nic",
        "set",
        CARDS,
        "nic-0",
        "--mac",
        "52:54:00:61:62:63",
        "-o",
        "json",
    ];
    let result = fleet.cli(&other)?.ok()?.json()?;
    ensure!(result["next_start"] == json!(["nics"]), "{result}");
    let vm = fleet.vm(CARDS)?;
    ensure!(
        vm["pending"][0]["wanted"]["mac"] == "52:54:00:61:62:63",
        "{vm}"
    );
    guest::goes_on(fleet, CARDS, &before)?;
    // What waits goes along.
    fleet.cli(&["vm", "migrate", CARDS, "--to", "b"])?.ok()?;
    let moved = fleet.vm(CARDS)?;
    ensure!(
        moved["pending"] == vm["pending"] && moved["findings"] == json!([]),
        "{moved}"
    );
    reached(fleet, &address, true)?;
    fleet
        .cli(&["vm", "nic", "add", CARDS, "vs", "--vlan", "9"])?
        .ok()?;
    nothing_waits_for(fleet, CARDS, "nic-1")?;
    fleet.cli(&["vm", "nic", "remove", CARDS, "nic-1"])?.ok()?;
    wait::until("the guest to let nic-1 go", seconds(30), || {
        let vm = fleet.vm(CARDS)?;
        Ok((each(&vm["nics"]).count() == 1).then_some(()))
    })?;
    fleet.cli(&["vm", "stop", CARDS])?.ok()?;
    fleet
        .cli(&[
            "vm", "nic", "add", CARDS, "vs", "--vlan", "9", "--link", "down",
        ])?
        .ok()?;
    fleet
        .cli(&["vm", "migrate", CARDS, "--to", "c", "--offline"])?
        .ok()?;
    let vm = fleet.vm(CARDS)?;
    let nics = &vm["nics"];
    ensure!(
        nics[0]["mac"] == "52:54:00:61:62:63" && nics[1]["vlan"] == 9,
        "{vm}"
    );
    ensure!(
        nics[1]["link"] == "down" && vm["findings"] == json!([]),
        "{vm}"
    );
    fleet
        .cli(&["vm", "clone", CARDS, "twin", "--tpm", "new"])?
        .ok()?;
    let twin = fleet.vm("twin")?;
    for (one, other) in each(nics).zip(each(&twin["nics"])) {
        ensure!(
            one["network"] == other["network"] && one["vlan"] == other["vlan"],
            "{twin}"
        );
        ensure!(one["mac"] != other["mac"], "{twin}");
    }
    let taken = [
        "vm",
        "nic",
        "add",
        "twin",
        "lan",
        "--mac",
        "52:54:00:61:62:63",
    ];
    fleet.cli(&taken)?.refused(4, "MAC_TAKEN")?;
    fleet.cli(&["vm", "start", CARDS])?.ok()?;
    reached(fleet, "10.97.98.99", true).context("under its new address, on the third host")?;
    nothing_waits(fleet, CARDS)?;
    Ok(())
}

// ---- guests --------------------------------------------------------------------------------------------------

/// Runs on that host, with those cards; as it was made where it is there.
fn made(fleet: &Fleet, name: &str, host: &str, nics: &[&str]) -> Result<()> {
    let there = fleet.json(&["vm", "list"])?;
    if each(&there).any(|vm| vm["name"] == name) {
        if fleet.place(name)?.1 != host {
            fleet.cli(&["vm", "migrate", name, "--to", host])?.ok()?;
        }
        return Ok(());
    }
    let create = [
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
    ];
    fleet.cli(&[&create[..], nics].concat())?.ok()?;
    guest::booted(fleet, name, 1).map(drop)
}

/// Whether one guest reaches the other, through an echo.
fn sees(fleet: &Fleet, one: &str, other: &str, expected: bool) -> Result<()> {
    let address = address_of(fleet, other)?;
    let what = format!(
        "{one} to {} {other}",
        if expected { "reach" } else { "lose" }
    );
    wait::until(&what, seconds(60), || {
        let reached = peers(fleet, one)?.contains(&address);
        Ok((reached == expected).then_some(()))
    })
}

fn nothing_waits(fleet: &Fleet, name: &str) -> Result<()> {
    let vm = fleet.vm(name)?;
    ensure!(
        vm["pending"] == json!([]) && vm["findings"] == json!([]),
        "{vm}"
    );
    Ok(())
}

fn nothing_waits_for(fleet: &Fleet, name: &str, device: &str) -> Result<()> {
    let vm = fleet.vm(name)?;
    ensure!(
        each(&vm["pending"]).all(|pending| pending["device"] != device),
        "{vm}"
    );
    ensure!(each(&vm["nics"]).any(|nic| nic["id"] == device), "{vm}");
    Ok(())
}

fn each(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

// ---- from 10.0.0.1 -------------------------------------------------------------------------------------------

/// Asks the guest to send under another hardware address for three seconds.
fn forge(fleet: &Fleet, address: &str, mac: &str) -> Result<()> {
    let target = format!("TCP:{address}:8,connect-timeout=5");
    let mut child = beside_guests(fleet, &["socat", "-", &target])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("piped")?;
    writeln!(input, "forge {mac} 4")?;
    let mut answer = [0; 2];
    child
        .stdout
        .take()
        .context("piped")?
        .read_exact(&mut answer)
        .context("the guest does not obey")?;
    drop(input);
    let _ = child.kill();
    child.wait()?;
    let note = format!("sending as {mac}");
    wait::until(&note, seconds(20), || {
        let said = fleet.lab("serial", &[WEB])?.ok()?.stdout;
        Ok(said.contains(&note).then_some(()))
    })
}

/// The hardware addresses that the bridge between the hosts has learnt.
fn learnt(fleet: &Fleet) -> Result<String> {
    let output = beside_guests(fleet, &["bridge", "fdb", "show"]).output()?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// An echo that is spoken to every 50 ms, over one TCP connection.
struct Connection {
    child: Child,
    output: ChildStdout,
    said: Instant,
    longest: Duration,
}

impl Connection {
    fn open(fleet: &Fleet, address: &str) -> Result<Self> {
        reached(fleet, address, true)?;
        let target = format!("TCP:{address}:7,nodelay");
        let mut child = beside_guests(fleet, &["socat", "-", &target])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().context("piped")?;
        Ok(Self {
            child,
            output,
            said: Instant::now(),
            longest: Duration::ZERO,
        })
    }

    /// One word there and back.
    fn once(&mut self) -> Result<()> {
        let input = self.child.stdin.as_mut().context("piped")?;
        input.write_all(b"x\n").context("the connection is gone")?;
        let mut answer = [0; 2];
        self.output
            .read_exact(&mut answer)
            .context("the connection is gone")?;
        let now = Instant::now();
        self.longest = self.longest.max(now - self.said);
        self.said = now;
        std::thread::sleep(Duration::from_millis(50));
        Ok(())
    }

    fn talk_for(&mut self, time: Duration) -> Result<()> {
        let start = Instant::now();
        while start.elapsed() < time {
            self.once()?;
        }
        Ok(())
    }

    /// Looks once a second, in a process of its own: what is measured is the connection.
    fn talk_until(&mut self, ended: impl Fn() -> Result<bool> + Sync) -> Result<()> {
        let start = Instant::now();
        std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                while !ended()? {
                    if start.elapsed() > seconds(180) {
                        bail!("the job does not end");
                    }
                    std::thread::sleep(Duration::from_millis(500));
                }
                Ok(())
            });
            while !watch.is_finished() {
                self.once()?;
            }
            watch.join().expect("no panic")
        })
    }

    fn take_longest_silence(&mut self) -> Duration {
        std::mem::take(&mut self.longest)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A ping every 200 ms.
struct Ping(Child);

impl Ping {
    fn start(fleet: &Fleet, address: &str) -> Result<Self> {
        let ping = ["ping", "-i", "0.2", "-W", "1", address];
        Ok(Self(
            beside_guests(fleet, &ping).stdout(Stdio::piped()).spawn()?,
        ))
    }

    /// Sent and received.
    fn stop(mut self) -> Result<(u64, u64)> {
        // `ping` itself: fleetward-lab and nsenter stand between.
        let children = format!("/proc/{0}/task/{0}/children", self.0.id());
        let children = std::fs::read_to_string(children)?;
        let ping = children.split_whitespace().next().context("ping runs")?;
        fleetward_e2e::fleet::run(Command::new("kill").args(["-INT", ping]))?.ok()?;
        let mut said = String::new();
        self.0
            .stdout
            .take()
            .context("piped")?
            .read_to_string(&mut said)?;
        self.0.wait()?;
        let counts = said
            .lines()
            .find(|line| line.contains("packets transmitted"))
            .context("ping counts")?;
        let number = |word: &str| -> Result<u64> {
            let at = counts
                .split(", ")
                .find(|part| part.contains(word))
                .context("ping counts")?;
            Ok(at.split_whitespace().next().unwrap_or_default().parse()?)
        };
        Ok((number("transmitted")?, number("received")?))
    }
}

//! The one program of the lab guest: it runs as process 1 after `init` has mounted the kernel's file systems.
//!
//! Owns: the guest's side of the proof that a TPM moved with its VM. On the first boot it seals a random
//! secret to the TPM under a PCR 7 policy and keeps the sealed object on the disk; on every boot, once a
//! second, it unseals it again and prints one line that tests and people read:
//!
//! ```text
//! FLEETWARD-GUEST tick=12 uptime=31 unseal=ok boots=2 lockout=0 disks=vda:64M,vdb:1024M pcr7=5f1c... ek=9ab0... address=10.18.52.86 peers=10.18.52.87
//! ```
//!
//! - `tick` counts lines since this boot and lives only in memory: a gapless count across a migration means
//!   the guest was never restarted. `boots` lives on the disk.
//! - `unseal` is `ok`, `failed` (another TPM, another PCR 7, or no TPM where there was one), or `none` (this
//!   VM never had a TPM). A sealed object that does not open is never replaced.
//! - `lockout` is the TPM's count of wrong guesses (`TPM_PT_LOCKOUT_COUNTER`), `none` without a TPM. Once an object with a
//!   password was opened, an end without `TPM2_Shutdown` counts as one.
//! - `ek` is the SHA-256 of the RSA endorsement key certificate (NV index 0x01c00002, DER). Without a
//!   certificate it is `pub:` and the SHA-256 of the public area of the endorsement key (0x81010001), or
//!   `none`. `pcr7` is the SHA-256 bank's value.
//! - `address` is what the guest gave its first network card, 10 and the last three bytes of the hardware address,
//!   mask 255.0.0.0; `none` without a card. It answers ping, and echoes what it gets on TCP port 7. Other cards, also
//!   those that are added while it runs, get their addresses in the same way.
//! - `peers` are other lab guests whose broadcasts arrived within three seconds and who echo; `none`.
//!
//! On TCP port 8 it takes one command: `forge MAC SECONDS`, send with another hardware address for a while.
//! - `disks` are the disks that the kernel sees at that moment, by name, with their sizes in MiB.
//!
//! Its screen, the first virtual terminal, shows `tick=` too. A line that is typed there is printed as
//!
//! ```text
//! FLEETWARD-GUEST-NOTE typed=what was typed
//! ```
//!
//! If the line is `password`, it opens a TPM object that has one, and prints `FLEETWARD-GUEST-NOTE password=ok`.
//! `poweroff`, `reboot` and `panic` do what they say.
//!
//! It speaks TPM 2.0 commands (TPM 2.0 Library, part 3) to /dev/tpmrm0 by itself: under an emulated CPU every
//! process start costs, and a line a second must stay cheap. Only the standard library is used, so a plain
//! `rustc` builds it. Everything else it leaves to busybox.

#[path = "guest-agent.rs"]
mod guest_agent;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const BUSYBOX: &str = "/bin/busybox";
const STATE: &str = "/state";
const SECRET_DIGEST: &str = "/state/secret.sha256";
const SEALED: &str = "/state/sealed";

/// Set by the power button thread; the main loop then stops in good order.
static POWER_BUTTON: AtomicBool = AtomicBool::new(false);

/// Set when somebody has typed `password`.
static PASSWORD_ASKED: AtomicBool = AtomicBool::new(false);

/// Set when the guest agent is asked to shut the guest down.
static GUEST_AGENT_SHUTDOWN: AtomicBool = AtomicBool::new(false);

fn main() {
    watch_power_button();
    network::start();
    let mut screen = Screen::open();
    let disk = mount_state();
    guest_agent::serve();
    let boots = if disk { count_boot() } else { 0 };
    let mut tpm = Tpm::open();
    let unsealer = Unsealer::prepare(tpm.as_mut(), disk);
    let ek = tpm.as_mut().map_or("none".to_owned(), endorsement_key);

    let start = Instant::now();
    for tick in 1u64.. {
        if let (true, Some(tpm)) = (PASSWORD_ASKED.swap(false, Ordering::Relaxed), tpm.as_mut()) {
            match tpm.use_password() {
                Ok(()) => println!("FLEETWARD-GUEST-NOTE password=ok"),
                Err(error) => println!("FLEETWARD-GUEST-NOTE password=failed {error}"),
            }
        }
        let unseal = unsealer.unseal(tpm.as_mut());
        let pcr7 = match tpm.as_mut().map(|t| t.read_pcr7()) {
            Some(Ok(value)) => hex(&value),
            Some(Err(_)) => "failed".to_owned(),
            None => "none".to_owned(),
        };
        let lockout = match tpm.as_mut().map(|t| t.lockout_counter()) {
            Some(Ok(counter)) => counter.to_string(),
            Some(Err(_)) => "failed".to_owned(),
            None => "none".to_owned(),
        };
        println!("FLEETWARD-GUEST tick={tick} uptime={} unseal={unseal} boots={boots} lockout={lockout} disks={} pcr7={pcr7} ek={ek} address={} peers={}", uptime(), disks(), network::address(), network::peers());
        screen.show(&format!("FLEETWARD-GUEST tick={tick}"));
        let next = start + Duration::from_secs(tick);
        // Once at least: on a busy machine every tick is late.
        loop {
            if GUEST_AGENT_SHUTDOWN.load(Ordering::Relaxed) {
                power_off("guest agent");
            }
            if POWER_BUTTON.load(Ordering::Relaxed) {
                power_off("power button");
            }
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::sleep(Duration::from_millis(100).min(left));
        }
    }
}

/// What this boot can do with the sealed object.
enum Unsealer {
    /// The VM never had a TPM.
    NeverSealed,
    /// There is a sealed object but nothing that can load it, or sealing it failed.
    Broken,
    Ready { sealed: Vec<u8>, digest: String },
}

impl Unsealer {
    fn prepare(tpm: Option<&mut Tpm>, disk: bool) -> Self {
        if !disk {
            return Self::Broken;
        }
        let Some(tpm) = tpm else {
            return if Path::new(SEALED).exists() { Self::Broken } else { Self::NeverSealed };
        };
        if !Path::new(SEALED).exists() {
            if let Err(error) = seal_new_secret(tpm) {
                println!("FLEETWARD-GUEST-NOTE sealing failed: {error}");
                return Self::Broken;
            }
        }
        match (fs::read(SEALED), fs::read_to_string(SECRET_DIGEST)) {
            (Ok(sealed), Ok(digest)) => Self::Ready { sealed, digest },
            _ => Self::Broken,
        }
    }

    fn unseal(&self, tpm: Option<&mut Tpm>) -> &'static str {
        match (self, tpm) {
            (Self::NeverSealed, _) => "none",
            (Self::Broken, _) | (_, None) => "failed",
            (Self::Ready { sealed, digest }, Some(tpm)) => match tpm.unseal(sealed) {
                Ok(secret) if sha256(&secret) == *digest => "ok",
                _ => "failed",
            },
        }
    }
}

fn seal_new_secret(tpm: &mut Tpm) -> Result<(), String> {
    let mut secret = [0u8; 32];
    File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut secret)).map_err(|e| e.to_string())?;
    let sealed = tpm.seal(&secret)?;
    store(SECRET_DIGEST, sha256(&secret).as_bytes());
    // Last: the sealed object is what later boots look for.
    store(SEALED, &sealed);
    Ok(())
}

fn endorsement_key(tpm: &mut Tpm) -> String {
    match tpm.read_nv(0x01c0_0002) {
        Ok(certificate) => sha256(&certificate),
        Err(_) => tpm.read_public(0x8101_0001).map_or("none".to_owned(), |public| format!("pub:{}", sha256(&public))),
    }
}

// ---- the machine -------------------------------------------------------------------------------------------

fn mount_state() -> bool {
    for _ in 0..100 {
        if let Some(device) = output(&["findfs", "LABEL=lab-state"]) {
            return run(&["mount", "-t", "ext4", device.trim(), STATE]);
        }
        thread::sleep(Duration::from_millis(100));
    }
    println!("FLEETWARD-GUEST-NOTE no partition labelled lab-state");
    false
}

fn count_boot() -> u64 {
    let file = format!("{STATE}/boots");
    let boots = fs::read_to_string(&file).ok().and_then(|t| t.trim().parse().ok()).unwrap_or(0u64) + 1;
    store(&file, boots.to_string().as_bytes());
    boots
}

/// Replaces a file so that a power cut leaves the old or the new one.
fn store(path: &str, bytes: &[u8]) {
    let new = format!("{path}.new");
    let written = File::create(&new).and_then(|mut f| f.write_all(bytes).and_then(|()| f.sync_all()));
    if written.and_then(|()| fs::rename(&new, path)).is_err() {
        println!("FLEETWARD-GUEST-NOTE cannot write {path}");
    }
    run(&["sync"]);
}

/// Reads every input device; an evdev record is 24 bytes: time (16), type, code (2 each), value (4).
fn watch_power_button() {
    const EV_KEY: u16 = 1;
    const KEY_POWER: u16 = 116;
    let Ok(devices) = fs::read_dir("/dev/input") else { return };
    for device in devices.flatten().filter(|d| d.file_name().to_string_lossy().starts_with("event")) {
        thread::spawn(move || {
            let Ok(mut file) = File::open(device.path()) else { return };
            let mut event = [0u8; 24];
            while file.read_exact(&mut event).is_ok() {
                let field = |at: usize| u16::from_le_bytes([event[at], event[at + 1]]);
                if field(16) == EV_KEY && field(18) == KEY_POWER && event[20] == 1 {
                    POWER_BUTTON.store(true, Ordering::Relaxed);
                }
            }
        });
    }
}

/// The first virtual terminal. The kernel makes characters of keys there, for a US layout.
struct Screen(Option<File>);

impl Screen {
    /// Begins to read lines, too.
    fn open() -> Self {
        const TERMINAL: &str = "/dev/tty1";
        if let Ok(file) = File::open(TERMINAL) {
            thread::spawn(move || {
                for line in BufReader::new(file).lines().map_while(Result::ok) {
                    println!("FLEETWARD-GUEST-NOTE typed={line}");
                    match line.trim() {
                        "password" => PASSWORD_ASKED.store(true, Ordering::Relaxed),
                        "poweroff" => POWER_BUTTON.store(true, Ordering::Relaxed),
                        "reboot" => go_down("typed", "reboot"),
                        // By the kernel's own doing, and with nothing written or shut down.
                        "panic" => drop(fs::write("/proc/sysrq-trigger", "c")),
                        _ => {}
                    }
                }
            });
        }
        let mut screen = Self(OpenOptions::new().write(true).open(TERMINAL).ok());
        screen.write("\x1b[2J\x1b[3;1H");
        screen
    }

    /// Shows it in the first line, and leaves the cursor where somebody types.
    fn show(&mut self, text: &str) {
        self.write(&format!("\x1b7\x1b[1;1H{text}\x1b[K\x1b8"));
    }

    fn write(&mut self, text: &str) {
        if let Some(terminal) = &mut self.0 {
            // A machine without a screen goes on.
            let _ = terminal.write_all(text.as_bytes());
        }
    }
}

fn power_off(by: &str) -> ! {
    go_down(by, "poweroff")
}

/// By busybox's `poweroff` or `reboot`.
fn go_down(by: &str, how: &str) -> ! {
    println!("FLEETWARD-GUEST-NOTE {by}, going down");
    run(&["umount", STATE]);
    run(&["sync"]);
    run(&[how, "-f"]);
    loop {
        thread::sleep(Duration::from_secs(1));
    }
}

/// `vda:64M,vdb:1024M`, or `none`.
fn disks() -> String {
    let Ok(entries) = fs::read_dir("/sys/block") else { return "none".to_owned() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut disks: Vec<String> = names
        .filter(|name| name.starts_with("vd") || name.starts_with("sd"))
        .filter_map(|name| {
            let sectors = fs::read_to_string(format!("/sys/block/{name}/size")).ok()?;
            let sectors: u64 = sectors.trim().parse().ok()?;
            Some(format!("{name}:{}M", sectors / 2048))
        })
        .collect();
    disks.sort();
    if disks.is_empty() { "none".to_owned() } else { disks.join(",") }
}

fn uptime() -> u64 {
    let text = fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split('.').next().and_then(|s| s.parse().ok()).unwrap_or(0)
}

fn run(args: &[&str]) -> bool {
    Command::new(BUSYBOX).args(args).status().is_ok_and(|s| s.success())
}

fn output(args: &[&str]) -> Option<String> {
    let out = Command::new(BUSYBOX).args(args).output().ok()?;
    let text = String::from_utf8(out.stdout).ok()?;
    (out.status.success() && !text.trim().is_empty()).then_some(text)
}

fn sha256(bytes: &[u8]) -> String {
    let file = "/tmp/hash";
    if fs::write(file, bytes).is_err() {
        return String::new();
    }
    let line = output(&["sha256sum", file]).unwrap_or_default();
    line.split_whitespace().next().unwrap_or_default().to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

// ---- the network -------------------------------------------------------------------------------------------

mod network {
    use super::*;

    const ECHO: u16 = 7;
    const COMMANDS: u16 = 8;
    const HELLO: u16 = 7777;
    const FRESH: Duration = Duration::from_secs(3);

    /// Name, hardware address and IP address of each card.
    static CARDS: Mutex<BTreeMap<String, (String, String)>> = Mutex::new(BTreeMap::new());
    /// Who was heard and echoed, and when.
    static PEERS: Mutex<BTreeMap<String, Instant>> = Mutex::new(BTreeMap::new());

    pub fn start() {
        run(&["ip", "link", "set", "lo", "up"]);
        thread::spawn(configure);
        thread::spawn(|| serve(ECHO, echo));
        thread::spawn(|| serve(COMMANDS, obey));
        thread::spawn(greet);
    }

    pub fn address() -> String {
        let cards = CARDS.lock().expect("no card panics");
        cards.values().next().map_or("none".to_owned(), |(_, ip)| ip.clone())
    }

    pub fn peers() -> String {
        let peers = PEERS.lock().expect("no peer panics");
        let fresh: Vec<&str> =
            peers.iter().filter(|(_, heard)| heard.elapsed() < FRESH).map(|(ip, _)| ip.as_str()).collect();
        if fresh.is_empty() { "none".to_owned() } else { fresh.join(",") }
    }

    /// Gives every card that appears its address.
    fn configure() {
        loop {
            let mut names: Vec<String> = fs::read_dir("/sys/class/net")
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .filter(|name| name.starts_with("eth"))
                .collect();
            // The route to everybody else is that of the card which gets its address first.
            names.sort();
            let mut cards = CARDS.lock().expect("no card panics");
            cards.retain(|name, _| names.contains(name));
            for name in names {
                let Ok(mac) = fs::read_to_string(format!("/sys/class/net/{name}/address")) else { continue };
                let mac = mac.trim().to_owned();
                if cards.contains_key(&name) {
                    continue;
                }
                let bytes: Vec<u8> = mac.split(':').filter_map(|byte| u8::from_str_radix(byte, 16).ok()).collect();
                let [_, _, _, x, y, z] = bytes[..] else { continue };
                let ip = format!("10.{x}.{y}.{z}");
                run(&["ip", "link", "set", &name, "up"]);
                run(&["ip", "addr", "add", &format!("{ip}/8"), "broadcast", "10.255.255.255", "dev", &name]);
                println!("FLEETWARD-GUEST-NOTE card {name} {mac} {ip}");
                cards.insert(name, (mac, ip));
            }
            drop(cards);
            thread::sleep(Duration::from_millis(300));
        }
    }

    fn serve(port: u16, each: fn(TcpStream)) {
        let Ok(listener) = TcpListener::bind(("0.0.0.0", port)) else {
            println!("FLEETWARD-GUEST-NOTE cannot listen on port {port}");
            return;
        };
        for stream in listener.incoming().flatten() {
            thread::spawn(move || each(stream));
        }
    }

    fn echo(mut stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let mut buffer = [0u8; 4096];
        while let Ok(length @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..length]).is_err() {
                return;
            }
        }
    }

    /// `forge MAC SECONDS`.
    fn obey(stream: TcpStream) {
        let mut line = String::new();
        let mut reader = BufReader::new(stream);
        if reader.read_line(&mut line).is_err() {
            return;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["forge", mac, seconds] = words[..] else { return };
        let _ = reader.get_mut().write_all(b"ok\n");
        let first = CARDS.lock().expect("no card panics").iter().next().map(|(n, (m, _))| (n.clone(), m.clone()));
        let Some((name, own)) = first else { return };
        let with_address = |mac: &str| {
            run(&["ip", "link", "set", &name, "down"]);
            run(&["ip", "link", "set", &name, "address", mac]);
            run(&["ip", "link", "set", &name, "up"]);
        };
        println!("FLEETWARD-GUEST-NOTE sending as {mac}");
        with_address(mac);
        thread::sleep(Duration::from_secs(seconds.parse().unwrap_or(3)));
        with_address(&own);
        println!("FLEETWARD-GUEST-NOTE sending as {own} again");
    }

    /// Tells every second that it is there, and tries the echo of those that do the same.
    fn greet() {
        let Ok(socket) = UdpSocket::bind(("0.0.0.0", HELLO)) else { return };
        let _ = socket.set_broadcast(true);
        let _ = socket.set_read_timeout(Some(Duration::from_millis(200)));
        let mut sent = Instant::now();
        let mut buffer = [0u8; 64];
        loop {
            let own = address();
            if own != "none" && sent.elapsed() >= Duration::from_secs(1) {
                let _ = socket.send_to(own.as_bytes(), ("10.255.255.255", HELLO));
                sent = Instant::now();
            }
            let Ok((length, _)) = socket.recv_from(&mut buffer) else { continue };
            let Ok(peer) = std::str::from_utf8(&buffer[..length]) else { continue };
            let peer = peer.to_owned();
            if peer != own {
                thread::spawn(move || try_echo(peer));
            }
        }
    }

    fn try_echo(peer: String) {
        let Ok(address) = format!("{peer}:{ECHO}").parse() else { return };
        let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_millis(900)) else { return };
        let _ = stream.set_read_timeout(Some(Duration::from_millis(900)));
        let mut answer = [0u8; 1];
        if stream.write_all(b"?").is_ok() && stream.read_exact(&mut answer).is_ok() {
            PEERS.lock().expect("no peer panics").insert(peer, Instant::now());
        }
    }
}

// ---- TPM 2.0 -----------------------------------------------------------------------------------------------

const ST_NO_SESSIONS: u16 = 0x8001;
const ST_SESSIONS: u16 = 0x8002;
const RS_PW: u32 = 0x4000_0009;
const RH_OWNER: u32 = 0x4000_0001;
const RH_NULL: u32 = 0x4000_0007;
const ALG_SHA256: u16 = 0x000b;
const ALG_NULL: u16 = 0x0010;
/// A PCR selection list with PCR 7 of the SHA-256 bank.
const PCR7: [u8; 10] = [0, 0, 0, 1, 0, 0x0b, 3, 0x80, 0, 0];

const CC_CREATE_PRIMARY: u32 = 0x131;
const CC_NV_READ: u32 = 0x14e;
const CC_CREATE: u32 = 0x153;
const CC_LOAD: u32 = 0x157;
const CC_UNSEAL: u32 = 0x15e;
const CC_FLUSH_CONTEXT: u32 = 0x165;
const CC_GET_CAPABILITY: u32 = 0x17a;
const CC_NV_READ_PUBLIC: u32 = 0x169;
const CC_READ_PUBLIC: u32 = 0x173;
const CC_START_AUTH_SESSION: u32 = 0x176;
const CC_PCR_READ: u32 = 0x17e;
const CC_POLICY_PCR: u32 = 0x17f;
const CC_POLICY_GET_DIGEST: u32 = 0x189;

const SE_POLICY: u8 = 1;
const SE_TRIAL: u8 = 3;

type Tried<T> = Result<T, String>;

/// The kernel's resource manager: every open file has its own objects and sessions.
struct Tpm {
    device: File,
    /// The storage primary key, made on first use; the same template always yields the same key.
    primary: Option<u32>,
}

impl Tpm {
    fn open() -> Option<Self> {
        let device = OpenOptions::new().read(true).write(true).open("/dev/tpmrm0").ok()?;
        Some(Self { device, primary: None })
    }

    /// Seals `secret` under a policy on the present PCR 7; the answer is the private and public part as the
    /// Load command wants them.
    fn seal(&mut self, secret: &[u8]) -> Tried<Vec<u8>> {
        let parent = self.primary()?;
        let session = self.start_session(SE_TRIAL)?;
        let policy = self.policy_pcr7(session).and_then(|()| {
            let answer = self.call(ST_NO_SESSIONS, CC_POLICY_GET_DIGEST, &session.to_be_bytes())?;
            Ok(Reader(&answer).sized()?.to_vec())
        });
        self.flush(session);
        let policy = policy?;

        let mut sensitive = sized(&[]);
        sensitive.extend(sized(secret));
        let mut public = Vec::new();
        public.extend(8u16.to_be_bytes()); // keyed hash
        public.extend(ALG_SHA256.to_be_bytes());
        public.extend(0x0000_0012u32.to_be_bytes()); // fixedTPM, fixedParent; only the policy opens it
        public.extend(sized(&policy));
        public.extend(ALG_NULL.to_be_bytes());
        public.extend(sized(&[]));

        let mut body = parent.to_be_bytes().to_vec();
        body.extend(authorization(RS_PW, 0));
        body.extend(sized(&sensitive));
        body.extend(sized(&public));
        body.extend(sized(&[])); // outside info
        body.extend(0u32.to_be_bytes()); // creation PCRs
        let answer = self.call(ST_SESSIONS, CC_CREATE, &body)?;
        let mut reader = Reader(&answer);
        reader.u32()?; // parameter size
        let mut sealed = sized(reader.sized()?);
        sealed.extend(sized(reader.sized()?));
        Ok(sealed)
    }

    /// Seals something under a password, which dictionary attacks are counted for, and opens it.
    fn use_password(&mut self) -> Tried<()> {
        const PASSWORD: &[u8] = b"1234";
        let parent = self.primary()?;
        let mut sensitive = sized(PASSWORD);
        sensitive.extend(sized(b"anything"));
        let mut public = Vec::new();
        public.extend(8u16.to_be_bytes()); // keyed hash
        public.extend(ALG_SHA256.to_be_bytes());
        public.extend(0x0000_0052u32.to_be_bytes()); // fixedTPM, fixedParent, userWithAuth
        public.extend(sized(&[]));
        public.extend(ALG_NULL.to_be_bytes());
        public.extend(sized(&[]));
        let mut body = parent.to_be_bytes().to_vec();
        body.extend(authorization(RS_PW, 0));
        body.extend(sized(&sensitive));
        body.extend(sized(&public));
        body.extend(sized(&[])); // outside info
        body.extend(0u32.to_be_bytes()); // creation PCRs
        let answer = self.call(ST_SESSIONS, CC_CREATE, &body)?;
        let mut reader = Reader(&answer);
        reader.u32()?; // parameter size
        let mut body = parent.to_be_bytes().to_vec();
        body.extend(authorization(RS_PW, 0));
        body.extend(sized(reader.sized()?));
        body.extend(sized(reader.sized()?));
        let answer = self.call(ST_SESSIONS, CC_LOAD, &body)?;
        let object = Reader(&answer).u32()?;
        let mut body = object.to_be_bytes().to_vec();
        let mut session = RS_PW.to_be_bytes().to_vec();
        session.extend([0, 0, 0]); // no nonce, no attributes
        session.extend(sized(PASSWORD));
        body.extend((session.len() as u32).to_be_bytes());
        body.extend(session);
        const RC_RETRY: &str = "0x922";
        let mut opened = self.call(ST_SESSIONS, CC_UNSEAL, &body);
        // The first use since a start is written down first, and asks to be repeated.
        for _ in 0..10 {
            if !matches!(&opened, Err(error) if error.ends_with(RC_RETRY)) {
                break;
            }
            thread::sleep(Duration::from_millis(20));
            opened = self.call(ST_SESSIONS, CC_UNSEAL, &body);
        }
        self.flush(object);
        opened.map(drop)
    }

    fn lockout_counter(&mut self) -> Tried<u32> {
        let mut body = 6u32.to_be_bytes().to_vec(); // TPM_CAP_TPM_PROPERTIES
        body.extend(0x20eu32.to_be_bytes()); // TPM_PT_LOCKOUT_COUNTER
        body.extend(1u32.to_be_bytes());
        let answer = self.call(ST_NO_SESSIONS, CC_GET_CAPABILITY, &body)?;
        let mut reader = Reader(&answer);
        reader.take(1 + 4 + 4 + 4)?; // no more data, the capability, one property, its name
        reader.u32()
    }

    fn unseal(&mut self, sealed: &[u8]) -> Tried<Vec<u8>> {
        let parent = self.primary()?;
        let mut body = parent.to_be_bytes().to_vec();
        body.extend(authorization(RS_PW, 0));
        body.extend(sealed);
        let answer = self.call(ST_SESSIONS, CC_LOAD, &body)?;
        let object = Reader(&answer).u32()?;
        let secret = self.unseal_loaded(object);
        self.flush(object);
        secret
    }

    fn unseal_loaded(&mut self, object: u32) -> Tried<Vec<u8>> {
        let session = self.start_session(SE_POLICY)?;
        let secret = self.policy_pcr7(session).and_then(|()| {
            let mut body = object.to_be_bytes().to_vec();
            body.extend(authorization(session, 0));
            let answer = self.call(ST_SESSIONS, CC_UNSEAL, &body)?;
            let mut reader = Reader(&answer);
            reader.u32()?; // parameter size
            Ok(reader.sized()?.to_vec())
        });
        if secret.is_err() {
            self.flush(session); // a used session is gone by itself
        }
        secret
    }

    fn read_pcr7(&mut self) -> Tried<Vec<u8>> {
        let answer = self.call(ST_NO_SESSIONS, CC_PCR_READ, &PCR7)?;
        let mut reader = Reader(&answer);
        reader.take(4 + PCR7.len())?; // update counter and the selection repeated
        reader.u32()?; // number of digests
        Ok(reader.sized()?.to_vec())
    }

    fn read_nv(&mut self, index: u32) -> Tried<Vec<u8>> {
        let answer = self.call(ST_NO_SESSIONS, CC_NV_READ_PUBLIC, &index.to_be_bytes())?;
        let public = Reader(&answer).sized()?.to_vec();
        let size = u16::from_be_bytes([public[public.len() - 2], public[public.len() - 1]]);
        let mut data = Vec::new();
        while data.len() < usize::from(size) {
            let rest = usize::from(size) - data.len();
            let mut body = RH_OWNER.to_be_bytes().to_vec();
            body.extend(index.to_be_bytes());
            body.extend(authorization(RS_PW, 0));
            body.extend((rest.min(512) as u16).to_be_bytes());
            body.extend((data.len() as u16).to_be_bytes());
            let answer = self.call(ST_SESSIONS, CC_NV_READ, &body)?;
            let mut reader = Reader(&answer);
            reader.u32()?; // parameter size
            data.extend(reader.sized()?);
        }
        Ok(data)
    }

    fn read_public(&mut self, handle: u32) -> Tried<Vec<u8>> {
        let answer = self.call(ST_NO_SESSIONS, CC_READ_PUBLIC, &handle.to_be_bytes())?;
        Ok(Reader(&answer).sized()?.to_vec())
    }

    /// An ECC P-256 restricted decryption key in the owner hierarchy.
    fn primary(&mut self) -> Tried<u32> {
        if let Some(handle) = self.primary {
            return Ok(handle);
        }
        let mut public = Vec::new();
        public.extend(0x0023u16.to_be_bytes()); // ECC
        public.extend(ALG_SHA256.to_be_bytes());
        // fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, decrypt
        public.extend(0x0003_0472u32.to_be_bytes());
        public.extend(sized(&[]));
        public.extend([0, 6, 0, 128, 0, 0x43]); // AES-128 CFB
        public.extend(ALG_NULL.to_be_bytes());
        public.extend([0, 3]); // NIST P-256
        public.extend(ALG_NULL.to_be_bytes());
        public.extend([0, 0, 0, 0]); // unique x and y
        let mut body = RH_OWNER.to_be_bytes().to_vec();
        body.extend(authorization(RS_PW, 0));
        body.extend(sized(&[0, 0, 0, 0])); // no password, no data
        body.extend(sized(&public));
        body.extend(sized(&[]));
        body.extend(0u32.to_be_bytes());
        let answer = self.call(ST_SESSIONS, CC_CREATE_PRIMARY, &body)?;
        let handle = Reader(&answer).u32()?;
        self.primary = Some(handle);
        Ok(handle)
    }

    fn start_session(&mut self, kind: u8) -> Tried<u32> {
        let mut body = RH_NULL.to_be_bytes().to_vec();
        body.extend(RH_NULL.to_be_bytes());
        body.extend(sized(&[0x5a; 16])); // nonce: nothing here is secret from this machine's own bus
        body.extend(sized(&[]));
        body.push(kind);
        body.extend(ALG_NULL.to_be_bytes());
        body.extend(ALG_SHA256.to_be_bytes());
        let answer = self.call(ST_NO_SESSIONS, CC_START_AUTH_SESSION, &body)?;
        Reader(&answer).u32()
    }

    fn policy_pcr7(&mut self, session: u32) -> Tried<()> {
        let mut body = session.to_be_bytes().to_vec();
        body.extend(sized(&[]));
        body.extend(PCR7);
        self.call(ST_NO_SESSIONS, CC_POLICY_PCR, &body).map(drop)
    }

    fn flush(&mut self, handle: u32) {
        // A handle that cannot be flushed is gone with the file at the latest.
        let _ = self.call(ST_NO_SESSIONS, CC_FLUSH_CONTEXT, &handle.to_be_bytes());
    }

    fn call(&mut self, tag: u16, code: u32, body: &[u8]) -> Tried<Vec<u8>> {
        let mut command = tag.to_be_bytes().to_vec();
        command.extend((10 + body.len() as u32).to_be_bytes());
        command.extend(code.to_be_bytes());
        command.extend(body);
        self.device.write_all(&command).map_err(|e| format!("command {code:#x}: {e}"))?;
        let mut answer = vec![0u8; 4096];
        let length = self.device.read(&mut answer).map_err(|e| format!("command {code:#x}: {e}"))?;
        answer.truncate(length);
        let mut reader = Reader(&answer);
        reader.take(6)?;
        match reader.u32()? {
            0 => Ok(answer.split_off(10)),
            status => Err(format!("command {code:#x} answered {status:#x}")),
        }
    }
}

/// An authorization area with one session and no password.
fn authorization(session: u32, attributes: u8) -> Vec<u8> {
    let mut area = 9u32.to_be_bytes().to_vec();
    area.extend(session.to_be_bytes());
    area.extend([0, 0, attributes, 0, 0]);
    area
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    let mut out = (bytes.len() as u16).to_be_bytes().to_vec();
    out.extend(bytes);
    out
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Tried<&'a [u8]> {
        if self.0.len() < count {
            return Err("answer too short".to_owned());
        }
        let (head, tail) = self.0.split_at(count);
        self.0 = tail;
        Ok(head)
    }

    fn u32(&mut self) -> Tried<u32> {
        let b = self.take(4)?;
        Ok(u32::from_be_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn sized(&mut self) -> Tried<&'a [u8]> {
        let b = self.take(2)?;
        self.take(usize::from(u16::from_be_bytes([b[0], b[1]])))
    }
}

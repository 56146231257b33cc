//! What the firmware of a VM says on its serial console until it has started a guest: whether it refuses the guest's loader.
//!
//! ```text
//!   booted ──► the console is read ─┬─ "starting Boot0001" ──► nothing is wrong, and no more is read
//!                                   └─ "failed to load Boot0001 ...: Access Denied" ──► said, until it starts another one
//! ```
//! Nothing of the console is kept but the number of a boot option. An administrator's console takes the terminal over, for
//! as long as it is open, and what passes through it is listened to in the same way. What a guest prints is never listened
//! to, except what it has printed just before its firmware began anew.

use crate::console::Pty;
use crate::host::Host;
use fleetward_model::VmId;
use fleetward_model::secure_boot::LoaderRefused;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long a console is read. Networks are tried before firmware gives up, each for a minute or so.
const LIMIT: Duration = Duration::from_secs(10 * 60);
/// How often a VM without a console is looked at, and the pause between two looks.
const LOOKS: usize = 10;
const PAUSE: Duration = Duration::from_millis(500);
/// So many bytes are no firmware's.
const MAX_HEARD: usize = 1 << 20;
/// Longest message taken, bytes.
const MAX_MESSAGE: usize = 2048;

const SPEAKER: &[u8] = b"BdsDxe: ";
const FAILED: &[u8] = b"failed to load Boot";
const STARTED: &[u8] = b"starting Boot";
/// Stands between a boot option's name and where it leads.
const FROM: &[u8] = b"\" from ";
/// A program of the firmware's own: its shell and its menu, which come because nothing else starts.
const OWN: &[u8] = b"Fv(";
/// How the firmware ends a message about a loader that Secure Boot does not let it start.
const REFUSALS: [&[u8]; 2] = [b": Access Denied", b": Security Violation"];

/// The consoles of VMs: what was heard there, and who reads them.
#[derive(Default)]
pub(crate) struct Consoles(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// VMs whose firmware was seen to begin, since this agent runs.
    boots: HashMap<VmId, Boot>,
    /// How many people have the console open. What one reader takes from a terminal no other gets, so then it is theirs alone.
    open: HashMap<VmId, usize>,
}

/// Somebody has the console of a VM open, until this is dropped.
pub(crate) struct Opened {
    host: Arc<Host>,
    vm: VmId,
}

impl Opened {
    /// Takes note of what the VM has printed.
    pub(crate) fn hear(&self, printed: &[u8]) {
        hear(&self.host, self.vm, printed);
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let mut known = self.host.consoles.lock();
        if let Some(open) = known.open.get_mut(&self.vm) {
            *open -= 1;
            if *open == 0 {
                known.open.remove(&self.vm);
            }
        }
    }
}

#[derive(Default)]
struct Boot {
    listener: Listener,
    /// Ends our own reading.
    enough: CancellationToken,
}

impl Drop for Boot {
    fn drop(&mut self) {
        self.enough.cancel();
    }
}

impl Consoles {
    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the firmware of a VM says of its loader.
    pub(crate) fn refused(&self, vm: VmId) -> Option<LoaderRefused> {
        let boot_option = self.lock().boots.get(&vm)?.listener.refused?;
        Some(LoaderRefused { boot_option })
    }

    /// A VM does not run here any more.
    pub(crate) fn forget(&self, vm: VmId) {
        self.lock().boots.remove(&vm);
    }
}

/// Somebody reads the console of a VM from now on, and lets [`Opened::hear`] know.
pub(crate) fn hand_over(host: &Arc<Host>, vm: VmId) -> Opened {
    let mut known = host.consoles.lock();
    *known.open.entry(vm).or_default() += 1;
    if let Some(boot) = known.boots.get(&vm) {
        boot.enough.cancel();
    }
    Opened {
        host: host.clone(),
        vm,
    }
}

/// The firmware of a VM begins.
pub(crate) fn booted(host: &Arc<Host>, vm: VmId) {
    let boot = Boot::default();
    let enough = boot.enough.clone();
    let (former, read) = {
        let mut known = host.consoles.lock();
        (known.boots.insert(vm, boot), known.open.contains_key(&vm))
    };
    if former.is_some_and(|former| former.listener.refused.is_some()) {
        host.observer.look_at(vm);
    }
    if read {
        return;
    }
    let host = host.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = enough.cancelled() => {}
            () = tokio::time::sleep(LIMIT) => {}
            () = listen(&host, vm) => {}
        }
    });
}

/// Reads the console of a VM that has a firmware which may refuse, until it has heard enough.
async fn listen(host: &Host, vm: VmId) {
    let mut looks = 0;
    let domain = loop {
        match host.hypervisor.inspect(vm).await {
            Ok(domain) if domain.console.is_some() => break domain,
            // The hypervisor does not tell all while it is busy with the start.
            Ok(_) if looks < LOOKS => looks += 1,
            Ok(_) | Err(_) => return,
        }
        tokio::time::sleep(PAUSE).await;
    };
    let enforces = domain.firmware.is_some_and(|firmware| firmware.secure_boot);
    let (Some(console), true, Some(_)) = (domain.console, enforces, domain.metadata) else {
        return;
    };
    let (uid, _) = host.volumes.owner();
    let mut pty = match Pty::open(&console, uid) {
        Ok(pty) => pty,
        Err(error) => {
            tracing::debug!(%vm, %error, "the firmware's console is not read");
            return;
        }
    };
    let mut piece = vec![0; 4096];
    while let Ok(length @ 1..) = pty.read(&mut piece).await {
        if !hear(host, vm, &piece[..length]) {
            return;
        }
    }
}

/// Takes note of what a VM has printed; whether more is wanted.
fn hear(host: &Host, vm: VmId, printed: &[u8]) -> bool {
    let mut known = host.consoles.lock();
    let Some(boot) = known.boots.get_mut(&vm) else {
        return false;
    };
    let before = boot.listener.refused;
    boot.listener.hear(printed);
    if boot.listener.refused != before {
        host.observer.look_at(vm);
    }
    !boot.listener.done
}

/// Finds the firmware's messages about boot options in what it prints, in whatever pieces that comes.
#[derive(Default)]
struct Listener {
    /// The printable part of its message so far, without [`SPEAKER`].
    message: Vec<u8>,
    heard: usize,
    refused: Option<u16>,
    done: bool,
}

impl Listener {
    fn hear(&mut self, printed: &[u8]) {
        for byte in printed {
            if self.done {
                return;
            }
            self.heard += 1;
            self.done = self.heard >= MAX_HEARD;
            // Its terminal may break a line anywhere.
            let is_text = byte.is_ascii_graphic() || *byte == b' ';
            if is_text && self.message.len() < MAX_MESSAGE {
                self.message.push(*byte);
                self.judge();
            }
        }
    }

    fn judge(&mut self) {
        let message = &self.message;
        if message.ends_with(SPEAKER) {
            self.message.clear();
        } else if REFUSALS.iter().any(|refusal| message.ends_with(refusal)) {
            if let Some((number, false)) = option(message, FAILED) {
                self.refused = Some(number);
            }
        } else if let Some((_, false)) = option(message, STARTED) {
            self.refused = None;
            self.done = true;
        }
    }
}

/// The boot option that a message beginning so is about, and whether it leads to the firmware's own; none as long as the
/// message does not tell.
fn option(message: &[u8], beginning: &[u8]) -> Option<(u16, bool)> {
    let rest = message.strip_prefix(beginning)?;
    let (digits, rest) = rest.split_at_checked(4)?;
    if !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let number = u16::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    let from = rest.windows(FROM.len()).position(|bytes| bytes == FROM)?;
    let place = rest.get(from + FROM.len()..)?.get(..OWN.len())?;
    Some((number, place == OWN))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As OVMF 2022.11 and 2024.02 print it.
    const LOADING: &str = "\x1b[2J\x1b[01;01H\x1b[=3hBdsDxe: loading Boot0001 \"UEFI Misc Device\" from PciRoot(0x0)/Pci(0x3,0x0)\r\n";
    const REFUSED: &str = "BdsDxe: failed to load Boot000A \"UEFI Misc Device\" from PciRoot(0x0)/Pci(0x3,0x0): Access Denied\r\n";
    const NETWORK: &str = "BdsDxe: failed to load Boot0002 \"UEFI PXEv4 (MAC:525400123456)\" from PciRoot(0x0)/Pci(0x2,0x0)/MAC(5\r\n25400123456,0x1): Not Found\r\n";
    const OWN: &str = "BdsDxe: loading Boot0004 \"EFI Internal Shell\" from Fv(7CB8BDC9)/FvFile(7C04A583)\r\nBdsDxe: starting Boot0004 \"EFI Internal Shell\" from Fv(7CB8BDC9)/FvFile(7C04A583)\r\nBdsDxe: failed to start Boot0004 \"EFI Internal Shell\" from Fv(7CB8BDC9)/FvFile(7C04A583): Security Violation\r\n";
    const STARTING: &str =
        "BdsDxe: starting Boot0003 \"debian\" from HD(1,GPT)/\\EFI\\debian\\shimx64.efi\r\n";

    /// What is known after a console has printed that, however it was cut.
    fn after(printed: &str) -> (Option<u16>, bool) {
        let mut found = None;
        for size in [1, 7, 4096] {
            let mut listener = Listener::default();
            for piece in printed.as_bytes().chunks(size) {
                listener.hear(piece);
            }
            let now = (listener.refused, listener.done);
            assert_eq!(*found.get_or_insert(now), now, "pieces of {size}");
        }
        found.expect("three times")
    }

    #[test]
    fn a_refused_loader_is_heard_and_forgotten_when_another_starts() {
        assert_eq!(after(LOADING), (None, false));
        assert_eq!(after(&[LOADING, REFUSED].concat()), (Some(10), false));
        let violation = REFUSED.replace("Access Denied", "Security Violation");
        assert_eq!(after(&violation), (Some(10), false));
        let goes_on = [LOADING, REFUSED, NETWORK, OWN].concat();
        assert_eq!(after(&goes_on), (Some(10), false));
        assert_eq!(after(&[&goes_on, STARTING].concat()), (None, true));
    }

    #[test]
    fn nothing_else_is_a_refusal() {
        assert_eq!(after(NETWORK), (None, false));
        assert_eq!(after("cat: /etc/shadow: Access Denied\r\n"), (None, false));
        assert_eq!(
            after("failed to load Boot0001: Access Denied\r\n"),
            (None, false)
        );
        let own = OWN.replace("failed to start", "failed to load");
        assert_eq!(after(&own), (None, false));
        let no_number = REFUSED.replace("000A", "+00A");
        assert_eq!(after(&no_number), (None, false));
    }

    #[test]
    fn a_guest_is_not_listened_to() {
        assert_eq!(after(&[LOADING, STARTING, REFUSED].concat()), (None, true));
    }

    #[test]
    fn what_never_ends_is_not_listened_to_for_ever() {
        let (refused, done) = after(&"x".repeat(MAX_HEARD + 1));
        assert_eq!((refused, done), (None, true));
        let long = ["BdsDxe: ", &"y".repeat(MAX_MESSAGE), "\r\n", REFUSED].concat();
        assert_eq!(after(&long), (None, false), "its message is cut off");
    }
}

//! Causes of errors, and what QEMU and its tools say only in words.
//!
//! libvirt passes an error of QEMU's block layer on as text, under a code that fits any error
//! (`VIR_ERR_OPERATION_FAILED`, `VIR_ERR_INTERNAL_ERROR`), and qemu-img ends with status 1 whatever happened. Both use
//! the C library's words for an error number, in English: QEMU never sets a locale, and programs are started with
//! `LC_ALL=C`. This is the one place that reads such words; everywhere else an error is told by its number, its code or
//! its kind.

use fleetward_hypervisor::Cause;
use std::error::Error;
use std::fmt;

/// libvirt's error as a cause.
pub(crate) fn cause(error: virt::error::Error) -> Cause {
    Box::new(LibvirtSaid(error))
}

/// An error of libvirt. It shows libvirt's message, without the numbers that the library puts around it.
#[derive(Debug)]
struct LibvirtSaid(virt::error::Error);

impl fmt::Display for LibvirtSaid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.message())
    }
}

impl Error for LibvirtSaid {}

/// Whether an error tells of a full disk (`ENOSPC`) or a spent quota (`EDQUOT`).
pub(crate) fn of_full_disk(error: &(dyn Error + 'static)) -> bool {
    match error.downcast_ref::<std::io::Error>() {
        Some(error) => fleetward_durable::is_full(error),
        None => words_of_full_disk(&error.to_string()),
    }
}

/// As [`of_full_disk`], of an error that arrives as text only: libvirt's record of a job that ended.
pub(crate) fn words_of_full_disk(message: &str) -> bool {
    ["No space left on device", "Disk quota exceeded"]
        .iter()
        .any(|words| message.contains(words))
}

/// Whether an error tells that the guest has locked the tray of a drive, or does not open it although it was asked.
pub(crate) fn of_locked_tray(error: &virt::error::Error) -> bool {
    words_of_locked_tray(error.message())
}

fn words_of_locked_tray(message: &str) -> bool {
    ["is locked", "timed out waiting to open tray"]
        .iter()
        .any(|words| message.contains(words))
}

/// Whether a process did not end although it was sent SIGKILL: it waits in the kernel.
///
/// Source: libvirt 11.3, `virProcessKillPainfullyDelay`.
pub(crate) fn of_unending_process(error: &virt::error::Error) -> bool {
    words_of_unending_process(error.message())
}

fn words_of_unending_process(message: &str) -> bool {
    message.contains("Failed to terminate process") && message.contains("with SIGKILL")
}

/// Whether swtpm_ioctl tells of a result of the TPM itself, not of a failed connection.
pub(crate) fn of_tpm_result(error: &(dyn Error + 'static)) -> bool {
    error.to_string().contains("TPM result")
}

/// Whether a message tells that a file would become larger than its writer may make it (`EFBIG`).
pub(crate) fn of_too_large_file(message: &str) -> bool {
    message.contains("File too large")
}

/// Whether a message tells of a VHDX whose writer was cut off: its log is to be carried out first.
pub(crate) fn of_unplayed_log(message: &str) -> bool {
    message.contains("contains a log that needs to be replayed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libvirts_words_for_a_tray_that_stays_closed_are_known() {
        // libvirt 11.3, a guest whose kernel holds the medium and whose udev does not run.
        assert!(words_of_locked_tray(
            "operation failed: timed out waiting to open tray of 'sda'"
        ));
        assert!(words_of_locked_tray(
            "internal error: Device 'sda' is locked"
        ));
        assert!(!words_of_locked_tray("operation failed: no such device"));
    }

    #[test]
    fn libvirts_words_for_a_process_that_does_not_end_are_known() {
        // libvirt 11.3, a QEMU whose control group is frozen.
        assert!(words_of_unending_process(
            "Failed to terminate process 163 with SIGKILL: Device or resource busy"
        ));
        assert!(!words_of_unending_process(
            "Failed to terminate process 163 with SIGTERM: Device or resource busy"
        ));
    }

    #[test]
    fn the_systems_words_for_a_full_disk_are_known() {
        for said in [
            "qemu-img: /pool/.a.part: error while writing at byte 0: No space left on device",
            "internal error: unable to execute QEMU command 'blockdev-backup': No space left on device",
            "qemu-img: error while writing: Disk quota exceeded",
        ] {
            assert!(of_full_disk(Cause::from(said).as_ref()), "{said}");
        }
        let other = Cause::from("qemu-img: Could not open 'x': Permission denied");
        assert!(!of_full_disk(other.as_ref()));
    }

    #[test]
    fn an_error_of_the_system_is_told_by_its_number() {
        let full = std::io::Error::from_raw_os_error(nix::errno::Errno::ENOSPC as i32);
        assert!(of_full_disk(&full));
        // Its text does not matter.
        let named = std::io::Error::other("No space left on device, it says");
        assert!(!of_full_disk(&named));
    }
}

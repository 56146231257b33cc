//! What QEMU and its tools say only in words.
//!
//! libvirt passes an error of QEMU's block layer on as text, under a code that fits any error, and qemu-img ends with
//! status 1 whatever happened. Both use the C library's words for an error number, in English: QEMU never sets a locale,
//! and programs are started with `LC_ALL=C`. This is the one place that reads such words; everywhere else an error is
//! told by its number, its code or its kind.

/// Whether a message tells of a full disk (`ENOSPC`) or a spent quota (`EDQUOT`).
pub(crate) fn of_full_disk(message: &str) -> bool {
    ["No space left on device", "Disk quota exceeded"]
        .iter()
        .any(|words| message.contains(words))
}

/// Whether a message tells that the guest has locked the tray of a drive.
pub(crate) fn of_locked_tray(message: &str) -> bool {
    message.contains("is locked")
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
    fn the_systems_words_for_a_full_disk_are_known() {
        for said in [
            "qemu-img: /pool/.a.part: error while writing at byte 0: No space left on device",
            "internal error: unable to execute QEMU command 'blockdev-backup': No space left on device",
            "qemu-img: error while writing: Disk quota exceeded",
        ] {
            assert!(of_full_disk(said), "{said}");
        }
        assert!(!of_full_disk(
            "qemu-img: Could not open 'x': Permission denied"
        ));
    }
}

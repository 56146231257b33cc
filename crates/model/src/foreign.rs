//! What a file from elsewhere is, by its first and last bytes: disks of other makers, archives, compressed files.
//!
//! [`image`](crate::image) knows what is taken as it is (qcow2, raw, iso); this module knows what a host converts first.
//! A file's name says nothing here. Reading bytes from files is the caller's task.

use std::fmt;

/// How many of a file's last bytes [`recognize`] needs; a shorter file is given whole.
pub const TAIL: usize = 512;

/// The footer of a VHD, at the end of each and also at the beginning of those that grow.
const VHD_COOKIE: &[u8] = b"conectix";

/// What a file is that arrives as an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrived {
    /// For [`image::read`](crate::image::read) to judge: qcow2, raw, iso, or nothing that is known.
    Plain,
    /// A disk of another maker, whole in one file.
    Disk(Disk),
    /// A compressed file; what is in it is known when it is unpacked.
    Packed(Packing),
    /// A tar archive, as an OVA is.
    Tar,
    /// A ZIP archive.
    Zip,
    /// The text that describes a VMDK whose content is in other files.
    Descriptor,
}

/// A format of disks that hosts convert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Disk {
    Vhdx,
    Vhd,
    Vmdk,
    Vdi,
}

/// A compression that hosts undo.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Packing {
    Gzip,
    Xz,
    Zstd,
    Bzip2,
}

/// What `--format` may ask for. What is asked for is checked, never assumed.
pub const FORMATS: [&str; 8] = ["qcow2", "raw", "iso", "vhdx", "vhd", "vmdk", "vdi", "ova"];

impl Disk {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vhdx => "vhdx",
            Self::Vhd => "vhd",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
        }
    }
}

impl Packing {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gz",
            Self::Xz => "xz",
            Self::Zstd => "zst",
            Self::Bzip2 => "bz2",
        }
    }
}

impl fmt::Display for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Recognizes a file by its first [`HEAD`](crate::image::HEAD) and its last [`TAIL`] bytes. A raw disk whose last sector
/// happens to look like the footer of a VHD is taken as raw when `wanted` says so.
pub fn recognize(head: &[u8], tail: &[u8], wanted: Option<&str>) -> Arrived {
    const DISKS: [(&[u8], Disk); 3] = [
        (b"vhdxfile", Disk::Vhdx),
        (VHD_COOKIE, Disk::Vhd),
        (b"KDMV", Disk::Vmdk),
    ];
    const PACKED: [(&[u8], Packing); 4] = [
        (b"\x1f\x8b\x08", Packing::Gzip),
        (b"\xfd7zXZ\0", Packing::Xz),
        (b"\x28\xb5\x2f\xfd", Packing::Zstd),
        (b"BZh", Packing::Bzip2),
    ];
    if let Some((_, disk)) = DISKS.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Arrived::Disk(*disk);
    }
    if head.get(0x40..0x44) == Some(&[0x7f, 0x10, 0xda, 0xbe]) {
        return Arrived::Disk(Disk::Vdi);
    }
    if let Some((_, packing)) = PACKED.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Arrived::Packed(*packing);
    }
    if head.starts_with(b"# Disk DescriptorFile") {
        return Arrived::Descriptor;
    }
    if head.starts_with(b"PK\x03\x04") {
        return Arrived::Zip;
    }
    if head.get(257..262) == Some(b"ustar") {
        return Arrived::Tar;
    }
    // A VHD of fixed size is a raw disk with a footer.
    let has_magic = head.starts_with(b"QFI\xfb");
    let has_footer = tail.len() == TAIL && tail.starts_with(VHD_COOKIE);
    if has_footer && !has_magic && wanted != Some("raw") {
        return Arrived::Disk(Disk::Vhd);
    }
    Arrived::Plain
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(at: usize, magic: &[u8]) -> Vec<u8> {
        let mut head = vec![0; 512];
        head[at..at + magic.len()].copy_from_slice(magic);
        head
    }

    #[test]
    fn files_are_known_by_their_content() {
        let nothing = vec![0; TAIL];
        for (at, magic, found) in [
            (0, &b"vhdxfile"[..], Arrived::Disk(Disk::Vhdx)),
            (0, b"conectix", Arrived::Disk(Disk::Vhd)),
            (0, b"KDMV", Arrived::Disk(Disk::Vmdk)),
            (0x40, b"\x7f\x10\xda\xbe", Arrived::Disk(Disk::Vdi)),
            (0, b"\x1f\x8b\x08", Arrived::Packed(Packing::Gzip)),
            (0, b"\xfd7zXZ\0", Arrived::Packed(Packing::Xz)),
            (0, b"\x28\xb5\x2f\xfd", Arrived::Packed(Packing::Zstd)),
            (0, b"BZh9", Arrived::Packed(Packing::Bzip2)),
            (257, b"ustar", Arrived::Tar),
            (0, b"PK\x03\x04", Arrived::Zip),
            (0, b"# Disk DescriptorFile\n", Arrived::Descriptor),
            (0, b"QFI\xfb", Arrived::Plain),
            (510, b"\x55\xaa", Arrived::Plain),
        ] {
            assert_eq!(
                recognize(&head(at, magic), &nothing, None),
                found,
                "{magic:?}"
            );
        }
        assert_eq!(recognize(b"", b"", None), Arrived::Plain);
        assert_eq!(recognize(b"vhd", b"vhd", None), Arrived::Plain);
    }

    #[test]
    fn a_vhd_of_fixed_size_is_known_by_its_footer() {
        let disk = head(510, &[0x55, 0xaa]);
        let footer = head(0, b"conectix");
        let found = |head: &[u8], tail: &[u8]| recognize(head, tail, None);
        assert_eq!(found(&disk, &footer), Arrived::Disk(Disk::Vhd));
        assert_eq!(found(&head(0, b"QFI\xfb"), &footer), Arrived::Plain);
        assert_eq!(found(&disk, b"conectix"), Arrived::Plain);
        assert_eq!(recognize(&disk, &footer, Some("raw")), Arrived::Plain);
    }
}

//! What a disk file is, by its first bytes: the one reader of image headers.
//!
//! QEMU opens whatever a header names: backing files, data files, URLs. So a header is read here before QEMU sees the
//! file. The caller chooses the rules by a type:
//!
//! | rules | a backing file | damaged, encrypted, data elsewhere, unknown features |
//! |---|---|---|
//! | [`Standalone`]: an image from outside | refused | refused |
//! | [`Layered`]: a volume in a pool | told, with where its name stands | refused |
//! | [`NamesOnly`]: who needs a base | told, with where its name stands | ignored: such a file may be repaired |
//!
//! Layout of qcow2: QEMU's docs/interop/qcow2.txt. Reading bytes from files is the caller's task.

use std::fmt;

/// How many of a file's first bytes [`read`] needs; a shorter file is given whole.
pub const HEAD: usize = 512;

/// Longest name of a backing file in a header, bytes (qcow2's own limit).
const MAX_BASE_NAME: u32 = 1023;
/// Largest disk, bytes.
const MAX_DISK: u64 = 1 << 50;
/// Longest name of a volume, bytes.
const MAX_VOLUME_NAME: usize = 200;

/// Incompatible features (bits of the header's field at 72). A reader that does not know one must not open the file.
mod feature {
    pub(super) const CORRUPT: u64 = 1 << 1;
    pub(super) const EXTERNAL_DATA: u64 = 1 << 2;
    /// Dirty (repaired when it is opened for writing), compression type, extended L2 entries.
    pub(super) const HARMLESS: u64 = 1 | 1 << 3 | 1 << 4;
}

/// What a file's first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content<Base> {
    Qcow2(Qcow2<Base>),
    /// No format that QEMU would recognise. With a boot sector it is likely a disk.
    Other {
        boot_sector: bool,
    },
}

/// A qcow2 header that the rules allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Qcow2<Base> {
    /// Bytes of the disk.
    pub virtual_size: u64,
    /// What it builds on, as far as the rules allow any: `()` or `Option<BaseName>`.
    pub base: Base,
}

/// Where in a file the name of its backing file stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseName {
    pub offset: u64,
    /// At most 1023.
    pub length: u32,
}

/// Why a file is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("it is a {0} image, which is not taken as it is")]
    Foreign(&'static str),
    #[error("it is a damaged qcow2 image: {0}")]
    Damaged(&'static str),
    #[error("qcow version {0} is not supported")]
    Version(u32),
    #[error("it is marked as corrupt")]
    Corrupt,
    #[error("it has a backing file; what it would show depends on another file")]
    BackingFile,
    #[error("its data lies in another file")]
    ExternalData,
    #[error("it is encrypted")]
    Encrypted,
    #[error("it needs features that are not known here (bits {0:#x})")]
    UnknownFeatures(u64),
}

/// A set of rules for qcow2 headers: [`Standalone`], [`Layered`] or [`NamesOnly`].
pub trait Rules: sealed::Sealed {
    /// What is known of a backing file.
    type Base: fmt::Debug;
    /// Whether what makes a file unusable is refused.
    const STRICT: bool;

    #[doc(hidden)]
    fn base(found: Option<BaseName>) -> Result<Self::Base, Refusal>;
}

/// An image: it must show the same disk wherever it lies.
#[derive(Debug, Clone, Copy)]
pub struct Standalone;

/// A volume: it may build on a volume beside it.
#[derive(Debug, Clone, Copy)]
pub struct Layered;

/// Any file that may name a backing file, usable or not.
#[derive(Debug, Clone, Copy)]
pub struct NamesOnly;

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Standalone {}
    impl Sealed for super::Layered {}
    impl Sealed for super::NamesOnly {}
}

impl Rules for Standalone {
    type Base = ();
    const STRICT: bool = true;

    fn base(found: Option<BaseName>) -> Result<(), Refusal> {
        found.map_or(Ok(()), |_| Err(Refusal::BackingFile))
    }
}

impl Rules for Layered {
    type Base = Option<BaseName>;
    const STRICT: bool = true;

    fn base(found: Option<BaseName>) -> Result<Option<BaseName>, Refusal> {
        Ok(found)
    }
}

impl Rules for NamesOnly {
    type Base = Option<BaseName>;
    const STRICT: bool = false;

    fn base(found: Option<BaseName>) -> Result<Option<BaseName>, Refusal> {
        Ok(found)
    }
}

/// Reads a file's first [`HEAD`] bytes.
pub fn read<R: Rules>(head: &[u8]) -> Result<Content<R::Base>, Refusal> {
    if !head.starts_with(b"QFI\xfb") {
        return match foreign(head) {
            Some(name) if R::STRICT => Err(Refusal::Foreign(name)),
            _ => Ok(Content::Other {
                boot_sector: head.get(510..512) == Some(&[0x55, 0xaa]),
            }),
        };
    }
    let version = u32_at(head, 4)?;
    let base_name = base_name(head)?;
    if R::STRICT {
        require_usable(head, version)?;
    }
    Ok(Content::Qcow2(Qcow2 {
        virtual_size: u64_at(head, 24)?,
        base: R::base(base_name)?,
    }))
}

/// The plain file name that a header gives as its base. Anything else would lead out of the directory, or to one of the
/// protocols that QEMU knows by a prefix.
pub fn plain_base(name: &[u8]) -> Option<&str> {
    std::str::from_utf8(name).ok().filter(|name| is_plain(name))
}

/// Whether a volume may be called so: one file name of ASCII letters, digits, `.`, `_` and `-`, not hidden.
pub fn is_volume_name(name: &str) -> bool {
    name.len() <= MAX_VOLUME_NAME && is_plain(name)
}

fn is_plain(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !name.is_empty() && !name.starts_with('.') && name.chars().all(plain)
}

/// Formats that QEMU would recognise and that are not taken.
fn foreign(head: &[u8]) -> Option<&'static str> {
    const MAGICS: [(&[u8], &str); 10] = [
        (b"KDMV", "VMDK"),
        (b"COWD", "VMDK"),
        (b"# Disk DescriptorFile", "VMDK"),
        (b"vhdxfile", "VHDX"),
        (b"conectix", "VHD"),
        (b"QED\0", "QED"),
        (b"LUKS\xba\xbe", "LUKS"),
        (b"WithoutFreeSpace", "Parallels"),
        (b"WithouFreSpacExt", "Parallels"),
        (b"Bochs Virtual HD Image", "Bochs"),
    ];
    let vdi = head.get(0x40..0x44) == Some(&[0x7f, 0x10, 0xda, 0xbe]);
    let found = MAGICS.iter().find(|(magic, _)| head.starts_with(magic));
    found.map(|(_, name)| *name).or(vdi.then_some("VDI"))
}

fn base_name(head: &[u8]) -> Result<Option<BaseName>, Refusal> {
    let (offset, length) = (u64_at(head, 8)?, u32_at(head, 16)?);
    if offset == 0 {
        return Ok(None);
    }
    if length > MAX_BASE_NAME {
        return Err(Refusal::Damaged("the name of its backing file is too long"));
    }
    Ok(Some(BaseName { offset, length }))
}

fn require_usable(head: &[u8], version: u32) -> Result<(), Refusal> {
    let features = match version {
        2 => 0,
        3 => u64_at(head, 72)?,
        other => return Err(Refusal::Version(other)),
    };
    if features & feature::CORRUPT != 0 {
        return Err(Refusal::Corrupt);
    }
    if features & feature::EXTERNAL_DATA != 0 {
        return Err(Refusal::ExternalData);
    }
    if features & !feature::HARMLESS != 0 {
        return Err(Refusal::UnknownFeatures(features & !feature::HARMLESS));
    }
    if u32_at(head, 32)? != 0 {
        return Err(Refusal::Encrypted);
    }
    let cluster_bits = u32_at(head, 20)?;
    if !(9..=21).contains(&cluster_bits) {
        return Err(Refusal::Damaged("its clusters have an impossible size"));
    }
    if let Some(BaseName { offset, length }) = base_name(head)?
        && offset.saturating_add(u64::from(length)) > 1 << cluster_bits
    {
        return Err(Refusal::Damaged(
            "the name of its backing file lies outside the header",
        ));
    }
    match u64_at(head, 24)? {
        0 => Err(Refusal::Damaged("its disk has no size")),
        size if size > MAX_DISK => Err(Refusal::Damaged("its disk is larger than a pebibyte")),
        _ => Ok(()),
    }
}

const CUT_OFF: Refusal = Refusal::Damaged("its header is cut off");

fn u32_at(head: &[u8], at: usize) -> Result<u32, Refusal> {
    let bytes = head.get(at..at + 4).ok_or(CUT_OFF)?;
    Ok(u32::from_be_bytes(bytes.try_into().expect("four bytes")))
}

fn u64_at(head: &[u8], at: usize) -> Result<u64, Refusal> {
    let bytes = head.get(at..at + 8).ok_or(CUT_OFF)?;
    Ok(u64::from_be_bytes(bytes.try_into().expect("eight bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn qcow2(change: impl FnOnce(&mut [u8])) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        head[..4].copy_from_slice(b"QFI\xfb");
        head[7] = 3;
        head[23] = 16;
        head[24..32].copy_from_slice(&(64_u64 << 20).to_be_bytes());
        change(&mut head);
        head
    }

    fn refused(change: impl FnOnce(&mut [u8]) + Copy) -> Refusal {
        let head = qcow2(change);
        let refused = read::<Standalone>(&head).expect_err("refused as an image");
        let volume = read::<Layered>(&head).err();
        assert_eq!(volume, Some(refused), "the same rule for a volume");
        refused
    }

    #[test]
    fn what_makes_a_file_unusable_is_refused_for_images_and_volumes_alike() {
        assert_eq!(refused(|head| head[79] = 2), Refusal::Corrupt);
        assert_eq!(refused(|head| head[79] = 4), Refusal::ExternalData);
        assert_eq!(refused(|head| head[79] = 32), Refusal::UnknownFeatures(32));
        assert_eq!(
            refused(|head| head[72] = 1),
            Refusal::UnknownFeatures(1 << 56)
        );
        assert_eq!(refused(|head| head[35] = 1), Refusal::Encrypted);
        assert_eq!(refused(|head| head[7] = 1), Refusal::Version(1));
        assert!(matches!(refused(|head| head[23] = 40), Refusal::Damaged(_)));
        assert!(matches!(refused(|head| head[24] = 1), Refusal::Damaged(_)));
        assert!(matches!(
            refused(|head| head[24..32].fill(0)),
            Refusal::Damaged(_)
        ));
        // Dirty, another compression, extended entries: QEMU knows what to do.
        read::<Standalone>(&qcow2(|head| head[79] = 1 | 8 | 16)).expect("taken");
        assert_eq!(read::<Layered>(b"vhdxfile"), Err(Refusal::Foreign("VHDX")));
        for length in 4..80 {
            let head = &qcow2(|_| {})[..length];
            assert_eq!(read::<Standalone>(head).err(), Some(CUT_OFF), "{length}");
        }
    }

    #[test]
    fn a_backing_file_is_refused_for_an_image_and_told_for_a_volume() {
        let backed = |head: &mut [u8]| {
            head[14] = 2;
            head[19] = 9;
        };
        let head = qcow2(backed);
        let name = BaseName {
            offset: 512,
            length: 9,
        };
        assert_eq!(read::<Standalone>(&head), Err(Refusal::BackingFile));
        let Ok(Content::Qcow2(found)) = read::<Layered>(&head) else {
            panic!("a volume");
        };
        assert_eq!(found.base, Some(name));
        // Where its name lies beyond the header, or is too long, no rules take it.
        let far = qcow2(|head| {
            backed(head);
            head[8] = 0xff;
        });
        assert!(matches!(read::<Layered>(&far), Err(Refusal::Damaged(_))));
        let long = qcow2(|head| {
            backed(head);
            head[16] = 1;
        });
        assert!(matches!(read::<NamesOnly>(&long), Err(Refusal::Damaged(_))));
        // A file that is marked as corrupt still needs its base.
        let corrupt = qcow2(|head| {
            backed(head);
            head[79] = 2;
        });
        let Ok(Content::Qcow2(found)) = read::<NamesOnly>(&corrupt) else {
            panic!("it is read");
        };
        assert_eq!(found.base, Some(name));
    }

    #[test]
    fn a_base_is_a_plain_name_beside_its_overlay() {
        assert_eq!(plain_base(b"web-1.qcow2"), Some("web-1.qcow2"));
        let bad: [&[u8]; 8] = [
            b"",
            b".",
            b"..",
            b".hidden",
            b"../x",
            b"/etc/passwd",
            b"nbd:host",
            b"\xff",
        ];
        for name in bad {
            assert_eq!(plain_base(name), None, "{name:?}");
        }
        assert!(is_volume_name("disk0.qcow2"));
        assert!(!is_volume_name(&"x".repeat(201)));
    }

    #[test]
    fn anything_else_is_judged_by_its_boot_sector() {
        let mut disk = vec![0; HEAD];
        assert_eq!(
            read::<Standalone>(&disk),
            Ok(Content::Other { boot_sector: false })
        );
        disk[510..].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(
            read::<Standalone>(&disk),
            Ok(Content::Other { boot_sector: true })
        );
        assert_eq!(
            read::<Standalone>(b""),
            Ok(Content::Other { boot_sector: false })
        );
    }
}

//! Detects the format of a file from its first bytes: a qcow2 disk, a raw disk or an installer medium.
//!
//! Refuses files that refer to other files (qcow2 backing file, external data file), encrypted files, and other
//! formats. Layout of qcow2: docs/interop/qcow2.txt of QEMU.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// A file that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Looked {
    /// `qcow2`, `raw` or `iso`.
    pub(crate) format: &'static str,
    /// Bytes of the disk.
    pub(crate) virtual_size: u64,
}

/// Why a file is no image for us.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("it cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("unknown format {0:?}; there are qcow2, raw and iso")]
    UnknownFormat(String),
    #[error("it is empty")]
    Empty,
    #[error("it is no disk: no partition table, no file system of an installer, no known format")]
    NoDisk,
    #[error("it is {found}, not {wanted}")]
    OtherFormat {
        found: &'static str,
        wanted: &'static str,
    },
    #[error("it is a {0} image; only qcow2, raw and iso are taken")]
    Foreign(&'static str),
    #[error("a raw disk consists of whole sectors of 512 bytes, this has {0} bytes")]
    PartialSector(u64),
    #[error("it is a damaged qcow2 image: {0}")]
    Damaged(&'static str),
    #[error("it has a backing file; what it would show depends on another file")]
    BackingFile,
    #[error("it keeps its data in another file")]
    ExternalData,
    #[error("it is encrypted")]
    Encrypted,
}

/// Finds out what `path` is; with `wanted`, whether it is that.
pub(crate) fn look(path: &Path, wanted: Option<&str>) -> Result<Looked, Refusal> {
    let wanted = match wanted {
        None => None,
        Some("qcow2") => Some("qcow2"),
        Some("raw") => Some("raw"),
        Some("iso") => Some("iso"),
        Some(other) => return Err(Refusal::UnknownFormat(other.chars().take(20).collect())),
    };
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    if size == 0 {
        return Err(Refusal::Empty);
    }
    let mut head = [0; 512];
    let read = read_up_to(&mut file, &mut head)?;
    let head = &head[..read];
    let mut volume = [0; 6];
    file.seek(SeekFrom::Start(0x8000))?;
    let is_iso = read_up_to(&mut file, &mut volume)? == 6 && &volume[1..] == b"CD001";

    let found = if head.starts_with(b"QFI\xfb") {
        "qcow2"
    } else if let Some(foreign) = foreign(head) {
        return Err(Refusal::Foreign(foreign));
    } else if is_iso && wanted != Some("raw") {
        "iso"
    } else if head.len() == 512 && head[510..] == [0x55, 0xaa] || wanted == Some("raw") {
        "raw"
    } else {
        return Err(Refusal::NoDisk);
    };
    if let Some(wanted) = wanted
        && wanted != found
    {
        return Err(Refusal::OtherFormat { found, wanted });
    }
    let virtual_size = match found {
        "qcow2" => qcow2_size(head)?,
        "raw" if !size.is_multiple_of(512) => return Err(Refusal::PartialSector(size)),
        _ => size,
    };
    Ok(Looked {
        format: found,
        virtual_size,
    })
}

fn foreign(head: &[u8]) -> Option<&'static str> {
    const MAGICS: [(&[u8], &str); 6] = [
        (b"KDMV", "VMDK"),
        (b"# Disk DescriptorFile", "VMDK"),
        (b"vhdxfile", "VHDX"),
        (b"conectix", "VHD"),
        (b"QED\0", "QED"),
        (b"LUKS\xba\xbe", "LUKS"),
    ];
    let vdi = head.get(0x40..0x44) == Some(&[0x7f, 0x10, 0xda, 0xbe]);
    let found = MAGICS.iter().find(|(magic, _)| head.starts_with(magic));
    found.map(|(_, name)| *name).or(vdi.then_some("VDI"))
}

fn qcow2_size(head: &[u8]) -> Result<u64, Refusal> {
    const EXTERNAL_DATA: u64 = 1 << 2;
    if head.len() < 104 {
        return Err(Refusal::Damaged("its header is cut off"));
    }
    let u32_at = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("four bytes"));
    let u64_at = |at: usize| u64::from_be_bytes(head[at..at + 8].try_into().expect("eight bytes"));
    match u32_at(4) {
        2 => {}
        3 if u64_at(72) & EXTERNAL_DATA != 0 => return Err(Refusal::ExternalData),
        3 => {}
        _ => return Err(Refusal::Damaged("its version is not 2 or 3")),
    }
    if u64_at(8) != 0 || u32_at(16) != 0 {
        return Err(Refusal::BackingFile);
    }
    if u32_at(32) != 0 {
        return Err(Refusal::Encrypted);
    }
    match u64_at(24) {
        0 => Err(Refusal::Damaged("its disk has no size")),
        size if size > 1 << 50 => Err(Refusal::Damaged("its disk is larger than a pebibyte")),
        size => Ok(size),
    }
}

fn read_up_to(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(content: &[u8], wanted: Option<&str>) -> Result<Looked, Refusal> {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), content).expect("write");
        look(file.path(), wanted)
    }

    fn qcow2(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut head = vec![0; 1024];
        head[..4].copy_from_slice(b"QFI\xfb");
        head[4..8].copy_from_slice(&3u32.to_be_bytes());
        head[24..32].copy_from_slice(&(64u64 << 20).to_be_bytes());
        change(&mut head);
        head
    }

    #[test]
    fn images_are_known_by_their_content() {
        let disk = looked(&qcow2(|_| {}), None).expect("qcow2");
        assert_eq!(
            disk,
            Looked {
                format: "qcow2",
                virtual_size: 64 << 20
            }
        );
        let mut raw = vec![0; 1024];
        raw[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(looked(&raw, None).expect("raw").virtual_size, 1024);
        let mut iso = vec![0; 0x9000];
        iso[0x8001..0x8006].copy_from_slice(b"CD001");
        assert_eq!(looked(&iso, None).expect("iso").format, "iso");
    }

    #[test]
    fn what_is_no_image_or_refers_to_others_is_refused() {
        assert!(matches!(looked(b"", None), Err(Refusal::Empty)));
        assert!(matches!(looked(b"hello", None), Err(Refusal::NoDisk)));
        assert!(matches!(
            looked(b"hello", Some("raw")),
            Err(Refusal::PartialSector(5))
        ));
        assert!(matches!(looked(b"QFI\xfb", None), Err(Refusal::Damaged(_))));
        let backed = qcow2(|head| head[15] = 104);
        assert!(matches!(looked(&backed, None), Err(Refusal::BackingFile)));
        let external = qcow2(|head| head[79] = 4);
        assert!(matches!(
            looked(&external, None),
            Err(Refusal::ExternalData)
        ));
        let encrypted = qcow2(|head| head[35] = 2);
        assert!(matches!(looked(&encrypted, None), Err(Refusal::Encrypted)));
        assert!(matches!(
            looked(&qcow2(|_| {}), Some("raw")),
            Err(Refusal::OtherFormat { .. })
        ));
        assert!(matches!(
            looked(b"vhdxfile", None),
            Err(Refusal::Foreign("VHDX"))
        ));
        assert!(matches!(
            looked(b"x", Some("exe")),
            Err(Refusal::UnknownFormat(_))
        ));
    }
}

//! Refuses disks whose content lies in other files, before any program that could open those sees them.
//!
//! Reads a few fields at fixed places, in safe code. What it cannot find is left to the program in the confinement, where
//! there are no other files. Layouts: VHDX: MS-VHDX 2.2 and 2.6; VHD: Microsoft's "Virtual Hard Disk Image Format"; VMDK:
//! VMware's "Virtual Disk Format 5.0"; VDI: QEMU's block/vdi.c.

use fleetward_hypervisor::ConversionError;
use fleetward_model::foreign::Disk;
use std::io::{self, Read, Seek, SeekFrom};

const SECTOR: u64 = 512;
/// Bytes read of a VMDK's embedded descriptor; real ones have some hundred.
const MAX_DESCRIPTOR: u64 = 64 << 10;

const REGION_TABLES: [u64; 2] = [192 << 10, 256 << 10];
const METADATA_REGION: [u8; 16] = [
    0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e,
];
const FILE_PARAMETERS: [u8; 16] = [
    0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b,
];
const LOGICAL_SECTOR_SIZE: [u8; 16] = [
    0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47, 0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f,
];
const HAS_PARENT: u32 = 1 << 1;

/// Refuses what is not whole in itself.
pub(super) fn require_whole(
    disk: Disk,
    file: &mut (impl Read + Seek),
) -> Result<(), ConversionError> {
    let found = match disk {
        Disk::Vhdx => vhdx(file),
        Disk::Vhd => vhd(file),
        Disk::Vmdk => vmdk(file),
        Disk::Vdi => vdi(file),
    };
    found.unwrap_or_else(|error| {
        Err(ConversionError::Unusable(format!(
            "it cannot be read: {error}"
        )))
    })
}

type Checked = io::Result<Result<(), ConversionError>>;

fn vhdx(file: &mut (impl Read + Seek)) -> Checked {
    for table in REGION_TABLES {
        let Some(metadata) = metadata_region(file, table)? else {
            continue;
        };
        if let Some(parameters) = metadata_item(file, metadata, FILE_PARAMETERS, 8)?
            && u32_at(&parameters, 4) & HAS_PARENT != 0
        {
            return Ok(needs_others(
                "it is a differencing VHDX: what it does not hold lies in its parent. Merge it first, with Hyper-V's \
                 Merge-VHD or Convert-VHD",
            ));
        }
        if let Some(sectors) = metadata_item(file, metadata, LOGICAL_SECTOR_SIZE, 4)?
            && u32_at(&sectors, 0) == 4096
        {
            return Ok(Err(ConversionError::Unusable(
                "its disk has logical sectors of 4,096 bytes (4K native); disks of VMs here have sectors of 512 bytes, \
                 and a partition table in the one is not found in the other. Disks with physical sectors of 4,096 \
                 bytes (512e), as Hyper-V makes them, are taken"
                    .to_owned(),
            )));
        }
    }
    Ok(Ok(()))
}

/// Where the region of metadata begins, as that region table says.
fn metadata_region(file: &mut (impl Read + Seek), table: u64) -> io::Result<Option<u64>> {
    let table = read_at(file, table, 64 << 10)?;
    if !table.starts_with(b"regi") {
        return Ok(None);
    }
    let entries = table.get(16..).unwrap_or_default().chunks_exact(32);
    let region = entries.take(2047).find(|e| e[..16] == METADATA_REGION);
    Ok(region.map(|entry| u64_at(entry, 16)))
}

/// The first `length` bytes of an item of metadata.
fn metadata_item(
    file: &mut (impl Read + Seek),
    region: u64,
    item: [u8; 16],
    length: u64,
) -> io::Result<Option<Vec<u8>>> {
    let table = read_at(file, region, 64 << 10)?;
    if !table.starts_with(b"metadata") {
        return Ok(None);
    }
    let mut entries = table.get(32..).unwrap_or_default().chunks_exact(32);
    let Some(entry) = entries.find(|entry| entry[..16] == item) else {
        return Ok(None);
    };
    let at = region.saturating_add(u64::from(u32_at(entry, 16)));
    let content = read_at(file, at, length)?;
    Ok((content.len() as u64 == length).then_some(content))
}

fn vhd(file: &mut (impl Read + Seek)) -> Checked {
    const TYPE: usize = 60;
    let length = file.seek(SeekFrom::End(0))?;
    for at in [0, length.saturating_sub(SECTOR)] {
        let footer = read_at(file, at, SECTOR)?;
        let kind = footer.get(TYPE..TYPE + 4);
        if footer.starts_with(b"conectix") && kind == Some(&4u32.to_be_bytes()) {
            return Ok(needs_others(
                "it is a differencing VHD: what it does not hold lies in its parent. Merge it first, with Hyper-V's \
                 Merge-VHD or Convert-VHD",
            ));
        }
    }
    Ok(Ok(()))
}

fn vdi(file: &mut (impl Read + Seek)) -> Checked {
    const TYPE: usize = 0x4c;
    let head = read_at(file, 0, SECTOR)?;
    match head.get(TYPE..TYPE + 4).map(|kind| u32_at(kind, 0)) {
        Some(3 | 4) => Ok(needs_others(
            "it is a differencing VDI: what it does not hold lies in its parent. Copy it first with VirtualBox: \
             VBoxManage clonemedium",
        )),
        _ => Ok(Ok(())),
    }
}

fn vmdk(file: &mut (impl Read + Seek)) -> Checked {
    let head = read_at(file, 0, SECTOR)?;
    let (Some(offset), Some(size)) = (head.get(28..36), head.get(36..44)) else {
        return Ok(Ok(()));
    };
    let (offset, size) = (u64_at(offset, 0), u64_at(size, 0));
    if offset == 0 || size == 0 {
        return Ok(Ok(()));
    }
    let size = size.saturating_mul(SECTOR).min(MAX_DESCRIPTOR);
    let descriptor = read_at(file, offset.saturating_mul(SECTOR), size)?;
    let descriptor = String::from_utf8_lossy(&descriptor);
    let lines = || descriptor.lines().map(str::trim);
    let parent = lines().find_map(|line| line.strip_prefix("parentCID="));
    if parent.is_some_and(|parent| !parent.eq_ignore_ascii_case("ffffffff")) {
        return Ok(needs_others(
            "it is a snapshot (its parentCID names a parent): what it does not hold lies in another VMDK. Export the VM \
             as an OVA, which consolidates it",
        ));
    }
    let is_extent = |line: &&str| {
        ["RW ", "RDONLY ", "NOACCESS "]
            .iter()
            .any(|access| line.starts_with(access))
    };
    if lines().filter(is_extent).count() > 1 {
        return Ok(needs_others(
            "its content is in several files. Export the VM as an OVA, or make one file of them: \
             vmware-vdiskmanager -r FIRST.vmdk -t 0 WHOLE.vmdk",
        ));
    }
    Ok(Ok(()))
}

fn needs_others(what: &str) -> Result<(), ConversionError> {
    Err(ConversionError::NeedsOthers(what.to_owned()))
}

/// Up to `length` bytes from there; fewer, or none, where the file ends.
fn read_at(file: &mut (impl Read + Seek), at: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    // Beyond what a file can have, there is nothing.
    if at > i64::MAX as u64 {
        return Ok(content);
    }
    file.seek(SeekFrom::Start(at))?;
    file.take(length).read_to_end(&mut content)?;
    Ok(content)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes[at..at + 4].try_into().expect("four bytes");
    u32::from_le_bytes(bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes[at..at + 8].try_into().expect("eight bytes");
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// A VHDX of which only the tables are there.
    fn vhdx_file() -> Vec<u8> {
        let mut file = vec![0; 320 << 10];
        let table = REGION_TABLES[0] as usize;
        file[table..table + 4].copy_from_slice(b"regi");
        file[table + 16..table + 32].copy_from_slice(&METADATA_REGION);
        let region = 300 << 10;
        file[table + 32..table + 40].copy_from_slice(&(region as u64).to_le_bytes());
        file[region..region + 8].copy_from_slice(b"metadata");
        file[region + 32..region + 48].copy_from_slice(&FILE_PARAMETERS);
        file[region + 48..region + 52].copy_from_slice(&4096_u32.to_le_bytes());
        file[region + 4100] = HAS_PARENT as u8;
        file
    }

    fn needs_others(disk: Disk, file: &[u8]) -> bool {
        let checked = require_whole(disk, &mut Cursor::new(file));
        matches!(checked, Err(ConversionError::NeedsOthers(_)))
    }

    #[test]
    fn a_parent_is_seen_in_the_header() {
        let mut file = vhdx_file();
        assert!(needs_others(Disk::Vhdx, &file));
        let parameters = (300 << 10) + 4100;
        file[parameters] = 1;
        assert!(!needs_others(Disk::Vhdx, &file));
        let vmdk = |descriptor: &str| {
            let mut file = vec![0; 1024];
            file[28] = 1;
            file[36] = 1;
            file[512..512 + descriptor.len()].copy_from_slice(descriptor.as_bytes());
            needs_others(Disk::Vmdk, &file)
        };
        assert!(!vmdk("parentCID=ffffffff\nRW 1 SPARSE \"a.vmdk\"\n"));
        assert!(vmdk("parentCID=0000000a\n"));
        assert!(vmdk("RW 1 SPARSE \"a\"\nRW 1 SPARSE \"b\"\n"));
    }

    #[test]
    fn no_bytes_make_the_check_fail_otherwise_than_by_a_refusal() {
        let whole = vhdx_file();
        let mut seed = 1_u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed as usize
        };
        for _ in 0..300 {
            let mut file = whole.clone();
            for _ in 0..4 {
                let places = [0, REGION_TABLES[0] as usize, 300 << 10];
                let at = places[random() % 3] + random() % 128;
                file[at..at + 8].copy_from_slice(&(random() as u64).to_le_bytes());
            }
            file.truncate(file.len() - random() % 4 * (random() % (310 << 10)) / 4);
            for disk in [Disk::Vhdx, Disk::Vhd, Disk::Vmdk, Disk::Vdi] {
                let _ = require_whole(disk, &mut Cursor::new(&file));
            }
        }
    }
}

//! UEFI variables of a simulated VM: the file of QEMU's second flash as edk2 leaves it, 528 KiB, of which nearly all is erased.
//!
//! Source: UEFI PI 1.8 volume 3, section 3.2 (firmware volumes); edk2 `MdeModulePkg/Include/Guid/VariableFormat.h`.

use fleetward_model::VmId;
use sha2::{Digest, Sha256};

/// Bytes of the file, as of `OVMF_VARS_4M.fd`.
pub const SIZE: usize = 528 << 10;

/// Where the store ends; what follows is work space of edk2.
const STORE_END: usize = 256 << 10;
const VOLUME_HEADER: usize = 72;
/// What erased flash reads as.
const ERASED: u8 = 0xff;
/// `fff12b8d-7696-4c8b-a985-2747075b4f50`: a volume of variables.
const VOLUME: [u8; 16] = [
    0x8d, 0x2b, 0xf1, 0xff, 0x96, 0x76, 0x8b, 0x4c, 0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f, 0x50,
];
/// `aaf32c78-947b-439a-a180-2e144ec37792`: a store of authenticated variables.
const AUTHENTICATED: [u8; 16] = [
    0x78, 0x2c, 0xf3, 0xaa, 0x7b, 0x94, 0x9a, 0x43, 0xa1, 0x80, 0x2e, 0x14, 0x4e, 0xc3, 0x77, 0x92,
];
/// `8be4df61-93ca-11d2-aa0d-00e098032b8c`: the variables of UEFI itself.
const GLOBAL: [u8; 16] = [
    0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c,
];
/// Kept, and seen by firmware and system.
const ATTRIBUTES: u32 = 7;

/// The variables of a VM whose guest has written them so often. No two VMs have the same, and a write changes them.
pub fn of(vm: VmId, writes: u32) -> Vec<u8> {
    let mut file = volume_header();
    file.extend(AUTHENTICATED);
    let store = u32::try_from(STORE_END - VOLUME_HEADER).expect("it is 32 bits long");
    file.extend(store.to_le_bytes());
    // Formatted, healthy.
    file.extend([0x5a, 0xfe, 0, 0, 0, 0, 0, 0]);
    put(&mut file, "BootOrder", &[0, 0]);
    let option = noise(vm, 0, 300);
    put(&mut file, "Boot0000", &option);
    put(&mut file, "MTC", &writes.to_le_bytes());
    // What a guest's boot loader keeps, as dense as signatures are.
    put(&mut file, "SimulatedBoot", &noise(vm, writes, 6000));
    file.resize(SIZE, ERASED);
    file
}

fn volume_header() -> Vec<u8> {
    let mut header = vec![0; 16];
    header.extend(VOLUME);
    header.extend((SIZE as u64).to_le_bytes());
    header.extend(*b"_FVH");
    header.extend(0x0004_feff_u32.to_le_bytes());
    header.extend((VOLUME_HEADER as u16).to_le_bytes());
    // The sum, then no further header, and revision 2.
    header.extend([0, 0, 0, 0, 0, 2]);
    let blocks = SIZE as u32 / 4096;
    for word in [blocks, 4096, 0, 0] {
        header.extend(word.to_le_bytes());
    }
    let words = header.chunks_exact(2);
    let sum = words.fold(0_u16, |sum, word| {
        sum.wrapping_add(u16::from_le_bytes([word[0], word[1]]))
    });
    header[50..52].copy_from_slice(&sum.wrapping_neg().to_le_bytes());
    header
}

fn put(file: &mut Vec<u8>, name: &str, data: &[u8]) {
    let units = name.encode_utf16().chain([0]);
    let name: Vec<u8> = units.flat_map(u16::to_le_bytes).collect();
    file.extend([0xaa, 0x55, 0x3f, 0]);
    file.extend(ATTRIBUTES.to_le_bytes());
    // Count, time and key of a signed one; this is none.
    file.extend([0; 28]);
    for length in [name.len(), data.len()] {
        let length = u32::try_from(length).expect("a variable is short");
        file.extend(length.to_le_bytes());
    }
    file.extend(GLOBAL);
    file.extend(name);
    file.extend(data);
    let end = file.len() - VOLUME_HEADER;
    file.resize(VOLUME_HEADER + end.next_multiple_of(4), ERASED);
}

/// Bytes that do not get smaller when they are compressed.
fn noise(vm: VmId, writes: u32, length: usize) -> Vec<u8> {
    let blocks = (0..length.div_ceil(32) as u32).flat_map(|block| {
        let mut digest = Sha256::new();
        digest.update(vm.0.as_bytes());
        digest.update(writes.to_be_bytes());
        digest.update(block.to_be_bytes());
        digest.finalize()
    });
    blocks.take(length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use fleetward_model::secure_boot::CertificateState;

    #[test]
    fn they_are_as_edk2_leaves_them_and_each_write_changes_them() {
        let vm = VmId(uuid::Uuid::from_u128(7));
        let file = of(vm, 1);
        assert_eq!(file.len(), 540_672);
        let found = fleetward_uefi::assess(&file);
        assert_eq!(
            (found.state, found.because),
            (CertificateState::Off, None),
            "whole, with no keys of Secure Boot"
        );
        let erased = file.iter().filter(|byte| **byte == ERASED).count();
        assert!(erased > file.len() * 95 / 100, "{erased}");
        assert_ne!(file, of(vm, 2));
        assert_ne!(file, of(VmId(uuid::Uuid::from_u128(8)), 1));
    }
}

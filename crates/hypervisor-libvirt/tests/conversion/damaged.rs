//! Damaged files of each kind.

use crate::support::{LIMITS, Random, USER, disk, foreign, nothing_runs, ova, packed};
use fleetward_hypervisor::{Conversion, ConversionError, Converter};
use fleetward_hypervisor_libvirt::ConfinedConverter;
use std::fs;
use std::time::{Duration, Instant};

/// Header bytes flipped, fields at their extremes, files cut off: each ends in an error or a disk, within its limits.
#[tokio::test]
async fn damaged_files_of_each_kind_end_in_an_error_or_a_disk() {
    let count = std::env::var("FLEETWARD_MUTANTS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(6);
    let directory = tempfile::tempdir().unwrap();
    let disk = disk(directory.path());
    let stream = foreign(&disk, "vmdk", "subformat=streamOptimized");
    let kinds = [
        foreign(&disk, "vhdx", "subformat=dynamic"),
        foreign(&disk, "vhdx", "subformat=fixed"),
        foreign(&disk, "vpc", "subformat=dynamic"),
        foreign(&disk, "vmdk", "subformat=monolithicSparse"),
        ova(&[&stream]),
        foreign(&disk, "vdi", ""),
        packed(&disk, "gzip", &["-1c"]),
        packed(&disk, "xz", &["-1c"]),
        packed(&disk, "zstd", &["-qc"]),
        packed(&disk, "bzip2", &["-1c"]),
        stream,
    ];
    let converter = ConfinedConverter::find(USER).with_limits(LIMITS);
    for path in kinds {
        let whole = fs::read(&path).unwrap();
        let mut random = Random(whole.len() as u64 | 1);
        let (mut taken, mut refused) = (0, 0);
        for _ in 0..count {
            let mutant = mutate(&whole, &mut random);
            let directory = tempfile::tempdir().unwrap();
            let source = directory.path().join("source");
            fs::write(&source, mutant).unwrap();
            let conversion = Conversion {
                source: &source,
                directory: directory.path(),
                wanted: None,
                disk: None,
            };
            let began = Instant::now();
            match converter.convert(conversion, &|_| {}).await {
                Ok(_) => taken += 1,
                Err(ConversionError::Unable(why)) => panic!("{path:?}: {why}"),
                Err(ConversionError::File {
                    attempt, source, ..
                }) => panic!("{path:?}: {attempt}: {source}"),
                Err(_) => refused += 1,
            }
            assert!(began.elapsed() < Duration::from_secs(90), "{path:?}");
            let made = fs::read_dir(directory.path()).unwrap().flatten();
            let largest = made
                .map(|file| std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) * 512)
                .max();
            assert!(
                largest.unwrap_or_default() < 256 << 20,
                "{path:?}: {largest:?}"
            );
            nothing_runs(directory.path());
        }
        println!(
            "{}: {taken} taken, {refused} refused",
            path.file_name().unwrap().display()
        );
    }
}

/// One to four changes, most of them where formats keep their headers and tables.
fn mutate(whole: &[u8], random: &mut Random) -> Vec<u8> {
    let mut file = whole.to_vec();
    let places = [512, 4096, 64 << 10, 320 << 10, 3 << 20 | 128 << 10];
    for _ in 0..=random.below(4) {
        let end = places[random.below(places.len() as u64) as usize].min(file.len() as u64);
        let at = random.below(end) as usize & !3;
        let extremes = [
            0,
            1,
            u64::MAX,
            i64::MAX as u64,
            1 << 31,
            u64::from(u32::MAX),
            1 << 62,
            random.next(),
        ];
        let value = extremes[random.below(extremes.len() as u64) as usize];
        match random.below(8) {
            0..=2 => file[at] ^= 1 << random.below(8),
            3 if at + 4 <= file.len() => {
                file[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes())
            }
            4 if at + 4 <= file.len() => {
                file[at..at + 4].copy_from_slice(&(value as u32).to_be_bytes())
            }
            5 if at + 8 <= file.len() => file[at..at + 8].copy_from_slice(&value.to_le_bytes()),
            6 if at + 8 <= file.len() => file[at..at + 8].copy_from_slice(&value.to_be_bytes()),
            _ => file.truncate(random.below(file.len() as u64) as usize + 1),
        }
    }
    // What says which format it is stays: else hardly any would be read as one.
    let magic = whole.len().min(file.len()).min(8);
    file[..magic].copy_from_slice(&whole[..magic]);
    file
}

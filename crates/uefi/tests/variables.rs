//! The variables of Debian's OVMF, and `virt-fw-vars` as a second opinion on what is made of them.

#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

use fleetward_model::secure_boot::CertificateState;
use fleetward_uefi::{
    Database, Enrolled, KNOWN, KeysProblem, StoreProblem, Wanted, assess, with_certificates,
    with_former,
};
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::process::Command;
use std::sync::LazyLock;

/// What Debian's ovmf gives a new VM with Secure Boot.
static MICROSOFT: LazyLock<Vec<u8>> = LazyLock::new(|| ovmf("OVMF_VARS_4M.ms.fd"));

fn ovmf(name: &str) -> Vec<u8> {
    let path = format!("/usr/share/OVMF/{name}");
    std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}; apt-get install ovmf"))
}

fn enrolled(file: &[u8], wanted: Wanted) -> Enrolled {
    with_certificates(file, wanted)
        .expect("readable")
        .expect("something to add")
}

/// Name and owner of each variable with its data, as `virt-fw-vars` reads the file.
fn oracle(file: &[u8]) -> BTreeMap<(String, String), String> {
    let directory = tempfile::tempdir().expect("a directory");
    let (vars, json) = (
        directory.path().join("vars.fd"),
        directory.path().join("vars.json"),
    );
    std::fs::write(&vars, file).expect("written");
    let run = Command::new("virt-fw-vars")
        .args([
            "--input".as_ref(),
            vars.as_os_str(),
            "--output-json".as_ref(),
            json.as_os_str(),
        ])
        .output()
        .expect("apt-get install python3-virt-firmware");
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    let read: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&json).expect("written")).expect("JSON");
    let variables = read["variables"].as_array().expect("a list").iter();
    variables
        .map(|variable| {
            let text = |key: &str| variable[key].as_str().unwrap_or_default().to_owned();
            ((text("name"), text("guid")), text("data"))
        })
        .collect()
}

#[test]
fn each_certificate_is_the_one_that_its_list_names() {
    let readme = include_str!("../certificates/README.md");
    for known in KNOWN {
        let sha256 = hex::encode(Sha256::digest(known.der));
        let row = readme
            .lines()
            .find(|line| line.contains(&sha256))
            .expect("a row");
        assert!(row.contains(&format!("| {} |", known.name)), "{row}");
        assert!(
            row.contains(&format!("| `{}` |", known.database.name())),
            "{row}"
        );
        // The name stands in the certificate, too.
        let name = known.name.as_bytes();
        assert!(
            known.der.windows(name.len()).any(|part| part == name),
            "{row}"
        );
    }
    assert_eq!(KNOWN.len(), 7);
}

#[test]
fn debians_variables_have_the_certificates_of_2011_only() {
    let found = assess(&MICROSOFT);
    assert_eq!(found.state, CertificateState::UpdateAvailable);
    assert!(found.enforced);
    assert_eq!((found.count_of("2011"), found.count_of("2023")), (3, 0));
    assert_eq!(
        (found.others, found.dbx_entries),
        (1, 1),
        "Debian's own key, and one digest"
    );
    assert_eq!(found.dbx_written.as_deref(), Some("2025-03-10"));

    let blank = assess(&ovmf("OVMF_VARS_4M.fd"));
    assert_eq!(
        (blank.state, blank.enforced),
        (CertificateState::Off, false)
    );
    let snakeoil = assess(&ovmf("OVMF_VARS_4M.snakeoil.fd"));
    assert_eq!(snakeoil.state, CertificateState::Custom);
}

#[test]
fn successors_come_beside_and_nothing_else_changes() {
    for name in ["OVMF_VARS_4M.ms.fd", "OVMF_VARS.ms.fd"] {
        let before = ovmf(name);
        let made = enrolled(&before, Wanted::Successors);
        assert_eq!(made.added.len(), 4, "{:?}", made.added);
        assert_eq!(made.variables.len(), before.len());
        let found = assess(&made.variables);
        assert_eq!(found.state, CertificateState::Ok);
        assert_eq!((found.count_of("2011"), found.count_of("2023")), (3, 4));
        assert_eq!(found.others, 1);
        for wanted in [Wanted::All, Wanted::Successors] {
            assert_eq!(with_certificates(&made.variables, wanted), Ok(None));
        }

        let (old, mut new) = (oracle(&before), oracle(&made.variables));
        assert_eq!(old.len(), new.len());
        for database in [Database::Kek, Database::Db] {
            let of = |variables: &BTreeMap<(String, String), String>| {
                let found = variables
                    .iter()
                    .find(|((name, _), _)| name == database.name());
                found
                    .map(|(key, data)| (key.clone(), data.clone()))
                    .expect("there")
            };
            let ((key, former), (_, now)) = (of(&old), of(&new));
            let added = now
                .strip_prefix(&former)
                .expect("what was there stands first");
            for known in KNOWN.iter().filter(|known| known.database == database) {
                let der = hex::encode(known.der);
                let place = if known.follows.is_some() {
                    added
                } else {
                    &former
                };
                assert!(
                    place.contains(&der),
                    "{} in {}",
                    known.name,
                    database.name()
                );
            }
            new.insert(key, former);
        }
        assert_eq!(old, new, "the other variables");
    }
}

#[test]
fn former_certificates_come_back_and_later_variables_stay() {
    let made = enrolled(&MICROSOFT, Wanted::Successors);
    let back = with_former(&made.variables, &made.former).expect("restored");
    assert_eq!(oracle(&back), oracle(&MICROSOFT));
    assert_eq!(assess(&back), assess(&MICROSOFT));

    let room = hex::encode(&made.former);
    for damaged in [
        &made.former[..made.former.len() / 2],
        &[],
        &made.former[4..],
    ] {
        let refused = with_former(&made.variables, damaged).expect_err("damaged");
        assert_eq!(refused, KeysProblem::Former, "{} of {room}", damaged.len());
    }
}

#[test]
fn a_database_that_was_narrowed_by_hand_is_not_widened() {
    let directory = tempfile::tempdir().expect("a directory");
    let [blank, narrow, kek, windows] = ["blank", "narrow", "kek.der", "windows.der"]
        .map(|name| directory.path().join(name).display().to_string());
    std::fs::write(&blank, ovmf("OVMF_VARS_4M.fd")).expect("written");
    std::fs::write(&kek, KNOWN[0].der).expect("written");
    std::fs::write(&windows, KNOWN[1].der).expect("written");
    let pem = |der: &str| {
        let made = format!("{der}.pem");
        let run = Command::new("openssl")
            .args(["x509", "-inform", "der", "-in", der, "-out", &made])
            .status()
            .expect("openssl");
        assert!(run.success());
        made
    };
    let owner = "77fa9abd-0359-4d32-bd60-28f4e78f784b";
    let (kek, windows) = (pem(&kek), pem(&windows));
    let run = Command::new("virt-fw-vars")
        .args(["--input", &blank, "--output", &narrow, "--secure-boot"])
        .args([
            "--set-pk",
            owner,
            &kek,
            "--add-kek",
            owner,
            &kek,
            "--add-db",
            owner,
            &windows,
        ])
        .output()
        .expect("apt-get install python3-virt-firmware");
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    let narrow = std::fs::read(&narrow).expect("written");
    assert_eq!(assess(&narrow).state, CertificateState::UpdateAvailable);
    let made = enrolled(&narrow, Wanted::Successors);
    assert_eq!(
        made.added,
        [
            "Microsoft Corporation KEK 2K CA 2023",
            "Windows UEFI CA 2023"
        ]
    );
    assert_eq!(assess(&made.variables).state, CertificateState::Ok);
    // A new VM gets all of them, whatever its host's firmware brings.
    let made = enrolled(&narrow, Wanted::All);
    assert_eq!(assess(&made.variables).certificates.len(), 7);
}

#[test]
fn what_has_no_keys_of_microsofts_is_refused_by_name() {
    for (file, problem) in [
        (ovmf("OVMF_VARS_4M.fd"), KeysProblem::Off),
        (ovmf("OVMF_VARS_4M.snakeoil.fd"), KeysProblem::Custom),
        (vec![0; 64], StoreProblem::NoVolume.into()),
        (Vec::new(), StoreProblem::NoVolume.into()),
        (
            MICROSOFT[..4096].to_vec(),
            StoreProblem::Volume("it is longer than its file").into(),
        ),
    ] {
        assert_eq!(with_certificates(&file, Wanted::Successors), Err(problem));
    }
    let found = assess(b"QFI\xfb");
    assert_eq!(found.state, CertificateState::Unreadable);
    assert!(found.because.is_some());
}

/// Found by fuzzing: what cannot be read afterwards was changed all the same.
#[test]
fn nothing_is_added_where_a_database_is_missing_that_could_not_be_brought_back() {
    // `db` of the vendor that UEFI names, in UTF-16
    const DB: &[u8] = b"\xcb\xb2\x19\xd7\x3a\x3d\x96\x45\xa3\xbc\xda\xd0\x0e\x67\x65\x6fd\0b\0\0\0";
    let mut file = MICROSOFT.clone();
    let at = file.windows(DB.len()).position(|at| at == DB);
    file[at.expect("Debian's variables have one")] ^= 1;
    for wanted in [Wanted::Successors, Wanted::All] {
        let refused = with_certificates(&file, wanted).expect_err("refused");
        assert_eq!(refused, KeysProblem::Off);
    }
}

#[test]
fn nothing_is_added_where_the_list_of_what_is_refused_is_damaged() {
    const SHA256: [u8; 16] = [
        0x26, 0x16, 0xc4, 0xc1, 0x4c, 0x50, 0x92, 0x40, 0xac, 0xa9, 0x41, 0xf9, 0x36, 0x93, 0x43,
        0x28,
    ];
    let mut file = MICROSOFT.clone();
    let list = file.windows(16).position(|some| *some == SHA256);
    let size = list.expect("hashes in dbx") + 16;
    file[size..size + 4].fill(0xff);
    let because = assess(&file).because.expect("it cannot be read");
    assert!(because.starts_with("dbx: "), "{because}");
    for wanted in [Wanted::Successors, Wanted::All] {
        let refused = with_certificates(&file, wanted);
        assert!(
            matches!(
                refused,
                Err(KeysProblem::Signatures {
                    database: "dbx",
                    ..
                })
            ),
            "{refused:?}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// A guest wrote them: whatever it is, it is read, or refused, and never more than itself.
    #[test]
    fn damaged_variables_neither_panic_nor_grow(
        changes in prop::collection::vec((0_usize..24 * 1024, any::<u8>()), 1..40),
        length in prop::option::of(0_usize..540_672),
    ) {
        let mut file = MICROSOFT.clone();
        for (at, byte) in changes {
            file[at] = byte;
        }
        file.truncate(length.unwrap_or(file.len()));
        let _ = assess(&file);
        if let Ok(Some(made)) = with_certificates(&file, Wanted::All) {
            prop_assert_eq!(made.variables.len(), file.len());
            let _ = with_former(&made.variables, &made.former);
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(file in prop::collection::vec(any::<u8>(), 0..4096)) {
        let _ = assess(&file);
        let _ = with_former(&MICROSOFT, &file);
    }
}

//! PFX files of every form, made by the openssl program in the test: what is read, and what is refused and why.
#![allow(clippy::unwrap_used, reason = "a panic is a failed test")]

mod support;

use fleetward_model::guardian::CertificateRole;
use fleetward_protector_open::pfx::{self, PairError, PfxReadError, Protection};
use support::{ALPHA, BETA, Bench};
use zeroize::Zeroizing;

const PASSWORD: &str = "correct horse battery staple";

fn secret(text: &str) -> Zeroizing<String> {
    Zeroizing::new(text.to_owned())
}

/// A directory with both halves of a guardian as PEM: `signing.pem`, `encryption.pem` hold certificate and key.
fn prepared() -> Bench {
    let bench = Bench::new();
    bench.write("password", PASSWORD.as_bytes());
    for (role, name) in [
        (CertificateRole::Signing, "signing"),
        (CertificateRole::Encryption, "encryption"),
    ] {
        let file = pfx::export(&ALPHA, role, &secret(PASSWORD), Protection::Aes256).unwrap();
        bench.write(&format!("{name}.pfx"), &file);
        bench
            .openssl(&format!(
                "pkcs12 -in {name}.pfx -passin file:password -nodes -out {name}.pem"
            ))
            .unwrap();
    }
    bench
}

/// What `openssl pkcs12 -export` makes with these options.
fn made(bench: &Bench, options: &str) -> Vec<u8> {
    bench
        .openssl(&format!(
            "pkcs12 -export -passout file:password -out made.pfx {options}"
        ))
        .unwrap_or_else(|error| panic!("{options}: {error}"));
    bench.read("made.pfx")
}

fn refused(file: &[u8], password: &str) -> PfxReadError {
    pfx::read(file, &secret(password)).expect_err("refused")
}

#[test]
fn both_halves_come_back_from_every_form_that_openssl_writes() {
    let bench = prepared();
    bench
        .openssl(
            "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -subj /CN=chain -days 30",
        )
        .unwrap();
    for form in [
        "",
        "-legacy -keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-RC2-40 -macalg sha1",
        "-legacy -keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-3DES -macalg sha1",
        "-legacy -keypbe PBE-SHA1-RC2-40 -certpbe PBE-SHA1-RC2-40 -macalg sha1",
        "-keypbe AES-256-CBC -certpbe AES-256-CBC -macalg sha256",
        "-keypbe AES-128-CBC -certpbe AES-128-CBC -macalg sha384",
        "-keypbe AES-256-CBC -certpbe NONE -macalg sha256",
        "-certfile ca.pem",
        "-keypbe AES-192-CBC -certpbe AES-192-CBC -macalg sha512",
        "-keypbe AES-256-CBC -certpbe AES-128-CBC -macalg sha1",
        "-legacy -keypbe PBE-SHA1-3DES -certpbe AES-256-CBC -macalg sha256",
        "-legacy -descert",
        "-noiter -nomaciter",
        "-keypbe NONE -certpbe NONE",
        "-iter 100000",
        "-name Shielded",
    ] {
        let read = ["signing", "encryption"].map(|half| {
            let file = made(&bench, &format!("-in {half}.pem {form}"));
            let keys = pfx::read(&file, &secret(PASSWORD));
            keys.unwrap_or_else(|error| panic!("{form}: {error}"))
        });
        let guardian = pfx::assemble(read.into_iter().flatten().collect())
            .unwrap_or_else(|error| panic!("{form}: {error}"));
        assert_eq!(guardian.id(), ALPHA.id(), "{form}");
    }
}

#[test]
fn a_key_that_carries_what_windows_adds_is_read() {
    let bench = prepared();
    let windows = "-LMK -legacy -keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-3DES";
    let mut keys = Vec::new();
    for (half, usage) in [("signing", "-keysig"), ("encryption", "-keyex")] {
        let file = made(&bench, &format!("-in {half}.pem {usage} {windows}"));
        keys.extend(pfx::read(&file, &secret(PASSWORD)).unwrap());
    }
    assert_eq!(pfx::assemble(keys).unwrap().id(), ALPHA.id());
}

#[test]
fn passwords_in_other_scripts_open_both_kinds_of_file() {
    for password in [
        "パスワード-四五六七八",
        "Schlüßel-Ångström",
        "короткий пароль",
    ] {
        let bench = prepared();
        let half = bench.read("signing.pem");
        bench.write("password", password.as_bytes());
        bench.write("signing.pem", &half);
        for form in ["", "-legacy -keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-RC2-40"] {
            let file = made(&bench, &format!("-in signing.pem {form}"));
            let keys = pfx::read(&file, &secret(password));
            assert_eq!(
                keys.unwrap_or_else(|e| panic!("{password} {form}: {e}"))
                    .len(),
                1
            );
        }
    }
}

#[test]
fn a_password_that_pfx_files_have_no_characters_for_is_refused_as_that() {
    let bench = prepared();
    let file = made(&bench, "-in signing.pem");
    // An emoji, and the second form of the kanji in the name Yoshida.
    for password in ["a password with 🔑", "𠮷田のパスワード"] {
        assert!(matches!(
            refused(&file, password),
            PfxReadError::PasswordCharacters
        ));
        let made = pfx::export(
            &ALPHA,
            CertificateRole::Signing,
            &secret(password),
            Protection::Aes256,
        );
        assert!(matches!(made, Err(pfx::PfxError::PasswordCharacters)));
    }
}

#[test]
fn both_of_our_forms_open_with_openssl_and_here() {
    let bench = prepared();
    for (protection, says) in [
        (Protection::Aes256, "AES-256-CBC"),
        (Protection::Legacy, "pbeWithSHA1And3-KeyTripleDES-CBC"),
    ] {
        let file = pfx::export(
            &ALPHA,
            CertificateRole::Encryption,
            &secret(PASSWORD),
            protection,
        )
        .unwrap();
        bench.write("ours.pfx", &file);
        let text = std::process::Command::new("/usr/bin/openssl")
            .args("pkcs12 -in ours.pfx -passin file:password -info -noout -legacy".split(' '))
            .current_dir(bench.path("."))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&text.stderr).into_owned();
        assert!(text.contains(says), "{text}");
        assert_eq!(pfx::read(&file, &secret(PASSWORD)).unwrap().len(), 1);
    }
}

#[test]
fn a_wrong_password_a_missing_mac_and_an_altered_file_are_told_apart() {
    let bench = prepared();
    let good = made(&bench, "-in signing.pem");
    assert!(matches!(
        refused(&good, "another password"),
        PfxReadError::WrongPassword
    ));
    assert!(matches!(
        refused(&made(&bench, "-in signing.pem -nomac"), PASSWORD),
        PfxReadError::NoMac
    ));
    let mut altered = good.clone();
    let middle = altered.len() / 2;
    altered[middle] ^= 1;
    assert!(matches!(refused(&altered, PASSWORD), PfxReadError::Altered));
}

#[test]
fn every_truncation_is_called_one_and_no_flipped_bit_passes() {
    let bench = prepared();
    let good = made(&bench, "-in signing.pem -iter 1 -maciter");
    for length in 0..good.len() {
        let error = refused(&good[..length], PASSWORD);
        assert!(
            matches!(error, PfxReadError::Truncated { .. }),
            "{length}: {error}"
        );
    }
    for at in 0..good.len() {
        let mut altered = good.clone();
        altered[at] ^= 1 << (at % 8);
        let error = pfx::read(&altered, &secret(PASSWORD));
        // The MAC covers the contents and its own value; what it does not cover is refused by structure. The digest's
        // optional NULL parameters and the like may read as the same file.
        if let Ok(keys) = error {
            assert_eq!(keys.len(), 1, "bit of byte {at}");
            assert!(
                at > good.len() - 80 || at < 16,
                "byte {at} is not protected"
            );
        }
    }
}

#[test]
fn fifty_megabytes_are_refused_by_their_size() {
    let error = refused(&vec![0x30; 50 * 1024 * 1024], PASSWORD);
    assert!(matches!(error, PfxReadError::TooLarge { .. }), "{error}");
}

#[test]
fn a_certificate_alone_and_a_key_alone_are_refused() {
    let bench = prepared();
    let certificate = made(&bench, "-in signing.pem -nokeys");
    assert!(matches!(
        refused(&certificate, PASSWORD),
        PfxReadError::NoKey
    ));
    bench
        .openssl("pkey -in signing.pem -out signing.key")
        .unwrap();
    let key = made(&bench, "-nocerts -inkey signing.key -in signing.key");
    assert!(matches!(
        refused(&key, PASSWORD),
        PfxReadError::NoCertificate
    ));
}

#[test]
fn an_rsa_key_of_1024_bits_is_refused_as_weak() {
    let bench = prepared();
    bench
        .openssl("req -x509 -newkey rsa:1024 -nodes -keyout weak.key -out weak.crt -subj /CN=weak -days 30")
        .unwrap();
    let file = made(&bench, "-in weak.crt -inkey weak.key");
    let error = refused(&file, PASSWORD);
    assert!(
        matches!(error, PfxReadError::WeakKey { bits: 1024 }),
        "{error}"
    );
}

#[test]
fn iteration_bombs_are_refused_before_anything_is_derived() {
    let bench = prepared();
    let started = std::time::Instant::now();
    // Each number is the DER integer that replaces 2048 (0x0800), as long, so that no length changes.
    for form in [
        "-in signing.pem",
        "-in signing.pem -legacy -keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-3DES",
    ] {
        let file = made(&bench, &format!("{form} -iter 1000000"));
        let million = [0x02, 0x03, 0x0f, 0x42, 0x40];
        let places: Vec<usize> = (0..file.len() - 5)
            .filter(|at| file[*at..*at + 5] == million)
            .collect();
        // The MAC, and at least one encryption in the clear.
        assert!(places.len() >= 2, "{form}: {places:?}");
        let before = std::time::Instant::now();
        for place in places {
            let mut bomb = file.clone();
            bomb[place + 2..place + 5].copy_from_slice(&[0x7f, 0xff, 0xff]);
            let error = refused(&bomb, PASSWORD);
            assert!(
                matches!(
                    error,
                    PfxReadError::TooManyIterations {
                        iterations: 0x7f_ffff
                    }
                ),
                "{form}: {error}"
            );
        }
        assert!(before.elapsed() < std::time::Duration::from_millis(100));
    }
    assert!(started.elapsed() < std::time::Duration::from_secs(60));
}

#[test]
fn halves_of_different_guardians_and_half_a_guardian_are_none() {
    let half = |guardian, role| {
        let file = pfx::export(guardian, role, &secret(PASSWORD), Protection::Aes256).unwrap();
        pfx::read(&file, &secret(PASSWORD)).unwrap().remove(0)
    };
    let (signing, encryption) = (CertificateRole::Signing, CertificateRole::Encryption);
    assert_eq!(
        pfx::assemble(vec![half(&ALPHA, signing)]).unwrap_err(),
        PairError::Half {
            missing: encryption
        }
    );
    assert!(matches!(
        pfx::assemble(vec![half(&ALPHA, signing), half(&BETA, encryption)]).unwrap_err(),
        PairError::DifferentHosts { .. }
    ));
    assert!(matches!(
        pfx::assemble(vec![half(&ALPHA, signing), half(&BETA, signing)]).unwrap_err(),
        PairError::Several { count: 2, .. }
    ));
}

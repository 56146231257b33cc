//! PFX files of every form, made by the openssl program in the test: what is read, and what is refused and why.

use crate::support::{ALPHA, BETA, Bench};
use fleetward_model::guardian::CertificateRole;
use fleetward_protector_open::pfx::{self, PairError, PfxReadError, Protection};
use zeroize::Zeroizing;

const PASSWORD: &str = "correct horse battery staple";

/// What older Windows writes: `certutil`, and `Export-PfxCertificate` by default.
const RC2_40: &str = "-legacy -keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-RC2-40 -macalg sha1";
const TRIPLE_DES: &str = "-legacy -keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-3DES -macalg sha1";

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
fn both_of_our_forms_open_with_openssl_and_give_it_the_same_key_and_certificate() {
    let bench = prepared();
    for (protection, says, options) in [
        (Protection::Aes256, "AES-256-CBC", ""),
        (
            Protection::Legacy,
            "pbeWithSHA1And3-KeyTripleDES-CBC",
            " -legacy",
        ),
    ] {
        for (role, half) in [
            (CertificateRole::Signing, "signing"),
            (CertificateRole::Encryption, "encryption"),
        ] {
            let file = pfx::export(&ALPHA, role, &secret(PASSWORD), protection).unwrap();
            bench.write("ours.pfx", &file);
            let open = |options: &str| {
                let command = format!("pkcs12 -in ours.pfx -passin file:password{options}");
                let output = std::process::Command::new("/usr/bin/openssl")
                    .args(command.split(' '))
                    .current_dir(bench.path("."))
                    .output()
                    .unwrap();
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(output.status.success(), "{protection:?} {half}: {text}");
                text
            };
            let text = open(&format!(" -info -noout{options}"));
            assert!(
                text.contains(says) && text.contains("Iteration 100000"),
                "{text}"
            );

            // The private key, and the public one of the certificate, are those of the guardian.
            open(&format!("{options} -nodes -nocerts -out key.pem"));
            open(&format!("{options} -nokeys -out certificate.pem"));
            bench.openssl("pkey -in key.pem -check -noout").unwrap();
            bench
                .openssl("pkey -in key.pem -pubout -out public-of-key.pem")
                .unwrap();
            bench
                .openssl("x509 -in certificate.pem -pubkey -noout -out public.pem")
                .unwrap();
            assert_eq!(bench.read("public-of-key.pem"), bench.read("public.pem"));
            bench
                .openssl("x509 -in certificate.pem -outform DER -out certificate.der")
                .unwrap();
            let guardian = ALPHA.public();
            let certificate = match role {
                CertificateRole::Signing => guardian.signing(),
                CertificateRole::Encryption => guardian.encryption(),
            };
            assert_eq!(bench.read("certificate.der"), certificate.der());

            // And what openssl makes of them is the same guardian's half here.
            let again = made(&bench, "-in certificate.pem -inkey key.pem");
            let keys =
                [again, file.to_vec()].map(|file| pfx::read(&file, &secret(PASSWORD)).unwrap());
            let stored = keys.map(
                |mut keys| match pfx::sort_out(vec![keys.remove(0)]).unwrap() {
                    pfx::Found::Half(half) => half.to_storage(None).unwrap(),
                    pfx::Found::Guardian(_) => panic!("one certificate is no guardian"),
                },
            );
            assert_eq!(stored[0], stored[1], "{protection:?} {half}");
        }
    }
}

/// Certificates for the guardian's keys from an authority, `signing-issued.pem` and `encryption-issued.pem` with the keys,
/// and the authority's `ca.pem`.
fn issued(bench: &Bench, authority_bits: u32) {
    bench
        .openssl(&format!(
            "req -x509 -newkey rsa:{authority_bits} -nodes -keyout ca.key -out ca.pem -subj /CN=Contoso -days 30"
        ))
        .unwrap();
    for (half, usage) in [
        ("signing", "digitalSignature"),
        ("encryption", "keyEncipherment,dataEncipherment"),
    ] {
        bench.write(
            "usage.cnf",
            format!("keyUsage=critical,{usage}\n").as_bytes(),
        );
        for command in [
            format!("pkey -in {half}.pem -out {half}.key"),
            format!("req -new -key {half}.key -subj /CN=Shielded_{half} -out {half}.csr"),
            format!(
                "x509 -req -in {half}.csr -CA ca.pem -CAkey ca.key -days 30 -extfile usage.cnf -out {half}.crt"
            ),
        ] {
            bench.openssl(&command).unwrap();
        }
        let both = [
            bench.read(&format!("{half}.crt")),
            bench.read(&format!("{half}.key")),
        ];
        bench.write(&format!("{half}-issued.pem"), &both.concat());
    }
}

#[test]
fn a_half_that_an_authority_issued_is_read_with_its_chain_in_every_form() {
    for authority_bits in [2048, 1024] {
        let bench = prepared();
        issued(&bench, authority_bits);
        let mut ids = std::collections::BTreeSet::new();
        for form in [
            "",
            RC2_40,
            TRIPLE_DES,
            "-keypbe AES-256-CBC -certpbe AES-256-CBC",
        ] {
            for chain in ["", "-certfile ca.pem"] {
                let what = format!("{authority_bits} {form} {chain}");
                let keys = ["signing", "encryption"].into_iter().flat_map(|half| {
                    let file = made(
                        &bench,
                        &format!("-in {half}-issued.pem {chain} {form}").replace("  ", " "),
                    );
                    let keys = pfx::read(&file, &secret(PASSWORD));
                    let keys = keys.unwrap_or_else(|error| panic!("{what}: {error}"));
                    assert_eq!(keys.len(), 1, "{what}");
                    keys
                });
                let guardian =
                    pfx::assemble(keys.collect()).unwrap_or_else(|error| panic!("{what}: {error}"));
                let facts = guardian.public().signing().facts();
                assert_eq!(
                    (facts.subject.as_str(), facts.issuer.as_str()),
                    ("CN=Shielded_signing", "CN=Contoso")
                );
                assert_ne!(guardian.id(), ALPHA.id());
                ids.insert(guardian.id().clone());
            }
        }
        assert_eq!(ids.len(), 1, "every form holds the same guardian");
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
fn keys_that_are_not_taken_are_not_called_damaged_or_weak() {
    let bench = prepared();
    let request = |key: &str| {
        bench
            .openssl(&format!(
                "req -x509 {key} -nodes -keyout other.key -out other.crt -subj /CN=other -days 30"
            ))
            .unwrap();
        made(&bench, "-in other.crt -inkey other.key")
    };
    for curve in ["P-256", "P-384"] {
        let file = request(&format!("-newkey ec -pkeyopt ec_paramgen_curve:{curve}"));
        let error = refused(&file, PASSWORD);
        assert!(
            matches!(error, PfxReadError::NotRsa { .. }),
            "{curve}: {error}"
        );
    }
    // Beside an RSA certificate that it does not belong to, too.
    bench
        .openssl("x509 -in signing.pem -out signing.crt")
        .unwrap();
    let file = made(
        &bench,
        "-in other.crt -inkey other.key -certfile signing.crt",
    );
    let error = refused(&file, PASSWORD);
    assert!(matches!(error, PfxReadError::NotRsa { .. }), "{error}");

    // A key this large takes long to make, so it comes ready.
    bench.write("large.pem", include_bytes!("support/rsa-8200.pem"));
    let file = made(&bench, "-in large.pem");
    let error = refused(&file, PASSWORD);
    assert!(
        matches!(error, PfxReadError::LargeKey { bits: 8200 }),
        "{error}"
    );

    let der = {
        bench
            .openssl("x509 -in signing.pem -outform DER -out signing.der")
            .unwrap();
        not_canonical(&bench.read("signing.der"))
    };
    bench.write("odd.der", &der);
    bench
        .openssl("x509 -in odd.der -inform DER -out odd.crt")
        .unwrap();
    bench
        .openssl("pkey -in signing.pem -out signing.key")
        .unwrap();
    let file = made(&bench, "-in odd.crt -inkey signing.key");
    let error = refused(&file, PASSWORD);
    assert!(matches!(error, PfxReadError::Form(_)), "{error}");
}

/// The same certificate with `critical` of an extension said to be FALSE, which DER leaves out: OpenSSL reads that.
fn not_canonical(der: &[u8]) -> Vec<u8> {
    // The identifier of basicConstraints or keyUsage, and whether it is critical.
    let critical = [0x55, 0x1d, 0x0f, 0x01, 0x01, 0xff];
    let at = der
        .windows(6)
        .position(|window| window == critical)
        .unwrap();
    let mut odd = der.to_vec();
    odd[at + 5] = 0;
    odd
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

//! One password, written in many ways: what another program took for it opens here, or the refusal says how it was written.
//! That is never called a wrong password.

use crate::support::{ALPHA, Bench, kit, run_words};
use encoding_rs::{EUC_JP, SHIFT_JIS};
use fleetward_model::guardian::CertificateRole;
use fleetward_protector_open::pfx::{self, PfxError, Protection};
use zeroize::Zeroizing;

const TOKYO: &str = "東京都パスワード2026";
/// The same, as macOS keeps file names: the marks of voiced sounds are characters of their own.
const DECOMPOSED: &str = "東京都ハ\u{309a}スワート\u{3099}2026";

fn secret(text: &str) -> Zeroizing<String> {
    Zeroizing::new(text.to_owned())
}

/// What OpenSSL writes in these forms with the signing half.
const FORMS: [(&str, &str); 5] = [
    ("AES", ""),
    (
        "legacy",
        "-legacy -keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-RC2-40 -macalg sha1",
    ),
    ("AES, MAC with SHA-1", "-macalg sha1"),
    ("AES, MAC with SHA-512", "-macalg sha512"),
    (
        "3DES, MAC with SHA-512",
        "-legacy -keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-3DES -macalg sha512",
    ),
];

/// The signing half as PEM in `signing.pem`.
fn prepared() -> Bench {
    let bench = Bench::new();
    let password = secret("for a moment");
    let file = pfx::export(
        &ALPHA,
        CertificateRole::Signing,
        &password,
        Protection::Aes256,
    );
    bench.write("signing.pfx", &file.unwrap());
    bench
        .openssl_words(&[
            "pkcs12",
            "-in",
            "signing.pfx",
            "-passin",
            "pass:for a moment",
            "-nodes",
            "-out",
            "signing.pem",
        ])
        .unwrap();
    bench
}

/// "opens", or the code and the reason.
fn outcome(file: &[u8], password: &str) -> String {
    match pfx::read(file, &secret(password)) {
        Ok(keys) => {
            assert!(!keys.is_empty());
            "opens".to_owned()
        }
        Err(error) => format!("{}: {error}", error.code()),
    }
}

fn written(how: &str) -> String {
    format!(
        "PFX_UNSUPPORTED: the file was made with this password written {how}, and what was encrypted with that is not opened here"
    )
}

#[test]
fn a_password_opens_what_openssl_made_of_its_file_or_the_refusal_says_how_that_wrote_it() {
    let bench = prepared();
    let ascii = "correct horse battery staple";
    let (long, longer, kanji) = ("x".repeat(63), "y".repeat(300), "京".repeat(300));
    let shift_jis = SHIFT_JIS.encode(TOKYO).0.into_owned();
    let euc_jp = EUC_JP.encode(TOKYO).0.into_owned();
    let wide = "PFX_UNSUPPORTED: the password holds a character outside Unicode's basic plane, such as an emoji or a rare kanji, which PFX files are not made or read with here; export the file with another one";
    let opens = "opens".to_owned();
    // What openssl finds in its password file, what is given here, the outcome for 3DES and RC2, and that for AES.
    let rows: Vec<(&str, Vec<u8>, &str, String, String)> = vec![
        ("ASCII", ascii.into(), ascii, opens.clone(), opens.clone()),
        ("kanji", TOKYO.into(), TOKYO, opens.clone(), opens.clone()),
        (
            "decomposed, for both",
            DECOMPOSED.into(),
            DECOMPOSED,
            opens.clone(),
            opens.clone(),
        ),
        (
            "composed, given decomposed",
            TOKYO.into(),
            DECOMPOSED,
            opens.clone(),
            opens.clone(),
        ),
        (
            "decomposed, given composed",
            DECOMPOSED.into(),
            TOKYO,
            opens.clone(),
            opens.clone(),
        ),
        (
            "Latin letters with marks",
            "Schlüßel-Ångström".into(),
            "Schlüßel-Ångström",
            opens.clone(),
            opens.clone(),
        ),
        (
            "Cyrillic",
            "короткий пароль".into(),
            "короткий пароль",
            opens.clone(),
            opens.clone(),
        ),
        (
            "an emoji",
            "a password with 🔑".into(),
            "a password with 🔑",
            wide.to_owned(),
            wide.to_owned(),
        ),
        (
            "outside the basic plane",
            "𠮷野家のパスワード2026".into(),
            "𠮷野家のパスワード2026",
            wide.to_owned(),
            wide.to_owned(),
        ),
        (
            "63 characters",
            long.clone().into(),
            &long,
            opens.clone(),
            opens.clone(),
        ),
        (
            "300 characters",
            longer.clone().into(),
            &longer,
            opens.clone(),
            opens.clone(),
        ),
        (
            "300 kanji",
            kanji.clone().into(),
            &kanji,
            opens.clone(),
            opens.clone(),
        ),
        ("empty", "\n".into(), "", opens.clone(), opens.clone()),
        (
            "a Windows line end",
            format!("{TOKYO}\r\n").into(),
            TOKYO,
            opens.clone(),
            opens.clone(),
        ),
        (
            "a byte order mark",
            format!("\u{feff}{ascii}\n").into(),
            ascii,
            opens.clone(),
            opens.clone(),
        ),
        (
            "both, as Windows' editor writes",
            format!("\u{feff}{TOKYO}\r\n").into(),
            TOKYO,
            opens.clone(),
            opens.clone(),
        ),
        (
            "Shift_JIS",
            shift_jis,
            TOKYO,
            opens.clone(),
            written("as its bytes in Shift_JIS"),
        ),
        (
            "EUC-JP",
            euc_jp,
            TOKYO,
            opens.clone(),
            written("as its bytes in EUC-JP"),
        ),
        (
            "another one",
            TOKYO.into(),
            "京都府パスワード2026",
            "PFX_WRONG_PASSWORD: the password does not open the file".to_owned(),
            "PFX_WRONG_PASSWORD: the password does not open the file".to_owned(),
        ),
    ];
    let mut wrong = Vec::new();
    for (name, theirs, ours, triple_des, aes) in &rows {
        bench.write("password", theirs);
        for (form, options) in FORMS {
            let file = bench.made(
                &format!(
                    "pkcs12 -export -in signing.pem -passout file:password -out made.pfx {options}"
                ),
                "made.pfx",
            );
            let expected = if form.contains("AES") {
                aes
            } else {
                triple_des
            };
            let found = outcome(&file, ours);
            if found != *expected {
                wrong.push(format!(
                    "{name}, {form}\n  expected {expected}\n  found    {found}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn our_exports_open_with_openssl_under_every_password_that_is_taken() {
    let bench = prepared();
    let (long, longer, kanji) = ("x".repeat(63), "y".repeat(300), "京".repeat(300));
    for password in [
        "correct horse battery staple",
        TOKYO,
        DECOMPOSED,
        "Schlüßel-Ångström",
        "короткий пароль",
        &long,
        &longer,
        &kanji,
        "ends with a CR\r",
        "\u{feff}begins with a mark",
    ] {
        for protection in [Protection::Aes256, Protection::Legacy] {
            let file = pfx::export(
                &ALPHA,
                CertificateRole::Signing,
                &secret(password),
                protection,
            )
            .unwrap();
            bench.write("ours.pfx", &file);
            bench.write("password", password.as_bytes());
            bench
                .openssl("pkcs12 -in ours.pfx -passin file:password -legacy -nodes -out out.pem")
                .unwrap_or_else(|error| panic!("{password:?} {protection:?}: {error}"));
            assert_eq!(outcome(&file, password), "opens", "{password:?}");
        }
    }
    // Either form of a password opens what was exported with the other.
    for (with, given) in [(TOKYO, DECOMPOSED), (DECOMPOSED, TOKYO)] {
        let file = pfx::export(
            &ALPHA,
            CertificateRole::Signing,
            &secret(with),
            Protection::Aes256,
        );
        assert_eq!(outcome(&file.unwrap(), given), "opens");
    }
    for (password, refused) in [
        ("", PfxError::PasswordTooShort),
        ("short", PfxError::PasswordTooShort),
        ("𠮷野家のパスワード2026", PfxError::PasswordCharacters),
    ] {
        let error = pfx::export(
            &ALPHA,
            CertificateRole::Signing,
            &secret(password),
            Protection::Aes256,
        );
        assert_eq!(error.unwrap_err().to_string(), refused.to_string());
    }
}

#[test]
fn no_password_is_told_from_an_empty_one() {
    let bench = prepared();
    let none = "PFX_UNSUPPORTED: the file was made without any password, which is not the same as an empty one";
    for (option, expected) in [("--empty-password", "opens"), ("--null-password", none)] {
        for hash in ["sha1", "sha256", "sha384", "sha512"] {
            let words = [
                "--to-p12",
                "--load-privkey",
                "signing.pem",
                "--load-certificate",
                "signing.pem",
                "--p12-name",
                "x",
                option,
                "--hash",
                hash,
                "--outder",
                "--outfile",
                "made.pfx",
            ];
            run_words(&bench.path("."), "/usr/bin/certtool", &words).unwrap();
            let found = outcome(&bench.read("made.pfx"), "");
            assert_eq!(found, expected, "{option} {hash}");
        }
    }
}

#[test]
fn a_mac_and_an_encryption_that_take_different_bytes_are_no_wrong_password() {
    let der = ALPHA.public().signing().der();
    let list = kit::seq(&[&kit::cert_bag(der, &[])]);
    let prf = kit::hmac_sha256(kit::NULL);
    let of_part = |password: &str| kit::encrypted(&kit::encrypt(&list, password, &prf));
    let single: String = TOKYO.bytes().map(char::from).collect();
    // A certificate alone: it opened.
    let opens = "PFX_NO_KEY: the file holds a certificate, but no private key";
    for (name, part, mac, expected) in [
        ("alike", TOKYO, TOKYO, opens.to_owned()),
        (
            "the encryption with other bytes",
            single.as_str(),
            TOKYO,
            written("in one way for its MAC and in another for its encryption"),
        ),
        (
            "the MAC over each byte",
            TOKYO,
            single.as_str(),
            written("as its bytes in UTF-8, each for a character"),
        ),
        (
            "each byte for both",
            single.as_str(),
            single.as_str(),
            opens.to_owned(),
        ),
    ] {
        let file = kit::pfx(&[of_part(part)], mac);
        assert_eq!(outcome(&file, TOKYO), expected, "{name}");
    }
}

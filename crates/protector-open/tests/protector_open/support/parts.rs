//! A guardian's keys and certificates in pieces, and what the files made of them open as.

use super::kit::{cert_bag, clear, key_bag};
use super::{ALPHA, Bench, kit};
use fleetward_model::guardian::CertificateRole;
use fleetward_protector_open::pfx::{self, Found, Protection};
use zeroize::Zeroizing;

pub const PASSWORD: &str = "correct horse battery staple";

/// What a file opens as, or the code and the reason.
pub fn outcome(file: &[u8], password: &str) -> String {
    let keys = match pfx::read(file, &Zeroizing::new(password.to_owned())) {
        Ok(keys) => keys,
        Err(error) => return format!("{}: {error}", error.code()),
    };
    match pfx::sort_out(keys) {
        Ok(Found::Guardian(guardian)) if guardian.id() == ALPHA.id() => "guardian".to_owned(),
        Ok(Found::Guardian(_)) => "another guardian".to_owned(),
        Ok(Found::Half(half)) => {
            let own = [ALPHA.public().signing(), ALPHA.public().encryption()]
                .contains(&half.certificate());
            let whose = if own { "its own" } else { "another" };
            let role = match half.role() {
                CertificateRole::Signing => "signing",
                CertificateRole::Encryption => "encryption",
            };
            format!("{role} half, {whose} certificate")
        }
        Err(error) => format!("{}: {error}", error.code()),
    }
}

pub fn compare(rows: &[(&str, Vec<u8>, &str)]) {
    let mut wrong = Vec::new();
    for (name, file, expected) in rows {
        let found = outcome(file, PASSWORD);
        if found != *expected {
            wrong.push(format!("{name}\n  expected {expected}\n  found    {found}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The guardian's keys and certificates: PKCS #8 and X.509 in DER, and the signing key in `signing.key`.
pub struct Parts {
    pub bench: Bench,
    pub keys: [Vec<u8>; 2],
    pub certificates: [Vec<u8>; 2],
}

impl Parts {
    pub fn new() -> Self {
        let bench = Bench::new();
        bench.write("password", PASSWORD.as_bytes());
        let keys = [
            (CertificateRole::Signing, "signing"),
            (CertificateRole::Encryption, "encryption"),
        ]
        .map(|(role, name)| {
            let password = Zeroizing::new(PASSWORD.to_owned());
            let file = pfx::export(&ALPHA, role, &password, Protection::Aes256).unwrap();
            bench.write("half.pfx", &file);
            for line in [
                format!(
                    "pkcs12 -in half.pfx -passin file:password -nodes -nocerts -out {name}.key"
                ),
                format!("pkcs12 -in half.pfx -passin file:password -nokeys -out {name}.crt"),
            ] {
                bench.openssl(&line).unwrap();
            }
            pkcs8(&bench, &format!("{name}.key"))
        });
        let public = ALPHA.public();
        let certificates = [public.signing(), public.encryption()].map(|one| one.der().to_vec());
        Self {
            bench,
            keys,
            certificates,
        }
    }

    /// A file of bags in clear.
    pub fn file(bags: &[Vec<u8>]) -> Vec<u8> {
        kit::pfx(&[clear(bags)], PASSWORD)
    }

    /// The signing key and its certificate, nothing else.
    pub fn half(&self) -> Vec<Vec<u8>> {
        vec![
            key_bag(&self.keys[0], &[]),
            cert_bag(&self.certificates[0], &[]),
        ]
    }

    /// A self-signed certificate for the guardian's signing key, with these extensions.
    pub fn certified(&self, subject: &str, extensions: &[&str]) -> Vec<u8> {
        let mut line = vec![
            "req",
            "-x509",
            "-key",
            "signing.key",
            "-days",
            "30",
            "-outform",
            "DER",
            "-subj",
            subject,
            "-out",
            "new.crt",
        ];
        for extension in extensions {
            line.extend(["-addext", extension]);
        }
        self.bench.openssl_words(&line).unwrap();
        self.bench.read("new.crt")
    }
}

/// A key as PKCS #8 in DER.
pub fn pkcs8(bench: &Bench, key: &str) -> Vec<u8> {
    bench.made(
        &format!("pkcs8 -topk8 -nocrypt -in {key} -outform DER -out key.der"),
        "key.der",
    )
}

/// A new key of this kind with a self-signed certificate.
pub fn other(bench: &Bench, kind: &str) -> [Vec<u8>; 2] {
    bench
        .openssl(&format!("genpkey {kind} -out other.key"))
        .unwrap();
    let certificate = bench.made(
        "req -x509 -key other.key -days 30 -subj /CN=other -outform DER -out other.crt",
        "other.crt",
    );
    [pkcs8(bench, "other.key"), certificate]
}

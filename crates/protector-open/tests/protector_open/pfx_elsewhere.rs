//! PFX files and other programs than OpenSSL: GnuTLS, NSS, Java, Bouncy Castle and Go read what is exported, and what they write
//! is read.
//!
//! Of .NET and of Smallstep's `step` there is no Debian package, and no test fetches a program from elsewhere. `step` reads and
//! writes PFX files with the library for Go that is asked here (`software.sslmate.com/src/go-pkcs12`). What .NET accepts is known
//! by reading: at most 600,000 rounds of key derivation, and exports have 3 x 100,000. Files that Windows itself wrote are read
//! in `pfx_forms.rs`.

use crate::support::{ALPHA, Bench, run_words};
use fleetward_model::guardian::CertificateRole;
use fleetward_protector_open::pfx::{self, Found, PfxReadError, Protection};
use zeroize::Zeroizing;

const PASSWORD: &str = "correct horse battery staple";
const HALVES: [(CertificateRole, &str); 2] = [
    (CertificateRole::Signing, "signing"),
    (CertificateRole::Encryption, "encryption"),
];

/// The guardian's halves as PFX files, `signing-Aes256.pfx` and the like, and the password in `password`.
fn exported() -> Bench {
    let bench = Bench::new();
    bench.write("password", PASSWORD.as_bytes());
    let password = Zeroizing::new(PASSWORD.to_owned());
    for (role, half) in HALVES {
        for protection in [Protection::Aes256, Protection::Legacy] {
            let file = pfx::export(&ALPHA, role, &password, protection).unwrap();
            bench.write(&format!("{half}-{protection:?}.pfx"), &file);
        }
    }
    bench
}

fn each_export() -> impl Iterator<Item = (CertificateRole, String)> {
    HALVES.into_iter().flat_map(|(role, half)| {
        ["Aes256", "Legacy"].map(|protection| (role, format!("{half}-{protection}.pfx")))
    })
}

fn ran(bench: &Bench, program: &str, words: &[&str]) -> String {
    let output = run_words(&bench.path("."), program, words)
        .unwrap_or_else(|error| panic!("{program} {words:?}: {error}"));
    String::from_utf8(output).unwrap()
}

/// The SHA-256 of a half's certificate, in the way that `separator` says.
fn thumbprint(role: CertificateRole, separator: &str) -> String {
    let public = ALPHA.public();
    let certificate = match role {
        CertificateRole::Signing => public.signing(),
        CertificateRole::Encryption => public.encryption(),
    };
    let bytes = certificate.sha256().map(|byte| format!("{byte:02X}"));
    bytes.join(separator)
}

/// The guardian of both halves, as files that another program wrote.
fn read_back(files: [Vec<u8>; 2]) {
    let password = Zeroizing::new(PASSWORD.to_owned());
    let keys = files.map(|file| pfx::read(&file, &password).unwrap());
    let guardian = pfx::assemble(keys.into_iter().flatten().collect()).unwrap();
    assert_eq!(guardian.id(), ALPHA.id());
}

/// The halves as PEM: `signing.key`, `signing.crt` and so on.
fn as_pem(bench: &Bench) {
    for (_, half) in HALVES {
        for (which, to) in [("-nocerts", "key"), ("-nokeys", "crt")] {
            bench
                .openssl(&format!(
                    "pkcs12 -in {half}-Aes256.pfx -passin file:password -nodes {which} -out {half}.{to}"
                ))
                .unwrap();
        }
    }
}

#[test]
fn gnutls_reads_both_exports_and_its_own_files_are_read() {
    let bench = exported();
    for (role, file) in each_export() {
        let words = [
            "--p12-info",
            "--inder",
            "--infile",
            &file,
            "--password",
            PASSWORD,
        ];
        let said = ran(&bench, "/usr/bin/certtool", &words);
        bench.write("said.pem", said.as_bytes());
        // It leaves the key in its own encryption, and opens that in a second step.
        let words = ["--key-info", "--infile", "said.pem", "--password", PASSWORD];
        let key = ran(&bench, "/usr/bin/certtool", &words);
        assert!(key.contains("High (3072 bits)"), "{file}: {key}");
        let line = "x509 -in said.pem -fingerprint -sha256 -noout";
        let print = String::from_utf8(bench.openssl(line).unwrap()).unwrap();
        assert!(print.contains(&thumbprint(role, ":")), "{file}: {print}");
    }

    as_pem(&bench);
    for cipher in ["aes-256", "aes-128", "3des-pkcs12", "rc2-40"] {
        read_back(HALVES.map(|(_, half)| {
            let (key, certificate) = (format!("{half}.key"), format!("{half}.crt"));
            let words = [
                "--to-p12",
                "--load-privkey",
                &key,
                "--load-certificate",
                &certificate,
                "--p12-name",
                "東京",
                "--password",
                PASSWORD,
                "--pkcs-cipher",
                cipher,
                "--outder",
                "--outfile",
                "theirs.pfx",
            ];
            ran(&bench, "/usr/bin/certtool", &words);
            bench.read("theirs.pfx")
        }));
    }
}

#[test]
fn nss_reads_both_exports_and_its_own_files_are_read() {
    let bench = exported();
    for (role, file) in each_export() {
        let said = ran(
            &bench,
            "/usr/bin/pk12util",
            &["-l", &file, "-w", "password"],
        );
        assert!(said.contains(&thumbprint(role, ":")), "{file}: {said}");
        assert!(said.contains("Key(shrouded)"), "{file}: {said}");
        // It lists keys without opening them; an import opens them.
        let database = format!("sql:{file}.db");
        std::fs::create_dir(bench.path(&format!("{file}.db"))).unwrap();
        let new = ["-N", "-d", &database, "--empty-password"];
        ran(&bench, "/usr/bin/certutil", &new);
        let import = ["-i", &file, "-d", &database, "-w", "password", "-K", ""];
        ran(&bench, "/usr/bin/pk12util", &import);
        let keys = ran(&bench, "/usr/bin/certutil", &["-K", "-d", &database]);
        assert!(keys.contains("rsa"), "{file}: {keys}");
    }

    // Each half lies in a database of its own.
    read_back(HALVES.map(|(_, half)| {
        let database = format!("sql:{half}-Aes256.pfx.db");
        let listed = ran(&bench, "/usr/bin/certutil", &["-L", "-d", &database]);
        let line = listed.lines().find(|line| line.ends_with("u,u,u")).unwrap();
        let nickname = line.trim_end_matches("u,u,u").trim();
        let words = [
            "-o",
            "theirs.pfx",
            "-n",
            nickname,
            "-d",
            &database,
            "-w",
            "password",
            "-K",
            "",
        ];
        ran(&bench, "/usr/bin/pk12util", &words);
        as_der(&bench)
    }));
}

/// `theirs.pfx` is BER. It is refused, and read once OpenSSL has written it as DER, in the way that the refusal tells.
fn as_der(bench: &Bench) -> Vec<u8> {
    let password = Zeroizing::new(PASSWORD.to_owned());
    let refused = pfx::read(&bench.read("theirs.pfx"), &password).unwrap_err();
    assert!(matches!(refused, PfxReadError::Ber(_)), "{refused}");
    bench
        .openssl("pkcs12 -legacy -in theirs.pfx -passin file:password -nodes -out both.pem")
        .unwrap();
    bench.made(
        "pkcs12 -export -in both.pem -passout file:password -out der.pfx",
        "der.pfx",
    )
}

/// Java is large, so only where the long tests run.
#[test]
fn java_reads_both_exports_and_its_own_file_is_read() {
    if std::env::var_os("FLEETWARD_E2E_SOAK").is_none() {
        return;
    }
    let keytool = "/usr/bin/keytool";
    let bench = exported();
    for (role, file) in each_export() {
        let store = ["-keystore", &file, "-storetype", "PKCS12"];
        let password = ["-storepass:file", "password"];
        let said = ran(
            &bench,
            keytool,
            &[&["-list", "-v"], &store[..], &password].concat(),
        );
        assert!(said.contains("PrivateKeyEntry"), "{file}: {said}");
        assert!(said.contains(&thumbprint(role, ":")), "{file}: {said}");
        // The key itself is opened to write a request.
        let alias = alias(&said);
        let request = ["-certreq", "-alias", &alias];
        let request = [&request, &store[..], &password].concat();
        let said = ran(&bench, keytool, &request);
        assert!(said.contains("BEGIN NEW CERTIFICATE REQUEST"), "{said}");
    }

    // One store with both keys of a new guardian.
    for (alias, usage) in [
        ("signing", "KU=digitalSignature"),
        ("encryption", "KU=keyEncipherment,dataEncipherment"),
    ] {
        let words = [
            "-genkeypair",
            "-alias",
            alias,
            "-keyalg",
            "RSA",
            "-keysize",
            "2048",
            "-dname",
            "CN=Shielded",
            "-ext",
            usage,
            "-keystore",
            "java.pfx",
            "-storetype",
            "PKCS12",
            "-storepass:file",
            "password",
        ];
        ran(&bench, keytool, &words);
    }
    let keys = pfx::read(
        &bench.read("java.pfx"),
        &Zeroizing::new(PASSWORD.to_owned()),
    );
    let found = pfx::sort_out(keys.unwrap()).unwrap();
    assert!(matches!(found, Found::Guardian(_)), "{found:?}");
}

/// A provider of Java's, where that is.
#[test]
fn bouncy_castle_reads_both_exports_and_its_own_files_are_read() {
    if std::env::var_os("FLEETWARD_E2E_SOAK").is_none() {
        return;
    }
    let provider = [
        "-providerclass",
        "org.bouncycastle.jce.provider.BouncyCastleProvider",
        "-providerpath",
        "/usr/share/java/bcprov.jar",
    ];
    let keytool = |bench: &Bench, words: &[&str]| {
        ran(bench, "/usr/bin/keytool", &[words, &provider[..]].concat())
    };
    let bench = exported();
    for (role, file) in each_export() {
        let store = [
            "-keystore",
            &file,
            "-storetype",
            "PKCS12",
            "-providername",
            "BC",
        ];
        let password = ["-storepass:file", "password"];
        let said = keytool(&bench, &[&["-list", "-v"], &store[..], &password].concat());
        assert!(said.contains("PrivateKeyEntry"), "{file}: {said}");
        assert!(said.contains(&thumbprint(role, ":")), "{file}: {said}");
        let alias = alias(&said);
        let request = [&["-certreq", "-alias", &alias], &store[..], &password].concat();
        let said = keytool(&bench, &request);
        assert!(said.contains("BEGIN NEW CERTIFICATE REQUEST"), "{said}");
    }
    for kind in ["PKCS12", "PKCS12-3DES-3DES"] {
        read_back(HALVES.map(|(_, half)| {
            let from = format!("{half}-Aes256.pfx");
            let _ = std::fs::remove_file(bench.path("theirs.pfx"));
            let words = [
                "-importkeystore",
                "-srckeystore",
                &from,
                "-srcstoretype",
                "PKCS12",
                "-srcstorepass:file",
                "password",
                "-destkeystore",
                "theirs.pfx",
                "-deststoretype",
                kind,
                "-destprovidername",
                "BC",
                "-deststorepass:file",
                "password",
            ];
            keytool(&bench, &words);
            as_der(&bench)
        }));
    }
}

/// A compiler is large, so only where the long tests run.
#[test]
fn go_reads_both_exports_and_its_own_files_are_read() {
    if std::env::var_os("FLEETWARD_E2E_SOAK").is_none() {
        return;
    }
    let bench = exported();
    bench.write("main.go", include_bytes!("support/elsewhere.go"));
    let cache = format!("GOCACHE={}", bench.path("cache").display());
    let build = [
        "GO111MODULE=off",
        "GOPATH=/usr/share/gocode",
        &cache,
        "go",
        "build",
        "-o",
        "elsewhere",
        "main.go",
    ];
    ran(&bench, "/usr/bin/env", &build);
    let program = bench.path("elsewhere").display().to_string();
    for (role, file) in each_export() {
        let said = ran(&bench, &program, &["read", &file, PASSWORD]);
        let expected = format!("*rsa.PrivateKey {}", thumbprint(role, ""));
        assert_eq!(said.trim(), expected, "{file}");
    }
    as_pem(&bench);
    read_back(HALVES.map(|(_, half)| {
        let (key, certificate) = (format!("{half}.key"), format!("{half}.crt"));
        let words = ["write", &key, &certificate, PASSWORD, "theirs.pfx"];
        ran(&bench, &program, &words);
        bench.read("theirs.pfx")
    }));
}

/// The name of the only entry in what keytool lists.
fn alias(listed: &str) -> String {
    let line = listed
        .lines()
        .find_map(|line| line.strip_prefix("Alias name: "));
    line.unwrap().to_owned()
}

//! Key protectors and stock OpenSSL, in both directions: the emergency recipe depends on it.

use crate::support::{ALPHA, BETA, Bench, key_id, now, sealed, tpm_key, vm};
use fleetward_model::VmId;
use fleetward_model::guardian::CertificateRole;
use fleetward_protector::envelope::Envelope;
use fleetward_protector::key_protector::{Draft, SigningFailed};
use fleetward_protector::{Binding, ExpiredAllowed, KeyProtector, KeyProtectorError, Recipient};
use fleetward_protector_open::{LocalGuardian, OpenError, grant, open, pfx};
use zeroize::Zeroizing;

const PASSWORD: &str = "correct horse battery staple";

/// Exports both certificates of a guardian as PFX and takes keys and certificates out again with openssl.
fn export(bench: &Bench, guardian: &LocalGuardian, name: &str) {
    bench.write("password", PASSWORD.as_bytes());
    for (role, kind) in [
        (CertificateRole::Signing, "signing"),
        (CertificateRole::Encryption, "encryption"),
    ] {
        let pfx = pfx::export(
            guardian,
            role,
            &Zeroizing::new(PASSWORD.to_owned()),
            pfx::Protection::Aes256,
        )
        .unwrap();
        bench.write(&format!("{name}-{kind}.pfx"), &pfx);
        let from = format!("pkcs12 -in {name}-{kind}.pfx -passin file:password");
        bench
            .openssl(&format!("{from} -nokeys -out {name}-{kind}.crt"))
            .unwrap();
        bench
            .openssl(&format!("{from} -nocerts -noenc -out {name}-{kind}.key"))
            .unwrap();
    }
}

/// The recipe of docs/emergency-recovery.md: verify, then decrypt.
fn record(
    bench: &Bench,
    protector: &KeyProtector,
    owner: &str,
    recipient: &str,
) -> Result<serde_json::Value, String> {
    bench.write("protector.der", protector.der());
    bench.openssl(&format!(
        "cms -verify -inform DER -in protector.der -CAfile {owner}-signing.crt -purpose any -no_check_time -out envelope.der"
    ))?;
    let json = bench.openssl(&format!("cms -decrypt -inform DER -in envelope.der -recip {recipient}-encryption.crt -inkey {recipient}-encryption.key"))?;
    Ok(serde_json::from_slice(&json).unwrap())
}

/// A raw PSS signature by alpha's exported key.
fn sign_with_openssl(bench: &Bench, message: &[u8]) -> Result<Vec<u8>, SigningFailed> {
    bench.write("message", message);
    let options = "-sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:digest";
    bench
        .openssl(&format!(
            "dgst -sha256 -sign alpha-signing.key {options} -out signature message"
        ))
        .map_err(|_| SigningFailed)?;
    Ok(bench.read("signature"))
}

#[test]
fn a_protector_and_an_exported_pfx_give_the_record_with_openssl_alone() {
    let bench = Bench::new();
    export(&bench, &ALPHA, "alpha");
    export(&bench, &BETA, "beta");
    let protector = sealed(&ALPHA, &[]);
    let json = record(&bench, &protector, "alpha", "alpha").unwrap();
    assert_eq!(json["type"], "fleetward-key-protector");
    assert_eq!(json["version"], 1);
    assert_eq!(json["vm_id"], vm().to_string());
    assert_eq!(json["key_id"], key_id().to_string());
    assert_eq!(json["tpm_key"], tpm_key().expose_base64().as_str());

    assert!(
        record(&bench, &protector, "alpha", "beta").is_err(),
        "beta has no wrapping yet"
    );
    assert!(
        record(&bench, &protector, "beta", "alpha").is_err(),
        "beta did not sign"
    );
    let granted = grant(
        &protector,
        vm(),
        &ALPHA,
        &[BETA.public().clone()],
        now(),
        &ExpiredAllowed::none(),
    )
    .unwrap();
    for recipient in ["alpha", "beta"] {
        assert_eq!(
            record(&bench, &granted, "alpha", recipient).unwrap()["tpm_key"],
            json["tpm_key"]
        );
    }
}

#[test]
fn openssl_notices_an_altered_protector() {
    let bench = Bench::new();
    export(&bench, &ALPHA, "alpha");
    let protector = sealed(&ALPHA, &[]);
    let readable = vm().to_string();
    let at = protector
        .der()
        .windows(readable.len())
        .position(|w| w == readable.as_bytes())
        .unwrap();
    let mut altered = protector.der().to_vec();
    altered[at] ^= 1;
    bench.write("altered.der", &altered);
    let verified = bench.openssl("cms -verify -inform DER -in altered.der -CAfile alpha-signing.crt -purpose any -out envelope.der");
    assert!(verified.is_err());
}

#[test]
fn an_envelope_made_by_openssl_opens() {
    let bench = Bench::new();
    export(&bench, &ALPHA, "alpha");
    export(&bench, &BETA, "beta");
    let binding = sealed(&ALPHA, &[]).inspect().binding;
    let created = serde_json::to_value(binding).unwrap()["created"].clone();
    let record = serde_json::json!({
        "type": "fleetward-key-protector", "version": 1, "vm_id": binding.vm_id, "key_id": binding.key_id, "created": created,
        "tpm_key": tpm_key().expose_base64().as_str(),
    });
    bench.write("record.json", record.to_string().as_bytes());
    let oaep = "-keyopt rsa_padding_mode:oaep -keyopt rsa_oaep_md:sha256";
    bench
        .openssl(&format!(
            "cms -encrypt -binary -aes-256-gcm -in record.json -outform DER -out envelope.der -recip alpha-encryption.crt {oaep} -recip beta-encryption.crt {oaep}"
        ))
        .unwrap();
    let envelope = Envelope::from_der(&bench.read("envelope.der")).unwrap();

    // The command line of openssl cannot add the attribute that names the VM, so it signs through a raw signature.
    let draft = Draft {
        binding,
        revision: 1,
        owner: ALPHA.public(),
        recipients: vec![Recipient::of(ALPHA.public()), Recipient::of(BETA.public())],
        envelope,
        signed: now(),
    };
    let protector =
        KeyProtector::assemble(draft, |message| sign_with_openssl(&bench, message)).unwrap();
    for guardian in [&*ALPHA, &*BETA] {
        assert!(
            open(&protector, vm(), guardian)
                .unwrap()
                .tpm_key
                .same_as(&tpm_key())
        );
    }
}

#[test]
fn a_signature_by_openssl_is_accepted_and_the_missing_binding_named() {
    let bench = Bench::new();
    export(&bench, &ALPHA, "alpha");
    bench.write(
        "envelope.der",
        &sealed(&ALPHA, &[]).envelope().to_der().unwrap(),
    );
    let sign = |options: &str| {
        bench
            .openssl(&format!(
                "cms -sign -binary -nodetach -nosmimecap -md sha256 -in envelope.der -outform DER -out signed.der -signer alpha-signing.crt \
                 -inkey alpha-signing.key -certfile alpha-encryption.crt {options}"
            ))
            .unwrap();
        KeyProtector::from_der(&bench.read("signed.der"))
    };
    let pss = sign("-keyopt rsa_padding_mode:pss -keyopt rsa_pss_saltlen:digest");
    assert!(
        matches!(pss, Err(KeyProtectorError::BindingMissing)),
        "{pss:?}"
    );
    let other_padding = sign("");
    assert!(
        matches!(other_padding, Err(KeyProtectorError::Algorithm(_))),
        "{other_padding:?}"
    );
}

#[test]
fn weaker_algorithms_in_an_envelope_are_refused() {
    let bench = Bench::new();
    export(&bench, &ALPHA, "alpha");
    bench.write("record.json", b"{}");
    let encrypt = |options: &str| {
        bench
            .openssl(&format!(
                "cms -encrypt -binary -in record.json -outform DER -out envelope.der {options}"
            ))
            .unwrap();
        Envelope::from_der(&bench.read("envelope.der"))
    };
    let oaep = "-recip alpha-encryption.crt -keyopt rsa_padding_mode:oaep";
    assert!(encrypt(&format!("-aes-256-gcm {oaep} -keyopt rsa_oaep_md:sha256")).is_ok());
    for options in [
        format!("-aes-256-gcm {oaep}"),
        format!("-aes-128-gcm {oaep} -keyopt rsa_oaep_md:sha256"),
        format!("-aes-256-cbc {oaep} -keyopt rsa_oaep_md:sha256"),
        "-aes-256-gcm -recip alpha-encryption.crt".to_owned(),
        format!("-aes-256-gcm -keyid {oaep} -keyopt rsa_oaep_md:sha256"),
    ] {
        assert!(encrypt(&options).is_err(), "{options}");
    }
}

#[test]
fn a_pfx_opens_with_its_password_only_and_uses_aes_256() {
    let bench = Bench::new();
    export(&bench, &ALPHA, "alpha");
    let info = std::process::Command::new("/usr/bin/openssl")
        .args(["pkcs12", "-info", "-noout", "-in"])
        .arg(bench.path("alpha-encryption.pfx"))
        .args([
            "-passin",
            &format!("file:{}", bench.path("password").display()),
        ])
        .output()
        .unwrap();
    let info = String::from_utf8_lossy(&info.stderr).into_owned();
    assert!(
        info.contains("MAC: sha256") && info.contains("PBES2, PBKDF2, AES-256-CBC"),
        "{info}"
    );
    bench.write("wrong", b"another password");
    assert!(
        bench
            .openssl("pkcs12 -in alpha-encryption.pfx -passin file:wrong -noout")
            .is_err()
    );
    assert!(
        pfx::export(
            &ALPHA,
            CertificateRole::Signing,
            &Zeroizing::new("short".to_owned()),
            pfx::Protection::Aes256,
        )
        .is_err()
    );
    let serial = bench
        .openssl("x509 -in alpha-encryption.crt -noout -serial")
        .unwrap();
    let serial = String::from_utf8_lossy(&serial).to_lowercase();
    assert!(
        serial
            .trim()
            .ends_with(&ALPHA.public().encryption().serial()),
        "{serial}"
    );
}

#[test]
fn guardian_certificates_look_like_hyper_v_ones() {
    let bench = Bench::new();
    export(&bench, &ALPHA, "alpha");
    for (kind, word, usage) in [
        ("signing", "Signing", "Digital Signature"),
        ("encryption", "Encryption", "Key Encipherment"),
    ] {
        let text = String::from_utf8(
            bench
                .openssl(&format!(
                    "x509 -in alpha-{kind}.crt -noout -text -nameopt RFC2253"
                ))
                .unwrap(),
        )
        .unwrap();
        assert!(
            text.contains(&format!(
                "Subject: CN=Shielded VM {word} Certificate (UntrustedGuardian) (alpha)"
            )),
            "{text}"
        );
        assert!(
            text.contains(usage) && text.contains("(3072 bit)") && text.contains("CA:FALSE"),
            "{text}"
        );
    }
}

#[test]
fn the_guardian_id_can_be_computed_by_hand() {
    let bench = Bench::new();
    bench.write("signing.der", ALPHA.public().signing().der());
    bench.write("encryption.der", ALPHA.public().encryption().der());
    let pair = [
        bench.openssl("dgst -sha256 -binary signing.der").unwrap(),
        bench
            .openssl("dgst -sha256 -binary encryption.der")
            .unwrap(),
    ]
    .concat();
    bench.write("pair", &pair);
    let id = String::from_utf8(bench.openssl("dgst -sha256 -r pair").unwrap()).unwrap();
    assert!(id.starts_with(ALPHA.id().as_str()), "{id}");
}

#[test]
fn a_record_of_another_vm_under_a_good_signature_does_not_open() {
    let bench = Bench::new();
    export(&bench, &ALPHA, "alpha");
    let other = VmId(uuid::Uuid::from_u128(77));
    let protector = sealed(&ALPHA, &[]);
    let draft = Draft {
        binding: Binding {
            vm_id: other,
            ..protector.inspect().binding
        },
        revision: 1,
        owner: ALPHA.public(),
        recipients: protector.inspect().recipients.clone(),
        envelope: protector.envelope().clone(),
        signed: now(),
    };
    let forged =
        KeyProtector::assemble(draft, |message| sign_with_openssl(&bench, message)).unwrap();
    assert!(matches!(
        open(&forged, other, &ALPHA),
        Err(OpenError::RecordDiffers)
    ));
}

#[test]
fn a_list_of_guardians_that_the_wrappings_do_not_bear_out_is_refused() {
    let bench = Bench::new();
    export(&bench, &ALPHA, "alpha");
    let protector = sealed(&ALPHA, &[]);
    let assemble = |recipients: Vec<Recipient>| {
        let draft = Draft {
            binding: protector.inspect().binding,
            revision: 1,
            owner: ALPHA.public(),
            recipients,
            envelope: protector.envelope().clone(),
            signed: now(),
        };
        KeyProtector::assemble(draft, |message| sign_with_openssl(&bench, message))
    };
    let alpha = Recipient::of(ALPHA.public());
    let misnamed = Recipient {
        guardian: BETA.id().clone(),
        serial: alpha.serial.clone(),
    };
    assert!(assemble(vec![alpha.clone()]).is_ok());
    for wrong in [
        vec![],
        vec![alpha.clone(), alpha.clone()],
        vec![alpha.clone(), Recipient::of(BETA.public())],
    ] {
        assert!(matches!(
            assemble(wrong),
            Err(KeyProtectorError::RecipientsDiffer)
        ));
    }
    assert!(matches!(
        assemble(vec![misnamed]),
        Err(KeyProtectorError::OwnerNotRecipient)
    ));
}

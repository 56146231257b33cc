//! PFX files of every structure that was met in the wild, and some that were not: which keys and certificates go together.

use crate::support::kit::{
    self, cert_bag, encrypt, encrypted, hmac_sha256, key_bag, local_key_id, shrouded_bag,
};
use crate::support::parts::{PASSWORD, Parts, compare, other};
use const_oid::ObjectIdentifier;
use der::{Decode, Encode};
use x509_cert::Certificate;

#[test]
fn keys_go_with_the_certificates_of_their_public_keys() {
    let parts = Parts::new();
    let [signing, encryption] = &parts.keys;
    let [for_signing, for_encryption] = &parts.certificates;
    let pair = |key_ids: [u8; 2], certificate_ids: [u8; 2]| {
        Parts::file(&[
            key_bag(signing, &[local_key_id(key_ids[0])]),
            key_bag(encryption, &[local_key_id(key_ids[1])]),
            cert_bag(for_signing, &[local_key_id(certificate_ids[0])]),
            cert_bag(for_encryption, &[local_key_id(certificate_ids[1])]),
        ])
    };
    let renewed = parts.certified("/CN=renewed", &["keyUsage=digitalSignature"]);
    let several = |ids: [&[Vec<u8>]; 3]| {
        Parts::file(&[
            key_bag(signing, ids[0]),
            cert_bag(&renewed, ids[1]),
            cert_bag(for_signing, ids[2]),
        ])
    };
    let (one, two) = ([local_key_id(1)], [local_key_id(2)]);
    let [elliptic, for_elliptic] = other(
        &parts.bench,
        "-algorithm EC -pkeyopt ec_paramgen_curve:P-256",
    );
    let undecided = "PFX_NOT_A_PAIR: a key in the file has 2 certificates, and none of them alone is marked as its own";
    compare(&[
        ("a pair with its ids", pair([1, 2], [1, 2]), "guardian"),
        ("localKeyIds swapped", pair([1, 2], [2, 1]), "guardian"),
        ("one localKeyId for all", pair([1, 1], [1, 1]), "guardian"),
        (
            "no localKeyId, certificates first and the other way round",
            Parts::file(&[
                cert_bag(for_encryption, &[]),
                cert_bag(for_signing, &[]),
                key_bag(signing, &[]),
                key_bag(encryption, &[]),
            ]),
            "guardian",
        ),
        (
            "one certificate twice",
            Parts::file(&[parts.half(), vec![cert_bag(for_signing, &[])]].concat()),
            "signing half, its own certificate",
        ),
        (
            "one key twice, with another between",
            Parts::file(
                &[
                    parts.half(),
                    vec![
                        key_bag(encryption, &[]),
                        cert_bag(for_encryption, &[]),
                        key_bag(signing, &[]),
                    ],
                ]
                .concat(),
            ),
            "guardian",
        ),
        (
            "a renewed certificate first, the id says which is the key's",
            several([&one, &two, &one]),
            "signing half, its own certificate",
        ),
        (
            "the id says the renewed one",
            several([&one, &one, &two]),
            "signing half, another certificate",
        ),
        ("no id decides", several([&[], &[], &[]]), undecided),
        ("the ids name both", several([&one, &one, &one]), undecided),
        (
            "the ids name neither",
            several([&one, &two, &[]]),
            undecided,
        ),
        (
            "the other's certificate alone, with the key's id",
            Parts::file(&[key_bag(signing, &one), cert_bag(for_encryption, &one)]),
            "PFX_NO_CERTIFICATE: the file holds a private key without its certificate",
        ),
        (
            "a certificate for elliptic curves with the key's id, and the key's without",
            Parts::file(&[
                key_bag(signing, &one),
                cert_bag(&for_elliptic, &one),
                cert_bag(for_signing, &[]),
            ]),
            "signing half, its own certificate",
        ),
        (
            "a key for elliptic curves beside the pair",
            Parts::file(
                &[
                    parts.half(),
                    vec![key_bag(&elliptic, &[]), cert_bag(&for_elliptic, &[])],
                ]
                .concat(),
            ),
            "PFX_UNSUPPORTED: a private key in the file is one for elliptic curves, and a guardian's are RSA keys for every use",
        ),
    ]);
}

#[test]
fn a_certificates_key_usage_says_what_it_is_for_or_else_its_subject() {
    let parts = Parts::new();
    let named = |subject: &str, extensions: &[&str]| {
        Parts::file(&[
            key_bag(&parts.keys[0], &[]),
            cert_bag(&parts.certified(subject, extensions), &[]),
        ])
    };
    let signs = "signing half, another certificate";
    let encrypts = "encryption half, another certificate";
    let none =
        "PFX_NOT_A_PAIR: certificate CN=x is neither for signing alone nor for encryption alone";
    let hyper_v = "/CN=Shielded VM Signing Certificate (UntrustedGuardian) (host1)";
    let both = "keyUsage=critical,digitalSignature,keyEncipherment";
    compare(&[
        ("absent", named("/CN=x", &[]), none),
        ("absent, by the subject", named(hyper_v, &[]), signs),
        (
            "not critical",
            named("/CN=x", &["keyUsage=digitalSignature"]),
            signs,
        ),
        (
            "critical",
            named("/CN=x", &["keyUsage=critical,digitalSignature"]),
            signs,
        ),
        (
            "key encipherment",
            named("/CN=x", &["keyUsage=critical,keyEncipherment"]),
            encrypts,
        ),
        (
            "data encipherment",
            named("/CN=x", &["keyUsage=critical,dataEncipherment"]),
            encrypts,
        ),
        (
            "it goes before the subject",
            named(hyper_v, &["keyUsage=keyEncipherment"]),
            encrypts,
        ),
        ("both", named("/CN=x", &[both]), none),
        ("both, by the subject", named(hyper_v, &[both]), signs),
        (
            "neither",
            named("/CN=x", &["keyUsage=critical,keyCertSign"]),
            none,
        ),
    ]);
}

#[test]
fn keys_of_other_kinds_are_named() {
    let parts = Parts::new();
    let bench = &parts.bench;
    let alone = |[key, certificate]: [Vec<u8>; 2]| {
        Parts::file(&[key_bag(&key, &[]), cert_bag(&certificate, &[])])
    };
    let pss = other(bench, "-algorithm RSA-PSS -pkeyopt rsa_keygen_bits:2048");
    let ed25519 = other(bench, "-algorithm ED25519");
    // The same with the identifier of ML-DSA-44, which older openssl does not make.
    let ml_dsa = {
        let id = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.3.17");
        let mut certificate = Certificate::from_der(&ed25519[1]).unwrap();
        let algorithms = [
            &mut certificate.signature_algorithm,
            &mut certificate.tbs_certificate.signature,
            &mut certificate
                .tbs_certificate
                .subject_public_key_info
                .algorithm,
        ];
        algorithms.into_iter().for_each(|one| one.oid = id);
        let algorithm = kit::digest(id.as_bytes(), &[]);
        let key = kit::seq(&[&kit::integer(0), &algorithm, &kit::tlv(0x04, &[0x80; 34])]);
        [key, certificate.to_der().unwrap()]
    };
    let weak = other(bench, "-algorithm RSA -pkeyopt rsa_keygen_bits:1024");
    // PKCS #8 without the NULL beside rsaEncryption.
    let bare = {
        let key = &parts.keys[0];
        let at = key
            .windows(2)
            .position(|window| window == kit::NULL)
            .unwrap();
        let algorithm = kit::seq(&[&key[9..at]]);
        kit::seq(&[&kit::integer(0), &algorithm, &key[at + 2..]])
    };
    let refused = |kind: &str| {
        format!(
            "PFX_UNSUPPORTED: a private key in the file is {kind}, and a guardian's are RSA keys for every use"
        )
    };
    compare(&[
        (
            "RSA-PSS",
            alone(pss),
            &refused("an RSA key for PSS signatures alone"),
        ),
        (
            "P-384",
            alone(other(
                bench,
                "-algorithm EC -pkeyopt ec_paramgen_curve:P-384",
            )),
            &refused("one for elliptic curves"),
        ),
        ("Ed25519", alone(ed25519), &refused("one for Ed25519")),
        ("ML-DSA", alone(ml_dsa), &refused("one for ML-DSA")),
        (
            "RSA of 1024 bits",
            alone(weak),
            "PFX_WEAK_KEY: the certificate holds an RSA key of 1024 bits; 2048 to 8192 are taken",
        ),
        (
            "RSA without NULL parameters",
            alone([bare, parts.certificates[0].clone()]),
            "PFX_DAMAGED: a private key in the file cannot be used",
        ),
        (
            "no key at all",
            alone([b"garbage".to_vec(), parts.certificates[0].clone()]),
            "PFX_UNSUPPORTED: the password is right and the file unaltered, but something inside is not in DER, or not as RFC 7292 has it",
        ),
    ]);
}

#[test]
fn chains_and_many_keys() {
    let parts = Parts::new();
    let bench = &parts.bench;
    // A root, four more below it, and the guardian's signing key under the last.
    let issue = |n: usize, key: &str, usage: &str| {
        bench.write("usage.cnf", usage.as_bytes());
        bench
            .openssl(&format!("req -new -key {key} -subj /CN=ca{n} -out new.csr"))
            .unwrap();
        let by = match n {
            0 => "-signkey ca0.key".to_owned(),
            n => format!("-CA ca{0}.crt -CAkey ca{0}.key", n - 1),
        };
        bench
            .openssl(&format!(
                "x509 -req -in new.csr {by} -set_serial {} -days 30 -extfile usage.cnf -out ca{n}.crt",
                n + 1
            ))
            .unwrap();
        bench.made(
            &format!("x509 -in ca{n}.crt -outform DER -out ca.der"),
            "ca.der",
        )
    };
    let mut chain = Vec::new();
    for n in 0..5 {
        bench
            .openssl(&format!(
                "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out ca{n}.key"
            ))
            .unwrap();
        chain.push(issue(
            n,
            &format!("ca{n}.key"),
            "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,digitalSignature\n",
        ));
    }
    let leaf = issue(5, "signing.key", "keyUsage=critical,digitalSignature\n");
    let key = key_bag(&parts.keys[0], &[local_key_id(1)]);
    let mut bags: Vec<Vec<u8>> = chain.iter().map(|ca| cert_bag(ca, &[])).collect();
    bags.push(cert_bag(&leaf, &[local_key_id(1)]));
    bags.push(key);
    let leaf_last = Parts::file(&bags);
    bags.reverse();
    let leaf_first = Parts::file(&bags);

    let shrouded = shrouded_bag(
        &encrypt(&parts.keys[0], PASSWORD, &hmac_sha256(kit::NULL)),
        &[],
    );
    let certificate = cert_bag(&parts.certificates[0], &[]);
    let with_keys = |count: usize| {
        let mut bags = vec![shrouded.clone(); count];
        bags.push(certificate.clone());
        bags
    };
    let inside = |bags: Vec<Vec<u8>>| {
        let content = kit::tlv(0x30, &bags.concat());
        let part = encrypted(&encrypt(&content, PASSWORD, &hmac_sha256(kit::NULL)));
        kit::pfx(&[part], PASSWORD)
    };
    let half = "signing half, its own certificate";
    compare(&[
        (
            "five authorities, the leaf last",
            leaf_last,
            "signing half, another certificate",
        ),
        (
            "five authorities, the leaf first",
            leaf_first,
            "signing half, another certificate",
        ),
        ("eight encrypted keys", Parts::file(&with_keys(8)), half),
        (
            "nine encrypted keys",
            Parts::file(&with_keys(9)),
            "PFX_UNSUPPORTED: it has more encrypted parts than a guardian's file",
        ),
        ("keys encrypted twice", inside(with_keys(2)), half),
        (
            "nine keys encrypted twice",
            inside(with_keys(9)),
            "PFX_UNSUPPORTED: it has more private keys than a guardian's file",
        ),
    ]);
}

/// Allowed (RFC 7292, 4.2.6), and written by no program that is known.
#[test]
fn bags_in_bags() {
    let parts = Parts::new();
    let half = parts.half();
    let deep = (0..200).fold(half.clone(), |bags, _| vec![kit::nested_bag(&bags)]);
    let nested = "PFX_UNSUPPORTED: it has bags inside of bags";
    compare(&[
        (
            "a bag with both",
            Parts::file(&[kit::nested_bag(&half)]),
            nested,
        ),
        (
            "the key in a bag, its certificate beside it",
            Parts::file(&[kit::nested_bag(&half[..1]), half[1].clone()]),
            nested,
        ),
        ("200 bags in each other", Parts::file(&deep), nested),
        (
            "certificates without a key",
            Parts::file(&parts.certificates.each_ref().map(|der| cert_bag(der, &[]))),
            "PFX_NO_KEY: the file holds a certificate, but no private key",
        ),
    ]);
}

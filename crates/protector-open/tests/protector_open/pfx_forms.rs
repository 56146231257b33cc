//! PFX files in other encodings, with other algorithms and with other names: what each opens as, or why it does not.

use crate::support::kit::{
    self, Mac, cert_bag, clear, encrypt, encrypted, friendly_name, hmac_sha256, key_bag,
    local_key_id, shrouded_bag,
};
use crate::support::parts::{PASSWORD, Parts, compare, outcome};
use fleetward_protector_open::pfx;
use zeroize::Zeroizing;

#[test]
fn what_is_not_der_is_called_that() {
    let parts = Parts::new();
    let bags = parts.half();
    let mac = Mac::of(PASSWORD);
    let part = clear(&bags);
    let content = kit::seq(&[&part]);
    let bag_list = kit::tlv(0x30, &bags.concat());
    let prf = hmac_sha256(kit::NULL);
    let secret = encrypt(&bag_list, PASSWORD, &prf);
    let ber = |how: &str| {
        format!(
            "PFX_UNSUPPORTED: the file, or a part of it, is BER {how}, and PFX files are read in DER alone"
        )
    };
    let (indefinite, pieces) = (
        ber("with an indefinite length"),
        ber("with strings in pieces"),
    );
    let inside = "PFX_UNSUPPORTED: the password is right and the file unaltered, but something inside is not in DER, or not as RFC 7292 has it";
    let mut long = kit::pfx(std::slice::from_ref(&part), PASSWORD);
    // The version: 02 01 03 becomes 02 81 01 03, and the length of the whole grows.
    assert_eq!(long[4..7], [0x02, 0x01, 0x03]);
    long.splice(5..6, [0x81, 0x01]);
    let length = u16::from_be_bytes([long[2], long[3]]) + 1;
    long[2..4].copy_from_slice(&length.to_be_bytes());
    compare(&[
        (
            "DER",
            kit::pfx(std::slice::from_ref(&part), PASSWORD),
            "signing half, its own certificate",
        ),
        (
            "all of it with an indefinite length",
            kit::indefinite(0x30, &kit::pfx(std::slice::from_ref(&part), PASSWORD)[4..]),
            &indefinite,
        ),
        (
            "outer DER, inner BER",
            kit::pfx_with(&kit::indefinite(0x30, &part), &mac),
            &indefinite,
        ),
        (
            "a part in BER",
            kit::pfx(
                &[kit::data(&kit::tlv(
                    0x04,
                    &kit::indefinite(0x30, &bags.concat()),
                ))],
                PASSWORD,
            ),
            &indefinite,
        ),
        (
            "the content in pieces",
            kit::pfx_in_pieces(&content, &mac),
            &pieces,
        ),
        (
            "a part in pieces",
            kit::pfx(&[kit::data(&kit::in_pieces(&bag_list))], PASSWORD),
            &pieces,
        ),
        (
            "an encrypted part in pieces",
            kit::pfx(
                &[kit::with_content(
                    &secret,
                    &kit::tlv(0xa0, &kit::tlv(0x04, &secret.text)),
                )],
                PASSWORD,
            ),
            &pieces,
        ),
        (
            "BER inside what is encrypted",
            kit::pfx(
                &[encrypted(&encrypt(
                    &kit::indefinite(0x30, &bags.concat()),
                    PASSWORD,
                    &prf,
                ))],
                PASSWORD,
            ),
            inside,
        ),
        (
            "a length in more bytes than it needs",
            long,
            &ber("with a length in more bytes than it needs"),
        ),
    ]);
}

#[test]
fn algorithms_and_rounds() {
    let parts = Parts::new();
    let bags = parts.half();
    let content = kit::seq(&[&clear(&bags)]);
    let with_mac = |digest: Vec<u8>, rounds: Option<u64>| {
        kit::pfx_with(
            &content,
            &Mac {
                digest,
                rounds,
                ..Mac::of(PASSWORD)
            },
        )
    };
    let sha256 = || Mac::of(PASSWORD).digest;
    let bag_list = kit::tlv(0x30, &bags.concat());
    let null = hmac_sha256(kit::NULL);
    let said = |algorithm: Vec<u8>| {
        let text = encrypt(&bag_list, PASSWORD, &null).text;
        kit::pfx(&[encrypted(&kit::Encrypted { algorithm, text })], PASSWORD)
    };
    let inside = |algorithm: Vec<u8>| {
        let text = encrypt(&parts.keys[0], PASSWORD, &null).text;
        let shrouded = shrouded_bag(&kit::Encrypted { algorithm, text }, &[]);
        let list = kit::seq(&[&shrouded, &cert_bag(&parts.certificates[0], &[])]);
        kit::pfx(&[encrypted(&encrypt(&list, PASSWORD, &null))], PASSWORD)
    };
    // The key, and what it lies in.
    let derived = |bits| {
        let shrouded = kit::encrypt_by_sha2(&parts.keys[0], PASSWORD, bits);
        let shrouded = shrouded_bag(&shrouded, &[]);
        let list = kit::seq(&[&shrouded, &cert_bag(&parts.certificates[0], &[])]);
        let part = kit::encrypt_by_sha2(&list, PASSWORD, bits);
        kit::pfx(&[encrypted(&part)], PASSWORD)
    };
    let aes = |rounds| kit::pbes2(rounds, &null, kit::AES_256_CBC, &[0; 16]);
    let half = "signing half, its own certificate";
    let no_rounds =
        "PFX_DAMAGED: the file asks for 0 rounds of key derivation, and there is at least one";
    let bomb = "PFX_TOO_MANY_ITERATIONS: the file asks for 2147483648 rounds of key derivation, at most 1000000 are made";
    let other_cipher = "PFX_UNSUPPORTED: it is encrypted with something other than AES in CBC mode, 3DES or 40-bit RC2";
    let no_parameters = "PFX_UNSUPPORTED: its encryption has no parameters";
    compare(&[
        (
            "rounds of the MAC: not said",
            with_mac(sha256(), None),
            half,
        ),
        ("rounds of the MAC: 1", with_mac(sha256(), Some(1)), half),
        (
            "rounds of the MAC: 0",
            with_mac(sha256(), Some(0)),
            no_rounds,
        ),
        (
            "rounds of the MAC: 2^31",
            with_mac(sha256(), Some(1 << 31)),
            bomb,
        ),
        (
            "rounds of the MAC: 2^64",
            with_mac(sha256(), Some(u64::MAX)),
            "PFX_TOO_MANY_ITERATIONS: the file asks for 18446744073709551615 rounds of key derivation, at most 1000000 are made",
        ),
        ("rounds of the encryption: 0", said(aes(0)), no_rounds),
        ("rounds of the encryption: 2^31", said(aes(1 << 31)), bomb),
        (
            "rounds inside: 2^31",
            inside(aes(1 << 31)),
            "PFX_TOO_MANY_ITERATIONS: a key inside the file asks for more than 1000000 rounds of key derivation",
        ),
        (
            "a digest without its NULL",
            with_mac(kit::digest_without_null(), None),
            half,
        ),
        (
            "a pseudorandom function without its NULL",
            kit::pfx(
                &[encrypted(&encrypt(&bag_list, PASSWORD, &hmac_sha256(&[])))],
                PASSWORD,
            ),
            half,
        ),
        ("a derivation by SHA-384", derived(384), half),
        ("a derivation by SHA-512", derived(512), half),
        (
            "a cipher with NULL for its parameters",
            said(kit::digest(kit::PBES2, kit::NULL)),
            no_parameters,
        ),
        (
            "a cipher without parameters",
            said(kit::digest(kit::PBES2, &[])),
            no_parameters,
        ),
        (
            "AES-GCM",
            said(kit::pbes2(1, &null, kit::AES_256_GCM, &[0; 12])),
            other_cipher,
        ),
        (
            "AES-GCM inside",
            inside(kit::pbes2(1, &null, kit::AES_256_GCM, &[0; 12])),
            "PFX_UNSUPPORTED: the password is right and the file unaltered, but something inside is not in DER, or not as RFC 7292 has it",
        ),
        (
            "PBMAC1",
            with_mac(kit::digest(kit::PBMAC1, kit::NULL), None),
            "PFX_UNSUPPORTED: its MAC is PBMAC1",
        ),
        (
            "a MAC with MD5",
            with_mac(
                kit::digest(&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x02, 0x05], kit::NULL),
                None,
            ),
            "PFX_UNSUPPORTED: it uses an algorithm that is not read here",
        ),
    ]);
}

#[test]
fn names_and_attributes_do_not_matter() {
    let parts = Parts::new();
    let utf16 =
        |name: &str| -> Vec<u8> { name.encode_utf16().flat_map(u16::to_be_bytes).collect() };
    let japanese = friendly_name(&utf16("東京都シールドＶＭ署名"));
    let odd = friendly_name(&[0x67, 0x71, 0x4e]);
    let with = |attributes: &[Vec<u8>]| {
        Parts::file(&[
            key_bag(&parts.keys[0], attributes),
            cert_bag(&parts.certificates[0], attributes),
        ])
    };
    let half = "signing half, its own certificate";
    compare(&[
        ("Japanese", with(std::slice::from_ref(&japanese)), half),
        ("a BMPString of an odd number of bytes", with(&[odd]), half),
        ("an empty name", with(&[friendly_name(&[])]), half),
        (
            "a name outside the basic plane",
            with(&[friendly_name(&utf16("𠮷"))]),
            half,
        ),
        ("in order", with(&[local_key_id(1), japanese.clone()]), half),
        (
            "in the other order",
            with(&[japanese.clone(), local_key_id(1)]),
            half,
        ),
        ("one twice", with(&[local_key_id(1), local_key_id(1)]), half),
    ]);
}

/// Two files that a real Windows made, see `fixtures/README.md`. Their certificate is no guardian's.
#[test]
fn what_windows_wrote_is_read() {
    for file in [
        include_bytes!("../../../../fixtures/windows/aes.pfx").as_slice(),
        include_bytes!("../../../../fixtures/windows/3des.pfx").as_slice(),
    ] {
        let keys = pfx::read(file, &Zeroizing::new("password".to_owned())).unwrap();
        assert_eq!(keys.len(), 1);
        assert_eq!(
            outcome(file, "password"),
            "PFX_NOT_A_PAIR: certificate CN=Valid EE Certificate Test1,O=Test Certificates 2011,C=US is neither for signing alone nor for encryption alone"
        );
        assert_eq!(
            outcome(file, "Password"),
            "PFX_WRONG_PASSWORD: the password does not open the file"
        );
    }
}

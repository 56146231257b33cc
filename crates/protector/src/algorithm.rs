//! The four algorithms of a key protector and how CMS names them; everything else is refused.
//!
//! RSA-OAEP and RSASSA-PSS, both with SHA-256 for hash and mask and PSS with a 32-byte salt, AES-256-GCM with a 12-byte
//! nonce and a 16-byte tag, and SHA-256. Sources: RFC 8017 appendix A.2, RFC 4055, RFC 5084.

use const_oid::ObjectIdentifier;
use const_oid::db::rfc5912::{ID_MGF_1, ID_P_SPECIFIED, ID_RSAES_OAEP, ID_RSASSA_PSS, ID_SHA_256};
use der::asn1::{AnyRef, Null, OctetString};
use der::{Any, Decode, Encode, Sequence};
use pkcs1::{RsaOaepParams, RsaPssParams, TrailerField};
use spki::{AlgorithmIdentifier, AlgorithmIdentifierOwned, AlgorithmIdentifierRef};

/// AES-256 in Galois/counter mode (NIST `aes` arc, 46).
const ID_AES_256_GCM: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.16.840.1.101.3.4.1.46");

/// Bytes of the GCM nonce.
pub const GCM_NONCE: usize = 12;
/// Bytes of the GCM authentication tag.
pub const GCM_TAG: usize = 16;

const PSS_SALT: u8 = 32;

/// An algorithm, or parameters of one, that key protectors do not use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place} uses an algorithm or parameters that are not supported ({oid})")]
pub struct UnsupportedAlgorithm {
    /// Which part of the structure names it.
    pub place: &'static str,
    pub oid: ObjectIdentifier,
}

/// `GCMParameters` of RFC 5084; the tag length's default of 12 is never used here, so it is always written.
#[derive(Sequence)]
struct GcmParameters {
    nonce: OctetString,
    tag_length: u8,
}

pub(crate) fn sha256() -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned {
        oid: ID_SHA_256,
        parameters: None,
    }
}

pub(crate) fn expect_sha256(
    place: &'static str,
    found: &AlgorithmIdentifierOwned,
) -> Result<(), UnsupportedAlgorithm> {
    let plain = match &found.parameters {
        None => true,
        Some(parameters) => *parameters == Any::from(Null),
    };
    accept(place, found.oid, found.oid == ID_SHA_256 && plain)
}

pub(crate) fn pss_sha256() -> AlgorithmIdentifierOwned {
    let parameters = RsaPssParams {
        hash: SHA256_REF,
        mask_gen: MGF1_SHA256,
        salt_len: PSS_SALT,
        trailer_field: TrailerField::BC,
    };
    identifier(ID_RSASSA_PSS, &parameters)
}

pub(crate) fn expect_pss_sha256(
    found: &AlgorithmIdentifierOwned,
) -> Result<(), UnsupportedAlgorithm> {
    let fits = found.oid == ID_RSASSA_PSS
        && found.parameters.as_ref().is_some_and(|parameters| {
            parameters.to_der().is_ok_and(|der| {
                RsaPssParams::from_der(&der).is_ok_and(|p| {
                    is_sha256(&p.hash) && is_mgf1(&p.mask_gen) && p.salt_len == PSS_SALT
                })
            })
        });
    accept("signature", found.oid, fits)
}

pub(crate) fn oaep_sha256() -> AlgorithmIdentifierOwned {
    let parameters = RsaOaepParams {
        hash: SHA256_REF,
        mask_gen: MGF1_SHA256,
        p_source: AlgorithmIdentifierRef {
            oid: ID_P_SPECIFIED,
            parameters: Some(empty_label()),
        },
    };
    identifier(ID_RSAES_OAEP, &parameters)
}

pub(crate) fn expect_oaep_sha256(
    found: &AlgorithmIdentifierOwned,
) -> Result<(), UnsupportedAlgorithm> {
    let fits = found.oid == ID_RSAES_OAEP
        && found.parameters.as_ref().is_some_and(|parameters| {
            parameters.to_der().is_ok_and(|der| {
                RsaOaepParams::from_der(&der).is_ok_and(|p| {
                    is_sha256(&p.hash)
                        && is_mgf1(&p.mask_gen)
                        && p.p_source.oid == ID_P_SPECIFIED
                        && p.p_source.parameters == Some(empty_label())
                })
            })
        });
    accept("key wrapping", found.oid, fits)
}

pub(crate) fn aes256_gcm(nonce: &[u8; GCM_NONCE]) -> AlgorithmIdentifierOwned {
    let parameters = GcmParameters {
        nonce: OctetString::new(nonce.as_slice()).expect("twelve bytes fit"),
        tag_length: GCM_TAG as u8,
    };
    identifier(ID_AES_256_GCM, &parameters)
}

/// The nonce of an AES-256-GCM identifier.
pub(crate) fn expect_aes256_gcm(
    found: &AlgorithmIdentifierOwned,
) -> Result<[u8; GCM_NONCE], UnsupportedAlgorithm> {
    let unsupported = || UnsupportedAlgorithm {
        place: "content encryption",
        oid: found.oid,
    };
    if found.oid != ID_AES_256_GCM {
        return Err(unsupported());
    }
    let parameters = found.parameters.as_ref().ok_or_else(unsupported)?;
    let parameters: GcmParameters = parameters.decode_as().map_err(|_| unsupported())?;
    if usize::from(parameters.tag_length) != GCM_TAG {
        return Err(unsupported());
    }
    parameters
        .nonce
        .as_bytes()
        .try_into()
        .map_err(|_| unsupported())
}

const SHA256_REF: AlgorithmIdentifierRef<'static> = AlgorithmIdentifierRef {
    oid: ID_SHA_256,
    parameters: Some(AnyRef::NULL),
};
const MGF1_SHA256: AlgorithmIdentifier<AlgorithmIdentifierRef<'static>> = AlgorithmIdentifier {
    oid: ID_MGF_1,
    parameters: Some(SHA256_REF),
};

fn empty_label() -> AnyRef<'static> {
    AnyRef::new(der::Tag::OctetString, &[]).expect("an empty octet string is a value")
}

/// SHA-256 with absent or NULL parameters: RFC 4055 asks readers to take both.
fn is_sha256(found: &AlgorithmIdentifierRef<'_>) -> bool {
    found.oid == ID_SHA_256 && found.parameters.is_none_or(|p| p == AnyRef::NULL)
}

fn is_mgf1(found: &AlgorithmIdentifier<AlgorithmIdentifierRef<'_>>) -> bool {
    found.oid == ID_MGF_1 && found.parameters.as_ref().is_some_and(is_sha256)
}

fn identifier(
    oid: ObjectIdentifier,
    parameters: &(impl der::EncodeValue + der::Tagged),
) -> AlgorithmIdentifierOwned {
    AlgorithmIdentifierOwned {
        oid,
        parameters: Some(Any::encode_from(parameters).expect("constant parameters encode")),
    }
}

fn accept(
    place: &'static str,
    oid: ObjectIdentifier,
    fits: bool,
) -> Result<(), UnsupportedAlgorithm> {
    if fits {
        Ok(())
    } else {
        Err(UnsupportedAlgorithm { place, oid })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_accepted() {
        expect_sha256("digest", &sha256()).unwrap();
        expect_pss_sha256(&pss_sha256()).unwrap();
        expect_oaep_sha256(&oaep_sha256()).unwrap();
        assert_eq!(expect_aes256_gcm(&aes256_gcm(&[7; 12])).unwrap(), [7; 12]);
    }

    #[test]
    fn other_algorithms_and_parameters_are_refused() {
        let mut weak = pss_sha256();
        weak.parameters = None;
        assert!(expect_pss_sha256(&weak).is_err());
        let mut weak = oaep_sha256();
        weak.parameters = Some(Any::from(Null));
        assert!(expect_oaep_sha256(&weak).is_err());
        assert!(expect_oaep_sha256(&pss_sha256()).is_err());
        let short_tag = identifier(
            ID_AES_256_GCM,
            &GcmParameters {
                nonce: OctetString::new([0; 12]).unwrap(),
                tag_length: 12,
            },
        );
        assert!(expect_aes256_gcm(&short_tag).is_err());
        let long_nonce = identifier(
            ID_AES_256_GCM,
            &GcmParameters {
                nonce: OctetString::new([0; 16]).unwrap(),
                tag_length: 16,
            },
        );
        assert!(expect_aes256_gcm(&long_nonce).is_err());
    }
}

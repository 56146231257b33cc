//! EK certificates: issued for TPMs that are made on this host, and judged before they go with a TPM of its VMs.
//!
//! ```text
//!   made here, by this host's EK authority ────────► chains to the fleet's EK root ──► JudgedEk ──► the VM
//!   arrives, is restored, is rebuilt ── judge: chains, or the controller accepts it ─► JudgedEk ──► the VM
//!   was with the VM's TPM on this host before ───────────────────────────────────────► JudgedEk ──► the VM
//! ```
//! Whatever keeps an EK certificate for a VM takes a [`JudgedEk`], and this file makes them all. What judges is the EK root
//! that the host got when it joined. The controller only says which hosts' authorities lie between (they prove themselves),
//! and which certificates of other makers an administrator has accepted.

use crate::failure::{Result, Trouble, chain};
use crate::membership::MembershipError;
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_api::agent::EkWord;
use fleetward_hypervisor::{EkIssuer, EkPublic};
use fleetward_model::ek::EkAddress;
use fleetward_model::{ErrorCode, Failure};
use fleetward_protector::ek::{
    AT_ANY_TIME, EkAuthority, EkCertificate, EkChainError, EkPublicKey, RandomSerial, TpmIdentity,
    VerifiedEk, verify_chain,
};
use std::ops::Deref;
use time::OffsetDateTime;

/// An EK certificate that may go with a TPM of this host's VMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct JudgedEk(Vec<u8>);

impl JudgedEk {
    /// The one that goes with the VM's TPM on this host already, or did when its TPM was switched off. It was judged when it
    /// came; one from before that was judged at all goes on.
    pub(crate) fn in_place(der: Vec<u8>) -> Self {
        Self(der)
    }

    /// The same from a file of the agent's own, where only a judged one is put.
    pub(crate) fn kept(der: Vec<u8>) -> Self {
        Self(der)
    }

    pub(crate) fn to_base64(&self) -> String {
        STANDARD.encode(&self.0)
    }
}

impl Deref for JudgedEk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// Issues the EK certificates of TPMs that are made on this host, and judges others.
pub struct EkCertifier {
    authority: EkAuthority<rcgen::KeyPair>,
    /// This host's EK authority, DER.
    own: Vec<u8>,
    /// The fleet's EK root, DER.
    root: Vec<u8>,
}

impl EkCertifier {
    /// Of this host's EK authority with the fleet's EK root after it, and the authority's key.
    pub(crate) fn from_pem(chain_pem: &str, key_pem: &str) -> Result<Self, MembershipError> {
        let unreadable = |what| MembershipError::Ek(format!("{what} cannot be read"));
        let (rest, own) =
            first_certificate(chain_pem).ok_or_else(|| unreadable("its certificate"))?;
        let (_, root) =
            first_certificate(rest).ok_or_else(|| unreadable("the fleet's EK root after it"))?;
        let key = rcgen::KeyPair::from_pem(key_pem)
            .map_err(|error| MembershipError::Ek(error.to_string()))?;
        let authority =
            EkAuthority::new(&own, key).map_err(|error| MembershipError::Ek(error.to_string()))?;
        Ok(Self {
            authority,
            own,
            root,
        })
    }

    /// Certificates that are issued from now on name that place, if there is one.
    pub(crate) fn published_at(self, address: Option<EkAddress>) -> Self {
        Self {
            authority: self.authority.published_at(address),
            ..self
        }
    }

    /// This host's EK authority, DER.
    pub(crate) fn own(&self) -> &[u8] {
        &self.own
    }

    /// Takes the certificate of a TPM that was made on this host: now, or ahead of time.
    ///
    /// # Errors
    /// `EK_NOT_OF_FLEET`, such as of one that was made while the host was in another fleet.
    pub(crate) fn made_here(&self, ek: Vec<u8>) -> Result<JudgedEk> {
        match self.chained(&ek, &[]) {
            Ok(_) => Ok(JudgedEk(ek)),
            Err(error) => Err(not_of_fleet(
                "a TPM that was made on this host",
                &ek,
                &error,
            )),
        }
    }

    /// Lets a certificate from elsewhere go with the TPM of a VM.
    ///
    /// `word` is what the controller knows of it; none where it cannot say: a controller of a former version, or one that does
    /// not know yet what hosts with agents of a former version issue with.
    ///
    /// # Errors
    /// `EK_NOT_OF_FLEET` names the issuer.
    pub(crate) fn judge(&self, ek: Vec<u8>, vm: &str, word: Option<&EkWord>) -> Result<JudgedEk> {
        let Some(word) = word else {
            return Ok(JudgedEk(ek));
        };
        if word.accepted.contains(&digest(&ek)) {
            return Ok(JudgedEk(ek));
        }
        let named = word.authorities.iter();
        let between: Vec<_> = named
            .filter_map(|text| STANDARD.decode(text).ok())
            .collect();
        match self.chained(&ek, &between) {
            Ok(_) => Ok(JudgedEk(ek)),
            Err(error) => Err(not_of_fleet(&format!("the TPM of VM {vm}"), &ek, &error)),
        }
    }

    fn chained(&self, ek: &[u8], between: &[Vec<u8>]) -> Result<VerifiedEk, EkChainError> {
        let others = between.iter().map(Vec::as_slice);
        let between: Vec<_> = others.chain([self.own.as_slice()]).collect();
        verify_chain(ek, &between, &self.root, AT_ANY_TIME)
    }
}

fn digest(ek: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(Sha256::digest(ek))
}

fn not_of_fleet(what: &str, ek: &[u8], error: &EkChainError) -> Trouble {
    let issuer = match EkCertificate::read(ek) {
        Ok(read) => format!(
            "{} issued it, by its own word, under number {}",
            read.issuer, read.facts.serial
        ),
        Err(_) => "it cannot be read as a certificate".to_owned(),
    };
    let because = format!("{}: {issuer}", chain(error));
    Trouble::from(
        Failure::new(
            ErrorCode::EkNotOfFleet,
            format!("{what} comes with an EK certificate that is not of this fleet"),
        )
        .because(because)
        .fix(format!(
            "if you know whose TPM it is, accept its certificate, and try again: fleetward ek accept {}",
            digest(ek)
        )),
    )
}

impl std::fmt::Debug for EkCertifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EkCertifier")
    }
}

impl EkIssuer for EkCertifier {
    fn issue(&self, public: &EkPublic) -> Result<Vec<u8>, String> {
        let key = match public {
            EkPublic::Rsa { modulus } => EkPublicKey::from_rsa_modulus(modulus),
            EkPublic::Ecc { x, y } => {
                let curve = if x.len() > 32 {
                    "secp384r1"
                } else {
                    "secp256r1"
                };
                let (x, y) = (hex::encode(x), hex::encode(y));
                EkPublicKey::from_swtpm(&format!("x={x},y={y},id={curve}"))
            }
        }
        .map_err(|error| error.to_string())?;
        let mut serial = [0; 16];
        rand::fill(&mut serial).map_err(|_| "the system gives no random numbers".to_owned())?;
        self.authority
            .issue_ek(
                &key,
                &TpmIdentity::default(),
                RandomSerial::new(serial),
                OffsetDateTime::now_utc(),
            )
            .map_err(|error| chain(&error))
    }
}

/// The first certificate of a PEM chain: the rest of the text, and its DER.
fn first_certificate(pem: &str) -> Option<(&str, Vec<u8>)> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let (_, rest) = pem.split_once(BEGIN)?;
    let (body, rest) = rest.split_once(END)?;
    let compact: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    Some((rest, STANDARD.decode(compact).ok()?))
}

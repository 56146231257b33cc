//! What a host of a simulated fleet seals with: a real guardian and a real EK authority.
//!
//! A host of a fleet that was prepared with real protectors has them. Others, and those of tests, have texts in the place of
//! key protectors that nothing opens.

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_model::guardian::GuardianFacts;
use fleetward_model::{GuardianId, KeyId, VmId};
use fleetward_protector::ek::{EkAuthority, EkPublicKey, RandomSerial, TpmIdentity};
use fleetward_protector::{ExpiredAllowed, Guardian, KeyProtector};
use fleetward_protector_open::{LocalGuardian, Rewrap, SealRequest, TpmKey, open, rewrap, seal};
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;

/// Bytes of an EK's modulus: RSA 2048, as swtpm makes them.
const MODULUS: usize = 256;

/// A host's guardian, and what it issues EK certificates with.
#[derive(Debug)]
pub struct Custody {
    own: LocalGuardian,
    ek: EkAuthority<KeyPair>,
}

/// The custody of one TPM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedTpm {
    /// Base64 of the DER.
    pub key_protector: String,
    pub key_id: KeyId,
    /// Base64 of the DER.
    pub ek_certificate: String,
}

impl Custody {
    /// # Errors
    /// The EK authority's certificate, PEM, is not of this key.
    pub fn new(own: LocalGuardian, ek_certificate: &str, ek_key: KeyPair) -> Result<Self> {
        let certificate = CertificateDer::from_pem_slice(ek_certificate.as_bytes())
            .context("the EK certificate of a host")?;
        let ek = EkAuthority::new(&certificate, ek_key)?;
        Ok(Self { own, ek })
    }

    pub fn own(&self) -> &GuardianId {
        self.own.id()
    }

    /// A new TPM of a VM: a key of its own, sealed for this host and `recipients`, and its EK certificate.
    pub fn make(&self, vm: VmId, recipients: &[Guardian]) -> Result<SealedTpm> {
        let key = EkPublicKey::from_rsa_modulus(&modulus(vm))?;
        let serial = RandomSerial::new(Uuid::new_v4().into_bytes());
        let identity = TpmIdentity::default();
        let ek = (self.ek).issue_ek(&key, &identity, serial, OffsetDateTime::now_utc())?;
        Ok(SealedTpm {
            ek_certificate: STANDARD.encode(ek),
            ..self.seal(vm, recipients)?
        })
    }

    /// A new key for a VM's TPM, with no EK certificate.
    pub fn seal(&self, vm: VmId, recipients: &[Guardian]) -> Result<SealedTpm> {
        let key_id = KeyId(Uuid::new_v4());
        let request = SealRequest {
            vm_id: vm,
            key_id,
            tpm_key: &TpmKey::generate()?,
            owner: &self.own,
            recipients,
            now: OffsetDateTime::now_utc(),
            expired: &ExpiredAllowed::none(),
        };
        Ok(SealedTpm {
            key_protector: seal(&request)?.to_base64(),
            key_id,
            ek_certificate: String::new(),
        })
    }

    /// Whether this host opens it.
    pub fn opens(&self, vm: VmId, protector: &str) -> bool {
        let protector = KeyProtector::from_base64(protector);
        protector.is_ok_and(|protector| open(&protector, vm, &self.own).is_ok())
    }

    /// The same key for others too, and for some no more.
    pub fn rewrap(
        &self,
        vm: VmId,
        protector: &str,
        add: &[Guardian],
        drop: &[GuardianId],
    ) -> Result<KeyProtector> {
        let change = Rewrap {
            opener: &self.own,
            owner: &self.own,
            add,
            drop,
            now: OffsetDateTime::now_utc(),
            expired: &ExpiredAllowed::none(),
        };
        Ok(rewrap(&KeyProtector::from_base64(protector)?, vm, &change)?)
    }
}

/// Guardians as they are told.
pub fn guardians<'f>(facts: impl IntoIterator<Item = &'f GuardianFacts>) -> Result<Vec<Guardian>> {
    let guardians = facts.into_iter().map(Guardian::from_facts);
    let guardians: Result<_, _> = guardians.collect();
    guardians.context("a guardian that cannot be read")
}

/// The public half of the EK of that VM's TPM. Nobody has a private one.
fn modulus(vm: VmId) -> Vec<u8> {
    let blocks = (0..MODULUS.div_ceil(32)).flat_map(|block| {
        let mut digest = Sha256::new();
        digest.update(vm.0.as_bytes());
        digest.update([block as u8]);
        digest.finalize()
    });
    let mut modulus: Vec<u8> = blocks.collect();
    // As long as it is said to be, and odd.
    modulus[0] |= 0x80;
    modulus[MODULUS - 1] |= 1;
    modulus
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guardians::Guardians;
    use fleetward_link::{EkRoot, FleetAuthority};
    use fleetward_protector::ek::EkCertificate;

    fn guardian(host: &str) -> LocalGuardian {
        let host = host.parse().expect("name");
        Guardians::Own.make(&host).expect("a guardian")
    }

    #[test]
    fn what_it_seals_opens_for_whom_it_was_sealed_and_its_ek_certificate_is_of_the_fleet() {
        let directory = tempfile::tempdir().expect("directory");
        let now = OffsetDateTime::now_utc();
        let fleet = FleetAuthority::open(directory.path(), now).expect("authority");
        let root = EkRoot::open(directory.path(), fleet.fleet(), now).expect("EK root");
        let key = KeyPair::generate().expect("key");
        let csr = rcgen::CertificateParams::default().serialize_request(&key);
        let csr = csr.expect("request").pem().expect("PEM");
        let host = "a".parse().expect("name");
        let issued = root.issue_host_authority(&csr, &host, now).expect("issued");
        let pem = fleetward_link::certificate_pem(&issued);
        let [a, b, c] = ["a", "b", "c"].map(guardian);
        let custody = Custody::new(a, &pem, key).expect("custody");
        let vm = VmId(Uuid::from_u128(7));
        let made = custody.make(vm, &[b.public().clone()]).expect("made");
        let ek = STANDARD.decode(&made.ek_certificate).expect("base64");
        EkCertificate::read(&ek).expect("an EK certificate");

        let sealed = KeyProtector::from_base64(&made.key_protector).expect("a key protector");
        let key = open(&sealed, vm, &b).expect("it was sealed for b").tpm_key;
        open(&sealed, vm, &c).expect_err("it was not sealed for c");
        let add = [c.public().clone()];
        let drop = [b.id().clone()];
        let changed = custody.rewrap(vm, &made.key_protector, &add, &drop);
        let changed = changed.expect("wrapped");
        assert!(open(&changed, vm, &c).expect("for c").tpm_key.same_as(&key));
        open(&changed, vm, &b).expect_err("for b no more");
    }
}

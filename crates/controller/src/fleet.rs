//! The fleet's keys: issuing certificates and endorsing guardians.
//!
//! Holds the authority, the EK root, the controller's own certificate and the list of refused ones. Callers check who may request a certificate.

use crate::certificates::Certificates;
use crate::ek::Eks;
use crate::owners::Owners;
use crate::tokens::utc;
use anyhow::Context;
use fleetward_link::authority::MEMBER_LIFETIME;
use fleetward_link::{
    AuthorityError, Credential, EkRoot, FleetAuthority, FleetTrust, Identity, KeyRequest,
    LiveCredential, Validity,
};
use fleetward_model::certificate::authority_finding;
use fleetward_model::error::Finding;
use fleetward_model::guardian::{EndorsedGuardian, GuardianFacts};
use fleetward_model::{ErrorCode, Failure, GroupName, HostName};
use fleetward_protector::ek::{AT_ANY_TIME, EkCertificate, Revocation, verify_chain};
use fleetward_protector::key_protector::SigningFailed;
use fleetward_protector::{Endorsement, EndorsementStatement, Guardian, KnownOwners};
use sha2::{Digest, Sha256};
use std::path::Path;
use time::{Duration, OffsetDateTime};

/// How long the authority's word for a guardian counts: it is given anew for each use.
const ENDORSEMENT_LIFETIME: Duration = Duration::days(1);

/// No clock that is right says less: this program was written later. A fleet that is made under such a clock would end
/// early.
const WRITTEN: OffsetDateTime = time::macros::datetime!(2026-11-01 00:00 UTC);

/// The keys of the fleet.
#[derive(Debug)]
pub(crate) struct Fleet {
    authority: FleetAuthority,
    ek_root: EkRoot,
    own: LiveCredential,
    /// Which certificates are refused before their end.
    pub(crate) certificates: Certificates,
    /// Whose signature on a key protector counts besides that of members.
    pub(crate) owners: Owners,
    /// Which EK certificates go with the fleet's TPMs.
    pub(crate) eks: Eks,
}

impl Fleet {
    /// Opens the authority in `dir`, making a new fleet where there is none.
    pub(crate) fn open(dir: &Path, now: OffsetDateTime) -> anyhow::Result<Self> {
        if now < WRITTEN && !FleetAuthority::is_in(dir) {
            return Err(Failure::new(ErrorCode::ClocksApart, "no fleet is made with this clock")
                .because(format!(
                    "it says {}, and this program was written after {}; the fleet's certificates would end that much too early",
                    utc(now),
                    utc(WRITTEN)
                ))
                .fix("set the clock (chrony or systemd-timesyncd), and start the controller again")
                .into());
        }
        let authority =
            FleetAuthority::open(dir, now).context("cannot open the fleet's authority")?;
        let ek_root = EkRoot::open(dir, authority.fleet(), now)
            .context("cannot open the root of the fleet's TPM certificates")?;
        let own = own_credential(&authority, now).map_err(|error| {
            let begins = authority.validity().not_before;
            match now < begins {
                true => behind(begins, now).into(),
                false => error,
            }
        })?;
        let own = LiveCredential::new(own);
        Ok(Self {
            authority,
            ek_root,
            own,
            certificates: Certificates::open(dir)?,
            owners: Owners::open(dir)?,
            eks: Eks::open(dir)?,
        })
    }

    /// When the authority ends.
    pub(crate) fn ends(&self) -> OffsetDateTime {
        self.authority.validity().not_after
    }

    /// What is to be known of the authority's end, or of its beginning.
    pub(crate) fn finding(&self, now: OffsetDateTime) -> Option<Finding> {
        let Validity {
            not_before,
            not_after,
        } = self.authority.validity();
        authority_finding(not_before, not_after, now)
    }

    /// Gives the controller a new certificate; the old one's key is forgotten with it.
    pub(crate) fn renew(&self, now: OffsetDateTime) -> anyhow::Result<()> {
        self.own.replace(own_credential(&self.authority, now)?);
        Ok(())
    }

    pub(crate) fn trust(&self) -> &FleetTrust {
        self.authority.trust()
    }

    pub(crate) fn credential(&self) -> &LiveCredential {
        &self.own
    }

    pub(crate) fn id(&self) -> String {
        self.authority.fleet().to_string()
    }

    pub(crate) fn ek_root_pem(&self) -> String {
        self.ek_root.certificate_pem()
    }

    /// A certificate for a member, PEM: its own, then the authority's.
    pub(crate) fn certify(
        &self,
        csr: &str,
        member: &Identity,
        now: OffsetDateTime,
    ) -> Result<String, Failure> {
        let validity = self.certificates.validity(member, now);
        let issued = self.authority.issue(csr, member, validity);
        issued.map_err(|error| refused("the certificate request", &error))
    }

    /// A host's authority for the certificates of its TPMs, DER.
    pub(crate) fn certify_ek_authority(
        &self,
        csr: &str,
        host: &HostName,
        now: OffsetDateTime,
    ) -> Result<Vec<u8>, Failure> {
        let issued = self.ek_root.issue_host_authority(csr, host, now);
        issued.map_err(|error| refused("the request for a TPM authority", &error))
    }

    /// Whether the EK root has issued this, a host's EK authority in DER.
    pub(crate) fn has_issued_ek_authority(&self, authority: &[u8]) -> bool {
        self.ek_root.has_issued(authority)
    }

    /// The EK root's certificate, DER.
    pub(crate) fn ek_root(&self) -> &[u8] {
        self.ek_root.certificate()
    }

    /// SHA-256, hex, of the host's authority that issued this EK certificate, DER; none where no signature holds.
    pub(crate) fn ek_authority_of(&self, ek: &[u8]) -> Option<String> {
        let read = EkCertificate::read(ek).ok()?;
        let mut issuers = self.eks.issuers(&read).into_iter();
        let issuer = issuers.find(|der| {
            verify_chain(
                ek,
                &[der.as_slice()],
                self.ek_root.certificate(),
                AT_ANY_TIME,
            )
            .is_ok()
        })?;
        Some(hex::encode(Sha256::digest(issuer)))
    }

    /// The list of revoked EK certificates, DER, and how many it names.
    pub(crate) fn ek_revocation_list(
        &self,
        now: OffsetDateTime,
    ) -> Result<(Vec<u8>, usize), Failure> {
        let revoked: Vec<_> = self
            .eks
            .all_revoked()
            .into_iter()
            .filter_map(|(der, at)| Revocation::of(&der, at).ok())
            .collect();
        let list = self.ek_root.revocation_list(&revoked, now);
        let list = list.map_err(|error| refused("the list of revoked EK certificates", &error))?;
        Ok((list, revoked.len()))
    }

    /// The authority's word for those who may own key protectors.
    pub(crate) fn vouch_for_owners(&self, owners: &KnownOwners) -> Result<String, Failure> {
        let sign = |bytes: &[u8]| self.authority.sign(bytes).map_err(|_| SigningFailed);
        owners.sign(sign).map_err(|error| {
            let what = "the list of those who may own key protectors cannot be signed";
            Failure::new(ErrorCode::Internal, what).because(error)
        })
    }

    /// The authority's word that `guardian` belongs to `host` of `group`.
    pub(crate) fn endorse(
        &self,
        guardian: &GuardianFacts,
        host: &HostName,
        group: &GroupName,
        now: OffsetDateTime,
    ) -> Result<EndorsedGuardian, Failure> {
        let parsed = Guardian::from_facts(guardian).map_err(|error| {
            Failure::new(
                ErrorCode::InvalidRequest,
                format!("the guardian of host {host} cannot be used"),
            )
            .because(error)
        })?;
        let until = now + ENDORSEMENT_LIFETIME;
        let statement = EndorsementStatement::new(&parsed, host.clone(), group.clone(), now, until);
        let sign = |bytes: &[u8]| self.authority.sign(bytes).map_err(|_| SigningFailed);
        let endorsement = Endorsement::sign(statement, sign).map_err(|error| {
            Failure::new(
                ErrorCode::Internal,
                format!("the guardian of host {host} cannot be endorsed"),
            )
            .because(error)
        })?;
        Ok(EndorsedGuardian {
            guardian: guardian.clone(),
            group: group.clone(),
            endorsement: endorsement.text().to_owned(),
        })
    }
}

/// The fleet is younger than that: no host would believe a certificate of this moment.
fn behind(begins: OffsetDateTime, now: OffsetDateTime) -> Failure {
    let what = "the controller does not start with this clock";
    Failure::new(ErrorCode::ClocksApart, what)
        .because(format!(
            "it says {}, and the fleet's certificate authority begins at {}: it is behind, or was ahead when the fleet was made",
            utc(now),
            utc(begins)
        ))
        .fix("set the clock (chrony or systemd-timesyncd), and start the controller again; VMs run on meanwhile")
}

/// The controller's key is made at each start and lies nowhere.
fn own_credential(authority: &FleetAuthority, now: OffsetDateTime) -> anyhow::Result<Credential> {
    let request = KeyRequest::generate()?;
    let validity = Validity::starting(now, MEMBER_LIFETIME);
    let chain = authority.issue(request.csr_pem(), &Identity::Controller, validity)?;
    Ok(request.into_credential(&chain)?)
}

fn refused(what: &str, error: &AuthorityError) -> Failure {
    Failure::new(
        ErrorCode::InvalidRequest,
        format!("{what} cannot be answered"),
    )
    .because(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2026-11-28 09:00 UTC);

    #[test]
    fn no_fleet_is_made_under_a_clock_of_2010_but_one_that_is_there_goes_on() {
        let then = datetime!(2010-01-01 00:00 UTC);
        let dir = tempfile::tempdir().expect("directory");
        let refused = Fleet::open(dir.path(), then).expect_err("refused");
        let failure = refused.downcast_ref::<Failure>().expect("a failure");
        assert_eq!(failure.code, ErrorCode::ClocksApart);
        assert!(failure.because.contains("2010-01-01"), "{failure}");
        assert_eq!(std::fs::read_dir(dir.path()).expect("directory").count(), 0);

        // Made by an earlier version, under that clock: it works until its end, also once the clock is right.
        FleetAuthority::open(dir.path(), then).expect("authority");
        for now in [then, datetime!(2026-11-27 09:00 UTC)] {
            Fleet::open(dir.path(), now).expect("the fleet");
        }
        let over = Fleet::open(dir.path(), datetime!(2031-01-01 00:00 UTC));
        let said = format!("{:#}", over.expect_err("refused"));
        assert!(said.contains("2029-12-27"), "{said}");
    }

    #[test]
    fn a_fleet_is_not_opened_before_it_was_made_and_both_times_are_told() {
        let dir = tempfile::tempdir().expect("directory");
        FleetAuthority::open(dir.path(), NOW).expect("authority");
        let refused = Fleet::open(dir.path(), datetime!(2010-01-01 00:00 UTC));
        let refused = refused.expect_err("refused");
        let failure = refused.downcast_ref::<Failure>().expect("a failure");
        assert_eq!(failure.code, ErrorCode::ClocksApart);
        for time in ["2010-01-01T00:00:00Z", "2026-11-27T09:00:00Z"] {
            assert!(failure.because.contains(time), "{failure}");
        }
        Fleet::open(dir.path(), NOW).expect("the fleet is as it was");
    }

    /// A controller is started under such a clock, and the clock is set while it runs.
    #[test]
    fn a_clock_of_2040_that_is_set_leaves_a_certificate_that_is_good_now() {
        let dir = tempfile::tempdir().expect("directory");
        let authority = FleetAuthority::open(dir.path(), NOW).expect("authority");
        let ahead = datetime!(2040-01-01 00:00 UTC);
        let fleet = Fleet::open(dir.path(), ahead).expect("the fleet");
        let same = authority.validity().not_after;
        assert_eq!(fleet.ends(), same, "the same fleet");
        crate::certificates::keep_own(&fleet, NOW);
        let own = fleet.credential().current();
        let facts = own.facts();
        assert!(facts.not_before <= NOW && !facts.is_due(NOW), "{facts:?}");
    }
}

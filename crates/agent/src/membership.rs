//! The membership of this host in its fleet, as `join` stored it: name, certificate, pinned authority, EK authority.
//!
//! `member.json` is written last, so a host has either joined completely or not at all.

use crate::ek::EkCertifier;
use crate::layout::Layout;
use fleetward_durable::{self as durable, Access};
use fleetward_link::{Credential, CredentialError, FleetTrust, TrustError};
use fleetward_model::{GroupName, HostName};
use fleetward_protector::{AuthorityKey, EndorsementError};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::PathBuf;
use zeroize::Zeroizing;

/// The result of `join`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Member {
    pub host: HostName,
    pub group: GroupName,
    /// The fleet's id.
    pub fleet: String,
    /// `address:port` of the controller that was joined.
    pub controller: String,
    /// `address:port` under which this host was announced.
    pub address: String,
}

/// The files of the membership.
#[derive(Debug, Clone)]
pub struct MembershipFiles {
    directory: PathBuf,
}

/// Everything a running agent needs of its membership.
#[derive(Debug)]
pub struct Membership {
    pub member: Member,
    pub credential: Credential,
    pub trust: FleetTrust,
    /// The authority's key, for endorsements.
    pub authority: AuthorityKey,
    pub ek: EkCertifier,
}

/// Why there is no membership.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    #[error("this host has not joined a fleet; join it with fleetward-agent join and a join token")]
    NotJoined,
    #[error("cannot read or write the membership file {path}")]
    File { path: PathBuf, source: io::Error },
    #[error("the host's certificate cannot be used")]
    Credential(#[from] CredentialError),
    #[error("the pinned authority cannot be used")]
    Trust(#[from] TrustError),
    #[error("the pinned authority cannot endorse")]
    Authority(#[from] EndorsementError),
    #[error("the host's EK authority cannot be used: {0}")]
    Ek(String),
}

impl MembershipFiles {
    pub fn new(layout: &Layout) -> Self {
        Self {
            directory: layout.identity(),
        }
    }

    /// The host's certificate and its key.
    pub(crate) fn credential(&self) -> PathBuf {
        self.directory.join("host.pem")
    }

    /// The authority that was pinned at the join.
    pub(crate) fn trust(&self) -> Result<FleetTrust, MembershipError> {
        Ok(FleetTrust::load(&self.directory.join("authority.pem"))?)
    }

    /// Puts another certificate in the place of the host's, then what else is new.
    pub(crate) fn renew(
        &self,
        member: &Member,
        credential: &Credential,
    ) -> Result<(), MembershipError> {
        credential.store(&self.credential())?;
        self.write_member(member)
    }

    /// Whether this host has joined.
    pub fn member(&self) -> Result<Option<Member>, MembershipError> {
        let path = self.directory.join("member.json");
        durable::read_json(&path).map_err(|source| MembershipError::File { path, source })
    }

    /// Loads everything.
    pub fn load(&self) -> Result<Membership, MembershipError> {
        let member = self.member()?.ok_or(MembershipError::NotJoined)?;
        let trust = self.trust()?;
        let authority = AuthorityKey::from_certificate(trust.certificate())?;
        Ok(Membership {
            credential: Credential::load(&self.credential())?,
            ek: EkCertifier::from_pem(
                &self.read_text("ek-authority.pem")?,
                &self.read_text("ek-authority.key")?,
            )?,
            trust,
            authority,
            member,
        })
    }

    /// Stores a new membership, `member.json` last.
    pub(crate) fn store(
        &self,
        member: &Member,
        credential: &Credential,
        trust: &FleetTrust,
        ek_chain_pem: &str,
        ek_key_pem: &Zeroizing<String>,
    ) -> Result<(), MembershipError> {
        // Proves that what came back fits together before any of it is believed.
        EkCertifier::from_pem(ek_chain_pem, ek_key_pem)?;
        credential.store(&self.credential())?;
        let path = self.directory.join("authority.pem");
        trust
            .store(&path)
            .map_err(|source| MembershipError::File { path, source })?;
        self.write("ek-authority.pem", ek_chain_pem.as_bytes())?;
        self.write("ek-authority.key", ek_key_pem.as_bytes())?;
        self.write_member(member)
    }

    fn write_member(&self, member: &Member) -> Result<(), MembershipError> {
        let json = serde_json::to_vec_pretty(member).expect("plain fields are JSON");
        self.write("member.json", &json)
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<(), MembershipError> {
        let path = self.directory.join(name);
        durable::replace(&path, content, Access::PRIVATE)
            .map_err(|source| MembershipError::File { path, source })
    }

    fn read_text(&self, name: &str) -> Result<Zeroizing<String>, MembershipError> {
        let path = self.directory.join(name);
        std::fs::read_to_string(&path)
            .map(Zeroizing::new)
            .map_err(|source| MembershipError::File { path, source })
    }
}

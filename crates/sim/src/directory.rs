//! What `prepare` leaves for `agents` and `measure`: the plan, and each host's place in the fleet.
//!
//! ```text
//!   DIR/fleet.json          the plan, and how its guardians were made
//!   DIR/authority.crt       the certificate of the fleet's authority
//!   DIR/hosts/NAME.pem      a host's certificate and key, mode 0600
//!   DIR/hosts/NAME.json     the public rest; written last: without it the host has not joined
//!
//! with real protectors also
//!   DIR/hosts/NAME.guardian the guardian's private keys, mode 0600
//!   DIR/hosts/NAME.ek.pem   the key of the host's EK authority, mode 0600
//!   DIR/hosts/NAME.tpms     the key protectors and EK certificates of its VMs, in their order
//! ```

use crate::custody::{Custody, SealedTpm};
use crate::plan::FleetPlan;
use anyhow::{Context, Result, bail};
use fleetward_durable::{self as durable, Access};
use fleetward_link::{Credential, FleetTrust};
use fleetward_model::GroupName;
use fleetward_model::guardian::GuardianFacts;
use fleetward_protector_open::LocalGuardian;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Endings of files that are there with real protectors.
const GUARDIAN: &str = "guardian";
const EK: &str = "ek.pem";
const TPMS: &str = "tpms";

/// The directory of a simulated fleet.
#[derive(Debug, Clone)]
pub struct Directory(PathBuf);

/// What the directory says of the fleet as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fleet {
    pub plan: FleetPlan,
    /// All guardians have the same pair of keys: any host opens what is wrapped for any other.
    pub shared_guardian: bool,
    #[serde(default)]
    pub protectors: Protectors,
}

/// What the key protectors of a fleet's VMs are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Protectors {
    /// Sealed when the controller asks for a copy of a TPM, for nobody who could open them
    #[default]
    Sized,
    /// Sealed for the hosts of the group, which open them; with EK certificates and 528 KiB of UEFI variables
    Real,
}

/// A host that has joined.
#[derive(Debug)]
pub struct Member {
    pub credential: Credential,
    pub public: MemberPublic,
    /// Of a host with real protectors.
    pub secrets: Option<Secrets>,
}

/// What a host seals with.
#[derive(Debug)]
pub struct Secrets {
    pub guardian: LocalGuardian,
    /// The key of its EK authority.
    pub ek: rcgen::KeyPair,
}

/// What of a host is no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberPublic {
    pub group: GroupName,
    pub guardian: GuardianFacts,
    /// Its EK authority's certificate, PEM.
    pub ek_certificate: String,
}

impl Directory {
    /// Makes the directory, or takes the one that an earlier `prepare` of the same fleet has begun.
    pub fn begin(path: &Path, fleet: &Fleet) -> Result<Self> {
        let directory = Self(path.to_owned());
        let cannot = || format!("cannot make {}", path.display());
        durable::ensure_directory(&directory.0.join("hosts"), 0o700).with_context(cannot)?;
        if let Some(begun) = directory.read_fleet()?
            && begun != *fleet
        {
            bail!(
                "{} holds another fleet: {} hosts of {} VMs, seed {}. Give the same plan, or another directory",
                path.display(),
                begun.plan.hosts,
                begun.plan.vms,
                begun.plan.random_seed,
            );
        }
        durable::replace_json(&directory.0.join("fleet.json"), fleet, Access::PUBLIC)
            .with_context(cannot)?;
        Ok(directory)
    }

    /// A directory that `prepare` has made, and what it says.
    pub fn open(path: &Path) -> Result<(Self, Fleet)> {
        let directory = Self(path.to_owned());
        let fleet = directory.read_fleet()?.with_context(|| {
            let path = path.display();
            format!("{path} holds no simulated fleet; fleetward-sim prepare --dir {path} makes one")
        })?;
        Ok((directory, fleet))
    }

    fn read_fleet(&self) -> Result<Option<Fleet>> {
        let path = self.0.join("fleet.json");
        durable::read_json(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// The authority whose members the hosts are.
    pub fn trust(&self) -> Result<FleetTrust> {
        let path = self.authority();
        FleetTrust::load(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Keeps the authority's certificate. Hosts of two fleets do not share a directory.
    pub fn keep_authority(&self, pem: &str) -> Result<()> {
        let path = self.authority();
        let kept = durable::create(&path, pem.as_bytes(), Access::PUBLIC)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let known = std::fs::read_to_string(&path)?;
        if !kept && known != pem {
            bail!(
                "{} is of another fleet than the controller's",
                path.display()
            );
        }
        Ok(())
    }

    fn authority(&self) -> PathBuf {
        self.0.join("authority.crt")
    }

    fn file(&self, plan: &FleetPlan, host: u32, ending: &str) -> PathBuf {
        self.0
            .join("hosts")
            .join(format!("{}.{ending}", plan.host(host)))
    }

    /// Whether a host has joined.
    pub fn has(&self, plan: &FleetPlan, host: u32) -> bool {
        self.file(plan, host, "json").exists()
    }

    pub fn keep(&self, plan: &FleetPlan, host: u32, member: &Member) -> Result<()> {
        let cannot = || format!("cannot keep host {}", plan.host(host));
        let (secret, public) = (self.file(plan, host, "pem"), self.file(plan, host, "json"));
        member.credential.store(&secret).with_context(cannot)?;
        if let Some(Secrets { guardian, ek }) = &member.secrets {
            let (pair, pem) = (guardian.to_storage(None)?, ek.serialize_pem());
            for (ending, content) in [(GUARDIAN, &pair[..]), (EK, pem.as_bytes())] {
                let path = self.file(plan, host, ending);
                durable::replace(&path, content, Access::PRIVATE).with_context(cannot)?;
            }
        }
        durable::replace_json(&public, &member.public, Access::PUBLIC).with_context(cannot)
    }

    pub fn member(&self, plan: &FleetPlan, host: u32) -> Result<Member> {
        let missing = || {
            format!(
                "host {} has not joined; repeat the same prepare",
                plan.host(host)
            )
        };
        let public = durable::read_json(&self.file(plan, host, "json"))
            .with_context(missing)?
            .with_context(missing)?;
        let credential = Credential::load(&self.file(plan, host, "pem")).with_context(missing)?;
        let read = |ending| durable::read(&self.file(plan, host, ending));
        let secrets = match (read(GUARDIAN)?, read(EK)?) {
            (Some(guardian), Some(ek)) => Some(Secrets {
                guardian: LocalGuardian::from_storage(&guardian, None)?,
                ek: rcgen::KeyPair::from_pem(&String::from_utf8(ek)?)?,
            }),
            _ => None,
        };
        Ok(Member {
            credential,
            public,
            secrets,
        })
    }

    /// The TPMs of a host's VMs, in the order of the plan; none where they are not sealed yet.
    pub fn tpms(&self, plan: &FleetPlan, host: u32) -> Result<Option<Vec<SealedTpm>>> {
        let path = self.file(plan, host, TPMS);
        durable::read_json(&path).with_context(|| format!("cannot read {}", path.display()))
    }

    pub fn keep_tpms(&self, plan: &FleetPlan, host: u32, tpms: &[SealedTpm]) -> Result<()> {
        let path = self.file(plan, host, TPMS);
        durable::replace_json(&path, &tpms, Access::PUBLIC)
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Secrets {
    /// What the host with this public rest seals with.
    pub fn custody(self, public: &MemberPublic) -> Result<Custody> {
        Custody::new(self.guardian, &public.ek_certificate, self.ek)
    }
}

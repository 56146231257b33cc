//! Wraps a VM's key for guardians of hosts that do not exist: certificates only, endorsed with the fleet's own authority.
//! All share one pair of RSA keys, which takes a second to make.
//!
//! Agents talk to the controller alone, so this is a controller for the time of a request. It runs in the lab's controller
//! node, from where hosts can be reached: the suite starts its own program there.

use anyhow::{Context, Result, bail};
use fleetward_api::agent::{
    KeyRewrap, OPERATIONS, OperationLine, OperationRequest, RewrapReason, operation,
};
use fleetward_e2e::fleet::Fleet;
use fleetward_link::{
    Client, ClientTls, FleetAuthority, Identity, KeyRequest, LiveCredential, Validity, authority,
};
use fleetward_model::guardian::{CertificateRole, EndorsedGuardian};
use fleetward_model::{GroupName, HostName, JobId};
use fleetward_protector::guardian::subject_common_name;
use fleetward_protector::key_protector::SigningFailed;
use fleetward_protector::{Endorsement, EndorsementStatement, Guardian};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, RsaKeySize,
    SerialNumber,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::process::ExitCode;
use time::{Duration, OffsetDateTime};

/// Set in the process that is to do it.
const VARIABLE: &str = "FLEETWARD_E2E_WRAP";
/// A request has at most a mebibyte; a guardian takes five kibibytes of it.
const AT_ONCE: usize = 63;

/// What is to be wrapped, and for how many.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// The controller's data directory.
    pub(crate) data: PathBuf,
    pub(crate) host: String,
    /// Of the host's agent.
    pub(crate) address: String,
    pub(crate) vm: String,
    /// The file in which the host keeps the VM's newest generation.
    pub(crate) generation: PathBuf,
    /// How many guardians.
    pub(crate) more: usize,
}

impl Order {
    pub(crate) fn of_environment() -> Option<Self> {
        let text = std::env::var(VARIABLE).ok()?;
        Some(serde_json::from_str(&text).expect("the suite wrote it"))
    }

    /// Has it carried out in the controller's node.
    pub(crate) fn give(&self, fleet: &Fleet) -> Result<()> {
        let order = format!("{VARIABLE}={}", serde_json::to_string(self)?);
        let own = std::env::current_exe()?;
        let own = own.to_str().context("a path in UTF-8")?;
        fleet.exec("controller", &["env", &order, own])?.ok()?;
        Ok(())
    }
}

pub(crate) fn carry_out(order: &Order) -> ExitCode {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    match runtime.block_on(wrap(order)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn wrap(order: &Order) -> Result<()> {
    let now = OffsetDateTime::now_utc();
    let authority = FleetAuthority::open(&order.data, now)?;
    let request = KeyRequest::generate()?;
    let validity = Validity::starting(now, authority::MEMBER_LIFETIME);
    let chain = authority.issue(request.csr_pem(), &Identity::Controller, validity)?;
    let credential = LiveCredential::new(request.into_credential(&chain)?);
    let host: HostName = order.host.parse().map_err(anyhow::Error::msg)?;
    let tls = ClientTls::member(credential, authority.trust().clone(), Identity::Host(host));
    let client = Client::tls(&order.address, tls);

    let guardians = make_guardians(&authority, order.more, now)?;
    for add in guardians.chunks(AT_ONCE) {
        let request = OperationRequest {
            owners: None,
            ek: None,
            job: JobId(uuid::Uuid::new_v4()),
            generation: std::fs::read_to_string(&order.generation)?.trim().parse()?,
            vm: order.vm.parse().map_err(anyhow::Error::msg)?,
            operation: operation::Rewrap {
                change: KeyRewrap {
                    add: add.to_vec(),
                    drop: Vec::new(),
                    expired: Vec::new(),
                    former: Vec::new(),
                    why: RewrapReason::Granted,
                },
            }
            .into(),
        };
        let response = client
            .request(http::Method::POST, OPERATIONS)
            .json(&request)
            .send()
            .await?;
        let mut lines = response.lines();
        loop {
            match lines.next_json::<OperationLine>().await? {
                Some(OperationLine::Progress { .. }) => {}
                Some(OperationLine::Done { .. }) => break,
                Some(OperationLine::Failed { failure, .. }) => bail!("{failure}"),
                None => bail!("the answer has no end"),
            }
        }
    }
    Ok(())
}

fn make_guardians(
    authority: &FleetAuthority,
    count: usize,
    now: OffsetDateTime,
) -> Result<Vec<EndorsedGuardian>> {
    let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_3072)?;
    let group = GroupName::default();
    let make = |number: usize| -> Result<EndorsedGuardian> {
        let host: HostName = format!("more{number}")
            .parse()
            .map_err(anyhow::Error::msg)?;
        let der = |role, serial| certificate(&key, role, &host, serial, now);
        let serial = 2 * number as u64 + 1;
        let guardian = Guardian::from_der(
            &der(CertificateRole::Signing, serial)?,
            &der(CertificateRole::Encryption, serial + 1)?,
        )?;
        let end = now + Duration::days(1);
        let statement = EndorsementStatement::new(&guardian, host.clone(), group.clone(), now, end);
        let endorsement = Endorsement::sign(statement, |bytes| {
            authority.sign(bytes).map_err(|_| SigningFailed)
        })?;
        Ok(EndorsedGuardian {
            guardian: guardian.facts(host, false, false),
            group: group.clone(),
            endorsement: endorsement.text().to_owned(),
        })
    };
    (0..count).map(make).collect()
}

fn certificate(
    key: &KeyPair,
    role: CertificateRole,
    host: &HostName,
    serial: u64,
    now: OffsetDateTime,
) -> Result<Vec<u8>> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, subject_common_name(role, host));
    params.serial_number = Some(SerialNumber::from(serial));
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::days(3652);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = match role {
        CertificateRole::Signing => vec![KeyUsagePurpose::DigitalSignature],
        CertificateRole::Encryption => vec![
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::DataEncipherment,
        ],
    };
    Ok(params.self_signed(key)?.der().to_vec())
}

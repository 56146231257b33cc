//! Runs the agent: builds it, cleans up after a crash, serves until it is told to stop.

use crate::arrivals::ArrivalTunnels;
use crate::audit::AuditLog;
use crate::config::Config;
use crate::failure::chain;
use crate::host::{Host, Machinery};
use crate::keyring::{Keyring, KeyringError};
use crate::layout::Layout;
use crate::membership::{MembershipError, MembershipFiles};
use crate::operation::copy;
use crate::{boot, certificate, guest, load, observe, seeds, server, tpm_process, tpm_watch};
use fleetward_durable as durable;
use fleetward_link::{ClientCertificates, ServerTls, TlsServer};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("cannot prepare {path}")]
    Prepare { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Membership(#[from] MembershipError),
    #[error("the guardian store cannot be used")]
    Keyring(#[from] KeyringError),
    #[error("cannot listen on {address}")]
    Listen {
        address: std::net::SocketAddr,
        source: io::Error,
    },
    #[error("another agent uses {path}")]
    InUse { path: PathBuf },
    #[error("the server failed")]
    Serve(#[source] io::Error),
}

/// A running agent's address, and its end.
pub struct Agent {
    server: TlsServer,
    host: Arc<Host>,
    /// Held as long as the agent lives: two agents on one data directory would undo each other.
    _lock: durable::Lock,
}

impl Agent {
    /// Loads what `join` stored, cleans up after a crash, and listens.
    pub async fn open(config: Config, machinery: Machinery) -> Result<Self, RunError> {
        let layout = Layout::new(&config);
        layout.prepare().map_err(|source| RunError::Prepare {
            path: layout.data().to_owned(),
            source,
        })?;
        let lock = lock(&layout)?;
        let membership = MembershipFiles::new(&layout).load()?;
        let audit = Arc::new(AuditLog::new(
            layout.audit_log(),
            membership.member.host.clone(),
        ));
        let keyring = Keyring::open_with(
            &layout.guardians(),
            membership.member.host.clone(),
            audit.clone(),
            config.credential_file.as_deref(),
        )?;
        match keyring.seal_what_lies_in_clear() {
            Ok(0) => {}
            Ok(files) => tracing::info!(files, "private keys that lay in clear are encrypted now"),
            // VMs start all the same. What lies in clear is among the host's warnings.
            Err(error) => {
                tracing::error!(
                    error = chain(&error),
                    "the guardian store was not encrypted"
                );
            }
        }
        let address = config.listen;
        let refusals = certificate::refusals(&layout).map_err(|source| RunError::Prepare {
            path: layout.refused_certificates(),
            source,
        })?;
        let host = Host::new(config, membership, keyring, audit, refusals, machinery);
        let tls = ServerTls::new(
            host.credential.clone(),
            host.trust.clone(),
            ClientCertificates::Required,
        )
        .with_refusals(host.refusals.clone());
        let server = TlsServer::bind(address, tls)
            .await
            .map_err(|source| RunError::Listen { address, source })?
            .with_tunnels(Arc::new(ArrivalTunnels(Arc::downgrade(&host))));
        Ok(Self {
            server,
            host,
            _lock: lock,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<std::net::SocketAddr> {
        self.server.local_addr()
    }

    /// Serves until `stop`.
    pub async fn serve(self, stop: CancellationToken) -> Result<(), RunError> {
        let host = self.host;
        clean_up(&host).await;
        let watcher = tokio::spawn(observe::watch(host.clone(), stop.clone()));
        let tpms = tokio::spawn(tpm_watch::watch(host.clone(), stop.clone()));
        let processes = tokio::spawn(tpm_process::watch(host.clone(), stop.clone()));
        let boot = tokio::spawn(boot::bring_back(host.clone(), stop.clone()));
        let guests = tokio::spawn(guest::watch(host.clone(), stop.clone()));
        let load = tokio::spawn(load::watch(host.clone(), stop.clone()));
        let seeds = tokio::spawn(seeds::keep(host.clone(), stop.clone()));
        let certificate = tokio::spawn(certificate::watch(host.clone(), stop.clone()));
        let pool = {
            let (host, stop) = (host.clone(), stop.clone());
            tokio::spawn(async move { host.tpm_pool.keep_full(host.clone(), stop).await })
        };
        tracing::info!(
            host = %host.member.host, group = %host.member.group, listen = %host.config.listen,
            "the agent is at work"
        );
        let served = self.server.serve(server::router(host.clone()), stop).await;
        pool.abort();
        certificate.abort();
        watcher.abort();
        seeds.abort();
        tpms.abort();
        processes.abort();
        boot.abort();
        guests.abort();
        load.abort();
        served.map_err(RunError::Serve)
    }
}

/// Rests of an earlier process: half-made files, dead sockets, secrets that nobody needs. Domains are left alone; the
/// controller's jobs know what to do with them.
async fn clean_up(host: &Arc<Host>) {
    host.layout.sweep();
    host.images.clean();
    host.tpm_pool.clean();
    // Their processes died with the earlier agent.
    if let Err(error) =
        durable::remove_tree(&host.layout.conversions()).and_then(|()| host.layout.prepare())
    {
        tracing::warn!(%error, "files of earlier conversions stay");
    }
    if let Err(error) =
        durable::remove_tree(&host.layout.migrations()).and_then(|()| host.layout.prepare())
    {
        tracing::warn!(%error, "sockets of earlier migrations stay");
    }
    copy::settle_all(host).await;
    host.drop_unneeded_secrets().await;
}

fn lock(layout: &Layout) -> Result<durable::Lock, RunError> {
    let path = layout.data().join("agent.lock");
    match durable::try_lock(&path) {
        Ok(Ok(lock)) => Ok(lock),
        Ok(Err(_)) => Err(RunError::InUse { path }),
        Err(source) => Err(RunError::Prepare { path, source }),
    }
}

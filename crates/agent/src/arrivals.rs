//! Tunnels from other hosts: which channels the source of a migration may use on this host, and for how long.
//!
//! A tunnel is accepted only from the host for which an arrival was announced, only for that arrival's job, and only
//! while `transit.json` says that the copy on this host is incoming. The end of the arrival (commit or abandon) closes
//! its tunnels.

use crate::config::Config;
use crate::failure::{HypervisorResult, Result, Trouble};
use crate::host::Host;
use crate::keyring::{Purpose, parse_protector};
use crate::operation::incoming::{make_arrival_directory, remove_arrived};
use crate::record::{Incoming, TransitRecord, VmRecord};
use crate::transfer;
use async_trait::async_trait;
use fleetward_hypervisor::DomainState;
use fleetward_link::Identity;
use fleetward_link::tunnel::{IncomingTunnel, Traffic, TunnelError, TunnelHeader, TunnelService};
use fleetward_model::vm::VmMetadata;
use fleetward_model::{ErrorCode, Failure, JobId, VmId};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

/// The kind of all tunnels between agents.
const KIND: &str = "migration";

/// Where libvirt listens: one daemon for everything, or one for QEMU.
const LIBVIRT_SOCKETS: [&str; 2] = ["/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock"];

/// What a tunnel is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "use", rename_all = "snake_case")]
pub(crate) enum ChannelUse {
    /// Whether the destination is still there.
    Ping,
    /// Clears away what an earlier attempt left, and makes ready for the next.
    Arm,
    Libvirt,
    Memory,
    Disk,
    /// One file of a stopped VM.
    File {
        #[serde(flatten)]
        item: transfer::Item,
    },
    /// All files of a stopped VM have been sent.
    Complete {
        /// The VM's definition, without metadata. Older sources do not tell it, and older destinations do not read it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        definition: Option<String>,
    },
}

impl ChannelUse {
    /// Whether an arrival of a running VM, or of a stopped one, needs it. What is not needed is not open: the channel to
    /// libvirt least of all.
    fn is_for(&self, live: bool) -> bool {
        match self {
            Self::Ping => true,
            Self::Arm | Self::Libvirt | Self::Memory | Self::Disk => live,
            Self::File { .. } | Self::Complete { .. } => !live,
        }
    }
}

/// A tunnel's parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Channel {
    job: JobId,
    channel: ChannelUse,
}

impl Channel {
    pub(crate) fn new(job: JobId, channel: ChannelUse) -> Self {
        Self { job, channel }
    }

    /// The header that asks for it.
    pub(crate) fn header(&self, vm: VmId) -> TunnelHeader {
        let params = serde_json::to_value(self).expect("plain fields are JSON");
        TunnelHeader::new(KIND, vm.to_string()).with_params(params)
    }
}

/// The ends of all tunnels into arrivals.
#[derive(Debug, Default)]
pub(crate) struct Arrivals(Mutex<HashMap<VmId, CancellationToken>>);

impl Arrivals {
    fn token(&self, vm: VmId) -> CancellationToken {
        self.lock().entry(vm).or_default().clone()
    }

    /// Ends the tunnels of an arrival.
    pub(crate) fn close(&self, vm: VmId) {
        if let Some(token) = self.lock().remove(&vm) {
            token.cancel();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<VmId, CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Accepts tunnels for announced arrivals.
pub(crate) struct ArrivalTunnels(pub(crate) Weak<Host>);

#[async_trait]
impl TunnelService for ArrivalTunnels {
    async fn serve(&self, tunnel: IncomingTunnel) {
        let Some(host) = self.0.upgrade() else {
            return;
        };
        let from = tunnel.from.clone();
        match admit(&host, &tunnel) {
            Ok((vm, channel, incoming)) => {
                let end = host.arrivals.token(vm);
                let carried = tokio::select! {
                    () = end.cancelled() => return,
                    carried = carry(&host, tunnel, vm, &channel, *incoming) => carried,
                };
                if let Err(error) = carried {
                    tracing::info!(%vm, %from, error = &error as &dyn std::error::Error, "a tunnel ended badly");
                }
            }
            Err(trouble) => {
                tracing::warn!(%from, because = trouble.failure.because, "a tunnel was refused");
                refuse(tunnel, &trouble).await;
            }
        }
    }
}

/// Whether a tunnel belongs to an arrival that is under way.
fn admit(host: &Host, tunnel: &IncomingTunnel) -> Result<(VmId, ChannelUse, Box<Incoming>)> {
    let no = |because: &str| {
        Trouble::lasting(Failure::new(ErrorCode::CredentialsRefused, "the tunnel").because(because))
    };
    let Identity::Host(from) = &tunnel.from else {
        return Err(no("tunnels are for hosts"));
    };
    if tunnel.header.kind != KIND {
        return Err(no("there is no such tunnel"));
    }
    let vm: VmId = tunnel
        .header
        .session
        .parse()
        .map_err(|_| no("the session is no VM's id"))?;
    let channel: Channel = serde_json::from_value(tunnel.header.params.clone())
        .map_err(|_| no("its parameters cannot be read"))?;
    match host.record(vm).incoming()? {
        Some(incoming) if incoming.job == channel.job && incoming.from.host == *from => {
            if !channel.channel.is_for(incoming.live) {
                return Err(no(match incoming.live {
                    true => "the VM runs, and comes as memory",
                    false => "the VM is stopped, and comes as files",
                }));
            }
            Ok((vm, channel.channel, Box::new(incoming)))
        }
        Some(_) | None => Err(no(
            "no migration of that VM from that host is expected here",
        )),
    }
}

async fn carry(
    host: &Arc<Host>,
    tunnel: IncomingTunnel,
    vm: VmId,
    channel: &ChannelUse,
    incoming: Incoming,
) -> Result<(), TunnelError> {
    let socket = |name: &str| host.layout.migration(vm).join(name);
    let traffic = Traffic::default();
    let (qemu, _) = host.volumes.owner();
    match channel {
        ChannelUse::Ping => answer(tunnel, Ok(())).await,
        ChannelUse::Arm => {
            let armed = arm(host, vm, &incoming).await;
            answer(tunnel, armed).await
        }
        ChannelUse::Libvirt => {
            let owner = nix::unistd::geteuid().as_raw();
            let socket = libvirt_socket(&host.config);
            tunnel.forward_to_unix((&socket, owner), &traffic).await
        }
        ChannelUse::Memory => {
            let socket = socket("memory.sock");
            tunnel.forward_to_unix((&socket, qemu), &traffic).await
        }
        ChannelUse::Disk => {
            let socket = socket("disk.sock");
            tunnel.forward_to_unix((&socket, qemu), &traffic).await
        }
        ChannelUse::File { item } => transfer::receive(host, vm, item, &incoming, tunnel).await,
        ChannelUse::Complete { definition } => {
            let completed = complete(&host.record(vm), incoming, definition.clone());
            answer(tunnel, completed).await
        }
    }
}

/// Accepts a call that has nothing more to say, and waits until the caller has heard it.
async fn answer(tunnel: IncomingTunnel, result: Result<()>) -> Result<(), TunnelError> {
    match result {
        Ok(()) => {
            let mut tunnel = tunnel.accept().await.map_err(TunnelError::Stream)?;
            // The caller hangs up when it has read the answer; how it does so does not matter.
            let _ = tunnel.read(&mut [0]).await;
            Ok(())
        }
        Err(trouble) => {
            refuse(tunnel, &trouble).await;
            Ok(())
        }
    }
}

pub(crate) async fn refuse(tunnel: IncomingTunnel, trouble: &Trouble) {
    let failure = &trouble.failure;
    let message = format!("{}: {}", failure.what, failure.because);
    if let Err(error) = tunnel.refuse(failure.code.as_str(), &message).await {
        tracing::debug!(%error, "a refusal was not heard");
    }
}

/// Prepares for the memory. The source runs the VM, so a copy on this host is not the VM and is removed.
async fn arm(host: &Host, vm: VmId, incoming: &Incoming) -> Result<()> {
    if host.operations.is_busy(vm) {
        return Err(Failure::new(ErrorCode::VmBusy, format!("VM {vm}"))
            .because("an operation of it is under way at the destination")
            .into());
    }
    remove_arrived(host, vm).await?;
    make_arrival_directory(host, vm)?;
    load_secret(host, vm, &incoming.metadata, Some(incoming.job)).await
}

/// Loads a secret, for the first time or because libvirt has forgotten it.
async fn load_secret(
    host: &Host,
    vm: VmId,
    metadata: &VmMetadata,
    job: Option<JobId>,
) -> Result<()> {
    if !metadata.spec.tpm {
        return Ok(());
    }
    let text = metadata.key_protector.as_deref().unwrap_or_default();
    let purpose = match job {
        Some(_) => Purpose {
            actor: "controller".into(),
            reason: "the VM migrates to this host".into(),
            job,
        },
        None => Purpose {
            actor: "agent".into(),
            reason: "libvirt was restarted while the VM runs".into(),
            job,
        },
    };
    let secret = host
        .keyring
        .open_secret(&parse_protector(text, vm)?, vm, &purpose)?;
    host.hypervisor
        .load_secret(vm, &secret)
        .await
        .attempt(|| format!("loading the secret of VM {vm}"))
}

/// libvirt forgets ephemeral secrets when it restarts: VMs that run, and arrivals under way, get theirs again.
pub(crate) async fn load_secrets_again(host: &Host) {
    let (Ok(loaded), Ok(domains)) = (
        host.hypervisor.loaded_secrets().await,
        host.hypervisor.list().await,
    ) else {
        // Gone again; its next return brings us back here.
        return;
    };
    let running = domains
        .into_iter()
        .filter(|domain| domain.tpm && !matches!(domain.state, DomainState::Stopped(_)))
        .filter_map(|domain| Some((domain.id, domain.metadata?, None)));
    let arriving = arriving_here(host)
        .into_iter()
        .map(|(vm, incoming)| (vm, incoming.metadata, Some(incoming.job)));
    for (vm, metadata, job) in running.chain(arriving) {
        if !loaded.contains(&vm)
            && let Err(trouble) = load_secret(host, vm, &metadata, job).await
        {
            tracing::warn!(%vm, because = trouble.failure.because, "a secret is not loaded again");
        }
    }
}

fn arriving_here(host: &Host) -> Vec<(VmId, Incoming)> {
    let Ok(entries) = std::fs::read_dir(host.layout.vms()) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<VmId>().ok())
        .filter_map(|vm| Some((vm, host.record(vm).incoming().ok()??)))
        .collect()
}

fn complete(record: &VmRecord, mut incoming: Incoming, definition: Option<String>) -> Result<()> {
    let spec = &incoming.metadata.spec;
    let mut expected: Vec<String> = incoming
        .disks
        .iter()
        .filter(|disk| disk.copy)
        .map(|disk| {
            transfer::Item::Disk {
                target: disk.target.clone(),
            }
            .name()
        })
        .collect();
    if spec.tpm {
        expected.push(transfer::Item::Tpm.name());
    }
    if let Some(missing) = expected
        .iter()
        .find(|name| !incoming.received.contains_key(*name))
    {
        return Err(
            Failure::new(ErrorCode::MigrationFailed, format!("VM {}", spec.name))
                .because(format!("{missing} has not arrived"))
                .into(),
        );
    }
    incoming.complete = true;
    incoming.definition = definition;
    record.keep_transit(&TransitRecord::Incoming(Box::new(incoming)))
}

fn libvirt_socket(config: &Config) -> PathBuf {
    if let Some(path) = &config.libvirt_socket {
        return path.clone();
    }
    LIBVIRT_SOCKETS
        .iter()
        .map(Path::new)
        .find(|path| path.exists())
        .unwrap_or(Path::new(LIBVIRT_SOCKETS[0]))
        .to_owned()
}

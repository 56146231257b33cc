//! Sends one file of a stopped VM to another host: its data without holes, with a checksum over the whole file.
//!
//! ```text
//!   source                                           destination
//!     │── tunnel, header: which file ─────────────────► admitted, written beside its place
//!     │── u64 offset, u32 length, bytes ──────────────► …
//!     │── u64 length of the file, u32 0, SHA-256 ─────► checked, on the disk, renamed
//!     │◄───────────────────────────────── JSON answer │
//! ```
//! The SHA-256 covers every piece's offset, length and bytes, and the file's length, in the order they are sent.

use crate::arrivals::{Channel, ChannelUse, refuse};
use crate::failure::{HypervisorResult, Result, Trouble};
use crate::host::Host;
use crate::operation::incoming::partial;
use crate::record::{Incoming, TransitRecord};
use crate::tpm_judge;
use crate::variables;
use fleetward_api::agent::Peer;
use fleetward_durable::{self as durable, Expected};
use fleetward_link::Identity;
use fleetward_link::tunnel::{IncomingTunnel, Tunnel, TunnelError};
use fleetward_model::{ErrorCode, Failure, JobId, VmId};
use nix::unistd::{Whence, lseek};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Bytes in one piece.
const PIECE: usize = 256 * 1024;

/// Largest TPM state or UEFI variables taken, in bytes.
const MAX_SMALL: u64 = 16 * 1024 * 1024;

/// Longest answer, in bytes.
const MAX_ANSWER: u64 = 16 * 1024;

/// A peer that neither takes nor gives a piece for so long is lost.
const PATIENCE: Duration = Duration::from_secs(15);

/// Which file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "item", rename_all = "snake_case")]
pub(crate) enum Item {
    Disk {
        target: String,
    },
    /// UEFI variables.
    Variables,
    /// TPM state, encrypted as it lies on the disk.
    Tpm,
}

impl Item {
    /// Its name in records and messages.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Disk { target } => format!("disk {target}"),
            Self::Variables => "the UEFI variables".to_owned(),
            Self::Tpm => "the TPM state".to_owned(),
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
enum Answer {
    Received,
    Refused { failure: Failure },
}

/// Where a file's content comes from.
pub(crate) enum Source {
    /// A file, open, and where it lies, for messages.
    File(File, PathBuf),
    Bytes(Vec<u8>),
}

/// Sends one file; `progress` gets the bytes of every piece.
pub(crate) async fn send(
    host: &Host,
    to: &Peer,
    job: JobId,
    vm: VmId,
    item: &Item,
    source: Source,
    mut progress: impl FnMut(u64),
) -> Result<()> {
    let header = Channel::new(job, ChannelUse::File { item: item.clone() }).header(vm);
    let expected = Identity::Host(to.host.clone());
    let mut tunnel = host
        .dialer
        .dial(&to.address, &expected, &header)
        .await
        .map_err(|error| broken(item, &crate::failure::chain(&error)))?;
    let mut digest = Sha256::new();
    let sent = match source {
        Source::Bytes(bytes) => {
            let length = bytes.len() as u64;
            let sent = send_piece(&mut tunnel, &mut digest, 0, &bytes).await;
            progress(length);
            sent.map(|()| length)
        }
        Source::File(file, path) => {
            let from = (file, path.as_path());
            send_file(&mut tunnel, &mut digest, from, item, &mut progress).await?
        }
    };
    let ended = match sent {
        Ok(length) => send_end(&mut tunnel, digest, length).await,
        Err(error) => Err(error),
    };
    // A receiver that refuses sends the reason before it closes the connection, so its answer takes precedence over
    // the broken pipe.
    match (read_answer(&mut tunnel).await, ended) {
        (Ok(Answer::Received), Ok(())) => Ok(()),
        (Ok(Answer::Refused { failure }), _) => Err(failure.into()),
        (Ok(Answer::Received), Err(error)) | (Err(_), Err(error)) | (Err(error), Ok(())) => {
            Err(broken(item, &error.to_string()))
        }
    }
}

/// Sends the data of a file, passing over its holes; answers its length.
async fn send_file(
    tunnel: &mut Tunnel,
    digest: &mut Sha256,
    (file, path): (File, &Path),
    item: &Item,
    progress: &mut impl FnMut(u64),
) -> Result<std::io::Result<u64>> {
    let unreadable = |error: &std::io::Error| Trouble::file(item.name(), path, error);
    let length = file.metadata().map_err(|error| unreadable(&error))?.len();
    let file = Arc::new(file);
    let mut offset = 0;
    while let Some((start, end)) = data_after(&file, offset, length).map_err(|e| unreadable(&e))? {
        offset = start;
        while offset < end {
            let size = usize::try_from(end - offset).unwrap_or(PIECE).min(PIECE);
            let reader = file.clone();
            let piece = tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; size];
                reader.read_exact_at(&mut piece, offset).map(|()| piece)
            })
            .await
            .expect("reading a file does not panic")
            .map_err(|error| unreadable(&error))?;
            if let Err(error) = send_piece(tunnel, digest, offset, &piece).await {
                return Ok(Err(error));
            }
            offset += size as u64;
            progress(size as u64);
        }
    }
    Ok(Ok(length))
}

/// The next run of data at or after `offset`; the whole rest where the file system knows no holes.
fn data_after(file: &File, offset: u64, length: u64) -> std::io::Result<Option<(u64, u64)>> {
    if offset >= length {
        return Ok(None);
    }
    let at = i64::try_from(offset).map_err(std::io::Error::other)?;
    let start = match lseek(file, at, Whence::SeekData) {
        Ok(start) => start,
        Err(nix::errno::Errno::ENXIO) => return Ok(None),
        Err(nix::errno::Errno::EINVAL) => return Ok(Some((offset, length))),
        Err(error) => return Err(error.into()),
    };
    let end = lseek(file, start, Whence::SeekHole)?;
    Ok(Some((start.unsigned_abs(), end.unsigned_abs().min(length))))
}

async fn send_piece(
    tunnel: &mut Tunnel,
    digest: &mut Sha256,
    offset: u64,
    piece: &[u8],
) -> std::io::Result<()> {
    let mut head = [0; 12];
    head[..8].copy_from_slice(&offset.to_be_bytes());
    let length = u32::try_from(piece.len()).map_err(std::io::Error::other)?;
    head[8..].copy_from_slice(&length.to_be_bytes());
    digest.update(head);
    digest.update(piece);
    in_time(async {
        tunnel.write_all(&head).await?;
        tunnel.write_all(piece).await
    })
    .await
}

async fn send_end(tunnel: &mut Tunnel, mut digest: Sha256, length: u64) -> std::io::Result<()> {
    let mut head = [0; 12];
    head[..8].copy_from_slice(&length.to_be_bytes());
    digest.update(head);
    let digest = digest.finalize();
    in_time(async {
        tunnel.write_all(&head).await?;
        tunnel.write_all(&digest).await?;
        tunnel.shutdown().await
    })
    .await
}

async fn read_answer(tunnel: &mut Tunnel) -> std::io::Result<Answer> {
    let mut answer = Vec::new();
    // The other side may have to bring a large file to its disk first.
    let mut limited = tunnel.take(MAX_ANSWER);
    let reading = limited.read_to_end(&mut answer);
    match tokio::time::timeout(PATIENCE * 8, reading).await {
        Ok(read) => read?,
        Err(_) => return Err(std::io::ErrorKind::TimedOut.into()),
    };
    Ok(serde_json::from_slice(&answer)?)
}

/// Receives one file of an arrival.
pub(crate) async fn receive(
    host: &Arc<Host>,
    vm: VmId,
    item: &Item,
    incoming: &Incoming,
    tunnel: IncomingTunnel,
) -> Result<(), TunnelError> {
    let place = match place_of(host, vm, item, incoming) {
        Ok(place) => place,
        Err(trouble) => {
            refuse(tunnel, &trouble).await;
            return Ok(());
        }
    };
    let mut tunnel = tunnel.accept().await.map_err(TunnelError::Stream)?;
    let temporary = partial(&place);
    let received = match receive_into(&mut tunnel, &temporary, item).await {
        Ok(digest) => put_in_place(host, vm, item, &temporary, &place, digest).await,
        Err(trouble) => Err(trouble),
    };
    if received.is_err() {
        // An incomplete file is removed, and the reason is reported.
        durable::discard(&temporary);
    }
    let answer = match received {
        Ok(()) => Answer::Received,
        Err(Trouble { failure, .. }) => Answer::Refused { failure },
    };
    let answer = serde_json::to_vec(&answer).expect("plain fields are JSON");
    tunnel
        .write_all(&answer)
        .await
        .map_err(TunnelError::Stream)?;
    tunnel.shutdown().await.map_err(TunnelError::Stream)?;
    // What was still under way is read, so that closing does not take the answer back.
    let rest = async {
        let mut rest = vec![0; 4096];
        while matches!(tunnel.read(&mut rest).await, Ok(n) if n > 0) {}
    };
    // Whether the sender goes away in time does not matter any more.
    let _ = tokio::time::timeout(PATIENCE, rest).await;
    Ok(())
}

/// Where the file belongs: only what the arrival was announced with.
fn place_of(host: &Host, vm: VmId, item: &Item, incoming: &Incoming) -> Result<PathBuf> {
    let not_expected = || {
        Trouble::refuse(
            ErrorCode::InvalidRequest,
            item.name(),
            "this arrival does not expect it",
        )
    };
    if incoming.live {
        return Err(not_expected());
    }
    match item {
        Item::Variables => Ok(host.layout.vm(vm).join("variables")),
        Item::Tpm if incoming.metadata.spec.tpm => Ok(host.layout.vm(vm).join("tpm-state")),
        Item::Tpm => Err(not_expected()),
        Item::Disk { target } => {
            let copied = incoming.disks.iter().any(|d| d.copy && d.target == *target);
            let disk = incoming
                .metadata
                .spec
                .disks
                .iter()
                .find(|d| d.target == *target);
            match disk {
                Some(disk) if copied => host.pools.volume(vm, disk),
                Some(_) | None => Err(not_expected()),
            }
        }
    }
}

/// Writes the pieces to a file and answers the checked SHA-256. The file is on the disk then.
async fn receive_into(tunnel: &mut Tunnel, path: &Path, item: &Item) -> Result<String> {
    let unwritable = |error: &std::io::Error| Trouble::file(item.name(), path, error);
    let limit = match item {
        Item::Disk { .. } => u64::MAX,
        Item::Variables | Item::Tpm => MAX_SMALL,
    };
    let file = Arc::new(durable::create_fresh(path).map_err(|error| unwritable(&error))?);
    let mut digest = Sha256::new();
    loop {
        let mut head = [0; 12];
        in_time(async { tunnel.read_exact(&mut head).await.map(drop) })
            .await
            .map_err(|error| broken(item, &error.to_string()))?;
        digest.update(head);
        let offset = u64::from_be_bytes(head[..8].try_into().expect("eight bytes"));
        let length = u32::from_be_bytes(head[8..].try_into().expect("four bytes")) as usize;
        if offset.saturating_add(length as u64) > limit || length > MAX_SMALL as usize {
            return Err(Trouble::refuse(
                ErrorCode::TooLarge,
                item.name(),
                "it is larger than the limit",
            ));
        }
        let ends = length == 0;
        let mut piece = vec![0; if ends { 32 } else { length }];
        in_time(async { tunnel.read_exact(&mut piece).await.map(drop) })
            .await
            .map_err(|error| broken(item, &error.to_string()))?;
        if ends {
            let found = digest.finalize();
            if found.as_slice() != piece {
                return Err(Trouble::refuse(
                    ErrorCode::MigrationFailed,
                    item.name(),
                    "what arrived is not what was sent",
                ));
            }
            let synced = file.clone();
            tokio::task::spawn_blocking(move || {
                synced.set_len(offset).and_then(|()| synced.sync_all())
            })
            .await
            .expect("writing a file does not panic")
            .map_err(|error| unwritable(&error))?;
            return Ok(hex::encode(found));
        }
        digest.update(&piece);
        let writer = file.clone();
        tokio::task::spawn_blocking(move || writer.write_all_at(&piece, offset))
            .await
            .expect("writing a file does not panic")
            .map_err(|error| unwritable(&error))?;
    }
}

/// Gives the checked file to whom it is for, and puts on record that it is here.
async fn put_in_place(
    host: &Arc<Host>,
    vm: VmId,
    item: &Item,
    temporary: &Path,
    place: &Path,
    digest: String,
) -> Result<()> {
    let unwritable = |error: &std::io::Error| Trouble::file(item.name(), place, error);
    match item {
        Item::Disk { .. } => {
            // It comes in one piece. A header that names another file, such as another VM's volume, is its sender's word for
            // what QEMU opens here.
            let looked = host.volumes.inspect(temporary, Some("qcow2")).await;
            looked.attempt(|| item.name())?;
            host.volumes
                .adopt(temporary)
                .await
                .attempt(|| item.name())?;
            durable::rename(temporary, place).map_err(|error| unwritable(&error))?;
        }
        Item::Variables => {
            let content = small(temporary).map_err(|error| unwritable(&error))?;
            variables::write(host, vm, &content)?;
            durable::remove(temporary).map_err(|error| unwritable(&error))?;
        }
        Item::Tpm => {
            let state = small(temporary).map_err(|error| unwritable(&error))?;
            // Only state that an earlier attempt of this very arrival brought can lie there: preparing it refused any other.
            host.tpms.remove(vm).await.attempt(|| item.name())?;
            host.tpms
                .write_state(vm, &state)
                .await
                .attempt(|| item.name())?;
            tpm_judge::accept(host, vm, &state)?;
            durable::remove(temporary).map_err(|error| unwritable(&error))?;
        }
    }
    // Files come one after the other, so nobody else changes the record meanwhile.
    let record = host.record(vm);
    match record.incoming()? {
        Some(mut incoming) => {
            incoming.received.insert(item.name(), digest);
            record.keep_transit(&TransitRecord::Incoming(Box::new(incoming)))
        }
        None => Err(Trouble::refuse(
            ErrorCode::VmStateWrong,
            item.name(),
            "the arrival has ended",
        )),
    }
}

/// What was received into a file of ours.
fn small(temporary: &Path) -> std::io::Result<Vec<u8>> {
    durable::read_expected(temporary, &Expected::at_most(MAX_SMALL))?
        .ok_or_else(|| std::io::ErrorKind::NotFound.into())
}

async fn in_time(io: impl Future<Output = std::io::Result<()>>) -> std::io::Result<()> {
    tokio::time::timeout(PATIENCE, io)
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

fn broken(item: &Item, because: &str) -> Trouble {
    Failure::new(ErrorCode::LinkLost, item.name())
        .because(because)
        .into()
}

//! `fleetward vm disk ...` and `fleetward vm media ...`: disks, drives and media, each command one change of the VM.

use super::Context;
use super::vm_set::change;
use crate::args::Wait;
use crate::args::parse::parse_word;
use crate::confirm::confirm;
use crate::exit::{Exit, Stop};
use crate::messages;
use clap::{Args, Subcommand};
use fleetward_api::controller::ChangeRequest;
use fleetward_model::change::{
    DiskAsked, DiskChange, DiskMove, DiskRemove, DiskResize, DriveAsked, DriveChange, DriveEject,
    DriveInsert, DriveRemove,
};
use fleetward_model::vm::DiskBus;
use fleetward_model::{ByteSize, ImageName, PoolName, VmName};

#[derive(Debug, Subcommand)]
pub enum VmDiskCommand {
    /// Adds an empty disk; a running VM has a SATA disk after its next start
    Add(DiskAdd),
    /// Makes a disk larger, also while the VM runs; a disk never shrinks
    Resize {
        name: VmName,
        /// Target of the disk, such as vdb; see: fleetward vm show
        #[arg(value_name = "TARGET")]
        disk: String,
        /// Its new size, such as 128G
        #[arg(value_name = "SIZE")]
        size: ByteSize,
        #[command(flatten)]
        wait: Wait,
    },
    /// Removes a disk with all that is on it
    Remove {
        name: VmName,
        /// Target of the disk, such as vdb; see: fleetward vm show
        #[arg(value_name = "TARGET")]
        disk: String,
        /// Leaves the volume in its pool, and says where it is
        #[arg(long)]
        keep: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Moves a disk to another pool of the VM's host, also while the VM runs
    Move {
        name: VmName,
        /// Target of the disk, such as vdb; see: fleetward vm show
        #[arg(value_name = "TARGET")]
        disk: String,
        /// Where it is to lie
        #[arg(long)]
        pool: PoolName,
        #[command(flatten)]
        wait: Wait,
    },
}

#[derive(Debug, Args)]
pub struct DiskAdd {
    pub name: VmName,
    /// Size of the disk, such as 64G
    pub size: ByteSize,
    /// Pool of the disk; default: the one of the VM's first disk
    #[arg(long)]
    pub pool: Option<PoolName>,
    /// virtio, sata or scsi; default: the profile's
    #[arg(long, value_parser = parse_word::<DiskBus>)]
    pub bus: Option<DiskBus>,
    #[command(flatten)]
    pub wait: Wait,
}

#[derive(Debug, Subcommand)]
pub enum VmMediaCommand {
    /// Puts an image into a drive; a VM without a drive gets one, with its next start if it runs
    Insert {
        name: VmName,
        image: ImageName,
        /// Target of the drive, such as sda; default: the only one, or the only empty one
        #[arg(long)]
        drive: Option<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Empties a drive; its image is free then
    Eject {
        name: VmName,
        /// Target of the drive, such as sda; default: the only one with a medium
        #[arg(long)]
        drive: Option<String>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Adds a drive, empty or with an image; a running VM has it after its next start
    Add {
        name: VmName,
        image: Option<ImageName>,
        #[command(flatten)]
        wait: Wait,
    },
    /// Removes a drive; a running VM has it, empty, until it stops
    Remove {
        name: VmName,
        /// Target of the drive, such as sda
        drive: String,
        #[command(flatten)]
        wait: Wait,
    },
}

pub(super) async fn disk(context: &Context, command: VmDiskCommand) -> Result<Exit, Stop> {
    let (name, change_of, wait) = match command {
        VmDiskCommand::Add(DiskAdd {
            name,
            size,
            pool,
            bus,
            wait,
        }) => {
            let asked = DiskAsked {
                size_bytes: size,
                pool,
                bus,
                mark: None,
            };
            (name, DiskChange::Add(asked), wait)
        }
        VmDiskCommand::Resize {
            name,
            disk,
            size,
            wait,
        } => {
            let size_bytes = size;
            let resize = DiskResize { disk, size_bytes };
            (name, DiskChange::Resize(resize), wait)
        }
        VmDiskCommand::Remove {
            name,
            disk,
            keep,
            wait,
        } => {
            confirm(
                context.yes,
                &messages::confirm_remove_disk(&name, &disk, keep),
            )?;
            (name, DiskChange::Remove(DiskRemove { disk, keep }), wait)
        }
        VmDiskCommand::Move {
            name,
            disk,
            pool,
            wait,
        } => {
            let moving = DiskMove {
                disk,
                pool,
                mark: None,
            };
            (name, DiskChange::Move(moving), wait)
        }
    };
    let request = ChangeRequest {
        disks: vec![change_of],
        ..ChangeRequest::default()
    };
    change(context, &name, &request, wait).await
}

pub(super) async fn media(context: &Context, command: VmMediaCommand) -> Result<Exit, Stop> {
    let (name, change_of, wait) = match command {
        VmMediaCommand::Insert {
            name,
            image,
            drive,
            wait,
        } => (
            name,
            DriveChange::Insert(DriveInsert { drive, image }),
            wait,
        ),
        VmMediaCommand::Eject { name, drive, wait } => {
            (name, DriveChange::Eject(DriveEject { drive }), wait)
        }
        VmMediaCommand::Add { name, image, wait } => {
            (name, DriveChange::Add(DriveAsked { image }), wait)
        }
        VmMediaCommand::Remove { name, drive, wait } => {
            (name, DriveChange::Remove(DriveRemove { drive }), wait)
        }
    };
    let request = ChangeRequest {
        drives: vec![change_of],
        ..ChangeRequest::default()
    };
    change(context, &name, &request, wait).await
}

/// `SIZE[,pool=P][,bus=virtio|sata|scsi]`.
pub(crate) fn parse_disk(text: &str) -> Result<DiskAsked, String> {
    let mut parts = text.split(',');
    let size = parts.next().unwrap_or_default();
    let mut asked = DiskAsked {
        size_bytes: size.parse().map_err(|error| format!("{error}"))?,
        pool: None,
        bus: None,
        mark: None,
    };
    for part in parts {
        match part.split_once('=') {
            Some(("pool", pool)) => {
                asked.pool = Some(pool.parse().map_err(|error| format!("{error}"))?);
            }
            Some(("bus", bus)) => asked.bus = Some(parse_word(bus)?),
            Some(_) | None => {
                return Err(format!(
                    "{part:?} is neither pool=POOL nor bus=virtio|sata|scsi"
                ));
            }
        }
    }
    Ok(asked)
}

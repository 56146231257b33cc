//! Converts files from elsewhere: looks what a file is, takes off one layer after the other, and makes a qcow2 disk of
//! what is inside.
//!
//! ```text
//!   recognize ──► compressed ──► unpack (confined) ──┐
//!      ▲     ├──► OVA, ZIP ────► take its disk out ──┤
//!      └─────│───────────────────────────────────────┘
//!            ├──► vhdx, vhd, vmdk, vdi; raw from a compressed file ──► require_whole ──► qemu-img (confined) ──► qcow2
//!            └──► qcow2, iso from a compressed file ──► as it is
//! ```
//! Safe code of ours reads magic numbers, an archive's index, its descriptor and a few header fields. Everything else is
//! read by programs in a [confinement](crate::confined).

mod look;
mod ova;
mod rules;
mod unpack;
mod work;

use crate::confined::{Confinement, Limits};
use crate::program::Program;
use async_trait::async_trait;
use fleetward_hypervisor::{Conversion, ConversionError, ConversionProgress, Converted, Converter};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::Semaphore;
use work::Work;

/// Threads and processes of the user inside: qemu-img has some sixty threads when it is busy.
const PROCESSES: u32 = 512;

type Result<T, E = ConversionError> = std::result::Result<T, E>;
type Tell<'a> = &'a (dyn Fn(ConversionProgress) + Send + Sync);

/// What conversions may use at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConversionLimits {
    /// Bytes of memory of a program.
    pub memory: u64,
    /// Time of a program beside what the size of its input needs.
    pub time: Duration,
    /// Bytes of a disk, empty parts included: as much as a VHDX can have.
    pub disk: u64,
    /// Bytes of an unpacked file, empty parts included.
    pub unpacked: u64,
}

impl Default for ConversionLimits {
    fn default() -> Self {
        Self {
            memory: 2 << 30,
            time: Duration::from_secs(30 * 60),
            disk: 64 << 40,
            unpacked: 4 << 40,
        }
    }
}

/// The converter of this host.
#[derive(Debug)]
pub struct ConfinedConverter {
    programs: std::result::Result<Programs, String>,
    limits: ConversionLimits,
    /// One at a time: they share a user, and the host has VMs to run.
    turn: Semaphore,
}

#[derive(Debug)]
struct Programs {
    confinement: Confinement,
    qemu_img: Program,
}

impl ConfinedConverter {
    /// Finds the programs; `user` is who runs them in the confinement. What is missing is told when somebody asks.
    pub fn find(user: &str) -> Self {
        let programs = Confinement::find(user).and_then(|confinement| {
            Ok(Programs {
                confinement,
                qemu_img: Program::find("qemu-img")
                    .ok_or("the program qemu-img is not installed (Debian package qemu-utils)")?,
            })
        });
        Self {
            programs,
            limits: ConversionLimits::default(),
            turn: Semaphore::new(1),
        }
    }

    /// The same within other limits.
    #[must_use]
    pub fn with_limits(self, limits: ConversionLimits) -> Self {
        Self { limits, ..self }
    }

    fn programs(&self) -> Result<&Programs> {
        let programs = self.programs.as_ref();
        programs.map_err(|missing| ConversionError::Unable(missing.clone()))
    }
}

#[async_trait]
impl Converter for ConfinedConverter {
    async fn ready(&self) -> Result<()> {
        let Programs { confinement, .. } = self.programs()?;
        let nothing = Program::find("true")
            .ok_or_else(|| ConversionError::Unable("the program true is not installed".into()))?;
        let limits = Limits {
            memory: self.limits.memory,
            time: Duration::from_secs(10),
            output: 0,
            processes: PROCESSES,
        };
        let running = confinement
            .start(&nothing, &[] as &[&str], &[], None, Vec::new(), limits)
            .map_err(|error| ConversionError::Unable(error.to_string()))?;
        match running.end(async { Ok::<_, ConversionError>(()) }).await? {
            Ok(()) => Ok(()),
            Err(ended) => Err(ConversionError::Unable(format!(
                "foreign files cannot be confined here: {ended:?}"
            ))),
        }
    }

    async fn convert(&self, conversion: Conversion<'_>, tell: Tell<'_>) -> Result<Converted> {
        let Programs {
            confinement,
            qemu_img,
        } = self.programs()?;
        let _turn = self.turn.acquire().await.expect("it is never closed");
        let work = Work {
            confinement,
            qemu_img,
            limits: self.limits,
            conversion,
            tell,
        };
        work.run().await
    }
}

/// A name of the archive's author, as it may be shown.
fn plain(name: &str) -> String {
    let plain = name.chars().filter(|c| !c.is_control());
    plain.take(100).collect()
}

fn unusable(because: impl Into<String>) -> ConversionError {
    ConversionError::Unusable(because.into())
}

fn file_error(
    attempt: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> ConversionError + use<> {
    let path: PathBuf = path.to_owned();
    move |source| ConversionError::File {
        attempt,
        path,
        source,
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let done = tokio::task::spawn_blocking(work).await;
    done.expect("reading and writing files does not panic")
}

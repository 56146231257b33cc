//! The specification of a VM in every version that was ever written down, and the one that the code uses.
//!
//! ```text
//!   {"id": ..., "mac": ...}            v1: what programs before versions wrote, and go on reading
//!   {"v2": {"id": ..., "nics": ...}}   v2: devices with stable ids
//!   {"v3": {"id": ..., "nics": ...}}   v3: the same form, with more values
//!   {"v4": ...}                        newer than this program
//! ```
//! The code knows one type, [`VmSpec`], which is [`v3`]. It is read from every version, and written in the oldest one that
//! can say all of it: a VM that uses nothing new stays readable for old programs. A program that knows only version 1
//! finds no `id` in the others and refuses them as a whole, so it never drops half of one.
//!
//! Fields that this program does not know are kept, in the specification and in each device, and written again.
//! A specification that is newer than this program is [`NewerSpec`]: its VM is shown, and never changed or rewritten.

pub mod v1;
mod v2;
pub mod v3;

pub use v3::{
    Description, DescriptionError, DiskSpec, DriveSpec, Medium, NicModel, NicSpec, VmSpec,
};

use crate::{ErrorCode, Failure};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use std::fmt;
use utoipa::ToSchema;

/// The newest version that this program reads and writes.
pub const KNOWN: u32 = 3;

/// Fields that this program does not know, as they were read.
pub type Unknown = Map<String, Value>;

/// A specification that this program cannot read because a newer one wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewerSpec {
    /// Its version; this program knows up to [`KNOWN`].
    pub version: u32,
}

impl NewerSpec {
    /// Why nothing is changed about the VM.
    pub fn refusal(&self, vm: impl fmt::Display, host: impl fmt::Display) -> Failure {
        let what = format!("VM {vm} on host {host} was written by a newer program");
        Failure::new(ErrorCode::SpecNewer, what)
            .because(match self.version {
                newer if newer > KNOWN => format!(
                    "its specification has version {newer}, and this program knows up to {KNOWN}"
                ),
                known => format!(
                    "its specification of version {known} has values that this program does not know"
                ),
            })
            .fix(format!(
                "upgrade the agent of host {host}, and the controller before it: fleetward host show {host}"
            ))
    }
}

/// The version of a specification as JSON.
pub fn version_of(spec: &Value) -> u32 {
    named_version(spec).map_or(1, |(version, _)| version)
}

/// Version and content of anything but version 1, which names none.
fn named_version(spec: &Value) -> Option<(u32, &Value)> {
    let fields = spec.as_object()?;
    if fields.contains_key("id") {
        return None;
    }
    fields.iter().find_map(|(name, content)| {
        let version = name.strip_prefix('v')?.parse().ok()?;
        Some((version, content))
    })
}

impl VmSpec {
    /// The oldest version that says all of it: the one it is written in.
    pub fn version(&self) -> u32 {
        match v1::VmSpec::of(self) {
            Some(_) => 1,
            None if v2::says_all_of(self) => 2,
            None => 3,
        }
    }

    /// From JSON of any version: `Err` when it is newer than this program.
    ///
    /// # Errors
    /// Outer: it is damaged. Inner: [`NewerSpec`].
    pub fn from_json(spec: &Value) -> Result<Result<Self, NewerSpec>, serde_json::Error> {
        match named_version(spec) {
            None => v1::VmSpec::deserialize(spec).map(|old| Ok(old.into())),
            Some((2 | 3, content)) => v3::from_json(content).map(Ok),
            Some((version, _)) => Ok(Err(NewerSpec { version })),
        }
    }
}

impl Serialize for VmSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct V2<'a> {
            v2: v3::Content<'a>,
        }
        #[derive(Serialize)]
        struct V3<'a> {
            v3: v3::Content<'a>,
        }
        let content = v3::Content(self);
        match v1::VmSpec::of(self) {
            Some(old) => old.serialize(serializer),
            None if v2::says_all_of(self) => V2 { v2: content }.serialize(serializer),
            None => V3 { v3: content }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for VmSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spec = Value::deserialize(deserializer)?;
        match Self::from_json(&spec).map_err(D::Error::custom)? {
            Ok(spec) => Ok(spec),
            Err(NewerSpec { version }) => Err(D::Error::custom(format_args!(
                "the specification has version {version}, and this program knows up to {KNOWN}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests;

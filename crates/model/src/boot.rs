//! What a host's boot brings back: VMs with autostart.

use crate::{VmId, VmName};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::ToSchema;

/// What the last boot of a host brings back, as its agent reports it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BootFacts {
    /// When the agent noticed that the host had booted.
    #[serde(with = "time::serde::rfc3339")]
    pub noticed: OffsetDateTime,
    /// VMs that the agent asks for now: the controller starts each that is still to run there.
    #[serde(default)]
    pub asking: Vec<VmId>,
    /// How many have not started yet.
    pub waiting: u32,
    pub started: u32,
    /// The first of those that stayed off.
    #[serde(default)]
    pub off: Vec<StayedOff>,
}

/// A VM that did not come back with its host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StayedOff {
    pub vm: VmName,
    pub because: String,
}

/// A VM with autostart whose host has booted, and that does not run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "after_boot", rename_all = "snake_case")]
pub enum AfterBoot {
    /// Its turn has not come, or the controller has not answered yet.
    Waiting,
    /// It is not tried again.
    Off { because: String },
}

/// A VM that is started again when its guest crashes, after a crash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Crashes {
    /// Crashes within the last hour.
    pub count: u32,
    #[serde(with = "time::serde::rfc3339")]
    pub last: OffsetDateTime,
    /// When it is started again; none when it was, or when it is given up.
    #[serde(
        default,
        with = "time::serde::rfc3339::option",
        skip_serializing_if = "Option::is_none"
    )]
    pub again: Option<OffsetDateTime>,
    /// Why it is not started again by itself any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given_up: Option<String>,
}

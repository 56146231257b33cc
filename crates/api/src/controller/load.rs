//! What hosts and VMs use: now, and in the past.

use fleetward_model::load::Load;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

/// What a host or a VM uses. Of each figure nothing is said where it is not known.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Usage {
    /// When it was told, by the controller's clock; of a history, when the time begins over which it is the mean.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Of all processors that it has, 0 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_percent: Option<f32>,
    /// Of the host's memory. Of a VM: what its process takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Of the file systems of a host's pools. Of a VM: nothing; `disks` says what each takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_read_bytes_per_second: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_written_bytes_per_second: Option<u64>,
    /// Reads and writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_requests_per_second: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_received_bytes_per_second: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net_sent_bytes_per_second: Option<u64>,
}

impl Usage {
    pub fn of(load: &Load, at: OffsetDateTime) -> Self {
        Self {
            at,
            cpu_percent: load
                .cpu
                .map(|cpu| (cpu as f32) * 100.0 / Load::WHOLE as f32),
            memory_bytes: load.memory,
            storage_bytes: load.storage,
            disk_read_bytes_per_second: load.read,
            disk_written_bytes_per_second: load.written,
            disk_requests_per_second: load.requests,
            net_received_bytes_per_second: load.received,
            net_sent_bytes_per_second: load.sent,
        }
    }
}

/// Query of `GET /v1/hosts/{host}/load` and `GET /v1/vms/{vm}/load`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct LoadQuery {
    /// RFC 3339; without it a day before `to`
    pub from: Option<String>,
    /// RFC 3339; without it now
    pub to: Option<String>,
    /// Seconds of each point, whole minutes; without it as few as give 1,500 points at most. From 3,600 on the points are means
    /// of whole hours, of which there are those of a year; of minutes there are those of a day
    pub step: Option<u32>,
}

/// What a host or a VM has used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LoadHistory {
    #[serde(with = "time::serde::rfc3339")]
    pub from: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub to: OffsetDateTime,
    /// Seconds of each point.
    pub step: u32,
    /// Oldest first. There is none for a time of which nothing is known.
    pub points: Vec<Usage>,
}

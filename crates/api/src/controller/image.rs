//! Images of the library, and their import.

use fleetward_model::{HostName, ImageName};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

/// An image of the library.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageView {
    pub name: ImageName,
    /// `qcow2`, `raw` or `iso`.
    pub format: String,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// Bytes of the disk.
    pub virtual_size_bytes: u64,
    /// Hex.
    pub sha256: String,
    #[serde(with = "time::serde::rfc3339")]
    pub imported: OffsetDateTime,
    /// What it was made of; none: the file is as it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<ImageSource>,
}

/// The file that an image was converted from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageSource {
    /// What was found, from outside to inside: `["xz", "vhdx"]`.
    pub found: Vec<String>,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// Hex.
    pub sha256: String,
    /// Where it was converted.
    pub host: HostName,
}

/// How far an import is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImportView {
    pub stage: ImportStage,
    /// The host that converts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostName>,
    /// Of the stage, in bytes or in tenths of a per cent.
    pub done: u64,
    /// 0: unknown.
    pub total: u64,
}

/// What an import does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ImportStage {
    /// The controller takes the file in.
    Receiving,
    /// A host gets it.
    Sending,
    /// The host does other conversions first.
    Waiting,
    Unpacking,
    Converting,
    /// The disk comes back.
    Fetching,
}

/// Query of `PUT /v1/images/{image}`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ImportQuery {
    /// what the file must be: qcow2, raw, iso, vhdx, vhd, vmdk, vdi or ova
    pub format: Option<String>,
    /// the disk of an archive that has several, by the name of its file
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// hex; another file is refused
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
}

//! Images, and what a copy of a VM left.

use super::{Shared, refusal};
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use fleetward_model::{ErrorCode, Failure, VmId};

/// What a copy left: UEFI variables of no content, or the header of an empty qcow2 file of 1 MiB and room for its tables.
pub(super) async fn copy(Path((_, item)): Path<(VmId, String)>) -> Vec<u8> {
    if item == "variables" {
        return vec![0xff; 4096];
    }
    let mut file = vec![0; 4 * 65536];
    file[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    file[20..24].copy_from_slice(&16_u32.to_be_bytes());
    file[24..32].copy_from_slice(&(1_u64 << 20).to_be_bytes());
    file[36..40].copy_from_slice(&1_u32.to_be_bytes());
    file[40..48].copy_from_slice(&(3 * 65536_u64).to_be_bytes());
    file[48..56].copy_from_slice(&65536_u64.to_be_bytes());
    file[56..60].copy_from_slice(&1_u32.to_be_bytes());
    file[96..100].copy_from_slice(&4_u32.to_be_bytes());
    file[100..104].copy_from_slice(&104_u32.to_be_bytes());
    file
}

pub(super) async fn image(State(inner): State<Shared>, Path(sha256): Path<String>) -> Response {
    if inner.lock().expect("lock").images.contains(&sha256) {
        http::StatusCode::NO_CONTENT.into_response()
    } else {
        refusal(Failure::new(ErrorCode::ImageNotFound, "no such image"))
    }
}

pub(super) async fn put_image(
    State(inner): State<Shared>,
    Path(sha256): Path<String>,
    _content: Bytes,
) -> http::StatusCode {
    inner.lock().expect("lock").images.insert(sha256);
    http::StatusCode::NO_CONTENT
}

pub(super) async fn delete_image(
    State(inner): State<Shared>,
    Path(sha256): Path<String>,
) -> http::StatusCode {
    inner.lock().expect("lock").images.remove(&sha256);
    http::StatusCode::NO_CONTENT
}

//! Errors of the API: a `Failure` as JSON, with the HTTP status of its code's class.

use axum::Json;
use axum::response::{IntoResponse, Response};
use fleetward_jobs::JobError;
use fleetward_model::{ErrorCode, Failure};
use fleetward_store::StoreError;
use http::StatusCode;

/// What every handler gives.
pub(crate) type Answer<T> = Result<T, Refusal>;

/// A failure on its way out.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) Failure);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match self.0.code {
            ErrorCode::CredentialsMissing | ErrorCode::LoginRefused => StatusCode::UNAUTHORIZED,
            ErrorCode::LoginTooOften => StatusCode::TOO_MANY_REQUESTS,
            code => StatusCode::from_u16(code.class().http_status())
                .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        };
        if status.is_server_error() {
            tracing::warn!(code = %self.0.code, what = %self.0.what, because = %self.0.because, "request failed");
        }
        (status, Json(self.0)).into_response()
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        Self(failure)
    }
}

impl From<JobError> for Refusal {
    fn from(error: JobError) -> Self {
        Self(error.to_failure())
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self(crate::store_failure(&error))
    }
}

use crate::controller::{ApiTokenMade, ApiTokenRequest};
use crate::verbs::verb;

verb! {
    /// Makes an API token for a program.
    TokenCreate = post "/v1/tokens" (),
    operation: "token_create" in "fleet",
    access: Admin,
    request: json(ApiTokenRequest),
    answer: json(ApiTokenMade) { 200 },
}

use crate::controller::ApiTokenView;
use crate::verbs::verb;

verb! {
    /// Revokes an API token: refused from now on, open connections cut. Its name is free again.
    TokenRevoke = delete "/v1/tokens/{name}" ("name"),
    operation: "token_revoke" in "fleet",
    access: Admin,
    request: none,
    answer: json(ApiTokenView) { 200 },
}

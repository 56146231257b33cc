use crate::controller::{AdminRevoked, RevokeAdminRequest};
use crate::verbs::verb;

verb! {
    /// Revokes an administrator's certificates: refused from now on, open connections cut.
    AdminRevoke = post "/v1/admins/{name}/revoke" ("name"),
    operation: "admin_revoke" in "fleet",
    access: Admin,
    request: json(RevokeAdminRequest),
    answer: json(AdminRevoked) { 200 },
}

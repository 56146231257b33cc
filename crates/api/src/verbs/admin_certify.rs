use crate::controller::{AdminReply, AdminRequest};
use crate::verbs::verb;

verb! {
    /// Certifies an administrator.
    AdminCertify = post "/v1/admins" (),
    operation: "admin" in "fleet",
    access: Admin,
    request: json(AdminRequest),
    answer: json(AdminReply) { 200 },
}

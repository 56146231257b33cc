use crate::controller::AdminCertificate;
use crate::lists::LibraryQuery;
use crate::verbs::verb;

verb! {
    /// The certificates that administrators have got, those included that are revoked or over.
    AdminList = get "/v1/admins" (),
    operation: "admin_list" in "fleet",
    access: Admin,
    request: query(LibraryQuery),
    answer: pages(AdminCertificate) { 200 },
}

use crate::controller::AuditQuery;
use crate::verbs::verb;
use fleetward_model::audit::AuditRecord;

verb! {
    /// Records of all hosts and of the controller, oldest first.
    AuditList = get "/v1/audit" (),
    operation: "audit_list" in "audit",
    access: Keeper,
    request: query(AuditQuery),
    answer: pages(AuditRecord) { 200 },
}

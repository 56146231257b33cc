use crate::controller::AuditVerdict;
use crate::verbs::verb;

verb! {
    /// Whether the audit records are as they were written.
    AuditVerify = get "/v1/audit/verify" (),
    operation: "audit_verify" in "audit",
    access: Keeper,
    request: none,
    answer: json(AuditVerdict) { 200 },
}

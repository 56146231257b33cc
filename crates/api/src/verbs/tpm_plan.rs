use crate::plans::{TpmPlan as Plan, TpmPlanRequest};
use crate::verbs::verb;

verb! {
    /// What a change of TPMs would do to each of several VMs, and what should be asked before. Changes nothing.
    TpmPlan = post "/v1/tpm-plans" (),
    operation: "tpm_plan" in "tpm",
    access: Viewer,
    request: json(TpmPlanRequest),
    answer: json(Plan) { 200 },
}

use crate::verbs::verb;

verb! {
    /// Asks the job to stop and take back what it did.
    JobCancel = post "/v1/jobs/{job}/cancel" ("job"),
    operation: "job_cancel" in "jobs",
    access: Operator,
    request: none,
    answer: nothing { 202 },
}

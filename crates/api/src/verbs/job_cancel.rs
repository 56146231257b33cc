use crate::verbs::verb;

verb! {
    /// Asks the job to stop and take back what it did. Needs the role of the verb that makes such a job.
    JobCancel = post "/v1/jobs/{job}/cancel" ("job"),
    operation: "job_cancel" in "jobs",
    access: Viewer in Job,
    request: none,
    answer: nothing { 202 },
}

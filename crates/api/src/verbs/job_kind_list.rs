use crate::controller::JobKindView;
use crate::verbs::verb;

verb! {
    /// Every kind of job there is, with its steps.
    JobKindList = get "/v1/job-kinds" (),
    operation: "job_kinds" in "jobs",
    access: Viewer in Open,
    request: none,
    answer: list(JobKindView) { 200 },
}

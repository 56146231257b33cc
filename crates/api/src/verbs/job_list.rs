use crate::controller::JobView;
use crate::verbs::verb;

verb! {
    /// Newest first.
    JobList = get "/v1/jobs" (),
    operation: "job_list" in "jobs",
    access: Viewer,
    request: none,
    answer: list(JobView) { 200 },
}

use crate::controller::JobView;
use crate::verbs::verb;

verb! {
    /// One job.
    JobShow = get "/v1/jobs/{job}" ("job"),
    operation: "job_show" in "jobs",
    access: Viewer in Job,
    request: none,
    answer: json(JobView) { 200 },
}

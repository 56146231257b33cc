use crate::controller::JobView;
use crate::lists::JobQuery;
use crate::verbs::verb;

verb! {
    /// Newest first.
    JobList = get "/v1/jobs" (),
    operation: "job_list" in "jobs",
    access: Viewer in Rows,
    request: query(JobQuery),
    answer: pages(JobView) { 200 },
}

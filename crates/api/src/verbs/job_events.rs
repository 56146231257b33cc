use crate::controller::JobView;
use crate::verbs::verb;

verb! {
    /// The job as it is, then each time it changes, until it has ended.
    JobEvents = get "/v1/jobs/{job}/events" ("job"),
    operation: "job_events" in "jobs",
    access: Viewer in Job,
    request: none,
    answer: lines(JobView) { 200 },
}

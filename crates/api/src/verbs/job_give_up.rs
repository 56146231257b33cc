use crate::controller::JobView;
use crate::verbs::verb;

verb! {
    /// Ends a job half-way that can neither go on nor back; of one that has ended, drops what hosts still owe of it.
    JobGiveUp = post "/v1/jobs/{job}/give-up" ("job"),
    operation: "job_give_up" in "jobs",
    access: Admin,
    request: none,
    answer: json(JobView) { 200 },
}

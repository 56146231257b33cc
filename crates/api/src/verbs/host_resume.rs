use crate::controller::HostView;
use crate::verbs::verb;

verb! {
    /// The host takes VMs again.
    HostResume = post "/v1/hosts/{host}/resume" ("host"),
    operation: "host_resume" in "hosts",
    access: Operator in Host,
    request: none,
    answer: json(HostView) { 200 },
}

use crate::controller::{DrainAnswer, DrainQuery};
use crate::verbs::verb;

verb! {
    /// From now on the host takes no VMs; a job moves those it has.
    HostDrain = post "/v1/hosts/{host}/drain" ("host"),
    operation: "host_drain" in "hosts",
    access: Operator in Host,
    request: query(DrainQuery),
    answer: json(DrainAnswer) { 202, 200 = "a dry run" },
}

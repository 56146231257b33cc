use crate::controller::{ExpelAnswer, ExpelQuery};
use crate::verbs::verb;

verb! {
    /// Takes a host out of the fleet at once, whatever it has and says: its certificates are refused everywhere, its guardians lose
    /// every key, and its VMs are lost until they are rebuilt.
    HostExpel = post "/v1/hosts/{host}/expel" ("host"),
    operation: "host_expel" in "hosts",
    access: Admin,
    request: query(ExpelQuery),
    answer: json(ExpelAnswer) { 200 },
}

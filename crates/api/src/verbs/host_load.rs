use crate::controller::{LoadHistory, LoadQuery};
use crate::verbs::verb;

verb! {
    /// What a host has used: a day in minutes, a year in hours.
    HostLoad = get "/v1/hosts/{host}/load" ("host"),
    operation: "host_load" in "hosts",
    access: Viewer in Host,
    request: query(LoadQuery),
    answer: json(LoadHistory) { 200 },
}

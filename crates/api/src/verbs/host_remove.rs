use crate::verbs::verb;

verb! {
    /// Takes a host without VMs out of the fleet. Its certificate stays valid until it ends, but nobody talks to it any more.
    HostRemove = delete "/v1/hosts/{host}" ("host"),
    operation: "host_remove" in "hosts",
    access: Admin,
    request: none,
    answer: nothing { 204 },
}

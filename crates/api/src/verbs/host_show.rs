use crate::controller::HostView;
use crate::verbs::verb;

verb! {
    /// One host.
    HostShow = get "/v1/hosts/{host}" ("host"),
    operation: "host_show" in "hosts",
    access: Viewer in Host,
    request: none,
    answer: json(HostView) { 200 },
}

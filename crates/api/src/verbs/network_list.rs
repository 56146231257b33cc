use crate::controller::NetworkView;
use crate::lists::LibraryQuery;
use crate::verbs::verb;

verb! {
    /// The networks that hosts offer, and on which hosts.
    NetworkList = get "/v1/networks" (),
    operation: "network_list" in "hosts",
    access: Viewer in Rows,
    request: query(LibraryQuery),
    answer: pages(NetworkView) { 200 },
}

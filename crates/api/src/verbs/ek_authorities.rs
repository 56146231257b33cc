use crate::controller::EkAuthorityView;
use crate::lists::LibraryQuery;
use crate::verbs::verb;

verb! {
    /// The fleet's EK root and the hosts' EK authorities below it, also of hosts that have left.
    EkAuthorities = get "/v1/ek/authorities" (),
    operation: "ek_authorities" in "ek",
    access: Viewer,
    request: query(LibraryQuery),
    answer: pages(EkAuthorityView) { 200 },
}

use crate::controller::EkCertificateView;
use crate::lists::EkQuery;
use crate::verbs::verb;

verb! {
    /// The EK certificates of TPMs that the fleet has, or had.
    EkList = get "/v1/ek/certificates" (),
    operation: "ek_list" in "ek",
    access: Viewer,
    request: query(EkQuery),
    answer: pages(EkCertificateView) { 200 },
}

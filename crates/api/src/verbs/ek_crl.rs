use crate::controller::EkRevocationList;
use crate::verbs::verb;

verb! {
    /// The list of revoked EK certificates, made anew for each request.
    EkCrl = get "/v1/ek/crl" (),
    operation: "ek_crl" in "ek",
    access: Viewer,
    request: none,
    answer: json(EkRevocationList) { 200 },
}

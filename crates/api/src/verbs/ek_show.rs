use crate::controller::EkCertificateDetail;
use crate::verbs::verb;

verb! {
    /// One EK certificate with its chain, PEM.
    EkShow = get "/v1/ek/certificates/{sha256}" ("sha256" = "SHA-256 of the certificate, hex"),
    operation: "ek_show" in "ek",
    access: Viewer,
    request: none,
    answer: json(EkCertificateDetail) { 200 },
}

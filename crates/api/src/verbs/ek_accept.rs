use crate::controller::EkAccepted;
use crate::verbs::verb;

verb! {
    /// Lets an EK certificate that this fleet did not issue go with a TPM of its VMs.
    EkAccept = post "/v1/ek/certificates/{sha256}/accept" ("sha256" = "SHA-256 of the certificate, hex"),
    operation: "ek_accept" in "ek",
    access: Keeper,
    request: none,
    answer: json(EkAccepted) { 200 },
}

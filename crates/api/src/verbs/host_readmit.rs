use crate::controller::{RejoinTokenRequest, TokenView};
use crate::verbs::verb;

verb! {
    /// Makes a token with which a host of the fleet gets a new certificate. The host must not answer.
    HostReadmit = post "/v1/hosts/{host}/rejoin-token" ("host"),
    operation: "host_rejoin_token" in "hosts",
    access: Admin,
    request: json(RejoinTokenRequest),
    answer: json(TokenView) { 200 },
}

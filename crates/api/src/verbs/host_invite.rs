use crate::controller::{TokenRequest, TokenView};
use crate::verbs::verb;

verb! {
    /// Makes a join token for a host.
    HostInvite = post "/v1/host-tokens" (),
    operation: "host_token" in "fleet",
    access: Admin,
    request: json(TokenRequest),
    answer: json(TokenView) { 200 },
}

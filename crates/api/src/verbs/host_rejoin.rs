use crate::controller::{RejoinReply, RejoinRequest};
use crate::verbs::verb;

verb! {
    /// From a host of the fleet whose certificate has run out or was lost: with a token, and proof that it has its guardian.
    HostRejoin = post "/v1/rejoin" (),
    operation: "rejoin" in "fleet",
    access: JoinToken,
    request: json(RejoinRequest),
    answer: json(RejoinReply) { 200 },
}

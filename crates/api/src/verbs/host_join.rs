use crate::controller::{JoinReply, JoinRequest};
use crate::verbs::verb;

verb! {
    /// From an agent that has a token and nothing else.
    HostJoin = post "/v1/join" (),
    operation: "join" in "fleet",
    access: JoinToken,
    request: json(JoinRequest),
    answer: json(JoinReply) { 200 },
}

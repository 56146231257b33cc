//! Rotations of all guardians that expire: `mute` has never reported, `down` is away, `a` is rotated.

use super::{ROTATE_JOB, ended};
use axum::response::Response;
use fleetward_api::bulk::{
    BulkEntry, BulkEvent, BulkSummary, Plan, RotateExpiringRequest, Submitted, Target, Would,
};
use fleetward_model::{ErrorCode, Failure, Names};

const HOSTS: [&str; 3] = ["mute", "down", "a"];

fn target(host: &str) -> Target {
    Target::Host(host.parse().unwrap())
}

fn refusal(host: &str) -> Option<Failure> {
    let names = Names::default().host(host);
    let refused = |what: &str| {
        let failure = Failure::new(ErrorCode::HostUnreachable, what);
        Some(failure.because("the host does not answer").about(&names))
    };
    match host {
        "mute" => refused("the guardian of host mute is unknown"),
        "down" => refused("the guardian of host down cannot be rotated"),
        _ => None,
    }
}

fn plan(host: &str) -> Plan {
    let failure = refusal(host);
    Plan {
        target: target(host),
        would: failure.as_ref().map_or(Would::Change, |_| Would::Fail),
        message: "would get a new guardian".to_owned(),
        failure,
        expires: (host != "mute").then(time::OffsetDateTime::now_utc),
        question: None,
    }
}

pub(super) async fn expiring(axum::Json(request): axum::Json<RotateExpiringRequest>) -> Response {
    let mut summary = BulkSummary::default();
    let mut events = Vec::new();
    if request.dry_run {
        events.extend(HOSTS.map(|host| BulkEvent::Planned(plan(host))));
        events.push(BulkEvent::Summary(summary));
        return super::bulk::lines(&events);
    }
    let hosts = request.only.expect("those that the dry run named");
    let bulk = "00000000-0000-4000-8000-00000000b002".parse().unwrap();
    events.push(BulkEvent::Begun { bulk });
    let targets = hosts.iter().cloned().map(Target::Host).collect();
    events.push(BulkEvent::Selected { targets });
    let job = ROTATE_JOB.parse().unwrap();
    for host in hosts {
        let target = target(host.as_str());
        let entry = match refusal(host.as_str()) {
            Some(failure) => BulkEntry::failed(target, &failure, None),
            None => {
                events.push(BulkEvent::Submitted(Submitted {
                    target: target.clone(),
                    job,
                }));
                let view = serde_json::from_value(ended(ROTATE_JOB)).unwrap();
                match request.how.wait {
                    true => BulkEntry::done(target, "has a new guardian", &view),
                    false => BulkEntry::submitted(target, job),
                }
            }
        };
        summary.count(entry.outcome);
        events.push(BulkEvent::Ended(Box::new(entry)));
    }
    events.push(BulkEvent::Summary(summary));
    super::bulk::lines(&events)
}

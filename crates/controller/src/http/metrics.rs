//! `GET /metrics`, in Prometheus' text format (version 0.0.4). All values are gauges that are computed from memory for
//! each request, so there are no counters and no registry.

use crate::admission::shown_state;
use crate::app::App;
use crate::world::World;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use fleetward_model::guardian::EXPIRY_WARNING;
use fleetward_model::host::HostState;
use fleetward_model::vm::VmState;
use http::header;
use std::fmt::Write;
use time::OffsetDateTime;

serves! {
    FleetMetrics => metrics,
}

async fn metrics(State(app): State<App>) -> Response {
    let text = render(&app.world, OffsetDateTime::now_utc());
    (
        [(
            header::CONTENT_TYPE,
            "text/plain; version=0.0.4; charset=utf-8",
        )],
        text,
    )
        .into_response()
}

/// One family: its samples as label text and value.
fn family(out: &mut String, name: &str, help: &str, samples: &[(String, i64)]) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
    for (labels, value) in samples {
        let _ = writeln!(out, "{name}{labels} {value}");
    }
}

/// Names and ids hold nothing that would have to be escaped.
fn label(pairs: &[(&str, &str)]) -> String {
    let pairs: Vec<_> = pairs.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
    format!("{{{}}}", pairs.join(","))
}

fn render(world: &World, now: OffsetDateTime) -> String {
    let (hosts, vms) = (world.hosts.all(), world.inventory.vms());
    let ours: Vec<_> = vms.iter().filter(|vm| vm.is_managed()).collect();
    let mut out = String::new();
    let by_state: Vec<_> = [
        HostState::Online,
        HostState::Drained,
        HostState::Unreachable,
    ]
    .into_iter()
    .map(|state| {
        let count = hosts.iter().filter(|h| world.state_of(h) == state).count();
        (label(&[("state", state.into_str())]), count as i64)
    })
    .collect();
    family(
        &mut out,
        "fleetward_hosts",
        "Hosts of the fleet.",
        &by_state,
    );
    let by_state: Vec<_> = [
        VmState::Running,
        VmState::Stopped,
        VmState::Paused,
        VmState::Failed,
        VmState::Migrating,
        VmState::Unknown,
    ]
    .into_iter()
    .map(|state| {
        let count = ours
            .iter()
            .filter(|vm| shown_state(world, vm) == state)
            .count();
        (label(&[("state", state.into_str())]), count as i64)
    })
    .collect();
    family(
        &mut out,
        "fleetward_vms",
        "VMs that Fleetward manages.",
        &by_state,
    );
    let running = [(String::new(), world.holders.count() as i64)];
    family(
        &mut out,
        "fleetward_jobs_running",
        "Jobs that have not ended.",
        &running,
    );

    let mut ends = Vec::new();
    let mut soon = Vec::new();
    let mut lacking = Vec::new();
    let mut broken = Vec::new();
    for host in &hosts {
        let name = host.name.as_str();
        let id = host.guardian.id.short();
        if let Some(end) = host.guardian.not_after() {
            let labels = label(&[("host", name), ("guardian", id)]);
            ends.push((labels, end.unix_timestamp()));
            let warn = end - now <= EXPIRY_WARNING;
            soon.push((label(&[("host", name)]), i64::from(warn)));
        }
        let without = ours.iter().filter(|vm| {
            let group = vm.metadata.as_ref().map(|m| &m.spec.group);
            vm.tpm.enabled
                && group == Some(&host.group)
                && !vm.tpm.guardians.contains(&host.guardian.id)
        });
        lacking.push((label(&[("host", name)]), without.count() as i64));
        let break_seen = world.audit.break_of(&host.name).is_some();
        broken.push((label(&[("host", name)]), i64::from(break_seen)));
    }
    family(
        &mut out,
        "fleetward_guardian_not_after_timestamp_seconds",
        "When a host's own guardian expires.",
        &ends,
    );
    family(
        &mut out,
        "fleetward_guardian_expires_soon",
        "1 when a host's own guardian expires within 180 days, or has expired.",
        &soon,
    );
    family(
        &mut out,
        "fleetward_vms_not_granted",
        "VMs of a host's group whose TPM key is not wrapped for the host.",
        &lacking,
    );
    let due = ours
        .iter()
        .filter(|vm| vm.roll_due().next().is_some())
        .count();
    family(
        &mut out,
        "fleetward_tpm_rolls_due",
        "VMs whose TPM key a revoked guardian still knows.",
        &[(String::new(), due as i64)],
    );
    family(
        &mut out,
        "fleetward_audit_broken",
        "1 when a host's audit records do not follow from those read before.",
        &broken,
    );
    out
}

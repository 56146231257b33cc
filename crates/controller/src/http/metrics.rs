//! `GET /metrics`, in the OpenMetrics text format (version 1.0), which Prometheus reads. All values are gauges that are computed
//! from memory for each request.

mod load;

use crate::admission::shown_state;
use crate::app::App;
use crate::world::World;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use fleetward_model::guardian::EXPIRY_WARNING;
use fleetward_model::host::HostState;
use fleetward_model::secure_boot::CertificateState;
use fleetward_model::vm::{VmObserved, VmState};
use fleetward_model::{GroupName, GuardianId};
use http::header;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::collections::HashMap;
use strum::VariantArray;
use time::OffsetDateTime;

serves! {
    FleetMetrics => metrics,
}

async fn metrics(State(app): State<App>) -> Response {
    let registry = gauges(&app.world, OffsetDateTime::now_utc());
    let mut text = String::new();
    encode(&mut text, &registry).expect("strings take all writes");
    (
        [(
            header::CONTENT_TYPE,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        )],
        text,
    )
        .into_response()
}

/// The labels of a sample.
type Labels = Vec<(&'static str, String)>;

/// Registers a family with its samples.
fn family(
    registry: &mut Registry,
    name: &str,
    help: &str,
    samples: impl IntoIterator<Item = (Labels, i64)>,
) {
    let family = Family::<Labels, Gauge>::default();
    for (labels, value) in samples {
        family.get_or_create(&labels).set(value);
    }
    registry.register(name, help, family);
}

/// Registers a single value.
fn single(registry: &mut Registry, name: &str, help: &str, value: usize) {
    let gauge = Gauge::<i64>::default();
    gauge.set(value as i64);
    registry.register(name, help, gauge);
}

/// The keys of a group's VMs.
#[derive(Default)]
struct Grants {
    /// VMs with a TPM.
    vms: usize,
    /// How many of them each guardian opens.
    opened: HashMap<GuardianId, usize>,
}

impl Grants {
    fn add(&mut self, vm: &VmObserved) {
        self.vms += 1;
        let guardians = &vm.tpm.guardians;
        for (at, guardian) in guardians.iter().enumerate() {
            if !guardians[..at].contains(guardian) {
                *self.opened.entry(guardian.clone()).or_default() += 1;
            }
        }
    }

    /// How many a guardian does not open.
    fn lacking(&self, guardian: &GuardianId) -> usize {
        self.vms - self.opened.get(guardian).copied().unwrap_or(0)
    }
}

/// What is counted of VMs, in one pass over them.
#[derive(Default)]
struct Counted {
    by_state: HashMap<VmState, i64>,
    by_certificates: HashMap<CertificateState, i64>,
    rolls_due: usize,
    grants: HashMap<GroupName, Grants>,
}

impl Counted {
    fn of(world: &World) -> Self {
        let mut counted = Self::default();
        for vm in world.inventory.vms() {
            if !vm.is_managed() {
                continue;
            }
            let state = shown_state(world, &vm);
            *counted.by_state.entry(state).or_default() += 1;
            if let Some(found) = &vm.noted.secure_boot {
                *counted.by_certificates.entry(found.state).or_default() += 1;
            }
            counted.rolls_due += usize::from(vm.roll_due().next().is_some());
            if let Some(metadata) = &vm.metadata
                && vm.tpm.enabled
            {
                let group = &metadata.spec.group;
                match counted.grants.get_mut(group) {
                    Some(grants) => grants.add(&vm),
                    None => counted.grants.entry(group.clone()).or_default().add(&vm),
                }
            }
        }
        counted
    }
}

fn gauges(world: &World, now: OffsetDateTime) -> Registry {
    let mut registry = Registry::default();
    let (hosts, counted) = (world.hosts.all(), Counted::of(world));
    let joined = HostState::VARIANTS
        .iter()
        .filter(|state| **state != HostState::Invited);
    let states: Vec<_> = hosts.iter().map(|host| world.state_of(host)).collect();
    let by_state = joined.map(|state| {
        let count = states.iter().filter(|found| *found == state).count();
        (vec![("state", state.into_str().to_owned())], count as i64)
    });
    family(
        &mut registry,
        "fleetward_hosts",
        "Hosts of the fleet",
        by_state,
    );
    let by_state = VmState::VARIANTS.iter().map(|state| {
        let count = counted.by_state.get(state).copied().unwrap_or(0);
        (vec![("state", state.into_str().to_owned())], count)
    });
    family(
        &mut registry,
        "fleetward_vms",
        "VMs that Fleetward manages",
        by_state,
    );
    single(
        &mut registry,
        "fleetward_jobs_running",
        "Jobs that have not ended",
        world.holders.count(),
    );

    let mut ends = Vec::new();
    let mut soon = Vec::new();
    let mut certificates = Vec::new();
    let mut certificates_soon = Vec::new();
    let mut lacking = Vec::new();
    let mut broken = Vec::new();
    for host in &hosts {
        let of_host = || vec![("host", host.name.to_string())];
        if let Some(end) = host.guardian.not_after() {
            let guardian = ("guardian", host.guardian.id.short().to_owned());
            let labels = [of_host(), vec![guardian]].concat();
            ends.push((labels, end.unix_timestamp()));
            let warn = end - now <= EXPIRY_WARNING;
            soon.push((of_host(), i64::from(warn)));
        }
        if let Some(certificate) = &host.certificate {
            let end = certificate.not_after.unix_timestamp();
            certificates.push((of_host(), end));
            let warn = certificate.ends_soon(now);
            certificates_soon.push((of_host(), i64::from(warn)));
        }
        let group = counted.grants.get(&host.group);
        let without = group.map_or(0, |group| group.lacking(&host.guardian.id));
        lacking.push((of_host(), without as i64));
        let break_seen = world.audit.break_of(&host.name).is_some();
        broken.push((of_host(), i64::from(break_seen)));
    }
    family(
        &mut registry,
        "fleetward_guardian_not_after_timestamp_seconds",
        "When a host's own guardian expires",
        ends,
    );
    family(
        &mut registry,
        "fleetward_guardian_expires_soon",
        "1 when a host's own guardian expires within 180 days, or has expired",
        soon,
    );
    family(
        &mut registry,
        "fleetward_host_certificate_not_after_timestamp_seconds",
        "When a host's certificate ends; it is renewed at two thirds of its life",
        certificates,
    );
    family(
        &mut registry,
        "fleetward_host_certificate_ends_soon",
        "1 when a host's certificate should have been renewed and less than a sixth of its life is left",
        certificates_soon,
    );
    family(
        &mut registry,
        "fleetward_authority_not_after_timestamp_seconds",
        "When the fleet's authority ends, and every certificate of the fleet with it",
        [(Vec::new(), world.fleet.ends().unix_timestamp())],
    );
    let own = world.fleet.credential().current().not_after();
    family(
        &mut registry,
        "fleetward_controller_certificate_not_after_timestamp_seconds",
        "When the controller's own certificate ends; it is renewed at two thirds of its life",
        [(Vec::new(), own.unix_timestamp())],
    );
    family(
        &mut registry,
        "fleetward_vms_not_granted",
        "VMs of a host's group whose TPM key is not wrapped for the host",
        lacking,
    );
    single(
        &mut registry,
        "fleetward_tpm_rolls_due",
        "VMs whose TPM key a revoked guardian still knows",
        counted.rolls_due,
    );
    let (alerts, left_out) = world.alerts.counts();
    let alerts = alerts
        .into_iter()
        .map(|(code, count)| (vec![("code", code.as_str().to_owned())], count as i64));
    family(
        &mut registry,
        "fleetward_alerts",
        "Alerts that last, by code",
        alerts,
    );
    single(
        &mut registry,
        "fleetward_alerts_left_out",
        "What would be an alert, and there is no room for",
        left_out,
    );
    let (mut waiting, mut failing) = (Vec::new(), Vec::new());
    for target in world.alerts.targets() {
        let of_target = || vec![("target", target.name.to_string())];
        waiting.push((of_target(), i64::from(target.waiting)));
        failing.push((of_target(), i64::from(target.failure.is_some())));
    }
    family(
        &mut registry,
        "fleetward_alerts_waiting",
        "Alerts and ends of alerts that a target has not been told",
        waiting,
    );
    family(
        &mut registry,
        "fleetward_alert_target_failing",
        "1 when an alert target did not take the last message",
        failing,
    );
    let by_certificates = CertificateState::VARIANTS.iter().map(|state| {
        let count = counted.by_certificates.get(state).copied().unwrap_or(0);
        (vec![("state", state.into_str().to_owned())], count)
    });
    family(
        &mut registry,
        "fleetward_vms_by_secure_boot_certificates",
        "VMs by the state of their Secure Boot certificates",
        by_certificates,
    );
    family(
        &mut registry,
        "fleetward_audit_broken",
        "1 when a host's audit records do not follow from those read before",
        broken,
    );
    load::register(&mut registry, world);
    registry
}

//! The port's claims against real libvirt, QEMU and swtpm, on two hosts that are mount namespaces of this machine.
//!
//! Needs root, libvirtd, swtpm and OVMF; says so and succeeds where they are missing. Everything lies under one
//! directory; nothing of the machine's own libvirt is touched. No test harness: namespaces are entered while there is
//! only one thread.

#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

mod host;
mod layers;
mod moving;
mod tpm;

use fleetward_hypervisor::conformance::CLAIMS;
use host::{Lab, LocalHost};
use std::time::{Duration, Instant};

/// The one name this program shows to test runners.
const NAME: &str = "a_real_host_fulfils_the_port";

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, directory, name] = arguments.as_slice()
        && flag == host::BECOME_LIBVIRTD
    {
        host::become_libvirtd(directory.as_ref(), name);
    }
    if arguments.iter().any(|a| a == "--list") {
        if !arguments.iter().any(|a| a == "--ignored") {
            println!("{NAME}: test");
        }
        return;
    }
    let filters: Vec<&String> = arguments.iter().filter(|a| !a.starts_with('-')).collect();
    if !filters.is_empty() && !filters.iter().any(|filter| NAME.contains(filter.as_str())) {
        return;
    }
    if let Some(missing) = host::missing() {
        println!("{NAME}: skipped, {missing}");
        return;
    }
    let lab = Lab::enter();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let failed = runtime.block_on(run(&lab));
    runtime.block_on(lab.leave());
    if !failed.is_empty() {
        println!("{NAME}: failed: {failed:?}");
        std::process::exit(1);
    }
    println!("{NAME}: ok");
}

async fn run(lab: &Lab) -> Vec<&'static str> {
    let mut failed = Vec::new();
    for claim in CLAIMS {
        let here = lab.here();
        report(claim.name, &mut failed, async move {
            (claim.check)(&*here).await
        })
        .await;
    }
    let here = lab.here();
    report("the_ek_certificate_lands_in_the_tpm", &mut failed, {
        let here = here.clone();
        async move { tpm::the_ek_certificate_lands_in_the_tpm(&here).await }
    })
    .await;
    report("libvirt_uses_the_tpm_it_is_given", &mut failed, {
        let here = here.clone();
        async move { tpm::libvirt_uses_the_tpm_it_is_given(&here).await }
    })
    .await;
    report("state_changes_its_key", &mut failed, {
        let here = here.clone();
        async move { tpm::state_changes_its_key(&here).await }
    })
    .await;
    report("a_windows_vm_starts_with_secure_boot", &mut failed, {
        let here = here.clone();
        async move { tpm::a_windows_vm_starts_with_secure_boot(&here).await }
    })
    .await;
    report("volumes_are_what_they_seem", &mut failed, {
        let here = here.clone();
        async move { host::volumes_are_what_they_seem(&here).await }
    })
    .await;
    let layered = here.clone();
    report("bases_go_with_the_last_that_builds_on_them", &mut failed, {
        async move { layers::bases_go_with_the_last_that_builds_on_them(&layered).await }
    })
    .await;
    let layered = here.clone();
    report("chains_that_lead_elsewhere_are_refused", &mut failed, {
        async move { layers::chains_that_lead_elsewhere_are_refused(&layered).await }
    })
    .await;
    let layered = here.clone();
    report("a_running_domain_goes_on_over_an_overlay", &mut failed, {
        async move { layers::a_running_domain_goes_on_over_an_overlay(&layered).await }
    })
    .await;
    let there = lab.there();
    report("a_cancelled_migration_leaves_the_vm_here", &mut failed, {
        let (here, there) = (here.clone(), there.clone());
        async move { moving::a_cancelled_migration_leaves_the_vm_here(&here, &there).await }
    })
    .await;
    report("a_vm_with_a_tpm_moves_and_waits", &mut failed, {
        let (here, there) = (here.clone(), there.clone());
        async move { moving::a_vm_with_a_tpm_moves_and_waits(&here, &there).await }
    })
    .await;
    report("libvirtd_may_restart", &mut failed, {
        let here = here.clone();
        async move { moving::libvirtd_may_restart(&here).await }
    })
    .await;
    failed
}

/// Runs one claim in a task of its own, so that its panic is its own.
async fn report(
    name: &'static str,
    failed: &mut Vec<&'static str>,
    claim: impl Future<Output = ()> + Send + 'static,
) {
    let started = Instant::now();
    let task = tokio::spawn(claim);
    let ended = tokio::time::timeout(Duration::from_secs(120), task).await;
    let verdict = if matches!(ended, Ok(Ok(()))) {
        "ok"
    } else {
        failed.push(name);
        "FAILED"
    };
    println!(
        "  {name} ... {verdict} ({} ms)",
        started.elapsed().as_millis()
    );
}

/// Shared by the claims of this test.
pub(crate) type Host = std::sync::Arc<LocalHost>;

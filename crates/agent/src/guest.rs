//! What guests say of themselves: name, system and addresses, asked of their agents now and then.
//!
//! A guest is never trusted: how long it may take and how much it may say is bounded, what is shown of it is made harmless
//! (`fleetward_model::guest`), and one that does not answer is asked less often. A few are asked at once, beside everything
//! else that the agent does. Where no agent answers, the host's own neighbours and leases tell addresses.

use crate::host::Host;
use fleetward_hypervisor::{DomainObserved, DomainState, NicAddresses};
use fleetward_model::VmId;
use fleetward_model::guest::{GuestObserved, shown_name, shown_nics};
use futures_util::{StreamExt, stream};
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How often guests are asked.
const EVERY: Duration = Duration::from_secs(10);
/// How often one is asked that has not answered.
const SILENT_EVERY: Duration = Duration::from_secs(60);
/// Guests that are asked at once.
const AT_ONCE: usize = 4;
/// The hypervisor has limits of its own; this is for one that does not keep them.
const LIMIT: Duration = Duration::from_secs(30);

/// What is known of running guests.
#[derive(Debug, Default)]
pub(crate) struct Guests(Mutex<HashMap<VmId, Known>>);

#[derive(Debug, Default)]
struct Known {
    told: GuestObserved,
    /// When it last did not answer, although its agent is there.
    silent: Option<Instant>,
    /// Since when it has answered each time; a guest that boots anew begins anew.
    answers: Option<Instant>,
}

impl Guests {
    /// For the report of a VM.
    pub(crate) fn of(&self, vm: VmId) -> Option<GuestObserved> {
        self.lock().get(&vm).map(|known| known.told.clone())
    }

    /// For how long its agent has answered each time it was asked.
    pub(crate) fn answering(&self, vm: VmId) -> Option<Duration> {
        let guests = self.lock();
        let since = guests.get(&vm).and_then(|known| known.answers);
        since.map(|since| since.elapsed())
    }

    /// Whether it is worth asking.
    fn may_answer(&self, vm: VmId) -> bool {
        let guests = self.lock();
        let silent = guests.get(&vm).and_then(|known| known.silent);
        silent.is_none_or(|since| since.elapsed() >= SILENT_EVERY)
    }

    /// Whether that is news.
    fn learn(&self, vm: VmId, told: GuestObserved, silent: bool) -> bool {
        let mut guests = self.lock();
        let new = !guests.contains_key(&vm);
        let known = guests.entry(vm).or_default();
        known.silent = silent.then(Instant::now);
        known.answers = match told.agent {
            true => known.answers.or_else(|| Some(Instant::now())),
            false => None,
        };
        let news = new || known.told != told;
        known.told = told;
        news
    }

    /// Forgets guests that do not run; those that were known.
    fn keep(&self, running: &HashSet<VmId>) -> Vec<VmId> {
        let mut guests = self.lock();
        let gone: Vec<VmId> = guests
            .keys()
            .filter(|vm| !running.contains(vm))
            .copied()
            .collect();
        for vm in &gone {
            guests.remove(vm);
        }
        gone
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks until `stop`.
pub(crate) async fn watch(host: Arc<Host>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        // libvirt is away: there is nobody to ask.
        if let Ok(domains) = host.hypervisor.list().await {
            look(&host, domains).await;
        }
    }
}

async fn look(host: &Host, domains: Vec<DomainObserved>) {
    let running: Vec<DomainObserved> = domains
        .into_iter()
        .filter(|domain| domain.metadata.is_some() && domain.state == DomainState::Running)
        .collect();
    for vm in host
        .guests
        .keep(&running.iter().map(|domain| domain.id).collect())
    {
        host.observer.look_at(vm);
    }
    stream::iter(running)
        .for_each_concurrent(AT_ONCE, |domain| async move {
            // One that moves is asked where it arrives, and one that hangs when it goes on.
            if !host.operations.is_busy(domain.id) && host.machines.answers(domain.id) {
                ask(host, &domain).await;
            }
        })
        .await;
}

async fn ask(host: &Host, domain: &DomainObserved) {
    let vm = domain.id;
    let asked = domain.guest_agent && host.guests.may_answer(vm);
    let told = match asked {
        true => match tokio::time::timeout(LIMIT, host.hypervisor.ask_guest(vm)).await {
            Ok(Ok(told)) => Some(told),
            Ok(Err(error)) => {
                tracing::debug!(%vm, error = &error as &dyn std::error::Error, "a guest agent does not answer");
                None
            }
            Err(_) => None,
        },
        false => None,
    };
    if domain.guest_agent && !asked {
        return; // as it was, until it is asked again
    }
    let silent = domain.guest_agent && told.is_none();
    let observed = match told {
        Some(told) => GuestObserved {
            agent: true,
            host_name: told.host_name.as_deref().and_then(shown_name),
            os: told.os.as_deref().and_then(shown_name),
            nics: nics(domain, told.addresses),
        },
        None => {
            let seen = tokio::time::timeout(LIMIT, host.hypervisor.neighbours(vm)).await;
            let seen = seen.ok().and_then(Result::ok).unwrap_or_default();
            GuestObserved {
                nics: nics(domain, seen),
                ..GuestObserved::default()
            }
        }
    };
    if host.guests.learn(vm, observed, silent) {
        host.observer.look_at(vm);
    }
}

fn nics(domain: &DomainObserved, told: Vec<NicAddresses>) -> Vec<fleetward_model::guest::GuestNic> {
    let cards = domain
        .metadata
        .iter()
        .flat_map(|metadata| &metadata.spec.nics);
    let told: Vec<_> = told
        .into_iter()
        .map(|card| (card.mac, card.addresses))
        .collect();
    shown_nics(cards.map(|card| card.mac.as_str()), &told)
}

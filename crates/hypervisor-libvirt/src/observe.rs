//! Everything about a domain, also while its QEMU does not answer.
//!
//! libvirt tells a domain's definition only when nobody waits for QEMU, and else keeps the question for half a minute. QEMU is
//! not asked for what does not change by itself: then the definition that was last told counts, as of then.

use crate::binding::{self, Connection};
use crate::domain_edit;
use crate::domain_read::{self, Basics};
use crate::host::{domain_id, failed, gone_or, quick_state, read_metadata};
use fleetward_hypervisor::{DomainObserved, DomainState, Result};
use fleetward_model::host::Accelerator;
use fleetward_model::{ByteSize, VmId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use virt::domain::Domain;

/// QEMU answers a question of libvirt's within this as a rule.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks at whether it has.
const PACE: Duration = Duration::from_millis(50);

/// The definitions of running domains, as libvirt last told them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told(Arc<Mutex<HashMap<VmId, Definitions>>>);

#[derive(Debug, Clone)]
struct Definitions {
    /// libvirt's number of this run of the domain.
    run: u32,
    at: SystemTime,
    now: String,
    /// What it starts with next; none where nothing of it stays.
    next: Option<String>,
}

impl Told {
    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, Definitions>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of this run of a domain; what was told of an earlier one is forgotten.
    fn of(&self, id: VmId, run: Option<u32>) -> Option<Definitions> {
        let mut told = self.lock();
        let known = told.get(&id)?;
        if Some(known.run) == run {
            return Some(known.clone());
        }
        told.remove(&id);
        None
    }
}

/// Everything about one domain: one pass, a handful of calls.
pub(crate) fn observe(
    domain: &Domain,
    accelerator: Accelerator,
    told: &Told,
) -> Result<DomainObserved> {
    let seen = quick_state(domain)?;
    let id = seen.id;
    let name = domain.get_name().map_err(gone_or(id, "name the domain"))?;
    let info = domain
        .get_info()
        .map_err(gone_or(id, "see the domain's size"))?;
    let basics = Basics {
        id,
        name: domain_read::vm_name(&name, id),
        domain_name: name,
        state: seen.state,
        reason: seen.reason,
        persistent: seen.persistent,
        cpus: info.nr_virt_cpu,
        memory: ByteSize(info.max_mem * 1024),
    };
    if seen.definition_waits {
        let metadata = read_metadata(domain);
        return Ok(domain_read::observed_in_part(basics, metadata, accelerator));
    }
    let run = domain.get_id();
    let former = told.of(id, run);
    let active = !matches!(basics.state, DomainState::Stopped(_));
    if active && !answers(domain) {
        return Ok(as_of_then(domain, basics, accelerator, former));
    }
    let definition = |flags| {
        let xml = domain.get_xml_desc(flags);
        xml.map_err(gone_or(id, "read the domain's definition"))
    };
    let now = definition(0)?;
    let next = match (basics.persistent, active) {
        (false, _) => None,
        (true, false) => Some(now.clone()),
        (true, true) => Some(definition(virt_sys::VIR_DOMAIN_XML_INACTIVE)?),
    };
    let mut observed = domain_read::observed(basics, &now);
    observed.defined = next.as_deref().and_then(domain_edit::defined);
    if let Some(run) = run.filter(|_| active) {
        let definitions = Definitions {
            run,
            at: SystemTime::now(),
            now,
            next,
        };
        told.lock().insert(id, definitions);
    }
    Ok(observed)
}

/// With what was told before QEMU ceased to answer. Our metadata libvirt tells at any time.
fn as_of_then(
    domain: &Domain,
    basics: Basics,
    accelerator: Accelerator,
    former: Option<Definitions>,
) -> DomainObserved {
    let metadata = read_metadata(domain);
    let Some(former) = former else {
        return domain_read::observed_in_part(basics, metadata, accelerator);
    };
    let mut observed = domain_read::observed(basics, &former.now);
    observed.defined = former.next.as_deref().and_then(domain_edit::defined);
    (observed.metadata, observed.newer) = domain_read::apart(metadata);
    observed.as_of = Some(former.at);
    observed
}

/// Whether QEMU has no question of libvirt's before it, or answers that one soon.
fn answers(domain: &Domain) -> bool {
    let begin = Instant::now();
    loop {
        match binding::unanswered(domain) {
            None => return true,
            Some(waiting) if waiting >= PATIENCE || begin.elapsed() >= PATIENCE => {
                return false;
            }
            Some(_) => std::thread::sleep(PACE),
        }
    }
}

/// For how long QEMU has not answered libvirt, of each running domain that libvirt has asked something.
pub(crate) fn unanswered(connection: &Connection) -> Result<HashMap<VmId, Duration>> {
    let running = connection
        .list_all_domains(virt_sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        .map_err(failed("list domains"))?;
    let waiting = |domain: &Domain| Some((domain_id(domain).ok()?, binding::unanswered(domain)?));
    Ok(running.iter().filter_map(waiting).collect())
}

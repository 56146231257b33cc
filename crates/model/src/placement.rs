//! Placement: which host takes a new VM. A pure function over what the hosts last reported.
//!
//! Among the hosts that fit, the one with the most free memory is chosen, then the one with the fewest VMs, then the
//! first by name. Running creations count as existing VMs. For each host that does not fit, the result has the reason.

use crate::error::Finding;
use crate::host::{Accelerator, HostFacts, HostState};
use crate::{ByteSize, ErrorCode, Failure, GroupName, HostName, Names, PoolName};
use std::collections::BTreeMap;

/// What a VM needs of a host.
#[derive(Debug, Clone, Default)]
pub struct Needs {
    /// Only this host.
    pub host: Option<HostName>,
    /// Only hosts of this group.
    pub group: Option<GroupName>,
    /// Never this one: the host that is being drained.
    pub except: Option<HostName>,
    /// Bytes that are certainly written, by pool.
    pub pools: BTreeMap<PoolName, ByteSize>,
    pub memory: ByteSize,
    /// It runs right away, so the memory must be free and not only there.
    pub start: bool,
    pub tpm: bool,
    pub secure_boot: bool,
    /// A running VM stays with its accelerator.
    pub accelerator: Option<Accelerator>,
}

/// A host as placement sees it.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    pub name: &'a HostName,
    pub group: &'a GroupName,
    pub state: HostState,
    pub facts: Option<&'a HostFacts>,
    /// VMs on it, creations under way included.
    pub vms: u32,
    /// Memory that creations under way will take.
    pub reserved_memory: ByteSize,
    /// Space that creations under way will take.
    pub reserved_space: BTreeMap<PoolName, ByteSize>,
}

impl Candidate<'_> {
    fn memory_left(&self) -> ByteSize {
        let free = self.facts.map_or(ByteSize(0), |f| f.memory_available);
        ByteSize(free.0.saturating_sub(self.reserved_memory.0))
    }

    fn space_left(&self, pool: &PoolName) -> Option<ByteSize> {
        let available = self.facts?.pool(pool)?.available;
        let reserved = self.reserved_space.get(pool).map_or(0, |size| size.0);
        Some(ByteSize(available.0.saturating_sub(reserved)))
    }
}

/// Chooses a host.
///
/// # Errors
/// Where one host was asked for: its first reason. Else `NO_HOST_FITS` with one finding for each host.
pub fn place(needs: &Needs, candidates: &[Candidate<'_>]) -> Result<HostName, Failure> {
    let mut refusals = Vec::new();
    let mut fitting = Vec::new();
    for candidate in candidates {
        let asked_for = needs.host.as_ref().is_none_or(|h| h == candidate.name);
        if !asked_for || needs.except.as_ref() == Some(candidate.name) {
            continue;
        }
        match refusal(needs, candidate) {
            None => fitting.push(candidate),
            Some(finding) => refusals.push(finding),
        }
    }
    let best = fitting.iter().max_by(|a, b| {
        (a.memory_left().cmp(&b.memory_left()))
            .then(b.vms.cmp(&a.vms))
            .then(b.name.cmp(a.name))
    });
    if let Some(best) = best {
        return Ok(best.name.clone());
    }
    if let Some(host) = &needs.host {
        let what = format!("the VM cannot be placed on host {host}");
        return Err(Failure::from_findings(what, refusals)
            .unwrap_or_else(|| Failure::new(ErrorCode::HostNotFound, format!("no host {host}"))));
    }
    let because = match refusals.as_slice() {
        [] => "there is no other host in the fleet".to_owned(),
        some => some
            .iter()
            .map(|finding| finding.what.as_str())
            .collect::<Vec<_>>()
            .join("; "),
    };
    let mut failure =
        Failure::new(ErrorCode::NoHostFits, "no host can take the VM").because(because);
    failure.findings = refusals;
    Err(failure)
}

/// The first reason why a host does not take the VM.
fn refusal(needs: &Needs, candidate: &Candidate<'_>) -> Option<Finding> {
    let host = candidate.name;
    let names = Names::default().host(host);
    if let Some(group) = &needs.group
        && group != candidate.group
    {
        let what = format!(
            "host {host} belongs to group {}, not {group}",
            candidate.group
        );
        return Some(Finding::usual(ErrorCode::GroupForbids, what));
    }
    match candidate.state {
        HostState::Online => {}
        HostState::Drained => {
            let what = format!("host {host} is drained");
            return Some(Finding::usual(ErrorCode::HostDrained, what).about(&names));
        }
        HostState::Invited => {
            let what = format!("host {host} has not joined yet");
            return Some(Finding::usual(ErrorCode::HostUnreachable, what).about(&names));
        }
        HostState::Unreachable => {
            let what = format!("host {host} does not answer");
            return Some(Finding::usual(ErrorCode::HostUnreachable, what).about(&names));
        }
    }
    let Some(facts) = candidate.facts else {
        let what = format!("host {host} has not reported yet");
        return Some(Finding::usual(ErrorCode::CheckUnavailable, what));
    };
    if needs.tpm && facts.versions.swtpm.is_none() {
        let what = format!("host {host} has no swtpm");
        return Some(Finding::usual(ErrorCode::SwtpmMissing, what));
    }
    if needs.secure_boot && !facts.secure_boot {
        let what = format!("host {host} has no firmware with Secure Boot");
        return Some(Finding::usual(ErrorCode::SecureBootMissing, what));
    }
    if let Some(wanted) = needs.accelerator
        && wanted != facts.accelerator
    {
        let (has, wants) = (facts.accelerator.as_str(), wanted.as_str());
        let what = format!("host {host} runs VMs with {has}, the VM with {wants}");
        return Some(Finding::usual(ErrorCode::AcceleratorDiffers, what));
    }
    for (pool, needed) in &needs.pools {
        match candidate.space_left(pool) {
            None => {
                let what = format!("host {host} has no pool {pool}");
                return Some(Finding::usual(ErrorCode::PoolMissing, what));
            }
            Some(left) if left < *needed => {
                let what =
                    format!("pool {pool} of host {host} has {left} left, {needed} are needed");
                return Some(Finding::usual(ErrorCode::NoSpace, what));
            }
            Some(_) => {}
        }
    }
    let (there, word) = if needs.start {
        (candidate.memory_left(), "free")
    } else {
        (facts.memory, "in all")
    };
    (there < needs.memory).then(|| {
        let what = format!(
            "host {host} has {there} of memory {word}, the VM needs {}",
            needs.memory
        );
        Finding::usual(ErrorCode::NoMemory, what)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::samples;

    fn needs() -> Needs {
        Needs {
            pools: [(PoolName::default(), ByteSize::gib(1))].into(),
            memory: ByteSize::gib(1),
            start: true,
            tpm: true,
            secure_boot: true,
            ..Needs::default()
        }
    }

    fn candidate(facts: &HostFacts) -> Candidate<'_> {
        Candidate {
            name: &facts.host,
            group: &facts.group,
            state: HostState::Online,
            facts: Some(facts),
            vms: 0,
            reserved_memory: ByteSize(0),
            reserved_space: BTreeMap::new(),
        }
    }

    #[test]
    fn the_host_with_most_memory_left_wins() {
        let (a, mut b) = (samples::facts("a"), samples::facts("b"));
        b.memory_available = ByteSize(a.memory_available.0 + 1);
        let hosts = [candidate(&a), candidate(&b)];
        assert_eq!(place(&needs(), &hosts).expect("fits").as_str(), "b");
    }

    #[test]
    fn creations_under_way_count() {
        let (a, b) = (samples::facts("a"), samples::facts("b"));
        let mut hosts = [candidate(&a), candidate(&b)];
        hosts[0].reserved_memory = ByteSize::gib(1);
        assert_eq!(place(&needs(), &hosts).expect("fits").as_str(), "b");
        hosts[1].reserved_space = [(PoolName::default(), ByteSize::gib(10_000))].into();
        assert_eq!(place(&needs(), &hosts).expect("fits").as_str(), "a");
    }

    #[test]
    fn each_requirement_alone_refuses_with_its_code() {
        type Change = fn(&mut Needs, &mut HostFacts, &mut HostState);
        let cases: [(ErrorCode, Change); 9] = [
            (ErrorCode::GroupForbids, |n, _, _| {
                n.group = "x".parse().ok()
            }),
            (ErrorCode::HostDrained, |_, _, s| *s = HostState::Drained),
            (ErrorCode::HostUnreachable, |_, _, s| {
                *s = HostState::Unreachable
            }),
            (ErrorCode::SwtpmMissing, |_, f, _| f.versions.swtpm = None),
            (ErrorCode::SecureBootMissing, |_, f, _| {
                f.secure_boot = false
            }),
            (ErrorCode::AcceleratorDiffers, |n, _, _| {
                n.accelerator = Some(Accelerator::Kvm);
            }),
            (ErrorCode::PoolMissing, |_, f, _| f.pools.clear()),
            (ErrorCode::NoSpace, |_, f, _| {
                f.pools[0].available = ByteSize(1)
            }),
            (ErrorCode::NoMemory, |_, f, _| {
                f.memory_available = ByteSize(1)
            }),
        ];
        for (code, change) in cases {
            let (mut needs, mut facts, mut state) =
                (needs(), samples::facts("a"), HostState::Online);
            change(&mut needs, &mut facts, &mut state);
            let host = Candidate {
                state,
                ..candidate(&facts)
            };
            let none = place(&needs, std::slice::from_ref(&host)).expect_err("refused");
            assert_eq!(none.code, ErrorCode::NoHostFits);
            assert_eq!(none.findings[0].code, code);
            needs.host = Some(facts.host.clone());
            let asked = place(&needs, &[host]).expect_err("refused");
            assert_eq!(asked.code, code);
        }
    }

    #[test]
    fn a_host_nobody_knows_is_not_found() {
        let needs = Needs {
            host: "ghost".parse().ok(),
            ..needs()
        };
        assert_eq!(
            place(&needs, &[]).expect_err("refused").code,
            ErrorCode::HostNotFound
        );
    }
}

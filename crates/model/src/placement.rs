//! Placement: which host takes a new VM. A pure function over what the hosts last reported.
//!
//! Among the hosts that fit, the one with the most free memory is chosen, then the one with the fewest VMs, then the
//! first by name. Running creations count as existing VMs. For each host that does not fit, the result has the reason.

use crate::fit::{HostOffer, Needs, host_fits};
use crate::{ErrorCode, Failure, HostName};

/// Which hosts come into question.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// Only this host.
    pub host: Option<HostName>,
    /// Never this one: the host that is being drained.
    pub except: Option<HostName>,
}

/// A host as placement sees it.
#[derive(Debug, Clone)]
pub struct Candidate<'a> {
    pub offer: HostOffer<'a>,
    /// VMs on it, creations under way included.
    pub vms: u32,
}

/// Chooses a host.
///
/// # Errors
/// Where one host was asked for: its first reason. Else `NO_HOST_FITS` with one finding for each host.
pub fn place(
    needs: &Needs,
    choice: &Choice,
    candidates: &[Candidate<'_>],
) -> Result<HostName, Failure> {
    let mut refusals = Vec::new();
    let mut fitting = Vec::new();
    for candidate in candidates {
        let name = candidate.offer.name;
        let asked_for = choice.host.as_ref().is_none_or(|host| host == name);
        if !asked_for || choice.except.as_ref() == Some(name) {
            continue;
        }
        let found = host_fits(needs, &candidate.offer);
        let mut blocking = found.into_iter().filter(|finding| finding.blocking);
        match (blocking.next(), &choice.host) {
            (None, _) => fitting.push(candidate),
            // Whoever asks for one host gets every reason; of several, one each.
            (Some(first), Some(_)) => refusals.extend([first].into_iter().chain(blocking)),
            (Some(first), None) => refusals.push(first),
        }
    }
    let best = fitting.iter().max_by(|a, b| {
        (a.offer.memory_left().cmp(&b.offer.memory_left()))
            .then(b.vms.cmp(&a.vms))
            .then(b.offer.name.cmp(a.offer.name))
    });
    if let Some(best) = best {
        return Ok(best.offer.name.clone());
    }
    if let Some(host) = &choice.host {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fit::{DiskNeed, Reserved};
    use crate::host::{Accelerator, HostFacts, HostState, Version};
    use crate::preflight::samples;
    use crate::{ByteSize, PoolName};

    fn needs() -> Needs {
        Needs {
            disks: vec![DiskNeed {
                target: "vda".into(),
                written: ByteSize::gib(1),
                ..DiskNeed::default()
            }],
            memory: ByteSize::gib(1),
            runs: true,
            tpm: true,
            secure_boot: true,
            ..Needs::default()
        }
    }

    fn candidate(facts: &HostFacts) -> Candidate<'_> {
        Candidate {
            offer: HostOffer {
                name: &facts.host,
                group: &facts.group,
                state: HostState::Online,
                facts: Some(facts),
                reserved: Reserved::default(),
            },
            vms: 0,
        }
    }

    #[test]
    fn the_host_with_most_memory_left_wins() {
        let (a, mut b) = (samples::facts("a"), samples::facts("b"));
        b.memory_available = ByteSize(a.memory_available.0 + 1);
        let hosts = [candidate(&a), candidate(&b)];
        assert_eq!(
            place(&needs(), &Choice::default(), &hosts)
                .expect("fits")
                .as_str(),
            "b"
        );
    }

    #[test]
    fn creations_under_way_count() {
        let (a, b) = (samples::facts("a"), samples::facts("b"));
        let mut hosts = [candidate(&a), candidate(&b)];
        hosts[0].offer.reserved.memory = ByteSize::gib(1);
        assert_eq!(
            place(&needs(), &Choice::default(), &hosts)
                .expect("fits")
                .as_str(),
            "b"
        );
        hosts[1].offer.reserved.space = [(PoolName::default(), ByteSize::gib(10_000))].into();
        assert_eq!(
            place(&needs(), &Choice::default(), &hosts)
                .expect("fits")
                .as_str(),
            "a"
        );
    }

    #[test]
    fn each_requirement_alone_refuses_with_its_code() {
        type Change = fn(&mut Needs, &mut HostFacts, &mut HostState);
        let cases: [(ErrorCode, Change); 13] = [
            (ErrorCode::GroupForbids, |n, _, _| {
                n.group = "x".parse().ok()
            }),
            (ErrorCode::HostDrained, |_, _, s| *s = HostState::Drained),
            (ErrorCode::HostUnreachable, |_, _, s| {
                *s = HostState::Unreachable
            }),
            (ErrorCode::LibvirtTooOld, |_, f, _| {
                f.versions.libvirt = Version::new(8, 0, 0);
            }),
            (ErrorCode::QemuTooOld, |_, f, _| {
                f.versions.qemu = Version::new(7, 0, 0);
            }),
            (ErrorCode::SwtpmTooOld, |_, f, _| {
                f.versions.swtpm = Some(Version::new(0, 6, 0));
            }),
            (ErrorCode::MachineMissing, |n, f, _| {
                n.machine = Some("pc-q35-10.0".into());
                f.machines.clear();
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
            let mut host = candidate(&facts);
            host.offer.state = state;
            let any = Choice::default();
            let none = place(&needs, &any, std::slice::from_ref(&host)).expect_err("refused");
            assert_eq!(none.code, ErrorCode::NoHostFits);
            assert_eq!(none.findings[0].code, code);
            let this = Choice {
                host: Some(facts.host.clone()),
                ..Choice::default()
            };
            let asked = place(&needs, &this, &[host]).expect_err("refused");
            assert_eq!(asked.code, code);
        }
    }

    #[test]
    fn a_host_nobody_knows_is_not_found() {
        let ghost = Choice {
            host: "ghost".parse().ok(),
            ..Choice::default()
        };
        assert_eq!(
            place(&needs(), &ghost, &[]).expect_err("refused").code,
            ErrorCode::HostNotFound
        );
    }
}

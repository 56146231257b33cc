use super::samples::{self, NOW};
use super::*;
use crate::ByteSize;
use crate::host::{Accelerator, Confinement, Version};
use crate::vm::{QemuHangs, QemuProcess, TpmProcess, VmState};

/// The facts of a move that fits, in pieces a test can spoil.
struct Case {
    mode: Mode,
    trust: TrustMode,
    vm: VmObserved,
    here: Option<HostFacts>,
    there: Option<HostFacts>,
    reachable: (bool, bool),
    drained: bool,
    source_opening: Option<Opening>,
    incoming: Option<Incoming>,
    destination: HostName,
    destination_group: GroupName,
    /// Of both hosts.
    former: Vec<GuardianId>,
    members: usize,
    written: Option<TpmWriter>,
}

fn fitting() -> Case {
    Case {
        mode: Mode::Live,
        trust: TrustMode::Auto,
        vm: samples::vm("a"),
        here: Some(samples::facts("a")),
        there: Some(samples::facts("b")),
        reachable: (true, true),
        drained: false,
        source_opening: Some(Opening::Yes),
        incoming: Some(Incoming {
            uuid_taken: Some(false),
            name_taken: Some(false),
            cpu_problem: None,
            flash_problem: None,
            opening: Opening::NotGranted,
        }),
        destination: "b".parse().expect("name"),
        destination_group: GroupName::default(),
        former: Vec::new(),
        members: 2,
        written: None,
    }
}

/// The same, granted already.
fn granted() -> Case {
    let mut case = fitting();
    case.incoming().opening = Opening::Yes;
    case
}

impl Case {
    fn there(&mut self) -> &mut HostFacts {
        self.there.as_mut().expect("facts")
    }

    fn incoming(&mut self) -> &mut Incoming {
        self.incoming.as_mut().expect("answer")
    }

    fn findings(&self) -> Vec<Finding> {
        let (here, group) = ("a".parse().expect("name"), GroupName::default());
        check(&Facts {
            mode: self.mode,
            now: NOW,
            trust: self.trust,
            vm: &self.vm,
            tpm_written: self.written.clone(),
            members: self.members,
            source: Side {
                name: &here,
                group: &group,
                reachable: self.reachable.0,
                drained: false,
                facts: self.here.as_ref(),
                reported: Some(NOW),
                former: &self.former,
                reserved: Reserved::default(),
            },
            destination: Side {
                name: &self.destination,
                group: &self.destination_group,
                reachable: self.reachable.1,
                drained: self.drained,
                facts: self.there.as_ref(),
                reported: Some(NOW),
                former: &self.former,
                reserved: Reserved::default(),
            },
            source_opening: self.source_opening.clone(),
            incoming: self.incoming.clone(),
        })
    }

    fn codes(&self) -> Vec<ErrorCode> {
        let findings = self.findings();
        findings
            .iter()
            .filter(|f| f.blocking)
            .map(|f| f.code)
            .collect()
    }
}

#[test]
fn a_host_that_was_installed_anew_is_told_how_to_open_again() {
    let mut case = fitting();
    case.trust = TrustMode::Manual;
    let lost = GuardianId::from_digest([7; 32]);
    case.vm.tpm.guardians.push(lost.clone());
    case.former.push(lost);
    let said = case.findings();
    let said = said
        .iter()
        .find(|f| f.code == ErrorCode::KeyNotGranted)
        .expect("refused");
    assert!(said.what.contains("installed anew"), "{said:?}");
    assert!(said.fix.contains("guardian grant") && said.fix.contains("import-pfx"));
    // at home nobody can grant, and the way by PFX is left
    stop(&mut case);
    case.mode = Mode::Start;
    case.destination = "a".parse().expect("name");
    case.source_opening = Some(Opening::NotGranted);
    let said = case.findings();
    assert!(
        said.iter().any(|f| f.what.contains("installed anew")),
        "{said:?}"
    );
}

fn stop(case: &mut Case) {
    case.mode = Mode::Stopped;
    case.vm.state = VmState::Stopped;
}

#[test]
fn nothing_speaks_against_hosts_that_fit() {
    let mut case = granted();
    assert_eq!(case.findings(), []);
    stop(&mut case);
    assert_eq!(case.findings(), []);
    case.mode = Mode::Start;
    case.destination = "a".parse().expect("name");
    case.incoming = None;
    assert_eq!(case.findings(), []);
}

#[test]
fn a_host_that_confines_no_vm_takes_it_and_says_so() {
    let mut case = granted();
    case.there().confinement = Some(Confinement::None);
    let found = case.findings();
    let [one] = found.as_slice() else {
        panic!("one remark: {found:?}");
    };
    assert_eq!((one.code, one.blocking), (ErrorCode::HostUnconfined, false));
    assert!(one.what.contains("host b"), "{one:?}");
    assert!(one.fix.contains("apparmor"), "{one:?}");
    case.there().confinement = None;
    assert_eq!(case.findings(), [], "an agent that does not tell");
    case.there().confinement = Some(Confinement::Selinux);
    assert_eq!(case.findings(), []);
}

#[test]
fn each_rule_alone_says_its_code() {
    use ErrorCode as C;
    type Spoil = fn(&mut Case);
    let cases: &[(C, Spoil)] = &[
        (C::VmNotManaged, |c| c.vm.metadata = None),
        (C::AgentTooOld, |c| {
            c.there().formats = Default::default();
            let metadata = c.vm.metadata.as_mut().expect("a VM of ours");
            metadata.spec.autostart = true;
        }),
        (C::SpecNewer, |c| {
            c.vm.metadata = None;
            c.vm.newer = Some(crate::vm::NewerSpec { version: 3 });
        }),
        (C::SameHost, |c| c.destination = "a".parse().expect("name")),
        (C::KeyNotGranted, |c| c.there().guardians.clear()),
        (C::KeyNotGranted, |c| {
            c.source_opening = Some(Opening::NotGranted)
        }),
        (C::KeyProtectorUnreadable, |c| {
            c.source_opening = Some(Opening::Unreadable("torn".into()));
        }),
        (C::KeyProtectorUnreadable, |c| {
            c.incoming().opening = Opening::Unreadable("torn".into());
        }),
        (C::CheckUnavailable, |c| c.source_opening = None),
        (C::GuardianExpired, |c| {
            for certificate in &mut c.there().guardians[0].certificates {
                certificate.not_after = NOW - Duration::days(1);
            }
        }),
        (C::ClocksApart, |c| {
            for certificate in &mut c.there().guardians[0].certificates {
                certificate.not_before = NOW + Duration::hours(2);
            }
        }),
        (C::HostUnreachable, |c| c.reachable.0 = false),
        (C::HostUnreachable, |c| {
            c.reachable.1 = false;
            c.incoming = None;
        }),
        (C::CheckUnavailable, |c| c.incoming = None),
        (C::CheckUnavailable, |c| c.there = None),
        (C::HostDrained, |c| c.drained = true),
        (C::VmNotRunning, |c| c.vm.state = VmState::Stopped),
        (C::VmStateWrong, |c| c.vm.state = VmState::Paused),
        (C::VmRunning, |c| c.mode = Mode::Stopped),
        (C::TpmStateMissing, |c| {
            stop(c);
            c.vm.tpm.state_present = false;
        }),
        (C::TpmNotAnswering, |c| {
            c.vm.tpm.process = Some(TpmProcess::Stopped { pid: 7 })
        }),
        (C::TpmNotAnswering, |c| {
            c.vm.tpm.process = Some(TpmProcess::Gone)
        }),
        (C::QemuNotAnswering, |c| {
            c.vm.noted.qemu = Some(QemuProcess::Stopped { pid: 7 })
        }),
        (C::QemuNotAnswering, |c| {
            c.vm.noted.hangs = Some(QemuHangs {
                since: NOW,
                pid: Some(7),
                in_kernel: true,
                shown_as_of: None,
            })
        }),
        (C::SwtpmMissing, |c| c.there().versions.swtpm = None),
        (C::MachineMissing, |c| c.there().machines.clear()),
        (C::CpuIncompatible, |c| {
            c.incoming().cpu_problem = Some("avx512f".into())
        }),
        (C::FirmwareDiffers, |c| {
            c.incoming().flash_problem = Some("there is no OVMF_CODE_4M.fd".into())
        }),
        (C::AcceleratorDiffers, |c| {
            c.there().accelerator = Accelerator::Kvm
        }),
        (C::SecureBootMissing, |c| c.there().secure_boot = false),
        (C::PoolMissing, |c| c.there().pools.clear()),
        (C::PoolPathDiffers, |c| {
            c.there().pools[0].path = "/srv".into()
        }),
        (C::NoSpace, |c| c.there().pools[0].available = ByteSize(1)),
        (C::NoMemory, |c| c.there().memory_available = ByteSize(1)),
        (C::UuidTaken, |c| c.incoming().uuid_taken = Some(true)),
        (C::CheckUnavailable, |c| c.incoming().uuid_taken = None),
        (C::NameTaken, |c| c.incoming().name_taken = Some(true)),
        (C::CheckUnavailable, |c| c.incoming().name_taken = None),
        (C::ClocksApart, |c| {
            c.there().clock = NOW + Duration::seconds(61)
        }),
    ];
    for (i, (code, spoil)) in cases.iter().enumerate() {
        let mut case = fitting();
        spoil(&mut case);
        assert_eq!(case.codes(), [*code], "case {i}");
    }
}

#[test]
fn programs_too_old_or_older_than_at_the_source_are_refused() {
    let mut case = fitting();
    case.there().versions.qemu = Version::new(9, 2, 0);
    case.there().versions.libvirt = Version::new(10, 0, 0);
    assert_eq!(
        case.codes(),
        [ErrorCode::LibvirtTooOld, ErrorCode::QemuTooOld]
    );
    stop(&mut case);
    assert_eq!(case.codes(), [], "a stopped VM's memory does not move");

    let mut case = fitting();
    for facts in [&mut case.here, &mut case.there].into_iter().flatten() {
        facts.versions.qemu = Version::new(7, 1, 0);
        facts.versions.libvirt = Version::new(8, 10, 0);
        facts.versions.swtpm = Some(Version::new(0, 7, 0));
    }
    let too_old = [
        ErrorCode::LibvirtTooOld,
        ErrorCode::QemuTooOld,
        ErrorCode::SwtpmTooOld,
    ];
    assert_eq!(case.codes(), too_old);

    let mut case = fitting();
    case.here.as_mut().expect("facts").versions.swtpm = Some(Version::new(0, 8, 0));
    assert_eq!(case.codes(), [ErrorCode::SwtpmTooOld]);
}

#[test]
fn a_tpm_goes_to_the_same_or_a_newer_libtpms_and_never_back() {
    const OLD: Version = Version::new(0, 9, 2);
    const NEW: Version = Version::new(0, 10, 1);
    let written = |libtpms| {
        Some(TpmWriter {
            host: "c".parse().expect("name"),
            swtpm: None,
            libtpms,
        })
    };
    // source, destination, what the newest copy says; whether it would go back
    let cases = [
        (Some(OLD), Some(OLD), None, false),
        (Some(OLD), Some(NEW), None, false),
        (Some(NEW), Some(OLD), None, true),
        (Some(NEW), None, None, false),
        (None, Some(OLD), None, false),
        (None, None, written(Some(NEW)), false),
        // not written since it came from an older one
        (Some(NEW), Some(OLD), written(Some(OLD)), false),
        // the source's packages went back themselves
        (Some(OLD), Some(OLD), written(Some(NEW)), true),
        (None, Some(OLD), written(Some(NEW)), true),
        (Some(OLD), Some(NEW), written(Some(NEW)), false),
    ];
    for (mode, case) in [Mode::Live, Mode::Stopped]
        .into_iter()
        .flat_map(|mode| cases.iter().map(move |case| (mode, case)))
    {
        let (here, there, written, back) = case;
        let mut fits = fitting();
        if mode == Mode::Stopped {
            stop(&mut fits);
        }
        fits.here.as_mut().expect("facts").versions.libtpms = *here;
        fits.there().versions.libtpms = *there;
        fits.written = written.clone();
        let expected: &[ErrorCode] = match back {
            true => &[ErrorCode::SwtpmTooOld],
            false => &[],
        };
        assert_eq!(fits.codes(), expected, "{mode:?} {case:?}");
        fits.vm.tpm.enabled = false;
        fits.vm.tpm.guardians.clear();
        fits.incoming().opening = Opening::NoTpm;
        assert_eq!(fits.codes(), [], "{mode:?} {case:?}: there is no TPM");
    }

    let mut fits = fitting();
    fits.here.as_mut().expect("facts").versions.libtpms = Some(NEW);
    let mut findings = fits.findings().into_iter();
    let found = findings.find(|finding| finding.blocking);
    let found = found.expect("a refusal");
    for words in ["libtpms 0.9.2", "libtpms 0.10.1 on host a"] {
        assert!(found.what.contains(words), "{found:?}");
    }
    assert!(
        found.fix.contains("on host b: apt-get install"),
        "{found:?}"
    );

    let mut at_home = fitting();
    stop(&mut at_home);
    at_home.mode = Mode::Start;
    at_home.destination = "a".parse().expect("name");
    at_home.there = at_home.here.clone();
    at_home.written = written(Some(NEW));
    assert!(at_home.codes().contains(&ErrorCode::SwtpmTooOld));
}

#[test]
fn a_host_of_another_group_is_refused_because_of_the_key_first() {
    let mut case = fitting();
    case.destination_group = "edge".parse().expect("group");
    case.there().group = "edge".parse().expect("group");
    case.there().pools.clear();
    let findings = case.findings();
    assert_eq!(findings[0].code, ErrorCode::KeyNotGranted);
    for word in ["group default", "group edge", "10698"] {
        assert!(findings[0].what.contains(word), "{}", findings[0].what);
    }
    assert_eq!(findings[1].code, ErrorCode::GroupForbids);
}

#[test]
fn a_wrapping_alone_does_not_open_another_group() {
    let mut case = fitting();
    case.destination_group = "edge".parse().expect("group");
    case.incoming().opening = Opening::Yes;
    assert_eq!(case.codes(), [ErrorCode::GroupForbids]);
}

#[test]
fn a_key_that_a_move_will_grant_first_is_a_remark() {
    let findings = fitting().findings();
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].code, ErrorCode::KeyNotGranted);
    assert!(!findings[0].blocking);
}

#[test]
fn a_key_taken_away_by_name_is_not_granted_by_a_move() {
    let mut case = fitting();
    let guardian = case.there().guardians[0].id.clone();
    let key_id = crate::KeyId(uuid::Uuid::from_u128(7));
    case.vm.tpm.key_id = Some(key_id);
    let metadata = case.vm.metadata.as_mut().expect("ours");
    metadata
        .revoked
        .push(crate::vm::Revocation { guardian, key_id });
    assert_eq!(case.codes(), [ErrorCode::KeyNotGranted]);
    let due = |case: &Case| case.findings().iter().any(|f| f.code == ErrorCode::RollDue);
    assert!(due(&case));
    case.vm.tpm.key_id = Some(crate::KeyId(uuid::Uuid::from_u128(8)));
    assert!(!due(&case));
}

#[test]
fn an_older_tpm_that_a_revoked_guardian_opens_is_due_until_it_is_granted_by_name() {
    let mut case = fitting();
    let guardian = case.there().guardians[0].id.clone();
    let key = |n| crate::KeyId(uuid::Uuid::from_u128(n));
    case.vm.metadata.as_mut().expect("ours").revoked = vec![crate::vm::Revocation {
        guardian: guardian.clone(),
        key_id: key(7),
    }];
    // rolled since: nobody knows the present key
    case.vm.tpm.key_id = Some(key(8));
    assert_eq!(case.vm.roll_due().count(), 0);
    // a version from before, under a key that the revocation does not name
    case.vm.tpm.key_id = Some(key(6));
    case.vm.tpm.guardians.push(guardian.clone());
    assert_eq!(case.vm.roll_due().collect::<Vec<_>>(), [&guardian]);
    // granted back by name: the revocation is gone, the wrapping stays
    case.vm.metadata.as_mut().expect("ours").revoked.clear();
    assert_eq!(case.vm.roll_due().count(), 0);
    case.vm.tpm.enabled = false;
    assert_eq!(case.vm.roll_due().count(), 0);
}

#[test]
fn a_key_taken_away_from_a_former_guardian_of_the_host_is_not_granted_by_a_move() {
    let mut case = fitting();
    assert_eq!(case.codes(), []);
    let former = GuardianId::from_digest([9; 32]);
    case.former.push(former.clone());
    case.vm.metadata.as_mut().expect("ours").revoked = vec![crate::vm::Revocation {
        guardian: former,
        key_id: crate::KeyId(uuid::Uuid::from_u128(7)),
    }];
    let said = case.findings();
    assert_eq!(case.codes(), [ErrorCode::KeyNotGranted], "{said:?}");
    assert!(
        said[0].what.contains("revoked from host b by name"),
        "{said:?}"
    );
    assert_eq!(said[0].fix, "fleetward guardian grant web --to b");
}

#[test]
fn a_group_too_large_for_a_key_protector_is_a_remark() {
    let mut case = granted();
    case.members = crate::guardian::MANY_GUARDIANS;
    assert_eq!(case.findings(), []);
    case.members += 1;
    let said = case.findings();
    assert_eq!(case.codes(), []);
    assert_eq!(said[0].code, ErrorCode::GroupTooLarge);
    assert!(said[0].what.contains("51 hosts"), "{said:?}");
}

#[test]
fn a_guardian_that_ends_within_half_a_year_is_a_remark() {
    for (days, warns) in [(181, false), (179, true)] {
        let mut case = granted();
        for certificate in &mut case.there().guardians[0].certificates {
            certificate.not_after = NOW + time::Duration::days(days);
        }
        let found = case.findings();
        let warned = found
            .iter()
            .any(|f| f.code == ErrorCode::GuardianExpiresSoon);
        assert_eq!(warned, warns, "{days} days: {found:?}");
        assert!(found.iter().all(|f| !f.blocking));
    }
}

#[test]
fn a_vm_without_tpm_needs_no_key() {
    let mut case = fitting();
    case.vm.tpm.enabled = false;
    case.source_opening = Some(Opening::NoTpm);
    case.incoming().opening = Opening::NoTpm;
    case.there().versions.swtpm = None;
    assert_eq!(case.findings(), []);
}

#[test]
fn a_shared_pool_needs_no_space() {
    let mut case = granted();
    case.there().pools[0].id = "pool of a".into();
    case.there().pools[0].available = ByteSize(1);
    assert_eq!(case.findings(), []);
}

#[test]
fn tight_space_is_a_remark() {
    let mut case = granted();
    case.there().pools[0].available = ByteSize::gib(2);
    let findings = case.findings();
    assert_eq!(findings.len(), 1);
    assert!(!findings[0].blocking);
}

#[test]
fn a_start_needs_the_key_only() {
    let mut case = fitting();
    stop(&mut case);
    case.mode = Mode::Start;
    case.destination = "a".parse().expect("name");
    case.source_opening = Some(Opening::NotGranted);
    assert_eq!(case.codes(), [ErrorCode::KeyNotGranted]);
}

#[test]
fn with_manual_trust_a_key_that_is_not_wrapped_is_refused_with_both_cures() {
    let mut case = fitting();
    case.trust = TrustMode::Manual;
    let found = case.findings();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].code, ErrorCode::KeyNotGranted);
    assert!(found[0].fix.contains("guardian grant --all --to b"));
    assert!(found[0].fix.contains("import-pfx"));
    case.incoming().opening = Opening::Yes;
    assert_eq!(case.findings(), [], "an imported guardian opens it");
}

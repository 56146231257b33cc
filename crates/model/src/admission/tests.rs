use super::*;
use crate::JobId;
use strum::VariantArray;

const STATES: &[VmState] = VmState::VARIANTS;

fn job(n: u128) -> JobId {
    JobId(uuid::Uuid::from_u128(n))
}

/// A VM `web` on host `a`, with a TPM, that nothing works on.
fn subject(state: VmState) -> Subject<'static> {
    use std::sync::LazyLock;
    static NAME: LazyLock<VmName> = LazyLock::new(|| "web".parse().expect("a name"));
    static HOST: LazyLock<HostName> = LazyLock::new(|| "a".parse().expect("a name"));
    Subject {
        name: &NAME,
        host: &HOST,
        managed: true,
        newer: None,
        claimants: &[],
        state,
        tpm: true,
        holder: None,
        refuge: None,
    }
}

fn code(vm: &Subject<'_>, request: Request) -> Option<ErrorCode> {
    admit(vm, request).err().map(|failure| failure.code)
}

/// One letter for each state, in the order of `VmState::VARIANTS`: running, stopped, saved,
/// paused, migrating, failed, unknown.
fn row(request: Request) -> String {
    let letter = |state| match answer(state, request) {
        Answer::Accept => 'y',
        Answer::Done => '=',
        Answer::Refuse(reason) => match reason.code {
            ErrorCode::VmBusy => 'b',
            ErrorCode::VmRunning => 'r',
            ErrorCode::VmNotRunning => 'n',
            ErrorCode::VmStateWrong => 'w',
            ErrorCode::HostUnreachable => 'u',
            ErrorCode::VmNotLost => 'l',
            other => panic!("{request:?} in {state}: {other}"),
        },
    };
    STATES.iter().copied().map(letter).collect()
}

#[test]
fn every_request_has_an_answer_in_every_state() {
    let tpm = |restart| Request::Tpm {
        change: TpmChange::Roll,
        restart,
    };
    let certificates = |restart| Request::Certificates {
        change: CertificateChange::Enroll,
        restart,
    };
    let rows = [
        (Request::Start, "=yyybwu"),
        (Request::Stop, "y=wybyu"),
        (Request::ForceStop, "y=yyyyu"),
        (Request::Restart { force: false }, "ynwwbwu"),
        (Request::Restart { force: true }, "ynyybyu"),
        (Request::Pause, "ynn=bwu"),
        (Request::Resume, "=nnybwu"),
        (Request::Delete, "rywrbru"),
        (Request::Clone, "yywwbwu"),
        (Request::Template, "yywwbwu"),
        (Request::MigrateLive, "ynwwbwu"),
        (Request::MigrateOffline, "rywrbru"),
        (Request::Change, "yywybwu"),
        (tpm(false), "rywrbru"),
        (tpm(true), "yywrbru"),
        (certificates(false), "rywrbru"),
        (certificates(true), "yywrbru"),
        (Request::Grant, "yyyyyyu"),
        (Request::Revoke, "yywybyu"),
        (Request::Recover, "llllbly"),
        (Request::Console, "ynnyyyu"),
        (Request::Screen, "ynnyyyu"),
    ];
    for (request, expected) in rows {
        assert_eq!(row(request), expected, "{request:?}");
    }
    // None is left out above.
    for request in Request::all() {
        let listed = rows.iter().any(|(one, _)| match (one, request) {
            (Request::Tpm { restart, .. }, Request::Tpm { restart: asked, .. }) => {
                *restart == asked
            }
            (
                Request::Certificates { restart, .. },
                Request::Certificates { restart: asked, .. },
            ) => *restart == asked,
            (one, request) => *one == request,
        });
        assert!(listed, "{request:?}");
    }
}

#[test]
fn a_vm_that_may_be_running_is_never_deleted() {
    for &state in STATES.iter().filter(|state| **state != VmState::Stopped) {
        assert!(matches!(answer(state, Request::Delete), Answer::Refuse(_)));
    }
}

#[test]
fn on_a_silent_host_only_a_recovery_is_accepted_and_the_fix_has_names() {
    let refuge: HostName = "b".parse().expect("a name");
    let vm = Subject {
        refuge: Some(&refuge),
        ..subject(VmState::Unknown)
    };
    for request in Request::all() {
        let answer = admit(&vm, request);
        let already = matches!(
            request,
            Request::Tpm {
                change: TpmChange::Enable,
                ..
            }
        );
        match answer {
            Ok(Admission::Accepted) => assert_eq!(request, Request::Recover),
            Ok(Admission::Done) => assert!(already, "{request:?}"),
            Ok(Admission::UnderWay(_)) => panic!("{request:?}"),
            Err(failure) => {
                assert_eq!(failure.code, ErrorCode::HostUnreachable, "{request:?}");
                assert!(failure.fix.contains("fleetward host show a"), "{failure}");
                assert!(
                    failure.fix.contains("fleetward vm recover web --to b"),
                    "{failure}"
                );
            }
        }
    }
}

#[test]
fn a_vm_that_two_hosts_claim_takes_no_request_at_all() {
    let claimants = ["a", "b"].map(|host| host.parse().expect("a name"));
    for (state, request) in STATES
        .iter()
        .copied()
        .flat_map(|state| Request::all().map(move |request| (state, request)))
    {
        let vm = Subject {
            claimants: &claimants,
            // the claim that is not right may be of another kind
            managed: state == VmState::Running,
            ..subject(state)
        };
        let failure = admit(&vm, request).expect_err("refused");
        assert_eq!(failure.code, ErrorCode::VmDisputed, "{request:?} {state}");
        for host in ["a", "b"] {
            let fix = format!("fleetward vm settle web --host {host}");
            assert!(failure.fix.contains(&fix), "{failure}");
        }
    }
}

#[test]
fn no_refusal_leaves_a_placeholder_in_its_fix() {
    for (state, request) in STATES
        .iter()
        .copied()
        .flat_map(|state| Request::all().map(move |request| (state, request)))
    {
        if let Err(failure) = admit(&subject(state), request) {
            for placeholder in ["{vm}", "{host}", "NAME", "VM ", "HOST"] {
                assert!(!failure.fix.contains(placeholder), "{failure}");
            }
        }
    }
}

#[test]
fn a_job_at_work_refuses_whatever_changes_the_vm() {
    let vm = Subject {
        holder: Some(Holder {
            job: job(7),
            request: Some(Request::Start),
        }),
        ..subject(VmState::Stopped)
    };
    for request in Request::all() {
        let refused = code(&vm, request);
        match request {
            // it is stopped already, and could be cut off if it were not
            Request::Grant | Request::ForceStop => assert_eq!(refused, None),
            Request::Console | Request::Screen => {
                assert_eq!(refused, Some(ErrorCode::VmNotRunning))
            }
            Request::Tpm {
                change: TpmChange::Enable,
                ..
            } => assert_eq!(refused, None, "it is on already"),
            _ => assert_eq!(refused, Some(ErrorCode::VmBusy), "{request:?}"),
        }
    }
}

#[test]
fn the_same_change_of_a_tpm_under_way_is_the_answer_and_another_one_is_not_foretold() {
    let change = |change| Request::Tpm {
        change,
        restart: false,
    };
    let vm = |tpm| Subject {
        tpm,
        holder: Some(Holder {
            job: job(7),
            request: Some(Request::Tpm {
                change: TpmChange::Enable,
                restart: true,
            }),
        }),
        ..subject(VmState::Running)
    };
    let same = admit(&vm(false), change(TpmChange::Enable)).expect("under way");
    assert_eq!(same, Admission::UnderWay(job(7)));
    // It is off, and may be on in a moment.
    let other = code(&vm(false), change(TpmChange::Disable));
    assert_eq!(other, Some(ErrorCode::VmBusy));
}

#[test]
fn a_tpm_that_is_as_wanted_needs_neither_its_host_nor_a_free_vm() {
    let vm = Subject {
        holder: Some(Holder {
            job: job(1),
            request: None,
        }),
        ..subject(VmState::Unknown)
    };
    let enable = Request::Tpm {
        change: TpmChange::Enable,
        restart: false,
    };
    assert_eq!(admit(&vm, enable), Ok(Admission::Done));
}

#[test]
fn what_has_no_tpm_has_no_key_to_roll_or_to_take_away() {
    let vm = Subject {
        tpm: false,
        ..subject(VmState::Stopped)
    };
    let roll = Request::Tpm {
        change: TpmChange::Roll,
        restart: false,
    };
    for request in [roll, Request::Revoke] {
        let refused = admit(&vm, request).expect_err("refused");
        assert_eq!(refused.code, ErrorCode::VmStateWrong);
        assert_eq!(refused.fix, "fleetward tpm enable web");
    }
}

#[test]
fn a_domain_that_fleetward_did_not_make_is_never_touched() {
    let vm = Subject {
        managed: false,
        ..subject(VmState::Running)
    };
    for request in Request::all() {
        assert_eq!(code(&vm, request), Some(ErrorCode::VmNotManaged));
    }
}

#[test]
fn a_vm_that_a_newer_program_wrote_has_only_its_console() {
    let newer = NewerSpec { version: 3 };
    let vm = Subject {
        newer: Some(&newer),
        ..subject(VmState::Running)
    };
    for request in Request::all().filter(|request| !request.is_at_the_guest()) {
        assert_eq!(code(&vm, request), Some(ErrorCode::SpecNewer));
    }
    for request in [Request::Console, Request::Screen] {
        assert_eq!(code(&vm, request), None);
    }
}

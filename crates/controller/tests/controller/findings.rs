//! Whatever `vm show`, `host show` or the check of one VM names, the checks of the whole fleet name, too.

use crate::fleet::Controller;
use fleetward_api::controller::{CheckView, HostCheckView, HostView, VmView};
use fleetward_model::ErrorCode;
use fleetward_model::host::Confinement;
use fleetward_model::secure_boot::{CertificateState, LoaderRefused, SecureBootObserved};
use fleetward_model::vm::{QemuHangs, QemuProcess, TpmProcess, VmReport, VmState};
use http::Method;
use serde_json::json;
use std::collections::BTreeSet;
use time::OffsetDateTime;

/// How a finding comes into the check of the fleet.
enum Way {
    /// By the rules to which both checks give what hosts report.
    Rules,
    /// A VM is reported so, and it is looked whether the finding is there.
    Reported(fn(&mut VmReport)),
    /// A test of this name looks.
    Test(&'static str),
    /// It does not, for this reason.
    Not(&'static str),
}

/// Every code of a finding about a VM or a host.
fn findings() -> Vec<(ErrorCode, Way)> {
    use ErrorCode as Code;
    use Way::{Not, Reported, Rules, Test};
    let edited = |vm: &mut VmReport| vm.defined.as_mut().expect("defined").cpus += 1;
    let renamed = |vm: &mut VmReport| vm.domain_name = Some("evil".into());
    let not_trusted =
        |vm: &mut VmReport| vm.noted.loader_refused = Some(LoaderRefused { boot_option: 1 });
    let stopped = |vm: &mut VmReport| vm.noted.qemu = Some(QemuProcess::Stopped { pid: 7 });
    let tpm_gone = |vm: &mut VmReport| vm.tpm.process = Some(TpmProcess::Gone);
    let old = |vm: &mut VmReport| {
        let found = SecureBootObserved::of(CertificateState::UpdateAvailable);
        vm.noted.secure_boot = Some(found);
    };
    let no_state = |vm: &mut VmReport| {
        vm.state = VmState::Stopped;
        vm.tpm.state_present = false;
    };
    vec![
        (Code::AcceleratorDiffers, Rules),
        (Code::AgentTooOld, Rules),
        (
            Code::AuthorityEnds,
            Test("the_end_of_the_fleets_authority_is_told_two_years_before"),
        ),
        (
            Code::CheckUnavailable,
            Not("what hosts have reported is there"),
        ),
        (Code::ClocksApart, Rules),
        (
            Code::CpuIncompatible,
            Not("the destination has to be asked: the matrix does, and counts have NO_HOST_FITS"),
        ),
        (
            Code::DebtsUnpaid,
            Test("what_a_host_cannot_clear_up_is_shown_keeps_that_vm_away_and_is_given_up_by_name"),
        ),
        (Code::DefinitionEdited, Reported(edited)),
        (
            Code::EkNotOfFleet,
            Test("a_strangers_certificate_is_shown_and_foreseen_until_it_is_accepted"),
        ),
        (
            Code::EkRevoked,
            Test("a_revoked_certificate_is_published_and_shown_and_its_vm_goes_on"),
        ),
        (
            Code::FirmwareDiffers,
            Not(
                "the destination has to be asked: its file is of another size than what the VM runs with",
            ),
        ),
        (Code::GroupForbids, Rules),
        (Code::GroupTooLarge, Rules),
        (Code::GuardianExpired, Rules),
        (Code::GuardianExpiresSoon, Rules),
        (Code::HostDrained, Rules),
        (
            Code::HostUnconfined,
            Test("what_vms_show_is_in_the_check_of_the_fleet"),
        ),
        (Code::HostUnreachable, Rules),
        (Code::KeyNotGranted, Rules),
        (
            Code::KeyProtectorUnreadable,
            Not("a key protector is opened only by a check of its VM, or by its move"),
        ),
        (Code::LibvirtTooOld, Rules),
        (Code::LoaderNotTrusted, Reported(not_trusted)),
        (Code::MachineMissing, Rules),
        (Code::NameDiffers, Reported(renamed)),
        (Code::NameTaken, Rules),
        (Code::NetworkMissing, Rules),
        (Code::NoMemory, Rules),
        (Code::NoSpace, Rules),
        (Code::PoolMissing, Rules),
        (Code::PoolPathDiffers, Rules),
        (
            Code::ProfileRefuses,
            Not("it refuses a change, and is of no VM as it is"),
        ),
        (Code::QemuNotAnswering, Reported(stopped)),
        (Code::QemuTooOld, Rules),
        (Code::RollDue, Rules),
        (
            Code::SameHost,
            Not("on its own host a VM is checked for a start"),
        ),
        (Code::SecureBootMissing, Rules),
        (Code::SecureBootOutdated, Reported(old)),
        (Code::SwtpmMissing, Rules),
        (Code::SwtpmTooOld, Rules),
        (Code::TpmNotAnswering, Reported(tpm_gone)),
        (
            Code::TpmStateDamaged,
            Test("a_check_says_of_the_state_what_its_host_finds_now"),
        ),
        (Code::TpmStateMissing, Reported(no_state)),
        (
            Code::TpmStateOutdated,
            Test("a_check_says_of_the_state_what_its_host_finds_now"),
        ),
        (
            Code::TpmStateUnreadable,
            Test("a_check_says_of_the_state_what_its_host_finds_now"),
        ),
        (Code::UuidTaken, Rules),
        (
            Code::VmNotManaged,
            Not("only what Fleetward made is checked"),
        ),
    ]
}

/// The codes of a host's VMs, as the matrix has them, and as the counts of that host have them.
pub(crate) async fn fleet_wide(
    controller: &Controller,
    host: &str,
) -> (BTreeSet<ErrorCode>, BTreeSet<ErrorCode>) {
    let matrix: Vec<CheckView> = controller.get("/v1/check").await;
    let of_host = matrix
        .into_iter()
        .filter(|check| check.from.as_str() == host);
    let named = of_host.flat_map(|check| check.findings).map(|f| f.code);
    let counts: Vec<HostCheckView> = controller.get("/v1/check/hosts").await;
    let of_host = counts
        .into_iter()
        .filter(|count| count.host.as_str() == host);
    let counted = of_host
        .flat_map(|count| [count.in_the_way, count.remarks])
        .flatten()
        .map(|count| count.code);
    (named.collect(), counted.collect())
}

/// Asserts that both have the code, or both have not.
pub(crate) async fn is_fleet_wide(
    controller: &Controller,
    host: &str,
    code: ErrorCode,
    there: bool,
) {
    let (named, counted) = fleet_wide(controller, host).await;
    assert_eq!(named.contains(&code), there, "{code}: {named:?}");
    assert_eq!(counted.contains(&code), there, "{code}: {counted:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_vms_show_is_in_the_check_of_the_fleet() {
    let controller = Controller::start().await;
    let (a, b) = tokio::join!(
        controller.join("a", "default"),
        controller.join("b", "default")
    );
    a.knows(&b);
    let body = json!({"name": "web", "host": "a", "start": true, "tpm": true});
    controller.done(Method::POST, "/v1/vms", &body).await;
    let web: VmView = controller.get("/v1/vms/web").await;
    let before = fleet_wide(&controller, "a").await;
    assert_eq!(
        before,
        Default::default(),
        "a VM of which there is nothing to say"
    );
    for (code, way) in findings() {
        let Way::Reported(so) = way else { continue };
        let report = a.look(|inner| {
            let mut report = inner.observed(web.id).expect("the VM");
            so(&mut report);
            report
        });
        a.look(|inner| inner.tell_of(report));
        let named = async || fleet_wide(&controller, "a").await.0.contains(&code);
        controller
            .wait(&format!("{code} in the matrix"), named)
            .await;
        is_fleet_wide(&controller, "a", code, true).await;
        a.look(|inner| inner.tell(web.id));
        let gone = async || fleet_wide(&controller, "a").await == Default::default();
        controller.wait(&format!("no {code}"), gone).await;
    }
    // Both ways in which QEMU is silent are one code.
    let report = a.look(|inner| {
        let mut report = inner.observed(web.id).expect("the VM");
        report.noted.hangs = Some(QemuHangs {
            since: OffsetDateTime::now_utc(),
            pid: None,
            in_kernel: false,
            shown_as_of: None,
        });
        report
    });
    a.look(|inner| inner.tell_of(report));
    let code = ErrorCode::QemuNotAnswering;
    let named = async || fleet_wide(&controller, "a").await.0.contains(&code);
    controller.wait("a QEMU that hangs", named).await;
    is_fleet_wide(&controller, "a", code, true).await;

    // Of the host: as its own view has it, and as a finding of its VMs.
    a.look(|inner| {
        inner.facts.confinement = Some(Confinement::None);
        inner.facts.warnings = vec!["its guardian store is not sealed".into()];
        inner.tell_facts();
    });
    let known = async || {
        fleet_wide(&controller, "a")
            .await
            .0
            .contains(&ErrorCode::HostUnconfined)
    };
    controller.wait("no confinement", known).await;
    is_fleet_wide(&controller, "a", ErrorCode::HostUnconfined, true).await;
    let shown: HostView = controller.get("/v1/hosts/a").await;
    let counts: Vec<HostCheckView> = controller.get("/v1/check/hosts").await;
    assert!(!shown.warnings.is_empty(), "{shown:?}");
    assert_eq!(counts[0].warnings, shown.warnings);
}

/// A code that is new has to be put into the table above, and so into the check of the fleet.
#[test]
fn every_finding_has_its_way_into_the_check_of_the_fleet() {
    // Rules: every code in them is of a finding. Elsewhere there are refusals, too.
    let rules = [
        include_str!("../../../model/src/preflight.rs"),
        include_str!("../../../model/src/fit.rs"),
        include_str!("../../src/unseen.rs"),
    ];
    let others = [
        include_str!("../../../model/src/certificate.rs"),
        include_str!("../../../model/src/change.rs"),
        include_str!("../../../model/src/change/machine.rs"),
        include_str!("../../../model/src/change/nic.rs"),
        include_str!("../../../model/src/secure_boot.rs"),
        include_str!("../../../model/src/vm.rs"),
        include_str!("../../src/ek.rs"),
    ];
    let code_of = |text: &str| -> Option<String> {
        let name = text.trim_start().strip_prefix("ErrorCode::")?;
        let end = name.find(|c: char| !c.is_ascii_alphanumeric());
        Some(name[..end.unwrap_or(name.len())].to_owned())
    };
    let without_tests = |text: &'static str| text.split("#[cfg(test)]").next().unwrap_or(text);
    let mut named = BTreeSet::new();
    for text in rules.map(without_tests) {
        let places = text.match_indices("ErrorCode::");
        named.extend(places.filter_map(|(at, _)| code_of(&text[at..])));
    }
    for text in others.map(without_tests) {
        for made in ["blocking", "usual", "warning"] {
            let made = format!("Finding::{made}(");
            let places = text.match_indices(&made);
            named.extend(places.filter_map(|(at, found)| code_of(&text[at + found.len()..])));
        }
    }
    let known: BTreeSet<String> = findings()
        .iter()
        .map(|(code, _)| format!("{code:?}"))
        .collect();
    assert_eq!(Vec::from_iter(named.difference(&known)), [""; 0]);
    // What a failure becomes a finding of, elsewhere, is looked at by a test.
    for (code, way) in findings() {
        let made_here = named.contains(&format!("{code:?}"));
        assert!(
            made_here || matches!(way, Way::Test(_)),
            "{code} is none any more"
        );
    }
    let tests = [
        include_str!("absence.rs"),
        include_str!("certificates.rs"),
        include_str!("ek.rs"),
        include_str!("escrow.rs"),
        include_str!("findings.rs"),
    ];
    for (code, way) in findings() {
        match way {
            Way::Test(name) => {
                let name = format!("async fn {name}(");
                assert!(tests.iter().any(|t| t.contains(&name)), "{code}: {name}");
            }
            Way::Not(why) => assert!(!why.is_empty(), "{code}"),
            Way::Rules | Way::Reported(_) => {}
        }
    }
}

//! The certificates in a VM's UEFI variables: enrolled, brought back, repeated, and broken off between the two halves.

use crate::support::{Fleet, Job, Node, create_running};
use fleetward_api::agent::operation::{
    Define, EnrollCertificates, RestoreCertificates, Start, Stop, Undefine,
};
use fleetward_model::secure_boot::{CertificateState, SecureBootObserved};
use fleetward_model::vm::VmMetadata;
use fleetward_model::{ErrorCode, VmId};
use std::path::PathBuf;

/// With Microsoft's certificates of 2011, as Debian 12 brings them.
const TEMPLATE: &str = "/usr/share/OVMF/OVMF_VARS_4M.ms.fd";

const RESTORE: RestoreCertificates = RestoreCertificates { of_this_job: false };

struct Desk {
    _fleet: Fleet,
    node: Node,
    vm: VmId,
    metadata: VmMetadata,
    file: PathBuf,
    generation: std::cell::Cell<u64>,
}

impl Desk {
    /// A stopped VM with the variables of that file.
    async fn with(variables: &str) -> Self {
        let fleet = Fleet::start().await;
        let node = Node::start(&fleet, "a").await;
        let (spec, metadata) = create_running(&fleet, &node, "desk").await;
        let file = node.fake.with(|s| s.domains[&spec.id].nvram.clone());
        let desk = Self {
            _fleet: fleet,
            node,
            vm: spec.id,
            metadata,
            file,
            generation: std::cell::Cell::new(1),
        };
        desk.stop().await;
        std::fs::copy(variables, &desk.file).unwrap();
        desk
    }

    fn job(&self) -> Job {
        self.generation.set(self.generation.get() + 1);
        Job::new(self.vm, self.generation.get())
    }

    async fn stop(&self) {
        let stop = Stop {
            force: true,
            deadline_seconds: 1,
            tell: false,
        };
        self.job().on(&self.node, stop).await.unwrap();
    }

    async fn found(&self) -> Option<SecureBootObserved> {
        self.node
            .detail(self.vm)
            .await
            .unwrap()
            .vm
            .noted
            .secure_boot
    }

    async fn state(&self) -> (CertificateState, bool) {
        let found = self.found().await.unwrap();
        (found.state, found.former_kept)
    }

    fn content(&self) -> Vec<u8> {
        std::fs::read(&self.file).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn enrolled_certificates_are_told_and_the_former_ones_come_back() {
    use CertificateState::{Ok as UpToDate, UpdateAvailable};
    let desk = Desk::with(TEMPLATE).await;
    let (node, before) = (&desk.node, desk.content());
    assert_eq!(desk.state().await, (UpdateAvailable, false));
    let job = desk.job();
    for _ in 0..2 {
        job.on(node, EnrollCertificates {}).await.unwrap();
        assert_eq!(desk.state().await, (UpToDate, true));
    }
    let found = desk.found().await.unwrap();
    assert_eq!((found.count_of("2011"), found.count_of("2023")), (3, 4));
    // Another job has nothing to add, and does not take what is kept for its own.
    let other = desk.job();
    other.on(node, EnrollCertificates {}).await.unwrap();
    let undo = RestoreCertificates { of_this_job: true };
    other.on(node, undo.clone()).await.unwrap();
    assert_eq!(desk.state().await, (UpToDate, true));

    desk.job().on(node, Start {}).await.unwrap();
    let running = desk.job();
    for refused in [
        running.on(node, EnrollCertificates {}).await,
        running.on(node, RESTORE).await,
    ] {
        assert_eq!(refused.unwrap_err().code, ErrorCode::VmRunning);
    }
    // The fake hypervisor writes variables of its own at a start.
    std::fs::write(&desk.file, &before).unwrap();
    desk.stop().await;
    let again = desk.job();
    again.on(node, EnrollCertificates {}).await.unwrap();
    for _ in 0..2 {
        let back = RestoreCertificates { of_this_job: true };
        again.on(node, back).await.unwrap();
        assert_eq!(desk.state().await, (UpdateAvailable, false));
    }
    assert_eq!(
        fleetward_uefi::assess(&desk.content()),
        fleetward_uefi::assess(&before)
    );
}

/// The definition is written before the file: a crash between the two leaves the former certificates twice.
#[tokio::test(flavor = "multi_thread")]
async fn an_enrolment_that_was_broken_off_is_done_or_undone() {
    use CertificateState::{Ok as UpToDate, UpdateAvailable};
    let desk = Desk::with(TEMPLATE).await;
    let (node, before) = (&desk.node, desk.content());
    let job = desk.job();
    job.on(node, EnrollCertificates {}).await.unwrap();
    let after = desk.content();
    std::fs::write(&desk.file, &before).unwrap();
    assert_eq!(desk.state().await, (UpdateAvailable, true));
    job.on(node, EnrollCertificates {}).await.unwrap();
    assert_eq!(
        (desk.state().await, desk.content()),
        ((UpToDate, true), after.clone())
    );

    std::fs::write(&desk.file, &before).unwrap();
    job.on(node, RestoreCertificates { of_this_job: true })
        .await
        .unwrap();
    assert_eq!(desk.state().await, (UpdateAvailable, false));

    // A restore that was broken off after the file.
    let job = desk.job();
    job.on(node, EnrollCertificates {}).await.unwrap();
    std::fs::write(&desk.file, &before).unwrap();
    desk.job().on(node, RESTORE).await.unwrap();
    assert_eq!(desk.state().await, (UpdateAvailable, false));
}

#[tokio::test(flavor = "multi_thread")]
async fn variables_that_are_not_microsofts_are_left_alone_by_name() {
    for (file, code, state) in [
        (
            "/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd",
            ErrorCode::SecureBootCustom,
            CertificateState::Custom,
        ),
        (
            "/usr/share/OVMF/OVMF_VARS_4M.fd",
            ErrorCode::VmStateWrong,
            CertificateState::Off,
        ),
        (
            "/etc/hostname",
            ErrorCode::UefiVariablesUnreadable,
            CertificateState::Unreadable,
        ),
    ] {
        let desk = Desk::with(file).await;
        let before = desk.content();
        let refused = desk.job().on(&desk.node, EnrollCertificates {}).await;
        assert_eq!(refused.unwrap_err().code, code);
        assert_eq!(desk.state().await, (state, false));
        desk.job().on(&desk.node, RESTORE).await.unwrap();
        assert_eq!(desk.content(), before);
    }
}

/// Whatever the host's firmware brings.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_vm_has_all_seven_certificates_before_its_first_start() {
    let desk = Desk::with(TEMPLATE).await;
    std::fs::copy(TEMPLATE, desk.node.fake.root.join("template_VARS.fd")).unwrap();
    desk.job().on(&desk.node, Undefine {}).await.unwrap();
    assert!(!desk.file.exists());
    let metadata = Box::new(desk.metadata.clone());
    desk.job()
        .on(&desk.node, Define { metadata })
        .await
        .unwrap();
    let found = desk.found().await.unwrap();
    assert_eq!(
        (found.state, found.certificates.len()),
        (CertificateState::Ok, 7)
    );
    assert!(found.enforced);
    // One that was made before, and never ran, gets them at its first start.
    std::fs::remove_file(&desk.file).unwrap();
    assert_eq!(desk.found().await, None);
    desk.job()
        .on(&desk.node, EnrollCertificates {})
        .await
        .unwrap();
    assert_eq!(desk.found().await.unwrap().certificates.len(), 7);
}

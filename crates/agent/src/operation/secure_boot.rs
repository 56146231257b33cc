//! The certificates of Secure Boot in the UEFI variables of a stopped VM.
//!
//! ```text
//!  enroll:   former certificates ─► definition ── then ── variables with the new ones ─► file
//!  restore:  former certificates ◄─ definition ── into ── variables ─► file ── then ── definition without them
//! ```
//! What is kept is written before anything that replaces it, and forgotten after it is back, so a crash at any line leaves both,
//! and the repeat does the rest. Only `KEK` and `db` are kept and brought back: what else is in the variables, such as boot
//! entries, goes on.

use super::Task;
use crate::failure::{Result, Trouble};
use crate::variables;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use fleetward_hypervisor::{DomainChange, DomainObserved};
use fleetward_model::secure_boot::FormerCertificates;
use fleetward_model::vm::VmMetadata;
use fleetward_model::{ErrorCode, Failure};
use fleetward_uefi::{KeysProblem, Wanted, with_certificates, with_former};
use time::OffsetDateTime;

impl Task<'_> {
    /// Adds the successors of the certificates that the VM trusts.
    pub(super) async fn enroll_certificates(&self) -> Result<()> {
        let (domain, mut metadata) = self.stopped_whole().await?;
        let Some(file) = variables::read(self.host, self.vm)? else {
            return self.make_variables(&domain);
        };
        let enrolled = with_certificates(&file, Wanted::Successors);
        let Some(enrolled) = enrolled.map_err(|problem| refused(&metadata, &problem))? else {
            return Ok(());
        };
        metadata.former_certificates = Some(FormerCertificates {
            job: self.job,
            at: OffsetDateTime::now_utc(),
            variables: STANDARD.encode(&enrolled.former),
        });
        metadata.generation = self.generation;
        self.redefine(&metadata, &DomainChange::default()).await?;
        variables::write(self.host, self.vm, &enrolled.variables)?;
        tracing::info!(vm = %self.vm, added = enrolled.added.join(", "), "certificates were enrolled");
        Ok(())
    }

    /// Brings the former certificates back, where some are kept.
    pub(super) async fn restore_certificates(&self, of_this_job: bool) -> Result<()> {
        let (_, mut metadata) = self.stopped_whole().await?;
        let kept = metadata.former_certificates.take();
        let Some(former) = kept.filter(|former| !of_this_job || former.job == self.job) else {
            return Ok(());
        };
        let bytes = STANDARD.decode(&former.variables).unwrap_or_default();
        let file = variables::read(self.host, self.vm)?.ok_or_else(|| {
            Failure::new(
                ErrorCode::UefiVariablesUnreadable,
                format!("VM {}", metadata.spec.name),
            )
            .because("it has no UEFI variables on this host")
        })?;
        let restored =
            with_former(&file, &bytes).map_err(|problem| refused(&metadata, &problem))?;
        variables::write(self.host, self.vm, &restored)?;
        metadata.generation = self.generation;
        self.redefine(&metadata, &DomainChange::default()).await
    }

    /// What a VM that never ran begins with: its host's variables, with all of Microsoft's certificates, so that they do not
    /// differ from host to host. Where that cannot be, the hypervisor makes them as its firmware brings them.
    pub(super) fn make_variables(&self, domain: &DomainObserved) -> Result<()> {
        let secure_boot = domain.firmware.is_some_and(|firmware| firmware.secure_boot);
        let Some(template) = domain.nvram_template.as_ref().filter(|_| secure_boot) else {
            return Ok(());
        };
        if variables::are_there(self.host, self.vm)? {
            return Ok(());
        }
        let Some(file) = variables::read_template(template)? else {
            return Ok(());
        };
        match with_certificates(&file, Wanted::All) {
            Ok(Some(enrolled)) => variables::write(self.host, self.vm, &enrolled.variables),
            Ok(None) => Ok(()),
            Err(problem) => {
                let template = template.display();
                tracing::warn!(vm = %self.vm, %template, %problem, "a new VM gets this host's UEFI variables as they are");
                Ok(())
            }
        }
    }

    async fn stopped_whole(&self) -> Result<(DomainObserved, VmMetadata)> {
        self.require_stopped().await?;
        self.require_whole()?;
        self.managed().await
    }
}

fn refused(metadata: &VmMetadata, problem: &KeysProblem) -> Trouble {
    let code = match problem {
        KeysProblem::Custom => ErrorCode::SecureBootCustom,
        KeysProblem::Off => ErrorCode::VmStateWrong,
        KeysProblem::Store(_) | KeysProblem::Signatures { .. } | KeysProblem::Former => {
            ErrorCode::UefiVariablesUnreadable
        }
    };
    let what = format!("the UEFI variables of VM {}", metadata.spec.name);
    Trouble::refuse(code, what, problem.to_string())
}

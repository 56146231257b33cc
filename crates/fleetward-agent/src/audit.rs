//! `fleetward-agent audit`: looks at this host's audit log, and closes a damaged one. Both work while the agent runs.

use anyhow::Context;
use clap::Subcommand;
use fleetward_agent::Config;
use fleetward_agent::audit::{AuditLog, Repaired};
use fleetward_agent::layout::Layout;
use fleetward_agent::membership::MembershipFiles;
use fleetward_model::audit::closings;
use fleetward_model::{ErrorCode, Failure};

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Check every record of the log, and show what was closed over damage: by whom, when and why.
    Check,
    /// Close a damaged log, without which no key is used on this host, and begin a new one. The damaged file stays beside it
    /// as it is; the first new record says who closed it, when and why, and `fleetward audit --verify` shows it from then on.
    Repair {
        /// Why: what damaged it, as far as that is known.
        #[arg(long)]
        reason: String,
    },
}

pub(crate) fn carry_out(config: &Config, command: AuditCommand) -> anyhow::Result<()> {
    let layout = Layout::new(config);
    let member = MembershipFiles::new(&layout).load()?.member;
    let log = AuditLog::new(layout.audit_log(), member.host.clone());
    match command {
        AuditCommand::Check => {
            let checked = log.check().context("the audit log cannot be read")?;
            for closed in closings(&checked.good) {
                println!("{closed}");
            }
            let count = checked.good.len();
            let Some(damage) = checked.damage else {
                println!("intact: {count} records");
                return Ok(());
            };
            let what = format!("the audit log of host {} is damaged", member.host);
            Err(Failure::new(ErrorCode::AuditDamaged, what)
                .because(format!("after {count} good records: {}", damage.what))
                .into())
        }
        AuditCommand::Repair { reason } => {
            let actor = format!("local:{}", nix::unistd::getuid());
            let repaired = log.repair(&actor, &reason);
            match repaired.context("the audit log cannot be repaired")? {
                None => println!("the audit log is intact: nothing was changed"),
                Some(Repaired { aside, closing }) => {
                    println!("closed with record {}; keys are used again", closing.seq);
                    println!("the damaged file is kept: {}", aside.display());
                }
            }
            Ok(())
        }
    }
}

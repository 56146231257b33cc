//! `fleetward host ...`

use super::parse::parse_word;
use super::{Rows, Wait};
use clap::Subcommand;
use fleetward_model::host::HostState;
use fleetward_model::{GroupName, HostName};
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Makes a one-time token with which a machine joins as host NAME
    Token {
        name: HostName,
        /// Group whose VMs the host may run
        #[arg(long, default_value = "default")]
        group: GroupName,
        /// Lifetime of the token, at most 7d
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
        ttl: Duration,
        /// The host joined before and was reinstalled; it must not answer any more
        #[arg(long)]
        reinstalled: bool,
    },
    /// Makes a one-time token with which a host whose certificate has run out, or was lost, comes back; it keeps guardian and VMs
    ///
    /// On the host: fleetward-agent rejoin. The host must not answer at the moment.
    Rejoin {
        name: HostName,
        /// Lifetime of the token, at most 7d
        #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
        ttl: Duration,
    },
    /// Lists hosts
    List {
        /// Only those of this group
        #[arg(long)]
        group: Option<GroupName>,
        /// Only those in this state
        #[arg(long, value_parser = parse_word::<HostState>)]
        state: Option<HostState>,
        /// With what each uses now of its processors, memory, disks and network
        #[arg(long)]
        usage: bool,
        #[command(flatten)]
        rows: Rows,
    },
    /// Shows one host
    Show { name: HostName },
    /// Moves a host's VMs to other hosts of its group, and makes it accept no new VMs
    Drain {
        name: HostName,
        /// Shows where each VM would go, and changes nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Ends a drain
    Resume { name: HostName },
    /// Removes an empty host from the fleet; with --force any host, at once
    Remove {
        name: HostName,
        /// Expels the host, whatever it has and says: its certificates are refused everywhere, its connections cut, its guardians lose
        /// every key, and its VMs are lost until they are rebuilt with vm recover
        #[arg(long)]
        force: bool,
        /// Shows what that would come to, and changes nothing
        #[arg(long, requires = "force")]
        dry_run: bool,
    },
}

//! `fleetward token ...`.

use super::Rows;
use super::parse::parse_role;
use clap::Subcommand;
use fleetward_api::controller::Role;
use fleetward_model::{GroupName, TokenName};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Makes an API token and shows it once; it is good at the address of the controller's --console
    Create {
        /// What it is for, for example ci; the audit log has it as token:ci
        name: TokenName,
        /// What its bearer may do
        #[arg(long, value_parser = parse_role)]
        role: Role,
        /// A group of hosts in which the role holds, for the roles viewer and operator; can be given several times. Without it
        /// the role holds in the whole fleet
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<GroupName>,
        /// Lifetime of the token, at most 366d
        #[arg(long, value_name = "DURATION", default_value = "90d", value_parser = humantime::parse_duration)]
        ttl: Duration,
        /// Writes it into DIR/NAME.token, which only you can read, instead of showing it; beside it, in console-ca.pem, the
        /// certificate to believe if the controller made its own
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// Lists the API tokens, with role, end and last use; never what they say
    List {
        #[command(flatten)]
        rows: Rows,
    },
    /// Revokes an API token: it is refused from now on, and the connections of its bearer are cut
    Revoke { name: TokenName },
}

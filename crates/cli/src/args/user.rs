//! `fleetward user ...`.

use super::Rows;
use super::parse::parse_role;
use clap::{ArgGroup, Subcommand};
use fleetward_api::controller::Role;
use fleetward_model::{GroupName, UserName};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Adds a user: a person who logs in with a password at the address of the controller's --console
    Add {
        /// The audit log has it as user:kim
        name: UserName,
        /// What the user may do
        #[arg(long, value_parser = parse_role)]
        role: Role,
        /// A group of hosts in which the role holds, for the roles viewer and operator; can be given several times. Without it
        /// the role holds in the whole fleet
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<GroupName>,
        /// Takes the password from the first line of FILE, or of standard input with -; without it the command asks for one
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Lists the users, with role, sessions and last login
    List {
        #[command(flatten)]
        rows: Rows,
    },
    /// Gives a user another role or password; all sessions of the user end
    #[command(group = ArgGroup::new("change").required(true).multiple(true).args(["role", "groups", "whole_fleet", "new_password", "password_file"]))]
    Set {
        name: UserName,
        /// What the user may do from now on
        #[arg(long, value_parser = parse_role)]
        role: Option<Role>,
        /// A group of hosts in which the role holds from now on; can be given several times
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<GroupName>,
        /// The role holds in the whole fleet from now on
        #[arg(long, conflicts_with = "groups")]
        whole_fleet: bool,
        /// Asks for another password
        #[arg(long, conflicts_with = "password_file")]
        new_password: bool,
        /// Takes another password from the first line of FILE, or of standard input with -
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Removes a user; all sessions of the user end
    Remove { name: UserName },
}

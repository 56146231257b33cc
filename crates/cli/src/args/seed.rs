//! What a guest is to find at its first boot.

use clap::Args;
use ipnet::IpNet;
use std::net::IpAddr;
use std::path::PathBuf;

/// In user data and answer file `{{fleetward.name}}` and the like are replaced by the VM's values.
#[derive(Debug, Args)]
pub struct SeedArgs {
    /// File with public SSH keys for the guest's first user; may be repeated
    #[arg(long = "ssh-key", value_name = "FILE", help_heading = "First boot")]
    pub ssh_keys: Vec<PathBuf>,
    /// cloud-init's user data; {{fleetward.name}} and the like stand for the VM's values
    #[arg(long, value_name = "FILE", help_heading = "First boot")]
    pub user_data: Option<PathBuf>,
    /// Windows' answer file (autounattend.xml), with the same placeholders
    #[arg(long, value_name = "FILE", help_heading = "First boot")]
    pub unattend: Option<PathBuf>,
    /// File of lines KEY=VALUE for placeholders {{fleetward.KEY}}
    #[arg(long, value_name = "FILE", help_heading = "First boot")]
    pub values: Option<PathBuf>,
    /// Address of the first network card, such as 10.0.0.5/24; default: by DHCP
    #[arg(long, value_name = "ADDRESS/PREFIX", help_heading = "First boot")]
    pub address: Option<IpNet>,
    /// Gateway of that network
    #[arg(long, requires = "address", help_heading = "First boot")]
    pub gateway: Option<IpAddr>,
    /// Name server; may be repeated
    #[arg(long, requires = "address", help_heading = "First boot")]
    pub dns: Vec<IpAddr>,
}

//! `fleetward ek ...`

use super::Rows;
use super::parse::parse_word;
use clap::Subcommand;
use fleetward_api::controller::EkStanding;
use fleetward_model::certificate::Serial;
use fleetward_model::{HostName, VmName};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum EkCommand {
    /// Lists the EK certificates of TPMs that the fleet has or had: number, what counts of it, issuer, VMs
    List {
        /// Only the one with this serial number
        #[arg(long)]
        serial: Option<Serial>,
        /// Only what the authority of this host issued
        #[arg(long, value_name = "HOST")]
        issuer: Option<HostName>,
        /// Only those of this VM
        #[arg(long, value_name = "VM")]
        vm: Option<VmName>,
        /// fleet, accepted, foreign or revoked
        #[arg(long, value_parser = parse_word::<EkStanding>)]
        standing: Option<EkStanding>,
        #[command(flatten)]
        rows: Rows,
    },
    /// Shows one EK certificate
    Show {
        /// SHA-256 of the certificate, 64 hex digits
        sha256: String,
        /// Print the certificate and its chain up to the EK root, PEM
        #[arg(long)]
        pem: bool,
    },
    /// Lists the fleet's EK root and the authorities of its hosts, also of hosts that have left
    Authorities {
        /// Print their certificates, PEM, the root first: what a verifier of TPMs needs
        #[arg(long)]
        pem: bool,
        #[command(flatten)]
        rows: Rows,
    },
    /// Prints the list of revoked EK certificates, signed by the EK root (X.509 CRL, PEM); it counts for seven days
    Crl {
        /// Write it to FILE instead; an existing file is replaced
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Writes what a web server has to offer to those who verify TPMs: the EK root, the hosts' authorities, and the list of
    /// revoked certificates (DER)
    ///
    /// With ek_address in the hosts' agent.toml, new EK certificates name the place of these files. The list counts for seven
    /// days: publish it anew every day.
    Publish {
        /// The directory that the web server offers; it is made if it is not there, and existing files are replaced
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Accepts the EK certificate of a TPM that this fleet did not make
    ///
    /// A host refuses such a TPM when it arrives, is restored or is rebuilt (EK_NOT_OF_FLEET), and names the certificate.
    Accept {
        /// SHA-256 of the certificate, 64 hex digits
        sha256: String,
    },
    /// Revokes an EK certificate, or all that a host's EK authority issues
    ///
    /// It goes into the list of revoked certificates for good, and is shown with its VMs, which go on. A certificate of
    /// another maker is no longer accepted.
    Revoke {
        /// SHA-256 of the certificate, 64 hex digits; of an authority, see fleetward ek authorities
        sha256: String,
        /// For the record
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
}

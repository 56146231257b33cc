//! `fleetward ek ...`

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub enum EkCommand {
    /// Accepts the EK certificate of a TPM that this fleet did not make
    ///
    /// A host refuses such a TPM when it arrives, is restored or is rebuilt (EK_NOT_OF_FLEET), and names the certificate.
    Accept {
        /// SHA-256 of the certificate, 64 hex digits
        sha256: String,
    },
}

//! The controller as a process: its log, its options, its exit code.

use fleetward_cli::ControllerRun;
use fleetward_controller::{CertificateFiles, ConsoleOptions, Failure};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Filter of the log, in the syntax of `tracing_subscriber::EnvFilter`.
const LOG_VARIABLE: &str = "FLEETWARD_LOG";

/// Runs the controller until it is told to end.
pub(crate) async fn run(options: ControllerRun, socket: Option<PathBuf>) -> ExitCode {
    let filter = EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let options = fleetward_controller::Options {
        data: options.data,
        listen: options.listen,
        advertise: options.advertise,
        socket,
        trust: options.trust,
        retention: fleetward_controller::Retention {
            versions: options.tpm_versions,
            days: options.tpm_days,
        },
        alert_every: options.alert_every,
        console: options.console.map(|listen| ConsoleOptions {
            listen,
            certificate: (options.console_cert.zip(options.console_key))
                .map(|(chain, key)| CertificateFiles { chain, key }),
        }),
    };
    match fleetward_controller::run(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(refusal) = error.downcast_ref::<Failure>() {
                tracing::error!("the controller ends\n{refusal}");
                return ExitCode::from(refusal.code.class().exit_code());
            }
            tracing::error!(error = format!("{error:#}"), "the controller ends");
            ExitCode::FAILURE
        }
    }
}

/// The socket to make: what `--socket` names, or none, which is the one beside the data.
pub(crate) fn socket_of(given: &Path) -> Option<PathBuf> {
    let is_default = given == Path::new(fleetward_cli::args::DEFAULT_SOCKET);
    (!is_default).then(|| given.to_owned())
}

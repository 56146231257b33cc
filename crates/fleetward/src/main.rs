//! `fleetward`: the command line, and the controller as a service.
//!
//! Only this program links both: the command line knows only the controller's API, so the program handles `controller
//! run` itself and passes everything else to the command line.

mod service;

use fleetward_cli::{Command, ControllerCommand};
use std::process::ExitCode;
use tikv_jemallocator::Jemalloc;

/// For the controller: why, and what it was compared with, is decision 0067.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let cli = match fleetward_cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error[INTERNAL]: cannot start\n  because: {error}");
            return ExitCode::FAILURE;
        }
    };
    let code = match cli.command {
        Command::Controller(ControllerCommand::Run(options)) => {
            let socket = service::socket_of(&cli.global.socket);
            runtime.block_on(service::run(options, socket))
        }
        _ => runtime.block_on(fleetward_cli::run(cli)),
    };
    // A read of stdin may be under way, for which there is nothing to wait.
    runtime.shutdown_background();
    code
}

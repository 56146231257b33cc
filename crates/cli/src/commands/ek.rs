//! `fleetward ek ...`: certificates of TPMs' endorsement keys.

use super::Context;
use crate::args::EkCommand;
use crate::exit::{Exit, Stop};
use crate::messages;
use fleetward_api::verbs::EkAccept;

pub(super) async fn run(context: &Context, command: EkCommand) -> Result<Exit, Stop> {
    match command {
        EkCommand::Accept { sha256 } => {
            let accepted = context
                .controller
                .call::<EkAccept>([sha256.as_str()], &())
                .await?;
            context
                .output
                .success(&accepted, || messages::ek_accepted(&accepted))?;
            Ok(Exit::Done)
        }
    }
}

//! `fleetward network ...` and `fleetward vm nic ...`

use super::{Context, vm_set};
use crate::args::{NetworkCommand, NicCommand, NicHow};
use crate::exit::{Exit, Stop};
use crate::table;
use fleetward_api::controller::{ChangeRequest, NetworkView};
use fleetward_api::lists::LibraryQuery;
use fleetward_api::verbs::NetworkList;
use fleetward_model::VmName;
use fleetward_model::change::{NicAsked, NicChange, NicRemove, NicSet};

pub(super) async fn run(context: &Context, command: NetworkCommand) -> Result<Exit, Stop> {
    match command {
        NetworkCommand::List { rows } => {
            let query = LibraryQuery {
                after: rows.after,
                limit: None,
            };
            let networks: Vec<NetworkView> = context
                .controller
                .list::<NetworkList, _>(query, rows.limit)
                .await?;
            context
                .output
                .document(&networks, || table::networks(&networks))?;
        }
    }
    Ok(Exit::Done)
}

pub(super) async fn nic(context: &Context, command: NicCommand) -> Result<Exit, Stop> {
    match command {
        NicCommand::Add {
            name,
            network,
            parts,
            filter,
            vlan,
            how,
        } => {
            let asked = NicAsked {
                network,
                model: parts.model,
                mac: parts.mac,
                vlan,
                link: parts.link.unwrap_or_default(),
                filter,
            };
            change(context, &name, NicChange::Add(asked), how).await
        }
        NicCommand::Set {
            name,
            nic,
            network,
            parts,
            filter,
            vlan,
            how,
        } => {
            let set = NicSet {
                nic,
                network,
                model: parts.model,
                mac: parts.mac,
                vlan: vlan.map(Option::from),
                link: parts.link,
                filter: filter.map(Option::from),
            };
            change(context, &name, NicChange::Set(set), how).await
        }
        NicCommand::Remove { name, nic, how } => {
            change(context, &name, NicChange::Remove(NicRemove { nic }), how).await
        }
    }
}

async fn change(
    context: &Context,
    name: &VmName,
    change: NicChange,
    how: NicHow,
) -> Result<Exit, Stop> {
    let request = ChangeRequest {
        nics: vec![change],
        dry_run: how.dry_run,
        ..ChangeRequest::default()
    };
    vm_set::change(context, name, &request, how.wait).await
}

//! Networks: the list.

use super::Answer;
use super::body::Asked;
use super::page::Page;
use super::rows::Rows;
use super::scope;
use crate::app::App;
use axum::extract::State;
use fleetward_api::controller::NetworkView;
use fleetward_api::verbs;
use fleetward_link::Peer;

serves! {
    NetworkList => network_list,
}

async fn network_list(
    State(app): State<App>,
    peer: Peer,
    Asked(query): Asked<verbs::NetworkList>,
) -> Answer<Rows<NetworkView>> {
    let page = Page::new(query.limit, query.after)?;
    let mut networks = app.world.networks();
    if peer.groups().is_some() {
        for network in &mut networks {
            let hosts = &mut network.hosts;
            hosts.retain(|one| scope::sees_host(&app.world, &peer, &one.host));
        }
        networks.retain(|network| !network.hosts.is_empty());
    }
    Ok(Rows(page.of_named(networks)))
}

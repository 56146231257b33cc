//! Networks: the list.

use super::Answer;
use super::body::Asked;
use super::page::Page;
use super::rows::Rows;
use crate::app::App;
use axum::extract::State;
use fleetward_api::controller::NetworkView;
use fleetward_api::verbs;

serves! {
    NetworkList => network_list,
}

async fn network_list(
    State(app): State<App>,
    Asked(query): Asked<verbs::NetworkList>,
) -> Answer<Rows<NetworkView>> {
    let page = Page::new(query.limit, query.after)?;
    Ok(Rows(page.of_named(app.world.networks())))
}

//! What changes, as it happens: names of what is to be read anew, for whoever shows the fleet.
//!
//! ```text
//!   inventory ─► Reader (a set: however much happens, nothing is there twice) ─► a quarter of a second ─► a line
//! ```
//! A slow reader gets fewer and longer lines, and holds up nobody.

use super::lines::lines;
use super::scope;
use crate::app::App;
use axum::extract::State;
use axum::response::Response;
use fleetward_api::controller::ChangesView;
use fleetward_link::Peer;
use fleetward_model::{HostName, VmId};
use futures_util::stream;
use std::collections::HashSet;
use std::time::Duration;

serves! {
    FleetChanges => changes,
}

/// For so long changes are gathered into one line.
const GATHER: Duration = Duration::from_millis(250);

async fn changes(State(app): State<App>, peer: Peer) -> Response {
    let news = app.world.inventory.news();
    let seen = Seen::default();
    let told = stream::unfold(
        (app.clone(), peer, news, seen),
        |(app, peer, news, mut seen)| async move {
            loop {
                news.arrived().await;
                tokio::time::sleep(GATHER).await;
                let new = news.take();
                let told = ChangesView {
                    all: new.all,
                    vms: new.vms.into_iter().collect(),
                    hosts: new.hosts.into_iter().collect(),
                };
                let told = seen.of(&app, &peer, told);
                if told.all || !told.vms.is_empty() || !told.hosts.is_empty() {
                    return Some((told, (app, peer, news, seen)));
                }
            }
        },
    );
    lines(&app, told)
}

/// What a reader with limits was told of, so that it also hears of the end of that.
#[derive(Debug, Default)]
struct Seen {
    vms: HashSet<VmId>,
    hosts: HashSet<HostName>,
}

impl Seen {
    /// What is of the caller's groups, or was.
    fn of(&mut self, app: &App, peer: &Peer, mut told: ChangesView) -> ChangesView {
        if peer.groups().is_none() {
            return told;
        }
        let world = &app.world;
        if told.all {
            let vms = world.inventory.vms().into_iter();
            let vms = vms.filter(|vm| scope::sees_vm(world, peer, vm));
            self.vms = vms.map(|vm| vm.id).collect();
            let hosts = world.hosts.all().into_iter();
            let hosts = hosts.filter(|host| scope::sees_group(peer, &host.group));
            self.hosts = hosts.map(|host| host.name.clone()).collect();
            return told;
        }
        told.vms.retain(|id| {
            let vm = world.inventory.vm(*id);
            match vm.is_some_and(|vm| scope::sees_vm(world, peer, &vm)) {
                true => {
                    self.vms.insert(*id);
                    true
                }
                false => self.vms.remove(id),
            }
        });
        told.hosts
            .retain(|host| match scope::sees_host(world, peer, host) {
                true => {
                    self.hosts.insert(host.clone());
                    true
                }
                false => self.hosts.remove(host),
            });
        told
    }
}

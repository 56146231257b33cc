//! The guest agent of QEMU, through libvirt's typed calls. Every call has a time limit of its own, takes a bounded part of the
//! answer, and uses a connection of its own, so that a guest that does not answer holds up nothing else.

use crate::binding::{self, Named};
use crate::connection::Libvirt;
use crate::host::{domain, failed};
use fleetward_hypervisor::{Error, GuestTold, NicAddresses, Result};
use fleetward_model::VmId;
use std::collections::BTreeMap;
use std::time::Duration;
use virt::domain::Domain;
use virt::error::ErrorNumber;

/// How long an agent may take to answer a question, seconds.
const ANSWER_SECONDS: i32 = 5;
/// How long it may take to write everything to its disks before it says that they are frozen.
const FREEZE_SECONDS: i32 = 10;
/// Of a whole call: libvirt first waits some seconds for the agent's attention.
const LIMIT: Duration = Duration::from_secs(25);
/// An agent that does not answer is known by then: libvirt waits five seconds for its attention.
const TAKEN: Duration = Duration::from_secs(8);
/// How long libvirt may wait for the guest's end.
const DOWN: Duration = Duration::from_secs(90);
/// Cards, and addresses of a card, that are taken.
const MOST: usize = 64;

/// Asks for the guest's name, system and addresses.
pub(crate) async fn ask(libvirt: &Libvirt, id: VmId) -> Result<GuestTold> {
    let asked = libvirt.call_alone(LIMIT, move |connection| {
        let domain = domain(connection, id)?;
        patience(&domain, ANSWER_SECONDS);
        let told = binding::guest_info(&domain);
        told.map_err(unanswered(id, "ask the guest"))
    });
    Ok(sorted(asked.await?))
}

/// What the host itself knows of the guest's addresses: from leases of its own networks, and from its neighbours.
pub(crate) async fn neighbours(libvirt: &Libvirt, id: VmId) -> Result<Vec<NicAddresses>> {
    let found = libvirt.call_alone(LIMIT, move |connection| {
        let domain = domain(connection, id)?;
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for source in [
            virt_sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
            virt_sys::VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP,
        ] {
            // A domain without such a card has none; that is no error of ours.
            for (mac, addresses) in
                binding::interface_addresses(&domain, source, MOST).unwrap_or_default()
            {
                let known = found.entry(mac).or_default();
                for address in addresses {
                    if !known.contains(&address) {
                        known.push(address);
                    }
                }
            }
        }
        Ok(found)
    });
    let found = found.await?.into_iter();
    Ok(found
        .map(|(mac, addresses)| NicAddresses { mac, addresses })
        .collect())
}

/// Asks the agent to shut the guest down. libvirt returns when the guest is down; what is waited for here is only whether the
/// agent takes the request.
pub(crate) async fn shut_down(libvirt: &Libvirt, id: VmId) -> Result<()> {
    let libvirt = libvirt.clone();
    let asked = tokio::spawn(async move {
        let asked = libvirt.call_alone(DOWN, move |connection| {
            let domain = domain(connection, id)?;
            patience(&domain, ANSWER_SECONDS);
            let asked = domain.shutdown_flags(virt_sys::VIR_DOMAIN_SHUTDOWN_GUEST_AGENT);
            asked
                .map(drop)
                .map_err(unanswered(id, "ask the guest agent to shut down"))
        });
        asked.await
    });
    match tokio::time::timeout(TAKEN, asked).await {
        Ok(Ok(asked)) => asked,
        // Neither refused nor done: the guest is on its way down.
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

/// Has the guest write everything to its disks and stand still there.
pub(crate) async fn freeze(libvirt: &Libvirt, id: VmId) -> Result<()> {
    let asked = libvirt.call_alone(LIMIT, move |connection| {
        let domain = domain(connection, id)?;
        patience(&domain, FREEZE_SECONDS);
        binding::freeze(&domain).map_err(unanswered(id, "freeze the guest's disks"))
    });
    asked.await
}

/// Lets it write again.
pub(crate) async fn thaw(libvirt: &Libvirt, id: VmId) -> Result<()> {
    let asked = libvirt.call_alone(LIMIT, move |connection| {
        let domain = domain(connection, id)?;
        patience(&domain, ANSWER_SECONDS);
        binding::thaw(&domain).map_err(unanswered(id, "thaw the guest's disks"))
    });
    asked.await
}

/// Limits how long libvirt waits for an answer. One that cannot be limited is still bounded by our own clock.
fn patience(domain: &Domain, seconds: i32) {
    if let Err(error) = binding::agent_patience(domain, seconds) {
        tracing::debug!(%error, "the wait for a guest agent has libvirt's own limit");
    }
}

fn unanswered(id: VmId, attempt: &'static str) -> impl FnOnce(virt::error::Error) -> Error {
    move |error| match error.code() {
        ErrorNumber::AgentUnresponsive
        | ErrorNumber::AgentUnsynced
        | ErrorNumber::AgentCommandTimeout
        | ErrorNumber::AgentCommandFailed
        | ErrorNumber::ArgumentUnsupported
        | ErrorNumber::OperationInvalid => Error::NoGuestAgent {
            id,
            because: error.message().to_owned(),
        },
        _ => failed(attempt)(error),
    }
}

/// libvirt's flat names (`if.0.hwaddr`, `if.0.addr.1.addr`) as cards with addresses.
pub(crate) fn sorted(told: Vec<Named>) -> GuestTold {
    let mut guest = GuestTold::default();
    let mut macs: BTreeMap<usize, String> = BTreeMap::new();
    let mut addresses: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    let mut name = None;
    for Named { field, value } in told {
        match field.as_str() {
            "hostname" => guest.host_name = Some(value),
            "os.pretty-name" => guest.os = Some(value),
            "os.name" => name = Some(value),
            field => {
                let Some((card, rest)) = indexed(field.strip_prefix("if.")) else {
                    continue;
                };
                if rest == "hwaddr" {
                    macs.insert(card, value);
                } else if let Some((_, "addr")) = indexed(rest.strip_prefix("addr.")) {
                    let known = addresses.entry(card).or_default();
                    if known.len() < MOST {
                        known.push(value);
                    }
                }
            }
        }
    }
    guest.os = guest.os.or(name);
    guest.addresses = macs
        .into_iter()
        .take(MOST)
        .map(|(card, mac)| NicAddresses {
            mac,
            addresses: addresses.remove(&card).unwrap_or_default(),
        })
        .collect();
    guest
}

/// `3.rest` as 3 and `rest`.
fn indexed(text: Option<&str>) -> Option<(usize, &str)> {
    let (index, rest) = text?.split_once('.')?;
    Some((index.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flat_names_become_cards_with_addresses_and_what_is_unknown_is_passed_over() {
        let named = |field: &str, value: &str| Named {
            field: field.to_owned(),
            value: value.to_owned(),
        };
        let told = sorted(vec![
            named("hostname", "web"),
            named("os.name", "Debian"),
            named("os.pretty-name", "Debian 13"),
            named("if.1.hwaddr", "52:54:00:00:00:02"),
            named("if.0.hwaddr", "52:54:00:00:00:01"),
            named("if.1.addr.0.addr", "10.0.0.2"),
            named("if.1.addr.1.addr", "fe80::2"),
            named("if.1.addr.x.addr", "10.0.0.3"),
            named("if.99999999999999999999.hwaddr", "x"),
            named("if.", ""),
            named("", "nothing"),
        ]);
        assert_eq!(told.host_name.as_deref(), Some("web"));
        assert_eq!(told.os.as_deref(), Some("Debian 13"));
        let cards: Vec<_> = told.addresses.iter().map(|c| c.addresses.len()).collect();
        assert_eq!(cards, [0, 2]);
        assert_eq!(told.addresses[1].addresses, ["10.0.0.2", "fe80::2"]);
    }
}

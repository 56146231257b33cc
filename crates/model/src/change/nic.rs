//! Network cards: what can be asked, the steps it takes, what waits for the next start, what somebody edited.
//!
//! ```text
//!  add ────► a card under the first free id, with the profile's model
//!  set ────► the parts that were named and differ, in the specification or in the definition
//!  remove ─► the card goes; a running guest is asked to let it go, and until it does that waits
//! ```

use super::{ChangeKind, ChangeStep, Direction, Pending};
use crate::error::Finding;
use crate::network::{Mac, NicFilter, NicLink, NicObserved, VlanId};
use crate::spec::{NicModel, NicSpec, Unknown, VmSpec};
use crate::vm::{VmObserved, VmState};
use crate::{DeviceId, ErrorCode, Failure, NetworkName};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::ToSchema;

/// Most network cards of one VM.
pub const MAX_NICS: usize = 16;

/// A network card that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NicAsked {
    pub network: NetworkName,
    /// None: as the VM's first card, and of the first the profile's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<NicModel>,
    /// None: a new one, `52:54:00:xx:xx:xx`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<VlanId>,
    #[serde(default, skip_serializing_if = "NicLink::is_up")]
    pub link: NicLink,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<NicFilter>,
}

/// A card like that one, with an address of its own.
impl From<&NicSpec> for NicAsked {
    fn from(nic: &NicSpec) -> Self {
        Self {
            network: nic.network.clone(),
            model: Some(nic.model),
            mac: None,
            vlan: nic.vlan,
            link: nic.link,
            filter: nic.filter,
        }
    }
}

/// What is changed of a network card; what is not named stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NicSet {
    /// The card's id, as `vm show` tells it.
    pub nic: DeviceId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<NicModel>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Null: no VLAN.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<u16>)]
    pub vlan: Option<Option<VlanId>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<NicLink>,
    /// Null: no filter.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    #[schema(value_type = Option<NicFilter>)]
    pub filter: Option<Option<NicFilter>>,
}

/// A network card that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NicRemove {
    /// The card's id, as `vm show` tells it.
    pub nic: DeviceId,
}

/// One thing that is asked about the network cards of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum NicChange {
    Add(NicAsked),
    Set(NicSet),
    Remove(NicRemove),
}

impl NicChange {
    /// Gives a card that is added the address of `make` where none was asked for.
    pub fn with_address(&mut self, make: impl FnOnce() -> Mac) {
        match self {
            Self::Add(asked) => {
                asked.mac.get_or_insert_with(make);
            }
            Self::Set(_) | Self::Remove(_) => {}
        }
    }
}

/// A part of a network card that changes by itself.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
#[derive(strum::VariantArray)]
pub enum NicPart {
    Network,
    Model,
    Mac,
    Vlan,
    Link,
    Filter,
}

impl NicPart {
    /// Whether the part of both is the same.
    fn same(self, one: &NicSpec, other: &NicSpec) -> bool {
        match self {
            Self::Network => one.network == other.network,
            Self::Model => one.model == other.model,
            Self::Mac => one.mac == other.mac,
            Self::Vlan => one.vlan == other.vlan,
            Self::Link => one.link == other.link,
            Self::Filter => one.filter == other.filter,
        }
    }

    /// Whether a card of the definition has the part as specified.
    fn is_as(self, seen: &NicObserved, spec: &NicSpec) -> bool {
        match self {
            Self::Network => seen.network.as_ref() == Some(&spec.network),
            Self::Model => seen.model == spec.model.into_str(),
            Self::Mac => seen.mac.eq_ignore_ascii_case(&spec.mac),
            Self::Vlan => seen.vlan == spec.vlan,
            Self::Link => seen.link == spec.link,
            Self::Filter => seen.filter.as_deref() == spec.filter.map(|filter| filter.into_str()),
        }
    }
}

/// The card that is asked for, under that id. None where it has no address.
pub fn card(id: DeviceId, asked: &NicAsked, model: NicModel) -> Option<NicSpec> {
    Some(NicSpec {
        id,
        network: asked.network.clone(),
        model: asked.model.unwrap_or(model),
        mac: asked.mac.clone()?.into(),
        vlan: asked.vlan,
        link: asked.link,
        filter: asked.filter,
        unknown: Unknown::new(),
    })
}

/// The cards of a new VM.
///
/// # Errors
/// As for [`require_possible`]; [`ErrorCode::MacTaken`] when two have one address; too many cards.
pub fn cards(asked: &[NicAsked], model: NicModel) -> Result<Vec<NicSpec>, Failure> {
    let mut cards: Vec<NicSpec> = Vec::with_capacity(asked.len());
    for (at, asked) in asked.iter().enumerate() {
        let made = card(DeviceId::numbered("nic", at), asked, model);
        let made = made.ok_or_else(|| {
            Failure::new(ErrorCode::InvalidArgument, "a network card has no address")
        })?;
        require_possible(&made)?;
        require_free_address(&cards, &made)?;
        cards.push(made);
    }
    require_number(cards.len())?;
    Ok(cards)
}

/// Refuses what no host can do.
///
/// # Errors
/// [`ErrorCode::InvalidArgument`].
pub fn require_possible(nic: &NicSpec) -> Result<(), Failure> {
    let network = &nic.network;
    let refuse = |what: &str, fix: &str| {
        let what = format!("network {network} is QEMU's user mode, where a card has no {what}");
        Err(Failure::new(ErrorCode::InvalidArgument, what).fix(fix.to_owned()))
    };
    match network.is_nat() {
        true if nic.vlan.is_some() => refuse(
            "VLAN",
            "leave out the VLAN, or choose another network of: fleetward network list",
        ),
        true if nic.filter.is_some() => refuse(
            "filter",
            "leave out the filter, or choose another network of: fleetward network list",
        ),
        true | false => Ok(()),
    }
}

fn require_free_address(cards: &[NicSpec], nic: &NicSpec) -> Result<(), Failure> {
    let other = cards
        .iter()
        .find(|card| card.id != nic.id && card.mac.eq_ignore_ascii_case(&nic.mac));
    match other {
        None => Ok(()),
        Some(other) => Err(Failure::new(
            ErrorCode::MacTaken,
            format!(
                "network card {} of the same VM has address {}",
                other.id, nic.mac
            ),
        )),
    }
}

fn require_number(cards: usize) -> Result<(), Failure> {
    if cards <= MAX_NICS {
        return Ok(());
    }
    let what = format!("{cards} network cards were asked for; a VM has at most {MAX_NICS}");
    Err(Failure::new(ErrorCode::InvalidArgument, what).fix("ask for fewer cards"))
}

/// The steps for what is asked, one after the other.
pub(super) fn steps(
    vm: &VmObserved,
    spec: &VmSpec,
    changes: &[NicChange],
) -> Result<Vec<ChangeStep>, Failure> {
    let mut cards = spec.nics.clone();
    let mut steps = Vec::new();
    for change in changes {
        let step = match change {
            NicChange::Add(asked) => Some(added(vm, spec, &cards, asked)?),
            NicChange::Set(set) => changed(vm, &cards, set)?,
            NicChange::Remove(remove) => Some(ChangeStep::Nic {
                nic: remove.nic.clone(),
                from: Some(Box::new(known(vm, &cards, &remove.nic)?.clone())),
                to: None,
                parts: Vec::new(),
            }),
        };
        let Some(step) = step else { continue };
        if let ChangeStep::Nic { nic, from, to, .. } = &step {
            apply(
                &mut cards,
                nic,
                (from.as_deref(), to.as_deref()),
                Direction::Forward,
            );
        }
        steps.push(step);
    }
    require_number(cards.len())?;
    Ok(steps)
}

fn added(
    vm: &VmObserved,
    spec: &VmSpec,
    cards: &[NicSpec],
    asked: &NicAsked,
) -> Result<ChangeStep, Failure> {
    // A card that is being removed may still be there.
    let seen = vm.nics.iter().flatten().map(|nic| &nic.id);
    let taken: Vec<&DeviceId> = cards.iter().map(|card| &card.id).chain(seen).collect();
    let id = (0..)
        .map(|number| DeviceId::numbered("nic", number))
        .find(|id| !taken.contains(&id))
        .expect("there are more numbers than cards");
    let first = cards.first().map(|card| card.model);
    let usual = first.unwrap_or(spec.profile.devices().network);
    let made = card(id.clone(), asked, usual);
    let made = made
        .ok_or_else(|| Failure::new(ErrorCode::InvalidArgument, "a network card has no address"))?;
    require_possible(&made)?;
    require_free_address(cards, &made)?;
    Ok(ChangeStep::Nic {
        nic: id,
        from: None,
        to: Some(Box::new(made)),
        parts: Vec::new(),
    })
}

fn changed(
    vm: &VmObserved,
    cards: &[NicSpec],
    set: &NicSet,
) -> Result<Option<ChangeStep>, Failure> {
    use strum::VariantArray;
    let from = known(vm, cards, &set.nic)?;
    let mut to = from.clone();
    if let Some(network) = &set.network {
        to.network.clone_from(network);
    }
    to.model = set.model.unwrap_or(to.model);
    if let Some(mac) = &set.mac {
        to.mac = mac.as_str().to_owned();
    }
    to.vlan = set.vlan.unwrap_or(to.vlan);
    to.link = set.link.unwrap_or(to.link);
    to.filter = set.filter.unwrap_or(to.filter);
    require_possible(&to)?;
    require_free_address(cards, &to)?;
    let defined = vm
        .defined
        .as_ref()
        .and_then(|defined| defined.nics.as_ref());
    let defined = defined.and_then(|nics| nics.iter().find(|nic| nic.id == set.nic));
    let named = |part: &NicPart| match part {
        NicPart::Network => set.network.is_some(),
        NicPart::Model => set.model.is_some(),
        NicPart::Mac => set.mac.is_some(),
        NicPart::Vlan => set.vlan.is_some(),
        NicPart::Link => set.link.is_some(),
        NicPart::Filter => set.filter.is_some(),
    };
    let differs = |part: &NicPart| {
        !part.same(from, &to) || defined.is_some_and(|seen| !part.is_as(seen, &to))
    };
    let parts: Vec<NicPart> = NicPart::VARIANTS
        .iter()
        .copied()
        .filter(|part| named(part) && differs(part))
        .collect();
    Ok((!parts.is_empty()).then(|| ChangeStep::Nic {
        nic: set.nic.clone(),
        from: Some(Box::new(from.clone())),
        to: Some(Box::new(to)),
        parts,
    }))
}

fn known<'a>(vm: &VmObserved, cards: &'a [NicSpec], id: &DeviceId) -> Result<&'a NicSpec, Failure> {
    cards.iter().find(|card| card.id == *id).ok_or_else(|| {
        let name = &vm.name;
        let there: Vec<&str> = cards.iter().map(|card| card.id.as_str()).collect();
        let failure = Failure::new(
            ErrorCode::DeviceMissing,
            format!("VM {name} has no network card {id}"),
        );
        match there.as_slice() {
            [] => failure.because("it has no network card".to_owned()),
            there => failure.because(format!("it has {}", there.join(", "))),
        }
        .fix(format!("fleetward vm show {name}"))
    })
}

/// The cards after one step.
pub(super) fn apply(
    cards: &mut Vec<NicSpec>,
    id: &DeviceId,
    (from, to): (Option<&NicSpec>, Option<&NicSpec>),
    direction: Direction,
) {
    let at = cards.iter().position(|card| card.id == *id);
    let has = at.map(|at| &cards[at]);
    let next = match direction {
        Direction::Forward => to,
        Direction::Back if has == to => from,
        Direction::Back => return,
    };
    match (at, next) {
        (Some(at), Some(next)) => cards[at] = next.clone(),
        (Some(at), None) => drop(cards.remove(at)),
        (None, Some(next)) => cards.push(next.clone()),
        (None, None) => {}
    }
}

/// Whether a running VM cannot have that change before its next start, as far as it is known beforehand: QEMU gives a card
/// neither another model nor another address, and takes nothing out of user mode.
pub(super) fn waits(step: &ChangeStep, state: VmState) -> bool {
    let ChangeStep::Nic {
        from: Some(from),
        to: Some(to),
        parts,
        ..
    } = step
    else {
        return false;
    };
    let runs = match state {
        VmState::Running | VmState::Paused | VmState::Failed => true,
        VmState::Stopped | VmState::Saved | VmState::Migrating | VmState::Unknown => false,
    };
    runs && parts.iter().any(|part| match part {
        NicPart::Model | NicPart::Mac => true,
        NicPart::Network => from.network.is_nat() != to.network.is_nat(),
        NicPart::Vlan | NicPart::Link | NicPart::Filter => false,
    })
}

/// What the running VM's cards have otherwise than those of its definition.
pub(super) fn pending(vm: &VmObserved) -> impl Iterator<Item = Pending> {
    let defined = vm
        .defined
        .as_ref()
        .and_then(|defined| defined.nics.as_ref());
    let (now, next) = match (&vm.nics, defined) {
        (Some(now), Some(next)) => (now.as_slice(), next.as_slice()),
        (None, _) | (_, None) => (&[][..], &[][..]),
    };
    let find = |nics: &[NicObserved], id: &DeviceId| nics.iter().find(|nic| nic.id == *id).cloned();
    let gone = now.iter().filter(|nic| find(next, &nic.id).is_none());
    let mut all: Vec<Pending> = Vec::new();
    for nic in next.iter().chain(gone) {
        let (was, will) = (find(now, &nic.id), find(next, &nic.id));
        if was.as_ref().map(without_addresses) == will.as_ref().map(without_addresses) {
            continue;
        }
        let shown = |nic: &Option<NicObserved>| {
            nic.as_ref()
                .and_then(|nic| serde_json::to_value(without_addresses(nic)).ok())
                .unwrap_or_default()
        };
        all.push(Pending {
            change: ChangeKind::Nics,
            device: Some(nic.id.clone()),
            now: shown(&was),
            wanted: shown(&will),
        });
    }
    all.into_iter()
}

fn without_addresses(nic: &NicObserved) -> NicObserved {
    NicObserved {
        addresses: Vec::new(),
        ..nic.clone()
    }
}

/// Cards that somebody changed, removed or added with other programs.
pub(super) fn differing(vm: &VmObserved, spec: &VmSpec) -> Vec<Finding> {
    use strum::VariantArray;
    let defined = vm
        .defined
        .as_ref()
        .and_then(|defined| defined.nics.as_ref());
    let Some(defined) = defined else {
        return Vec::new();
    };
    let name = &spec.name;
    let edited = |what: String, fix: String| Finding {
        blocking: false,
        ..Finding::blocking(ErrorCode::DefinitionEdited, what, fix)
    };
    let mut findings = Vec::new();
    for nic in &spec.nics {
        let id = &nic.id;
        let Some(seen) = defined.iter().find(|seen| seen.id == *id) else {
            findings.push(edited(
                format!(
                    "the definition of VM {name} has no network card {id}, which Fleetward gave it"
                ),
                format!("fleetward vm nic remove {name} {id}"),
            ));
            continue;
        };
        let other = |part: &&NicPart| !part.is_as(seen, nic);
        for part in NicPart::VARIANTS.iter().filter(other) {
            let (there, known, option) = described(*part, seen, nic);
            findings.push(edited(
                format!("network card {id} of the definition of VM {name} has {there}, and Fleetward gave it {known}"),
                format!("fleetward vm nic set {name} {id} {option}"),
            ));
        }
    }
    findings
}

/// What is there, what was given, and the option that gives it again.
fn described(part: NicPart, seen: &NicObserved, nic: &NicSpec) -> (String, String, String) {
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "none".to_owned());
    match part {
        NicPart::Network => {
            let there = match (&seen.network, &seen.bridge) {
                (Some(network), _) => format!("network {network}"),
                (None, Some(bridge)) => format!("bridge {bridge}"),
                (None, None) => "an unknown network".to_owned(),
            };
            let network = &nic.network;
            (
                there,
                format!("network {network}"),
                format!("--network {network}"),
            )
        }
        NicPart::Model => {
            let model = nic.model.into_str();
            (
                format!("model {}", seen.model),
                model.to_owned(),
                format!("--model {model}"),
            )
        }
        NicPart::Mac => (
            format!("address {}", seen.mac),
            nic.mac.clone(),
            format!("--mac {}", nic.mac),
        ),
        NicPart::Vlan => {
            let text = |vlan: Option<VlanId>| or_none(vlan.map(|vlan| vlan.to_string()));
            let known = text(nic.vlan);
            (
                format!("VLAN {}", text(seen.vlan)),
                known.clone(),
                format!("--vlan {known}"),
            )
        }
        NicPart::Link => (
            format!("link {}", seen.link),
            nic.link.to_string(),
            format!("--link {}", nic.link),
        ),
        NicPart::Filter => {
            let known = or_none(nic.filter.map(|filter| filter.to_string()));
            (
                format!("filter {}", or_none(seen.filter.clone())),
                known.clone(),
                format!("--filter {known}"),
            )
        }
    }
}

/// A field that is there, null or not.
fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    value: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(value).map(Some)
}

//! Conversion of an image from elsewhere: chooses a host, sends it the file, and takes the disk back.
//!
//! ```text
//!   ask all hosts ──► the least busy one with room ──► send ──► (wait, unpack, convert) ──► fetch ──► a draft of ours
//!                        └── no room after all: the next one
//! ```
//! The controller parses none of the file beyond its magic number; what comes back is looked at like any upload. A
//! conversion lives as long as the request that asked for it: neither side keeps anything of one that was broken off.

use crate::agents::ConvertedDisk;
use crate::image_format::MAX_IMAGE;
use crate::images::{Arrived, UnderWay};
use crate::world::World;
use fleetward_api::agent::{ConversionQuery, ConverterState};
use fleetward_api::controller::ImportStage;
use fleetward_model::host::{Formats, HostState};
use fleetward_model::{ErrorCode, Failure, HostName, Names};
use futures_util::future::join_all;

/// A converted image, and how that came about.
pub(crate) struct Converted {
    pub(crate) content: Arrived,
    /// From outside to inside: `["xz", "vhdx"]`.
    pub(crate) found: Vec<String>,
    pub(crate) host: HostName,
}

/// A host that could convert.
struct Offer {
    host: HostName,
    state: ConverterState,
}

/// Converts what arrived.
pub(crate) async fn convert(
    world: &World,
    upload: &Arrived,
    query: &ConversionQuery,
    under_way: &UnderWay<'_>,
) -> Result<Converted, Failure> {
    let what = format!("image {} cannot be converted", under_way.name());
    let (offers, mut reasons) = offers(world, upload.size()).await;
    if offers.is_empty() && reasons.iter().any(|reason| reason.too_old) {
        let only_old = reasons.iter().all(|reason| reason.too_old || reason.away);
        if let (true, Some(old)) = (only_old, reasons.iter().find(|reason| reason.too_old)) {
            return Err(Failure::new(ErrorCode::AgentTooOld, what)
                .because(sentence(&reasons))
                .about(&Names::default().host(&old.host)));
        }
    }
    for Offer { host, .. } in offers {
        match on(world, &host, upload, query, under_way).await {
            Ok((content, found)) => {
                return Ok(Converted {
                    content,
                    found,
                    host,
                });
            }
            // It was asked a moment ago; another host may have what it lacks.
            Err(failure) if matches!(failure.code, ErrorCode::NoSpace | ErrorCode::NoConverter) => {
                reasons.push(Reason::new(&host, failure.because));
            }
            Err(failure) => {
                let because = match failure.because.is_empty() {
                    true => failure.what,
                    false => failure.because,
                };
                return Err(Failure {
                    what,
                    because,
                    ..failure
                });
            }
        }
    }
    Err(Failure::new(ErrorCode::NoConverter, what).because(sentence(&reasons)))
}

async fn on(
    world: &World,
    host: &HostName,
    upload: &Arrived,
    query: &ConversionQuery,
    under_way: &UnderWay<'_>,
) -> Result<(Arrived, Vec<String>), Failure> {
    let agent = world.agents.of(host)?;
    under_way.tell(ImportStage::Sending, Some(host), 0, upload.size());
    let sent = under_way.teller(ImportStage::Sending, Some(host.clone()));
    let mut conversion = agent.convert(upload.path(), query, sent).await?;
    while let Some((step, permille)) = conversion.progress().await? {
        let stage = match step.as_str() {
            "unpack" => ImportStage::Unpacking,
            "convert" => ImportStage::Converting,
            _ => ImportStage::Waiting,
        };
        under_way.tell(stage, Some(host), u64::from(permille), 1000);
    }
    let ConvertedDisk {
        size,
        found,
        content,
    } = conversion.disk()?;
    if size > MAX_IMAGE {
        let because =
            format!("the disk that came of it has {size} bytes; an image has at most {MAX_IMAGE}");
        return Err(Failure::new(ErrorCode::TooLarge, "the converted image").because(because));
    }
    let told = under_way.teller(ImportStage::Fetching, Some(host.clone()));
    let content = world
        .images
        .receive(content, |done| told(done, size))
        .await?;
    if content.size() != size {
        return Err(Failure::new(
            ErrorCode::LinkLost,
            "the converted image did not arrive whole",
        )
        .because(format!(
            "{} of {size} bytes came from host {host}",
            content.size()
        )));
    }
    Ok((content, found))
}

/// Why a host does not convert.
struct Reason {
    host: HostName,
    text: String,
    too_old: bool,
    away: bool,
}

impl Reason {
    fn new(host: &HostName, text: impl Into<String>) -> Self {
        Self {
            host: host.clone(),
            text: text.into(),
            too_old: false,
            away: false,
        }
    }
}

fn sentence(reasons: &[Reason]) -> String {
    if reasons.is_empty() {
        return "the fleet has no host".to_owned();
    }
    let each = reasons
        .iter()
        .map(|reason| format!("{}: {}", reason.host, reason.text));
    each.collect::<Vec<_>>().join("; ")
}

/// The hosts that can convert a file of that size now, the best first, and why the others do not.
async fn offers(world: &World, size: u64) -> (Vec<Offer>, Vec<Reason>) {
    let mut reasons = Vec::new();
    let mut asked = Vec::new();
    for record in world.hosts.all() {
        let host = &record.name;
        let facts = world.inventory.seen(host).facts;
        let knows = facts.is_some_and(|f| f.formats.operations >= Formats::CONVERSION);
        match world.state_of(&record) {
            HostState::Unreachable | HostState::Invited => reasons.push(Reason {
                away: true,
                ..Reason::new(host, "it does not answer")
            }),
            HostState::Drained => reasons.push(Reason {
                away: true,
                ..Reason::new(host, "it is drained")
            }),
            HostState::Online if !knows => reasons.push(Reason {
                too_old: true,
                ..Reason::new(host, "its agent is too old to convert images")
            }),
            HostState::Online => asked.push(record.name.clone()),
        }
    }
    let answers = asked.iter().map(|host| async {
        match world.agents.of(host) {
            Ok(agent) => agent.converter().await,
            Err(failure) => Err(failure),
        }
    });
    let mut offers = Vec::new();
    for (host, answer) in asked.iter().zip(join_all(answers).await) {
        let needed = size.saturating_mul(2);
        match answer {
            Err(failure) => reasons.push(Reason::new(host, failure.what)),
            Ok(ConverterState {
                unable: Some(why), ..
            }) => reasons.push(Reason::new(host, why)),
            Ok(ConverterState { room, .. }) if room < needed => reasons.push(Reason::new(
                host,
                format!("{needed} bytes are needed there, {room} can be used"),
            )),
            Ok(state) => offers.push(Offer {
                host: host.clone(),
                state,
            }),
        }
    }
    offers.sort_by_key(|offer| (offer.state.busy, std::cmp::Reverse(offer.state.room)));
    (offers, reasons)
}

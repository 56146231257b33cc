//! What the reader of a host's events is told, line by line.

use super::AgentEvent;
use fleetward_model::host::{Formats, HostFacts};

/// How many signs of life in a row may be without facts: with one every three seconds, those of a minute.
const MOST_SIGNS: u32 = 20;

/// What one reader of a host's events is told: in the versions that it knows, and without facts that it has.
#[derive(Debug)]
pub struct Telling {
    formats: Formats,
    /// The facts that were told last.
    told: Option<Box<HostFacts>>,
    /// Signs of life since then.
    signs: u32,
}

impl Telling {
    pub const fn to_reader_of(formats: Formats) -> Self {
        Self {
            formats,
            told: None,
            signs: 0,
        }
    }

    /// The lines that say `event`, one event each; none where the reader would not know it.
    pub fn tell(&mut self, event: AgentEvent) -> Vec<AgentEvent> {
        if matches!(event, AgentEvent::Load { .. }) && self.formats.events < Formats::LOAD {
            return Vec::new();
        }
        let event = match event {
            AgentEvent::Facts { facts, audit } if self.knows(&facts) => {
                self.signs += 1;
                let measured = facts.measurements();
                AgentEvent::Alive { measured, audit }
            }
            other => other,
        };
        if let AgentEvent::Snapshot { facts, .. } | AgentEvent::Facts { facts, .. } = &event {
            self.told = Some(facts.clone());
            self.signs = 0;
        }
        event.readable_with(self.formats).in_parts(self.formats)
    }

    /// Whether the reader needs no more than the measurements of `facts`.
    fn knows(&self, facts: &HostFacts) -> bool {
        let told = self.told.as_ref();
        self.formats.events >= Formats::SIGNS
            && self.signs < MOST_SIGNS
            && told.is_some_and(|told| told.differ_in_measurements_only(facts))
    }
}

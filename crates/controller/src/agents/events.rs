//! What an agent says as it happens, line by line; a snapshot in parts is put together here.

use super::Agent;
use fleetward_api::agent::{AgentEvent, MAX_DOMAINS};
use fleetward_link::ClientError;
use fleetward_link::client::Lines;
use fleetward_model::host::HostFacts;
use fleetward_model::vm::VmReport;
use fleetward_model::{ErrorCode, Failure};

/// Largest snapshot of a host, all of its parts, bytes.
const MAX_SNAPSHOT: usize = 64 << 20;

/// What an agent says as it happens.
#[derive(Debug)]
pub(crate) struct Events {
    agent: Agent,
    lines: Lines,
    begun: Option<BegunSnapshot>,
}

/// A snapshot of which further parts are to come.
#[derive(Debug)]
struct BegunSnapshot {
    facts: Box<HostFacts>,
    vms: Vec<VmReport>,
    /// Bytes so far.
    size: usize,
}

impl Events {
    pub(super) fn new(agent: Agent, lines: Lines) -> Self {
        Self {
            agent,
            lines,
            begun: None,
        }
    }

    /// The next event, a snapshot in one piece; none when the agent ended the stream. Nothing is lost when this is dropped.
    pub(crate) async fn next(&mut self) -> Result<Option<AgentEvent>, Failure> {
        loop {
            let line = self.lines.next().await;
            let Some(line) = line.map_err(|error| self.agent.failed(&error))? else {
                return Ok(None);
            };
            if line.is_empty() {
                continue;
            }
            let event = serde_json::from_str(&line).map_err(ClientError::Decode);
            let event = event.map_err(|error| self.agent.failed(&error))?;
            if let Some(event) = self.assembled(event, line.len())? {
                return Ok(Some(event));
            }
        }
    }

    /// The event, or none where it is a part of one.
    fn assembled(&mut self, event: AgentEvent, size: usize) -> Result<Option<AgentEvent>, Failure> {
        let (snapshot, more) = match event {
            AgentEvent::Snapshot { facts, vms, more } => (BegunSnapshot { facts, vms, size }, more),
            AgentEvent::SnapshotPart { vms, more } => {
                let Some(mut begun) = self.begun.take() else {
                    return Err(self.agent.failed(&ClientError::NotText));
                };
                begun.vms.extend(vms);
                begun.size += size;
                (begun, more)
            }
            other => return Ok(Some(other)),
        };
        if snapshot.vms.len() > MAX_DOMAINS || snapshot.size > MAX_SNAPSHOT {
            let host = &self.agent.host;
            let what = format!("host {host} reports more than is taken");
            let because = format!(
                "{} domains in {} bytes so far; at most {MAX_DOMAINS} in {MAX_SNAPSHOT} bytes are taken",
                snapshot.vms.len(),
                snapshot.size
            );
            return Err(Failure::new(ErrorCode::ReportTooLarge, what).because(because));
        }
        if more {
            self.begun = Some(snapshot);
            return Ok(None);
        }
        let BegunSnapshot { facts, vms, .. } = snapshot;
        let more = false;
        Ok(Some(AgentEvent::Snapshot { facts, vms, more }))
    }
}

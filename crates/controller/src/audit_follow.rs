//! Keeps the copy of one host's audit log current, and what the host remembers of the controller's.
//!
//! ```text
//!   at rest ──its log has grown, or the controller's has──► one exchange at a time ──► at rest
//! ```
//!
//! A host says with its facts how far its log goes, so nothing is asked of one that is at rest. An agent of before does not
//! say it, and is asked every ten seconds.

use crate::world::World;
use fleetward_api::agent::AuditHead;
use fleetward_model::{Failure, HostName};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How often a host is asked that does not say how far its log goes.
pub(crate) const EVERY: Duration = Duration::from_secs(10);

/// How much longer the controller's records are not shown to a host for each host of the fleet: many remember, so each may be
/// a little behind.
const APART: Duration = Duration::from_millis(20);

/// One host's audit log, for as long as its events are heard.
#[derive(Debug)]
pub(crate) struct AuditFollower {
    world: Arc<World>,
    host: HostName,
    /// Whether the host says how far its log goes; none before its first facts.
    says_head: Option<bool>,
    /// The end of the log at the last exchange after which nothing was missing here.
    fetched: Option<AuditHead>,
    /// The end of the controller's records that the host was shown last.
    shown: Option<Option<AuditHead>>,
    /// When it may be shown another.
    next_witness: Instant,
    under_way: Option<JoinHandle<Result<Exchange, Failure>>>,
}

/// What one exchange is about.
#[derive(Debug, Clone, Default)]
struct Exchange {
    /// The end of the host's log, as it said.
    end: Option<AuditHead>,
    records: bool,
    /// The end of the controller's.
    witness: Option<Option<AuditHead>>,
    /// Whether more records wait.
    partial: bool,
}

impl AuditFollower {
    pub(crate) fn new(world: &Arc<World>, host: &HostName) -> Self {
        Self {
            world: Arc::clone(world),
            host: host.clone(),
            says_head: None,
            fetched: None,
            shown: None,
            next_witness: Instant::now(),
            under_way: None,
        }
    }

    /// The host gave a sign of life, and its log ends so.
    pub(crate) async fn heard(&mut self, end: Option<AuditHead>) {
        self.says_head = Some(end.is_some());
        let records = end.is_some() && end != self.fetched;
        self.exchange(end, records).await;
    }

    /// At least ten seconds have passed.
    pub(crate) async fn tick(&mut self) {
        if self.says_head == Some(false) {
            self.exchange(None, true).await;
        }
        self.says_head.get_or_insert(false);
    }

    /// Begins an exchange if there is anything to exchange, and none is under way.
    async fn exchange(&mut self, end: Option<AuditHead>, records: bool) {
        match &self.under_way {
            Some(task) if !task.is_finished() => return,
            Some(_) | None => {}
        }
        if let Some(task) = self.under_way.take() {
            self.take(task.await.ok());
        }
        let records = records && (end.is_none() || end != self.fetched);
        let own = self.world.audit.head();
        let is_news = self.shown.as_ref() != Some(&own);
        let witness = (is_news && Instant::now() >= self.next_witness).then_some(own);
        if !records && witness.is_none() {
            return;
        }
        let exchange = Exchange {
            end,
            records,
            witness,
            partial: false,
        };
        let (world, host) = (Arc::clone(&self.world), self.host.clone());
        self.under_way = Some(tokio::spawn(run(world, host, exchange)));
    }

    fn take(&mut self, done: Option<Result<Exchange, Failure>>) {
        let exchange = match done {
            Some(Ok(exchange)) => exchange,
            Some(Err(error)) => {
                tracing::debug!(host = %self.host, error = %error.what, because = %error.because, "cannot fetch the host's audit log");
                return;
            }
            None => return,
        };
        if exchange.records && !exchange.partial {
            self.fetched = exchange.end;
        }
        if exchange.witness.is_some() {
            let hosts = u32::try_from(self.world.hosts.count()).unwrap_or(u32::MAX);
            self.next_witness = Instant::now() + EVERY.max(APART.saturating_mul(hosts));
            self.shown = exchange.witness;
        }
    }
}

async fn run(
    world: Arc<World>,
    host: HostName,
    mut exchange: Exchange,
) -> Result<Exchange, Failure> {
    let agent = world.agents.of(&host)?;
    if let Some(own) = &exchange.witness {
        // an agent that cannot say what it has witnessed still tells its records; whoever verifies hears of it
        if let Ok(Some(seen)) = agent.witness(own.as_ref()).await {
            let taken = world.audit.take_witness(&host, &seen).await;
            taken.map_err(|error| crate::store_failure(&error))?;
        }
    }
    if exchange.records {
        let after = world.audit.position(&host).await;
        let records = agent.audit_after(after).await?;
        let taken = world.audit.take(&host, records).await;
        taken.map_err(|error| crate::store_failure(&error))?;
        let position = world.audit.position(&host).await;
        let end = exchange.end.as_ref().map_or(0, |end| end.seq);
        // Of a log that is broken no more is taken, and of one that was cut off there is none.
        exchange.partial = after < position && position < end;
    }
    Ok(exchange)
}

/// What is fetched from a host at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum News {
    /// Its records.
    Records,
    /// The same, and what it remembers of the controller's, whose end it is shown.
    RecordsAndWitness,
}

/// Fetches what is new on a host now.
pub(crate) async fn fetch(world: &Arc<World>, host: &HostName, news: News) {
    let exchange = Exchange {
        records: true,
        witness: (news == News::RecordsAndWitness).then(|| world.audit.head()),
        ..Exchange::default()
    };
    if let Err(error) = run(Arc::clone(world), host.clone(), exchange).await {
        tracing::debug!(%host, error = %error.what, because = %error.because, "cannot fetch the host's audit log");
    }
}

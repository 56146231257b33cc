//! The running controller: its state, the job engine, and the background tasks.

use crate::agents::Agents;
use crate::alerts::Alerts;
use crate::api_tokens::ApiTokens;
use crate::audit::{Act, Audit};
use crate::bulks::Bulks;
use crate::certificates;
use crate::ek::KnownEks;
use crate::escrow::retention::Retention;
use crate::escrow::{Escrow, keeper};
use crate::expulsion::Expulsions;
use crate::first_call::FirstCall;
use crate::fleet::Fleet;
use crate::holders::Holder;
use crate::hosts::Hosts;
use crate::images::Images;
use crate::inventory::Inventory;
use crate::load::{self, Loads};
use crate::people::People;
use crate::presence::Presence;
use crate::templates::Templates;
use crate::watch::Watchers;
use crate::web_server::Console;
use crate::work::{self, GuardianRewrap};
use crate::world::World;
use anyhow::Context;
use fleetward_jobs::{DebtBook, Engine, EngineOptions, Job, JobError, JobFilter, JobKind};
use fleetward_model::admission;
use fleetward_model::audit::AuditAction;
use fleetward_model::guardian::TrustMode;
use fleetward_model::{Failure, HostName, JobId, VmId};
use fleetward_store::{Guard, Store, StoreExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

/// How often it is looked whether the controller's own certificate is due; the new one is only for new connections. Clocks
/// jump and machines sleep, so the next time is not computed ahead.
const RENEWAL_LOOK: Duration = Duration::from_secs(60);

/// How long a request waits for keys that are being re-wrapped.
const REWRAP_PATIENCE: Duration = Duration::from_secs(20);

/// Many events come together and are written as one. What is not written yet is not shown after a crash, until its host
/// is heard again.
pub(crate) const GATHER: Duration = Duration::from_millis(100);
const WRITE_EVERY: Duration = Duration::from_secs(15);

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct App {
    pub(crate) world: Arc<World>,
    pub(crate) engine: Engine,
    pub(crate) watchers: Arc<Watchers>,
    pub(crate) first_call: FirstCall,
    /// Held from choosing a host to the submission, so that two creations do not count on the same memory.
    pub(crate) placing: Arc<tokio::sync::Mutex<()>>,
    /// Bulk requests under way.
    pub(crate) bulks: Arc<Bulks>,
    /// Where joining hosts find the controller.
    pub(crate) advertise: Arc<str>,
    /// Where people and programs without a certificate of the fleet come in.
    pub(crate) console: Option<Console>,
    /// Fires when the controller ends; what would go on for ever ends with it.
    pub(crate) stop: CancellationToken,
}

/// What a controller begins with.
pub(crate) struct Begin<'a> {
    pub(crate) data: &'a Path,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) trust: TrustMode,
    /// How many versions of each VM's TPM are kept.
    pub(crate) retention: Retention,
    /// `host:port` that join tokens tell to hosts.
    pub(crate) advertise: String,
    pub(crate) now: OffsetDateTime,
    /// Where the connections to hosts live.
    pub(crate) host_runtime: Handle,
    pub(crate) console: Option<Console>,
    /// Between two looks for what needs somebody now, at least.
    pub(crate) alert_every: Duration,
}

impl App {
    /// Brings everything up: first what memory holds, then the hosts, then the jobs that were under way.
    pub(crate) async fn start(
        store: Arc<dyn Store>,
        begin: Begin<'_>,
        stop: CancellationToken,
    ) -> anyhow::Result<Self> {
        let Begin {
            data,
            fleet,
            trust,
            retention,
            advertise,
            now,
            host_runtime,
            console,
            alert_every,
        } = begin;
        start_above_all_generations(&store, now).await?;
        let hosts = Arc::new(Hosts::open(store.clone(), data).await?);
        let (presence, debts) = (Arc::new(Presence::default()), Arc::new(DebtBook::default()));
        debts.read(&store).await?;
        let world = Arc::new(World {
            inventory: Inventory::open(store.clone(), presence.clone(), debts.clone()).await?,
            agents: Agents::new(fleet.clone(), hosts.clone(), presence, debts.clone()),
            debts: debts.clone(),
            images: Images::open(data)
                .await
                .context("cannot read the image library")?,
            templates: Templates::open(data)
                .await
                .context("cannot read the templates")?,
            audit: Audit::open(store.clone()).await?,
            escrow: Escrow::open(store.clone(), data, retention)
                .await
                .context("cannot read the copies of TPMs")?,
            known_eks: KnownEks::open(store.clone())
                .await
                .context("cannot read the EK certificates")?,
            holders: Default::default(),
            loads: Loads::open(data),
            expulsions: Expulsions::open(data)?,
            api_tokens: ApiTokens::open(store.clone()).await?,
            people: People::open(store.clone(), now).await?,
            alerts: Alerts::open(store.clone(), data, fleet.id())
                .await
                .context("cannot read the alerts")?,
            trust,
            hosts,
            fleet,
            store: store.clone(),
        });
        for host in world.hosts.all() {
            // What it knew when it was last heard.
            if let Some(facts) = world.inventory.seen(&host.name).facts {
                world.agents.learn(&host.name, facts.formats);
            }
        }
        if world.fleet.owners.is_new() {
            let expelled = world.expulsions.guardians().into_keys();
            let kept = world.escrow.owners().await;
            world.fleet.owners.keep(expelled.chain(kept)).await?;
        }
        if world.fleet.eks.is_new() {
            let seen = world.inventory.vms().into_iter();
            let seen = seen.filter_map(|vm| vm.tpm.ek_certificate.clone());
            let kept = world.escrow.ek_certificates().await;
            world
                .fleet
                .eks
                .take_over(seen.chain(kept).collect())
                .await?;
        }
        let watchers = Arc::new(Watchers::new(host_runtime, stop.clone()));
        let first_call = FirstCall::begin(&world, &watchers);
        let options = EngineOptions {
            debts,
            ..EngineOptions::default()
        };
        // Jobs that go on should not decide on old news.
        let registry = work::registry(&world);
        let engine = Engine::start_after(first_call.over(), store, registry, options);
        let app = Self {
            world,
            engine,
            watchers,
            first_call,
            placing: Arc::default(),
            bulks: Arc::default(),
            advertise: advertise.into(),
            console,
            stop: stop.clone(),
        };
        for job in app
            .engine
            .list(&JobFilter {
                active: Some(true),
                ..JobFilter::default()
            })
            .await?
        {
            app.follow(&job);
        }
        tokio::spawn(keep_written(app.world.clone(), stop.clone()));
        let (world, ends) = (app.world.clone(), stop.clone());
        tokio::spawn(async move {
            tokio::join!(
                world.api_tokens.keep_written(&ends),
                world.people.sessions.keep_written(&ends)
            )
        });
        tokio::spawn(load::keep(app.world.clone(), stop.clone()));
        tokio::spawn(crate::audit::catch_up(app.world.clone(), stop.clone()));
        tokio::spawn(keep_certified(app.world.fleet.clone(), stop.clone()));
        tokio::spawn(app.clone().look_after_fleet(alert_every, stop));
        Ok(app)
    }

    /// Begins what is done for hosts and VMs without being asked, when it is known how they are.
    async fn look_after_fleet(self, alert_every: Duration, stop: CancellationToken) {
        tokio::select! {
            () = stop.cancelled() => return,
            () = self.first_call.over() => {}
        }
        let world = self.world.clone();
        tokio::spawn(crate::debts::keep_paid(self.clone(), stop.clone()));
        tokio::spawn(crate::keeper::keep(self.clone(), stop.clone()));
        tokio::spawn(crate::alerts::keep(self.clone(), alert_every, stop.clone()));
        tokio::spawn(crate::autostart::answer_agents(self, stop.clone()));
        tokio::spawn(crate::ek::catch_up(world.clone(), stop.clone()));
        tokio::spawn(keeper::keep_current(world, stop));
    }

    /// Returns when these hosts were called since the start.
    pub(crate) async fn heard(&self, hosts: &[HostName]) {
        self.first_call
            .over_for(&self.world, &self.watchers, hosts)
            .await;
    }

    /// Submits a job for `by` and remembers that it holds what it works on.
    pub(crate) async fn submit<K: JobKind>(
        &self,
        input: &K::Input,
        by: &str,
    ) -> Result<JobId, JobError> {
        let id = self.submit_when_free::<K>(input, by).await?;
        let job = self.engine.get(id).await?;
        self.follow(&job);
        let about = work::about_job(&job);
        let act = Act {
            vm: about.vm,
            job: Some(id),
            ..Act::new(
                by,
                AuditAction::SubmitJob,
                format!("{} {}", job.kind, about.target),
            )
        };
        if let Err(error) = self.world.audit.own(act).await {
            tracing::error!(%id, %error, "cannot record the job in the audit log");
        }
        Ok(id)
    }

    /// Keys are re-wrapped in the background, a few VMs at a time and for a moment: nobody is refused for that.
    async fn submit_when_free<K: JobKind>(
        &self,
        input: &K::Input,
        by: &str,
    ) -> Result<JobId, JobError> {
        let deadline = tokio::time::Instant::now() + REWRAP_PATIENCE;
        loop {
            let holder = match self.engine.submit::<K>(input, by).await {
                Err(JobError::Busy { by, resource }) => (by, resource),
                done => return done,
            };
            let held = self.engine.get(holder.0).await;
            let passing = held.is_ok_and(|job| job.kind == GuardianRewrap::NAME);
            if !passing
                || tokio::time::timeout_at(deadline, self.engine.wait(holder.0))
                    .await
                    .is_err()
            {
                let (by, resource) = holder;
                return Err(JobError::Busy { resource, by });
            }
        }
    }

    fn follow(&self, job: &Job) {
        let holder = Holder {
            kind: job.kind.clone(),
            about: work::about_job(job),
        };
        self.world.holders.add(job.id, holder);
        let (app, id) = (self.clone(), job.id);
        tokio::spawn(async move {
            tokio::select! {
                () = app.stop.cancelled() => {}
                () = app.see_ended(id) => app.world.release(id),
            }
        });
    }

    /// The job that works on a VM. The store is asked whether it still does: whoever has seen a job end must find its VM
    /// free, and the memory of holders follows the store a moment later.
    pub(crate) async fn holder_of(&self, vm: VmId) -> Option<admission::Holder> {
        while let Some((holder, _)) = self.world.holders.of(vm) {
            match self.engine.get(holder.job).await {
                Ok(job) if job.state.has_ended() => self.world.release(holder.job),
                Ok(_) | Err(_) => return Some(holder),
            }
        }
        None
    }

    async fn see_ended(&self, id: JobId) {
        loop {
            match self.engine.wait(id).await {
                Ok(job) => return self.world.alerts.jobs.note(&job),
                Err(JobError::NotFound { .. } | JobError::ShutDown) => return,
                Err(error) => {
                    tracing::warn!(%id, %error, "cannot follow the job");
                    tokio::time::sleep(crate::STORE_PAUSE).await;
                }
            }
        }
    }

    /// Records an act of the controller's own.
    pub(crate) async fn record(&self, act: Act) -> Result<(), Failure> {
        self.world.audit.own(act).await
    }

    /// Ends the jobs' steps (they go on at the next start) and writes what is not written yet.
    pub(crate) async fn stop(&self) {
        self.engine.shutdown().await;
        if let Err(error) = self.world.inventory.flush(OffsetDateTime::now_utc()).await {
            tracing::warn!(%error, "cannot write the inventory");
        }
        if let Err(error) = load::record(&self.world).await {
            tracing::warn!(%error, "cannot write the history of loads");
        }
    }
}

/// Hosts remember the generations they have seen. A new store starts at the clock's milliseconds, which no earlier store of
/// the same fleet can have counted up to: it would have needed a thousand attempts a second.
async fn start_above_all_generations(
    store: &Arc<dyn Store>,
    now: OffsetDateTime,
) -> anyhow::Result<()> {
    const KEY: &str = "controller/begun";
    if store.get(KEY).await?.is_some() {
        return Ok(());
    }
    let above = u64::try_from(now.unix_timestamp_nanos() / 1_000_000).unwrap_or(0);
    Engine::raise_generation(store, above).await?;
    let _ = store.put_json(KEY, &above, Guard::Any).await?;
    Ok(())
}

async fn keep_written(world: Arc<World>, stop: CancellationToken) {
    let mut changes = world.inventory.changes();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            // When each host was last heard is no change, and is written now and then.
            () = tokio::time::sleep(WRITE_EVERY) => {}
        }
        let now = OffsetDateTime::now_utc();
        if let Err(error) = world.inventory.flush_due(now).await {
            tracing::warn!(%error, "cannot write the inventory");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(GATHER) => {}
        }
    }
}

async fn keep_certified(fleet: Arc<Fleet>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RENEWAL_LOOK) => {}
        }
        certificates::keep_own(&fleet, OffsetDateTime::now_utc());
    }
}

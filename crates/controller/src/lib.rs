//! The controller: the one service administrators talk to.
//!
//! ```text
//!   http (handlers, guarded by roles in api::verbs)
//!     │ read: memory                     │ change: a job
//!     ▼                                  ▼
//!   inventory, hosts, images, audit    work (job kinds) ── agents ──► hosts
//!     ▲                                  │
//!     └── watch (one event stream a host)┘        all of it over: fleet (keys), store
//! ```
//!
//! The controller cannot open a key protector: it passes protectors on as text and endorses guardians.

#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests make and damage files as they like"
    )
)]

mod admins;
mod admission;
mod agents;
mod alerts;
mod api_tokens;
mod app;
mod audit;
mod audit_follow;
mod autostart;
mod bulks;
mod certificates;
mod check;
mod clocks;
mod conversion;
mod creation;
mod debts;
mod dials;
mod ek;
mod escrow;
mod expulsion;
mod first_call;
mod fleet;
mod holders;
mod hosts;
mod http;
mod image_format;
mod images;
mod inventory;
mod keeper;
mod layout;
mod load;
mod networks;
mod owners;
mod people;
mod presence;
mod refused_reports;
mod remarks;
mod seed;
mod survey;
mod templates;
mod tokens;
mod unseen;
mod watch;
mod web_server;
mod work;
mod world;

pub use escrow::retention::Retention;
pub use fleetward_model::Failure;
pub use http::openapi_json;
pub use web_server::{CertificateFiles, ConsoleOptions};

use anyhow::Context;
use app::App;
use fleetward_link::serve::allow_all_connections;
use fleetward_link::{ClientCertificates, ServerTls, SocketSpec, TlsServer, UnixServer};
use fleetward_model::ErrorCode;
use fleetward_model::error::chain;
use fleetward_model::guardian::TrustMode;
use fleetward_store::{Guard, Soundness, SqliteOptions, SqliteStore, Store, StoreError, StoreExt};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use time::OffsetDateTime;
use tokio::runtime::{self, Handle};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use web_server::WebServer;

/// How long work that was under way at the end may use the store. Jobs are not among it: they end before.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// How a controller is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Keys, database, images; one process at a time.
    pub data: PathBuf,
    /// Where agents and remote administrators connect.
    pub listen: SocketAddr,
    /// `host:port` that reaches `listen` from hosts; none: `listen` itself.
    pub advertise: Option<String>,
    /// Socket of local administrators; none: `DATA/controller.sock`.
    pub socket: Option<PathBuf>,
    /// Who grants keys inside a group, from now on; none: as before, and `auto` at first.
    pub trust: Option<TrustMode>,
    /// How many versions of each VM's TPM are kept.
    pub retention: Retention,
    /// Where people and programs without a certificate of the fleet come in; none: nowhere.
    pub console: Option<ConsoleOptions>,
    /// Between two looks for what needs somebody now, at least.
    pub alert_every: Duration,
}

/// Runs a controller until SIGTERM or SIGINT.
pub async fn run(options: Options) -> anyhow::Result<()> {
    allow_all_connections().context("cannot have more files open")?;
    let stop = CancellationToken::new();
    let (mut term, mut int) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
    );
    let asked = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::info!("stopping");
        asked.cancel();
    });
    // Requests do not queue behind the handshakes and first reports of thousands of hosts.
    let hosts = runtime::Builder::new_multi_thread()
        .thread_name("hosts")
        .enable_all()
        .build()
        .context("cannot start the threads for hosts")?;
    let ended = run_on(hosts.handle(), options, stop, |_| {}).await;
    hosts.shutdown_background();
    ended
}

/// Runs a controller until `stop`, with everything in the runtime of the caller; `ready` hears the address it listens on.
pub async fn run_until(
    options: Options,
    stop: CancellationToken,
    ready: impl FnOnce(SocketAddr),
) -> anyhow::Result<()> {
    run_on(&Handle::current(), options, stop, ready).await
}

async fn run_on(
    host_runtime: &Handle,
    options: Options,
    stop: CancellationToken,
    ready: impl FnOnce(SocketAddr),
) -> anyhow::Result<()> {
    make_private(&options.data)?;
    let now = OffsetDateTime::now_utc();
    let store = open_store(options.data.join("store.db")).await?;
    let (soundness, let_go) = (store.soundness(), store.let_go());
    let store: Arc<dyn Store> = Arc::new(store);
    let fleet = Arc::new(fleet::Fleet::open(&options.data, now)?);
    let tls = ServerTls::new(
        fleet.credential().clone(),
        fleet.trust().clone(),
        ClientCertificates::Optional,
    )
    .with_refusals(fleet.certificates.refusals().clone());
    let server = TlsServer::bind(options.listen, tls)
        .await
        .with_context(|| format!("cannot listen on {}", options.listen))?;
    let address = server.local_addr()?;
    let socket = options
        .socket
        .unwrap_or_else(|| options.data.join("controller.sock"));
    let local = UnixServer::bind(SocketSpec::new(&socket).with_mode(0o600))
        .with_context(|| format!("cannot listen on {}", socket.display()))?;

    let advertise = options.advertise.unwrap_or_else(|| address.to_string());
    let web = match options.console {
        None => None,
        Some(console) => Some(WebServer::bind(console, &options.data, &advertise, now).await?),
    };
    let trust = keep_trust(&store, options.trust).await?;
    let begin = app::Begin {
        data: &options.data,
        fleet,
        trust,
        retention: options.retention,
        advertise,
        now,
        host_runtime: host_runtime.clone(),
        console: web.as_ref().map(WebServer::console),
        alert_every: options.alert_every,
    };
    let app = App::start(store, begin, stop.clone()).await?;
    let check = tokio::spawn(end_with_the_store(soundness, stop.clone()));
    tracing::info!(fleet = app.world.fleet.id(), %address, socket = %socket.display(), "the controller is ready");
    ready(address);

    let router = http::router(app.clone());
    let console = async {
        match web {
            None => Ok(()),
            Some(web) => {
                web.serve(http::console_router(app.clone()), stop.clone())
                    .await
            }
        }
    };
    let (tls, unix, console) = tokio::join!(
        server.serve(router.clone(), stop.clone()),
        local.serve(router, stop.clone()),
        console
    );
    app.stop().await;
    drop(app);
    let check = check.await;
    if tokio::time::timeout(LAST_WRITES, let_go.done())
        .await
        .is_err()
    {
        tracing::warn!("something is still at work with the store, and is not waited for");
    }
    check.context("the check of the store panicked")??;
    tls.context("the server for the fleet failed")?;
    unix.context("the server for local administrators failed")?;
    console.context("the server for people and programs failed")
}

/// Ends the controller when the store's file turns out to be damaged: it would end half of what it began.
async fn end_with_the_store(
    mut soundness: Soundness,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let known = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        known = soundness.known() => known,
    };
    known
        .inspect_err(|_| stop.cancel())
        .context("the store cannot be used")
}

/// What is stored only as it is now.
const WITHOUT_HISTORY: &[&str] = {
    let [vms, conditions, facts] = inventory::WITHOUT_HISTORY;
    let [by_vm, by_time, by_name, indexed] = audit::WITHOUT_HISTORY;
    &[
        vms,
        conditions,
        facts,
        by_vm,
        by_time,
        by_name,
        indexed,
        alerts::PREFIX,
    ]
};

/// Opens the store, and brings one of an earlier version up to date.
async fn open_store(path: PathBuf) -> anyhow::Result<SqliteStore> {
    let options = SqliteOptions {
        convert: Some(layout::convert),
        without_history: WITHOUT_HISTORY,
        ..SqliteOptions::default()
    };
    let opened = SqliteStore::open_with(path, options).await;
    opened.map_err(|error| match &error {
        StoreError::TooNew { .. } => {
            let what = "the controller cannot start";
            Failure::new(ErrorCode::StoreNewer, what)
                .because(chain(&error))
                .into()
        }
        _ => anyhow::Error::new(error).context("cannot open the store"),
    })
}

/// The way of granting that is in force: what was asked for now, or else at an earlier start.
async fn keep_trust(store: &Arc<dyn Store>, asked: Option<TrustMode>) -> anyhow::Result<TrustMode> {
    const KEY: &str = "controller/trust";
    let Some(trust) = asked else {
        let kept = store.get_json::<TrustMode>(KEY).await?;
        return Ok(kept.map(|found| found.value).unwrap_or_default());
    };
    let _ = store.put_json(KEY, &trust, Guard::Any).await?;
    Ok(trust)
}

/// Makes the data directory; nobody else may look into it.
fn make_private(data: &Path) -> anyhow::Result<()> {
    fleetward_durable::make_directory(data, 0o700)
        .with_context(|| format!("cannot make the data directory {}", data.display()))
}

/// How long a task waits before it tries the store again.
const STORE_PAUSE: Duration = Duration::from_secs(2);

/// What an escrow file of these bytes holds, before it is compared with what was written. For the fuzz target.
///
/// # Errors
/// What is wrong with it, in words.
#[doc(hidden)]
pub fn read_escrow_file(bytes: &[u8]) -> Result<fleetward_api::tpm::TpmBundle, String> {
    escrow::parse(bytes).map(|kept| kept.bundle)
}

/// An error of the store as people get it.
fn store_failure(error: &StoreError) -> Failure {
    Failure::new(ErrorCode::StoreFailed, "the controller's store failed").because(chain(error))
}

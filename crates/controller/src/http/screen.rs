//! A VM's screen and keyboard: a WebSocket to the viewer, RFB bytes to the agent; pictures; keystrokes. Each use is an audit
//! record: who, when, which VM, and of a screen also its end.
//!
//! ```text
//!   viewer ══ WebSocket ══ here ══ upgrade ══ agent ══ hypervisor
//!                            │
//!                            └─ the guest's side ends: has the VM stopped (4001), or is it elsewhere (4002)?
//! ```
//! Knows nothing of RFB. Holds one piece of each direction in memory; a viewer that does not read slows down only itself.

use super::Answer;
use super::body::Asked;
use crate::admission::{admit, shown_state};
use crate::agents::Agent;
use crate::app::App;
use crate::audit::Act;
use axum::Json;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use fleetward_api::agent::{MAX_STROKES, PNG};
use fleetward_api::controller::{KeysTyped, screen_end};
use fleetward_api::verbs;
use fleetward_link::Peer;
use fleetward_link::client::UpgradedIo;
use fleetward_model::admission::Request;
use fleetward_model::audit::AuditAction;
use fleetward_model::keys::chords;
use fleetward_model::vm::{VmObserved, VmState};
use fleetward_model::{ErrorCode, Failure, HostName};
use futures_util::{SinkExt, StreamExt};
use http::header;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};

serves! {
    VmScreen => vm_screen,
    VmScreenshot => vm_screenshot,
    VmKeys => vm_keys,
}

/// Bytes carried at a time.
const PIECE: usize = 16 * 1024;
/// Longest frame of a viewer: text that is pasted, at most.
const MAX_FRAME: usize = 1 << 20;
/// How often a viewer is asked whether it is still there, and how long it may say nothing.
const SIGN_OF_LIFE: Duration = Duration::from_secs(20);
const SILENCE: Duration = Duration::from_secs(90);
/// A closing frame has no room for more, bytes.
const LONGEST_REASON: usize = 120;
/// How long the hosts have for telling what became of a VM whose screen ended.
const NEWS: Duration = Duration::from_secs(3);

async fn vm_screen(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Answer<Response> {
    let upgrade = upgrade.map_err(|error| {
        let what = "a screen is reached by WebSocket";
        Failure::new(ErrorCode::InvalidRequest, what).because(error)
    })?;
    let (vm, agent) = reached(&app, &vm).await?;
    // asked first: what is wrong then is still an answer
    let opened = agent.screen(vm.id).await;
    let guest = opened.map_err(|failure| while_it_moves(&app, &vm, failure))?;
    let opening = Opening {
        app,
        vm,
        by: peer.to_string(),
    };
    opening.record(AuditAction::OpenScreen, "").await?;
    let opening = Arc::new(opening);
    let not_upgraded = opening.clone();
    Ok(upgrade
        .protocols(["binary"])
        .max_message_size(MAX_FRAME)
        .on_failed_upgrade(move |error| {
            tokio::spawn(async move {
                let reason = format!(": {error}");
                not_upgraded.close(&reason).await;
            });
        })
        .on_upgrade(async move |socket| {
            let reason = carry(&opening, socket, guest, &agent).await;
            opening.close(&reason).await;
        }))
}

async fn vm_screenshot(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
) -> Answer<Response> {
    let (vm, agent) = reached(&app, &vm).await?;
    let taken = agent.screenshot(vm.id).await;
    let picture = taken.map_err(|failure| while_it_moves(&app, &vm, failure))?;
    let by = peer.to_string();
    record(&app, &vm, &by, AuditAction::TakeScreenshot, "").await?;
    Ok(([(header::CONTENT_TYPE, PNG)], picture).into_response())
}

async fn vm_keys(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    Asked(request): Asked<verbs::VmKeys>,
) -> Answer<Json<KeysTyped>> {
    let strokes = chords(&request.keys).map_err(|error| {
        Failure::new(
            ErrorCode::InvalidArgument,
            "this cannot be typed; nothing was",
        )
        .because(error)
        .fix("give text of the characters of a US keyboard, or names of keys such as ctrl-alt-del")
    })?;
    let (vm, agent) = reached(&app, &vm).await?;
    // before anything is typed, so that nothing is typed without a record; the text itself may be a password
    let (by, about) = (peer.to_string(), format!(": {} keystrokes", strokes.len()));
    record(&app, &vm, &by, AuditAction::TypeKeys, &about).await?;
    for (piece, strokes) in strokes.chunks(MAX_STROKES).enumerate() {
        let typed = agent.keys(vm.id, strokes).await;
        typed.map_err(|mut failure| {
            failure = while_it_moves(&app, &vm, failure);
            if piece > 0 {
                let done = piece * MAX_STROKES;
                failure.what = format!("{}, after {done} keystrokes before", failure.what);
            }
            failure
        })?;
    }
    Ok(Json(KeysTyped {
        keystrokes: strokes.len(),
    }))
}

/// The VM, if its screen can be asked for now, and the agent of its host.
async fn reached(app: &App, vm: &str) -> Result<(Arc<VmObserved>, Agent), Failure> {
    let vm = app.world.inventory.find(vm)?;
    admit(app, &vm, Request::Screen).await?;
    let agent = app.world.agents.of(&vm.host)?;
    Ok((vm, agent))
}

/// Between the two hosts a VM runs on neither for a moment: it is busy, and has not stopped.
fn while_it_moves(app: &App, vm: &VmObserved, failure: Failure) -> Failure {
    let now = app.world.inventory.vm(vm.id);
    let elsewhere = now.as_ref().is_some_and(|now| now.host != vm.host);
    let moves = now.is_some_and(|now| shown_state(&app.world, &now) == VmState::Migrating);
    match failure.code {
        ErrorCode::VmNotRunning | ErrorCode::VmNotFound | ErrorCode::VmStateWrong
            if moves || elsewhere =>
        {
            Failure::new(
                ErrorCode::VmBusy,
                format!("VM {} is on its way to another host", vm.name),
            )
            .because(failure.because)
            .fix("try again in a moment")
        }
        _ => failure,
    }
}

async fn record(
    app: &App,
    vm: &VmObserved,
    by: &str,
    action: AuditAction,
    about: &str,
) -> Result<(), Failure> {
    let reason = format!("VM {} on host {}{about}", vm.name, vm.host);
    app.record(Act {
        vm: Some(vm.id),
        ..Act::new(by, action, reason)
    })
    .await
}

/// A screen that somebody opened.
struct Opening {
    app: App,
    vm: Arc<VmObserved>,
    by: String,
}

impl Opening {
    async fn record(&self, action: AuditAction, about: &str) -> Result<(), Failure> {
        record(&self.app, &self.vm, &self.by, action, about).await
    }

    async fn close(&self, reason: &str) {
        if let Err(error) = self.record(AuditAction::CloseScreen, reason).await {
            tracing::error!(vm = %self.vm.id, %error, "cannot record the end of a screen");
        }
    }
}

/// Which side ended.
enum Side {
    Viewer,
    Guest,
}

/// Carries bytes until either side ends; why, for the record.
async fn carry(opening: &Opening, socket: WebSocket, guest: UpgradedIo, agent: &Agent) -> String {
    let (mut to_viewer, mut from_viewer) = socket.split();
    let (mut from_guest, mut to_guest) = tokio::io::split(guest);
    let heard = std::sync::Mutex::new(Instant::now());
    let output = async {
        let mut piece = vec![0; PIECE];
        let mut pings = interval(SIGN_OF_LIFE);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let frame = tokio::select! {
                read = from_guest.read(&mut piece) => match read {
                    Ok(0) | Err(_) => return Side::Guest,
                    Ok(length) => Message::Binary(bytes::Bytes::copy_from_slice(&piece[..length])),
                },
                _ = pings.tick() => Message::Ping(bytes::Bytes::new()),
            };
            if to_viewer.send(frame).await.is_err() {
                return Side::Viewer;
            }
        }
    };
    let input = async {
        while let Some(Ok(message)) = from_viewer.next().await {
            *heard.lock().expect("nobody panics with it") = Instant::now();
            let bytes = match message {
                Message::Binary(bytes) => bytes,
                Message::Ping(_) | Message::Pong(_) => continue,
                // RFB is no text.
                Message::Text(_) | Message::Close(_) => return Side::Viewer,
            };
            if to_guest.write_all(&bytes).await.is_err() || to_guest.flush().await.is_err() {
                return Side::Guest;
            }
        }
        Side::Viewer
    };
    let gone = async {
        loop {
            let last = *heard.lock().expect("nobody panics with it");
            if last.elapsed() > SILENCE {
                return;
            }
            tokio::time::sleep_until(last + SILENCE + SIGN_OF_LIFE / 20).await;
        }
    };
    let ended = tokio::select! {
        side = output => side,
        side = input => side,
        () = gone => Side::Viewer,
        // a machine that lost power does not close its connections
        () = agent.silence() => Side::Guest,
        () = opening.app.stop.cancelled() => Side::Guest,
    };
    let (code, reason) = match ended {
        Side::Viewer => return ": closed by the viewer".into(),
        Side::Guest => became_of(&opening.app, &opening.vm).await,
    };
    let last = Message::Close(Some(CloseFrame {
        code,
        // names are ASCII
        reason: reason
            .chars()
            .take(LONGEST_REASON)
            .collect::<String>()
            .into(),
    }));
    // The viewer may be gone too.
    let _ = to_viewer.send(last).await;
    format!(": {reason}")
}

/// What became of a VM whose screen has ended, as soon as its host tells: a code of [`screen_end`], and a sentence.
async fn became_of(app: &App, vm: &VmObserved) -> (u16, String) {
    let world = &app.world;
    let mut changes = world.inventory.changes();
    let deadline = Instant::now() + NEWS;
    let name = &vm.name;
    let elsewhere = |host: &HostName| format!("VM {name} is on host {host} now");
    loop {
        changes.mark_unchanged();
        let now = world.inventory.vm(vm.id);
        let state = now.as_ref().map(|now| shown_state(world, now));
        let interrupted = |reason| (screen_end::INTERRUPTED, reason);
        let stopped = |reason| (screen_end::STOPPED, reason);
        match (now, state) {
            (None, _) | (_, None) => return stopped(format!("VM {name} is gone")),
            (_, Some(VmState::Stopped | VmState::Saved)) => {
                return stopped(format!("VM {name} has stopped"));
            }
            (_, Some(VmState::Failed)) => return stopped(format!("VM {name} has failed")),
            (_, Some(VmState::Migrating)) => return interrupted(format!("VM {name} moves")),
            (_, Some(VmState::Unknown)) => {
                return interrupted(format!("host {} does not answer", vm.host));
            }
            (Some(now), Some(VmState::Running | VmState::Paused)) if now.host != vm.host => {
                return interrupted(elsewhere(&now.host));
            }
            (Some(_), Some(VmState::Running | VmState::Paused)) => {}
        }
        if app.stop.is_cancelled() {
            return interrupted("the controller ends".into());
        }
        match timeout_at(deadline, changes.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => {
                return interrupted(format!("host {} was interrupted", vm.host));
            }
        }
    }
}

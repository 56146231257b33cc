//! A VM's serial console: a WebSocket to the caller, raw bytes to the agent.

use super::Answer;
use crate::admission::admit;
use crate::app::App;
use crate::audit::Act;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::response::Response;
use fleetward_link::Peer;
use fleetward_link::client::UpgradedIo;
use fleetward_model::admission::Request;
use fleetward_model::audit::AuditAction;
use fleetward_model::vm::VmObserved;
use fleetward_model::{ErrorCode, Failure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

serves! {
    VmConsole => vm_console,
}

const PIECE: usize = 16 * 1024;

async fn vm_console(
    State(app): State<App>,
    peer: Peer,
    Path(vm): Path<String>,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Answer<Response> {
    let upgrade = upgrade.map_err(|error| {
        Failure::new(
            ErrorCode::InvalidRequest,
            "a console is reached by WebSocket",
        )
        .because(error)
    })?;
    let vm = app.world.inventory.find(&vm)?;
    admit(&app, &vm, Request::Console).await?;
    // asked first: what is wrong then is still an answer
    let agent = app.world.agents.of(&vm.host)?.console(vm.id).await?;
    // Written before anything flows: nobody looks into a VM without a trace.
    let by = peer.to_string();
    app.record(act(&vm, &by, AuditAction::OpenConsole)).await?;
    Ok(upgrade.on_upgrade(move |socket| async move {
        bridge(socket, agent).await;
        if let Err(error) = app.record(act(&vm, &by, AuditAction::CloseConsole)).await {
            tracing::error!(vm = %vm.id, %error, "cannot record the end of a console");
        }
    }))
}

fn act(vm: &VmObserved, by: &str, action: AuditAction) -> Act {
    let reason = format!("VM {} on host {}", vm.name, vm.host);
    Act {
        vm: Some(vm.id),
        ..Act::new(by, action, reason)
    }
}

/// Until either side ends.
async fn bridge(mut socket: WebSocket, mut agent: UpgradedIo) {
    let mut piece = vec![0; PIECE];
    loop {
        tokio::select! {
            read = agent.read(&mut piece) => match read {
                Ok(0) | Err(_) => break,
                Ok(n) => {
                    let bytes = bytes::Bytes::copy_from_slice(&piece[..n]);
                    if socket.send(Message::Binary(bytes)).await.is_err() {
                        return;
                    }
                }
            },
            message = socket.recv() => {
                let sent = match message {
                    Some(Ok(Message::Binary(bytes))) => agent.write_all(&bytes).await,
                    Some(Ok(Message::Text(text))) => agent.write_all(text.as_bytes()).await,
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => Ok(()),
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                };
                if sent.is_err() || agent.flush().await.is_err() {
                    break;
                }
            }
        }
    }
    // the caller may be gone too
    let _ = socket.send(Message::Close(None)).await;
}

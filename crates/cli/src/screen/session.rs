//! One viewer's session, from its connection to its end, across any number of connections to the screen.
//!
//! ```text
//!   introduce ─► carry ──────────────► the viewer ends                  Viewer
//!                  │  ▲ ─────────────► the VM has stopped               Stopped
//!                  ▼  │ again: same wishes, whole picture
//!               reopen ──────────────► not within REOPEN                Failed
//! ```
//! The viewer's own connection stays open throughout. Only whole messages reach it, so another server can go on at any time.
//!
//! A screen on which nothing changes says nothing. Nor does one whose server has lost sight of the viewer, as was seen after
//! a migration: of two viewers one got no picture any more. To tell them apart a quiet screen is asked for its corner now and
//! then; one that does not send it is opened again.

use super::upstream::{Broken, Upstream};
use crate::controller::Controller;
use crate::exit::say;
use crate::messages;
use fleetward_model::{ErrorCode, Failure, VmName};
use fleetward_rfb::{ServerMessages, VERSION, Version, ViewerMessage, ViewerMessages, Wishes};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// A viewer answers the handshake within this.
const HANDSHAKE: Duration = Duration::from_secs(60);
/// A screen that was interrupted is back within this: a host's agent was restarted, or a move has its last moments.
const REOPEN: Duration = Duration::from_secs(120);
/// Between two attempts.
const PACE: Duration = Duration::from_millis(250);
/// A screen that has said nothing for so long is asked for its corner.
const QUIET: Duration = Duration::from_secs(10);
/// Within this it sends the corner.
const ANSWER: Duration = Duration::from_secs(5);
/// For how long a VM that moves may be on neither host.
const BETWEEN_HOSTS: Duration = Duration::from_secs(3);

const PIECE: usize = 64 * 1024;

/// How a session ended.
pub(super) enum Ended {
    /// The viewer has enough.
    Viewer,
    /// The VM does not run any more: a sentence.
    Stopped(String),
    Failed(Failure),
}

/// What ends the present connection to the screen.
enum Cut {
    Ended(Ended),
    /// The screen: it may be opened again.
    Interrupted,
    /// Nobody: but the screen does not answer.
    Silent,
}

/// An open screen, and how much of it has been read.
struct Screen {
    upstream: Upstream,
    shown: ServerMessages,
    /// The viewer has to be told to begin anew with Tight's compressors.
    restart: bool,
}

impl From<Broken> for Cut {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Stopped(reason) => Self::Ended(Ended::Stopped(reason)),
            Broken::Interrupted => Self::Interrupted,
        }
    }
}

/// Serves a viewer that has just connected.
pub(super) async fn run(
    controller: &Controller,
    vm: &VmName,
    viewer: TcpStream,
    ready: Option<Upstream>,
) -> Ended {
    let upstream = match ready {
        Some(ready) => ready,
        None => match Upstream::open(controller, vm).await {
            Ok(upstream) => upstream,
            Err(failure) if failure.code == ErrorCode::VmNotRunning => {
                return Ended::Stopped(failure.what);
            }
            Err(failure) => return Ended::Failed(failure),
        },
    };
    // Without delay: what is typed is a few bytes at a time. A socket that has closed says so below.
    let _ = viewer.set_nodelay(true);
    let mut session = Session {
        wishes: Wishes::of(upstream.init()),
        said: ViewerMessages::default(),
        owed: VecDeque::new(),
        viewer,
        vm,
        expects: false,
    };
    let init = upstream.init().write();
    match timeout(HANDSHAKE, session.introduce(&init)).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) | Err(_) => {
            upstream.close().await;
            return Ended::Viewer;
        }
    }
    session.go_on(controller, upstream).await
}

struct Session<'a> {
    viewer: TcpStream,
    vm: &'a VmName,
    said: ViewerMessages,
    /// Whole messages that the viewer has still to get.
    owed: VecDeque<u8>,
    wishes: Wishes,
    /// Whether it has asked for a picture, and so expects one.
    expects: bool,
}

impl Session<'_> {
    /// The server's part of the handshake: without a password, whatever version the viewer speaks.
    async fn introduce(&mut self, init: &[u8]) -> std::io::Result<()> {
        const NO_SECURITY: u8 = 1;
        self.viewer.write_all(&VERSION).await?;
        let mut version = [0; 12];
        self.viewer.read_exact(&mut version).await?;
        let version = Version::read(version).map_err(std::io::Error::other)?;
        if version == Version::V3_3 {
            self.viewer.write_all(&[0, 0, 0, NO_SECURITY]).await?;
        } else {
            self.viewer.write_all(&[1, NO_SECURITY]).await?;
            if self.viewer.read_u8().await? != NO_SECURITY {
                return Err(std::io::Error::other("another security than offered"));
            }
        }
        if version == Version::V3_8 {
            self.viewer.write_all(&[0; 4]).await?;
        }
        // Whether it wants to be alone does not matter: others may look.
        self.viewer.read_u8().await?;
        self.viewer.write_all(init).await
    }

    async fn go_on(&mut self, controller: &Controller, upstream: Upstream) -> Ended {
        let mut screen = Screen {
            shown: ServerMessages::new(self.wishes.format()),
            upstream,
            restart: false,
        };
        loop {
            let Err(cut) = self.carry(&mut screen).await;
            let upstream = match cut {
                Cut::Ended(ended) => {
                    screen.upstream.close().await;
                    return ended;
                }
                Cut::Interrupted => {
                    say(&messages::screen_interrupted(self.vm));
                    match self.reopen(controller).await {
                        Ok(upstream) => upstream,
                        Err(ended) => return ended,
                    }
                }
                Cut::Silent => match Upstream::open(controller, self.vm).await {
                    Ok(upstream) => upstream,
                    // Where no other opens, everything stands still; this one goes on as soon as another would.
                    Err(_) => continue,
                },
            };
            let former = match self.again(upstream).await {
                Ok(again) => std::mem::replace(&mut screen, again),
                Err(Cut::Ended(ended)) => return ended,
                Err(Cut::Interrupted | Cut::Silent) => continue,
            };
            if matches!(cut, Cut::Silent) {
                former.upstream.close().await;
                say(&messages::screen_silent(self.vm));
            } else {
                say(&messages::screen_goes_on(self.vm));
            }
        }
    }

    /// The same wishes for another server, and what the viewer is to be told.
    async fn again(&mut self, mut upstream: Upstream) -> Result<Screen, Cut> {
        let init = upstream.init().clone();
        let resized = self.wishes.resized(&init).map_err(|error| {
            let what = format!("the screen of VM {}", self.vm);
            Cut::Ended(Ended::Failed(
                Failure::new(ErrorCode::HypervisorFailed, what).because(error),
            ))
        })?;
        upstream.write(self.wishes.again(&init)).await?;
        self.wishes.note_size((init.width, init.height));
        self.owed.extend(resized);
        Ok(Screen {
            upstream,
            shown: ServerMessages::new(self.wishes.format()),
            restart: true,
        })
    }

    async fn reopen(&mut self, controller: &Controller) -> Result<Upstream, Ended> {
        let begun = Instant::now();
        let mut stopped_since = None;
        loop {
            let failure = match Upstream::open(controller, self.vm).await {
                Ok(upstream) => return Ok(upstream),
                Err(failure) => failure,
            };
            match failure.code {
                ErrorCode::VmNotRunning => {
                    let since = *stopped_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > BETWEEN_HOSTS {
                        return Err(Ended::Stopped(failure.what));
                    }
                }
                ErrorCode::VmBusy
                | ErrorCode::HostUnreachable
                | ErrorCode::ControllerUnreachable
                | ErrorCode::HypervisorFailed
                | ErrorCode::VmNotFound
                    if begun.elapsed() < REOPEN =>
                {
                    stopped_since = None;
                }
                _ => return Err(Ended::Failed(failure)),
            }
            sleep(PACE).await;
        }
    }

    /// Carries messages both ways until one side ends, or the screen does not answer.
    async fn carry(&mut self, screen: &mut Screen) -> Result<Infallible, Cut> {
        let gone = |_: std::io::Error| Cut::Ended(Ended::Viewer);
        let mut patience = std::pin::pin!(sleep(QUIET));
        let mut asked = false;
        let mut piece = vec![0; PIECE];
        let (mut from_viewer, mut to_viewer) = self.viewer.split();
        loop {
            // A viewer that does not read for a while is still heard; a screen is read no faster than its viewer.
            tokio::select! {
                read = from_viewer.read(&mut piece) => {
                    let length = read.map_err(gone)?;
                    if length == 0 {
                        return Err(Cut::Ended(Ended::Viewer));
                    }
                    self.said.push(&piece[..length]);
                    while let Some(message) = self.said.take().map_err(|error| unreadable("viewer", self.vm, &error))? {
                        self.wishes.note(&message);
                        self.expects |= message.asks_for_picture();
                        if let ViewerMessage::SetPixelFormat(format) = &message {
                            screen.shown.set_format(*format);
                        }
                        screen.upstream.write(message.write()).await?;
                    }
                }
                written = to_viewer.write_buf(&mut self.owed), if !self.owed.is_empty() => {
                    written.map_err(gone)?;
                    // Meanwhile it was not read, and so could say nothing.
                    patience.as_mut().reset(Instant::now() + QUIET);
                }
                bytes = screen.upstream.read(), if self.owed.is_empty() => {
                    screen.shown.push(&bytes?);
                    while let Some(mut message) = screen.shown.take().map_err(|error| unreadable("screen", self.vm, &error))? {
                        if let Some(size) = message.size {
                            self.wishes.note_size(size);
                        }
                        if screen.restart {
                            screen.restart = !message.restart_tight();
                        }
                        self.owed.extend(message.bytes);
                    }
                    asked = false;
                    patience.as_mut().reset(Instant::now() + QUIET);
                }
                () = &mut patience, if self.expects && self.owed.is_empty() => {
                    if asked {
                        return Err(Cut::Silent);
                    }
                    screen.upstream.write(Wishes::sign_of_life()).await?;
                    asked = true;
                    patience.as_mut().reset(Instant::now() + ANSWER);
                }
            }
        }
    }
}

fn unreadable(who: &str, vm: &VmName, error: &fleetward_rfb::Unreadable) -> Cut {
    let what = format!("the {who} of VM {vm} cannot be understood");
    Cut::Ended(Ended::Failed(
        Failure::new(ErrorCode::InvalidRequest, what).because(error),
    ))
}

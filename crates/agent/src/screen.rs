//! A VM's screen and keyboard: RFB bytes both ways between the controller and the hypervisor, pictures, keystrokes.
//!
//! ```text
//!   controller ─ upgrade ─► viewer's place ─► handshake passes, "shared" set ─► bytes until either side ends
//! ```
//! RFB lets a viewer ask to be the only one, and the hypervisor then ends the others. Nobody may be thrown out by the next
//! who looks, so that wish is overwritten in passing. Nothing else of the protocol is looked at.

use crate::failure::{HypervisorResult, Result, Trouble};
use crate::host::Host;
use crate::machines;
use bytes::Bytes;
use fleetward_api::agent::KeysRequest;
use fleetward_hypervisor::{DomainState, Picture};
use fleetward_model::host::Accelerator;
use fleetward_model::{ErrorCode, Failure, Names, VmId};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::collections::HashMap;
#[cfg(test)]
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Viewers of one VM at a time.
const VIEWERS: usize = 16;

/// Pictures that are made at a time: each takes up to 200 MB for a moment.
const PICTURES: usize = 2;

/// Bytes carried at a time.
const PIECE: usize = 16 * 1024;

/// Who looks at which VM, and who types.
pub(crate) struct Screens {
    places: Mutex<HashMap<VmId, Arc<Place>>>,
    pictures: Semaphore,
}

struct Place {
    viewers: Arc<Semaphore>,
    /// Two who type do not mix within one request.
    keyboard: tokio::sync::Mutex<()>,
}

impl Default for Screens {
    fn default() -> Self {
        Self {
            places: Mutex::default(),
            pictures: Semaphore::new(PICTURES),
        }
    }
}

impl Screens {
    fn place(&self, vm: VmId) -> Arc<Place> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|_, place| {
            Arc::strong_count(place) > 1 || place.viewers.available_permits() < VIEWERS
        });
        let place = places.entry(vm).or_insert_with(|| {
            Arc::new(Place {
                viewers: Arc::new(Semaphore::new(VIEWERS)),
                keyboard: tokio::sync::Mutex::default(),
            })
        });
        place.clone()
    }
}

/// An open screen, and the viewer's place.
pub(crate) struct Screen {
    socket: UnixStream,
    _viewer: OwnedSemaphorePermit,
}

/// Opens the screen of a running VM.
pub(crate) async fn open(host: &Host, vm: VmId) -> Result<Screen> {
    let name = running(host, vm, "screen").await?.0;
    let viewer = host.screens.place(vm).viewers.clone().try_acquire_owned();
    let viewer = viewer.map_err(|_| {
        Failure::new(
            ErrorCode::TooManyViewers,
            format!("the screen of VM {name} has {VIEWERS} viewers"),
        )
        .about(&Names::default().vm(&name))
    })?;
    let opened = host.hypervisor.open_screen(vm).await;
    let socket = opened.attempt(|| format!("the screen of VM {name}"))?;
    let socket = std::os::unix::net::UnixStream::from(socket);
    let socket = socket
        .set_nonblocking(true)
        .and_then(|()| UnixStream::from_std(socket));
    Ok(Screen {
        socket: socket.map_err(|error| {
            Failure::new(ErrorCode::Internal, format!("the screen of VM {name}")).because(error)
        })?,
        _viewer: viewer,
    })
}

/// The name of a VM, and what runs it; refused when it does not run.
async fn running(
    host: &Host,
    vm: VmId,
    part: &str,
) -> Result<(fleetward_model::VmName, Accelerator)> {
    let inspected = host.hypervisor.inspect(vm).await;
    let domain = inspected.attempt(|| format!("the {part} of VM {vm}"))?;
    let refused = |because| {
        let what = format!("the {part} of VM {}", domain.name);
        let failure = Failure::new(ErrorCode::VmNotRunning, what).because(because);
        Err(failure.about(&Names::default().vm(&domain.name)).into())
    };
    match domain.state {
        DomainState::Running | DomainState::Paused { incoming: false } => {
            machines::require_answer(host, vm, &domain.name).await?;
            Ok((domain.name, domain.accelerator))
        }
        DomainState::Paused { incoming: true } => refused("the VM is still arriving"),
        DomainState::Stopped(_) => refused("the VM does not run"),
    }
}

/// Carries bytes until either side ends.
pub(crate) async fn carry(upgraded: Upgraded, screen: Screen) {
    let (mut from_guest, mut to_guest) = screen.socket.into_split();
    let (mut from_user, mut to_user) = tokio::io::split(TokioIo::new(upgraded));
    let output = async {
        let mut piece = vec![0; PIECE];
        while let Ok(length @ 1..) = from_guest.read(&mut piece).await {
            if to_user.write_all(&piece[..length]).await.is_err() || to_user.flush().await.is_err()
            {
                break;
            }
        }
        // The user's side may be gone already.
        let _ = to_user.shutdown().await;
    };
    let input = async {
        let mut piece = vec![0; PIECE];
        let mut handshake = Handshake::default();
        while let Ok(length @ 1..) = from_user.read(&mut piece).await {
            handshake.share(&mut piece[..length]);
            if to_guest.write_all(&piece[..length]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = output => {}
        () = input => {}
    }
}

/// The viewer's part of RFB's handshake, as far as it has come: 12 bytes of version; from version 3.7 on a byte that chooses
/// the security; and the byte that says whether others may look (RFC 6143, 7.1.1, 7.1.2, 7.3.1).
#[derive(Default)]
struct Handshake {
    /// Bytes so far.
    passed: usize,
    minor: [u8; 3],
}

impl Handshake {
    fn share(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            match self.passed {
                8..=10 => self.minor[self.passed - 8] = *byte,
                12 if self.is_old() => *byte = 1,
                13 if !self.is_old() => *byte = 1,
                14.. => return,
                _ => {}
            }
            self.passed += 1;
        }
    }

    /// Versions that hypervisors take for 3.3, in which the server alone decides about security.
    fn is_old(&self) -> bool {
        matches!(&self.minor, b"003" | b"004" | b"005")
    }
}

/// What the screen shows, as PNG.
pub(crate) async fn picture(host: &Host, vm: VmId) -> Result<Bytes> {
    let name = running(host, vm, "screen").await?.0;
    let _turn = host.screens.pictures.acquire().await;
    let taken = host.hypervisor.screenshot(vm).await;
    let picture = taken.attempt(|| format!("the screenshot of VM {name}"))?;
    let png = tokio::task::spawn_blocking(move || png_of(&picture)).await;
    let failed = |error: String| {
        Failure::new(ErrorCode::Internal, format!("the screenshot of VM {name}")).because(error)
    };
    let png = png.map_err(|error| failed(error.to_string()))?;
    Ok(png.map_err(|error| failed(error.to_string()))?.into())
}

fn png_of(picture: &Picture) -> std::result::Result<Vec<u8>, png::EncodingError> {
    let mut file = Vec::new();
    let mut encoder = png::Encoder::new(&mut file, picture.width, picture.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&picture.rgb)?;
    writer.finish()?;
    Ok(file)
}

/// How long keys are held down, and how long none is then: a guest loses keys that come faster than it looks.
fn pace(accelerator: Accelerator) -> (Duration, Duration) {
    match accelerator {
        Accelerator::Kvm => (Duration::from_millis(30), Duration::from_millis(30)),
        Accelerator::Tcg => (Duration::from_millis(80), Duration::from_millis(80)),
    }
}

/// Types; returns when the last key is up.
pub(crate) async fn type_keys(host: &Host, vm: VmId, request: &KeysRequest) -> Result<()> {
    let possible = request.strokes.iter().all(|chord| chord.is_possible());
    if !possible || !(1..=fleetward_api::agent::MAX_STROKES).contains(&request.strokes.len()) {
        let what = "these are no keystrokes of a keyboard";
        return Err(Trouble::lasting(Failure::new(
            ErrorCode::InvalidRequest,
            what,
        )));
    }
    let (name, accelerator) = running(host, vm, "keyboard").await?;
    let place = host.screens.place(vm);
    let _turn = place.keyboard.lock().await;
    let (hold, pause) = pace(accelerator);
    for (done, chord) in request.strokes.iter().enumerate() {
        let pressed = host.hypervisor.press(vm, chord, hold).await;
        pressed.attempt(|| {
            let all = request.strokes.len();
            format!("typing into VM {name}, after {done} of {all} keystrokes")
        })?;
        tokio::time::sleep(hold + pause).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What reaches the hypervisor of a handshake that comes in pieces of `size` bytes.
    fn passed(sent: &[u8], size: usize) -> Vec<u8> {
        let mut handshake = Handshake::default();
        let mut bytes = sent.to_vec();
        for piece in bytes.chunks_mut(size) {
            handshake.share(piece);
        }
        bytes
    }

    #[test]
    fn a_viewer_that_wants_to_be_alone_shares_all_the_same() {
        for size in [1, 5, 64] {
            let sent = b"RFB 003.008\n\x01\x00\x00rest\x00";
            assert_eq!(passed(sent, size), b"RFB 003.008\n\x01\x01\x00rest\x00");
            let sent = b"RFB 003.003\n\x00\x00rest\x00";
            assert_eq!(passed(sent, size), b"RFB 003.003\n\x01\x00rest\x00");
        }
    }

    #[test]
    fn a_picture_becomes_a_png_of_its_size() {
        let rgb = vec![7; 4 * 3 * 3];
        let picture = Picture {
            width: 4,
            height: 3,
            rgb: rgb.clone(),
        };
        let file = png_of(&picture).expect("encoded");
        let mut reader = png::Decoder::new(io::Cursor::new(file))
            .read_info()
            .expect("PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("small")];
        reader.next_frame(&mut pixels).expect("pixels");
        assert_eq!((reader.info().size(), pixels), ((4, 3), rgb));
    }
}

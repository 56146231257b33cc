//! A domain's screen and keyboard.

use crate::Result;
use async_trait::async_trait;
use fleetward_model::VmId;
use fleetward_model::keys::Chord;
use std::fmt;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Most pixels of a picture; a larger one is refused. The largest screen of today's monitors, 7680 by 4320, has fewer.
pub const MAX_PIXELS: u64 = 1 << 25;

/// What a screen shows at one moment.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    /// Pixels.
    pub width: u32,
    pub height: u32,
    /// Red, green and blue of each pixel, row by row from the top; 3 · width · height bytes.
    pub rgb: Vec<u8>,
}

impl fmt::Debug for Picture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Picture({} x {})", self.width, self.height)
    }
}

/// Screens and keyboards of one host's domains.
#[async_trait]
pub trait Screens: Send + Sync + 'static {
    /// Connects to the screen: one end of a stream socket on which the hypervisor speaks RFB (RFC 6143), its version first,
    /// and asks for no password. The screen can be opened several times at once. Ends with the domain's process.
    ///
    /// # Errors
    /// [`Error::NoDomain`](crate::Error::NoDomain), [`Error::WrongState`](crate::Error::WrongState) if it does not run,
    /// [`Error::NoScreen`](crate::Error::NoScreen).
    async fn open_screen(&self, id: VmId) -> Result<OwnedFd>;

    /// What the screen shows, at most [`MAX_PIXELS`].
    ///
    /// # Errors
    /// As for `open_screen`.
    async fn screenshot(&self, id: VmId) -> Result<Picture>;

    /// Presses the keys of a chord together and lets them go after `hold`. Returns when the hypervisor has them, which may be
    /// before they are let go.
    ///
    /// # Errors
    /// [`Error::NoDomain`](crate::Error::NoDomain), [`Error::WrongState`](crate::Error::WrongState) if it does not run.
    async fn press(&self, id: VmId, chord: &Chord, hold: Duration) -> Result<()>;
}

//! A VNC viewer without a window: connects, keeps a picture, types.

use crate::picture::Picture;
use anyhow::{Context, Result, bail, ensure};
use fleetward_e2e::wait;
use fleetward_rfb::{Encoding, Init, PixelFormat, ServerMessages, VERSION, ViewerMessage};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// A connected viewer.
pub(crate) struct Viewer {
    stream: TcpStream,
    messages: ServerMessages,
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

impl Viewer {
    /// Connects, asking to be the only viewer if it is to be `alone`.
    pub(crate) fn connect(address: &str, alone: bool) -> Result<Self> {
        let mut stream = TcpStream::connect(address).context("connect")?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut version = [0; 12];
        stream.read_exact(&mut version)?;
        ensure!(version == VERSION, "{version:?}");
        stream.write_all(&VERSION)?;
        let mut offered = [0; 2];
        stream.read_exact(&mut offered)?;
        ensure!(offered == [1, 1], "security {offered:?}");
        stream.write_all(&[1])?;
        let mut result = [9; 4];
        stream.read_exact(&mut result)?;
        ensure!(result == [0; 4], "security refused");
        stream.write_all(&[u8::from(!alone)])?;
        let mut said = Vec::new();
        let init = loop {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            said.extend(byte);
            if let Some((init, _)) = Init::read(&said)? {
                break init;
            }
        };
        stream.set_read_timeout(Some(Duration::from_millis(100)))?;
        let mut viewer = Self {
            stream,
            messages: ServerMessages::new(PixelFormat::BGRX),
            width: 0,
            height: 0,
            pixels: Vec::new(),
        };
        viewer.resize(init.width, init.height);
        let offered = vec![Encoding::RAW, Encoding::DESKTOP_SIZE];
        viewer.send(&ViewerMessage::SetPixelFormat(PixelFormat::BGRX))?;
        viewer.send(&ViewerMessage::SetEncodings(offered))?;
        viewer.ask(false)?;
        Ok(viewer)
    }

    /// Takes updates until the picture is as wanted; it is asked for as it changes.
    pub(crate) fn until(
        &mut self,
        what: &str,
        deadline: Duration,
        wanted: impl Fn(&Picture) -> bool,
    ) -> Result<Picture> {
        let begun = Instant::now();
        let mut changed = true;
        loop {
            if changed {
                let picture = Picture::of_bgrx(self.width, self.height, &self.pixels);
                if wanted(&picture) {
                    return Ok(picture);
                }
            }
            if begun.elapsed() > deadline {
                bail!("waited {deadline:?} for {what} in vain");
            }
            changed = self.take()?;
            if changed {
                self.ask(true)?;
            }
        }
    }

    /// Presses and lets go each key.
    pub(crate) fn press(&mut self, keysyms: &[u32]) -> Result<()> {
        for keysym in keysyms {
            for down in [1, 0] {
                let mut message = vec![4, down, 0, 0];
                message.extend(keysym.to_be_bytes());
                self.stream.write_all(&message)?;
                // as fast as a person: the guest's keyboard has little room
                std::thread::sleep(Duration::from_millis(80));
            }
        }
        Ok(())
    }

    /// Waits until the other side has closed the connection.
    pub(crate) fn closed(&mut self) -> Result<()> {
        wait::until(
            "the viewer's connection to be closed",
            wait::seconds(20),
            || match self.take() {
                Ok(_) => Ok(None),
                Err(_) => Ok(Some(())),
            },
        )
    }

    /// Takes what has come; whether it was a picture. Fails when the connection has ended.
    fn take(&mut self) -> Result<bool> {
        let mut piece = vec![0; 1 << 20];
        match self.stream.read(&mut piece) {
            Ok(0) => bail!("the connection has ended"),
            Ok(length) => self.messages.push(&piece[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error).context("read from the screen"),
        }
        let mut pictured = false;
        while let Some(message) = self.messages.take()? {
            if let Some((width, height)) = message.size {
                self.resize(width, height);
            }
            if message.picture {
                self.paint(&message.bytes);
            }
            pictured |= message.picture || message.size.is_some();
        }
        Ok(pictured)
    }

    /// Rectangles without compression, as asked for.
    fn paint(&mut self, update: &[u8]) {
        let number = |at: usize| usize::from(u16::from_be_bytes([update[at], update[at + 1]]));
        let mut at = 4;
        for _ in 0..number(2) {
            let [x, y, width, height] = [0, 2, 4, 6].map(|offset| number(at + offset));
            let encoding = &update[at + 8..at + 12];
            at += 12;
            if encoding != Encoding::RAW.0.to_be_bytes() {
                continue;
            }
            for row in update[at..at + width * height * 4]
                .chunks_exact(width * 4)
                .enumerate()
            {
                let to = ((y + row.0) * self.width + x) * 4;
                self.pixels[to..to + width * 4].copy_from_slice(row.1);
            }
            at += width * height * 4;
        }
    }

    fn resize(&mut self, width: u16, height: u16) {
        (self.width, self.height) = (width.into(), height.into());
        self.pixels = vec![0; self.width * self.height * 4];
    }

    fn ask(&mut self, incremental: bool) -> Result<()> {
        let mut request = vec![3, u8::from(incremental), 0, 0, 0, 0];
        request.extend((self.width as u16).to_be_bytes());
        request.extend((self.height as u16).to_be_bytes());
        self.stream.write_all(&request)?;
        Ok(())
    }

    fn send(&mut self, message: &ViewerMessage) -> Result<()> {
        self.stream.write_all(&message.write())?;
        Ok(())
    }
}

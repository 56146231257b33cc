//! Screens and keyboards of domains through libvirt. No path of QEMU's directories is used: libvirt hands QEMU one end of a
//! socket pair and us the other, so a guest that broke out cannot put another socket in the screen's place.

use crate::binding::{self, Connection};
use crate::connection::SHORT;
use crate::host::{LibvirtHost, domain, failed, observe_state, wrong_state};
use crate::picture;
use async_trait::async_trait;
use fleetward_hypervisor::{DomainState, Error, Picture, Result, Screens};
use fleetward_model::VmId;
use fleetward_model::keys::Chord;
use roxmltree::Document;
use std::os::fd::OwnedFd;
use std::time::Duration;
use virt::domain::Domain;
use virt::error::ErrorNumber;
use virt::stream::Stream;

/// Largest file of a picture that is read, bytes: that of the largest picture without compression, and its header.
const MAX_FILE: usize = fleetward_hypervisor::MAX_PIXELS as usize * 3 + 1024;

#[async_trait]
impl Screens for LibvirtHost {
    async fn open_screen(&self, id: VmId) -> Result<OwnedFd> {
        // Alone: libvirt waits until it may talk to QEMU, and QEMU may be busy.
        self.libvirt
            .call_alone(SHORT, move |connection| {
                let domain = domain(connection, id)?;
                let index = vnc_of(&domain, id)?;
                binding::open_graphics(&domain, index).map_err(explained(
                    &domain,
                    id,
                    "open the screen",
                ))
            })
            .await
    }

    async fn screenshot(&self, id: VmId) -> Result<Picture> {
        let file = self
            .libvirt
            .call_alone(SHORT, move |connection| screenshot(connection, id))
            .await?;
        // Foreign bytes, and some work: aside.
        let read = tokio::task::spawn_blocking(move || picture::read(&file));
        read.await
            .map_err(|_| Error::BadPicture("reading it was abandoned".into()))?
            .map_err(Error::BadPicture)
    }

    async fn press(&self, id: VmId, chord: &Chord, hold: Duration) -> Result<()> {
        let mut codes: Vec<u32> = chord.codes().iter().map(|code| u32::from(*code)).collect();
        let hold = u32::try_from(hold.as_millis()).unwrap_or(u32::MAX);
        self.libvirt
            .call(move |connection| {
                let domain = domain(connection, id)?;
                let count = i32::try_from(codes.len()).unwrap_or(i32::MAX);
                let linux = virt_sys::VIR_KEYCODE_SET_LINUX;
                domain
                    .send_key(linux, hold, codes.as_mut_ptr(), count, 0)
                    .map_err(explained(&domain, id, "type"))
            })
            .await
    }
}

/// Which of the domain's graphics devices speaks VNC.
fn vnc_of(domain: &Domain, id: VmId) -> Result<u32> {
    let xml = domain
        .get_xml_desc(0)
        .map_err(failed("read the domain's definition"))?;
    let document = Document::parse(&xml).map_err(|_| Error::NoScreen(id))?;
    let graphics = document
        .descendants()
        .filter(|node| node.has_tag_name("graphics"));
    let index = graphics
        .enumerate()
        .find(|(_, node)| node.attribute("type") == Some("vnc"))
        .map(|(index, _)| index);
    index
        .and_then(|index| u32::try_from(index).ok())
        .ok_or(Error::NoScreen(id))
}

fn screenshot(connection: &Connection, id: VmId) -> Result<Vec<u8>> {
    let domain = domain(connection, id)?;
    let broken = || failed("read the screenshot");
    let stream = Stream::new(connection, 0).map_err(broken())?;
    // Its answer is the kind of file, which the file itself says better.
    let _ =
        domain
            .screenshot(&stream, 0, 0)
            .map_err(explained(&domain, id, "take a screenshot"))?;
    let mut file = Vec::new();
    let mut piece = vec![0; 256 * 1024];
    loop {
        match stream.recv(&mut piece).map_err(broken())? {
            0 => break,
            length => file.extend_from_slice(&piece[..length]),
        }
        if file.len() > MAX_FILE {
            // What comes after it is of no use.
            let _ = stream.abort();
            return Err(Error::BadPicture(format!(
                "it has more than {MAX_FILE} bytes"
            )));
        }
    }
    stream.finish().map_err(broken())?;
    Ok(file)
}

/// Says what is wrong with the domain where that is the reason.
fn explained<'d>(
    domain: &'d Domain,
    id: VmId,
    attempt: &'static str,
) -> impl FnOnce(virt::error::Error) -> Error + 'd {
    move |error| match error.code() {
        ErrorNumber::NoDomain => Error::NoDomain(id),
        ErrorNumber::OperationInvalid => match observe_state(domain) {
            Ok(state @ DomainState::Stopped(_)) => wrong_state(id, state, "be seen or typed into"),
            Ok(_) | Err(_) => failed(attempt)(error),
        },
        _ => failed(attempt)(error),
    }
}

//! The step that puts images on a host, and the function for steps that need some there before they ask for anything else.
//!
//! Images stay on the host for the next VM, so there is nothing to undo.

use super::OnVm;
use crate::world::World;
use fleetward_jobs::{Data, Step, StepContext, StepError, async_trait};
use fleetward_model::HostName;
use fleetward_model::vm::Medium;
use std::marker::PhantomData;
use std::sync::Arc;

/// The input of a job that needs images on the VM's host.
pub(crate) trait NeedsImages: OnVm {
    /// SHA-256 and format of each.
    fn images(&self, world: &World) -> Vec<(String, String)>;
}

/// Copies the images that are not there yet.
pub(crate) struct PlaceImages<I>(Arc<World>, PhantomData<fn(I)>);

impl<I> PlaceImages<I> {
    pub(crate) fn new(world: Arc<World>) -> Self {
        Self(world, PhantomData)
    }
}

#[async_trait]
impl<I: NeedsImages> Step<I> for PlaceImages<I> {
    const NAME: &'static str = "place-images";
    type Output = ();

    fn applies(&self, cx: &StepContext<I>) -> bool {
        !cx.input().images(&self.0).is_empty()
    }

    async fn run(&self, cx: &StepContext<I>) -> Result<(), StepError> {
        let images = cx.input().images(&self.0);
        place(&self.0, cx, cx.input().host(), &images).await
    }
}

/// Sends the images to a host that does not have them.
pub(super) async fn place<I: Data>(
    world: &World,
    cx: &StepContext<I>,
    host: &HostName,
    images: &[(String, String)],
) -> Result<(), StepError> {
    let agent = world.agents.of(host)?;
    for (sha256, format) in images {
        let turn = world.images.turn(host, sha256);
        let _turn = cx
            .unless_cancelled(async { Ok::<_, StepError>(turn.lock().await) })
            .await?;
        if agent.has_image(sha256).await? {
            continue;
        }
        cx.progress()
            .text(format!("copying the image to host {host}"));
        let progress = cx.progress().clone();
        let file = world.images.file(sha256);
        let sending = agent.put_image(sha256, format, &file, move |done, total| {
            progress.bytes(done, total)
        });
        cx.unless_cancelled(sending).await?;
    }
    Ok(())
}

/// What a host must have for VMs with these media in their drives.
pub(super) fn of_media<'a>(media: impl Iterator<Item = &'a Medium>) -> Vec<(String, String)> {
    let mut images: Vec<_> = media
        .map(|medium| (medium.sha256.clone(), "iso".to_owned()))
        .collect();
    images.sort();
    images.dedup();
    images
}

//! Images: list, import, delete.

use super::body::{Asked, Params};
use super::page::Page;
use super::{Answer, parsed};
use crate::app::App;
use axum::Json;
use axum::extract::{Path, Request, State};
use fleetward_api::controller::{ImageView, ImportQuery};
use fleetward_api::verbs;
use fleetward_model::{ErrorCode, Failure, ImageName};
use http::StatusCode;
use time::OffsetDateTime;

serves! {
    ImageList => image_list,
    ImageImport => image_import,
    ImageDelete => image_delete,
}

async fn image_list(
    State(app): State<App>,
    Asked(query): Asked<verbs::ImageList>,
) -> Answer<Json<Vec<ImageView>>> {
    let page = Page::new(query.limit, query.after)?;
    Ok(Json(page.of_named(app.world.images.all())))
}

async fn image_import(
    State(app): State<App>,
    Path(image): Path<String>,
    Params(query): Params<ImportQuery>,
    request: Request,
) -> Answer<Json<ImageView>> {
    let name: ImageName = parsed("image's name", &image)?;
    let content = request.into_body().into_data_stream();
    let now = OffsetDateTime::now_utc();
    let image = app
        .world
        .images
        .import(&name, query.format.as_deref(), content, now)
        .await?;
    Ok(Json(image))
}

async fn image_delete(State(app): State<App>, Path(image): Path<String>) -> Answer<StatusCode> {
    let name: ImageName = parsed("image's name", &image)?;
    let world = &app.world;
    let known = world.images.of(&name)?;
    let users: Vec<_> = world
        .inventory
        .vms()
        .into_iter()
        .filter(|vm| {
            let mut media = vm.metadata.iter().flat_map(|m| m.spec.media());
            media.any(|medium| medium.sha256 == known.sha256)
        })
        .map(|vm| vm.name.to_string())
        .collect();
    if !users.is_empty() {
        let what = format!(
            "image {name} is the installer medium of {} VMs",
            users.len()
        );
        return Err(Failure::new(ErrorCode::ImageInUse, what)
            .because(users.join(", "))
            .into());
    }
    if world
        .images
        .delete(&name, |sha256| world.templates.holds(sha256))
        .await?
    {
        let world = world.clone();
        tokio::spawn(async move {
            for host in world.hosts.all() {
                let deleted = async {
                    world
                        .agents
                        .of(&host.name)?
                        .delete_image(&known.sha256)
                        .await
                };
                if let Err(error) = deleted.await {
                    tracing::info!(host = %host.name, error = %error.what, "the image stays in the host's cache");
                }
            }
        });
    }
    Ok(StatusCode::NO_CONTENT)
}

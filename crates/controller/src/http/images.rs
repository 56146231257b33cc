//! Images: list, import, delete.

use super::body::{Asked, Params};
use super::page::Page;
use super::rows::Rows;
use super::{Answer, parsed};
use crate::app::App;
use crate::conversion::{self, Converted};
use crate::image_format;
use crate::images::not_an_image;
use axum::Json;
use axum::body::HttpBody as _;
use axum::extract::{Path, Request, State};
use fleetward_api::agent::ConversionQuery;
use fleetward_api::controller::{ImageSource, ImageView, ImportQuery, ImportStage, ImportView};
use fleetward_api::verbs;
use fleetward_model::vm::VmObserved;
use fleetward_model::{ErrorCode, Failure, ImageName};
use http::StatusCode;
use std::sync::Arc;
use time::OffsetDateTime;

serves! {
    ImageList => image_list,
    ImageImport => image_import,
    ImageImportShow => image_import_show,
    ImageDelete => image_delete,
}

async fn image_list(
    State(app): State<App>,
    Asked(query): Asked<verbs::ImageList>,
) -> Answer<Rows<ImageView>> {
    let page = Page::new(query.limit, query.after)?;
    Ok(Rows(page.of_named(app.world.images.all())))
}

async fn image_import(
    State(app): State<App>,
    Path(image): Path<String>,
    Params(query): Params<ImportQuery>,
    request: Request,
) -> Answer<Json<ImageView>> {
    let name: ImageName = parsed("image's name", &image)?;
    let ImportQuery {
        format,
        disk,
        sha256,
    } = query;
    let wanted = format.as_deref().map(image_format::known_format);
    let wanted = wanted
        .transpose()
        .map_err(|error| not_an_image(&name, error))?;
    let total = request.body().size_hint().exact().unwrap_or_default();
    let content = request.into_body().into_data_stream();
    let (world, images) = (&app.world, &app.world.images);

    let under_way = images.begin(&name);
    let told = under_way.teller(ImportStage::Receiving, None);
    let upload = images.receive(content, |done| told(done, total)).await?;
    require_digest(&name, sha256.as_deref(), upload.sha256())?;
    if let Some(known) = images.same(&name, &upload)? {
        return Ok(Json(known));
    }
    let now = OffsetDateTime::now_utc();
    if !images.is_foreign(&upload, wanted).await? {
        if let Some(disk) = disk {
            let what = format!("image {name} cannot be imported");
            return Err(Failure::new(ErrorCode::InvalidArgument, what)
                .because(format!(
                    "it is no archive, so there is no choice of a disk {disk:?}"
                ))
                .fix(format!("fleetward image import {name} without --disk"))
                .into());
        }
        return Ok(Json(images.keep(&name, wanted, upload, None, now).await?));
    }
    let query = ConversionQuery { format, disk };
    let Converted {
        content,
        found,
        host,
    } = conversion::convert(world, &upload, &query, &under_way).await?;
    let source = ImageSource {
        found,
        size_bytes: upload.size(),
        sha256: upload.sha256().to_owned(),
        host,
    };
    // What it was before is checked; now it is a disk or a medium like any other.
    let image = images.keep(&name, None, content, Some(source), now).await?;
    Ok(Json(image))
}

fn require_digest(name: &ImageName, wanted: Option<&str>, found: &str) -> Result<(), Failure> {
    match wanted {
        Some(wanted) if !wanted.eq_ignore_ascii_case(found) => {
            let what = format!("the file for image {name} is not the one that is meant");
            Err(Failure::new(ErrorCode::DigestDiffers, what)
                .because(format!("its sha256 is {found}, not {wanted}")))
        }
        _ => Ok(()),
    }
}

async fn image_import_show(
    State(app): State<App>,
    Path(image): Path<String>,
) -> Answer<Json<ImportView>> {
    let name: ImageName = parsed("image's name", &image)?;
    Ok(Json(app.world.images.under_way(&name)?))
}

/// Why an image with this SHA-256 is not deleted: drives hold it, also such as a machine has only from its next start.
fn in_drives(vms: &[Arc<VmObserved>], image: &ImageName, sha256: &str) -> Option<Failure> {
    /// Commands of a fix that are told at once.
    const TOLD: usize = 5;
    let drives = vms.iter().flat_map(|vm| {
        let drives = vm.metadata.iter().flat_map(|known| &known.spec.drives);
        let holding = drives.filter(|drive| {
            let medium = drive.medium.as_ref();
            medium.is_some_and(|medium| medium.sha256 == sha256)
        });
        holding.map(|drive| (&vm.name, &drive.target))
    });
    let drives: Vec<_> = drives.collect();
    if drives.is_empty() {
        return None;
    }
    let named = drives.iter().map(|(vm, drive)| format!("{drive} of {vm}"));
    let ejects = drives.iter().take(TOLD);
    let ejects = ejects.map(|(vm, drive)| format!("fleetward vm media eject {vm} --drive {drive}"));
    Some(
        Failure::new(
            ErrorCode::ImageInUse,
            format!("image {image} is in drives of VMs"),
        )
        .because(named.collect::<Vec<_>>().join(", "))
        .fix(ejects.collect::<Vec<_>>().join(" && ")),
    )
}

async fn image_delete(State(app): State<App>, Path(image): Path<String>) -> Answer<StatusCode> {
    let name: ImageName = parsed("image's name", &image)?;
    let world = &app.world;
    let known = world.images.of(&name)?;
    if let Some(failure) = in_drives(&world.inventory.vms(), &name, &known.sha256) {
        return Err(failure.into());
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

//! `fleetward image ...`

use super::Context;
use crate::args::{ImageCommand, ImageFormat};
use crate::confirm::confirm;
use crate::exit::{Exit, Stop};
use crate::fetch::{Check, Source};
use crate::progress::{Counted, Task};
use crate::{messages, table};
use clap::ValueEnum;
use fleetward_api::controller::{ImageView, ImportQuery, ImportView};
use fleetward_api::lists::LibraryQuery;
use fleetward_api::verbs::{ImageDelete, ImageImport, ImageImportShow, ImageList};
use fleetward_model::{ErrorCode, Failure, ImageName};
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How often progress is shown.
const PACE: Duration = Duration::from_millis(250);

pub(super) async fn run(context: &Context, command: ImageCommand) -> Result<Exit, Stop> {
    let Context {
        controller, output, ..
    } = context;
    match command {
        ImageCommand::Import {
            name,
            file,
            format,
            disk,
            sha256,
        } => {
            let import = Import {
                name,
                source: file,
                format,
                disk,
                sha256,
            };
            let image = self::import(context, import).await?;
            output.success(&image, || messages::image_imported(&image))?;
        }
        ImageCommand::List { rows } => {
            let query = LibraryQuery {
                after: rows.after,
                limit: None,
            };
            let images: Vec<ImageView> = controller.list::<ImageList, _>(query, rows.limit).await?;
            output.document(&images, || table::images(&images))?;
        }
        ImageCommand::Delete { name } => {
            confirm(context.yes, &messages::confirm_delete_image(&name))?;
            controller.call::<ImageDelete>([name.as_str()], &()).await?;
            output.success(&json!({ "deleted": name }), || {
                messages::image_deleted(&name)
            })?;
        }
    }
    Ok(Exit::Done)
}

/// What is to be imported.
struct Import {
    name: ImageName,
    source: PathBuf,
    format: Option<ImageFormat>,
    disk: Option<String>,
    sha256: Option<String>,
}

/// Sends the file as it is read, shows how far it is, and compares what arrived with what was sent.
async fn import(context: &Context, import: Import) -> Result<ImageView, Failure> {
    let Import {
        name,
        source,
        format,
        disk,
        sha256,
    } = import;
    let task = context.progress.task(name.as_str());
    let source = Source::open(&source).await?;
    let length = source.length;
    let check = Arc::new(Check::new(sha256));
    let query = ImportQuery {
        format: format.and_then(|format| Some(format.to_possible_value()?.get_name().to_owned())),
        disk,
        // Checked here: an earlier controller would not.
        sha256: None,
    };
    let upload = context.controller.upload::<ImageImport>(
        [name.as_str()],
        &query,
        source.checked(check.clone()),
        length,
    );
    let image = tokio::select! {
        image = upload => image,
        () = show(context, &task, &name, &check, length) => unreachable!("it is shown until the end"),
    };
    // That the upload broke off is only the consequence.
    let image = image.map_err(|failure| check.failure().unwrap_or(failure))?;
    let sent = check.sha256();
    let source = image.source.as_ref().map(|source| &source.sha256);
    if image.sha256 != sent && source != Some(&sent) {
        return Err(Failure::new(
            ErrorCode::ImageInvalid,
            format!("image {name} arrived as another file than was sent"),
        )
        .because(format!("sent sha256 {sent}, arrived {}", image.sha256))
        .fix(format!(
            "fleetward image delete {name}, and import it again"
        )));
    }
    Ok(image)
}

/// Shows how far an import is: what has been sent, then what the controller says of it.
async fn show(
    context: &Context,
    task: &Task,
    name: &ImageName,
    check: &Check,
    length: Option<u64>,
) {
    let mut sent = 0;
    loop {
        tokio::time::sleep(PACE).await;
        if !check.has_ended() || sent < check.bytes() {
            sent = check.bytes();
            let text = messages::sending(length);
            task.part(&text, Counted::Bytes, sent, length.unwrap_or_default());
            continue;
        }
        let path = [name.as_str()];
        // An earlier controller does not tell; one that is done neither.
        let told = context.controller.call::<ImageImportShow>(path, &()).await;
        if let Ok(ImportView {
            stage,
            host,
            done,
            total,
        }) = told
        {
            let text = messages::import_stage(stage, host.as_ref());
            task.part(&text, Counted::Shares, done, total);
        }
        tokio::time::sleep(PACE).await;
    }
}

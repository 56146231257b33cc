//! `fleetward vm screen`, `vm screenshot` and `vm keys`.

use super::Context;
use crate::exit::{Exit, Stop, say};
use crate::messages;
use crate::screen::Offered;
use crate::screen::program::Viewer;
use clap::Args;
use fleetward_api::agent::MAX_PICTURE;
use fleetward_api::controller::VmKeysRequest;
use fleetward_api::verbs::{VmKeys, VmScreenshot};
use fleetward_durable::Access;
use fleetward_model::keys::{self, KeyInput};
use fleetward_model::{ErrorCode, Failure, VmName};
use serde_json::json;
use std::io::{IsTerminal, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Longest text that is read from standard input, bytes.
const MAX_TEXT: u64 = 16 * 1024;

#[derive(Debug, Args)]
pub struct VmScreen {
    pub name: VmName,
    /// Address at which viewers connect; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Allows an address that other machines reach; they see and use the screen without a password
    #[arg(long)]
    pub expose: bool,
    /// Starts an installed viewer (remote-viewer, vncviewer, ...), and ends with it
    #[arg(long)]
    pub view: bool,
}

#[derive(Debug, Args)]
pub struct VmScreenshotArgs {
    pub name: VmName,
    /// File to write, or - for standard output; default: NAME.png
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replaces a file that exists
    #[arg(long)]
    pub force: bool,
}

#[derive(Debug, Args)]
pub struct VmKeysArgs {
    pub name: VmName,
    /// Names of keys, pressed together: ctrl-alt-del, f8, enter; everything else is text
    #[arg(required_unless_present = "stdin", value_name = "KEYS")]
    pub keys: Vec<String>,
    /// Takes every word for text
    #[arg(long)]
    pub text: bool,
    /// Types what standard input has, such as a password; the end of a line is Enter
    #[arg(long, conflicts_with_all = ["keys", "text"])]
    pub stdin: bool,
}

pub(super) async fn show(context: &Context, args: VmScreen) -> Result<Exit, Stop> {
    let viewer = args.view.then(Viewer::find).transpose()?;
    let offered = Offered::open(&context.controller, &args.name, args.listen, args.expose).await?;
    let address = offered.address();
    let viewer = viewer.map(|viewer| viewer.start(address)).transpose()?;
    let told = json!({ "vm": args.name, "address": address });
    context.output.document(&told, || address.to_string())?;
    if viewer.is_none() {
        say(&messages::screen_open(&args.name, address));
    }
    if let Some(reason) = offered.serve(viewer).await? {
        say(&messages::screen_ended(&reason));
    }
    Ok(Exit::Done)
}

pub(super) async fn screenshot(context: &Context, args: VmScreenshotArgs) -> Result<Exit, Stop> {
    let name = &args.name;
    let file = args.out.unwrap_or_else(|| format!("{name}.png").into());
    let to_stdout = file == Path::new("-");
    // Before the picture is taken, so that none is taken in vain.
    if to_stdout && std::io::stdout().is_terminal() {
        let what = "a terminal cannot show a PNG file";
        return Err(Failure::new(ErrorCode::InvalidArgument, what)
            .fix(format!("--out {name}.png"))
            .into());
    }
    if !to_stdout && !args.force && file.exists() {
        return Err(exists(&file).into());
    }
    let taken = context
        .controller
        .download::<VmScreenshot>([name.as_str()], &(), MAX_PICTURE);
    let picture = taken.await?;
    if to_stdout {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(&picture)?;
        stdout.flush()?;
        return Ok(Exit::Done);
    }
    // For its owner: a screen may show anything.
    let access = Access::PRIVATE;
    let written = match args.force {
        true => fleetward_durable::replace(&file, &picture, access).map(|()| true),
        false => fleetward_durable::create(&file, &picture, access),
    };
    match written {
        Ok(true) => {}
        Ok(false) => return Err(exists(&file).into()),
        Err(error) => {
            let what = format!("cannot write {}", file.display());
            return Err(Failure::new(ErrorCode::InvalidArgument, what)
                .because(error)
                .fix("--out FILE, in a directory that can be written")
                .into());
        }
    }
    let told = json!({ "vm": name, "file": file, "bytes": picture.len() });
    context
        .output
        .success(&told, || messages::screenshot_taken(name, &file))?;
    Ok(Exit::Done)
}

fn exists(file: &Path) -> Failure {
    let what = format!("{} exists already", file.display());
    Failure::new(ErrorCode::NameTaken, what)
        .fix("add --force to replace it, or name another file with --out")
}

pub(super) async fn press(context: &Context, args: VmKeysArgs) -> Result<Exit, Stop> {
    let keys = if args.stdin {
        vec![KeyInput::Text(text_of_stdin()?)]
    } else if args.text {
        args.keys.into_iter().map(KeyInput::Text).collect()
    } else {
        args.keys.iter().map(|word| keys::word(word)).collect()
    };
    let name = &args.name;
    let request = VmKeysRequest { keys };
    let typed = context
        .controller
        .call::<VmKeys>([name.as_str()], &request)
        .await?;
    context
        .output
        .success(&typed, || messages::keys_typed(name, typed.keystrokes))?;
    Ok(Exit::Done)
}

fn text_of_stdin() -> Result<String, Failure> {
    let unusable = |because: String| {
        Failure::new(ErrorCode::InvalidArgument, "standard input cannot be typed").because(because)
    };
    let mut text = String::new();
    let read = std::io::stdin()
        .take(MAX_TEXT + 1)
        .read_to_string(&mut text);
    read.map_err(|error| unusable(error.to_string()))?;
    if text.len() as u64 > MAX_TEXT {
        return Err(unusable(format!("it has more than {MAX_TEXT} bytes")));
    }
    Ok(text)
}

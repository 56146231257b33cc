//! Disk files, made with qemu-img, and the checks on files before qemu-img opens them.
//!
//! qemu-img opens every file that an image names: backing files, data files, URLs. So this module first inspects the
//! header, and passes only plain files to qemu-img, always with an explicit format. New volumes are written under
//! another name and renamed, so an incomplete volume is never visible.

use crate::host::LibvirtHost;
use crate::layers;
use crate::owner::Owner;
use crate::program::{Program, SHORT};
use crate::said;
use async_trait::async_trait;
use fleetward_durable::{self as durable, Expected, Unexpected};
use fleetward_hypervisor::{Error, MAX_BASES, Result, VolumeInfo, Volumes};
use fleetward_model::ByteSize;
use fleetward_model::error::chain;
use fleetward_model::host::DiskIo;
use fleetward_model::image::{self, Content, Layered, Rules, Standalone};
use serde::Deserialize;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Limit for copying an image.
const COPY_LIMIT: Duration = Duration::from_secs(2 * 3600);

#[async_trait]
impl Volumes for LibvirtHost {
    async fn inspect(&self, path: &Path, format: Option<&str>) -> Result<VolumeInfo> {
        inspect(&self.programs.qemu_img, path, format).await
    }

    async fn inspect_volume(&self, path: &Path) -> Result<VolumeInfo> {
        inspect_volume(&self.programs.qemu_img, path).await
    }

    async fn create_empty(&self, path: &Path, size: ByteSize) -> Result<()> {
        let qemu_img = &self.programs.qemu_img;
        if exists_as_wanted(qemu_img, path, size).await? {
            return Ok(());
        }
        let part = Part::beside(path)?;
        let size = size.bytes().to_string();
        let arguments = ["create", "-q", "-f", "qcow2"].map(OsString::from);
        let arguments = [&arguments[..], &[part.0.clone().into(), size.into()]].concat();
        qemu_img
            .run(&arguments)
            .await
            .map_err(|error| full(error, path))?;
        part.finish(path).await
    }

    async fn create_from_image(
        &self,
        image: &Path,
        image_format: &str,
        path: &Path,
        size: ByteSize,
    ) -> Result<()> {
        let qemu_img = &self.programs.qemu_img;
        if exists_as_wanted(qemu_img, path, size).await? {
            return Ok(());
        }
        let source = inspect(qemu_img, image, Some(image_format)).await?;
        convert(qemu_img, image, &source, path, size).await
    }

    async fn grow(&self, path: &Path, size: ByteSize) -> Result<()> {
        let qemu_img = &self.programs.qemu_img;
        let found = inspect_volume(qemu_img, path).await?;
        if found.virtual_size >= size {
            return Ok(());
        }
        resize(qemu_img, path, size, path).await
    }

    async fn disk_io(&self, directory: &Path) -> DiskIo {
        self.tried.of(&self.programs.qemu_img, directory).await
    }

    async fn copy(&self, source: &Path, path: &Path) -> Result<()> {
        let qemu_img = &self.programs.qemu_img;
        let found = inspect_volume(qemu_img, source).await?;
        let size = found.virtual_size;
        if exists_as_wanted(qemu_img, path, size).await? {
            return Ok(());
        }
        convert(qemu_img, source, &found, path, size).await
    }

    async fn bases(&self, path: &Path) -> Result<Vec<PathBuf>> {
        let path = path.to_owned();
        blocking(move || layers::bases(&path)).await
    }

    async fn create_overlay(&self, base: &Path, path: &Path) -> Result<()> {
        let (Some(name), true) = (base.file_name(), base.parent() == path.parent()) else {
            return Err(bad(path, "an overlay and its base lie in one directory"));
        };
        let _lock = layers::lock_links(path).await?;
        let below = self.bases(base).await?;
        if path.exists() {
            let found = self.bases(path).await?;
            if found.first().map(PathBuf::as_path) == Some(base) {
                return Ok(());
            }
            return Err(bad(path, "it exists already, over another volume"));
        }
        if below.len() + 1 > MAX_BASES {
            return Err(bad(
                base,
                format!("it builds on {} volumes already", below.len()),
            ));
        }
        let part = Part::beside(path)?;
        let options = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
        let mut arguments: Vec<OsString> = options.iter().map(OsString::from).collect();
        arguments.extend([name.into(), part.0.clone().into()]);
        self.programs
            .qemu_img
            .run(&arguments)
            .await
            .map_err(|error| full(error, path))?;
        part.finish(path).await
    }

    async fn is_unwritten(&self, path: &Path) -> Result<bool> {
        // Seen without its base, an overlay in which nothing was written holds nothing at all.
        let alone = serde_json::json!({
            "driver": "qcow2", "backing": null,
            "file": { "driver": "file", "filename": path },
        });
        let mut arguments: Vec<OsString> = ["map", "-U", "--output=json"]
            .iter()
            .map(OsString::from)
            .collect();
        arguments.push(format!("json:{alone}").into());
        let said = self.programs.qemu_img.run(&arguments).await?;
        let extents: Vec<Extent> = serde_json::from_str(&said).map_err(|error| {
            bad(
                path,
                format!("qemu-img's answer is not understood: {error}"),
            )
        })?;
        Ok(extents.iter().all(|extent| !extent.present))
    }

    async fn freeze(&self, path: &Path) -> Result<()> {
        let path = path.to_owned();
        blocking(move || layers::freeze(&path)).await
    }

    async fn is_frozen(&self, path: &Path) -> Result<bool> {
        let path = path.to_owned();
        blocking(move || layers::is_frozen(&path)).await
    }

    fn owner(&self) -> (u32, u32) {
        let owner = Owner::qemu();
        (owner.uid.as_raw(), owner.gid.as_raw())
    }

    async fn adopt(&self, path: &Path) -> Result<()> {
        let path = path.to_owned();
        blocking(move || {
            let file = open_own(&path)?;
            give(&file, Owner::qemu()).map_err(file_error("give to QEMU", &path))
        })
        .await
    }

    async fn in_use(&self, path: &Path) -> Result<bool> {
        let path = path.to_owned();
        blocking(move || {
            let file = open_plain(&path)?;
            // QEMU holds shared locks on single bytes, one for each thing that it does or forbids to others.
            let mut lock = nix::libc::flock {
                l_type: nix::libc::F_WRLCK as i16,
                l_whence: nix::libc::SEEK_SET as i16,
                l_start: 0,
                l_len: 0,
                l_pid: 0,
            };
            nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_OFD_GETLK(&mut lock))
                .map_err(|error| file_error("look for locks on", &path)(error.into()))?;
            Ok(lock.l_type != nix::libc::F_UNLCK as i16)
        })
        .await
    }

    async fn delete(&self, path: &Path) -> Result<()> {
        let path = path.to_owned();
        blocking(move || {
            layers::delete(&part_path(&path))?;
            layers::delete(&path)
        })
        .await
    }
}

/// What qemu-img says of an image, as far as we read it.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ImageInfo {
    format: String,
    virtual_size: u64,
    backing_filename: Option<String>,
    #[serde(default)]
    encrypted: bool,
    #[serde(default)]
    format_specific: FormatSpecific,
}

#[derive(Deserialize, Default)]
struct FormatSpecific {
    #[serde(default)]
    data: FormatData,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
struct FormatData {
    #[serde(default)]
    corrupt: bool,
    data_file: Option<String>,
}

/// One run of an image's content, of `qemu-img map`.
#[derive(Deserialize)]
struct Extent {
    /// Whether the image says what is there; QEMU before 6.1 does not tell, and then it may.
    #[serde(default = "present_by_default")]
    present: bool,
}

fn present_by_default() -> bool {
    true
}

async fn inspect(qemu_img: &Program, path: &Path, format: Option<&str>) -> Result<VolumeInfo> {
    let looked_at = path.to_owned();
    let (content, allocated) = blocking(move || look_at::<Standalone>(&looked_at)).await?;
    let found = format_of(&content);
    let wanted = match format {
        None => found,
        Some("iso") => "raw",
        Some(wanted @ ("qcow2" | "raw")) => {
            if wanted != found {
                return Err(bad(path, format!("it is {found}, not {wanted}")));
            }
            wanted
        }
        Some(other) => return Err(bad(path, format!("the format {other:?} is not supported"))),
    };
    let info = image_info(qemu_img, path, wanted).await?;
    if info.backing_filename.is_some() {
        return Err(bad(path, DAMAGED));
    }
    Ok(VolumeInfo {
        format: info.format,
        virtual_size: ByteSize(info.virtual_size),
        allocated: ByteSize(allocated),
        bases: Vec::new(),
    })
}

/// A volume of ours and what is below it: each of them looked at by its header before QEMU sees any.
async fn inspect_volume(qemu_img: &Program, path: &Path) -> Result<VolumeInfo> {
    let looked_at = path.to_owned();
    let (bases, allocated) = blocking(move || {
        let bases = layers::bases(&looked_at)?;
        let (_, allocated) = look_at::<Layered>(&looked_at)?;
        for layer in bases.iter().chain([&looked_at]) {
            match look_at::<Layered>(layer)? {
                (Content::Qcow2(_), _) => {}
                (Content::Other { .. }, _) => return Err(bad(layer, "it is raw, not qcow2")),
            }
        }
        Ok((bases, allocated))
    })
    .await?;
    let info = image_info(qemu_img, path, "qcow2").await?;
    Ok(VolumeInfo {
        format: info.format,
        virtual_size: ByteSize(info.virtual_size),
        allocated: ByteSize(allocated),
        bases,
    })
}

const DAMAGED: &str = "it is damaged, encrypted or refers to other files";

/// What qemu-img says of one file, without opening any that is below it.
async fn image_info(qemu_img: &Program, path: &Path, wanted: &str) -> Result<ImageInfo> {
    let mut arguments: Vec<OsString> = ["info", "-U", "--output=json", "-f", wanted]
        .iter()
        .map(OsString::from)
        .collect();
    arguments.push(path.into());
    let said = match qemu_img.run_with(&arguments, None, SHORT).await {
        Ok(said) => said,
        Err(Error::Program { source, .. }) => return Err(bad(path, chain(source.as_ref()))),
        Err(error) => return Err(error),
    };
    let info: ImageInfo = serde_json::from_str(&said).map_err(|error| {
        bad(
            path,
            format!("qemu-img's answer is not understood: {error}"),
        )
    })?;
    let data = &info.format_specific.data;
    if info.format != wanted || info.encrypted || data.corrupt || data.data_file.is_some() {
        return Err(bad(path, DAMAGED));
    }
    Ok(info)
}

/// A full copy of an image and all that it builds on, as one qcow2 volume of `size`.
async fn convert(
    qemu_img: &Program,
    image: &Path,
    source: &VolumeInfo,
    path: &Path,
    size: ByteSize,
) -> Result<()> {
    if source.virtual_size > size {
        return Err(bad(
            image,
            format!("its {} do not fit into {size}", source.virtual_size),
        ));
    }
    let part = Part::beside(path)?;
    let options = ["convert", "-q", "-f", &source.format, "-O", "qcow2"];
    let mut arguments: Vec<OsString> = options.iter().map(OsString::from).collect();
    arguments.extend([image.into(), part.0.clone().into()]);
    qemu_img
        .run_with(&arguments, None, COPY_LIMIT)
        .await
        .map_err(|error| full(error, path))?;
    if source.virtual_size < size {
        resize(qemu_img, &part.0, size, path).await?;
    }
    part.finish(path).await
}

/// `meant` is the volume that an error names.
async fn resize(qemu_img: &Program, file: &Path, size: ByteSize, meant: &Path) -> Result<()> {
    let mut arguments: Vec<OsString> = ["resize", "-q", "-f", "qcow2"]
        .iter()
        .map(OsString::from)
        .collect();
    arguments.extend([file.into(), size.bytes().to_string().into()]);
    let done = qemu_img.run(&arguments).await;
    done.map(drop).map_err(|error| full(error, meant))
}

/// Opens a regular file, never through a link as its last component, never blocking on a pipe.
pub(crate) fn open_plain(path: &Path) -> Result<File> {
    if !path.is_absolute() {
        return Err(bad(path, "its path is not absolute"));
    }
    durable::open_expected(path, &Expected::any()).map_err(|error| match Unexpected::of(&error) {
        Some(Unexpected { is, .. }) => bad(path, format!("it is {is}")),
        None => file_error("open", path)(error),
    })
}

/// Opens a file that was just made here, to be given to QEMU: never one that has another name elsewhere.
fn open_own(path: &Path) -> Result<File> {
    let own = Expected::at_most(u64::MAX).or_of(Owner::qemu().uid.as_raw());
    durable::open_expected(path, &own).map_err(file_error("open", path))
}

/// What the header of a file says, and the bytes that the file takes.
fn look_at<R: Rules>(path: &Path) -> Result<(Content<R::Base>, u64)> {
    let mut file = open_plain(path)?;
    let found = file.metadata().map_err(file_error("look at", path))?;
    Ok((read_head::<R>(&mut file, path)?, found.blocks() * 512))
}

/// Reads the header of an open file, from its beginning.
pub(crate) fn read_head<R: Rules>(file: &mut File, path: &Path) -> Result<Content<R::Base>> {
    let mut head = Vec::with_capacity(image::HEAD);
    file.take(image::HEAD as u64)
        .read_to_end(&mut head)
        .map_err(file_error("read", path))?;
    image::read::<R>(&head).map_err(|refusal| bad(path, refusal.to_string()))
}

/// The format by which QEMU opens such a file.
fn format_of<Base>(content: &Content<Base>) -> &'static str {
    match content {
        Content::Qcow2(_) => "qcow2",
        Content::Other { .. } => "raw",
    }
}

/// Whether the volume is there already. Volumes appear whole, so one of the right size is done.
async fn exists_as_wanted(qemu_img: &Program, path: &Path, size: ByteSize) -> Result<bool> {
    match inspect(qemu_img, path, Some("qcow2")).await {
        Ok(info) if info.virtual_size == size => Ok(true),
        Ok(info) => Err(bad(
            path,
            format!(
                "it exists already and holds {}, not {size}",
                info.virtual_size
            ),
        )),
        Err(Error::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A file under construction; removed unless finished.
struct Part(PathBuf);

impl Part {
    fn beside(path: &Path) -> Result<Self> {
        let part = part_path(path);
        durable::remove(&part).map_err(file_error("remove", &part))?;
        Ok(Self(part))
    }

    /// Gives it to QEMU and moves it into place, durably.
    async fn finish(self, path: &Path) -> Result<()> {
        let path = path.to_owned();
        blocking(move || {
            let file = open_own(&self.0)?;
            give(&file, Owner::qemu()).map_err(file_error("give to QEMU", &self.0))?;
            durable::put(&self.0, &path).map_err(not_written("put in place", &path))
        })
        .await
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove.
        durable::discard(&self.0);
    }
}

fn part_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".part");
    path.with_file_name(name)
}

fn give(file: &File, owner: Owner) -> io::Result<()> {
    std::os::unix::fs::fchown(file, Some(owner.uid.as_raw()), Some(owner.gid.as_raw()))?;
    file.set_permissions(fs::Permissions::from_mode(0o600))
}

/// As [`file_error`]; a full disk has an error of its own.
pub(crate) fn not_written(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |error| {
        if durable::is_full(&error) {
            Error::NoSpace { path }
        } else {
            file_error(what, &path)(error)
        }
    }
}

/// qemu-img's complaint about a full disk has a name of its own.
fn full(error: Error, path: &Path) -> Error {
    match error {
        Error::Program { source, .. } if said::of_full_disk(source.as_ref()) => Error::NoSpace {
            path: path.to_owned(),
        },
        other => other,
    }
}

pub(crate) fn bad(path: &Path, because: impl Into<String>) -> Error {
    Error::BadImage {
        path: path.to_owned(),
        because: because.into(),
    }
}

pub(crate) fn file_error(
    attempt: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |source| Error::File {
        attempt,
        path,
        source,
    }
}

/// Runs file work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(Error::Unavailable("file work was abandoned".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::Mode;

    /// What lies in a pool by mistake, or because the pool is not root's alone, neither blocks nor is given away.
    #[test]
    fn what_is_no_plain_file_is_not_opened_and_what_has_a_second_name_not_given_to_qemu() {
        let pool = tempfile::tempdir().unwrap();
        let (volume, secret) = (pool.path().join("v.qcow2"), pool.path().join("secret"));
        fs::write(&secret, b"a key").unwrap();
        let plants: [&dyn Fn() -> io::Result<()>; 3] = [
            &|| std::os::unix::fs::symlink(&secret, &volume),
            &|| Ok(nix::unistd::mkfifo(&volume, Mode::S_IRUSR)?),
            &|| fs::create_dir(&volume),
        ];
        for plant in plants {
            plant().unwrap();
            assert!(matches!(open_plain(&volume), Err(Error::BadImage { .. })));
            assert!(open_own(&volume).is_err());
            fs::remove_file(&volume)
                .or_else(|_| fs::remove_dir(&volume))
                .unwrap();
        }
        // A backup may be a second name of a volume; nothing that was just made has one.
        fs::hard_link(&secret, &volume).unwrap();
        assert!(open_plain(&volume).is_ok());
        let refused = open_own(&volume).unwrap_err();
        assert!(matches!(refused, Error::File { source, .. } if Unexpected::of(&source).is_some()));
        fs::remove_file(&secret).unwrap();
        assert!(open_own(&volume).is_ok());
    }
}

//! Which libtpms swtpm really runs with: what a swtpm of its own has mapped, and not what a package says.
//!
//! The format of a TPM's state is the library's. libtpms names its file after its version (`libtpms.so.0.9.2`), and the
//! kernel tells the file behind every link that led to it.

use crate::program::Programs;
use crate::tpm_process::PROC;
use command_fds::FdMapping;
use fleetward_model::host::Version;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Where swtpm finds its end of the control channel.
const CONTROL_FD: i32 = 3;
/// How long it may take until swtpm has its libraries: less than the agent waits for all that it tells of its host.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// What the loader reads to find libraries; it is written anew when one comes or goes.
const LOADERS_CACHE: &str = "/etc/ld.so.cache";

/// The version that was found, for as long as nothing has changed that it depends on.
#[derive(Debug, Default)]
pub(crate) struct TpmLibrary(Mutex<Option<Known>>);

#[derive(Debug)]
struct Known {
    version: Version,
    /// swtpm, the library, the loader's cache, as they were.
    seen: [Stamp; 3],
}

/// A file, and which one it is: another in its place, or another content, is another stamp.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stamp {
    path: PathBuf,
    what: Option<(u64, u64, i64, i64)>,
}

impl Stamp {
    fn of(path: &Path) -> Self {
        let found = std::fs::metadata(path).ok();
        Self {
            path: path.to_owned(),
            what: found.map(|f| (f.dev(), f.ino(), f.mtime(), f.mtime_nsec())),
        }
    }

    fn holds(&self) -> bool {
        Self::of(&self.path) == *self
    }
}

impl TpmLibrary {
    /// None where there is no swtpm, or it cannot be told.
    pub(crate) async fn version(&self, programs: &Programs) -> Option<Version> {
        let swtpm = programs.swtpm.as_ref()?.path();
        if let Some(known) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner)
            && known.seen[0].path == swtpm
            && known.seen.iter().all(Stamp::holds)
        {
            return Some(known.version);
        }
        // Before the library is looked for: what changes meanwhile shows the next time.
        let (program, cache) = (Stamp::of(swtpm), Stamp::of(Path::new(LOADERS_CACHE)));
        let library = mapped_by_a_new_one(programs).await?;
        let version = version_of(&library)?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Known {
            version,
            seen: [program, Stamp::of(&library), cache],
        });
        Some(version)
    }
}

/// Starts a swtpm that waits to be powered on, which nobody does: it opens no state, and ends here.
async fn mapped_by_a_new_one(programs: &Programs) -> Option<PathBuf> {
    let (ours, its) = UnixStream::pair().ok()?;
    let arguments = [
        "socket",
        "--tpm2",
        "--tpmstate",
        "dir=/nonexistent",
        "--ctrl",
        &format!("type=unixio,clientfd={CONTROL_FD}"),
    ];
    let control = FdMapping {
        parent_fd: its.into(),
        child_fd: CONTROL_FD,
    };
    let swtpm = programs.swtpm.as_ref()?;
    let mut child = swtpm.spawn(&arguments, vec![control]).ok()?;
    let maps = Path::new(PROC).join(child.id()?.to_string()).join("maps");
    let look = async {
        loop {
            if let Some(library) = library_in(&std::fs::read_to_string(&maps).ok()?) {
                return Some(library);
            }
            // What has ended has mapped nothing, and would be looked at in vain.
            if child.try_wait().ok()?.is_some() {
                return None;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, look).await.ok().flatten();
    drop(ours);
    // That it has ended already is what we want.
    let _ = child.kill().await;
    found
}

/// Source: proc(5), `/proc/pid/maps`.
fn library_in(maps: &str) -> Option<PathBuf> {
    maps.lines()
        .filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])))
        .find(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with("libtpms.so."))
        })
        .map(Path::to_owned)
}

/// `libtpms.so.0.9.2`; a file that was renamed to what links are called tells nothing.
fn version_of(library: &Path) -> Option<Version> {
    let name = library.file_name()?.to_str()?;
    let version = name.strip_prefix("libtpms.so.")?;
    let parts = version.split('.');
    let whole = parts.clone().count() == 3
        && parts
            .into_iter()
            .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    whole.then(|| version.parse().ok())?
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "tests make files as they like")]
mod tests {
    use super::*;
    use crate::program::Program;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn the_library_is_the_file_that_is_mapped_and_its_name_the_version() {
        let maps = "55d0-55d1 r--p 00000000 fe:00 1 /usr/bin/swtpm\n\
                    7f01-7f02 r--p 00000000 fe:00 2    /usr/lib/swtpm/libswtpm_libtpms.so.0.0.0\n\
                    7f03-7f04 rw-p 00000000 00:00 0\n\
                    7f05-7f06 r--p 00000000 fe:00 3    /usr/lib/my libs/libtpms.so.0.10.1\n";
        let library = library_in(maps).expect("a library");
        assert_eq!(library, Path::new("/usr/lib/my libs/libtpms.so.0.10.1"));
        for (name, expected) in [
            ("/usr/lib/libtpms.so.0.10.1", Some(Version::new(0, 10, 1))),
            ("/usr/lib/libtpms.so.0", None),
            ("/usr/lib/libtpms.so.0.9", None),
            ("/usr/lib/libtpms.so.0.9.x", None),
            ("/usr/lib/libtpms.so.0.9.2 (deleted)", None),
            ("/usr/lib/libtpms.a", None),
        ] {
            assert_eq!(version_of(Path::new(name)), expected, "{name}");
        }
        assert_eq!(library_in("7f03-7f04 rw-p 00000000 00:00 0\n"), None);
    }

    /// The machine's library under the name of another version, in front of which a script puts swtpm.
    #[tokio::test]
    async fn another_library_under_the_same_swtpm_is_told_and_noticed_when_it_comes() {
        let Some(swtpm) = Program::find("swtpm") else {
            println!("skipped: no swtpm");
            return;
        };
        let mut programs = Programs::find().expect("the programs");
        let known = TpmLibrary::default();
        let here = known.version(&programs).await.expect("libtpms' version");
        assert_eq!(known.version(&programs).await, Some(here));
        let library = mapped_by_a_new_one(&programs).await.expect("a library");

        let dir = tempfile::tempdir().expect("directory");
        let planted = dir.path().join("libtpms.so.0.99.7");
        std::fs::copy(&library, &planted).expect("a copy");
        symlink("libtpms.so.0.99.7", dir.path().join("libtpms.so.0")).expect("a link");
        let wrapper = dir.path().join("swtpm");
        let script = format!(
            "#!/bin/sh\nLD_LIBRARY_PATH={} exec {} \"$@\"\n",
            dir.path().display(),
            swtpm.path().display()
        );
        std::fs::write(&wrapper, script).expect("a script");
        std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).expect("mode");
        programs.swtpm = Some(Program::at("swtpm", wrapper));
        let there = known.version(&programs).await;
        assert_eq!(there, Some(Version::new(0, 99, 7)));

        // The package is upgraded under a running agent.
        let upgraded = dir.path().join("libtpms.so.0.99.8");
        std::fs::rename(&planted, &upgraded).expect("renamed");
        std::fs::remove_file(dir.path().join("libtpms.so.0")).expect("removed");
        symlink("libtpms.so.0.99.8", dir.path().join("libtpms.so.0")).expect("a link");
        let there = known.version(&programs).await;
        assert_eq!(there, Some(Version::new(0, 99, 8)));

        // One that does nothing is found out at once: a host's facts wait for this.
        programs.swtpm = Some(Program::at("swtpm", PathBuf::from("/bin/false")));
        let begin = std::time::Instant::now();
        assert_eq!(known.version(&programs).await, None);
        assert!(begin.elapsed() < PATIENCE, "{:?}", begin.elapsed());
    }
}

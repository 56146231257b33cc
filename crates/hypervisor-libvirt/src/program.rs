//! Starts other programs: absolute path, argument vector, empty environment, time limit, output limit, no processes
//! left behind.

use command_fds::{CommandFdExt, FdMapping};
use fleetward_hypervisor::{Cause, Error, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};

/// Where programs are looked for; nothing that a user can write to.
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Limit for programs that only look or make something small.
pub(crate) const SHORT: Duration = Duration::from_secs(60);
/// Bytes of output kept; programs of ours never come near.
const OUTPUT_LIMIT: u64 = 1 << 20;

/// Where a program finds the secret it is given.
pub(crate) const SECRET_FD: i32 = 3;

/// The programs this crate uses, found once.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) qemu_img: Program,
    /// None: no VM with a TPM can run here, all else can.
    pub(crate) swtpm: Option<Program>,
    pub(crate) swtpm_setup: Option<Program>,
    pub(crate) swtpm_ioctl: Option<Program>,
}

impl Programs {
    pub(crate) fn find() -> Result<Self> {
        Ok(Self {
            qemu_img: Program::find("qemu-img").ok_or_else(|| missing("qemu-img"))?,
            swtpm: Program::find("swtpm"),
            swtpm_setup: Program::find("swtpm_setup"),
            swtpm_ioctl: Program::find("swtpm_ioctl"),
        })
    }
}

pub(crate) fn missing(program: &'static str) -> Error {
    Error::Program {
        program,
        source: "it is not installed".into(),
    }
}

/// A program at a fixed place.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    name: &'static str,
    path: PathBuf,
}

impl Program {
    pub(crate) fn find(name: &'static str) -> Option<Self> {
        SEARCH_PATH
            .split(':')
            .map(|directory| Path::new(directory).join(name))
            .find(|path| path.is_file())
            .map(|path| Self { name, path })
    }

    #[cfg(test)]
    pub(crate) fn at(name: &'static str, path: PathBuf) -> Self {
        Self { name, path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs it to its end; standard output as text.
    ///
    /// # Errors
    /// `Program` with its last words on standard error.
    pub(crate) async fn run(&self, arguments: &[impl AsRef<OsStr>]) -> Result<String> {
        self.run_with(arguments, None, SHORT).await
    }

    /// A pipe that holds a few secret bytes and nothing after them: its reading end.
    pub(crate) fn pipe_with(&self, secret: &[u8]) -> Result<OwnedFd> {
        let failed = |error: std::io::Error| Error::Program {
            program: self.name,
            source: error.into(),
        };
        let (reader, mut writer) = std::io::pipe().map_err(failed)?;
        // A few bytes fit into any pipe before somebody reads.
        writer.write_all(secret).map_err(failed)?;
        Ok(reader.into())
    }

    pub(crate) fn spawn(
        &self,
        arguments: &[impl AsRef<OsStr>],
        descriptors: Vec<FdMapping>,
    ) -> Result<Child> {
        let failed = |source: Cause| Error::Program {
            program: self.name,
            source,
        };
        let mut command = Command::new(&self.path);
        if !descriptors.is_empty() {
            command
                .fd_mappings(descriptors)
                .map_err(|error| failed(error.into()))?;
        }
        // The command holds our ends of the descriptors: it goes before anybody waits for their end.
        command
            .args(arguments)
            .env_clear()
            .env("PATH", SEARCH_PATH)
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // In its own process group, so that the processes that it starts end with it.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed(error.into()))
    }

    /// Runs it with a secret that it can read from the descriptor [`SECRET_FD`]: a pipe, written once, and nowhere
    /// else. Not standard input: swtpm_setup gives the swtpm it starts an empty one, which then takes the empty text
    /// for the key without a word.
    pub(crate) async fn run_with(
        &self,
        arguments: &[impl AsRef<OsStr>],
        secret: Option<&[u8]>,
        limit: Duration,
    ) -> Result<String> {
        let failed = |source: Cause| Error::Program {
            program: self.name,
            source,
        };
        let mut descriptors = Vec::new();
        if let Some(secret) = secret {
            descriptors.push(FdMapping {
                parent_fd: self.pipe_with(secret)?,
                child_fd: SECRET_FD,
            });
        }
        let mut child = self.spawn(arguments, descriptors)?;
        let mut group = Group::of(&child);
        let stdout = child.stdout.take();
        let stderr = child.stderr.take();
        let work = async {
            let (said, complained, status) =
                tokio::join!(read_up_to(stdout), read_up_to(stderr), child.wait());
            (said, complained, status)
        };
        let Ok((said, complained, status)) = tokio::time::timeout(limit, work).await else {
            return Err(failed(
                format!("no end within {} s", limit.as_secs()).into(),
            ));
        };
        let status = status.map_err(|error| failed(error.into()))?;
        group.ended();
        if status.success() {
            Ok(said)
        } else {
            let last = last_words(&complained)
                .or_else(|| last_words(&said))
                .unwrap_or_else(|| status.to_string());
            Err(failed(last.into()))
        }
    }
}

/// Kills what is left of a process group when the run is given up: also what its leader has just started, and what has not
/// asked yet to end with its leader.
pub(crate) struct Group(Option<u32>);

impl Group {
    /// The group of a process that was started as the leader of one.
    pub(crate) fn of(leader: &Child) -> Self {
        Self(leader.id())
    }

    /// The leader has come to its own end.
    pub(crate) fn ended(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0.and_then(|pid| i32::try_from(pid).ok()) {
            // Not there any more is what we want.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// Reads to the end, so that the writer never blocks, and keeps the beginning.
async fn read_up_to(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else {
        return String::new();
    };
    let mut kept = Vec::new();
    let _ = (&mut stream)
        .take(OUTPUT_LIMIT)
        .read_to_end(&mut kept)
        .await;
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&kept).into_owned()
}

/// The last three lines that say anything.
fn last_words(text: &str) -> Option<String> {
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    (!lines.is_empty()).then(|| lines[lines.len().saturating_sub(3)..].join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_does_not_end_is_killed_with_its_children() {
        let sh = Program::find("sh").expect("a shell");
        let marker = format!("{}", 86_000 + std::process::id() % 1000);
        let script = format!("sleep {marker} & wait");
        let result = sh
            .run_with(&["-c", &script], None, Duration::from_millis(300))
            .await;
        assert!(matches!(result, Err(Error::Program { .. })));
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while sleeps(&marker) {
            assert!(std::time::Instant::now() < deadline, "the child lives on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn sleeps(argument: &str) -> bool {
        std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            std::fs::read(entry.path().join("cmdline"))
                .is_ok_and(|text| text == format!("sleep\0{argument}\0").as_bytes())
        })
    }

    #[tokio::test]
    async fn the_last_words_of_a_failed_program_are_the_reason() {
        let sh = Program::find("sh").expect("a shell");
        let error = sh.run(&["-c", "echo one >&2; exit 3"]).await.unwrap_err();
        assert_eq!(fleetward_model::error::chain(&error), "sh failed: one");
        let echoed = sh
            .run_with(&["-c", "cat <&3"], Some(b"through a pipe"), SHORT)
            .await;
        assert_eq!(echoed.unwrap(), "through a pipe");
    }
}

//! Runs a program that reads foreign bytes where it can do no harm.
//!
//! ```text
//!   choom 1000, nice 10      the kernel takes its memory first, VMs keep their processors
//!     bwrap                  own mount, PID, network, IPC, UTS and cgroup namespaces; dies with the agent
//!                            a filter of system calls holds from here on
//!       setpriv              an unprivileged user; no capability, and none to be had again
//!         prlimit            memory, processor time, size of files, number of processes and files
//!           PROGRAM          sees /usr, the one input and the one output
//! ```
//! This module knows no formats. A wall-clock deadline holds beside the limits of the kernel.

use crate::program::{Group, Program};
use crate::syscalls;
use command_fds::{CommandFdExt, FdMapping};
use nix::sys::resource::{
    Resource::{self, RLIMIT_AS, RLIMIT_CPU, RLIMIT_FSIZE, RLIMIT_NOFILE, RLIMIT_NPROC},
    getrlimit,
};
use nix::unistd::{Gid, Uid, User};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStdout, Command};
use tokio::task::JoinHandle;

/// Bytes kept of what a program says on standard error.
const SAID_LIMIT: u64 = 64 << 10;
/// Open files.
const FILES: u32 = 64;
/// Where bwrap finds the filters of system calls; its arguments name the same numbers.
const FILTERS: [i32; 2] = [3, 4];
/// The first descriptor that a program can be given.
pub(crate) const FIRST_FD: i32 = 5;
/// Exit status of a shell's child that a signal ended; bwrap does the same.
const BY_SIGNAL: i32 = 128;

/// What one run may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Bytes of address space.
    pub(crate) memory: u64,
    /// Of the processor and of the clock alike.
    pub(crate) time: Duration,
    /// Bytes of a file that it writes.
    pub(crate) output: u64,
    /// Threads and processes of its user on the whole host.
    pub(crate) processes: u32,
}

/// A file or directory that the program sees.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shown<'a> {
    pub(crate) path: &'a Path,
    /// Its name inside.
    pub(crate) inside: &'static str,
    pub(crate) writable: bool,
}

/// The programs that make a confinement, and the user inside.
#[derive(Debug, Clone)]
pub(crate) struct Confinement {
    choom: Program,
    nice: Program,
    bwrap: Program,
    setpriv: Program,
    prlimit: Program,
    uid: Uid,
    gid: Gid,
    filters: [Vec<u8>; 2],
}

/// How a run ended that did not end well.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It refused; its last words.
    Refused(String),
    /// It used more than its limits allow: which.
    OverLimit(&'static str),
    /// A signal ended it.
    Crashed(i32),
    /// The confinement could not be made; nothing ran.
    NotConfined(String),
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(said) => f.write_str(said),
            Self::OverLimit(what) => write!(f, "it used more than its limit of {what}"),
            Self::Crashed(signal) => write!(f, "signal {signal} ended it"),
            Self::NotConfined(said) => write!(f, "it cannot be confined: {said}"),
        }
    }
}

/// No more than the agent's own hard limit, which the unprivileged user inside cannot raise: on a host with little memory
/// the kernel's own limit of processes is below what a run may use elsewhere.
fn within(resource: Resource, wanted: u64) -> u64 {
    getrlimit(resource).map_or(wanted, |(_, hard)| wanted.min(hard))
}

impl Confinement {
    /// Finds the programs and the user.
    ///
    /// # Errors
    /// A sentence that names what is missing.
    pub(crate) fn find(user: &str) -> Result<Self, String> {
        let found = User::from_name(user)
            .ok()
            .flatten()
            .ok_or_else(|| format!("there is no user {user:?} (conversion_user)"))?;
        if found.uid.is_root() || found.gid.as_raw() == 0 {
            return Err(format!(
                "the user {user:?} (conversion_user) is root; foreign files are read by an unprivileged user only"
            ));
        }
        Self::of(found.uid, found.gid)
    }

    /// Of a user that is known not to be root.
    ///
    /// # Errors
    /// A sentence that names what is missing.
    pub(crate) fn of(uid: Uid, gid: Gid) -> Result<Self, String> {
        let program = |name: &'static str, package: &str| {
            Program::find(name).ok_or_else(|| {
                format!("the program {name} is not installed (Debian package {package})")
            })
        };
        Ok(Self {
            choom: program("choom", "util-linux")?,
            nice: program("nice", "coreutils")?,
            bwrap: program("bwrap", "bubblewrap")?,
            setpriv: program("setpriv", "util-linux")?,
            prlimit: program("prlimit", "util-linux")?,
            uid,
            gid,
            filters: syscalls::filters()?,
        })
    }

    /// Gives a file to the user inside.
    pub(crate) fn give(&self, file: &File) -> std::io::Result<()> {
        std::os::unix::fs::fchown(file, Some(self.uid.as_raw()), Some(self.gid.as_raw()))
    }

    /// Starts `program`. What it writes to standard output is the caller's to read. It gets `descriptors` beside standard
    /// input, output and error; their numbers are [`FIRST_FD`] and above.
    pub(crate) fn start(
        &self,
        program: &Program,
        arguments: &[impl AsRef<OsStr>],
        shown: &[Shown<'_>],
        input: Option<File>,
        descriptors: Vec<FdMapping>,
        limits: Limits,
    ) -> std::io::Result<Running> {
        let mut command = Command::new(self.choom.path());
        command
            .args(["-n", "1000", "--"])
            .arg(self.nice.path())
            .args(["-n", "10"])
            .arg(self.bwrap.path())
            .args(self.namespaces(shown))
            .arg("--")
            .arg(self.setpriv.path())
            .arg(format!("--reuid={}", self.uid))
            .arg(format!("--regid={}", self.gid))
            .args([
                "--clear-groups",
                "--no-new-privs",
                "--inh-caps=-all",
                "--bounding-set=-all",
                "--",
            ])
            .arg(self.prlimit.path())
            .arg(format!("--as={}", within(RLIMIT_AS, limits.memory)))
            .arg(format!(
                "--cpu={}",
                within(RLIMIT_CPU, limits.time.as_secs().max(1))
            ))
            .arg(format!("--fsize={}", within(RLIMIT_FSIZE, limits.output)))
            .arg(format!(
                "--nproc={}",
                within(RLIMIT_NPROC, limits.processes.into())
            ))
            .arg(format!("--nofile={}", within(RLIMIT_NOFILE, FILES.into())))
            .args(["--core=0", "--memlock=0", "--msgqueue=0", "--"])
            .arg(program.path())
            .args(arguments)
            .env_clear()
            .current_dir("/")
            .stdin(input.map_or_else(Stdio::null, Stdio::from))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let mut mappings = self.filters()?;
        mappings.extend(descriptors);
        command
            .fd_mappings(mappings)
            .map_err(std::io::Error::other)?;
        let mut child = command.spawn()?;
        // It holds our ends of the pipes.
        drop(command);
        let said = tokio::spawn(read_beginning(child.stderr.take()));
        Ok(Running {
            group: Group::of(&child),
            child,
            said,
            time: limits.time,
        })
    }

    /// The filters of system calls, each in a pipe: a few hundred bytes, which fit before somebody reads.
    fn filters(&self) -> std::io::Result<Vec<FdMapping>> {
        let filters = FILTERS.into_iter().zip(&self.filters);
        let pipes = filters.map(|(child_fd, filter)| {
            let (reader, mut writer) = std::io::pipe()?;
            writer.write_all(filter)?;
            Ok(FdMapping {
                parent_fd: reader.into(),
                child_fd,
            })
        });
        pipes.collect()
    }

    fn namespaces(&self, shown: &[Shown<'_>]) -> Vec<OsString> {
        let mut all: Vec<OsString> = [
            "--unshare-pid",
            "--unshare-net",
            "--unshare-ipc",
            "--unshare-uts",
            "--unshare-cgroup-try",
            "--die-with-parent",
            "--new-session",
            "--hostname",
            "confined",
            // setpriv needs these to give them up.
            "--cap-drop",
            "ALL",
            "--cap-add",
            "CAP_SETUID",
            "--cap-add",
            "CAP_SETGID",
            "--cap-add",
            "CAP_SETPCAP",
            "--clearenv",
            "--setenv",
            "LC_ALL",
            "C",
            // Each arena of the C library takes address space.
            "--setenv",
            "MALLOC_ARENA_MAX",
            "2",
            "--add-seccomp-fd",
            "3",
            "--add-seccomp-fd",
            "4",
            "--dev",
            "/dev",
            "--chdir",
            "/",
            "--ro-bind-try",
            "/etc/ld.so.cache",
            "/etc/ld.so.cache",
        ]
        .map(OsString::from)
        .into();
        for directory in ["/usr", "/bin", "/lib", "/lib64"] {
            if Path::new(directory).is_dir() {
                all.extend(["--ro-bind", directory, directory].map(OsString::from));
            }
        }
        for file in shown {
            let kind = if file.writable { "--bind" } else { "--ro-bind" };
            all.extend([kind.into(), file.path.into(), file.inside.into()]);
        }
        all
    }
}

/// A run that has begun. Dropping it ends all of its processes.
pub(crate) struct Running {
    child: Child,
    /// Killed in its first moment, bwrap leaves a child that waits for it for ever.
    group: Group,
    said: JoinHandle<String>,
    time: Duration,
}

impl Running {
    /// What the program writes; to be read to its end, or closed.
    pub(crate) fn output(&mut self) -> ChildStdout {
        self.child.stdout.take().expect("asked for once")
    }

    /// Its last words, where it has ended already.
    pub(crate) async fn ended_early(&mut self) -> Option<Ended> {
        let status = self.child.try_wait().ok().flatten()?;
        self.group.ended();
        let said = (&mut self.said).await.unwrap_or_default();
        ended(status, &said)
    }

    /// Does `work` while it runs, and waits for its end, all within its time. A failure of `work` ends it at once.
    pub(crate) async fn end<T, E>(
        mut self,
        work: impl Future<Output = Result<T, E>>,
    ) -> Result<Result<T, Ended>, E> {
        let run = async {
            let done = work.await?;
            Ok::<_, E>((done, self.child.wait().await))
        };
        let (done, status) = match tokio::time::timeout(self.time, run).await {
            Ok(Ok(run)) => run,
            Ok(Err(failed)) => {
                let _ = self.child.kill().await;
                return Err(failed);
            }
            Err(_) => {
                let _ = self.child.kill().await;
                return Ok(Err(Ended::OverLimit("time")));
            }
        };
        let said = (&mut self.said).await.unwrap_or_default();
        let failed = match status {
            Ok(status) => {
                self.group.ended();
                ended(status, &said)
            }
            Err(error) => Some(Ended::NotConfined(error.to_string())),
        };
        Ok(match failed {
            None => Ok(done),
            Some(failed) => Err(failed),
        })
    }
}

fn ended(status: ExitStatus, said: &str) -> Option<Ended> {
    let said_line = in_one_line(said);
    let own = ["choom:", "nice:", "bwrap:", "setpriv:", "prlimit:"];
    let refused_memory = ["memory exhausted", "Cannot allocate memory"];
    Some(match status.code() {
        Some(0) => return None,
        Some(code) if (BY_SIGNAL + 1..BY_SIGNAL + 65).contains(&code) => {
            by_signal(code - BY_SIGNAL, said)
        }
        Some(_) if refused_memory.iter().any(|words| said.contains(words)) => {
            Ended::OverLimit("memory")
        }
        Some(_) if own.iter().any(|program| said_line.starts_with(program)) => {
            Ended::NotConfined(said_line)
        }
        Some(code) if said_line.is_empty() => {
            Ended::Refused(format!("it ended with status {code}"))
        }
        Some(_) => Ended::Refused(said_line),
        None => Ended::Crashed(nix::libc::SIGKILL),
    })
}

fn by_signal(signal: i32, said: &str) -> Ended {
    match signal {
        nix::libc::SIGXFSZ => Ended::OverLimit("output"),
        nix::libc::SIGXCPU => Ended::OverLimit("time"),
        // How glib, and the allocators of other programs, end when memory is refused.
        _ if said.contains("failed to allocate") || said.contains("out of memory") => {
            Ended::OverLimit("memory")
        }
        signal => Ended::Crashed(signal),
    }
}

/// What was said, as one line without control characters, of at most 400: it may quote the file's author.
fn in_one_line(said: &str) -> String {
    let lines: Vec<_> = said.split_whitespace().collect();
    let plain = lines.join(" ");
    plain
        .chars()
        .filter(|c| !c.is_control())
        .take(400)
        .collect()
}

/// Reads to the end, so that the writer never blocks, and keeps the beginning.
async fn read_beginning(stream: Option<impl AsyncRead + Unpin>) -> String {
    let Some(mut stream) = stream else {
        return String::new();
    };
    let mut kept = Vec::new();
    let _ = (&mut stream).take(SAID_LIMIT).read_to_end(&mut kept).await;
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&kept).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn how_a_run_ended_is_told_by_status_and_last_words() {
        let status = |code: i32| ExitStatus::from_raw(code << 8);
        let ended = |code, said| ended(status(code), said);
        assert!(ended(0, "").is_none());
        assert!(matches!(ended(153, ""), Some(Ended::OverLimit("output"))));
        assert!(matches!(ended(152, ""), Some(Ended::OverLimit("time"))));
        assert!(matches!(ended(139, ""), Some(Ended::Crashed(11))));
        let glib = "GLib-ERROR **: 13:00:00: ../glib/gmem.c:106: failed to allocate 99 bytes";
        assert!(matches!(ended(133, glib), Some(Ended::OverLimit("memory"))));
        assert!(matches!(
            ended(1, "bwrap: Creating new namespace failed"),
            Some(Ended::NotConfined(_))
        ));
        let Some(Ended::Refused(said)) = ended(1, "qemu-img: \x1b[2Jbad\nsecond\n\n") else {
            panic!("it refused");
        };
        assert_eq!(said, "qemu-img: [2Jbad second");
    }

    /// Runs a script of the shell in the confinement; what it prints.
    async fn script(script: &str, shown: &[Shown<'_>], limits: Limits) -> Result<String, Ended> {
        let confinement = Confinement::find("nobody").expect("the programs");
        let shell = Program::find("bash").expect("a shell");
        let started = confinement.start(&shell, &["-c", script], shown, None, Vec::new(), limits);
        let mut running = started.expect("it starts");
        let mut from = running.output();
        let said = async {
            let mut said = String::new();
            from.read_to_string(&mut said).await.map(|_| said)
        };
        running.end(said).await.expect("text")
    }

    const LIMITS: Limits = Limits {
        memory: 256 << 20,
        time: Duration::from_secs(5),
        output: 1 << 20,
        processes: 512,
    };

    #[tokio::test]
    async fn what_runs_there_is_nobody_and_sees_two_files() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "content").expect("written");
        let confinement = Confinement::find("nobody").expect("the programs");
        confinement.give(file.as_file()).expect("given");
        let shown = [Shown {
            path: file.path(),
            inside: "/in",
            writable: false,
        }];
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a socket");
        let port = listener.local_addr().expect("an address").port();
        let tries = format!(
            "id -u; cat /in; echo; echo /*; ulimit -v -f -c
             for try in 'echo x > /in' 'touch /new' 'touch /usr/new' 'ls /etc' 'ls /proc' 'ls /root' \
                        'unshare -m true' 'unshare -U true' 'unshare -rn true' 'kill -0 1' ': > /dev/tcp/127.0.0.1/{port}'; do
                 (eval \"$try\") 2> /dev/null && echo \"it can: $try\"
             done; true"
        );
        let said = script(&tries, &shown, LIMITS).await.expect("it runs");
        assert!(!said.contains("it can"), "{said}");
        let mut lines = said.lines();
        let nobody = confinement.uid.to_string();
        assert_eq!(lines.next(), Some(nobody.as_str()), "{said}");
        assert_eq!(lines.next(), Some("content"), "{said}");
        let seen = lines.next().unwrap_or_default().split(' ');
        let known = ["/bin", "/dev", "/etc", "/in", "/lib", "/lib64", "/usr"];
        for name in seen {
            assert!(known.contains(&name), "{name} is seen there");
        }
        for limit in ["-v) 262144", "-f) 1024", "-c) 0"] {
            assert!(said.contains(limit), "{limit}: {said}");
        }
        assert!(listener.accept().is_err(), "it reached the network");
    }

    #[tokio::test]
    async fn a_limit_ends_what_goes_beyond_it() {
        let ended = |limits, script: &'static str| async move {
            self::script(script, &[], limits)
                .await
                .expect_err("it ends")
        };
        let short = Limits {
            time: Duration::from_secs(1),
            ..LIMITS
        };
        let endless = ended(short, "while :; do :; done").await;
        assert!(matches!(endless, Ended::OverLimit("time")), "{endless:?}");
        let idle = ended(short, "sleep 100").await;
        assert!(matches!(idle, Ended::OverLimit("time")), "{idle:?}");
        let writing = ended(LIMITS, "cat /dev/zero > /dev/shm/file").await;
        assert!(
            matches!(writing, Ended::OverLimit("output") | Ended::Refused(_)),
            "{writing:?}"
        );
        let growing = ended(LIMITS, "x=x; while :; do x=$x$x; done").await;
        assert!(
            matches!(growing, Ended::OverLimit("memory") | Ended::Refused(_)),
            "{growing:?}"
        );
    }

    #[tokio::test]
    async fn a_limit_above_the_hosts_own_does_not_keep_a_program_from_running() {
        let (_, hard) = getrlimit(RLIMIT_NPROC).expect("the limit");
        let limits = Limits {
            processes: u32::MAX,
            ..LIMITS
        };
        let said = script("ulimit -u", &[], limits).await.expect("it runs");
        let expected = hard.min(u32::MAX.into()).to_string();
        assert_eq!(said.trim(), expected);
    }

    #[test]
    fn root_and_unknown_users_are_refused() {
        assert!(Confinement::find("root").is_err());
        assert!(Confinement::find("no-such-user-here").is_err());
    }
}

//! Runs swtpm on TPM state: proves that a key opens it, encrypts it under another key, clears its lockout counter.
//!
//! ```text
//!  state ─► swtpm(old key) ── migration blob under the new key ──► swtpm(new key) ─► state' ─► proved: new opens, old not
//! ```
//! All files are in a private directory on a file system in memory. State is never there in clear text, and no files
//! of a VM are touched. The agent makes swtpm's control socket and passes it on, so it need not wait for the socket to
//! appear.
//!
//! The state may be anybody's who could write it, and swtpm is a program in C: it runs in a
//! [confinement](crate::confined), as the user that swtpm runs as for libvirt, and sees one directory of its own.

use crate::confined::{Confinement, FIRST_FD, Limits, Running, Shown};
use crate::host::LibvirtHost;
use crate::owner::Owner;
use crate::program::{Program, Programs, SHORT, missing};
use crate::said;
use crate::tpm::{STATE_FILE, read_file};
use crate::tpm_command::Commands;
use crate::volumes::{file_error, not_written};
use command_fds::FdMapping;
use fleetward_durable::{self as durable, Access, SharedDirectory};
use fleetward_hypervisor::{Error, Result, SecretText};
use fleetward_model::error::chain;
use fleetward_model::vm::TpmLockout;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where swtpm finds its key, the key of its migration blobs, and its two sockets.
const KEY_FD: i32 = FIRST_FD;
const MIGRATION_FD: i32 = FIRST_FD + 1;
const CONTROL_FD: i32 = FIRST_FD + 2;
const DATA_FD: i32 = FIRST_FD + 3;

/// swtpm's directory, as it sees it.
const STATE: &str = "/state";

/// What one run may use. Its user's other processes count, too: one for each VM with a TPM, with a few threads.
const LIMITS: Limits = Limits {
    memory: 1 << 30,
    time: SHORT,
    output: 4 << 20,
    processes: 16_384,
};

/// How long a command of the control channel may take. swtpm answers from memory, but for the time that it reads or writes a
/// state of some kilobytes.
const ANSWER: Duration = Duration::from_secs(15);

/// How long a swtpm that ended early is waited for, to hear why.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// The same TPM under another key.
pub(crate) async fn reencrypt(
    host: &LibvirtHost,
    state: &[u8],
    old: &SecretText,
    new: &SecretText,
) -> Result<Vec<u8>> {
    let work = SwtpmDirectory::open(host)?;
    let blob = work.path("blob");
    let before = work.place("before", Some(state))?;
    let mut swtpm = work.start(&before, old, Some(new))?;
    swtpm.power_on().await?;
    swtpm.ioctl(&["--save", "permanent", &text(&blob)]).await?;
    swtpm.shut_down().await?;

    let after = work.place("after", None)?;
    let mut swtpm = work.start(&after, new, Some(new))?;
    // Without this it would make a new TPM when it is powered on.
    swtpm.ioctl(&["--load", "permanent", &text(&blob)]).await?;
    swtpm.power_on().await?;
    swtpm.shut_down().await?;
    let state = read_file(&after.join(STATE_FILE), Owner::swtpm())?;

    work.prove(&state, new).await?;
    match work.prove(&state, old).await {
        Err(Error::TpmStateUnreadable(_)) => Ok(state),
        Ok(_) => Err(Error::TpmStateUnreadable(
            "the old key still opens what was encrypted anew".into(),
        )),
        Err(error) => Err(error),
    }
}

/// Starts a TPM on a copy of the state.
pub(crate) async fn prove(
    host: &LibvirtHost,
    state: &[u8],
    key: &SecretText,
) -> Result<Option<TpmLockout>> {
    SwtpmDirectory::open(host)?.prove(state, key).await
}

/// The same TPM with its lockout counter at zero, and shut down in good order.
pub(crate) async fn clear_lockout(
    host: &LibvirtHost,
    state: &[u8],
    key: &SecretText,
) -> Result<Vec<u8>> {
    SwtpmDirectory::open(host)?.clear_lockout(state, key).await
}

/// A private directory for runs of swtpm, and the programs that run there.
struct SwtpmDirectory<'a> {
    directory: tempfile::TempDir,
    confinement: Confinement,
    owner: Owner,
    swtpm: &'a Program,
    ioctl: &'a Program,
}

impl<'a> SwtpmDirectory<'a> {
    fn open(host: &'a LibvirtHost) -> Result<Self> {
        Self::open_in(&host.config.run_dir, &host.programs)
    }

    fn open_in(run_dir: &Path, programs: &'a Programs) -> Result<Self> {
        let unconfined = |because: String| Error::Program {
            program: "swtpm",
            source: format!("it cannot be confined: {because}").into(),
        };
        let mut owner = Owner::swtpm();
        if owner.uid.is_root() {
            owner = Owner::nobody().ok_or_else(|| unconfined("there is no user nobody".into()))?;
        }
        let directory = tempfile::Builder::new()
            .prefix("tpm-state-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(run_dir)
            .map_err(file_error("make a directory in", run_dir))?;
        Ok(Self {
            directory,
            confinement: Confinement::of(owner.uid, owner.gid).map_err(unconfined)?,
            owner,
            swtpm: programs.swtpm.as_ref().ok_or_else(|| missing("swtpm"))?,
            ioctl: programs
                .swtpm_ioctl
                .as_ref()
                .ok_or_else(|| missing("swtpm_ioctl"))?,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A directory for one swtpm, empty or with that state in it, which is swtpm's user's.
    fn place(&self, name: &str, state: Option<&[u8]>) -> Result<PathBuf> {
        let place = self.path(name);
        let _ = durable::remove_tree(&place);
        durable::make_new_directory(&place, 0o700).map_err(file_error("make", &place))?;
        let (uid, gid) = (self.owner.uid.as_raw(), self.owner.gid.as_raw());
        if let Some(state) = state {
            let file = place.join(STATE_FILE);
            let access = Access::PRIVATE.owned_by(uid, gid);
            durable::replace(&file, state, access).map_err(not_written("write", &file))?;
        }
        SharedDirectory::open(&place)
            .and_then(|directory| directory.give(Some(uid), Some(gid)))
            .map_err(file_error("give away", &place))?;
        Ok(place)
    }

    async fn prove(&self, state: &[u8], key: &SecretText) -> Result<Option<TpmLockout>> {
        let place = self.place("proof", Some(state))?;
        let mut swtpm = self.start(&place, key, None)?;
        swtpm.power_on().await?;
        // The key has opened it. What it counts is only shown.
        let lockout = match swtpm.lockout().await {
            Ok(lockout) => Some(lockout),
            Err(error) => {
                tracing::warn!(error = %chain(&error), "a TPM opens, and does not tell its lockout");
                None
            }
        };
        swtpm.shut_down().await?;
        Ok(lockout)
    }

    async fn clear_lockout(&self, state: &[u8], key: &SecretText) -> Result<Vec<u8>> {
        let place = self.place("unlocked", Some(state))?;
        let mut swtpm = self.start(&place, key, None)?;
        swtpm.power_on().await?;
        let mut commands = Commands::start(&swtpm.data).await?;
        // A wrong password would not be harmless for a TPM that goes on, even one that nobody guessed.
        if commands.lockout().await?.guarded {
            return Err(Error::TpmLockoutGuarded);
        }
        commands.clear_lockout().await?;
        commands.shut_down().await?;
        swtpm.shut_down().await?;
        let state = read_file(&place.join(STATE_FILE), self.owner)?;
        match self.prove(&state, key).await? {
            Some(TpmLockout { counted: 0, .. }) => Ok(state),
            found => {
                let found = found.map_or_else(|| "nothing".to_owned(), |found| found.to_string());
                Err(Error::Tpm(
                    format!("its lockout was cleared, and it counts {found}").into(),
                ))
            }
        }
    }

    /// Starts swtpm on that directory, not powered on yet.
    fn start(
        &self,
        place: &Path,
        key: &SecretText,
        migration_key: Option<&SecretText>,
    ) -> Result<Swtpm<'_>> {
        // Beside swtpm's directory, where it puts nothing.
        let socket = place.with_extension("ctrl");
        durable::remove(&socket).map_err(file_error("remove", &socket))?;
        let listener = UnixListener::bind(&socket).map_err(file_error("listen on", &socket))?;
        let data = place.with_extension("data");
        durable::remove(&data).map_err(file_error("remove", &data))?;
        let data_listener = UnixListener::bind(&data).map_err(file_error("listen on", &data))?;
        let mut arguments = vec![
            "socket".to_owned(),
            "--tpm2".to_owned(),
            "--tpmstate".to_owned(),
            format!("dir={STATE},mode=0600"),
            "--ctrl".to_owned(),
            format!("type=unixio,fd={CONTROL_FD}"),
            "--server".to_owned(),
            format!("type=unixio,fd={DATA_FD}"),
            "--key".to_owned(),
            format!("pwdfd={KEY_FD},mode=aes-256-cbc"),
        ];
        let mut descriptors = vec![
            FdMapping {
                parent_fd: listener.into(),
                child_fd: CONTROL_FD,
            },
            FdMapping {
                parent_fd: data_listener.into(),
                child_fd: DATA_FD,
            },
            FdMapping {
                parent_fd: self.swtpm.pipe_with(key.expose().as_bytes())?,
                child_fd: KEY_FD,
            },
        ];
        if let Some(key) = migration_key {
            arguments.push("--migration-key".to_owned());
            arguments.push(format!("pwdfd={MIGRATION_FD},mode=aes-256-cbc"));
            descriptors.push(FdMapping {
                parent_fd: self.swtpm.pipe_with(key.expose().as_bytes())?,
                child_fd: MIGRATION_FD,
            });
        }
        let shown = [Shown {
            path: place,
            inside: STATE,
            writable: true,
        }];
        let started =
            self.confinement
                .start(self.swtpm, &arguments, &shown, None, descriptors, LIMITS);
        let mut running = started.map_err(|error| Error::Program {
            program: "swtpm",
            source: error.into(),
        })?;
        drop(running.output());
        Ok(Swtpm {
            running,
            ioctl: self.ioctl,
            socket,
            data,
        })
    }
}

/// One swtpm and its sockets.
struct Swtpm<'a> {
    running: Running,
    ioctl: &'a Program,
    socket: PathBuf,
    /// Where it takes the commands of its machine.
    data: PathBuf,
}

impl Swtpm<'_> {
    async fn ioctl(&mut self, command: &[&str]) -> Result<()> {
        let socket = text(&self.socket);
        let arguments: Vec<&str> = ["--unix", &socket]
            .into_iter()
            .chain(command.iter().copied())
            .collect();
        // Given up, it is killed.
        let answer = tokio::time::timeout(ANSWER, self.ioctl.run(&arguments)).await;
        let error = match answer {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => {
                let seconds = ANSWER.as_secs();
                let silent = format!("swtpm runs, and has not answered for {seconds} s");
                return Err(self.last_words().await.unwrap_or(Error::Tpm(silent.into())));
            }
        };
        match error {
            // The TPM itself said no; all else is the machine's trouble.
            Error::Program { source, .. } if said::of_tpm_result(source.as_ref()) => {
                Err(Error::TpmStateUnreadable(source))
            }
            other => Err(self.last_words().await.unwrap_or(other)),
        }
    }

    /// Why swtpm is not there any more, where it is not: the failed connection tells nothing.
    async fn last_words(&mut self) -> Option<Error> {
        let ended = tokio::time::timeout(LAST_WORDS, self.running.ended_early()).await;
        let ended = ended.ok().flatten()?;
        Some(Error::Program {
            program: "swtpm",
            source: ended.to_string().into(),
        })
    }

    /// Lets the TPM read its state: where a wrong key shows.
    async fn power_on(&mut self) -> Result<()> {
        self.ioctl(&["-i"]).await
    }

    /// What the TPM counts of wrong guesses once it is started.
    async fn lockout(&self) -> Result<TpmLockout> {
        Commands::start(&self.data).await?.lockout().await
    }

    async fn shut_down(mut self) -> Result<()> {
        self.ioctl(&["-s"]).await?;
        let nothing = async { Ok::<_, Error>(()) };
        self.running
            .end(nothing)
            .await?
            .map_err(|ended| Error::Program {
                program: "swtpm",
                source: ended.to_string().into(),
            })
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use zeroize::Zeroizing;

    fn key() -> SecretText {
        SecretText::new(Zeroizing::new(
            "a key of a test, which opens nothing".to_owned(),
        ))
    }

    /// It takes every connection, and answers none: no program, and no failure of one, is waited for without end.
    #[tokio::test(start_paused = true)]
    async fn a_swtpm_that_is_silent_is_given_up_and_leaves_no_process() {
        let mut programs = Programs::find().expect("the programs");
        if !nix::unistd::geteuid().is_root() || programs.swtpm_ioctl.is_none() {
            println!("skipped: needs root and swtpm_ioctl");
            return;
        }
        // Seen in the confinement under this name.
        programs.swtpm = Some(Program::at("swtpm", "/state/silent".into()));
        let directory = tempfile::tempdir().expect("a directory");
        let work = SwtpmDirectory::open_in(directory.path(), &programs).expect("confined");
        let place = work.place("silent", None).expect("a place");
        let script = place.join("silent");
        std::fs::write(&script, "#!/bin/sh\nexec sleep 600\n").expect("a program");
        std::fs::set_permissions(&script, Permissions::from_mode(0o755)).expect("its mode");
        let waits = |pid: &u32| {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            command.starts_with(b"sleep\x00600")
        };
        // The clock of the runtime stands still.
        let until = |what: &str, condition: &dyn Fn() -> bool| {
            let deadline = std::time::Instant::now() + Duration::from_secs(20);
            while !condition() {
                assert!(std::time::Instant::now() < deadline, "in vain: {what}");
                std::thread::sleep(Duration::from_millis(20));
            }
        };
        for command in ["-i", "-s"] {
            let mut swtpm = work.start(&place, &key(), None).expect("started");
            until("it runs", &|| below(std::process::id()).iter().any(waits));
            let begin = tokio::time::Instant::now();
            let refused = swtpm.ioctl(&[command]).await.expect_err("no answer");
            let said = chain(&refused);
            assert!(matches!(refused, Error::Tpm(_)), "{command}: {said}");
            assert!(
                said.contains("runs, and has not answered"),
                "{command}: {said}"
            );
            assert!(begin.elapsed() <= ANSWER + LAST_WORDS, "{command}");
            // Its data channel.
            let begin = tokio::time::Instant::now();
            let refused = swtpm.lockout().await.expect_err("no answer");
            assert!(
                chain(&refused).contains("TPM2_Startup has no answer"),
                "{refused}"
            );
            assert!(begin.elapsed() <= ANSWER, "{command}");
        }
        until("it is gone", &|| {
            !below(std::process::id()).iter().any(waits)
        });
    }

    /// The processes below this one, as the kernel tells of them.
    fn below(parent: u32) -> Vec<u32> {
        let threads = std::fs::read_dir(format!("/proc/{parent}/task"));
        let threads = threads.into_iter().flatten().flatten();
        let children = threads.flat_map(|thread| {
            let children = std::fs::read_to_string(thread.path().join("children"));
            let children = children.unwrap_or_default();
            let children: Vec<u32> = children.split_whitespace().flat_map(str::parse).collect();
            children
        });
        children
            .flat_map(|child| [vec![child], below(child)].concat())
            .collect()
    }

    #[tokio::test]
    async fn swtpm_is_its_own_user_without_rights_network_or_other_files() {
        let programs = Programs::find().expect("the programs");
        if !nix::unistd::geteuid().is_root() || programs.swtpm.is_none() {
            println!("skipped: needs root and swtpm");
            return;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let work = SwtpmDirectory::open_in(directory.path(), &programs).expect("confined");
        let place = work.place("one", None).expect("a place");
        let mut swtpm = work.start(&place, &key(), None).expect("started");
        swtpm.power_on().await.expect("it makes a TPM");
        let found = below(std::process::id()).into_iter().find(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|c| c.trim() == "swtpm")
        });
        let pid = found.expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name));
            let words = line.expect("the field").split_whitespace().skip(1);
            words.map(str::to_owned).collect::<Vec<_>>()
        };
        let uid = work.owner.uid.to_string();
        assert!(!work.owner.uid.is_root());
        assert!(field("Uid:").iter().all(|id| *id == uid), "{status}");
        assert_eq!(field("NoNewPrivs:"), ["1"]);
        assert_eq!(field("Seccomp:"), ["2"]);
        for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
            assert_eq!(field(set), ["0000000000000000"], "{set}");
        }
        let namespace =
            |pid: &str, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}"));
        for kind in ["net", "mnt", "pid", "ipc"] {
            let (its, ours) = (namespace(&pid.to_string(), kind), namespace("self", kind));
            assert_ne!(its.expect("its"), ours.expect("ours"), "{kind}");
        }
        let root = std::fs::read_dir(format!("/proc/{pid}/root")).expect("its root");
        let seen: Vec<_> = root.map(|e| e.expect("an entry").file_name()).collect();
        assert!(seen.iter().any(|name| name == "state"), "{seen:?}");
        for name in ["root", "home", "var", "run", "tmp"] {
            assert!(!seen.iter().any(|seen| seen == name), "{seen:?}");
        }
        swtpm.shut_down().await.expect("it ends");
        let state = read_file(&place.join(STATE_FILE), work.owner).expect("its state");
        work.prove(&state, &key()).await.expect("the key opens it");
        let other = SecretText::new(Zeroizing::new("another key of the same test".to_owned()));
        let refused = work.prove(&state, &other).await;
        assert!(
            matches!(refused, Err(Error::TpmStateUnreadable(_))),
            "{refused:?}"
        );
        let refused = work.prove(b"no state at all", &key()).await;
        assert!(
            matches!(refused, Err(Error::TpmStateUnreadable(_))),
            "{refused:?}"
        );
    }
}

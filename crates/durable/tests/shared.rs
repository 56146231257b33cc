//! What somebody else may put into a directory that they may write: nothing of it is read, written, waited for or followed.

#![allow(clippy::unwrap_used)]
#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

use fleetward_durable::*;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

const LIMIT: u64 = 1 << 20;
const NAME: &str = "state";

/// A directory of somebody else's, and a secret of ours that they would like to have.
struct Stage {
    dir: tempfile::TempDir,
}

type Plant = (&'static str, fn(&Stage) -> bool, fn(&Is) -> bool);

const PLANTS: [Plant; 7] = [
    (
        "a symbolic link",
        |s| symlink(s.secret(), s.file()).is_ok(),
        |is| *is == Is::Link,
    ),
    (
        "a dangling link",
        |s| symlink("/nowhere/at/all", s.file()).is_ok(),
        |is| *is == Is::Link,
    ),
    (
        "a hard link",
        |s| fs::hard_link(s.secret(), s.file()).is_ok(),
        |is| *is == Is::Named(2),
    ),
    (
        "a pipe",
        |s| nix::unistd::mkfifo(&s.file(), Mode::from_bits_truncate(0o666)).is_ok(),
        |is| *is == Is::Pipe,
    ),
    (
        "a device without end",
        |s| {
            mknod(
                &s.file(),
                SFlag::S_IFCHR,
                Mode::from_bits_truncate(0o666),
                makedev(1, 5),
            )
            .is_ok()
        },
        |is| *is == Is::Device,
    ),
    (
        "a directory",
        |s| fs::create_dir(s.file()).is_ok(),
        |is| *is == Is::Directory,
    ),
    (
        "a file without end",
        |s| {
            fs::File::create(s.file())
                .and_then(|file| file.set_len(1 << 40))
                .is_ok()
        },
        |is| matches!(is, Is::Larger { .. }),
    ),
];

impl Stage {
    fn new() -> Self {
        let stage = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir(stage.shared()).unwrap();
        fs::write(stage.secret(), b"a guardian's key").unwrap();
        fs::set_permissions(stage.secret(), fs::Permissions::from_mode(0o600)).unwrap();
        stage
    }

    fn shared(&self) -> PathBuf {
        self.dir.path().join("shared")
    }

    fn secret(&self) -> PathBuf {
        self.dir.path().join("secret")
    }

    fn file(&self) -> PathBuf {
        self.shared().join(NAME)
    }

    fn open(&self) -> SharedDirectory {
        SharedDirectory::open(&self.shared()).unwrap()
    }

    fn require_untouched(&self, what: &str) {
        let found = fs::metadata(self.secret()).unwrap();
        assert_eq!(
            fs::read(self.secret()).unwrap(),
            b"a guardian's key",
            "{what}"
        );
        assert_eq!(found.mode() & 0o7777, 0o600, "{what}");
        assert_eq!(found.uid(), nix::unistd::geteuid().as_raw(), "{what}");
    }
}

/// Does it with a deadline: whoever waits for a pipe's other end waits for ever.
fn in_time<T: Send + 'static>(what: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sent, done) = std::sync::mpsc::channel();
    std::thread::spawn(move || sent.send(work()));
    done.recv_timeout(Duration::from_secs(10))
        .unwrap_or_else(|_| panic!("{what}: it hangs"))
}

fn why(error: &std::io::Error) -> Is {
    Unexpected::of(error)
        .unwrap_or_else(|| panic!("{error:?}"))
        .is
}

fn each_plant(work: impl Fn(&Stage, &str, fn(&Is) -> bool)) {
    for (what, plant, is) in PLANTS {
        let stage = Stage::new();
        if !plant(&stage) {
            assert!(
                !nix::unistd::geteuid().is_root() && what.contains("device"),
                "{what}"
            );
            eprintln!("NOT TESTED: {what} needs root");
            continue;
        }
        work(&stage, what, is);
        stage.require_untouched(what);
    }
}

#[test]
fn nothing_but_the_expected_file_is_read() {
    each_plant(|stage, what, is| {
        let (directory, path) = (stage.open(), stage.file());
        let expected = Expected::at_most(LIMIT);
        let (read, by_path, opened) = in_time(what, move || {
            (
                directory.read(NAME, &expected).unwrap_err(),
                read_expected(&path, &expected).unwrap_err(),
                open_expected(&path, &expected).unwrap_err(),
            )
        });
        for error in [read, by_path, opened] {
            assert!(is(&why(&error)), "{what}: {error}");
        }
        // It works again when the plant is gone.
        stage.open().remove_tree(NAME).unwrap();
        assert_eq!(
            stage.open().read(NAME, &Expected::at_most(LIMIT)).unwrap(),
            None
        );
        fs::write(stage.file(), b"state").unwrap();
        let read = read_expected(&stage.file(), &Expected::at_most(LIMIT)).unwrap();
        assert_eq!(read.as_deref(), Some(&b"state"[..]), "{what}");
    });
}

#[test]
fn writing_replaces_what_is_there_and_never_follows_it() {
    each_plant(|stage, what, _| {
        let put = stage.open().replace(NAME, b"ours", Access::PRIVATE);
        if what == "a directory" {
            assert_eq!(why(&put.unwrap_err()), Is::Directory);
            fs::remove_dir(stage.file()).unwrap();
            stage
                .open()
                .replace(NAME, b"ours", Access::PRIVATE)
                .unwrap();
        } else {
            put.unwrap();
        }
        assert_eq!(fs::read(stage.file()).unwrap(), b"ours", "{what}");
        let found = fs::symlink_metadata(stage.file()).unwrap();
        assert_eq!((found.nlink(), found.mode() & 0o7777), (1, 0o600), "{what}");
        assert_eq!(fs::read_dir(stage.shared()).unwrap().count(), 1, "{what}");
    });
}

#[test]
fn removing_takes_the_name_only() {
    each_plant(|stage, what, _| {
        let inside = stage.file().join("inside");
        if what == "a directory" {
            symlink(stage.dir.path(), &inside).unwrap();
        }
        stage.open().remove_tree(NAME).unwrap();
        stage.open().remove_tree(NAME).unwrap();
        assert!(!stage.open().has(NAME).unwrap(), "{what}");
    });
}

#[test]
fn a_draft_that_was_planted_is_not_opened_by_a_sweep() {
    let draft = ".state.0123456789abcdef0123456789abcdef.new";
    for (what, plant, _) in PLANTS {
        let stage = Stage::new();
        if !plant(&stage) {
            continue;
        }
        fs::rename(stage.file(), stage.shared().join(draft)).unwrap();
        let directory = stage.open();
        in_time(what, move || directory.sweep()).unwrap();
        stage.require_untouched(what);
    }
    let stage = Stage::new();
    fs::write(stage.shared().join(draft), b"half").unwrap();
    stage.open().sweep().unwrap();
    assert_eq!(fs::read_dir(stage.shared()).unwrap().count(), 0);
}

#[test]
fn another_users_file_is_refused_unless_it_is_the_expected_one() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("NOT TESTED: giving a file to another user needs root");
        return;
    }
    let stage = Stage::new();
    fs::write(stage.file(), b"state").unwrap();
    std::os::unix::fs::chown(stage.file(), Some(1234), None).unwrap();
    let expected = Expected::at_most(LIMIT);
    let refused = stage.open().read(NAME, &expected).unwrap_err();
    let (user, wanted) = (1234, 0);
    assert_eq!(why(&refused), Is::Of { user, wanted });
    let expected = expected.or_of(1234).with_mode(0o600);
    let read = stage.open().read(NAME, &expected).unwrap();
    assert_eq!(read.as_deref(), Some(&b"state"[..]));
    // Root could read it, and the program that it is for could not.
    fs::set_permissions(stage.file(), fs::Permissions::from_mode(0o440)).unwrap();
    let refused = stage.open().read(NAME, &expected).unwrap_err();
    let (mode, wanted) = (0o440, 0o600);
    assert_eq!(why(&refused), Is::Closed { mode, wanted });
    assert!(refused.to_string().contains("0440"), "{refused}");
}

#[test]
fn a_name_leads_nowhere_else() {
    let stage = Stage::new();
    for name in ["", ".", "..", "../secret", "a/b", "/etc/passwd"] {
        assert!(
            stage.open().read(name, &Expected::any()).is_err(),
            "{name:?}"
        );
        assert!(
            stage.open().replace(name, b"x", Access::PRIVATE).is_err(),
            "{name:?}"
        );
        assert!(stage.open().remove_tree(name).is_err(), "{name:?}");
    }
    stage.require_untouched("names");
}

fn modes(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn the_administrators_links_are_followed_and_nobody_elses() {
    let stage = Stage::new();
    fs::write(stage.file(), b"state").unwrap();
    let (ours, theirs) = (
        stage.dir.path().join("ours"),
        stage.dir.path().join("theirs"),
    );
    fs::create_dir(&ours).unwrap();
    fs::create_dir(&theirs).unwrap();
    modes(&ours, 0o755);
    symlink("../shared", ours.join("link")).unwrap();
    symlink("../shared", theirs.join("link")).unwrap();
    let read = |at: &Path| read_expected(&at.join("link").join(NAME), &Expected::any());
    assert_eq!(read(&ours).unwrap().as_deref(), Some(&b"state"[..]));
    for mode in [0o777, 0o1777] {
        modes(&theirs, mode);
        assert_eq!(why(&read(&theirs).unwrap_err()), Is::Link, "{mode:o}");
    }
    assert_eq!(exposed(&ours).unwrap(), None);
    modes(&theirs, 0o777);
    let below = theirs.join("below");
    fs::create_dir(&below).unwrap();
    modes(&below, 0o755);
    assert_eq!(exposed(&below).unwrap().unwrap().0, theirs);
    symlink("loop", ours.join("loop")).unwrap();
    assert!(SharedDirectory::open(&ours.join("loop")).is_err());
}

#[test]
fn only_a_socket_is_connected_to_or_opened_to_others() {
    each_plant(|stage, what, _| {
        let own = nix::unistd::geteuid().as_raw();
        assert!(Socket::open(&stage.file(), own).is_err(), "{what}");
        stage.open().remove_tree(NAME).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(stage.file()).unwrap();
        let socket = Socket::open(&stage.file(), own).unwrap();
        socket.give(0o660, None).unwrap();
        assert_eq!(fs::metadata(stage.file()).unwrap().mode() & 0o777, 0o660);
        std::os::unix::net::UnixStream::connect(socket.path()).unwrap();
        assert!(Socket::open(&stage.file(), own + 1).is_err());
        assert!(open_terminal(&stage.file(), own).is_err());
    });
}

#[test]
fn a_terminal_of_that_user_is_opened_and_no_other_device() {
    let pty = nix::pty::openpty(None, None).unwrap();
    let path = nix::unistd::ttyname(&pty.slave).unwrap();
    let owner = fs::metadata(&path).unwrap().uid();
    open_terminal(&path, owner).unwrap();
    assert_eq!(
        why(&open_terminal(&path, owner + 1).unwrap_err()),
        Is::Of {
            user: owner,
            wanted: owner + 1
        }
    );
    for other in ["/dev/null", "/dev/zero", "/etc/passwd", "/proc"] {
        assert!(open_terminal(Path::new(other), 0).is_err(), "{other}");
    }
}

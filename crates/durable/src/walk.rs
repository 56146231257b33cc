//! The way to a directory, walked step by step, so that nobody else leads it astray.
//!
//! A symbolic link is followed only where its directory is written by root, or by this process's user, alone: such a link is
//! the administrator's. One in a directory that somebody else may write is refused.

use crate::shared::{Is, Unexpected};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

/// As many links as Linux follows (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// Opens a directory, for names relative to it only.
pub(crate) fn directory(path: &Path) -> io::Result<OwnedFd> {
    walk(path, |_, _| Ok(()))
}

/// Who may change names on the way to a directory, or in it, beside root and this process's user: the first such directory
/// with the reason. In a sticky directory like `/tmp` nobody changes another's names. None: nobody.
pub fn exposed(path: &Path) -> io::Result<Option<(PathBuf, String)>> {
    let mut found = None;
    walk(path, |at, stat| {
        if found.is_none()
            && let Some(because) = weakness(stat)
        {
            found = Some((at.to_owned(), because));
        }
        Ok(())
    })?;
    Ok(found)
}

fn weakness(stat: &FileStat) -> Option<String> {
    if !is_ours(stat.st_uid) {
        return Some(format!("it belongs to user {}", stat.st_uid));
    }
    let sticky = stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits()
        && stat.st_mode & Mode::S_ISVTX.bits() != 0;
    let everybody = stat.st_mode & Mode::S_IWOTH.bits() != 0;
    // Root's own group has no other members that matter: who is in it is root in all but name.
    let group = stat.st_mode & Mode::S_IWGRP.bits() != 0 && stat.st_gid != 0;
    if sticky || !(everybody || group) {
        return None;
    }
    Some(if everybody {
        "everybody may write it".to_owned()
    } else {
        format!("group {} may write it", stat.st_gid)
    })
}

fn is_ours(uid: u32) -> bool {
    uid == 0 || uid == nix::unistd::geteuid().as_raw()
}

/// Whether a link in that directory is the administrator's. Not in a sticky one: there anybody makes links.
fn is_trusted(stat: &FileStat) -> bool {
    let anybody = Mode::S_IWOTH.bits();
    weakness(stat).is_none() && stat.st_mode & anybody == 0
}

fn walk(
    path: &Path,
    mut look: impl FnMut(&Path, &FileStat) -> io::Result<()>,
) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = || nix::fcntl::open("/", flags, Mode::empty());
    let absolute = std::path::absolute(path)?;
    let mut left: VecDeque<OsString> = names(&absolute).collect();
    let (mut at, mut here) = (root()?, PathBuf::from("/"));
    let mut stat = fstat(&at)?;
    let mut links = 0;
    look(&here, &stat)?;
    while let Some(name) = left.pop_front() {
        match openat(&at, name.as_os_str(), flags, Mode::empty()) {
            Ok(next) => {
                here.push(&name);
                at = next;
                stat = fstat(&at)?;
                look(&here, &stat)?;
            }
            // What a symbolic link is answered with, and whatever else is no directory.
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                let there = here.join(&name);
                let Ok(target) = readlinkat(&at, name.as_os_str()) else {
                    return Err(Errno::ENOTDIR.into());
                };
                links += 1;
                if links > MAX_LINKS || !is_trusted(&stat) {
                    return Err(Unexpected::new(there, Is::Link).into());
                }
                let target = Path::new(&target);
                if target.is_absolute() {
                    (at, here) = (root()?, PathBuf::from("/"));
                    stat = fstat(&at)?;
                }
                for name in names(target).collect::<Vec<_>>().into_iter().rev() {
                    left.push_front(name);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(at)
}

fn names(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsStr::new("..").to_owned()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

//! The accounts under which libvirt runs QEMU and swtpm: read from its configuration, where the packager's defaults
//! are comments.

use nix::unistd::{Gid, Group, Uid, User};
use std::path::Path;

/// libvirt's QEMU configuration.
const QEMU_CONF: &str = "/etc/libvirt/qemu.conf";

/// A user and group that files are given to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
}

impl Owner {
    /// As whom QEMU runs.
    pub(crate) fn qemu() -> Self {
        Self::read("user", "group", &["libvirt-qemu", "qemu"])
    }

    /// As whom swtpm runs.
    pub(crate) fn swtpm() -> Self {
        Self::read("swtpm_user", "swtpm_group", &["tss", "swtpm"])
    }

    /// Of programs that have no account of their own; none where that user is missing.
    pub(crate) fn nobody() -> Option<Self> {
        let User { uid, gid, .. } = user_named("nobody")?;
        Some(Self { uid, gid })
    }

    fn read(user_key: &str, group_key: &str, usual: &[&str]) -> Self {
        let configuration = std::fs::read_to_string(Path::new(QEMU_CONF)).unwrap_or_default();
        let user = setting(&configuration, user_key)
            .and_then(|name| user_named(&name))
            .or_else(|| usual.iter().find_map(|name| user_named(name)));
        let Some(user) = user else {
            return Self {
                uid: Uid::from_raw(0),
                gid: Gid::from_raw(0),
            };
        };
        let gid = setting(&configuration, group_key)
            .and_then(|name| group_named(&name))
            .unwrap_or(user.gid);
        Self { uid: user.uid, gid }
    }
}

/// The value of a key: as set, else as the comment with the default says.
fn setting(configuration: &str, key: &str) -> Option<String> {
    let value_in = |line: &str| {
        let rest = line.strip_prefix(key)?.trim_start().strip_prefix('=')?;
        Some(rest.trim().trim_matches('"').to_owned())
    };
    let set = configuration.lines().find_map(|line| value_in(line.trim()));
    set.or_else(|| {
        configuration
            .lines()
            .find_map(|line| value_in(line.trim().strip_prefix('#')?))
    })
}

/// libvirt takes `+0` for a number and anything else for a name first.
fn user_named(name: &str) -> Option<User> {
    match name.strip_prefix('+').and_then(|n| n.parse().ok()) {
        Some(uid) => User::from_uid(Uid::from_raw(uid)).ok().flatten(),
        None => User::from_name(name).ok().flatten(),
    }
}

fn group_named(name: &str) -> Option<Gid> {
    match name.strip_prefix('+').and_then(|n| n.parse().ok()) {
        Some(gid) => Some(Gid::from_raw(gid)),
        None => Group::from_name(name).ok().flatten().map(|g| g.gid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_counts_more_than_the_commented_default() {
        let text = "# about swtpm_user\n#swtpm_user = \"tss\"\nuser = \"qemu\"\n#user = \"libvirt-qemu\"\n";
        assert_eq!(setting(text, "swtpm_user").as_deref(), Some("tss"));
        assert_eq!(setting(text, "user").as_deref(), Some("qemu"));
        assert_eq!(setting(text, "group"), None);
    }
}

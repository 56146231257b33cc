//! What libvirt's AppArmor profiles must let QEMU do beside what libvirt itself knows of a VM: one rule, which the
//! administrator gives to all of them.
//!
//! libvirt makes a profile for each VM from its definition: disks, UEFI variables, TPM state, media. The two sockets of a live
//! migration are in no definition. QEMU listens on them at the destination and connects to one at the source.

use std::fs;
use std::path::Path;

/// AppArmor's files.
pub(crate) const APPARMOR: &str = "/etc/apparmor.d";
/// A directory of rules for every VM, and a file of such rules: libvirt's `abstractions/libvirt-qemu` includes both.
const RULES: &str = "abstractions/libvirt-qemu.d";
const LOCAL_RULES: &str = "local/abstractions/libvirt-qemu";

/// What an administrator must do before VMs can move live, under AppArmor; none when it is done.
///
/// `apparmor` is [`APPARMOR`], `migrations` the directory in which each VM's sockets are.
pub(crate) fn missing_rule(apparmor: &Path, migrations: &Path) -> Option<String> {
    let rule = rule(migrations);
    let has_it = |file: &Path| {
        let lines = fs::read_to_string(file).unwrap_or_default();
        lines.lines().any(|line| line.trim() == rule)
    };
    let directory = apparmor.join(RULES);
    let files = fs::read_dir(&directory).into_iter().flatten().flatten();
    let mut files = files.map(|entry| entry.path());
    if files.any(|file| has_it(&file)) || has_it(&apparmor.join(LOCAL_RULES)) {
        return None;
    }
    let directory = directory.display();
    Some(format!(
        "AppArmor keeps QEMU from the sockets of live migrations from and to this host, which fail therefore; as root: \
         mkdir -p {directory} && echo '{rule}' > {directory}/fleetward; VMs that run already get the rule at their next start"
    ))
}

/// Any VM's sockets, since a rule of all profiles cannot name the profile's own VM in its form of an id.
fn rule(migrations: &Path) -> String {
    format!("{}/*/{{memory,disk}}.sock rw,", migrations.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_that_is_missing_is_told_as_a_command_that_cures_it() {
        let home = tempfile::tempdir().expect("a directory");
        let migrations = Path::new("/run/fleetward/mig");
        let told = missing_rule(home.path(), migrations).expect("it is missing");
        let (_, command) = told.split_once("as root: ").expect("a command");
        let (command, _) = command.split_once("; VMs").expect("its end");
        let done = std::process::Command::new("sh")
            .args(["-c", command])
            .status();
        assert!(done.expect("a shell").success(), "{command}");
        assert_eq!(missing_rule(home.path(), migrations), None);
        assert!(
            missing_rule(home.path(), Path::new("/run/other/mig")).is_some(),
            "the rule is of the other run_dir"
        );
    }

    #[test]
    fn the_rule_may_be_among_local_ones() {
        let home = tempfile::tempdir().expect("a directory");
        let local = home.path().join(LOCAL_RULES);
        fs::create_dir_all(local.parent().expect("a directory")).expect("made");
        let migrations = Path::new("/run/fleetward/mig");
        fs::write(&local, format!("# ours\n  {}\n", rule(migrations))).expect("written");
        assert_eq!(missing_rule(home.path(), migrations), None);
        fs::write(&local, format!("# {}\n", rule(migrations))).expect("written");
        assert!(missing_rule(home.path(), migrations).is_some(), "a comment");
    }
}

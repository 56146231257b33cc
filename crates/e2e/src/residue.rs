//! Lists what exists on a host: domains, volumes, TPM state, UEFI variables, secrets, sockets. Tests compare it with
//! what the fleet reports, so that nothing is left over and nothing is missing.

use crate::fleet::{Fleet, text};
use anyhow::{Result, ensure};
use std::collections::BTreeSet;

/// One host's things that belong to VMs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Residue {
    /// `name state`, as virsh prints them.
    pub domains: BTreeSet<String>,
    /// File names in the pools.
    pub volumes: BTreeSet<String>,
    /// VM uuids with TPM state.
    pub tpm: BTreeSet<String>,
    /// File names of UEFI variables.
    pub nvram: BTreeSet<String>,
    /// Of `nvram`, what may be there as well as not: that of a VM that is off, and may never have started.
    pub nvram_perhaps: BTreeSet<String>,
    /// Uuids of loaded secrets.
    pub secrets: BTreeSet<String>,
    /// Sockets and directories of migrations.
    pub sockets: BTreeSet<String>,
}

/// Prints one `kind value` line for each thing.
const LOOK: &str = r#"
virsh -q list --all | awk '{state=$3; for (i=4;i<=NF;i++) state=state"-"$i; print "domain", $2, state}'
virsh -q secret-list | awk '$1 ~ /-/ {print "secret", $1}'
for f in /var/lib/fleetward/volumes/* /var/lib/fleetward-shared/*; do [ -e "$f" ] && echo "volume ${f##*/}"; done
for f in /var/lib/libvirt/swtpm/*/tpm2/tpm2-00.permall; do [ -e "$f" ] && { d=${f%/tpm2/*}; echo "tpm ${d##*/}"; }; done
for f in /var/lib/libvirt/qemu/nvram/* /var/lib/fleetward/uefi/*; do [ -e "$f" ] && echo "nvram ${f##*/}"; done
find /run/fleetward/mig -mindepth 1 2>/dev/null | sed 's/^/socket /'
true
"#;

impl Residue {
    /// Looks at a host.
    pub fn of(fleet: &Fleet, host: &str) -> Result<Self> {
        let said = fleet.exec(host, &["sh", "-c", LOOK])?.ok()?;
        let mut residue = Self::default();
        for line in said.stdout.lines() {
            let Some((kind, value)) = line.split_once(' ') else {
                continue;
            };
            let set = match kind {
                "domain" => &mut residue.domains,
                "secret" => &mut residue.secrets,
                "volume" => &mut residue.volumes,
                "tpm" => &mut residue.tpm,
                "nvram" => &mut residue.nvram,
                "socket" => &mut residue.sockets,
                _ => continue,
            };
            set.insert(value.to_owned());
        }
        Ok(residue)
    }

    /// What should lie on `host` according to the fleet's own list of VMs.
    pub fn expected(fleet: &Fleet, host: &str) -> Result<Self> {
        let mut expected = Self::default();
        for vm in fleet
            .json(&["vm", "list"])?
            .as_array()
            .into_iter()
            .flatten()
        {
            let (id, name, state) = (text(vm, "id")?, text(vm, "name")?, text(vm, "state")?);
            let shared = vm["disks"].as_array().into_iter().flatten();
            for disk in shared {
                let bases = disk["bases"].as_array().into_iter().flatten();
                let bases = bases.filter_map(|base| base.as_str().map(str::to_owned));
                for path in bases.chain([text(disk, "path")?]) {
                    if vm["host"] == host || path.contains("/fleetward-shared/") {
                        expected
                            .volumes
                            .insert(path.rsplit('/').next().unwrap_or_default().to_owned());
                    }
                }
            }
            if vm["host"] != host {
                continue;
            }
            let word = match state.as_str() {
                word @ ("running" | "paused") => word,
                _ => "shut-off",
            };
            let running = word != "shut-off";
            expected.domains.insert(format!("{name} {word}"));
            // Ours are named by the VM; libvirt makes the file when the VM first starts.
            let variables = format!("{id}_VARS.fd");
            if vm["managed"] == true && vm["firmware"]["type"] == "uefi" {
                if running {
                    expected.nvram.insert(variables);
                } else {
                    expected.nvram_perhaps.insert(variables);
                }
            }
            if vm["tpm"]["enabled"] == true {
                expected.tpm.insert(id.clone());
                if running {
                    expected.secrets.insert(id);
                }
            }
        }
        Ok(expected)
    }

    /// The names that are here and not in `other`, for messages.
    fn difference(&self, other: &Self) -> Vec<String> {
        let pairs = [
            ("domain", &self.domains, &other.domains),
            ("volume", &self.volumes, &other.volumes),
            ("TPM state", &self.tpm, &other.tpm),
            ("secret", &self.secrets, &other.secrets),
            ("UEFI variables", &self.nvram, &other.nvram),
            ("socket", &self.sockets, &other.sockets),
        ];
        pairs
            .into_iter()
            .flat_map(|(kind, a, b)| a.difference(b).map(move |x| format!("{kind} {x}")))
            .collect()
    }
}

/// Every host holds exactly what the fleet's VMs need.
pub fn none_anywhere(fleet: &Fleet, hosts: &[&str]) -> Result<()> {
    for host in hosts {
        let mut found = Residue::of(fleet, host)?;
        let expected = Residue::expected(fleet, host)?;
        found
            .nvram
            .retain(|file| !expected.nvram_perhaps.contains(file));
        let (extra, missing) = (found.difference(&expected), expected.difference(&found));
        ensure!(
            extra.is_empty() && missing.is_empty(),
            "on host {host}: left over {extra:?}, missing {missing:?}"
        );
    }
    Ok(())
}

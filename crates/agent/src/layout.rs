//! The paths of the agent's files.
//!
//! ```text
//! data_dir/ 0711            pools may lie below it, and QEMU must pass through
//!   identity/ 0700          certificate, pinned authority, EK authority, membership, refused certificates
//!   guardians/ 0700         private keys of guardians
//!   vms/<id>/ 0700          key protector (last good one), EK certificate, halves of migrations
//!   generations/<id>        fencing; outlives the VM
//!   history/<id>/<time>/    TPM state that was removed but kept
//!   tpm-pool/<uuid>/ 0711   TPMs made ahead; swtpm works in there
//!   images/ 0711            image cache
//!   conversions/<uuid>/ 0700  images that are being converted
//!   audit.log 0600
//! run_dir/mig/<id>/ 2770    sockets of a migration, group of QEMU
//! run_dir/seeds/<id>.iso    media for first boots, 0600
//! ```

use crate::config::Config;
use fleetward_durable as durable;
use fleetward_model::VmId;
use std::io;
use std::path::{Path, PathBuf};

/// The host's directories.
#[derive(Debug, Clone)]
pub struct Layout {
    data: PathBuf,
    run: PathBuf,
    nvram: PathBuf,
    former_nvram: PathBuf,
}

impl Layout {
    pub fn new(config: &Config) -> Self {
        Self {
            data: config.data_dir.clone(),
            run: config.run_dir.clone(),
            nvram: config.nvram_dir.clone(),
            former_nvram: config.former_nvram_dir.clone(),
        }
    }

    /// Makes what is missing and sets the modes of what is there.
    pub fn prepare(&self) -> io::Result<()> {
        for (path, mode) in [
            (self.data.clone(), 0o711),
            (self.identity(), 0o700),
            (self.guardians(), 0o700),
            (self.vms(), 0o700),
            (self.generations(), 0o700),
            (self.history(), 0o700),
            (self.tpm_pool(), 0o711),
            (self.images(), 0o711),
            (self.conversions(), 0o700),
            (self.run.clone(), 0o711),
            (self.migrations(), 0o711),
            (self.seeds(), 0o711),
        ] {
            durable::make_directory(&path, mode)?;
        }
        match self.own_nvram() {
            Some(directory) => durable::make_directory(directory, 0o711),
            None => Ok(()),
        }
    }

    /// Removes what a crash left of files under construction.
    pub(crate) fn sweep(&self) {
        let trees = [
            self.identity(),
            self.guardians(),
            self.vms(),
            self.generations(),
            self.history(),
            self.tpm_pool(),
            self.images(),
            self.seeds(),
        ];
        // Pools may lie below the data directory, too; what is in them is not ours to judge by its name.
        let swept = durable::sweep(&self.data).and_then(|first| {
            let mut all = trees.iter().map(|tree| durable::sweep_tree(tree));
            all.try_fold(first, |sum, swept| Ok(sum + swept?))
        });
        match swept {
            Ok(0) => {}
            Ok(files) => tracing::info!(files, "removed unfinished files of an earlier process"),
            Err(error) => tracing::warn!(%error, "unfinished files of an earlier process stay"),
        }
    }

    pub fn identity(&self) -> PathBuf {
        self.data.join("identity")
    }

    pub fn guardians(&self) -> PathBuf {
        self.data.join("guardians")
    }

    /// Certificates of others that are refused before their end.
    pub(crate) fn refused_certificates(&self) -> PathBuf {
        self.identity().join("refused-certificates.json")
    }

    pub(crate) fn vms(&self) -> PathBuf {
        self.data.join("vms")
    }

    pub(crate) fn vm(&self, vm: VmId) -> PathBuf {
        self.vms().join(vm.to_string())
    }

    pub(crate) fn generations(&self) -> PathBuf {
        self.data.join("generations")
    }

    pub(crate) fn history(&self) -> PathBuf {
        self.data.join("history")
    }

    pub(crate) fn tpm_pool(&self) -> PathBuf {
        self.data.join("tpm-pool")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    pub(crate) fn conversions(&self) -> PathBuf {
        self.data.join("conversions")
    }

    pub fn audit_log(&self) -> PathBuf {
        self.data.join("audit.log")
    }

    /// Which boot the host was seen in, and what it brings back.
    pub(crate) fn boot(&self) -> PathBuf {
        self.data.join("boot.json")
    }

    pub(crate) fn migrations(&self) -> PathBuf {
        self.run.join("mig")
    }

    pub(crate) fn seeds(&self) -> PathBuf {
        self.run.join("seeds")
    }

    pub(crate) fn migration(&self, vm: VmId) -> PathBuf {
        self.migrations().join(vm.to_string())
    }

    /// Where UEFI variables may lie, new ones in the first place. By id: two VMs may have had the same name, never the same id.
    pub(crate) fn nvram(&self, vm: VmId) -> [PathBuf; 2] {
        [&self.nvram, &self.former_nvram].map(|at| at.join(format!("{vm}_VARS.fd")))
    }

    /// The directory of UEFI variables where it is ours, not libvirt's.
    pub(crate) fn own_nvram(&self) -> Option<&Path> {
        (self.nvram != self.former_nvram).then_some(self.nvram.as_path())
    }

    pub fn data(&self) -> &Path {
        &self.data
    }
}

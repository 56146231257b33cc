//! Fencing: the newest generation of requests for each VM, stored on the disk before the request is carried out.
//!
//! A request with an older generation comes from a job that a newer one has replaced. Generations are kept after a VM
//! is deleted or has moved away, so a late request cannot bring it back.

use fleetward_durable::{self as durable, Access};
use fleetward_model::{ErrorCode, Failure, VmId};
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// The generations of all VMs this host knows or knew.
#[derive(Debug)]
pub(crate) struct Fence {
    directory: PathBuf,
    known: Mutex<HashMap<VmId, u64>>,
}

impl Fence {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            known: Mutex::default(),
        }
    }

    /// The newest generation that has passed, 0 before any; for what the host does by itself.
    pub(crate) fn newest(&self, vm: VmId) -> io::Result<u64> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        match known.get(&vm) {
            Some(newest) => Ok(*newest),
            None => {
                let path = self.directory.join(vm.to_string());
                Ok(durable::read_json(&path)?.unwrap_or(0))
            }
        }
    }

    /// Lets `generation` pass if nothing newer did, and remembers it durably.
    pub(crate) fn pass(&self, vm: VmId, generation: u64) -> Result<(), Failure> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.directory.join(vm.to_string());
        let unreadable = |error: io::Error| {
            Failure::new(
                ErrorCode::Internal,
                format!("the generation of VM {vm} cannot be kept"),
            )
            .because(format!("{}: {error}", path.display()))
        };
        let newest = match known.get(&vm) {
            Some(newest) => *newest,
            None => durable::read_json(&path).map_err(unreadable)?.unwrap_or(0),
        };
        if generation < newest {
            return Err(Failure::new(
                ErrorCode::StaleGeneration,
                format!("request of generation {generation} for VM {vm}"),
            )
            .because(format!("generation {newest} has been here")));
        }
        if generation > newest {
            durable::replace_json(&path, &generation, Access::PRIVATE).map_err(unreadable)?;
        }
        known.insert(vm, generation);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_generation_is_refused_also_after_a_restart() {
        let dir = tempfile::tempdir().expect("directory");
        let vm = VmId(uuid::Uuid::from_u128(1));
        let fence = Fence::new(dir.path().to_owned());
        fence.pass(vm, 5).expect("first");
        fence.pass(vm, 5).expect("a repeat is no older");
        assert_eq!(
            fence.pass(vm, 4).expect_err("older").code,
            ErrorCode::StaleGeneration
        );
        let restarted = Fence::new(dir.path().to_owned());
        assert_eq!(
            restarted.pass(vm, 4).expect_err("older").code,
            ErrorCode::StaleGeneration
        );
        restarted.pass(vm, 6).expect("newer");
    }

    #[test]
    fn a_damaged_record_lets_nothing_pass() {
        let dir = tempfile::tempdir().expect("directory");
        let vm = VmId(uuid::Uuid::from_u128(1));
        std::fs::write(dir.path().join(vm.to_string()), b"x").expect("write");
        assert!(Fence::new(dir.path().to_owned()).pass(vm, 1).is_err());
    }
}

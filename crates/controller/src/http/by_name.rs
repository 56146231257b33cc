//! The VMs of lists that have several rows of a VM, or rows of other things beside VMs: some at a time, by name and then by id.
//! A VM that moves between two pages keeps its place.

use crate::world::World;
use fleetward_model::VmName;
use fleetward_model::vm::VmObserved;
use std::ops::Bound;
use std::sync::Arc;

/// VMs that are looked at before others get their turn.
const SLICE: usize = 500;

#[derive(Debug)]
pub(super) struct ByName(Bound<VmName>);

impl ByName {
    /// From the first that is called `name` or would follow it; without a name all.
    pub(super) fn from(name: Option<VmName>) -> Self {
        Self(name.map_or(Bound::Unbounded, Bound::Included))
    }

    /// Some more, all of each name; none at the end.
    pub(super) fn next(&mut self, world: &World) -> Vec<Arc<VmObserved>> {
        let some = world.inventory.by_name(self.0.as_ref(), SLICE);
        if let Some(last) = some.last() {
            self.0 = Bound::Excluded(last.name.clone());
        }
        some
    }
}

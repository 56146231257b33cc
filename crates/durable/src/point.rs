//! The stages of a write, where this crate's tests make it fail or kill the process. Other builds pass them for free.

use std::io;

/// What has just been done, or is about to be for [`ParentSynced`](Point::ParentSynced).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// The draft exists and is empty.
    Created,
    /// It has its content, perhaps only in memory.
    Written,
    /// It has owner and mode, and is on the disk.
    Synced,
    /// It has its name.
    Renamed,
    /// The directory is being brought to the disk.
    ParentSynced,
}

#[cfg(not(test))]
pub(crate) fn pass(_: Point) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(crate) use faults::pass;

#[cfg(test)]
pub(crate) mod faults {
    use super::{Point, io};
    use std::cell::RefCell;

    /// What happens at a point.
    #[derive(Debug, Clone, Copy)]
    pub(crate) enum Fault {
        Fail(io::ErrorKind),
        Kill,
    }

    thread_local! {
        static FAULT: RefCell<Option<(Point, Fault)>> = const { RefCell::new(None) };
        static PASSED: RefCell<Vec<Point>> = const { RefCell::new(Vec::new()) };
    }

    pub(crate) fn set(fault: Option<(Point, Fault)>) {
        FAULT.set(fault);
    }

    /// The points passed since the last call.
    pub(crate) fn passed() -> Vec<Point> {
        PASSED.take()
    }

    pub(crate) fn pass(point: Point) -> io::Result<()> {
        PASSED.with_borrow_mut(|passed| passed.push(point));
        match FAULT.with_borrow(|fault| fault.filter(|(at, _)| *at == point)) {
            Some((_, Fault::Fail(kind))) => Err(kind.into()),
            Some((_, Fault::Kill)) => {
                nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).expect("raise");
                unreachable!("killed")
            }
            None => Ok(()),
        }
    }
}

//! End-to-end tests on real lab hosts, through the two programs `fleetward` and `fleetward-lab`.
//!
//! A suite is one test program with one lab: [`suite::run`] brings the lab up, runs the cases one after the other, and
//! takes the lab down. Cases wait for conditions with a deadline ([`wait`]), inspect hosts as an administrator would
//! ([`residue`]), and read the guest's output on its serial console ([`guest`]) or talk to it over the lab's bridge ([`lan`]).

pub mod fleet;
pub mod former;
pub mod freezer;
pub mod guest;
pub mod lan;
pub mod residue;
pub mod secure_boot;
pub mod suite;
pub mod variables;
pub mod wait;

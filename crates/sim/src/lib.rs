//! Simulated hosts: agents that keep their VMs in memory and speak the agents' API over real mutual TLS.
//!
//! There is one such agent. The controller's tests hold the controller to the agents' contract with it, and `fleetward-sim`
//! shows how a controller bears a fleet that nobody has yet.
//!
//! | module | owns |
//! |---|---|
//! | [`agent`] | one host |
//! | [`plan`] | what a fleet looks like: names, addresses, groups, VMs |
//! | [`guardians`], [`prepare`], [`directory`] | hosts that join a controller, and what is kept of them |
//! | [`custody`] | what a host seals key protectors with |
//! | [`fleet`] | all hosts of a fleet in one process |
//! | [`scenario`] | what happens to them |
//! | [`measure`], [`scale`] | what a controller needs for them |
//! | [`storm`] | what a controller shows when much happens at once |

#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests make and damage files as they like"
    )
)]

pub mod agent;
pub mod custody;
pub mod directory;
pub mod fleet;
pub mod guardians;
pub mod measure;
pub mod plan;
pub mod prepare;
pub mod scale;
pub mod scenario;
pub mod storm;

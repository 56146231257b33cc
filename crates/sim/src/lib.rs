//! Simulated hosts: agents that keep their VMs in memory and speak the agents' API over real mutual TLS.
//!
//! There is one of them. The controller's tests hold the controller to the agents' contract with it, and `fleetward-sim`
//! shows how a controller bears a fleet that nobody has yet.

pub mod agent;

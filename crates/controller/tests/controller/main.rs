//! The controller from outside: over its real API, with hosts that are simulated.
//!
//! One program: to link each file on its own takes minutes and gigabytes. What measures the whole process is in `growth.rs`.

#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

mod absence;
mod alerts;
mod api;
mod audit;
mod autostart;
mod bulk;
mod certificates;
mod change;
mod claims;
mod clocks;
mod crash;
mod ek;
mod escrow;
mod findings;
mod first_call;
mod fit;
mod fleet;
mod former;
mod generated;
mod groups;
mod images;
mod jobs;
mod keys;
mod lists;
mod networks;
mod pages;
mod scenario;
mod seed;
mod sessions;
mod tags;
mod usage;
mod ways_in;

/// The body of the test by which this program becomes a controller that can be killed.
#[tokio::test(flavor = "multi_thread")]
async fn the_controller() {
    fleet::be_the_controller().await;
}

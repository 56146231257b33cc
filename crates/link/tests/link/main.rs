//! The doors, the client and the tunnels against each other, over real sockets on loopback.

#![allow(
    clippy::disallowed_methods,
    reason = "tests make and damage files as they like"
)]

mod http;
mod strangers;
mod support;
mod trust;
mod tunnels;
mod web;

//! The doors, the client and the tunnels against each other, over real sockets on loopback.

mod http;
mod support;
mod trust;
mod tunnels;

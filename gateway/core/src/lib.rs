//! What a gateway decides: whether it is the active one, which cables it lays and by which addresses, what it wants of
//! the kernel, and what it says about all that.
//!
//! Sans-IO: sockets, clocks, records and randomness belong to the daemon, which passes in what it saw and carries out
//! what comes back. Machines speak `handle_*(.., now)`, `poll_transmit(now)` and `poll_timeout()`.

// Tests begin somewhere in time.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod cables;
pub mod desired;
pub mod election;
pub mod firewall;
pub mod health;
pub mod local_endpoint;
pub mod nat_discovery;
pub mod public_ip;
pub mod status;
pub mod succession;

#[cfg(test)]
mod testing;

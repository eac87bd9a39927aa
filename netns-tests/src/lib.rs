//! Clusters made of network namespaces: the laboratory that the demo, the tests and the bench stand in.
//!
//! A [`Lab`] has the networks and nothing of Culvert; a [`Deployment`] runs the real daemons on its nodes. Everything is
//! made by the commands that an operator would type (`docs/decisions/0001-lab-by-commands.md`), so that a kept lab can
//! be understood and repaired by hand.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod capture;
mod command;
mod daemon;
mod deployment;
mod lab;
mod leftovers;
mod namespace;
mod ping;
mod tcp;
mod throughput;
mod topology;
mod udp;
mod wait;
mod wiring;

pub use capture::{Capture, Seen, Watchlist};
pub use command::{run, run_with_input};
pub use daemon::{Binaries, Daemon, Role};
pub use deployment::{CableDriver, Deployment, Settings};
pub use lab::{Cluster, Lab, Node};
pub use leftovers::leftovers;
pub use namespace::Namespace;
pub use ping::{Pinger, Pings, ping};
pub use tcp::{Conversation, Transfer, transfer};
pub use throughput::throughput;
pub use topology::{ClusterPlan, NodePlan, Topology};
pub use udp::echo;
pub use wait::{WaitError, wait_for};

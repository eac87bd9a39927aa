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
mod forge;
mod greeter;
pub mod kubernetes;
mod lab;
mod leftovers;
mod lock;
mod metrics;
mod namespace;
mod nat_discovery;
mod old_kernel;
mod outage;
mod overlapping;
mod ping;
mod proxy;
mod records;
mod services;
mod submariner;
mod tcp;
mod throughput;
mod topology;
mod udp;
mod wait;
mod wiring;

pub use capture::{Capture, Seen, Watchlist};
pub use command::{run, run_with_input, set_flag};
pub use daemon::{Binaries, Daemon, Role};
pub use deployment::{CableDriver, Deployment, Settings};
pub use forge::{Flood, ForgedTunnel, garbage, send_forged};
pub use greeter::{Caller, Greeter, Greeting, Transport, greet_from};
pub use lab::{Cluster, Lab, Node};
pub use leftovers::leftovers;
pub use metrics::metrics;
pub use namespace::Namespace;
pub use nat_discovery::{Dialogue, NatDiscovery, Release};
pub use old_kernel::{Lacking, pretend_old_kernel};
pub use outage::{ControlPlane, kill_control_plane, start_control_plane};
pub use overlapping::Overlapping;
pub use ping::{Pinger, Pings, ping};
pub use proxy::ConnectProxy;
pub use records::{delete_record, records, write_record};
pub use services::{
    BackendPlan, NAMESPACE, ServicePlan, delete_export, write_egress, write_endpoints, write_export, write_pod,
    write_service,
};
pub use submariner::{Remote, Submariner};
pub use tcp::{Bulk, Conversation, Transfer, transfer};
pub use throughput::throughput;
pub use topology::{ClusterPlan, NodePlan, Proxy, Topology};
pub use udp::echo;
pub use wait::{WaitError, wait_for};

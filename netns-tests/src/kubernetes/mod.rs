//! Real Kubernetes clusters inside one machine, on the networks of the lab of namespaces.
//!
//! A [`Lab`] is brought up from a [`Plan`]: every cluster has an API server, a scheduler, a controller-manager, nodes with
//! containerd, kubelet and kube-proxy, and CoreDNS. A node is a set of namespaces, not a machine: `docs/kubernetes-lab.md`
//! tells what it shares with the others. All programs of Kubernetes are one binary, built from `netns-tests/kubernetes`.

mod certificates;
mod cgroups;
mod cluster;
mod control_plane;
mod image;
mod install;
mod lab;
mod network;
mod node;
mod node_config;
mod plan;
mod programs;
mod registry;
mod web;

pub use cluster::Cluster;
pub use image::{BUSYBOX, Image};
pub use install::{BROKER_NAMESPACE, CULVERT, Installer, NAMESPACE, join_line, state};
pub use lab::Lab;
pub use network::HOST_LINK;
pub use node::Node;
pub use plan::{ClusterPlan, Plan, ProxyMode};
pub use programs::Programs;
pub use web::{Answer, LARGE, Pod, WEB_PORT, Web, deploy, host_pods, pods, serve, service_address};

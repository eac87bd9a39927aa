//! Values that the tests of this crate share.

use std::net::IpAddr;

use culvert_model::{Addresses, Backend, CableKind, ClusterId, Endpoint, PublicKey, cable_name};
use ipnet::IpNet;

pub(crate) fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().expect("a subnet")
}

pub(crate) fn cluster(id: &str) -> ClusterId {
    id.parse().expect("a cluster id")
}

/// A Culvert gateway of cluster `id` with WireGuard; `number` tells gateways apart in address, subnet, key and age.
pub(crate) fn endpoint(id: &str, number: u8) -> Endpoint {
    let private = address(&format!("192.168.{number}.10"));
    Endpoint {
        cluster: cluster(id),
        cable_name: cable_name(&cluster(id), private),
        hostname: format!("{id}-gateway"),
        subnets: vec![net(&format!("100.{number}.0.0/16")), net(&format!("10.{number}.0.0/16"))],
        private: Addresses::from(private),
        public: Addresses::from(address(&format!("198.51.100.{number}"))),
        health_check: Addresses::from(address(&format!("10.{number}.0.1"))),
        nat_enabled: true,
        backend: Backend::Cable(CableKind::WireGuard),
        udp_port: 4500,
        nat_discovery_port: Some(4490),
        public_key: Some(PublicKey([number; 32])),
        using_load_balancer: false,
        culvert: true,
        created: i64::from(number),
    }
}

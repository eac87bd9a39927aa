//! Inputs that tests start from: a worker of cluster `east` with one gateway, and one remote cluster, `west`.

use std::collections::{BTreeMap, BTreeSet};

use culvert_model::{Addresses, Backend, CableKind, Endpoint, cable_name};
use ipnet::IpNet;

use crate::{Inputs, Interface, KnownCluster};

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub(crate) fn endpoint(cluster: &str, hostname: &str, private: &str, subnets: &[&str]) -> Endpoint {
    let cluster = cluster.parse().unwrap();
    let private = private.parse().unwrap();
    Endpoint {
        cable_name: cable_name(&cluster, private),
        cluster,
        hostname: hostname.to_owned(),
        subnets: subnets.iter().map(|subnet| net(subnet)).collect(),
        private: Addresses::from(private),
        public: Addresses::default(),
        health_check: Addresses::default(),
        nat_enabled: false,
        backend: Backend::Cable(CableKind::WireGuard),
        udp_port: 4500,
        nat_discovery_port: None,
        public_key: None,
        using_load_balancer: false,
        culvert: true,
        created: 100,
    }
}

pub(crate) fn cluster(name: &str, subnets: &[&str]) -> KnownCluster {
    KnownCluster { name: name.to_owned(), subnets: subnets.iter().map(|subnet| net(subnet)).collect() }
}

pub(crate) fn inputs() -> Inputs {
    let interface = |mtu, address| Interface { mtu, addresses: vec![net(address)] };
    Inputs {
        cluster: "east".parse().unwrap(),
        node: "worker".to_owned(),
        address: "192.168.1.20".parse::<std::net::IpAddr>().unwrap().into(),
        pods: vec![net("10.1.0.0/16")],
        services: vec![net("100.1.0.0/16")],
        global: Vec::new(),
        endpoints: vec![
            endpoint("east", "gateway", "192.168.1.10", &["100.1.0.0/16", "10.1.0.0/16"]),
            endpoint("west", "far", "192.168.2.10", &["100.2.0.0/16", "10.2.0.0/16"]),
        ],
        clusters: vec![cluster("east", &["10.1.0.0/16"]), cluster("west", &["100.2.0.0/16", "10.2.0.0/16"])],
        interfaces: BTreeMap::from([
            ("cni0".to_owned(), interface(1450, "10.1.2.1/24")),
            ("eth0".to_owned(), interface(1500, "192.168.1.20/24")),
            ("lo".to_owned(), interface(65535, "127.0.0.1/8")),
        ]),
        node_addresses: BTreeSet::from(["192.168.1.21".parse().unwrap()]),
    }
}

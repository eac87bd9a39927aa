//! Decides what this cluster's Endpoint says: subnets, addresses, ports and key of the active gateway.
//!
//! Fields follow Submariner chapter 2.1; the key is there whatever the cable driver, so that two Culvert gateways can
//! always agree on WireGuard.

use std::net::IpAddr;

use culvert_model::{Addresses, Backend, CableKind, ClusterId, Endpoint, PublicKey, cable_name, global_cable_name};
use ipnet::IpNet;

/// What the gateway knows of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalFacts {
    pub cluster: ClusterId,
    /// The node's host name.
    pub hostname: String,
    pub service_cidrs: Vec<IpNet>,
    pub cluster_cidrs: Vec<IpNet>,
    /// With Globalnet, what others reach this cluster by, instead of these two; else none.
    pub global_cidrs: Vec<IpNet>,
    /// This gateway's addresses among the global ones, as far as it has some.
    pub global: Addresses,
    pub private: Addresses,
    /// What the resolvers gave; empty when there are none.
    pub public: Addresses,
    /// Whether the public address is a load balancer's. Other gateways then look for the private address for 6 s
    /// instead of 60, and take the public one, with NAT, if they find none (chapters 4.4 and 4.6).
    pub using_load_balancer: bool,
    /// The node's address in the pod network; see [`cni_addresses`].
    pub cni: Addresses,
    pub nat_enabled: bool,
    /// The cable driver that the configuration names.
    pub backend: CableKind,
    pub ports: Ports,
    /// `None` turns NAT discovery off.
    pub nat_discovery_port: Option<u16>,
    pub public_key: PublicKey,
    /// When the record was made, in seconds since 1970.
    pub created: i64,
}

/// The facts make no Endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocalEndpointError {
    #[error(
        "no private address of node {hostname} is known: give one with --private-ip, or a default route to the node"
    )]
    NoPrivateAddress { hostname: String },
    #[error("cluster {cluster} has no subnets to offer: give --cluster-cidr and --service-cidr")]
    NoSubnets { cluster: ClusterId },
}

/// Returns the Endpoint of this gateway: service CIDRs, then pod CIDRs (Submariner chapter 2.1).
///
/// With Globalnet it offers the global CIDRs alone, and only a global address is probed (chapter 8.4). It has another name
/// then: what changes is a new Endpoint in place of an old one.
///
/// # Errors
///
/// [`LocalEndpointError`] names the fact that is missing and the flag that gives it.
pub fn local_endpoint(facts: &LocalFacts) -> Result<Endpoint, LocalEndpointError> {
    let private = facts
        .private
        .iter()
        .next()
        .ok_or_else(|| LocalEndpointError::NoPrivateAddress { hostname: facts.hostname.clone() })?;
    let mut subnets: Vec<IpNet> = Vec::new();
    let with_globalnet = !facts.global_cidrs.is_empty();
    let offered = match with_globalnet {
        true => facts.global_cidrs.iter().chain(&[]),
        false => facts.service_cidrs.iter().chain(&facts.cluster_cidrs),
    };
    for subnet in offered.map(IpNet::trunc) {
        if !subnets.contains(&subnet) {
            subnets.push(subnet);
        }
    }
    if subnets.is_empty() {
        return Err(LocalEndpointError::NoSubnets { cluster: facts.cluster.clone() });
    }
    let health_check = match with_globalnet {
        true => facts.global.iter().filter(|address| subnets.iter().any(|subnet| subnet.contains(address))).collect(),
        false => facts.cni,
    };
    Ok(Endpoint {
        cluster: facts.cluster.clone(),
        cable_name: match with_globalnet {
            true => global_cable_name(&facts.cluster, private, &subnets),
            false => cable_name(&facts.cluster, private),
        },
        hostname: facts.hostname.clone(),
        subnets,
        private: facts.private,
        public: facts.public,
        health_check,
        nat_enabled: facts.nat_enabled,
        backend: Backend::Cable(facts.backend),
        udp_port: facts.ports.wireguard,
        nat_discovery_port: facts.nat_discovery_port,
        public_key: Some(facts.public_key),
        using_load_balancer: facts.using_load_balancer,
        culvert: true,
        created: facts.created,
    })
}

/// Returns the node's addresses in the pod network: those of `node_addresses` that lie in a pod CIDR, the lowest of
/// each family, so that the answer is the same after every start.
pub fn cni_addresses(node_addresses: impl IntoIterator<Item = IpAddr>, cluster_cidrs: &[IpNet]) -> Addresses {
    let mut inside: Vec<IpAddr> =
        node_addresses.into_iter().filter(|address| cluster_cidrs.iter().any(|cidr| cidr.contains(address))).collect();
    inside.sort_unstable();
    inside.into_iter().collect()
}

/// The UDP ports of the cables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// Published as `udp-port`.
    pub wireguard: u16,
    /// Where VXLAN cables run; `None` when there can be none.
    pub vxlan: Option<u16>,
}

/// No port is left for WireGuard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--natt-port {natt_port} leaves no port above it for WireGuard beside VXLAN: choose 1 to 65534")]
pub struct PortsError {
    natt_port: u16,
}

impl Ports {
    /// Gives VXLAN the `natt_port` where VXLAN can run, since Submariner sends to its own port, and WireGuard the next
    /// one: a kernel VXLAN device and a WireGuard socket cannot share a port.
    ///
    /// # Errors
    ///
    /// [`PortsError`] when VXLAN takes the last port there is.
    pub fn assign(natt_port: u16, backend: CableKind, vxlan_allowed: bool) -> Result<Self, PortsError> {
        if backend == CableKind::Vxlan || vxlan_allowed {
            let wireguard = natt_port.checked_add(1).ok_or(PortsError { natt_port })?;
            Ok(Self { wireguard, vxlan: Some(natt_port) })
        } else {
            Ok(Self { wireguard: natt_port, vxlan: None })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{address, cluster, net};

    fn facts() -> LocalFacts {
        LocalFacts {
            cluster: cluster("east"),
            hostname: "gw1".to_owned(),
            service_cidrs: vec![net("100.1.0.0/16")],
            cluster_cidrs: vec![net("10.1.0.0/16"), net("100.1.0.0/16")],
            global_cidrs: Vec::new(),
            global: Addresses::default(),
            private: Addresses::from(address("192.168.1.10")),
            public: Addresses::default(),
            using_load_balancer: true,
            cni: Addresses::from(address("10.1.0.1")),
            nat_enabled: true,
            backend: CableKind::Vxlan,
            ports: Ports::assign(4500, CableKind::Vxlan, false).unwrap(),
            nat_discovery_port: Some(4490),
            public_key: PublicKey([7; 32]),
            created: 5,
        }
    }

    #[test]
    fn services_come_before_pods_and_the_key_is_always_there() {
        let endpoint = local_endpoint(&facts()).unwrap();

        assert_eq!(endpoint.subnets, [net("100.1.0.0/16"), net("10.1.0.0/16")]);
        assert_eq!(endpoint.cable_name, "submariner-cable-east-192-168-1-10");
        assert_eq!(endpoint.public_key, Some(PublicKey([7; 32])));
        assert_eq!(endpoint.health_check, Addresses::from(address("10.1.0.1")));
        assert_eq!(endpoint.udp_port, 4501);
        assert!(endpoint.using_load_balancer);
    }

    #[test]
    fn with_globalnet_the_global_cidrs_are_offered_and_a_global_address_is_probed() {
        let global =
            LocalFacts { global_cidrs: vec![net("242.1.0.0/16")], global: address("242.1.255.254").into(), ..facts() };
        let endpoint = local_endpoint(&global).unwrap();

        assert_eq!(endpoint.subnets, [net("242.1.0.0/16")]);
        assert_eq!(endpoint.health_check, Addresses::from(address("242.1.255.254")));
        assert_ne!(endpoint.cable_name, local_endpoint(&facts()).unwrap().cable_name);
        // None yet, or one of a range that the cluster had before.
        for other in [Addresses::default(), address("242.2.255.254").into()] {
            let endpoint = local_endpoint(&LocalFacts { global: other, ..global.clone() }).unwrap();
            assert_eq!(endpoint.health_check, Addresses::default());
        }
    }

    #[test]
    fn missing_facts_name_their_flag() {
        let no_address = LocalFacts { private: Addresses::default(), ..facts() };
        let no_subnets = LocalFacts { service_cidrs: Vec::new(), cluster_cidrs: Vec::new(), ..facts() };

        assert!(local_endpoint(&no_address).unwrap_err().to_string().contains("--private-ip"));
        assert!(local_endpoint(&no_subnets).unwrap_err().to_string().contains("--cluster-cidr"));
    }

    #[test]
    fn vxlan_takes_the_port_and_wireguard_the_next() {
        let ports = |wireguard, vxlan| Ok(Ports { wireguard, vxlan });

        assert_eq!(Ports::assign(4500, CableKind::WireGuard, false), ports(4500, None));
        assert_eq!(Ports::assign(4500, CableKind::WireGuard, true), ports(4501, Some(4500)));
        assert_eq!(Ports::assign(4500, CableKind::Vxlan, false), ports(4501, Some(4500)));
        assert_eq!(Ports::assign(u16::MAX, CableKind::WireGuard, false), ports(u16::MAX, None));
        assert!(Ports::assign(u16::MAX, CableKind::WireGuard, true).is_err());
    }

    #[test]
    fn the_lowest_address_in_the_pod_network_is_the_cnis() {
        let node = ["192.168.1.10", "10.1.4.9", "10.1.4.1", "fd00:1::1", "fd00:9::1"].map(address);

        let found = cni_addresses(node, &[net("10.1.0.0/16"), net("fd00:1::/48")]);

        assert_eq!(found, [address("10.1.4.1"), address("fd00:1::1")].into_iter().collect());
    }
}

//! The objects of a cluster with many services: ten endpoints each, of one port.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

/// Endpoints of a service.
pub(crate) const ENDPOINTS: u32 = 10;
/// The services' port.
pub(crate) const PORT: u16 = 80;
/// The pods'.
pub(crate) const TARGET_PORT: u16 = 8080;
/// Services are spread over so many namespaces.
const NAMESPACES: u32 = 10;

const PODS: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 0);
const SERVICES: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// A service by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Service(pub(crate) u32);

impl Service {
    pub(crate) fn namespace(self) -> String {
        format!("shop{}", self.0 % NAMESPACES)
    }

    pub(crate) fn name(self) -> String {
        format!("web{:05}", self.0)
    }

    /// Returns the addresses of its endpoints; no other service has them.
    pub(crate) fn addresses(self) -> Vec<Ipv4Addr> {
        (0..ENDPOINTS).map(|endpoint| nth(PODS, self.0 * 16 + endpoint + 1)).collect()
    }

    pub(crate) fn object(self) -> Value {
        let address = nth(SERVICES, self.0).to_string();
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {"namespace": self.namespace(), "name": self.name(), "labels": {"app": self.name()}},
            "spec": {
                "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "selector": {"app": self.name()},
                "ports": [{"name": "http", "protocol": "TCP", "port": PORT, "targetPort": TARGET_PORT}],
            },
        })
    }

    /// Returns its slice with these endpoints.
    pub(crate) fn slice(self, addresses: &[Ipv4Addr]) -> Value {
        let endpoints: Vec<Value> = addresses
            .iter()
            .enumerate()
            .map(|(at, address)| {
                json!({
                    "addresses": [address.to_string()],
                    "conditions": {"ready": true, "serving": true, "terminating": false},
                    "nodeName": "worker",
                    "targetRef": {"kind": "Pod", "name": self.pod_name(at), "namespace": self.namespace()},
                })
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "namespace": self.namespace(), "name": format!("{}-slice", self.name()),
                "labels": {"kubernetes.io/service-name": self.name()},
            },
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": [{"name": "http", "protocol": "TCP", "port": TARGET_PORT}],
        })
    }

    pub(crate) fn pods(self) -> Vec<Value> {
        let pod = |(at, address): (usize, &Ipv4Addr)| {
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"namespace": self.namespace(), "name": self.pod_name(at), "labels": {"app": self.name()}},
                "spec": {"nodeName": "worker"},
                "status": {"phase": "Running", "podIP": address.to_string(), "podIPs": [{"ip": address.to_string()}]},
            })
        };
        self.addresses().iter().enumerate().map(pod).collect()
    }

    pub(crate) fn export(self) -> Value {
        json!({
            "apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceExport",
            "metadata": {"namespace": self.namespace(), "name": self.name()},
        })
    }

    fn pod_name(self, endpoint: usize) -> String {
        format!("{}-{endpoint}", self.name())
    }
}

/// Returns an address that no service has from the beginning.
pub(crate) fn new_address(number: u32) -> Ipv4Addr {
    nth(Ipv4Addr::new(10, 192, 0, 1), number)
}

fn nth(first: Ipv4Addr, number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(first) + number)
}

/// Returns the record that says that this node's gateway is the active one.
pub(crate) fn endpoint(cluster: &str, node: &str, namespace: &str) -> Value {
    json!({
        "apiVersion": "submariner.io/v1", "kind": "Endpoint",
        "metadata": {"namespace": namespace, "name": format!("{cluster}-{node}")},
        "spec": {
            "cluster_id": cluster, "cable_name": format!("submariner-cable-{cluster}"), "hostname": node,
            "healthCheckIP": "", "subnets": [], "private_ip": "10.127.0.1", "public_ip": "", "nat_enabled": false,
            "backend": "wireguard", "backend_config": {},
        },
    })
}

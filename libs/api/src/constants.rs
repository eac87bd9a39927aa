//! Names and numbers that clusters agree on (Submariner chapters 3.4, 4.6, 8 and 12), and those that are Culvert's own.

/// Labels and annotations.
pub mod labels {
    /// Label on everything at the broker, and on local copies of it: the cluster that sent it.
    pub const CLUSTER_ID: &str = "submariner-io/clusterID";
    /// Annotation on a Gateway: when it was last written, in seconds since 1970.
    pub const UPDATE_TIMESTAMP: &str = "update-timestamp";
    /// Annotation on a Gateway: its address among the cluster's global ones, with Globalnet.
    pub const GLOBAL_IP: &str = "submariner.io/globalIp";
    /// Annotation on a RouteAgent: the node's addresses, separated by commas.
    pub const NODE_ADDRESSES: &str = "culvert.io/node-addresses";
    /// Annotation on the local copy of a Cluster that has left: when, as RFC 3339 text.
    pub const DEPARTED: &str = "culvert.io/departed";
    /// Label on an EndpointSlice: the Service whose endpoints it has.
    pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
}

/// Names of Globalnet's objects.
pub mod globalnet {
    /// The one ClusterGlobalEgressIP that counts.
    pub const CLUSTER_EGRESS: &str = "cluster-egress.submariner.io";
    /// How many addresses it asks for when it is made.
    pub const CLUSTER_EGRESS_NUMBER: i64 = 8;
    /// Annotation on a Gateway: its global address.
    pub const GATEWAY_ADDRESS: &str = "submariner.io/globalIp";
    /// Label on the GlobalIngressIP of a headless service's pod or endpoint: the service.
    pub const SERVICE: &str = "submariner.io/serviceRef";
    /// Annotation on a GlobalIngressIP: the address of the pod.
    pub const POD_ADDRESS: &str = "submariner.io/headless-svc-pod-ip";
    /// Annotation on a GlobalIngressIP: the address of the endpoint.
    pub const ENDPOINT_ADDRESS: &str = "submariner.io/headless-svc-endpoints-ip";
}

/// How a Gateway record tells that its process lives.
pub mod gateway_record {
    use std::time::Duration;

    /// Between two writes when nothing happens. Submariner's gateways write every 5 s (chapter 4.2).
    pub const HEARTBEAT: Duration = Duration::from_secs(15);
    /// A record that is older is its process's last word: three heartbeats, as with Submariner (chapter 3.5).
    pub const STALE: Duration = Duration::from_secs(45);
}

/// UDP and TCP ports.
pub mod ports {
    /// UDP: cables.
    pub const CABLE: u16 = 4500;
}

/// Keys of an Endpoint's `backend_config`.
pub mod backend_config {
    /// Where the cable's datagrams go.
    pub const UDP_PORT: &str = "udp-port";
    /// Where NAT discovery is answered.
    pub const NAT_DISCOVERY_PORT: &str = "natt-discovery-port";
    /// WireGuard's Curve25519 key, in base64.
    pub const PUBLIC_KEY: &str = "publicKey";
    /// `true` if a load balancer stands before the gateway.
    pub const USING_LOAD_BALANCER: &str = "using-loadbalancer";
    /// In the copy within a Gateway's status only: the peer's port as it was heard, perhaps a NAT's.
    pub const USING_PORT: &str = "culvert-using-port";
    /// `1` if the gateway is Culvert's.
    pub const CULVERT: &str = "culvert";
}

//! The commands that make a lab's networks: what each namespace has, as text for `ip -batch` and `nft -f`.
//!
//! The masquerading rules are those of common container networks and of kube-proxy in its iptables form: they are what
//! a path between clusters has to survive.

use std::fmt::Write;
use std::net::Ipv4Addr;

use anyhow::Result;
use ipnet::Ipv4Net;

use crate::command::run_with_input;
use crate::lab::{Cluster, Node};
use crate::namespace::Namespace;
use crate::topology::{ClusterPlan, Proxy, nth_address};

/// Documentation range TEST-NET-3 (RFC 5737): the links of the Internet.
pub(crate) const INTERNET: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(203, 0, 113, 0), 24);
/// Offset of the link between the two Internet routers.
pub(crate) const CORE: u32 = 252;

/// TCP port of the one service of each cluster, and of the pods behind it.
pub(crate) const SERVICE_PORT: u16 = 8080;

/// The link of a cluster's router to the Internet, named `wan` there.
pub(crate) struct Uplink {
    pub(crate) internet: Ipv4Addr,
    pub(crate) router: Ipv4Addr,
    pub(crate) network: Ipv4Net,
}

impl Uplink {
    /// Returns the uplink of the cluster with this index.
    pub(crate) fn of(index: usize) -> Self {
        let base = u32::try_from(index).expect("a lab has few clusters") * 4;
        Self {
            internet: nth_address(INTERNET, base + 1),
            router: nth_address(INTERNET, base + 2),
            network: Ipv4Net::new_assert(nth_address(INTERNET, base), 30),
        }
    }
}

/// Returns which of the two Internet routers the cluster with this index is attached to.
pub(crate) fn attachment(index: usize) -> usize {
    index % 2
}

/// Makes the link between the Internet routers; for the first of them.
pub(crate) fn core_link(other: &Namespace) -> String {
    format!("link add core type veth peer name core netns {}\n", other.name())
}

/// Makes the router's end of everything: uplink, the nodes' network, and a port for each node.
pub(crate) fn router(index: usize, cluster: &Cluster, internet: &Namespace) -> String {
    let ClusterPlan { id, internet_mtu, node_network, .. } = &cluster.plan;
    let uplink = Uplink::of(index);
    let mut lines = format!(
        "link set lo up\n\
         link add wan mtu {internet_mtu} type veth peer name {id} mtu {internet_mtu} netns {}\n\
         addr add {}/30 dev wan\n\
         link set wan up\n\
         route add default via {}\n\
         link add lan type bridge\n\
         addr add {}/{} dev lan\n\
         link set lan up\n",
        internet.name(),
        uplink.router,
        uplink.internet,
        cluster.plan.router_address(),
        node_network.prefix_len(),
    );
    for node in &cluster.nodes {
        let (port, namespace) = (&node.short_name, node.namespace.name());
        let _ = writeln!(lines, "link add name {port} type veth peer name eth0 netns {namespace}");
        let _ = writeln!(lines, "link set dev {port} master lan up");
    }
    lines
}

/// Masquerades what leaves the node network, as a home or office router does.
pub(crate) const NAT_ROUTER: &str = "table ip router {
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname \"wan\" masquerade
    }
}";

/// Configures one of the Internet routers: its ends of the uplinks, and routes to what is attached to the other.
pub(crate) fn internet(number: usize, clusters: &[Cluster]) -> String {
    let address = |number: usize| nth_address(INTERNET, CORE + 1 + u32::try_from(number).expect("there are two"));
    let mut lines = format!("link set lo up\naddr add {}/30 dev core\nlink set core up\n", address(number));
    for (index, cluster) in clusters.iter().enumerate() {
        let uplink = Uplink::of(index);
        let plan = &cluster.plan;
        let here = attachment(index) == number;
        let via = if here { uplink.router } else { address(1 - number) };
        if here {
            let _ = writeln!(lines, "addr add {}/30 dev {}", uplink.internet, plan.id);
            let _ = writeln!(lines, "link set dev {} up", plan.id);
        } else {
            let _ = writeln!(lines, "route add {} via {via}", uplink.network);
        }
        if !plan.behind_nat {
            let _ = writeln!(lines, "route add {} via {via}", plan.node_network);
        }
    }
    lines
}

/// Configures a node: its address, its pod bridge, and the routes to the other nodes' pods.
pub(crate) fn node(cluster: &Cluster, node: &Node) -> String {
    let plan = &cluster.plan;
    let mut lines = format!(
        "link set lo up\n\
         addr add {}/{} dev eth0\n\
         link set eth0 up\n\
         route add default via {}\n\
         link add cni0 type bridge\n\
         addr add {}/24 dev cni0\n\
         link set cni0 up\n\
         link add pod type veth peer name eth0 netns {}\n\
         link set pod master cni0 up\n",
        node.address,
        plan.node_network.prefix_len(),
        plan.router_address(),
        node.pod_gateway(),
        node.pod.name(),
    );
    for other in cluster.nodes.iter().filter(|other| other.name != node.name) {
        let _ = writeln!(lines, "route add {} via {}", other.pod_network, other.address);
    }
    lines
}

/// Configures the pod of a node.
pub(crate) fn pod(node: &Node) -> String {
    format!(
        "link set lo up\naddr add {}/24 dev eth0\nlink set eth0 up\nroute add default via {}\n",
        node.pod_address,
        node.pod_gateway()
    )
}

/// Gives a node the NAT rules of others: the container network's masquerade, and kube-proxy's marks, cluster IP and
/// masquerade.
pub(crate) fn add_node_nat(plan: &ClusterPlan, node: &Node) -> Result<()> {
    match plan.proxy {
        Proxy::Nftables => node.namespace.nft(&nftables_nat(plan, node)),
        Proxy::Iptables => {
            run_with_input(&mut node.namespace.command("iptables-restore"), &iptables_nat(plan, node)).map(drop)
        }
        Proxy::None => Ok(()),
    }
}

fn iptables_nat(plan: &ClusterPlan, node: &Node) -> String {
    let ClusterPlan { pod_cidr, service_cidr, .. } = plan;
    let (service, pod) = (plan.service_address(), node.pod_address);
    format!(
        "*nat
:KUBE-SERVICES - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A OUTPUT -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A POSTROUTING -s {pod_cidr} ! -d {pod_cidr} -j MASQUERADE
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-SERVICES ! -s {pod_cidr} -d {service_cidr} -j KUBE-MARK-MASQ
-A KUBE-SERVICES -d {service} -p tcp --dport {SERVICE_PORT} -j DNAT --to-destination {pod}:{SERVICE_PORT}
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
COMMIT
*filter
:KUBE-FORWARD - [0:0]
-A FORWARD -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
COMMIT
"
    )
}

fn nftables_nat(plan: &ClusterPlan, node: &Node) -> String {
    let ClusterPlan { pod_cidr, service_cidr, .. } = plan;
    let (service, pod) = (plan.service_address(), node.pod_address);
    format!(
        "table ip nat-cni {{
    chain postrouting {{
        type nat hook postrouting priority srcnat
        ip saddr {pod_cidr} ip daddr != {pod_cidr} ip daddr != 224.0.0.0/4 masquerade
    }}
}}
table ip kube-proxy {{
    chain services {{
        ip saddr != {pod_cidr} ip daddr {service_cidr} meta mark set meta mark or 0x4000
        ip daddr {service} tcp dport {SERVICE_PORT} dnat to {pod}:{SERVICE_PORT}
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat
        jump services
    }}
    chain output {{
        type nat hook output priority -100
        jump services
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat
        meta mark and 0x4000 != 0x4000 return
        meta mark set meta mark xor 0x4000
        masquerade fully-random
    }}
    chain forward {{
        type filter hook forward priority filter
        ct state invalid drop
    }}
}}"
    )
}

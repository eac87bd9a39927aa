//! Who holds which global address: what the allocation gives and the NAT takes.
//!
//! Each egress address belongs to one gateway, since replies have to come to the connection table that knows their flow.
//! While one gateway of a cluster is active, all are its own; with several, a gateway is to stand beside each of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::ObjectKey;

/// The global addresses of a cluster, as they are held now.
///
/// An address stands in one of the fields only, but for [`Self::leaving`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GlobalAddresses {
    /// The cluster's global CIDRs, at most one of a family.
    pub cidrs: Vec<IpNet>,
    /// How sources that are in no other group leave.
    pub cluster_egress: BTreeSet<IpAddr>,
    /// How chosen pods leave, by the object that chose them, in its text form (`GlobalEgressIP <namespace>/<name>`).
    pub egress: BTreeMap<String, EgressGroup>,
    /// Global address of a headless service's pod or endpoint, and the address behind it.
    pub ingress_hosts: BTreeMap<IpAddr, IpAddr>,
    /// Those of `ingress_hosts` by which what is behind them leaves too, unless a `GlobalEgressIP` with a pod selector
    /// chose it. Not what has the address of another namespace's pod, or of a node.
    pub leaving: BTreeSet<IpAddr>,
    /// Global address of a service, and the service.
    pub ingress_services: BTreeMap<IpAddr, ObjectKey>,
    /// Global address of a gateway of this cluster, by the name of its Gateway object; it answers pings only.
    pub gateways: BTreeMap<String, IpAddr>,
}

/// Sources that leave by addresses of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EgressGroup {
    /// Whether pods are chosen by a selector, which comes before headless services, and those before whole namespaces.
    pub is_selective: bool,
    /// Addresses of the pods; each in one selective and one other group at most.
    pub sources: BTreeSet<IpAddr>,
    /// Global addresses; at least one.
    pub addresses: BTreeSet<IpAddr>,
}

//! Decides which cable joins this gateway with every other cluster's, or why none does.
//!
//! - Two Culvert gateways take the cable driver that both name, otherwise WireGuard; both sides reach the same answer.
//!   Towards a Submariner gateway we follow its `backend`.
//! - No record weakens a cable: VXLAN only with clusters that the local configuration names.
//! - Of several Endpoints of one cluster the newest counts (Submariner chapter 4.3).
//! - Where two remote clusters claim the same thing, be it a subnet, a key or an address, the older Endpoint keeps it: a
//!   new record never takes traffic from a running cable.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use culvert_model::{
    Backend, CableKind, CableName, CableSet, ClusterId, Endpoint, ForeignSubnets, IpFamily, PublicKey, SubnetError,
    WireGuardCable, overlaps,
};
use ipnet::IpNet;

use crate::nat_discovery::NatChoices;

/// Address of a gateway on the VXLAN link: its private one with the first octet 241 (Submariner chapter 4.9).
const VTEP_FIRST_OCTET: u8 = 241;

/// What the choice rests on.
#[derive(Clone, Copy, Debug)]
pub struct ChoiceInputs<'a> {
    /// This gateway's own Endpoint.
    pub local: &'a Endpoint,
    /// All known Endpoints; those of the own cluster are passed over.
    pub endpoints: &'a [Endpoint],
    pub nat: &'a NatChoices,
    /// Clusters with which the link is trusted.
    pub allow_vxlan: &'a BTreeSet<ClusterId>,
    /// Our port for VXLAN cables; `None` when there can be none.
    pub vxlan_port: Option<u16>,
    pub foreign_subnets: &'a ForeignSubnets,
    /// All addresses of this node: no peer is sought there.
    pub own_addresses: &'a BTreeSet<IpAddr>,
    /// Clusters that have a cable already; they count as older than all others, however their records are dated.
    pub incumbents: &'a BTreeSet<ClusterId>,
}

/// What is chosen for every remote Endpoint that counts, by cable name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices(pub BTreeMap<CableName, Choice>);

/// What is chosen for one remote Endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub endpoint: Endpoint,
    pub cable: ChosenCable,
    /// Announced subnets that the cable does not carry.
    pub refused_subnets: Vec<RefusedSubnet>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChosenCable {
    WireGuard(WireGuardCable),
    Vxlan(VxlanCable),
    Refused(Refusal),
}

/// A cable of the kernel's VXLAN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanCable {
    /// Where the outer packets go.
    pub remote: Ipv4Addr,
    /// The peer's private address, from which its address and MAC on the VXLAN link follow.
    pub private: Ipv4Addr,
    /// IPv4 subnets behind the peer.
    pub subnets: Vec<IpNet>,
    /// Whether the peer is Culvert's, whose MAC is known beforehand.
    pub culvert: bool,
}

/// Why there is no cable to an Endpoint.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "cluster {cluster} wants an unencrypted vxlan cable: start the gateway with --allow-vxlan {cluster} if the link \
         is trusted, or use cable driver wireguard on both sides"
    )]
    VxlanNotAllowed { cluster: ClusterId },
    #[error(
        "cluster {cluster} uses cable driver {backend:?}, which is not spoken here: redeploy it with \
         `join --cable-driver wireguard`, or vxlan if the link is trusted"
    )]
    Backend { cluster: ClusterId, backend: String },
    #[error(
        "endpoint {cable_name} has no publicKey in its backend_config: restart the gateway of {cluster} to publish one"
    )]
    NoPublicKey { cluster: ClusterId, cable_name: String },
    #[error("endpoint {cable_name} has the public key of this gateway: one of the two must make a new key")]
    OwnPublicKey { cable_name: String },
    #[error("endpoint {cable_name} has the public key of cluster {other}: one of the two must make a new key")]
    PublicKeyTaken { cable_name: String, other: ClusterId },
    #[error(
        "cluster {cluster} uses cable name {cable_name}, which cluster {other} has: one of the two is copied, delete it"
    )]
    CableNameTaken { cluster: ClusterId, cable_name: String, other: ClusterId },
    #[error(
        "vxlan cables need an IPv4 private address on both sides and a reachable one of the peer, but endpoint \
         {cable_name} or this gateway has none: use cable driver wireguard"
    )]
    VxlanAddress { cable_name: String },
    #[error(
        "endpoint {cable_name} has vxlan on port {remote}, this gateway on {local}: start it with --natt-port {remote}"
    )]
    VxlanPort { cable_name: String, remote: u16, local: u16 },
    #[error(
        "endpoint {cable_name} would have address {address} for its vxlan cable, which cluster {other} has: \
         use cable driver wireguard"
    )]
    VxlanAddressTaken { cable_name: String, address: Ipv4Addr, other: ClusterId },
    #[error(
        "address {remote} of endpoint {cable_name} lies in its own subnet {subnet}, so a vxlan cable would carry itself: \
         use cable driver wireguard"
    )]
    VxlanInsideItself { cable_name: String, remote: Ipv4Addr, subnet: IpNet },
    #[error("no subnet of cluster {cluster} can be routed here")]
    NoSubnets { cluster: ClusterId },
}

/// Why a cable does not carry a subnet that its Endpoint announces.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefusedSubnet {
    #[error(transparent)]
    Foreign(#[from] SubnetError),
    #[error(
        "subnet {subnet} of cluster {cluster} overlaps {taken} of cluster {other}, which was there first: change one"
    )]
    Taken { subnet: IpNet, cluster: ClusterId, taken: IpNet, other: ClusterId },
    #[error("subnet {subnet} covers {remote}, where the vxlan cable to cluster {other} leads: announce a narrower one")]
    CoversPeer { subnet: IpNet, remote: Ipv4Addr, other: ClusterId },
    #[error("subnet {subnet} is not carried by a vxlan cable, which is for IPv4: use cable driver wireguard")]
    NotOverVxlan { subnet: IpNet },
}

impl Choices {
    /// Returns what the data plane has to run.
    pub fn cable_set(&self, local_subnets: &[IpNet]) -> CableSet {
        let cables = self.0.iter().filter_map(|(name, choice)| match &choice.cable {
            ChosenCable::WireGuard(cable) => Some((name.clone(), cable.clone())),
            ChosenCable::Vxlan(_) | ChosenCable::Refused(_) => None,
        });
        CableSet { cables: cables.collect(), local_subnets: local_subnets.to_vec(), ..CableSet::default() }
    }

    /// Returns the clusters that have a cable.
    pub fn clusters(&self) -> BTreeSet<ClusterId> {
        let joined = self.0.values().filter(|choice| match choice.cable {
            ChosenCable::WireGuard(_) | ChosenCable::Vxlan(_) => true,
            ChosenCable::Refused(_) => false,
        });
        joined.map(|choice| choice.endpoint.cluster.clone()).collect()
    }

    /// Returns the VXLAN cables, by cable name.
    pub fn vxlan(&self) -> impl Iterator<Item = (&CableName, &VxlanCable)> {
        self.0.iter().filter_map(|(name, choice)| match &choice.cable {
            ChosenCable::Vxlan(cable) => Some((name, cable)),
            ChosenCable::WireGuard(_) | ChosenCable::Refused(_) => None,
        })
    }
}

/// Returns the address on the VXLAN link of the gateway with `private` address (Submariner chapter 4.9).
pub fn vtep_address(private: Ipv4Addr) -> Ipv4Addr {
    let [_, b, c, d] = private.octets();
    Ipv4Addr::new(VTEP_FIRST_OCTET, b, c, d)
}

/// Chooses a cable for every remote Endpoint that counts.
///
/// The answer does not depend on the order of the Endpoints.
pub fn choose(inputs: &ChoiceInputs<'_>) -> Choices {
    let endpoints = oldest_first(inputs);
    let mut claims = Claims::default();
    let drafts: Vec<_> =
        endpoints.into_iter().map(|endpoint| (endpoint, draft(endpoint, inputs, &mut claims))).collect();

    let mut choices = BTreeMap::new();
    for (endpoint, draft) in drafts {
        let mut refused_subnets = Vec::new();
        let cable = draft.and_then(|draft| {
            let subnets = claims.take_subnets(endpoint, &draft, inputs.foreign_subnets, &mut refused_subnets);
            if subnets.is_empty() {
                return Err(Refusal::NoSubnets { cluster: endpoint.cluster.clone() });
            }
            Ok(draft.with_subnets(subnets, endpoint.culvert))
        });
        // Two clusters may write one cable name; the one that is refused must not hide the other.
        let name = match &cable {
            Err(Refusal::CableNameTaken { .. }) => format!("{}/{}", endpoint.cluster, endpoint.cable_name),
            Ok(_) | Err(_) => endpoint.cable_name.clone(),
        };
        let cable = cable.unwrap_or_else(ChosenCable::Refused);
        choices.insert(name, Choice { endpoint: endpoint.clone(), cable, refused_subnets });
    }
    Choices(choices)
}

/// Returns the newest Endpoint of every other cluster, oldest first.
fn oldest_first<'a>(inputs: &ChoiceInputs<'a>) -> Vec<&'a Endpoint> {
    let age = |endpoint: &'a Endpoint| (endpoint.created, endpoint.cable_name.as_str(), &endpoint.cluster);
    let mut newest: BTreeMap<&ClusterId, &Endpoint> = BTreeMap::new();
    for endpoint in inputs.endpoints.iter().filter(|endpoint| endpoint.cluster != inputs.local.cluster) {
        let kept = newest.entry(&endpoint.cluster).or_insert(endpoint);
        if age(endpoint) > age(kept) {
            *kept = endpoint;
        }
    }
    let mut endpoints: Vec<_> = newest.into_values().collect();
    // A cluster whose gateway was replaced has a young Endpoint, and one that would take its subnets may backdate its own.
    endpoints.sort_by_key(|endpoint| (!inputs.incumbents.contains(&endpoint.cluster), age(endpoint)));
    endpoints
}

/// A cable before its subnets are known.
enum Draft {
    WireGuard { public_key: PublicKey, candidates: Vec<SocketAddr> },
    Vxlan { remote: Ipv4Addr, private: Ipv4Addr },
}

impl Draft {
    fn with_subnets(self, subnets: Vec<IpNet>, culvert: bool) -> ChosenCable {
        match self {
            Self::WireGuard { public_key, candidates } => {
                ChosenCable::WireGuard(WireGuardCable { public_key, candidates, subnets })
            }
            Self::Vxlan { remote, private } => ChosenCable::Vxlan(VxlanCable { remote, private, subnets, culvert }),
        }
    }
}

fn draft<'a>(endpoint: &'a Endpoint, inputs: &ChoiceInputs<'a>, claims: &mut Claims<'a>) -> Result<Draft, Refusal> {
    let cable_name = || endpoint.cable_name.clone();
    if let Some(&other) = claims.cable_names.get(endpoint.cable_name.as_str()) {
        let cluster = endpoint.cluster.clone();
        return Err(Refusal::CableNameTaken { cluster, cable_name: cable_name(), other: other.clone() });
    }
    claims.cable_names.insert(&endpoint.cable_name, &endpoint.cluster);
    match kind(inputs.local, endpoint)? {
        CableKind::WireGuard => {
            let public_key = endpoint
                .public_key
                .ok_or_else(|| Refusal::NoPublicKey { cluster: endpoint.cluster.clone(), cable_name: cable_name() })?;
            if inputs.local.public_key == Some(public_key) {
                return Err(Refusal::OwnPublicKey { cable_name: cable_name() });
            }
            if let Some(&other) = claims.public_keys.get(&public_key) {
                return Err(Refusal::PublicKeyTaken { cable_name: cable_name(), other: other.clone() });
            }
            claims.public_keys.insert(public_key, &endpoint.cluster);
            Ok(Draft::WireGuard { public_key, candidates: candidates(endpoint, inputs) })
        }
        CableKind::Vxlan => {
            let (Some(local_port), true) = (inputs.vxlan_port, inputs.allow_vxlan.contains(&endpoint.cluster)) else {
                return Err(Refusal::VxlanNotAllowed { cluster: endpoint.cluster.clone() });
            };
            // Submariner sends to its own port. Culvert publishes its WireGuard port and takes the same VXLAN port.
            if !endpoint.culvert && endpoint.udp_port != local_port {
                let remote = endpoint.udp_port;
                return Err(Refusal::VxlanPort { cable_name: cable_name(), remote, local: local_port });
            }
            let (remote, private) =
                vxlan_addresses(endpoint, inputs).ok_or_else(|| Refusal::VxlanAddress { cable_name: cable_name() })?;
            if let Some(&subnet) = endpoint.subnets.iter().find(|subnet| subnet.contains(&IpAddr::V4(remote))) {
                return Err(Refusal::VxlanInsideItself { cable_name: cable_name(), remote, subnet });
            }
            let own = inputs.local.private.v4.map(vtep_address);
            for address in [vtep_address(private), remote] {
                let taken = if own == Some(address) {
                    Some(&inputs.local.cluster)
                } else {
                    claims.vxlan_addresses.get(&address).copied()
                };
                if let Some(other) = taken {
                    let other = other.clone();
                    return Err(Refusal::VxlanAddressTaken { cable_name: cable_name(), address, other });
                }
            }
            claims.vxlan_addresses.insert(vtep_address(private), &endpoint.cluster);
            claims.vxlan_addresses.insert(remote, &endpoint.cluster);
            Ok(Draft::Vxlan { remote, private })
        }
    }
}

/// The cable driver of a pair of gateways: the same whichever side asks, when both are Culvert's.
fn kind(local: &Endpoint, remote: &Endpoint) -> Result<CableKind, Refusal> {
    match (&remote.backend, remote.culvert) {
        (Backend::Cable(kind), false) => Ok(*kind),
        (Backend::Unsupported(backend), false) => {
            Err(Refusal::Backend { cluster: remote.cluster.clone(), backend: backend.clone() })
        }
        (Backend::Cable(kind), true) if remote.backend == local.backend => Ok(*kind),
        (Backend::Cable(_) | Backend::Unsupported(_), true) => Ok(CableKind::WireGuard),
    }
}

/// Where the peer may be reached: what NAT discovery chose, then private, then public addresses.
fn candidates(endpoint: &Endpoint, inputs: &ChoiceInputs<'_>) -> Vec<SocketAddr> {
    let chosen = IpFamily::ALL.into_iter().filter_map(|family| nat_address(endpoint, family, inputs));
    let mut candidates = Vec::new();
    for address in chosen.chain(endpoint.private.iter()).chain(endpoint.public.iter()) {
        let candidate = SocketAddr::new(address, endpoint.udp_port);
        if usable(address, inputs.own_addresses) && !candidates.contains(&candidate) {
            candidates.push(candidate);
        }
    }
    candidates
}

fn nat_address(endpoint: &Endpoint, family: IpFamily, inputs: &ChoiceInputs<'_>) -> Option<IpAddr> {
    inputs.nat.get(&(endpoint.cable_name.clone(), family)).map(|choice| choice.address)
}

/// Returns the peer's outer and private address; the outer one by Submariner's legacy rule until NAT discovery is done.
fn vxlan_addresses(endpoint: &Endpoint, inputs: &ChoiceInputs<'_>) -> Option<(Ipv4Addr, Ipv4Addr)> {
    inputs.local.private.v4?;
    let private = endpoint.private.v4?;
    let legacy = if endpoint.nat_enabled { endpoint.public.v4.unwrap_or(private) } else { private };
    let remote = match nat_address(endpoint, IpFamily::V4, inputs) {
        Some(IpAddr::V4(address)) => address,
        Some(IpAddr::V6(_)) | None => legacy,
    };
    usable(IpAddr::V4(remote), inputs.own_addresses).then_some((remote, private))
}

/// Tells whether a gateway can be sought at `address`.
fn usable(address: IpAddr, own: &BTreeSet<IpAddr>) -> bool {
    !(address.is_loopback()
        || address.is_multicast()
        || address.is_unspecified()
        || address == IpAddr::V4(Ipv4Addr::BROADCAST)
        || own.contains(&address))
}

/// What clusters already have, and no later one gets.
#[derive(Default)]
struct Claims<'a> {
    cable_names: BTreeMap<&'a str, &'a ClusterId>,
    public_keys: BTreeMap<PublicKey, &'a ClusterId>,
    /// Outer addresses, and addresses on the VXLAN link.
    vxlan_addresses: BTreeMap<Ipv4Addr, &'a ClusterId>,
    subnets: Vec<(IpNet, &'a ClusterId)>,
}

impl<'a> Claims<'a> {
    /// Takes the subnets that `endpoint` may have, and adds the reasons for the others to `refused`.
    fn take_subnets(
        &mut self,
        endpoint: &'a Endpoint,
        draft: &Draft,
        foreign: &ForeignSubnets,
        refused: &mut Vec<RefusedSubnet>,
    ) -> Vec<IpNet> {
        let mut taken = Vec::new();
        for subnet in endpoint.subnets.iter().map(IpNet::trunc) {
            match self.check_subnet(subnet, endpoint, draft, foreign) {
                Ok(()) if taken.contains(&subnet) => {}
                Ok(()) => taken.push(subnet),
                Err(reason) => refused.push(reason),
            }
        }
        self.subnets.extend(taken.iter().map(|&subnet| (subnet, &endpoint.cluster)));
        taken
    }

    fn check_subnet(
        &self,
        subnet: IpNet,
        endpoint: &Endpoint,
        draft: &Draft,
        foreign: &ForeignSubnets,
    ) -> Result<(), RefusedSubnet> {
        foreign.check(subnet)?;
        match (draft, IpFamily::of_net(&subnet)) {
            (Draft::Vxlan { .. }, IpFamily::V6) => return Err(RefusedSubnet::NotOverVxlan { subnet }),
            (Draft::Vxlan { .. }, IpFamily::V4) | (Draft::WireGuard { .. }, IpFamily::V4 | IpFamily::V6) => {}
        }
        if let Some((&remote, &other)) =
            self.vxlan_addresses.iter().find(|(address, _)| subnet.contains(&IpAddr::V4(**address)))
        {
            return Err(RefusedSubnet::CoversPeer { subnet, remote, other: other.clone() });
        }
        if let Some(&(taken, other)) = self.subnets.iter().find(|(taken, _)| overlaps(taken, &subnet)) {
            let cluster = endpoint.cluster.clone();
            return Err(RefusedSubnet::Taken { subnet, cluster, taken, other: other.clone() });
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "cables_tests.rs"]
mod tests;
